from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from strecur._anndata import read_grid, read_sections
from strecur.pp import to_grid
from strecur.pp.grid.cells import local_pitch, place_cells

STEPS = {"hex": [(0, 2), (1, 1), (1, -1)], "square": [(0, 1), (1, 0)]}


def make(xy: np.ndarray, **obs) -> ad.AnnData:
    frame = pd.DataFrame(obs, index=[f"spot{i}" for i in range(len(xy))])
    return ad.AnnData(sparse.csr_matrix((len(xy), 2), dtype=np.float32), obs=frame, obsm={"spatial": np.asarray(xy)})


def lattice(layout: str, n_rows: int = 30, n_cols: int = 36) -> tuple[np.ndarray, np.ndarray]:
    """Return true sites and their positions at pitch 1."""
    row, col = np.divmod(np.arange(n_rows * n_cols), n_cols)
    if layout == "square":
        return np.column_stack([row, col]), np.column_stack([col, row]).astype(float)
    col = 2 * col + row % 2
    return np.column_stack([row, col]), np.column_stack([col / 2, row * np.sqrt(3) / 2])


def turn(xy: np.ndarray, degrees: float) -> np.ndarray:
    a = np.deg2rad(degrees)
    return xy @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def neighbours(sites: np.ndarray, layout: str) -> set[frozenset[int]]:
    """Return the pairs of spots on neighbouring sites."""
    spot = {tuple(site): i for i, site in enumerate(np.asarray(sites).tolist())}
    pairs = ((i, spot.get((row + r, col + c))) for (row, col), i in spot.items() for r, c in STEPS[layout])
    return {frozenset(pair) for pair in pairs if pair[1] is not None}


def assert_one_spot_per_site(sites: np.ndarray) -> None:
    assert len(np.unique(sites, axis=0)) == len(sites)


# Array coordinates


@pytest.mark.parametrize("parity", [0, 1])
def test_staggered_array_is_hex_and_kept_as_it_is(parity):
    sites, xy = lattice("hex")
    adata = make(xy * 100, array_row=sites[:, 0] + 7, array_col=sites[:, 1] + 7 + parity)
    to_grid(adata)
    record = adata.uns["grid"]
    assert record["layout"] == "hex"
    assert record["source"] == "array"
    assert adata.obsm["grid"].dtype == np.int32
    np.testing.assert_array_equal(adata.obsm["grid"], adata.obs[["array_row", "array_col"]])
    assert record["spacing"]["section"] == pytest.approx(100)
    assert record["sections"].loc["section", "max_displacement"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("flip", "parity_kept"), [((1, 1), False), ((-1, -1), True)])
def test_flips_of_the_visium_array_stay_hex(flip, parity_kept):
    """Item 22: on 78 x 128 sites a half turn keeps the parity of row + col, one flip changes it."""
    sites, xy = lattice("hex", 78, 64)
    size = np.array([77, 127])
    flipped = size - sites if parity_kept else np.column_stack([size[0] - sites[:, 0], sites[:, 1]])
    adata = make(xy * flip, array_row=flipped[:, 0], array_col=flipped[:, 1])
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "hex"
    assert set(adata.obsm["grid"].sum(axis=1) % 2) == ({0} if parity_kept else {1})
    assert adata.obsm["grid"].min() >= 0
    assert (adata.obsm["grid"].max(axis=0) <= size).all()
    assert neighbours(adata.obsm["grid"], "hex") == neighbours(sites, "hex")


def test_each_section_may_have_its_own_parity():
    sites, xy = lattice("hex")
    rows = np.concatenate([sites[:, 0], sites[:, 0]])
    cols = np.concatenate([sites[:, 1], sites[:, 1] + 1])
    adata = make(np.concatenate([xy, xy]), array_row=rows, array_col=cols, slide=["a"] * len(xy) + ["b"] * len(xy))
    to_grid(adata, library_key="slide")
    assert adata.uns["grid"]["layout"] == "hex"
    assert list(adata.uns["grid"]["sections"].index) == ["a", "b"]


