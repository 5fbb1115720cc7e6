from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from strecur.pp import fit_stain_reference
from strecur.pp.image.decoding import open_image
from strecur.pp.image.stain import (
    StainNormalizer,
    fit_stains,
    optical_density,
    read_stain_reference,
    stained_pixels,
    tissue_mask,
    white_point,
)

BLUISH = {"hematoxylin": (0.75, 0.6, 0.28), "eosin": (0.15, 0.96, 0.25), "strength": (1.4, 0.7), "white": 230.0}
BLANK = np.full((200, 200, 3), 240, dtype=np.uint8)


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    return (found & true).sum() / (found | true).sum()


def degrees_apart(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    cosine = (np.asarray(found) * true).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(true, axis=1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def two_sections() -> AnnData:
    obs = pd.DataFrame({"section": ["train", "test"]}, index=["a", "b"])
    return AnnData(np.zeros((2, 1), dtype=np.float32), obs=obs)


# Tissue


@pytest.mark.parametrize("white", [255.0, 245.0, 200.0])
def test_mask_is_the_tissue(draw_slide, white):
    slide = draw_slide(white=white)
    assert overlap(tissue_mask(slide.rgb), slide.tissue) > 0.98


def test_tissue_cut_out_on_black_is_found(draw_slide):
    slide = draw_slide()
    cut_out = np.where(slide.tissue[..., None], slide.rgb, 0).astype(np.uint8)
    assert overlap(tissue_mask(cut_out), slide.tissue) > 0.98


def test_glass_has_no_tissue():
    noisy = BLANK + np.random.default_rng(0).integers(-3, 4, BLANK.shape)
    assert not tissue_mask(noisy.astype(np.uint8)).any()
    assert not tissue_mask(BLANK).any()


def test_an_image_of_nothing_but_tissue_is_all_tissue(draw_slide):
    slide = draw_slide()
    inner = slide.rgb[80:140, 140:240]
    assert slide.tissue[80:140, 140:240].all()
    assert tissue_mask(inner).mean() > 0.98


def test_specks_of_dust_are_no_tissue(draw_slide):
    slide = draw_slide((700, 900))
    dusty = slide.rgb.copy()
    dusty[5:7, 5:7] = (200, 0, 0)
    assert not tissue_mask(dusty)[:20, :20].any()


def test_white_point_is_the_glass_and_not_the_tissue(draw_slide):
    slide = draw_slide(white=230.0)
    np.testing.assert_allclose(white_point(slide.rgb, slide.tissue), 230, atol=1)
    everything = np.ones_like(slide.tissue)
    np.testing.assert_allclose(white_point(slide.rgb, everything), 230, atol=1)


# Stains


def test_optical_density_is_that_of_the_light():
    np.testing.assert_allclose(
        optical_density(np.array([[255, 24.6, 1.56]]), np.array([255] * 3)), [[0, 1, 2]], atol=1e-3
    )


@pytest.mark.parametrize("options", [{}, BLUISH, {"strength": (0.5, 1.5)}, {"strength": (1.8, 0.6)}])
def test_stains_of_a_slide_are_found(draw_slide, options):
    """Haematoxylin comes first, whichever of the stains is stronger."""
    slide = draw_slide(**options)
    fit = fit_stains(stained_pixels(slide.rgb, label="x")[0], label="x")
    assert degrees_apart(fit["stains"], slide.stains).max() < 4
    np.testing.assert_allclose(np.linalg.norm(fit["stains"], axis=1), 1)


def test_strength_follows_the_amount_of_stain(draw_slide):
    def strength(**options) -> np.ndarray:
        return np.array(fit_stains(stained_pixels(draw_slide(**options).rgb, label="x")[0], label="x")["strength"])

    np.testing.assert_allclose(strength(strength=(1.5, 0.8)) / strength(), [1.5, 0.8], rtol=0.1)


def test_normalised_slide_looks_like_the_reference(draw_slide):
    """The same tissue in other stains and other light becomes what it would be with those of the reference."""
    reference, other = draw_slide(seed=1), draw_slide(**BLUISH, seed=1)
    pixels, white = stained_pixels(reference.rgb, label="x")
    target = {"white": white, **fit_stains(pixels, label="x")}
    normalised = StainNormalizer(other.rgb, target, label="x")(other.rgb)
    assert normalised.dtype == np.uint8
    before, after = (np.abs(x.astype(float) - reference.rgb)[reference.tissue].mean() for x in (other.rgb, normalised))
    assert before > 15
    assert after < 5
    np.testing.assert_allclose(normalised[~reference.tissue], 245, atol=1)


def test_normalising_to_the_own_stains_changes_nothing(draw_slide):
    slide = draw_slide()
    pixels, white = stained_pixels(slide.rgb, label="x")
    own = {"white": white, **fit_stains(pixels, label="x")}
    np.testing.assert_allclose(StainNormalizer(slide.rgb, own, label="x")(slide.rgb[None])[0], slide.rgb, atol=1)


# Reference


def test_reference_is_fitted_on_the_training_sections_alone(draw_slide):
    """The image of the test section does not even exist."""
    slide = draw_slide()
    images = {"train": slide.rgb, "test": "nowhere.jpg"}
    reference = fit_stain_reference(two_sections(), images, library_key="section", sections=["train"])
    assert degrees_apart(reference["stains"], slide.stains).max() < 4
    assert reference["sections"] == ["train"]
    np.testing.assert_allclose(reference["white"], 245, atol=1)


def test_sections_count_alike_whatever_their_size(draw_slide):
    """A section with nine times as many pixels does not outvote the other."""
    small, large = draw_slide(), draw_slide((720, 960), **BLUISH)
    fits = [fit_stains(stained_pixels(s.rgb, label="x")[0], label="x")["stains"] for s in (small, large)]
    both = fit_stain_reference(two_sections(), {"train": small.rgb, "test": large.rgb}, library_key="section")
    to_small, to_large = (degrees_apart(both["stains"], np.array(fit)) for fit in fits)
    # The extremes of a mixture lie at one of the two: haematoxylin at the bluer one, eosin at the redder one.
    assert np.minimum(to_small, to_large).max() < 6
    assert sorted(both["sections"]) == ["test", "train"]


def test_library_key_of_the_lattice_is_used(draw_slide):
    images, adata = {"train": draw_slide().rgb, "test": draw_slide(**BLUISH).rgb}, two_sections()
    given = fit_stain_reference(adata, images, library_key="section")
    adata.uns["grid"] = {"params": {"library_key": "section"}}
    assert fit_stain_reference(adata, images) == given


def test_reference_can_be_saved_as_json(draw_slide, tmp_path):
    adata = two_sections()[:1].copy()
    reference = fit_stain_reference(adata, draw_slide().rgb)
    path = tmp_path / "stains.json"
    path.write_text(json.dumps(reference))
    assert read_stain_reference(path) == read_stain_reference(str(path)) == reference
    assert list(adata.obs) == ["section"]
    assert not adata.uns


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (BLANK, r"image of section 'section' has too few stained pixels \(0\)"),
        (np.repeat(np.random.default_rng(0).integers(0, 200, (200, 200, 1)), 3, axis=2).astype(np.uint8), "too few"),
        (np.where(np.indices((200, 200, 3))[0] < 100, BLANK, np.uint8([60, 230, 230])), "does not look like H&E"),
    ],
    ids=["blank", "grey", "cyan"],
)
def test_images_that_are_not_he(image, message):
    with pytest.raises(ValueError, match=message):
        fit_stain_reference(two_sections()[:1].copy(), image)


