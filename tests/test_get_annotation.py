"""Labels returned as tables, outlines and files, and read again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import shapely
import spatialdata as sd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from shapely.geometry import mapping, shape
from spatialdata.models import ShapesModel, TableModel

import strecur as st

if TYPE_CHECKING:
    from pathlib import Path

    from geopandas import GeoDataFrame

IN_A_FOLDER = settings(
    deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CELL = {"hex": np.sqrt(3) / 2, "square": 1.0, "staggered": 1.0}


def section(layout: str, *, n: int = 12, pitch: float = 137.5, seed: int = 0, jitter: float = 0.0) -> ad.AnnData:
    """Return a section with holes, turned by 10 degrees, and its lattice."""
    rng = np.random.default_rng(seed)
    row, col = (axis.ravel() for axis in np.indices((n, n)))
    if layout == "irregular":
        xy = rng.uniform(0, n, (n * n, 2))
    elif layout == "square":
        xy = np.column_stack([col, row]).astype(float)
    else:  # every other row is shifted by half a step
        col = 2 * col + row % 2
        xy = (
            np.column_stack([col / 2, row * np.sqrt(3) / 2])
            if layout == "hex"
            else np.column_stack([col, row]) / np.sqrt(2)
        )
    angle = np.deg2rad(10)
    xy = pitch * xy @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + 3000
    xy += rng.normal(0, jitter * pitch, xy.shape)
    kept = rng.random(len(row)) < 0.9
    obs = pd.DataFrame({"section": "S1", "array_row": row, "array_col": col}, index=[f"s{i}" for i in range(len(row))])
    adata = ad.AnnData(np.ones((len(row), 2), np.float32), obs=obs, obsm={"spatial": xy})[kept].copy()
    if layout == "irregular":
        adata.obs = adata.obs[["section"]]
    st.pp.to_grid(adata, library_key="section", layout="irregular" if layout == "irregular" else "auto")
    return adata


def label(adata: ad.AnnData, *, seed: int = 0, n: int = 3, missing: float = 0.1) -> list[object]:
    """Label spots at random, leave some out, and return the labels."""
    rng = np.random.default_rng(seed)
    codes = np.where(rng.random(adata.n_obs) < missing, -1, rng.integers(0, n, adata.n_obs))
    codes[:n] = np.arange(n)
    adata.obs["domain"] = pd.Categorical.from_codes(codes, [f"D{i}" for i in range(n)])
    adata.obs["domain_confidence"] = rng.random(adata.n_obs).astype(np.float32)
    return plain(adata.obs["domain"])


def plain(column: pd.Series) -> list[object]:
    return column.astype(object).where(column.notna(), None).tolist()


# Tables


def test_table_of_labels():
    adata = section("hex")
    wanted = label(adata)
    found = st.get.annotation(adata, "domain")
    assert list(found) == ["section", "label", "confidence"]
    assert plain(found["label"]) == wanted
    assert list(found.index) == list(adata.obs_names)
    np.testing.assert_array_equal(found["confidence"], adata.obs["domain_confidence"])
    again = section("hex")
    st.pp.read_annotation(again, found)
    assert plain(again.obs["annotation"]) == wanted


def test_table_is_read_as_a_file(tmp_path):
    adata = section("square")
    wanted = label(adata)
    st.get.annotation(adata, "domain").to_csv(tmp_path / "a.csv")
    st.pp.read_annotation(adata, tmp_path / "a.csv")
    assert plain(adata.obs["annotation"]) == wanted


# Outlines


@pytest.mark.parametrize("jitter", [0.0, 0.002])
@pytest.mark.parametrize("layout", ["hex", "square", "staggered"])
def test_areas_are_those_of_the_spots(layout, jitter):
    adata = section(layout, jitter=jitter)
    label(adata)
    found = st.get.outlines(adata, "domain")
    counts = adata.obs["domain"].value_counts(sort=False)
    assert found["label"].tolist() == ["D0", "D1", "D2"]
    assert found["n_spots"].tolist() == counts.tolist()
    assert found.is_valid.all()
    np.testing.assert_allclose(found.area / found["n_spots"] / 137.5**2, CELL[layout], rtol=1e-5 + 5 * jitter)
    means = adata.obs.groupby("domain", observed=True)["domain_confidence"].mean()
    np.testing.assert_allclose(found["confidence"], means, rtol=1e-5)
    overlap = shapely.intersection(found.geometry.iloc[0], found.geometry.iloc[1])
    assert overlap.area < 1e-6 * found.area.min()


def test_one_label_everywhere_is_one_piece_with_holes():
    adata = section("hex", n=20)
    adata.obs["domain"] = "a"
    (outline,) = st.get.outlines(adata, "domain").geometry
    pitch_area = 137.5**2 * CELL["hex"]
    assert outline.area == pytest.approx(adata.n_obs * pitch_area, rel=1e-5)
    inner = [ring for part in shapely.get_parts(outline) for ring in part.interiors]
    areas = np.array([shapely.Polygon(ring).area for ring in inner]) / pitch_area
    np.testing.assert_allclose(areas, np.rint(areas), atol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("layout", ["square", "irregular"])
def test_few_spots(n, layout):
    adata = section("square")[:n].copy()
    adata.obs["domain"] = "a"
    if layout == "irregular":
        st.pp.to_grid(adata, library_key="section", layout=layout)
    (outline,) = st.get.outlines(adata, "domain").geometry
    assert outline.area > 0
    assert all(outline.contains(shapely.Point(xy)) for xy in adata.obsm["spatial"])


def test_spots_without_or_at_the_same_place():
    adata = section("irregular")
    label(adata, missing=0.0)
    adata.obsm["spatial"][5] = adata.obsm["spatial"][4]
    adata.obsm["spatial"][7] = np.nan
    found = st.get.outlines(adata, "domain")
    assert found["n_spots"].sum() == adata.n_obs
    assert found.is_valid.all()


# Files


@IN_A_FOLDER
@given(
    layout=some.sampled_from(["hex", "square", "staggered", "irregular"]),
    seed=some.integers(0, 1000),
    n=some.integers(1, 4),
    scale=some.floats(1e-3, 1e3),
)
def test_geojson_comes_back(tmp_path, layout, seed, n, scale):
    adata = section(layout, seed=seed)
    wanted = label(adata, seed=seed, n=n, missing=seed % 3 / 4)
    st.get.write_annotation(adata, tmp_path / "a.geojson", "domain", scale=scale)
    st.pp.read_annotation(adata, tmp_path / "a.geojson", scale=scale)
    assert plain(adata.obs["annotation"]) == wanted
    assert adata.uns["annotation"]["sections"]["n_overlapping"].tolist() == [0]


def test_geojson_is_what_qupath_reads(tmp_path):
    adata = section("hex")
    label(adata)
    adata.uns["domain_colors"] = ["#FF0000", "#00FF00", "#0000FF"]
    st.get.write_annotation(adata, tmp_path / "a.geojson", "domain")
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    first = content["features"][0]
    assert first["type"] == "Feature"
    assert first["geometry"]["type"] in {"Polygon", "MultiPolygon"}
    properties = first["properties"]
    assert properties["objectType"] == "annotation"
    assert properties["classification"] == {"name": "D0", "color": [255, 0, 0]}
    of_first = adata.obs["domain"] == "D0"
    assert properties["measurements"]["Number of spots"] == of_first.sum()
    mean = adata.obs["domain_confidence"][of_first].mean()
    assert properties["measurements"]["Mean confidence"] == pytest.approx(mean, abs=1e-4)
    st.pp.read_annotation(adata, tmp_path / "a.geojson")
    assert adata.uns["annotation_colors"] == adata.uns["domain_colors"]


def test_labels_without_confidence(tmp_path):
    adata = section("hex")
    label(adata)
    adata.obs.loc[adata.obs["domain"] == "D1", "domain_confidence"] = np.nan
    st.get.write_annotation(adata, tmp_path / "a.geojson", "domain")
    text = (tmp_path / "a.geojson").read_text()
    measured = {f["properties"]["name"]: f["properties"]["measurements"] for f in json.loads(text)["features"]}
    assert "NaN" not in text
    assert {name for name, values in measured.items() if "Mean confidence" in values} == {"D0", "D2"}


@pytest.mark.parametrize("names", ["{}-1", "{}-1-S1", "S1_{}-1", "{}", "S1_{}"])
def test_loupe_csv_has_barcodes_of_space_ranger(tmp_path, names):
    adata = section("hex")
    wanted = label(adata)
    rng = np.random.default_rng(0)
    barcodes = ["".join(rng.choice(list("ACGT"), 16)) for _ in range(adata.n_obs)]
    adata.obs_names = [names.format(barcode) for barcode in barcodes]
    st.get.write_annotation(adata, tmp_path / "a.csv", "domain")
    found = pd.read_csv(tmp_path / "a.csv")
    assert list(found) == ["Barcode", "domain"]
    labelled = [b for b, name in zip(barcodes, wanted, strict=True) if name is not None]
    assert found["Barcode"].tolist() == [f"{barcode}-1" for barcode in labelled]
    st.pp.read_annotation(adata, tmp_path / "a.csv")
    assert plain(adata.obs["annotation"]) == wanted


def test_each_section_is_a_file(tmp_path):
    parts = {name: section("hex", seed=i) for i, name in enumerate(("S1", "S2"))}
    adata = ad.concat(parts, index_unique="-", label="section")
    st.pp.to_grid(adata, library_key="section")
    wanted = label(adata)
    for suffix in ("csv", "geojson"):
        files = {name: tmp_path / f"{name}.{suffix}" for name in parts}
        for name, path in files.items():
            st.get.write_annotation(adata, path, "domain", library_id=name)
        st.pp.read_annotation(adata, files)
        assert plain(adata.obs["annotation"]) == wanted


# Real sections


def drawn(adata: ad.AnnData) -> list[dict]:
    """Draw around the spots of every layer, as one does by hand: loosely and with smooth lines."""
    pitch = adata.uns["grid"]["spacing"]["151673"]
    features = []
    for name in adata.obs["domain"].cat.categories:
        spots = shapely.points(adata.obsm["spatial"][(adata.obs["domain"] == name).to_numpy()])
        outline = shapely.union_all(shapely.buffer(spots, 0.9 * pitch)).buffer(-0.35 * pitch).simplify(0.05 * pitch)
        properties = {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}}
        features.append({"type": "Feature", "geometry": mapping(outline), "properties": properties})
    return features


@pytest.fixture(scope="module")
def dlpfc(data_dir) -> ad.AnnData:
    path = data_dir / "dlpfc" / "151673.h5ad"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    adata = ad.read_h5ad(path)
    adata.uns["spatial"] = {"151673": {"scalefactors": adata.uns["scalefactors"], "images": {}}}
    st.pp.to_grid(adata, library_key="section")
    return adata


@pytest.mark.parametrize("scale", [1.0, "um", "hires"])
def test_layers_of_a_real_section(dlpfc, tmp_path, scale):
    """Polygons of the layers in, outlines out: labels and areas agree."""
    adata = dlpfc.copy()
    features = drawn(adata)
    (tmp_path / "in.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    st.pp.read_annotation(adata, tmp_path / "in.geojson")
    known = adata.obs["domain"].notna()
    assert (adata.obs["annotation"].astype(object)[known] == adata.obs["domain"].astype(object)[known]).mean() > 0.99
    st.get.write_annotation(adata, tmp_path / "out.geojson", "annotation", scale=scale)
    st.pp.read_annotation(adata, tmp_path / "out.geojson", scale=scale, key_added="again")
    assert plain(adata.obs["again"]) == plain(adata.obs["annotation"])
    found = st.get.outlines(adata, "annotation").set_index("label")
    pitch = adata.uns["grid"]["spacing"]["151673"]
    np.testing.assert_allclose(found.area / found["n_spots"], pitch**2 * CELL["hex"], rtol=1e-3)
    given_area = {f["properties"]["classification"]["name"]: shape(f["geometry"]).area for f in features}
    np.testing.assert_allclose(found.area, pd.Series(given_area)[found.index], rtol=0.1)


def napari_csv(path: Path, shapes: GeoDataFrame) -> Path:
    """Write outlines as napari does, which knows no holes, with a column of labels."""
    pieces = shapes.explode(index_parts=False)
    rows = [
        (i, "polygon", vertex, y, x, name)
        for i, (name, piece) in enumerate(zip(pieces["label"], pieces.geometry, strict=True))
        for vertex, (x, y) in enumerate(piece.exterior.coords[:-1])
    ]
    columns = ["index", "shape-type", "vertex-index", "axis-0", "axis-1", "label"]
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


def as_spatialdata(adata: ad.AnnData) -> sd.SpatialData:
    """Return a section with its spots as circles."""
    table = adata.copy()
    table.obs["region"], table.obs["spot"] = pd.Categorical(["spots"] * table.n_obs), np.arange(table.n_obs)
    circles = ShapesModel.parse(table.obsm["spatial"], geometry=0, radius=48.0, index=table.obs["spot"].copy())
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="spot")
    return sd.SpatialData(shapes={"spots": circles}, tables={"table": table})


def test_every_form_on_a_real_section(dlpfc, tmp_path):
    """Loupe CSV, table, napari layer and SpatialData shapes bring every label back."""
    adata, wanted = dlpfc.copy(), plain(dlpfc.obs["domain"])
    st.get.write_annotation(adata, tmp_path / "loupe.csv", "domain")
    st.get.annotation(adata, "domain").to_csv(tmp_path / "table.tsv", sep="\t")
    layer = napari_csv(tmp_path / "napari.csv", st.get.outlines(adata, "domain"))
    for source in (tmp_path / "loupe.csv", tmp_path / "table.tsv", layer):
        st.pp.read_annotation(adata, source)
        assert plain(adata.obs["annotation"]) == wanted
    sdata = as_spatialdata(adata)
    sdata["layers"] = st.get.outlines(sdata, "domain")
    st.pp.read_annotation(sdata, "layers")
    assert plain(sdata["table"].obs["annotation"]) == wanted