def test_both_parities_are_square():
    sites, xy = lattice("square")
    adata = make(xy * 3, array_row=sites[:, 0].astype(float), array_col=sites[:, 1].astype(str))
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "square"
    np.testing.assert_array_equal(adata.obsm["grid"], sites)
    assert adata.uns["grid"]["spacing"]["section"] == pytest.approx(3)


def test_turned_square_array_is_not_mistaken_for_hex():
    sites, _ = lattice("hex")
    adata = make(sites[:, ::-1] * [24.0, 21.7], array_row=sites[:, 0], array_col=sites[:, 1])
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "square"
    np.testing.assert_array_equal(adata.obsm["grid"], sites)
    assert adata.uns["grid"]["spacing"]["section"] == pytest.approx(np.hypot(24, 21.7))
    to_grid(adata, layout="hex")
    assert adata.uns["grid"]["layout"] == "hex"


def test_parity_of_few_spots_proves_nothing():
    adata = make(np.zeros((4, 2)), array_row=[0, 1, 2, 3], array_col=[0, 1, 2, 3])
    del adata.obsm["spatial"]
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "square"
    assert np.isnan(adata.uns["grid"]["spacing"]["section"])


@pytest.mark.parametrize("layout", ["hex", "square"])
def test_a_layout_that_contradicts_the_array_raises(layout):
    sites, xy = lattice("square" if layout == "hex" else "hex")
    adata = make(xy, array_row=sites[:, 0], array_col=sites[:, 1])
    with pytest.raises(ValueError, match=f"layout='{layout}' does not fit"):
        to_grid(adata, layout=layout)
    assert "grid" not in adata.obsm


def test_shuffled_array_coordinates_warn(caplog):
    sites, xy = lattice("square")
    mixed = np.random.default_rng(0).permutation(sites)
    adata = make(xy, array_row=mixed[:, 0], array_col=mixed[:, 1])
    to_grid(adata)
    assert "disagree" in caplog.text


def test_array_with_missing_values_gives_way_to_coordinates(caplog):
    sites, xy = lattice("square")
    adata = make(xy, array_row=np.where(sites[:, 0] == 0, np.nan, sites[:, 0]), array_col=sites[:, 1])
    to_grid(adata)
    assert adata.uns["grid"]["source"] == "coordinates"
    assert "ignored" in caplog.text


def test_duplicated_array_sites_name_the_section_column():
    sites, xy = lattice("hex")
    twice = np.concatenate([sites, sites])
    obs = {"array_row": twice[:, 0], "array_col": twice[:, 1], "slide": np.repeat(["a", "b"], len(sites))}
    obs["sample_quality"] = np.tile(["good", "bad"], len(sites))
    adata = make(np.concatenate([xy, xy]), **obs)
    with pytest.raises(ValueError, match="library_key='slide'"):
        to_grid(adata)
    to_grid(adata, library_key="slide")
    first, second = np.split(adata.obsm["grid"], 2)
    np.testing.assert_array_equal(first, second)


# Regular lattices from coordinates


@pytest.mark.parametrize("layout", ["hex", "square"])
@pytest.mark.parametrize("degrees", [0, 13, 30, 45, 90, 137, 200])
@pytest.mark.parametrize("scale", [1e-3, 137.0])
def test_lattice_is_found_at_any_rotation_and_scale(layout, degrees, scale):
    sites, xy = lattice(layout)
    adata = make(turn(xy, degrees) * scale + 1e3 * scale)
    to_grid(adata)
    record = adata.uns["grid"]
    assert (record["layout"], record["source"]) == (layout, "coordinates")
    assert record["spacing"]["section"] == pytest.approx(scale)
    assert record["sections"]["max_displacement"].item() < 1e-6
    assert neighbours(adata.obsm["grid"], layout) == neighbours(sites, layout)
    assert adata.obsm["grid"].min() == 0
    if layout == "hex":
        assert (adata.obsm["grid"].sum(axis=1) % 2 == 0).all()


