"""Annotation read from tables and polygons: Loupe, QuPath, napari, several annotators."""

from __future__ import annotations

import json
import logging

import anndata as ad
import geopandas
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from shapely.geometry import MultiPolygon, Point, Polygon, box, mapping

import strecur as st

BARCODES = ["".join(letters) for letters in np.random.default_rng(0).choice(list("ACGT"), (60, 16))]
IN_A_FOLDER = settings(
    deadline=None, max_examples=30, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def lattice(n_rows: int = 6, n_cols: int = 10, *, section: str = "S1", pitch: float = 100.0) -> ad.AnnData:
    """Return a square lattice of spots with barcodes; spot (row, col) lies at pitch × (col, row)."""
    row, col = (axis.ravel() for axis in np.indices((n_rows, n_cols)))
    obs = pd.DataFrame({"section": section, "array_row": row, "array_col": col})
    obs.index = [f"{BARCODES[i]}-1" for i in range(len(row))]
    return ad.AnnData(np.ones((len(row), 3), dtype=np.float32), obs=obs, obsm={"spatial": pitch * np.c_[col, row]})


def two_sections() -> ad.AnnData:
    """Return two sections with the same barcodes, as ``anndata.concat`` joins them."""
    parts = {name: lattice(section=name) for name in ("S1", "S2")}
    return ad.concat(parts, index_unique="-")


def labels(adata: ad.AnnData, key: str = "annotation") -> list[object]:
    return adata.obs[key].astype(object).where(adata.obs[key].notna(), None).tolist()


def half(adata: ad.AnnData) -> list[str]:
    """Return the label of the left and the right half."""
    return ["left" if x < 450 else "right" for x in adata.obsm["spatial"][:, 0]]


def qupath(path, shapes, **properties):
    """Write polygons by class as QuPath does."""
    features = [
        {
            "type": "Feature",
            "id": f"00000000-0000-0000-0000-{i:012}",
            "geometry": mapping(shape),
            "properties": {"objectType": "annotation", "classification": {"name": name, "color": [200, i, 0]}}
            | properties,
        }
        for i, (name, shape) in enumerate(shapes)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    return path


LEFT, RIGHT = box(-50, -50, 450, 550), box(450, -50, 950, 550)


# Tables


def write_loupe(path, names, values, *, sep=",", head="Barcode,Layer"):
    rows = [f"{name}{sep}{value}" for name, value in zip(names, values, strict=True)]
    path.write_text("\n".join([head.replace(",", sep), *rows]) + "\n", encoding="utf-8")
    return path


def test_loupe_csv(tmp_path):
    adata = lattice()
    wanted = half(adata)
    wanted[3] = ""
    st.pp.read_annotation(adata, write_loupe(tmp_path / "a.csv", adata.obs_names, wanted))
    assert labels(adata) == [name or None for name in wanted]
    assert list(adata.obs["annotation"].cat.categories) == ["left", "right"]
    assert adata.uns["annotation"]["sections"]["n_labelled"].tolist() == [59]
    assert adata.uns["annotation"]["unmatched"].empty
    assert adata.uns["annotation"]["params"]["source"] == [str(tmp_path / "a.csv")]


@pytest.mark.parametrize(
    ("suffix", "sep", "mark"), [(".csv", ",", ""), (".csv", ";", ""), (".tsv", "\t", ""), (".txt", "\t", "\ufeff")]
)
def test_separators_and_byte_order_mark(tmp_path, suffix, sep, mark):
    adata = lattice()
    path = write_loupe(tmp_path / f"a{suffix}", adata.obs_names, half(adata), sep=sep, head=f"{mark}Barcode,Layer")
    st.pp.read_annotation(adata, path)
    assert labels(adata) == half(adata)


@IN_A_FOLDER
@given(
    prefix=some.sampled_from(["", "s1_", "151673_", "x#"]),
    suffix=some.sampled_from(["", "-1", "-1-151673", "-151673", "-1-0", "-1_s1"]),
    other=some.sampled_from(["", "-1", "-2"]),
    seed=some.integers(0, 100),
)
def test_barcodes_match_whatever_stands_around_them(prefix, suffix, other, seed):
    adata = lattice()
    adata.obs_names = [f"{prefix}{name}{suffix}" for name in BARCODES]
    order = np.random.default_rng(seed).permutation(60)[:40]
    table = pd.DataFrame({"Barcode": [BARCODES[i] + other for i in order], "Layer": np.array(half(adata))[order]})
    st.pp.read_annotation(adata, table)
    wanted = np.where(np.isin(np.arange(60), order), half(adata), None).tolist()
    assert labels(adata) == wanted


def test_names_made_unique_after_joining_still_match():
    """Names of the second section that the first one has too get a further number, others stay as they are."""
    first, second = lattice(section="S1")[:30].copy(), lattice(section="S2")
    adata = ad.concat([first, second])
    adata.obs_names_make_unique()
    table = pd.DataFrame({"Layer": half(second)}, index=pd.Index(second.obs_names, name="Barcode"))
    st.pp.read_annotation(adata, {"S2": table}, library_key="section")
    assert labels(adata) == [None] * 30 + half(second)


def test_barcodes_of_several_sections_need_a_mapping():
    adata = two_sections()
    table = pd.DataFrame({"Barcode": lattice().obs_names, "Layer": half(lattice())})
    with pytest.raises(ValueError, match=r"barcodes occur several times.*\{section: annotation\}"):
        st.pp.read_annotation(adata, table, library_key="section")
    st.pp.read_annotation(adata, {"S2": table}, library_key="section")
    assert labels(adata) == [None] * 60 + half(lattice())
    st.pp.read_annotation(adata, {"S1": table, "S2": table.assign(Layer="z")}, library_key="section")
    assert labels(adata) == half(lattice()) + ["z"] * 60


def test_suffixes_that_tell_libraries_apart_are_kept():
    """Of an aggregated table, an object of the first library takes the rows that end in -1."""
    names = [*(f"{b}-1" for b in BARCODES), *(f"{b}-2" for b in BARCODES)]
    adata = lattice()
    st.pp.read_annotation(adata, pd.DataFrame({"Barcode": names, "Layer": half(adata) + ["z"] * 60}))
    assert labels(adata) == half(adata)
    assert len(adata.uns["annotation"]["unmatched"]) == 60


def test_a_column_of_sections_tells_them_apart():
    adata = two_sections()
    plain = list(lattice().obs_names) * 2
    table = pd.DataFrame({"Barcode": plain, "section": ["S1"] * 60 + ["S2"] * 60, "label": ["a"] * 60 + ["b"] * 60})
    st.pp.read_annotation(adata, table, library_key="section")
    assert labels(adata) == ["a"] * 60 + ["b"] * 60


def test_spots_are_found_by_a_column_of_obs():
    adata = lattice()
    adata.obs["cell_id"] = np.arange(60) + 1000
    table = pd.DataFrame({"cell_id": np.arange(60) + 1000, "class": half(adata)})
    st.pp.read_annotation(adata, table)
    assert labels(adata) == half(adata)


def test_a_table_of_empty_labels_raises():
    adata = lattice()
    with pytest.raises(ValueError, match="no spot would be labelled"):
        st.pp.read_annotation(adata, pd.DataFrame({"Barcode": adata.obs_names, "label": ""}))
    assert list(adata.obs) == list(lattice().obs)


def test_index_of_a_dataframe_and_numbers_as_labels():
    adata = lattice()
    st.pp.read_annotation(adata, pd.DataFrame({"cluster": np.arange(60.0) % 12}, index=adata.obs_names))
    assert list(adata.obs["annotation"].cat.categories) == [str(i) for i in range(12)]


def test_unmatched_barcodes_are_reported(caplog):
    adata = lattice()[:20].copy()
    table = pd.DataFrame({"Barcode": lattice().obs_names, "Layer": half(lattice())})
    with caplog.at_level(logging.WARNING, "strecur"):
        st.pp.read_annotation(adata, table)
    assert "40 entries of the annotation are not used: each is not in the object" in caplog.text
    unmatched = adata.uns["annotation"]["unmatched"]
    assert unmatched["entry"].tolist() == lattice().obs_names[20:].tolist()


# QuPath


def test_qupath_geojson(tmp_path):
    adata = lattice()
    st.pp.read_annotation(adata, qupath(tmp_path / "a.geojson", [("left", LEFT), ("right", RIGHT)]))
    assert labels(adata) == half(adata)
    assert adata.uns["annotation_colors"] == ["#C80000", "#C80100"]


def test_older_forms_of_qupath(tmp_path):
    """A list of features, colours as one signed number, derived classes as lists of names, nested geometries."""
    adata, path = lattice(), tmp_path / "a.json"
    both = MultiPolygon([box(-50, -50, 150, 550), box(150, -50, 450, 550)])
    old = {
        "type": "Feature",
        "geometry": mapping(both),
        "properties": {"classification": {"name": "left", "colorRGB": -3670016}},
    }
    new = {
        "type": "Feature",
        "geometry": mapping(RIGHT),
        "properties": {"classification": {"names": ["right", "deep"]}},
    }
    path.write_text(json.dumps([old, new]))
    st.pp.read_annotation(adata, path)
    assert labels(adata) == [name.replace("right", "right: deep") for name in half(adata)]
    assert "annotation_colors" not in adata.uns  # one class has none
    path.write_text(json.dumps(old))
    st.pp.read_annotation(adata, path)
    assert adata.uns["annotation_colors"] == ["#C80000"]


def test_the_smallest_of_overlapping_polygons_counts(tmp_path, caplog):
    adata = lattice()
    inner = box(150, 150, 350, 350)
    shapes = [("gland", inner), ("tissue", box(-50, -50, 950, 550)), ("left", LEFT)]
    with caplog.at_level(logging.WARNING, "strecur"):
        st.pp.read_annotation(adata, qupath(tmp_path / "a.geojson", shapes))
    xy = adata.obsm["spatial"]
    wanted = np.where(xy[:, 0] < 450, "left", "tissue").astype(object)
    wanted[(np.abs(xy - 250) < 100).all(axis=1)] = "gland"
    assert labels(adata) == wanted.tolist()
    assert adata.uns["annotation"]["sections"]["n_overlapping"].tolist() == [30]
    assert "30 spots lie in polygons of different labels" in caplog.text


def test_holes_multipolygons_and_crossing_outlines(tmp_path):
    adata = lattice()
    ring = Polygon(box(-50, -50, 450, 550).exterior.coords, [box(50, 50, 250, 250).exterior.coords])
    islands = MultiPolygon([box(550, -50, 650, 50), box(750, 150, 850, 250)])
    bow = Polygon([(480, 380), (680, 540), (680, 380), (480, 540)])
    assert not bow.is_valid
    st.pp.read_annotation(adata, qupath(tmp_path / "a.geojson", [("ring", ring), ("islands", islands), ("bow", bow)]))
    found = dict(zip(map(tuple, adata.obsm["spatial"].astype(int).tolist()), labels(adata), strict=True))
    assert found[(100, 100)] is None
    assert found[(300, 300)] == "ring"
    assert found[(600, 0)] == found[(800, 200)] == "islands"
    assert found[(700, 100)] is None
    assert found[(500, 400)] == found[(500, 500)] == "bow"


def test_features_that_cannot_be_used_are_reported(tmp_path):
    adata, path = lattice(), tmp_path / "a.geojson"
    features = json.loads(qupath(path, [("left", LEFT)]).read_text())["features"]
    features += [
        {"type": "Feature", "geometry": mapping(Point(1, 2)), "properties": {"name": "a point"}},
        {"type": "Feature", "geometry": mapping(RIGHT), "properties": {"name": "no class"}},
        {"type": "Feature", "geometry": None, "properties": {"name": "nothing"}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0]]]}, "properties": {"name": "open"}},
        {"type": "Feature", "geometry": mapping(RIGHT), "properties": {"name": "a cell", "objectType": "cell"}},
        {
            **features[0],
            "geometry": mapping(box(5e6, 5e6, 6e6, 6e6)),
            "properties": {**features[0]["properties"], "name": "away"},
        },
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    st.pp.read_annotation(adata, path)
    assert labels(adata) == [name if name == "left" else None for name in half(adata)]
    assert dict(adata.uns["annotation"]["unmatched"][["entry", "reason"]].to_numpy().tolist()) == {
        "a point": "is not a polygon with an area",
        "no class": "has no label",
        "nothing": "has no valid geometry",
        "open": "has no valid geometry",
        "a cell": "is of type 'cell'; export annotations only",
        "away": "contains no spot",
    }


