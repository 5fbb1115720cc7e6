"""Whole slides: their pixel size, the level that is read, and the way from file to tiles and embeddings."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from toy_slides import shrunk, tissue, write_slide

import strecur as st
from strecur.pp.image.cutting import cut
from strecur.pp.image.decoding import open_image
from strecur.pp.image.section_image import SectionImage

if TYPE_CHECKING:
    from pathlib import Path

tifffile = pytest.importorskip("tifffile")

SMALL = tissue(64)


def pixel_size(path: Path) -> float | None:
    with closing(open_image(path, label="slide")) as image:
        return image.mpp


def colours(patches: np.ndarray) -> np.ndarray:
    """The mean colour of each quarter of a patch."""
    n, side = len(patches), patches.shape[1] // 2
    return patches.reshape(n, 2, side, 2, side, 3).mean(axis=(2, 4)).reshape(n, 12)


@pytest.fixture(autouse=True)
def _quiet():
    with st.settings.override(progress=False):
        yield


# Micrometres per pixel

APERIO = (
    "Aperio Image Library v12.0.15\n46000x32914 [0,100 46000x32814] (256x256) |AppMag = 40|MPP = 0.2520|Left = 25.69"
)
VIPS = "<property><name>openslide.mpp-x</name><value type='VipsRefString'>0.4990</value></property>"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        ({"description": APERIO}, 0.252),
        ({"description": VIPS}, 0.499),
        # the description counts more than tags that programs fill in
        ({"description": APERIO, "resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}, 0.252),
        ({}, None),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (20_000, 10_000), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (1, 1), "resolutionunit": "NONE"}, None),
        ({"resolution": (0, 0), "resolutionunit": "CENTIMETER"}, None),
    ],
)
def test_pixel_size_of_a_tiff(tmp_path, options, expected):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, SMALL, photometric="rgb", metadata=None, **options)
    assert pixel_size(path) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("unit", "size"), [("µm", 0.25), ("nm", 250.0), ("mm", 0.00025)])
def test_pixel_size_of_ome(tmp_path, unit, size):
    path = tmp_path / "slide.ome.tif"
    names = {f"PhysicalSize{axis}{ending}": value for axis in "XY" for ending, value in (("", size), ("Unit", unit))}
    tifffile.imwrite(path, SMALL, photometric="rgb", metadata={"axes": "YXS", **names})
    assert pixel_size(path) == pytest.approx(0.25)


def test_pixel_size_of_imagej(tmp_path):
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, SMALL, imagej=True, resolution=(2, 2), metadata={"unit": "um", "axes": "YXS"})
    assert pixel_size(path) == pytest.approx(0.5)


def test_slide_without_pixel_size_is_refused_with_what_to_pass(tmp_path):
    path = write_slide(tmp_path / "slide.tif", tissue(), mpp=None)
    with pytest.raises(ValueError, match=r"slide\.tif does not tell its micrometres per pixel; pass mpp \(about 0\.5"):
        st.pp.tile_image(path, pitch_um=20)
    slide = st.pp.tile_image(path, pitch_px=20)
    with pytest.raises(ValueError, match=r"scale of section 'slide' is unknown: give mpp .*20x, 0\.25 at 40x"):
        st.pp.embed_patches(slide, encoder=colours)
    assert "X_patch" not in slide.obsm


def test_pixel_size_of_the_file_is_used(tmp_path, caplog):
    path = write_slide(tmp_path / "slide.tif", tissue(), mpp=0.5)
    slide = st.pp.tile_image(path, pitch_um=20)
    assert slide.uns["grid"]["spacing"]["slide"] == pytest.approx(40)
    assert slide.uns["spatial"]["slide"]["scalefactors"]["microns_per_pixel"] == pytest.approx(0.5)
    del slide.uns["spatial"]["slide"]["scalefactors"]["microns_per_pixel"]
    st.pp.embed_patches(slide, encoder=colours, patches={"um": 30})
    assert slide.uns["X_patch"]["sections"].loc["slide", "patch_px"] == pytest.approx(60)
    assert caplog.text == ""


def test_another_pixel_size_than_the_file_tells_is_warned_of_and_used(tmp_path, caplog):
    path = write_slide(tmp_path / "slide.tif", tissue(), mpp=0.5)
    slide = st.pp.tile_image(path, pitch_um=20, mpp=0.25)
    told = "slide.tif tells 0.5 µm per unit of the coordinates, but mpp=0.25 is used"
    assert told in caplog.text
    assert slide.uns["grid"]["spacing"]["slide"] == pytest.approx(80)
    caplog.clear()
    st.pp.embed_patches(slide, encoder=colours)
    assert told in caplog.text
    caplog.clear()
    st.pp.tile_image(path, pitch_um=20, mpp=0.52)
    assert caplog.text == "", "nominal and measured sizes differ by some per cent"


# Levels of a pyramid


def test_patches_come_from_the_coarsest_level_that_is_fine_enough(tmp_path):
    path = tmp_path / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        for level, side in enumerate((512, 256, 128)):
            options = {"subifds": 2} if level == 0 else {"subfiletype": 1}
            file.write(np.full((side, side, 3), 40 * level, np.uint8), tile=(64, 64), photometric="rgb", **options)
    with closing(open_image(path, label="slide")) as image:
        for side, level in ((32, 0), (63, 0), (64, 1), (100, 1), (128, 2), (400, 2)):
            (patch,) = cut(image, np.array([[256.0, 256.0]]), side, 32)
            assert (patch == 40 * level).all(), side


@pytest.mark.parametrize("side", [64, 100, 128, 256])
def test_levels_show_the_same_place(tmp_path, side):
    """Patches cut from a pyramid equal those shrunk from the full resolution, up to half a pixel of the level."""
    pixels = tissue(512, glass=False)
    path = write_slide(tmp_path / "slide.tif", pixels, mpp=0.5)
    centres = np.random.default_rng(0).uniform(130, 382, (30, 2))
    with closing(open_image(path, label="slide")) as pyramid, closing(open_image(pixels, label="array")) as flat:
        found, expected = (np.stack(list(cut(image, centres, side, 32))) for image in (pyramid, flat))
    np.testing.assert_allclose(colours(found), colours(expected), atol=4)


def test_same_tissue_at_two_magnifications_has_the_same_tiles_and_embeddings(tmp_path):
    pixels = tissue(1024)
    fine = st.pp.tile_image(write_slide(tmp_path / "fine.tif", pixels, mpp=0.25), pitch_um=16, layout="square")
    coarse = st.pp.tile_image(
        write_slide(tmp_path / "coarse.tif", shrunk(pixels, 2), mpp=0.5), pitch_um=16, layout="square"
    )
    np.testing.assert_array_equal(fine.obsm["grid"], coarse.obsm["grid"])
    np.testing.assert_allclose(fine.obsm["spatial"], 2 * coarse.obsm["spatial"])
    encoder = st.pp.Encoder("colours", colours, 12, size=32)
    for slide in (fine, coarse):
        st.pp.embed_patches(slide, encoder=encoder, patches={"um": 32})
    np.testing.assert_allclose(fine.obsm["X_patch"], coarse.obsm["X_patch"], atol=4)
    assert np.ptp(fine.obsm["X_patch"], axis=0).min() > 40, "the tissue is not all alike"
    sizes = [slide.uns["X_patch"]["sections"]["pixel_um"].iloc[0] for slide in (fine, coarse)]
    np.testing.assert_allclose(sizes, 1.0)


def test_pixels_seen_by_the_encoder_are_not_finer_than_those_of_the_image(tmp_path):
    slide = st.pp.tile_image(write_slide(tmp_path / "slide.tif", tissue(), mpp=2.0), pitch_um=80)
    st.pp.embed_patches(slide, encoder=st.pp.Encoder("colours", colours, 12, size=224), patches={"um": 112})
    assert slide.uns["X_patch"]["sections"].loc["slide", "pixel_um"] == pytest.approx(2.0)


# Memory


def test_a_slide_is_never_read_as_a_whole(tmp_path, monkeypatch):
    """No window that is read is larger than a patch, or than a band of a coarse level for the thumbnail."""
    read = []
    stored = SectionImage._stored

    def count(self, level, top, bottom, left, right):
        read.append((level, (bottom - top) * (right - left)))
        return stored(self, level, top, bottom, left, right)

    monkeypatch.setattr(SectionImage, "_stored", count)
    path = write_slide(tmp_path / "slide.tif", tissue(1024), mpp=0.5)
    slide = st.pp.tile_image(path, pitch_um=16, thumbnail_px=256)
    assert read == [(2, 256 * 256)]
    thumbnail = slide.uns["spatial"]["slide"]["images"]["hires"]
    monkeypatch.setattr(SectionImage, "thumbnail", lambda _self: thumbnail)
    read.clear()
    st.pp.embed_patches(slide, encoder=st.pp.Encoder("colours", colours, 12, size=32), patches={"um": 16})
    assert len(read) == slide.n_obs
    assert max(n for _, n in read) <= 32**2


def test_embeddings_of_a_stored_slide_are_not_computed_again(tmp_path):
    """They belong to the pixels of the file: a copy under another name has them too, a changed file does not."""
    import anndata as ad

    seen = []

    def counting(patches):
        seen.append(len(patches))
        return colours(patches)

    pixels = tissue()
    path = write_slide(tmp_path / "slide.tif", pixels, mpp=0.5)
    slide = st.pp.tile_image(path, pitch_um=20)
    encoder = st.pp.Encoder("colours", counting, 12, size=32)
    st.pp.embed_patches(slide, encoder=encoder)
    slide.write_h5ad(tmp_path / "slide.h5ad")
    again = ad.read_h5ad(tmp_path / "slide.h5ad")
    moved = path.rename(tmp_path / "renamed.tif")
    seen.clear()
    st.pp.embed_patches(again, moved, encoder=encoder)
    assert seen == [1], "only the test pattern"
    write_slide(moved, pixels[::-1], mpp=0.5)
    seen.clear()
    st.pp.embed_patches(again, moved, encoder=encoder)
    assert sum(seen) == 1 + slide.n_obs