@pytest.mark.parametrize("layout", ["hex", "square"])
@pytest.mark.parametrize("holes", [0.0, 0.3, 0.5])
def test_jitter_and_holes(layout, holes):
    rng = np.random.default_rng(1)
    sites, xy = lattice(layout, 50, 60)
    xy = turn(xy + rng.normal(0, 0.08, xy.shape), 21) * 50
    kept = rng.random(len(xy)) >= holes
    adata = make(xy[kept])
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == layout
    assert neighbours(adata.obsm["grid"], layout) == neighbours(sites[kept], layout)
    assert_one_spot_per_site(adata.obsm["grid"])


@pytest.mark.parametrize("layout", ["hex", "square"])
def test_smooth_warps_beyond_one_pitch_do_not_drift(layout):
    rng = np.random.default_rng(2)
    sites, xy = lattice(layout, 60, 60)
    warped = xy + 2 * np.sin(xy[:, ::-1] / 14) + rng.normal(0, 0.04, xy.shape)
    kept = rng.random(len(xy)) > 0.2
    adata = make(turn(warped, 70)[kept])
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == layout
    assert neighbours(adata.obsm["grid"], layout) == neighbours(sites[kept], layout)
    assert adata.uns["grid"]["sections"]["max_displacement"].item() > 0.7  # rounding one affine map would fail


def test_separate_pieces_of_tissue_share_one_lattice():
    sites, xy = lattice("hex", 40, 40)
    piece = np.hypot(*(xy - [8, 8]).T) < 6
    piece |= np.hypot(*(xy - [30, 25]).T) < 5
    adata = make(turn(xy[piece], 10))
    to_grid(adata)
    assert neighbours(adata.obsm["grid"], "hex") == neighbours(sites[piece], "hex")
    centred = sites[piece] - sites[piece].mean(axis=0)
    found = adata.obsm["grid"] - adata.obsm["grid"].mean(axis=0)
    np.testing.assert_allclose(found, centred, atol=1e-6)


def test_high_definition_bins_with_holes():
    rng = np.random.default_rng(3)
    sites, xy = lattice("square", 100, 120)
    kept = rng.random(len(xy)) > 0.1
    adata = make(xy[kept] * 2 + 5)
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "square"
    np.testing.assert_array_equal(adata.obsm["grid"], sites[kept] - sites[kept].min(axis=0))


def test_sections_of_different_rotation_and_scale():
    sites, xy = lattice("hex", 12, 12)
    parts = [turn(xy, 5), turn(xy, 37) * 90, turn(xy, 80) * 3 - 500]
    adata = make(np.concatenate(parts), slide=np.repeat(["c", "a", "b"], len(xy)))
    shuffled = adata[np.random.default_rng(0).permutation(adata.n_obs)].copy()
    to_grid(adata, library_key="slide")
    to_grid(shuffled, library_key="slide")
    assert adata.uns["grid"]["layout"] == "hex"
    assert adata.uns["grid"]["spacing"] == pytest.approx({"a": 90, "b": 3, "c": 1})
    for part in np.split(adata.obsm["grid"], 3):
        assert neighbours(part, "hex") == neighbours(sites, "hex")
    np.testing.assert_array_equal(shuffled[adata.obs_names].obsm["grid"], adata.obsm["grid"])


@pytest.mark.parametrize("layout", ["hex", "square"])
def test_spots_that_form_no_lattice_raise_when_one_is_demanded(layout):
    adata = make(np.random.default_rng(0).random((300, 2)))
    with pytest.raises(ValueError, match="do not form a"):
        to_grid(adata, layout=layout)
    _, xy = lattice("square" if layout == "hex" else "hex")
    with pytest.raises(ValueError, match="do not form a"):
        to_grid(make(xy), layout=layout)


