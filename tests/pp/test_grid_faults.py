"""Objects that contradict themselves: put right where it is clear what is meant, otherwise refused by name."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strecur.pp import to_grid

from .test_grid import assert_one_spot_per_site, lattice, make, neighbours, turn

some = settings(max_examples=10, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32 - 1)


def section(layout: str, seed: int = 0, *, n_rows: int = 20, n_cols: int = 18, name: str = "a", scale: float = 100.0):
    """Section of an array with holes, turned against its image."""
    rng = np.random.default_rng(seed)
    sites, xy = lattice(layout, n_rows, n_cols)
    kept = rng.random(len(sites)) < 0.85
    adata = make(turn(xy, 3) * scale, array_row=sites[:, 0], array_col=sites[:, 1], section=name)[kept].copy()
    adata.obs_names = [f"{name}-{spot}" for spot in adata.obs_names]
    return adata


def is_array(adata: ad.AnnData) -> None:
    """Put array coordinates in the place of coordinates."""
    adata.obsm["spatial"] = adata.obs[["array_col", "array_row"]].to_numpy().astype(float)


def swapped_as_coordinates(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = adata.obs[["array_row", "array_col"]].to_numpy()


def moved_as_coordinates(adata: ad.AnnData) -> None:
    adata.obsm["spatial"] = 500 - adata.obs[["array_col", "array_row"]].to_numpy()


def swap(adata: ad.AnnData) -> None:
    adata.obs["array_row"], adata.obs["array_col"] = adata.obs["array_col"].copy(), adata.obs["array_row"].copy()


def shift_one(adata: ad.AnnData) -> None:
    adata.obs.iloc[5, adata.obs.columns.get_loc("array_row")] += 1


def onto_another(adata: ad.AnnData) -> None:
    """Write the site of one spot for another one as well."""
    for column in ("array_row", "array_col"):
        adata.obs.iloc[5, adata.obs.columns.get_loc(column)] = adata.obs[column].iloc[40]


def pixels(adata: ad.AnnData) -> None:
    adata.obs[["array_col", "array_row"]] = np.rint(adata.obsm["spatial"]).astype(int)


def text(adata: ad.AnnData) -> None:
    adata.obs = adata.obs.astype({"array_row": str, "array_col": float})


def one_missing(adata: ad.AnnData) -> None:
    adata.obs["array_row"] = adata.obs["array_row"].astype(float)
    adata.obs.iloc[3, adata.obs.columns.get_loc("array_row")] = np.nan


def no_array(adata: ad.AnnData) -> None:
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])


FAULTS = {
    "array coordinates as coordinates": (is_array, "array coordinates, not places"),
    "the same, rows first": (swapped_as_coordinates, "array coordinates, not places"),
    "the same, from the other corner": (moved_as_coordinates, "array coordinates, not places"),
    "rows and columns swapped": (swap, "are swapped"),
    "one spot in the wrong row": (shift_one, "1 spots are not where"),
    "one spot on the site of another": (onto_another, "not where"),
    "pixels as array coordinates": (pixels, "as if these were pixels"),
    "array coordinates as text": (text, ""),
    "one missing": (one_missing, "not all integers"),
    "no array coordinates": (no_array, ""),
}


@pytest.mark.parametrize("fault", FAULTS)
@some
@given(seeds)
def test_visium_stays_hex_with_its_neighbours_whatever_is_wrong(fault, seed):
    adata = section("hex", seed)
    sites = adata.obs[["array_row", "array_col"]].to_numpy(copy=True)
    FAULTS[fault][0](adata)
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "hex"
    assert_one_spot_per_site(adata.obsm["grid"])
    assert neighbours(adata.obsm["grid"], "hex") == neighbours(sites, "hex")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_put_right_is_told(fault, caplog):
    adata = section("hex")
    FAULTS[fault][0](adata)
    to_grid(adata)
    assert FAULTS[fault][1] in caplog.text
    assert bool(caplog.text) == bool(FAULTS[fault][1])


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "array coordinates as coordinates" not in fault])
def test_one_section_does_not_change_what_another_gets(fault):
    good, bad = section("hex", 1, name="good"), section("hex", 2, name="bad")
    FAULTS[fault][0](bad)
    adata = ad.concat([good, bad], join="outer")
    to_grid(adata, library_key="section")
    to_grid(good)
    assert adata.uns["grid"]["layout"] == "hex"
    np.testing.assert_array_equal(adata[good.obs_names].obsm["grid"], good.obsm["grid"])


def test_coordinates_of_an_array_alone_are_read_as_such(caplog):
    adata = section("hex")
    sites = adata.obs[["array_row", "array_col"]].to_numpy()
    is_array(adata)
    no_array(adata)
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "hex"
    assert neighbours(adata.obsm["grid"], "hex") == neighbours(sites, "hex")
    assert np.isnan(adata.uns["grid"]["spacing"]["section"])
    assert "layout='square'" in caplog.text
    to_grid(adata, layout="square")
    assert adata.uns["grid"]["spacing"]["section"] == pytest.approx(np.sqrt(2))


def test_a_wrong_parity_without_coordinates_is_refused():
    adata = section("hex")
    shift_one(adata)
    del adata.obsm["spatial"]
    with pytest.raises(ValueError, match="section 'section': row \\+ col of 1 spots has another parity"):
        to_grid(adata)


@some
@given(seeds, st.sampled_from([0.1, 0.35, 0.5]))
def test_one_spot_off_its_place_does_not_overturn_the_lattice(seed, shift):
    rng = np.random.default_rng(seed)
    adata = section("hex", seed)
    no_array(adata)
    adata.obsm["spatial"][rng.integers(adata.n_obs)] += 100 * shift * rng.choice([-1, 1], 2)
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "hex"
    assert_one_spot_per_site(adata.obsm["grid"])


@pytest.mark.parametrize("with_array", [True, False])
@pytest.mark.parametrize("kinds", [("hex", "square"), ("square", "square", "hex"), ("hex", "cells")])
def test_sections_of_different_layouts_are_refused_by_name(kinds, with_array):
    parts = []
    for i, kind in enumerate(kinds):
        part = section("hex" if kind == "cells" else kind, i, name=f"s{i}-{kind}")
        if kind == "cells":
            part.obsm["spatial"] = np.random.default_rng(i).random((part.n_obs, 2)) * 3000
        if kind == "cells" or not with_array:
            no_array(part)
        parts.append(part)
    adata = ad.concat(parts, join="outer")
    with pytest.raises(ValueError, match="different layouts") as caught:
        to_grid(adata, library_key="section")
    for name in adata.obs["section"].unique():
        assert name in str(caught.value)
    assert "grid" not in adata.obsm


def test_lattices_on_which_hardly_a_spot_has_a_neighbour_warn(caplog):
    sites = np.random.default_rng(0).permutation(3000 * 3000)[:200]
    adata = make(np.zeros((200, 2)), array_row=sites // 3000, array_col=sites % 3000)
    del adata.obsm["spatial"]
    to_grid(adata)
    assert "hardly a spot of the sections ['section'] has a neighbour" in caplog.text


# Sections that the object knows


def cells(seed: int, n: int = 400, side: float = 1000.0) -> np.ndarray:
    """Cells that keep a distance from one another."""
    rng = np.random.default_rng(seed)
    step = side / np.sqrt(n)
    sites = np.argwhere(np.ones((int(np.sqrt(n)),) * 2, dtype=bool))
    return (sites + 0.5 + rng.uniform(-0.3, 0.3, sites.shape)) * step


def fields_of_view(n_fields: int = 6, *, column: str = "fov", whole_pixels: bool = False) -> ad.AnnData:
    """Fields of view with coordinates of their own, and those on the slide beside them."""
    local = [cells(i) for i in range(n_fields)]
    slide = [xy + np.array([1000 * i, 0]) for i, xy in enumerate(local)]
    codes = np.repeat(np.arange(n_fields), [len(xy) for xy in local])
    xy = np.concatenate(local)
    kinds = np.random.default_rng(9).choice(["T cell", "B cell", "tumour"], len(xy))
    adata = make(np.floor(xy).astype(int) if whole_pixels else xy, **{column: codes.astype(str), "cell_type": kinds})
    adata.obs[column] = adata.obs[column].astype("category")
    adata.obsm["on_slide"] = np.concatenate(slide)
    return adata


@pytest.mark.parametrize("whole_pixels", [False, True])
@pytest.mark.parametrize("column", ["fov", "region", "sample", "anything"])
def test_the_column_of_overlapping_coordinates_is_named(column, whole_pixels):
    adata = fields_of_view(column=column, whole_pixels=whole_pixels)
    with pytest.raises(
        ValueError, match=f"obs\\['{column}'\\] lie on top.*library_key='{column}'.*spatial_key='on_slide'"
    ):
        to_grid(adata)
    to_grid(adata, library_key=column)
    to_grid(adata, spatial_key="on_slide", key_added="slide")


def test_the_region_key_of_a_spatialdata_table_is_named():
    adata = fields_of_view(column="element")
    adata.uns["spatialdata_attrs"] = {"region": ["0", "1"], "region_key": "element", "instance_key": "cell_id"}
    adata.obs["cell_id"] = np.tile(np.arange(400), 6)
    with pytest.raises(ValueError, match="library_key='element'"):
        to_grid(adata)


def test_overlap_inside_sections_is_found():
    adata = ad.concat([fields_of_view(), fields_of_view()], label="slide", index_unique="-")
    with pytest.raises(ValueError, match="make a column of 'slide' and 'fov' together"):
        to_grid(adata, library_key="slide")


@some
@given(seeds, st.sampled_from(["cell_type", "cluster", "quality", "sex"]), st.integers(2, 12))
def test_cell_types_of_one_tissue_are_no_sections(seed, column, n_types):
    rng = np.random.default_rng(seed)
    xy = cells(seed, 900)
    adata = make(
        xy, **{column: rng.integers(n_types, size=len(xy)).astype(str), "n_genes": rng.integers(200, size=len(xy))}
    )
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "irregular"


def test_sections_beside_each_other_that_are_taken_as_one_warn(caplog):
    xy = np.concatenate([cells(0), cells(1) + np.array([2000, 0])])
    adata = make(xy, sample_id=np.repeat(["x", "y"], 400), cell_type=np.tile(["a", "b"], 400))
    to_grid(adata)
    assert "obs['sample_id'] has 2 values ['x', 'y']; pass library_key='sample_id'" in caplog.text
    caplog.clear()
    to_grid(adata, library_key="sample_id")
    assert not caplog.text


# Cells that share a place


@some
@given(seeds, st.integers(1, 40), st.integers(1, 12))
def test_cells_that_share_places_get_sites_of_their_own_in_any_order(seed, n_places, most):
    rng = np.random.default_rng(seed)
    places = rng.integers(0, 50, (n_places, 2)).astype(float)
    xy = np.repeat(places, rng.integers(1, most + 1, n_places), axis=0)
    adata = make(xy)
    shuffled = adata[rng.permutation(adata.n_obs)].copy()
    for each in (adata, shuffled):
        to_grid(each, layout="irregular")
    assert_one_spot_per_site(adata.obsm["grid"])
    np.testing.assert_array_equal(shuffled[adata.obs_names].obsm["grid"], adata.obsm["grid"])
    assert np.isfinite(adata.uns["grid"]["sections"]["mean_displacement"]).all()


def test_two_cells_at_one_place_do_not_stop_a_section(caplog):
    xy = cells(0, 900)
    xy[7] = xy[3]
    adata = make(xy)
    caplog.set_level(logging.INFO, logger="strecur")
    to_grid(adata)
    assert np.abs(np.diff(adata.obsm["grid"][[3, 7]], axis=0)).max() <= 2
    assert "2 of 900 spots share their coordinates with another one; they get neighbouring sites" in caplog.text


@pytest.mark.parametrize("with_array", [True, False])
def test_spots_that_share_a_place_of_a_regular_lattice_name_the_column_that_separates_them(with_array):
    adata = section("hex")
    adata = ad.concat([adata, adata[:30]], label="visit", index_unique="-")
    adata.obsm["spatial"] = np.array(adata.obsm["spatial"])
    if not with_array:
        no_array(adata)
    with pytest.raises(ValueError, match="60 spots share their .*coordinates .*library_key='visit'") as caught:
        to_grid(adata)
    assert "keep one" not in str(caught.value)
    to_grid(adata, library_key="visit")


def test_spots_outside_the_tissue_are_told(caplog):
    adata = section("hex")
    adata.obs["in_tissue"] = pd.Categorical((np.arange(adata.n_obs) > 10).astype(int))
    to_grid(adata)
    assert f"11 of {adata.n_obs} spots lie outside the tissue" in caplog.text


def test_rows_with_columns_of_their_own_are_shifted(caplog):
    """Columns are counted in each row instead of doubled; the second row is shifted by half a column."""
    adata = section("hex")
    right = adata.copy()
    to_grid(right)
    for parity in (0, 1):
        faulty = adata.copy()
        faulty.obs["array_col"] = (adata.obs["array_col"] + parity) // 2
        caplog.clear()
        to_grid(faulty)
        assert faulty.uns["grid"]["layout"] == "hex"
        assert "every second row is shifted by half a column" in caplog.text
        assert neighbours(faulty.obsm["grid"], "hex") == neighbours(right.obsm["grid"], "hex")
    square = section("square")
    to_grid(square)
    assert square.uns["grid"]["layout"] == "square"


def test_a_column_that_names_the_spots_is_no_library_key():
    adata = section("hex")
    adata.obs["barcode"] = adata.obs_names
    with pytest.raises(ValueError, match=r"obs\['barcode'\] has \d+ values for \d+ spots, as if it named the spots"):
        to_grid(adata, library_key="barcode")


@pytest.mark.parametrize("join", ["-", "_"])
def test_joined_sections_that_only_names_of_spots_tell_apart(join):
    parts = [make(cells(seed)) for seed in (0, 1)]
    for part in parts:
        del part.obs
    joined = ad.concat(parts, index_unique=join)
    with pytest.raises(
        ValueError, match=f"names end in \\['{join}0', '{join}1'\\] lie on top of each other.*library_key"
    ):
        to_grid(joined)
    joined.obs["section"] = joined.obs_names.str.extract("([-_][^-_]+)$")[0].to_numpy()
    to_grid(joined, library_key="section")
    tiles = make(np.concatenate([cells(0), cells(1) + 1000]))  # one section
    tiles.obs_names = [f"c{i}{join}{i % 2}" for i in range(tiles.n_obs)]
    to_grid(tiles)


def test_images_of_several_sections_are_reported(caplog):
    adata = make(cells(0))
    adata.uns["spatial"] = {"a": {}, "b": {}}
    to_grid(adata)
    assert "uns['spatial'] has several, ['a', 'b']; pass library_key" in caplog.text


def test_one_place_for_all_spots_is_refused():
    with pytest.raises(ValueError, match=r"all 20 spots of section 'section' have the same coordinates in adata.obsm"):
        to_grid(make(np.zeros((20, 2))))


@pytest.mark.parametrize(
    ("layout", "factor", "warns"), [("square", 2, True), ("square", 1.2, False), ("hex", 2, False)]
)
def test_bins_of_several_sizes_in_one_object_are_reported(caplog, layout, factor, warns):
    adata = ad.concat([section(layout, name="a"), section(layout, seed=1, name="b", scale=100.0 * factor)])
    to_grid(adata, library_key="section")
    assert ("bins of several sizes" in caplog.text) == warns


@pytest.mark.parametrize(("factor", "warns"), [(0.2125, True), (0.6, False)])
def test_cells_in_pixels_beside_cells_in_micrometres_are_reported(caplog, factor, warns):
    adata = make(np.concatenate([cells(0), cells(1) * factor]))
    adata.obs["section"] = np.repeat(["a", "b"], [len(cells(0)), len(cells(1))])
    to_grid(adata, library_key="section")
    assert ("coordinates in several units" in caplog.text) == warns


def test_half_precision_is_reported(caplog):
    adata = make(cells(0) + 9000)
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(np.float16)
    to_grid(adata)
    assert "half precision (float16), which rounds coordinates to 8" in caplog.text


@pytest.mark.parametrize(
    "names", [("pxl_row_in_fullres", "pxl_col_in_fullres"), ("y", "x"), ("CenterY_px", "CenterX_px")]
)
def test_named_columns_of_coordinates_in_another_order(names):
    adata = make(turn(lattice("hex", 12, 10)[1], 20) * 50)
    named = adata.copy()
    named.obsm["spatial"] = pd.DataFrame(adata.obsm["spatial"][:, ::-1], columns=list(names), index=adata.obs_names)
    for each in (adata, named):
        to_grid(each)
    np.testing.assert_array_equal(adata.obsm["grid"], named.obsm["grid"])
