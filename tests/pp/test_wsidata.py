"""Tiles and features of LazySlide: read, predicted, and given back."""

from __future__ import annotations

import numpy as np
import pytest
import toy_histology
from anndata import AnnData
from toy_slides import lazy_slide, tissue, write_slide

import strecur as st


def test_tiles_become_spots_with_their_features(tmp_path):
    wsi = lazy_slide(tmp_path / "my slide.svs")
    slide = st.pp.read_wsidata(wsi, "toy")
    tiles = wsi.shapes["tiles"]
    assert slide.shape == (len(tiles), 0)
    assert slide.obs["section"].cat.categories.tolist() == ["my_slide"]
    np.testing.assert_array_equal(slide.obs["tile_id"], tiles["tile_id"])
    centres = np.column_stack([tiles.centroid.x, tiles.centroid.y])
    np.testing.assert_allclose(slide.obsm["spatial"], centres)
    table = wsi.tables["toy_tiles"]  # in another order
    expected = table.to_df().set_index(table.obs["tile_id"].to_numpy()).loc[tiles["tile_id"]]
    np.testing.assert_array_equal(slide.obsm["X_patch"], expected)
    record = slide.uns["X_patch"]
    assert (record["encoder"], record["width"]) == ("lazyslide:toy", 3)
    # 32 pixels, each of two pixels of 0.5 µm
    assert record["sections"].loc["my_slide", ["patch_px", "patch_um", "mpp"]].tolist() == [64, 32, 0.5]
    assert slide.uns["spatial"]["my_slide"]["scalefactors"]["microns_per_pixel"] == 0.5
    assert slide.uns["spatial"]["my_slide"]["scalefactors"]["tissue_hires_scalef"] == 0.25


def test_neighbouring_tiles_are_neighbours_on_the_lattice(tmp_path):
    slide = st.pp.read_wsidata(lazy_slide(tmp_path / "slide.svs"), "toy")
    assert slide.uns["grid"]["layout"] == "square"
    for piece in (0, 1):
        own = slide.obs["tissue_id"] == piece
        (x, y), (row, col) = slide.obsm["spatial"][own].T, slide.obsm["grid"][own].T
        np.testing.assert_allclose((x - x.min()) / 64, col - col.min())
        np.testing.assert_allclose((y - y.min()) / 64, row - row.min())
    # The second piece starts 413 pixels to the right of the first and 19 below it.
    first, second = (slide.obsm["grid"][slide.obs["tissue_id"] == piece].min(axis=0) for piece in (0, 1))
    np.testing.assert_array_equal(second - first, [0, 6])


def test_pieces_that_would_share_sites_are_moved_apart(tmp_path):
    wsi = lazy_slide(tmp_path / "slide.svs")
    tiles = wsi.shapes["tiles"]
    second = tiles["tissue_id"] == 1
    tiles.loc[second, "geometry"] = tiles.loc[second, "geometry"].translate(xoff=-130)
    grid = st.pp.read_wsidata(wsi, "toy").obsm["grid"]
    assert len(np.unique(grid, axis=0)) == len(tiles)
    assert np.ptp(grid[second], axis=0).tolist() == [2, 3], "the piece keeps its shape"
    assert grid[second][:, 0].min() - grid[~second][:, 0].max() == 8


def test_way_into_training_and_back(tmp_path):
    """A model on features of LazySlide predicts its tiles; the table annotates the tiles of the slide."""
    wsi = lazy_slide(tmp_path / "slide.svs")
    slide = st.pp.read_wsidata(wsi, "toy", use_rep="X_toy")
    counts = np.random.default_rng(0).poisson(np.exp(slide.obsm["X_toy"] + 5)).astype(np.float32)
    spots = AnnData(counts, obs=slide.obs, obsm=dict(slide.obsm), uns=slide.uns)
    model = st.tl.train_expression(
        spots, use_rep="X_toy", genes=["0", "2"], architecture="linear", features={"neighbours": (), "n_components": 3}
    )
    assert model.encoder["encoder"] == "lazyslide:toy"
    st.tl.predict_expression(slide, model)
    table = st.get.expression(slide)
    assert table.uns["spatialdata_attrs"] == {
        "region": "tiles",
        "region_key": "library_id",
        "instance_key": "tile_id",
    }
    found = [np.corrcoef(table.X[:, i], np.log2(counts[:, j] + 1))[0, 1] for i, j in enumerate((0, 2))]
    assert min(found) > 0.8


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda w: w.attrs["slide_properties"].update(mpp=None), {}, ValueError, r"unknown; call wsi\.set_mpp"),
        (lambda w: None, {"tile_key": "tile"}, KeyError, r"no tiles 'tile' \(did you mean 'tiles'\?\)"),
        (lambda w: None, {"feature_key": "uni"}, KeyError, r"tables \['toy_tiles'\].*feature_extraction"),
        (lambda w: w.tables.update(toy_tiles=w.tables["toy_tiles"][:5]), {}, ValueError, "27 of 32 tiles have no"),
    ],
)
def test_what_is_missing_is_named(tmp_path, change, options, error, message):
    wsi = lazy_slide(tmp_path / "slide.svs")
    change(wsi)
    with pytest.raises(error, match=message):
        st.pp.read_wsidata(wsi, **{"feature_key": "toy", **options})


def test_other_objects_are_no_slides():
    with pytest.raises(TypeError, match=r"got AnnData; open the slide with wsidata\.open_wsi"):
        st.pp.read_wsidata(toy_histology.make_section("A", 0), "toy")


# The package itself


def test_slide_of_wsidata(tmp_path):
    """A real WSIData with tiles and features as LazySlide stores them; the prediction goes into it and to disk."""
    wsidata = pytest.importorskip("wsidata")
    path = write_slide(tmp_path / "slide.tif", tissue(1024), mpp=0.5)
    wsi = wsidata.open_wsi(path, store=None)
    wsi.set_mpp(0.5)
    spec = wsidata.TileSpec.from_wsidata(wsi, tile_px=64, mpp=1.0)
    corners = np.array([(x, y) for x in range(100, 900, 128) for y in range(300, 700, 128)])
    wsidata.io.add_tiles(wsi, "tiles", corners, spec, np.zeros(len(corners), dtype=int))
    features = np.random.default_rng(0).normal(size=(len(corners), 3)).astype(np.float32)
    wsidata.io.add_features(wsi, "toy_tiles", "tiles", features)

    slide = st.pp.read_wsidata(wsi, "toy")
    np.testing.assert_array_equal(slide.obsm["X_patch"], features)
    np.testing.assert_allclose(slide.obsm["spatial"], corners + 64)
    np.testing.assert_array_equal(np.unique(slide.obsm["grid"], axis=0), np.argwhere(np.ones((4, 7))))
    assert slide.uns["X_patch"]["sections"].loc["slide", "patch_um"] == 64
    counts = AnnData(np.exp(features + 1).round(), obs=slide.obs, obsm=dict(slide.obsm), uns=slide.uns)
    model = st.tl.train_expression(
        counts, genes=["0", "1"], architecture="linear", features={"neighbours": (), "n_components": 3}
    )
    st.tl.predict_expression(slide, model)
    wsi.tables["trm_expression_tiles"] = st.get.expression(slide)
    wsi.write(tmp_path / "slide.zarr")
    again = wsidata.open_wsi(path, store=str(tmp_path / "slide.zarr"))
    found = again.fetch.features_anndata("trm_expression", "tiles")
    np.testing.assert_allclose(found.X, slide.obsm["trm_expression"])
    assert found.var_names.tolist() == ["0", "1"]