# Irregular cells


@pytest.mark.parametrize("kind", ["uniform", "clustered", "line"])
def test_cells_get_their_own_site_close_by(kind):
    rng = np.random.default_rng(4)
    xy = rng.random((2000, 2)) * 500
    if kind == "clustered":
        xy[:400] = 250 + 20 * rng.standard_normal((400, 2))
    elif kind == "line":
        xy[:, 1] = 3.0
    adata = make(xy)
    to_grid(adata)
    record = adata.uns["grid"]
    assert record["layout"] == "irregular"
    assert_one_spot_per_site(adata.obsm["grid"])
    if kind == "uniform":
        assert record["sections"]["mean_displacement"].item() < 0.4
        assert record["sections"]["max_displacement"].item() < 2
    # The reported displacement is that of the sites written: rows follow y, columns x, up to one shift.
    away = (xy - xy.min(axis=0))[:, ::-1] * 1.5 / record["spacing"]["section"] - adata.obsm["grid"]
    moved = np.linalg.norm(away - np.rint(np.median(away, axis=0)), axis=1) / 1.5
    assert moved.max() == pytest.approx(record["sections"]["max_displacement"].item(), rel=1e-3)


def test_more_sites_per_pitch_mean_less_displacement():
    xy = np.random.default_rng(5).random((3000, 2))
    adata = make(xy)
    means = []
    for cells_per_pitch in (1.0, 1.5, 3.0):
        to_grid(adata, cells_per_pitch=cells_per_pitch)
        means.append(adata.uns["grid"]["sections"]["mean_displacement"].item())
    assert means[0] > means[1] > means[2]


def test_displaced_cells_take_the_nearest_free_site():
    """Greedy by distance, checked against a search over all sites."""
    xy = np.random.default_rng(6).random((120, 2))
    xy = xy[np.lexsort((xy[:, 0], xy[:, 1]))]
    placement = place_cells(xy, cells_per_pitch=1.0)
    position = (xy - xy.min(axis=0))[:, ::-1] / local_pitch(xy)
    home = np.floor(position + 0.5)
    order = np.argsort(np.linalg.norm(position - home, axis=1))
    sites = np.stack(np.meshgrid(np.arange(-9, 40), np.arange(-9, 40), indexing="ij"), axis=-1).reshape(-1, 2)
    free = np.ones(len(sites), dtype=bool)
    expected = np.empty_like(home)
    waiting = []
    for i in order:
        site = np.flatnonzero((sites == home[i]).all(axis=1)).item()
        if free[site]:
            free[site] = False
            expected[i] = home[i]
        else:
            waiting.append(i)
    for i in waiting:
        distance = np.where(free, np.linalg.norm(sites - position[i], axis=1), np.inf)
        free[distance.argmin()] = False
        expected[i] = sites[distance.argmin()]
    np.testing.assert_array_equal(placement.sites, expected - expected.min(axis=0))
    assert len(waiting) > 10


def test_cells_packed_far_denser_than_the_rest_warn(caplog):
    rng = np.random.default_rng(7)
    adata = make(np.concatenate([rng.random((1000, 2)), 0.5 + 0.005 * rng.random((300, 2))]))
    to_grid(adata)
    assert "moved by more than 2 sites" in caplog.text
    assert_one_spot_per_site(adata.obsm["grid"])


def test_irregular_layout_ignores_the_array():
    sites, xy = lattice("hex")
    adata = make(xy, array_row=sites[:, 0], array_col=sites[:, 1])
    to_grid(adata, layout="irregular")
    assert adata.uns["grid"]["source"] == "coordinates"
    assert adata.uns["grid"]["sections"]["max_displacement"].item() < 0.75
    assert_one_spot_per_site(adata.obsm["grid"])


