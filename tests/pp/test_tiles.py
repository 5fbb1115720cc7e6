from __future__ import annotations

import logging

import numpy as np
import pytest
from anndata import read_h5ad
from PIL import Image
from scipy.spatial import cKDTree

from strecur._settings import settings
from strecur.pp import embed_patches, tile_image

TISSUE = np.full((200, 300, 3), (200, 100, 160), dtype=np.uint8)


def neighbour_distances(xy: np.ndarray, k: int) -> np.ndarray:
    return cKDTree(xy).query(xy, k=k + 1)[0][:, 1:]


@pytest.mark.parametrize(("layout", "n_neighbours"), [("square", 4), ("hex", 6)])
def test_lattice_has_the_pitch_in_all_directions(layout, n_neighbours):
    adata = tile_image(TISSUE, pitch_px=20, layout=layout)
    distances = neighbour_distances(adata.obsm["spatial"], n_neighbours)
    inner = distances.max(axis=1) < 21
    assert inner.mean() > 0.6
    np.testing.assert_allclose(distances[inner], 20)
    np.testing.assert_allclose(distances.min(), 20)


@pytest.mark.parametrize("layout", ["square", "hex"])
def test_lattice_covers_the_image_and_stays_inside(layout):
    adata = tile_image(TISSUE, pitch_px=20, layout=layout)
    x, y = adata.obsm["spatial"].T
    for values, extent in ((x, 300), (y, 200)):
        assert 10 <= values.min() < 20
        assert extent - 30 < values.max() <= extent - 10
    per_spot = 20**2 * (1 if layout == "square" else np.sqrt(3) / 2)
    assert adata.n_obs == pytest.approx(200 * 300 / per_spot, rel=0.1)


@pytest.mark.parametrize("layout", ["square", "hex"])
def test_array_position_grid_and_coordinates_agree(layout):
    adata = tile_image(TISSUE, pitch_px=20, layout=layout)
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    steps = (20, 20) if layout == "square" else (10, 10 * np.sqrt(3))  # doubled columns, as Visium has them
    np.testing.assert_allclose(adata.obsm["spatial"], np.column_stack([10 + col * steps[0], 10 + row * steps[1]]))
    np.testing.assert_array_equal(adata.obsm["grid"], np.column_stack([row, col]))
    assert adata.uns["grid"]["layout"] == layout
    assert adata.obs_names.is_unique


def test_spots_lie_on_tissue_and_all_tissue_has_spots(draw_slide):
    slide = draw_slide()
    adata = tile_image(slide.rgb, pitch_px=12, min_tissue=0.5)
    x, y = np.floor(adata.obsm["spatial"].T).astype(int)
    assert slide.tissue[y, x].mean() > 0.98
    assert adata.n_obs == pytest.approx(slide.tissue.sum() / (12**2 * np.sqrt(3) / 2), rel=0.1)
    assert (adata.obs["tissue_fraction"] >= 0.5).all()


@pytest.mark.parametrize("min_tissue", [0.05, 0.5, 0.95])
def test_tissue_fraction_is_that_of_the_square_around_the_spot(draw_slide, min_tissue):
    slide = draw_slide()
    adata = tile_image(slide.rgb, pitch_px=20, layout="square", min_tissue=min_tissue)
    for (x, y), share in zip(adata.obsm["spatial"].astype(int), adata.obs["tissue_fraction"], strict=True):
        assert share >= min_tissue
        assert share == pytest.approx(slide.tissue[y - 10 : y + 10, x - 10 : x + 10].mean(), abs=0.05)


def test_micrometres_become_pixels():
    by_um = tile_image(TISSUE, pitch_um=100, mpp=5)
    by_px = tile_image(TISSUE, pitch_px=20)
    np.testing.assert_array_equal(by_um.obsm["spatial"], by_px.obsm["spatial"])
    factors = by_um.uns["spatial"]["section"]["scalefactors"]
    assert factors["microns_per_pixel"] == 5
    assert factors["spot_diameter_fullres"] == 20


