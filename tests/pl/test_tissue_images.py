"""Plots show tissue images in the colours in which patches are cut from them."""

from __future__ import annotations

import dask.array as da
import matplotlib as mpl
import numpy as np
import pytest

from strecur import datasets, pl, settings
from strecur.pp import Encoder, embed_patches, to_grid

mpl.use("Agg")


@pytest.fixture
def section():
    adata = datasets.synthetic_sections(n_sections=1, n_rows=12, n_cols=12, n_domains=2, image=True)
    to_grid(adata, library_key="section")
    return adata


def set_image(adata, image: object) -> None:
    adata.uns["spatial"]["S1"]["images"]["hires"] = image


def drawn(adata, **options) -> np.ndarray:
    """Return the pixels of the tissue image that a plot draws."""
    ax = pl.domains(adata, "domain", library_key="section", **options)
    (image,) = ax.images
    ax.figure.canvas.draw()
    mpl.pyplot.close(ax.figure)
    return np.asarray(image.get_array())


FORMS = {
    "bytes": lambda p: p,
    "floats of 0 to 1": lambda p: p / 255,
    "interpolated floats": lambda p: np.where(p == p.max(), 1.02, p / 255),
    "floats of 0 to 255": lambda p: p.astype(np.float32),
    "10 bits": lambda p: p.astype(np.uint16) * 4,
    "12 bits": lambda p: p.astype(np.uint16) * 16,
    "16 bits": lambda p: p.astype(np.uint16) * 257,
    "opaque": lambda p: np.dstack([p, np.full(p.shape[:2], 255, np.uint8)]),
    "opaque, 16 bits": lambda p: np.dstack([p, np.full(p.shape[:2], 255, np.uint8)]).astype(np.uint16) * 257,
    "dask": lambda p: da.from_array(p, chunks=100),
}


@pytest.mark.parametrize("form", FORMS)
def test_plots_show_what_patches_are_cut_from(section, form):
    picture = section.uns["spatial"]["S1"]["images"]["hires"]
    expected = drawn(section).astype(float)
    set_image(section, FORMS[form](picture))
    bright = picture.max() == picture
    assert bright.mean() < 0.5
    found = drawn(section).astype(float)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 2
    means = Encoder("means", lambda p: p.mean(axis=(1, 2)), 3, size=16)
    with settings.override(progress=False):
        embed_patches(section, encoder=means, library_key="section", mpp=1.0)
        patches = section.obsm.pop("X_patch")
        set_image(section, picture)
        embed_patches(section, encoder=means, library_key="section", mpp=1.0)
    np.testing.assert_allclose(patches, section.obsm["X_patch"], atol=3)


def test_grey_images_keep_their_brightness(section):
    """They are not stretched to the range of their values."""
    picture = section.uns["spatial"]["S1"]["images"]["hires"]
    grey = (picture.mean(axis=-1) // 2).astype(np.uint8)
    set_image(section, grey)
    found = drawn(section)
    assert found.shape[-1] == 3
    assert found.max() == grey.max()


@pytest.mark.parametrize("image", [np.zeros((400, 400, 7), np.uint8), np.full((400, 400, 3), -1.0)])
def test_images_that_cannot_be_shown_are_named(section, image):
    set_image(section, image)
    with pytest.raises(ValueError, match="the image 'hires' of section 'S1'"):
        drawn(section)


def test_the_only_image_belongs_to_the_only_section_whatever_its_name(section):
    """As for patches: readers name the image by the slide, users the section by the patient."""
    expected = drawn(section)
    section.uns["spatial"] = {"V10_slide": section.uns["spatial"]["S1"]}
    np.testing.assert_array_equal(drawn(section), expected)
    with settings.override(progress=False):
        embed_patches(section, encoder=lambda p: p.mean(axis=(1, 2)), library_key="section", mpp=1.0)
    assert "V10_slide" in section.uns["X_patch"]["sections"].loc["S1", "image"]


def test_sections_may_be_numbers(section):
    expected = drawn(section)
    section.obs["section"] = 151673
    section.uns["spatial"] = {151673: section.uns["spatial"]["S1"], 151674: {}}
    np.testing.assert_array_equal(drawn(section), expected)