JSON = some.recursive(
    some.none() | some.integers(-5, 5) | some.floats() | some.text(max_size=3),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PROPERTIES = some.fixed_dictionaries(
    {}, optional={"classification": JSON, "objectType": JSON, "name": JSON, "metadata": JSON}
)
CLASSES = some.fixed_dictionaries({}, optional={"name": JSON, "names": JSON, "color": JSON, "colorRGB": JSON})
GEOMETRIES = some.fixed_dictionaries({"type": some.sampled_from(["Polygon", "Point", "?"]), "coordinates": JSON})
FEATURES = some.fixed_dictionaries(
    {},
    optional={
        "geometry": JSON | GEOMETRIES | some.just(mapping(LEFT)),
        "properties": JSON | PROPERTIES | some.fixed_dictionaries({"classification": CLASSES}),
    },
)


@settings(IN_A_FOLDER, max_examples=200)
@given(content=JSON | some.lists(FEATURES, max_size=3) | some.fixed_dictionaries({"features": some.lists(FEATURES)}))
def test_damaged_geojson_raises_or_is_reported(tmp_path, content):
    adata, path = lattice(), tmp_path / "a.geojson"
    path.write_text(json.dumps(content), encoding="utf-8")
    try:
        st.pp.read_annotation(adata, path)
    except ValueError as error:
        assert "a.geojson" in str(error) or "labelled polygon" in str(error) or "lies in a polygon" in str(error)  # noqa: PT017
        assert "annotation" not in adata.obs
    else:
        assert set(labels(adata)) - {None}


def test_labels_and_annotators_from_properties(tmp_path):
    adata = lattice()
    anna = qupath(tmp_path / "a.geojson", [("x", LEFT)], metadata={"who": "anna", "layer": "L1"})
    bert = qupath(tmp_path / "b.geojson", [("x", box(-50, -50, 350, 550))], measurements={"who": "bert", "layer": "L2"})
    st.pp.read_annotation(adata, [anna, bert], label_key="layer", annotator_key="who")
    assert set(labels(adata)) == {None, "L1"}
    assert adata.uns["annotation"]["annotators"]["agreement"].tolist() == [0.0]


def scaled(path, factor):
    shapes = [("left", box(*(v * factor for v in LEFT.bounds))), ("right", box(*(v * factor for v in RIGHT.bounds)))]
    return qupath(path, shapes)


def with_scale_factors(adata, *, mpp: float = 0.5) -> ad.AnnData:
    factors = {"microns_per_pixel": mpp, "tissue_hires_scalef": 0.1}
    adata.uns["spatial"] = {"S1": {"scalefactors": factors, "images": {}}}
    return adata


@pytest.mark.parametrize(("scale", "factor"), [("um", 0.5), ("hires", 0.1), (2.0, 0.5), ({"section": 10.0}, 0.1)])
def test_units(tmp_path, scale, factor):
    adata = with_scale_factors(lattice())
    st.pp.read_annotation(adata, scaled(tmp_path / "a.geojson", factor), scale=scale)
    assert labels(adata) == half(adata)


def test_wrong_units_are_noticed(tmp_path, caplog):
    adata = with_scale_factors(lattice())
    adata.obsm["spatial"] += 2000
    path = tmp_path / "a.geojson"
    shapes = [
        ("left", box(*((v + 2000) / 2 for v in LEFT.bounds))),
        ("right", box(*((v + 2000) / 2 for v in RIGHT.bounds))),
    ]
    with pytest.raises(ValueError, match=r"polygons span x 975 to 1475.*the spots x 2000 to 2900.*scale='um' 60 spots"):
        st.pp.read_annotation(adata, qupath(path, shapes))
    with pytest.raises(ValueError, match="with scale=1 60 spots would"):
        st.pp.read_annotation(adata, qupath(path, [("all", box(1950, 1950, 2950, 2550))]), scale="um")
    # near the origin of the coordinates, polygons in µm meet some spots
    adata.obsm["spatial"] -= 1950
    with caplog.at_level(logging.WARNING, "strecur"):
        st.pp.read_annotation(adata, qupath(path, [("all", box(0, 0, 500, 300))]))
    assert "with scale='um' they would cover the same area" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "strecur"):
        st.pp.read_annotation(adata, qupath(path, [("corner", box(0, 0, 400, 300))]), scale="um")
        st.pp.read_annotation(adata, qupath(path, [("corner", box(500, 300, 950, 600))]))
    assert "Is the unit right" not in caplog.text