def test_file_is_found_again_by_embed_patches(draw_slide, tmp_path):
    """Path and scale travel with the result: nothing has to be repeated."""
    path = tmp_path / "my slide (1).png"
    Image.fromarray(draw_slide().rgb).save(path)
    adata = tile_image(path, pitch_um=100, mpp=5)
    assert adata.obs["section"].cat.categories.tolist() == ["my_slide_1_"]
    with settings.override(progress=False):
        embed_patches(adata, encoder=lambda p: p.mean(axis=(1, 2)), patches={"um": 100})
    sections = adata.uns["X_patch"]["sections"]
    assert sections.loc["my_slide_1_", ["patch_px", "mpp", "image"]].tolist() == [20, 5, path.name]
    # Where tissue is, patches are red and blue rather than green.
    assert (adata.obsm["X_patch"][:, 1] < adata.obsm["X_patch"][:, 0] - 20).all()


def test_thumbnail_and_scale_factor_fit_for_plots(draw_slide):
    slide = draw_slide()
    adata = tile_image(slide.rgb, pitch_px=20, thumbnail_px=100, section="A")
    library = adata.uns["spatial"]["A"]
    thumbnail = library["images"]["hires"]
    assert max(thumbnail.shape) <= 100
    x, y = (adata.obsm["spatial"] * library["scalefactors"]["tissue_hires_scalef"]).astype(int).T
    assert (thumbnail[y, x, 1] < 220).mean() > 0.95  # glass has 245


def test_image_element(draw_slide):
    models = pytest.importorskip("spatialdata.models")
    rgb = draw_slide().rgb
    element = models.Image2DModel.parse(np.moveaxis(rgb, -1, 0), dims=("c", "y", "x"))
    np.testing.assert_array_equal(
        tile_image(element, pitch_px=20).obsm["spatial"], tile_image(rgb, pitch_px=20).obsm["spatial"]
    )


def test_result_can_be_written(draw_slide, tmp_path):
    adata = tile_image(draw_slide().rgb, pitch_um=100, mpp=5)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm["grid"], adata.obsm["grid"])
    assert again.shape == (adata.n_obs, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either pitch_um or pitch_px"),
        ({"pitch_um": 100, "pitch_px": 20, "mpp": 5}, "either pitch_um or pitch_px"),
        ({"pitch_um": 100}, "pitch_um needs mpp"),
        ({"pitch_um": 100, "mpp": 0}, "mpp=0 must be positive"),
        ({"pitch_px": 0.5}, "at least 1"),
        ({"pitch_px": 500}, "a pitch of 500 pixels on an image of 300 × 200"),
        ({"pitch_px": 20, "layout": "round"}, "layout='round'"),
        ({"pitch_px": 20, "section": "a/b"}, "legal key"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        tile_image(TISSUE, **options)


def test_glass_has_no_spots():
    with pytest.raises(ValueError, match=r"none of 150 spots has 20% tissue \(the highest share is 0%\)"):
        tile_image(np.full((200, 300, 3), 240, dtype=np.uint8), pitch_px=20, layout="square")


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tif"):
        tile_image("nowhere.tif", pitch_px=20)


def test_real_section_is_tiled_where_its_spots_are(data_dir, caplog):
    """The lattice at the pitch of the array has about as many spots as the section, and lies on it."""
    caplog.set_level(logging.WARNING)
    measured = read_h5ad(data_dir / "mob" / "Rep8.h5ad").obsm["spatial"]
    pitch = np.median(neighbour_distances(measured, 1))
    adata = tile_image(data_dir / "mob" / "images" / "Rep8.jpg", pitch_px=pitch, layout="square", min_tissue=0.5)
    assert adata.n_obs == pytest.approx(len(measured), rel=0.2)
    nearest, _ = cKDTree(adata.obsm["spatial"]).query(measured)
    assert np.mean(nearest < pitch) > 0.95
    assert caplog.records == []