# Invariances


@pytest.mark.parametrize("layout", ["hex", "square", "irregular"])
def test_order_and_origin_do_not_matter(layout):
    rng = np.random.default_rng(8)
    xy = rng.random((800, 2)) * 90 if layout == "irregular" else turn(lattice(layout)[1], 30) * 13
    xy = xy + (0 if layout == "irregular" else rng.normal(0, 0.3, xy.shape))
    adata, moved = make(xy), make(xy + np.array([12345.0, -777.0]))
    shuffled = adata[rng.permutation(adata.n_obs)].copy()
    for each in (adata, moved, shuffled):
        to_grid(each)
    assert adata.uns["grid"]["layout"] == layout
    np.testing.assert_array_equal(shuffled[adata.obs_names].obsm["grid"], adata.obsm["grid"])
    np.testing.assert_array_equal(moved.obsm["grid"], adata.obsm["grid"])


def test_ties_do_not_depend_on_order_or_origin():
    """Whole and half coordinates put many cells exactly between two sites."""
    rng = np.random.default_rng(9)
    xy = rng.permutation(np.stack(np.meshgrid(np.arange(60), np.arange(60)), axis=-1).reshape(-1, 2))[:900] * 0.5
    first = place_cells(xy[np.lexsort(xy.T)], cells_per_pitch=1.5)
    moved = xy + np.array([0.1, 1e4 / 3])
    second = place_cells(moved[np.lexsort(xy.T)], cells_per_pitch=1.5)
    np.testing.assert_array_equal(first.sites, second.sites)


# Few spots, wrong input


@pytest.mark.parametrize("layout", ["auto", "irregular"])
@pytest.mark.parametrize(
    "xy",
    [[[3.0, 4.0]], [[0.0, 0.0], [1e6, 5.0]], [[0.0, 0.0], [1.0, 0.0], [7.5, 0.0]], [[0, 0], [0, 1], [5, 5], [9, 1]]],
)
def test_a_few_spots_work(xy, layout):
    adata = make(np.array(xy, dtype=float))
    to_grid(adata, layout=layout)
    assert adata.uns["grid"]["layout"] == "irregular"
    assert_one_spot_per_site(adata.obsm["grid"])


def test_one_row_of_spots():
    adata = make(turn(np.column_stack([np.delete(np.arange(20.0), 7), np.zeros(19)]), 25))
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "square"
    assert len(np.unique(adata.obsm["grid"][:, 0])) == 1 or len(np.unique(adata.obsm["grid"][:, 1])) == 1
    assert np.ptp(adata.obsm["grid"], axis=0).max() == 19


@pytest.mark.parametrize("layout", ["hex", "square"])
def test_sections_of_a_few_spots_join_the_lattice_of_the_others(layout):
    _, xy = lattice(layout)
    few = np.array([[0.0, 0.0], [0.3, 0.1], [9.0, 2.0], [4.0, 8.3], [-3.0, 2.2]])
    adata = make(np.concatenate([xy, few, [[5.0, 5.0]]]), slide=["big"] * len(xy) + ["few"] * 5 + ["one"])
    to_grid(adata, library_key="slide")
    assert adata.uns["grid"]["layout"] == layout
    sites = adata.obsm["grid"][(adata.obs["slide"] == "few").to_numpy()]
    assert_one_spot_per_site(sites)
    assert layout == "square" or (sites.sum(axis=1) % 2 == 0).all()
    assert np.isnan(adata.uns["grid"]["spacing"]["one"])


def test_not_finite_coordinates_raise():
    _, xy = lattice("square")
    xy[3] = np.nan
    xy[8, 0] = np.inf
    with pytest.raises(ValueError, match="2 spots"):
        to_grid(make(xy))


