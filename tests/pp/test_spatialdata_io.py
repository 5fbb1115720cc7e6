"""Folders as instruments write them, read by spatialdata-io: layouts, sections and pixels are the right ones."""

from __future__ import annotations

import logging
import warnings

import calls
import numpy as np
import pytest
import reader_folders as folders
import spatialdata as sd
from shapely.geometry import Polygon

import strecur as st
from strecur.nn import WindowedConfig

readers = pytest.importorskip("spatialdata_io")

MEANS = st.pp.Encoder("means", lambda patches: patches.mean(axis=(1, 2)), 3, size=8)


def read(reader: str, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(readers, reader)(*arguments, **options)


def embed(sdata, image, side: float, **options) -> np.ndarray:
    """Return the mean colours of patches of some side, in the unit of the coordinates."""
    with st.settings.override(progress=False):
        st.pp.embed_patches(sdata, image, encoder=MEANS, patches={"px": side}, **options)
    return sdata[options.get("table_key", "table")].obsm[options.get("key_added", "X_patch")]


def colours(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return red and green of the gradient at pixels (x, y)."""
    return 255 * pixels / (width - 1, height - 1)


def centres(rings: np.ndarray) -> np.ndarray:
    return np.array([Polygon(ring).centroid.coords[0] for ring in rings])


@pytest.mark.parametrize("version", [1, 2])
def test_visium(tmp_path, version, caplog):
    """Both tables of positions of Space Ranger; the file has other rows first than the counts."""
    where = folders.visium(tmp_path, "S1", version=version, n_outside=5)
    sdata = read("visium", where, fullres_image_file="image.tif")
    st.pp.to_grid(sdata)
    table = sdata["table"]
    assert table.uns["grid"]["layout"] == "hex"
    assert table.uns["grid"]["spacing"]["section"] == pytest.approx(40, rel=0.02)
    np.testing.assert_array_equal(table.obsm["grid"], table.obs[["array_row", "array_col"]])
    assert "5 of 196 spots lie outside the tissue" in caplog.text
    row, col = table.obs["array_row"], table.obs["array_col"]
    place = np.rint(np.column_stack([(col + 4) * 20.0, (row + 4) * 20.0 * np.sqrt(3)]))
    width, height = place.max(axis=0) + 80
    for size, factor in (("full", 1), ("hires", 0.5), ("lowres", 0.125)):
        found = embed(sdata, f"S1_{size}_image", 40)
        assert sdata["table"].uns["X_patch"]["sections"]["scale"].item() == pytest.approx(factor)
        np.testing.assert_allclose(found[:, :2], colours(place, width, height), atol=1.5 + 0.4 / factor)


def test_domains_of_visium_sections(tmp_path):
    """Trained on one section of an object of two, predicted on the other, whose barcodes are the same."""
    sections = [read("visium", folders.visium(tmp_path, name)) for name in ("S1", "S2")]
    sdata = sd.concatenate(sections, region_key="region", instance_key="spot_id", concatenate_tables=True)
    table = sdata["table"]
    truth = np.array(["left", "middle", "right"])[table.obs["array_col"] * 3 // 28]
    table.obs["domain"] = np.where(table.obs["region"] == "S1", truth, None)
    with pytest.raises(ValueError, match="pass library_key='region'"):
        st.pp.to_grid(sdata)
    st.pp.to_grid(sdata, library_key="region")
    backbone = WindowedConfig(width=32, n_heads=2, window=4, n_global=1)
    with st.settings.override(progress=False):
        small = {"backbone": backbone, "neighbours": (7,), "max_epochs": 2, "n_components": 6, "validation": None}
        model = calls.train_domains(sdata, "domain", **small)
        st.tl.trm_domains(sdata, model)
    other = (table.obs["region"] == "S2").to_numpy()
    assert np.mean(table.obs["trm_domains"].to_numpy()[other] == truth[other]) > 0.9


def test_xenium(tmp_path):
    """Coordinates are in µm, the table annotates labels in pixels, the H&E image is turned and coarser."""
    sdata = read("xenium", folders.xenium(tmp_path))
    st.pp.to_grid(sdata)
    table = sdata["table"]
    assert table.uns["grid"]["layout"] == "irregular"
    found = embed(sdata, "he_image", 6.8)
    assert table.uns["X_patch"]["sections"]["scale"].item() == pytest.approx(0.5 / folders.PIXEL_UM)
    focus = centres(folders.outlines(60, 14.0)) / folders.PIXEL_UM
    pixels = (np.column_stack([focus, np.ones(60)]) @ np.linalg.inv(folders.HE_TO_FOCUS).T)[:, :2]
    assert np.all((pixels > 16) & (pixels < (304, 364)))
    np.testing.assert_allclose(found[:, :2], colours(pixels, 320, 380), atol=1.5)


def test_stained_channels_of_xenium_are_no_colours(tmp_path):
    sdata = read("xenium", folders.xenium(tmp_path, channels=4))
    st.pp.to_grid(sdata)
    with pytest.raises(ValueError, match=r"4 channels, \['DAPI', 'ATP1A1/CD45/E-Cadherin'.*not red, green and blue"):
        embed(sdata, "morphology_focus", 6.8)


@pytest.mark.parametrize("library_key", ["fov", "fov_labels"])
def test_cosmx(tmp_path, library_key):
    """Fields of view have coordinates of their own, in pixels of labels and images."""
    sdata = read("cosmx", folders.cosmx(tmp_path), transcripts=False)
    with pytest.raises(ValueError, match=r"obs\['fov_labels'\] lie on top of each other.*spatial_key='global'"):
        st.pp.to_grid(sdata)
    st.pp.to_grid(sdata, library_key=library_key)
    table = sdata["table"]
    assert table.uns["grid"]["layout"] == "irregular"
    names = list(table.uns["grid"]["sections"].index)
    assert [name.removesuffix("_labels") for name in names] == ["1", "2"]
    images = {name: f"{name.removesuffix('_labels')}_image" for name in names}
    found = embed(sdata, images, 12)
    place = np.concatenate([centres(folders.outlines(48, 22.0) * factor) for factor in (1.0, 0.97)])
    inside = np.all((place > 8) & (place < np.array(folders.FIELD) - 8), axis=1)
    assert inside.sum() > 60
    np.testing.assert_allclose(found[inside, :2], colours(place, *folders.FIELD)[inside], atol=2.5)


@pytest.mark.parametrize("library_key", ["fov", None])
def test_global_coordinates_of_cosmx(tmp_path, library_key, caplog):
    """Coordinates in the system of the slide, of all fields of view as one section or of each by itself."""
    sdata = read("cosmx", folders.cosmx(tmp_path), transcripts=False)
    with caplog.at_level(logging.WARNING, logger="strecur"):
        st.pp.to_grid(sdata, spatial_key="global", library_key=library_key)
    assert not caplog.records
    table = sdata["table"]
    assert table.uns["grid"]["layout"] == "irregular"
    found = embed(sdata, {"1": "1_image", "2": "2_image"}, 12, library_key="fov")
    local = table.obsm["spatial"]
    inside = np.all((local > 8) & (local < np.array(folders.FIELD) - 8), axis=1)
    np.testing.assert_allclose(found[inside, :2], colours(local, *folders.FIELD)[inside], atol=2.5)


def test_image_of_the_slide_of_cosmx(tmp_path):
    """An image in the system of the slide: all fields of view may be one section."""
    sdata = read("cosmx", folders.cosmx(tmp_path), transcripts=False)
    table = sdata["table"]
    corner, extent = table.obsm["global"].min(axis=0) - 20, np.ptp(table.obsm["global"], axis=0) + 40
    width, height = np.ceil(2 * extent).astype(int)
    picture = np.moveaxis(folders.as_picture(width, height), -1, 0)
    place = sd.transformations.Affine(
        [[0.5, 0, corner[0]], [0, 0.5, corner[1]], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y")
    )
    sdata["he"] = sd.models.Image2DModel.parse(picture, dims=("c", "y", "x"), transformations={"global": place})
    st.pp.to_grid(sdata, spatial_key="global")
    found = embed(sdata, "he", 24)
    np.testing.assert_allclose(found[:, :2], colours(2 * (table.obsm["global"] - corner), width, height), atol=2.5)
    with pytest.raises(ValueError, match="belong to several regions.*pass library_key"):
        embed(sdata, "he", 24, spatial_key="spatial")


def test_unknown_units_of_cosmx(tmp_path):
    """Coordinates in µm are those of no element and of no coordinate system."""
    sdata = read("cosmx", folders.cosmx(tmp_path), transcripts=False)
    sdata["table"].obsm["um"] = sdata["table"].obsm["global"] * 0.12
    st.pp.to_grid(sdata, spatial_key="um")
    with pytest.raises(ValueError, match=r"units of obsm\['um'\] are unknown"):
        embed(sdata, {"1": "1_image", "2": "2_image"}, 12, library_key="fov")


def test_merscope(tmp_path, caplog):
    """Coordinates and outlines are in µm, in different orders; the mosaic is shifted and twice as fine."""
    sdata = read("merscope", folders.merscope(tmp_path), z_layers=[2, 3])
    with caplog.at_level(logging.WARNING, logger="strecur"):
        st.pp.to_grid(sdata)
    assert "fov" not in caplog.text  # fields of view are stitched
    assert sdata["table"].uns["grid"]["layout"] == "irregular"
    place = centres(folders.outlines(60, 12.0) + np.array([200.0, 300.0])) * 2 + folders.MOSAIC[:2, 2]
    wanted = colours(place, 340, 320)
    for axis, plane in enumerate((2, 3)):
        found = embed(sdata, f"202305011200_run_region_0_z{plane}", 6, key_added=f"plane_{plane}")
        np.testing.assert_allclose(found[:, 0], wanted[:, axis], atol=1.5)


@pytest.mark.parametrize("size", [8, 16])
def test_bins_of_visium_hd(tmp_path, size):
    sdata = read("visium_hd", folders.visium_hd(tmp_path), load_segmentations_only=False)
    key = f"square_{size:03}um"
    st.pp.to_grid(sdata, table_key=key)
    table = sdata[key]
    assert table.uns["grid"]["layout"] == "square"
    assert table.uns["grid"]["spacing"]["section"] == pytest.approx(2 * size)
    np.testing.assert_array_equal(table.obsm["grid"], table.obs[["array_row", "array_col"]])
    place = (table.obs[["array_col", "array_row"]].to_numpy() + 0.5) * 2 * size
    inside = np.all((place > 16) & (place < 624), axis=1)
    found = embed(sdata, "hd_full_image" if size == 16 else "hd_hires_image", 32, table_key=key)
    np.testing.assert_allclose(found[inside, :2], colours(place, 640, 640)[inside], atol=1.5)


def test_cells_of_visium_hd(tmp_path):
    """The table has no coordinates; outlines are in another order than in the file."""
    sdata = read("visium_hd", folders.visium_hd(tmp_path), load_segmentations_only=True)
    st.pp.to_grid(sdata)
    table = sdata["cell_segmentations"]
    assert table.uns["grid"]["layout"] == "irregular"
    place = table.obsm["spatial"]
    found = embed(sdata, "hd_hires_image", 24, table_key="cell_segmentations")
    np.testing.assert_allclose(found[:, :2], colours(place, 640, 640), atol=1.5)