@IN_A_FOLDER
@given(
    rectangles=some.lists(
        some.tuples(*[some.integers(-10, 99)] * 2, *[some.integers(1, 60)] * 2, some.sampled_from("abc")),
        min_size=1,
        max_size=6,
    )
)
def test_labels_are_those_of_the_smallest_rectangle(tmp_path, rectangles):
    adata = lattice()
    shapes = [
        (name, box(10 * x + 3, 10 * y + 3, 10 * (x + w) + 3, 10 * (y + h) + 3)) for x, y, w, h, name in rectangles
    ]
    wanted = []
    for x, y in adata.obsm["spatial"]:
        around = [(s.area, -i, name) for i, (name, s) in enumerate(shapes) if s.contains(Point(x, y))]
        wanted.append(min(around)[2] if around else None)
    path = qupath(tmp_path / "a.geojson", shapes)
    if not any(wanted):
        with pytest.raises(ValueError, match="lies in a polygon"):
            st.pp.read_annotation(adata, path)
        return
    st.pp.read_annotation(adata, path)
    assert labels(adata) == wanted


# napari


class Layer:
    """What is used of a napari shapes layer."""

    def __init__(self, data, **meta):
        self.data, self.meta = data, meta

    def as_layer_data_tuple(self):
        return self.data, self.meta, "shapes"