def test_missing_coordinates_raise_with_what_exists():
    adata = make(np.random.default_rng(0).random((20, 2)))
    with pytest.raises(KeyError, match="there are \\['spatial'\\]"):
        to_grid(adata, spatial_key="xy")
    adata.obsm["deep"] = np.zeros((20, 3))
    with pytest.raises(ValueError, match="two columns"):
        to_grid(adata, spatial_key="deep")


def test_duplicated_coordinates_raise():
    xy = np.random.default_rng(0).random((50, 2))
    xy[1] = xy[0]
    twice = make(np.concatenate([xy[1:], xy[1:]]), section_id=np.repeat([1, 2], 49), batch=np.tile([1], 98))
    with pytest.raises(ValueError, match="library_key='section_id'"):
        to_grid(twice)
    twice.obs["section_id"] = 1
    with pytest.raises(ValueError, match=r"share their coordinates .* of their section \(most in '1'\)"):
        to_grid(twice, library_key="section_id", layout="hex")


def test_sections_on_top_of_each_other_raise_even_without_equal_coordinates():
    _, xy = lattice("hex")
    adata = make(np.concatenate([xy, xy + np.array([0.3, 0.2])]), sample=np.repeat(["a", "b"], len(xy)))
    with pytest.raises(ValueError, match="on top of each other .* pass library_key='sample'"):
        to_grid(adata)
    beside = make(np.concatenate([xy, xy + np.array([100, 0])]), sample=np.repeat(["a", "b"], len(xy)))
    to_grid(beside)
    assert beside.uns["grid"]["layout"] == "hex"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"library_key": "nope"}, KeyError, "there are"),
        ({"layout": "triangle"}, ValueError, "not one of"),
        ({"cells_per_pitch": 0.5}, ValueError, "at least 1"),
        ({"cells_per_pitch": float("nan")}, ValueError, "finite"),
        ({"key_added": "a b"}, ValueError, "legal key"),
        ({"library_key": "slash"}, ValueError, "rename"),
    ],
)
def test_wrong_arguments_raise_before_anything_is_written(arguments, error, match):
    adata = make(np.random.default_rng(0).random((30, 2)), slash=["a/b"] * 30)
    with pytest.raises(error, match=match):
        to_grid(adata, **arguments)
    assert list(adata.obsm) == ["spatial"]
    assert not adata.uns


def test_too_many_sites_for_int32_raise():
    xy = np.random.default_rng(0).random((100, 2))
    xy[0] = 1e12
    with pytest.raises(ValueError, match="int32"):
        to_grid(make(xy))


# Writing


def test_copy_leaves_the_object_alone_and_nothing_else_changes():
    sites, xy = lattice("hex")
    adata = make(xy, array_row=sites[:, 0], array_col=sites[:, 1])
    result = to_grid(adata, copy=True)
    assert "grid" not in adata.obsm
    assert "grid" not in adata.uns
    assert list(result.obs) == list(adata.obs)
    assert to_grid(adata, key_added="sites") is None
    assert list(adata.obsm) == ["spatial", "sites"]
    np.testing.assert_array_equal(adata.obsm["sites"], result.obsm["grid"])


@pytest.mark.parametrize("layout", ["hex", "irregular"])
def test_results_survive_files(tmp_path, layout):
    sites, xy = lattice("hex")
    adata = make(xy, array_row=sites[:, 0], array_col=sites[:, 1], slide=["a.1"] * len(xy))
    to_grid(adata, library_key="slide", layout=layout)
    adata.write_h5ad(tmp_path / "x.h5ad")
    adata.write_zarr(tmp_path / "x.zarr")
    for back in (ad.read_h5ad(tmp_path / "x.h5ad"), ad.read_zarr(tmp_path / "x.zarr")):
        grid = read_grid(back, read_sections(back, "slide"))
        np.testing.assert_array_equal(np.column_stack([grid.row, grid.col]), adata.obsm["grid"])
        assert grid.layout == layout
        assert back.uns["grid"]["spacing"]["a.1"] == adata.uns["grid"]["spacing"]["a.1"]
        pd.testing.assert_frame_equal(back.uns["grid"]["sections"], adata.uns["grid"]["sections"])
        assert back.uns["grid"]["params"]["library_key"] == "slide"