def test_unknown_training_section(draw_slide):
    images = {"train": draw_slide().rgb}
    with pytest.raises(KeyError, match=r"no image for the sections \['tset'\]; there are images for \['train'\]"):
        fit_stain_reference(two_sections(), images, library_key="section", sections=["train", "tset"])


@pytest.mark.parametrize(
    "reference", [{}, {"stains": 1}, {"method": "reinhard", "stains": 1, "strength": 1, "white": 1}]
)
def test_something_else_than_a_reference(reference):
    with pytest.raises(ValueError, match=r"not one of strecur\.pp\.fit_stain_reference"):
        read_stain_reference(reference)


# Real sections


def test_real_sections_get_the_stains_of_the_reference(data_dir):
    """Sections of different tissues, stained by different laboratories."""

    def look(path: str) -> tuple[np.ndarray, np.ndarray, dict]:
        with closing(open_image(data_dir / path, label=path)) as image:
            thumbnail = image.thumbnail(500)
        pixels, white = stained_pixels(thumbnail, label=path)
        return thumbnail, white, fit_stains(pixels, label=path)

    bulb, _, own = look("mob/images/Rep8.jpg")
    _, white, breast = look("her2st/images/C2.jpg")
    assert 0.1 < tissue_mask(bulb).mean() < 0.5
    normalised = StainNormalizer(bulb, {"white": white, **breast}, label="Rep8")(bulb)
    pixels, new_white = stained_pixels(normalised, label="normalised")
    new = fit_stains(pixels, label="normalised")
    assert degrees_apart(own["stains"], np.array(breast["stains"])).max() > 8
    assert degrees_apart(new["stains"], np.array(breast["stains"])).max() < 4
    np.testing.assert_allclose(new["strength"], breast["strength"], rtol=0.25)
    np.testing.assert_allclose(new_white, white, atol=2)