def corners(shape: Polygon, *, plane: bool = False) -> np.ndarray:
    """Return vertices in the order of napari: (y, x), or (z, y, x)."""
    yx = np.array(shape.exterior.coords)[:-1, ::-1]
    return np.column_stack([np.zeros(len(yx)), yx]) if plane else yx


def napari_csv(path, shapes, **columns):
    """Write shapes as napari does, with columns of one's own."""
    rows = [
        {"index": float(i), "shape-type": kind, "vertex-index": float(v), "axis-0": y, "axis-1": x}
        | {name: values[i] for name, values in columns.items()}
        for i, (kind, shape) in enumerate(shapes)
        for v, (y, x) in enumerate(corners(shape))
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_napari_layer_with_features():
    adata = lattice()
    layer = Layer(
        [corners(LEFT), corners(RIGHT)], shape_type=["rectangle", "polygon"], features={"region": ["left", "right"]}
    )
    st.pp.read_annotation(adata, layer)
    assert labels(adata) == half(adata)
    data = [corners(LEFT, plane=True), corners(RIGHT, plane=True)]
    meta = {"properties": {"region": np.array(["left", "right"]), "who": np.array(["a", "b"])}, "shape_type": "polygon"}
    st.pp.read_annotation(adata, (data, meta, "shapes"), label_key="region", annotator_key="who")
    assert labels(adata) == half(adata)


def test_napari_csv_one_layer_per_label(tmp_path):
    adata = lattice()
    files = [napari_csv(tmp_path / f"{n}.csv", [("polygon", s)]) for n, s in (("left", LEFT), ("right", RIGHT))]
    st.pp.read_annotation(adata, files)
    assert labels(adata) == half(adata)


def test_napari_csv_with_a_column_of_labels(tmp_path):
    adata = lattice()
    path = napari_csv(tmp_path / "a.csv", [("polygon", LEFT), ("rectangle", RIGHT)], label=["left", "right"])
    st.pp.read_annotation(adata, path)
    assert labels(adata) == half(adata)


def test_ellipses_and_paths(tmp_path):
    adata = lattice()
    path = napari_csv(tmp_path / "tumour.csv", [("ellipse", box(60, 60, 640, 440)), ("path", RIGHT)])
    st.pp.read_annotation(adata, path)
    x, y = adata.obsm["spatial"].T
    inside = ((x - 350) / 290) ** 2 + ((y - 250) / 190) ** 2 < 0.99
    assert labels(adata) == np.where(inside, "tumour", None).tolist()
    assert adata.uns["annotation"]["unmatched"]["entry"].tolist() == ["tumour: path 1"]


def test_an_empty_layer_raises():
    with pytest.raises(ValueError, match="has no shapes"):
        st.pp.read_annotation(lattice(), ([], {"name": "tumour"}, "shapes"))


def test_geodataframe():
    adata = lattice()
    frame = geopandas.GeoDataFrame({"class": ["left", "right"], "note": ["", ""]}, geometry=[LEFT, RIGHT])
    st.pp.read_annotation(adata, frame)
    assert labels(adata) == half(adata)
    circle = geopandas.GeoDataFrame({"class": ["round"], "radius": [120.0]}, geometry=[Point(300, 300)])
    st.pp.read_annotation(adata, circle)
    assert adata.obs["annotation"].notna().sum() == 5


# Annotators


def by_annotator(**votes: str) -> dict[str, pd.DataFrame]:
    """Return one table per annotator from a letter per spot; a dot is no label."""
    names = lattice().obs_names
    return {
        name: pd.DataFrame({"Barcode": names[: len(text)], "label": ["" if x == "." else x for x in text]})
        for name, text in votes.items()
    }


def test_majority_of_annotators():
    adata = lattice()
    tables = by_annotator(anna="aab.ab", bert="aabba.", carl="abc..." + "c")
    st.pp.read_annotation(adata, {"section": tables})
    assert labels(adata)[:8] == ["a", "a", "b", "b", "a", "b", "c", None]
    expected = [1, 2 / 3, 2 / 3, 1, 1, 1, 1, np.nan]
    np.testing.assert_allclose(adata.obs["annotation_agreement"][:8], expected, rtol=1e-6)
    pairs = adata.uns["annotation"]["annotators"].set_index(["annotator", "other"])
    assert pairs.loc[("anna", "bert"), "n_spots"] == 4
    assert pairs.loc[("anna", "bert"), "agreement"] == 1.0
    assert pairs.loc[("anna", "bert"), "kappa"] == 1.0
    assert pairs.loc[("anna", "carl"), "agreement"] == pytest.approx(1 / 3)


def test_without_majority_the_label_is_missing(caplog):
    adata = lattice()
    with caplog.at_level(logging.WARNING, "strecur"):
        st.pp.read_annotation(adata, {"section": by_annotator(anna="aabb", bert="abba")})
    assert labels(adata)[:4] == ["a", None, "b", None]
    assert adata.uns["annotation"]["sections"]["n_disputed"].tolist() == [2]
    assert "2 spots have no label that most of their annotators give" in caplog.text
    assert adata.uns["annotation"]["annotators"]["kappa"].tolist() == [0.0]


def test_a_later_call_replaces_the_results():
    adata = lattice()
    st.pp.read_annotation(adata, {"section": by_annotator(anna="aabb", bert="abba")})
    st.pp.read_annotation(adata, by_annotator(anna="xx")["anna"])
    assert "annotation_agreement" not in adata.obs
    assert labels(adata) == ["x", "x", *[None] * 58]


def test_a_column_of_the_user_is_kept():
    adata = lattice()
    adata.obs["annotation"] = "mine"
    with pytest.raises(ValueError, match="choose another key_added"):
        st.pp.read_annotation(adata, by_annotator(anna="xx")["anna"])


# Borders


@pytest.mark.parametrize(("border", "left_out"), [(0, 0), (1, 2), (2, 4), (1.4, 2)])
def test_rows_beside_a_border_are_left_out(tmp_path, border, left_out):
    adata = lattice()
    st.pp.read_annotation(adata, qupath(tmp_path / "a.geojson", [("left", LEFT), ("right", RIGHT)]), border=border)
    near = np.abs(adata.obsm["spatial"][:, 0] - 450) < 50 * left_out
    assert labels(adata) == np.where(near, None, half(adata)).tolist()
    assert adata.uns["annotation"]["sections"]["n_border"].tolist() == [near.sum()]


def test_sections_have_no_border_with_one_another():
    adata = two_sections()
    tables = {name: pd.DataFrame({"Barcode": lattice().obs_names, "label": name}) for name in ("S1", "S2")}
    st.pp.read_annotation(adata, tables, library_key="section", border=3)
    assert adata.obs["annotation"].notna().all()


def test_training_takes_it(tmp_path):
    adata = st.datasets.synthetic_sections(n_sections=1, n_rows=12, n_cols=12, n_domains=2)
    st.pp.to_grid(adata, library_key="section")
    st.get.write_annotation(adata, tmp_path / "a.geojson", "domain")
    st.pp.read_annotation(adata, tmp_path / "a.geojson", border=1)
    model = st.tl.train_domains(adata, "annotation", training={"max_epochs": 1})
    assert list(model.labels) == ["L1", "L2"]