def test_a_line_of_log_names_layout_and_spacing(caplog):
    caplog.set_level(logging.INFO, logger="strecur")
    to_grid(make(lattice("hex")[1] * 55))
    assert "hex lattice from spot coordinates: 1 section(s), 1080 spots, spacing 55 to 55" in caplog.text


# Real sections


def read(path, **obs) -> ad.AnnData:
    adata = ad.read_h5ad(path)
    return make(np.asarray(adata.obsm["spatial"]), **{k: adata.obs[k].to_numpy() for k in adata.obs if "array" in k})


def assert_coordinates_find_the_array(path, layout: str) -> None:
    adata = read(path)
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == layout
    assert adata.uns["grid"]["source"] == "array"
    del adata.obs["array_row"]
    to_grid(adata, key_added="found")
    assert adata.uns["found"]["layout"] == layout
    assert adata.uns["found"]["spacing"]["section"] == pytest.approx(adata.uns["grid"]["spacing"]["section"])
    assert neighbours(adata.obsm["found"], layout) == neighbours(adata.obsm["grid"], layout)


@pytest.mark.parametrize("section", ["151673", "151674", "151675"])
def test_visium_sections(data_dir, section):
    assert_coordinates_find_the_array(data_dir / "dlpfc" / f"{section}.h5ad", "hex")


@pytest.mark.parametrize("section", ["her2st/A3", "her2st/B3", "her2st/C4", "her2st/E2", "her2st/F2", "mob/Rep8"])
def test_legacy_sections(data_dir, section):
    assert_coordinates_find_the_array(data_dir / f"{section}.h5ad", "square")


@pytest.mark.parametrize("section", ["MOB1", "MOB2", "MOB3"])
def test_arrays_of_2000_spots_are_turned_squares(data_dir, section):
    adata = read(data_dir / "mob_st2k" / f"{section}.h5ad")
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "square"
    assert adata.uns["grid"]["spacing"]["section"] == pytest.approx(32.3, abs=0.1)
    row, col = adata.obsm["grid"].T
    del adata.obs["array_row"]
    to_grid(adata, key_added="found")
    assert adata.uns["found"]["layout"] == "square"
    diagonals = np.column_stack([(row + col) // 2, (row - col) // 2])
    assert neighbours(adata.obsm["found"], "square") == neighbours(diagonals, "square")


def test_single_cell_sections(data_dir):
    stacked = []
    for section in ("BZ5", "BZ9"):
        adata = read(data_dir / "starmap_mpfc" / f"{section}.h5ad")
        adata.obs["section"] = section
        stacked.append(adata)
    adata = ad.concat(stacked, index_unique="-")
    to_grid(adata, library_key="section")
    assert adata.uns["grid"]["layout"] == "irregular"
    assert (adata.uns["grid"]["sections"]["mean_displacement"] < 0.35).all()
    read_grid(adata, read_sections(adata, "section"))


def test_cells_that_share_coordinates_get_neighbouring_sites(data_dir, caplog):
    adata = read(data_dir / "single" / "osmfish_sscortex.h5ad")
    caplog.set_level(logging.INFO, logger="strecur")
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "irregular"
    assert_one_spot_per_site(adata.obsm["grid"])
    xy = pd.DataFrame(adata.obsm["spatial"])
    shared = xy.duplicated(keep=False).to_numpy()
    assert shared.sum() == 952
    assert f"952 of {len(xy)} spots share their coordinates" in caplog.text
    sites = pd.DataFrame(adata.obsm["grid"])[shared].groupby(xy[shared].apply(tuple, axis=1))
    assert (sites.max() - sites.min()).max(axis=None) <= 5
