from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from anndata import read_h5ad

from strecur._geometry import transform_patch
from strecur.pp.image.cutting import cut
from strecur.pp.image.decoding import open_image
from strecur.pp.image.stain import TYPICAL_STAINS
from strecur.pp.image.texture import FEATURE_NAMES, SIZE, texture_features

STAINS = TYPICAL_STAINS / np.linalg.norm(TYPICAL_STAINS, axis=1, keepdims=True)
ROW, COL = np.indices((SIZE, SIZE))


def paint(hematoxylin: np.ndarray | float, eosin: np.ndarray | float) -> np.ndarray:
    """Return a patch with these optical densities of the two stains."""
    amount = np.stack(np.broadcast_arrays(hematoxylin, eosin, ROW)[:2], axis=-1)
    return np.clip(np.rint(255 * 10 ** -(amount @ STAINS)), 0, 255).astype(np.uint8)


def discs(centres: list[tuple[int, int]], radius: float) -> np.ndarray:
    return np.any([np.hypot(ROW - r, COL - c) <= radius for r, c in centres], axis=0)


def describe(patch: np.ndarray) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, texture_features(patch[None])[0].tolist(), strict=True))


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Return a patch of asymmetric, noisy tissue."""
    rng = np.random.default_rng(0)
    nuclei = discs([tuple(rng.integers(0, SIZE, 2)) for _ in range(40)], 5)
    fibres = 0.1 * np.sin((ROW + 2 * COL) / 9)
    return paint(0.6 * nuclei + 0.05 * rng.random(nuclei.shape), 0.3 + fibres + 0.1 * rng.random(nuclei.shape))


def test_names_and_features_correspond(tissue):
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES) == 118
    features = texture_features(np.stack([tissue, tissue[::-1]]))
    assert features.shape == (2, 118)
    assert features.dtype == np.float32


def test_features_are_those_of_each_patch_alone(tissue):
    other = paint(0.2, 0.2)
    np.testing.assert_array_equal(texture_features(np.stack([other, tissue]))[1], texture_features(tissue[None])[0])


def test_turns_and_mirror_images_have_the_same_features(tissue):
    """The claim by which the eight views are computed once."""
    features = texture_features(np.stack([transform_patch(tissue, g) for g in range(8)]))
    # Some pixels lie between two patterns, and rounding decides.
    np.testing.assert_allclose(features, np.broadcast_to(features[:1], features.shape), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("patch", [np.full((SIZE, SIZE, 3), v, dtype=np.uint8) for v in (255, 128, 0)])
def test_empty_patches_have_finite_features_and_no_nuclei(patch):
    features = describe(patch)
    assert np.isfinite(list(features.values())).all()
    assert features["nuclei_count"] == features["nuclei_area_fraction"] == 0
    assert features["hematoxylin_sd"] == pytest.approx(0)


def test_black_around_cut_out_tissue_counts_as_glass():
    tissue, outside = paint(0.3, 0.3), (ROW < 80)[..., None]
    on_black, on_white = (describe(np.where(outside, np.uint8(v), tissue)) for v in (0, 255))
    assert on_black == on_white


def test_noise_has_finite_features():
    noise = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    assert np.isfinite(texture_features(noise)).all()


def test_stains_are_measured_apart():
    base, more_h, more_e = (describe(paint(h, e)) for h, e in ((0.2, 0.2), (0.4, 0.2), (0.2, 0.4)))
    assert more_h["hematoxylin_mean"] == pytest.approx(2 * base["hematoxylin_mean"], rel=0.05)
    assert more_h["eosin_mean"] == pytest.approx(base["eosin_mean"], rel=0.05)
    assert more_e["eosin_mean"] == pytest.approx(2 * base["eosin_mean"], rel=0.05)
    assert more_e["hematoxylin_mean"] == pytest.approx(base["hematoxylin_mean"], rel=0.05)


def test_nuclei_are_counted_and_measured():
    centres = [(r, c) for r in range(20, 220, 40) for c in range(25, 220, 50)]
    features = describe(paint(0.7 * discs(centres, 7), 0.2))
    assert features["nuclei_count"] == features["nuclei_clumps"] == len(centres)
    assert features["nucleus_area_mean"] == pytest.approx(np.pi * 7**2, rel=0.25)
    assert features["nucleus_eccentricity_mean"] < 0.2
    assert features["nucleus_spacing_mean"] == pytest.approx(40, abs=1)
    assert features["nucleus_contrast"] > 0.05


def test_touching_nuclei_are_one_clump_of_two():
    features = describe(paint(0.7 * discs([(100, 100), (100, 116), (160, 60)], 8), 0.2))
    assert (features["nuclei_count"], features["nuclei_clumps"]) == (3, 2)


def test_long_nuclei_are_eccentric():
    ellipse = ((ROW - 110) / 5) ** 2 + ((COL - 110) / 20) ** 2 <= 1
    assert describe(paint(0.7 * ellipse, 0.2))["nucleus_eccentricity_mean"] > 0.9


def test_coherence_tells_fibres_from_noise():
    noise = np.random.default_rng(0).random(ROW.shape)
    fibres, disorder = (describe(paint(0.2, 0.4 * x)) for x in (0.5 + 0.5 * np.sin((ROW + COL) / 6), noise))
    for scale in (1, 2, 4):
        assert fibres[f"coherence_x{scale}_patch"] > 0.8
        assert disorder[f"coherence_x{scale}_patch"] < 0.2


def test_scales_see_structures_of_their_size():
    """A chessboard of single pixels is gone once 2 × 2 pixels are averaged; one of 8 pixels is still there."""
    fine, coarse = (describe(paint(0.5 * ((ROW // n + COL // n) % 2), 0.2)) for n in (1, 8))
    assert fine["hematoxylin_x1_sd"] > 0.01
    assert fine["hematoxylin_x2_sd"] < 0.1 * fine["hematoxylin_x1_sd"]
    assert coarse["hematoxylin_x4_sd"] == pytest.approx(coarse["hematoxylin_x1_sd"], rel=0.01)


def test_centre_and_rim_are_compared():
    middle = np.hypot(ROW - SIZE / 2, COL - SIZE / 2) < 50
    assert describe(paint(0.5 * middle, 0.2))["hematoxylin_centre_minus_rim"] > 0.01
    assert describe(paint(0.5 * ~middle, 0.2))["hematoxylin_centre_minus_rim"] < -0.01


def test_real_patches_vary_and_are_free_of_orientation(data_dir):
    folder = data_dir / "her2st"
    centres = read_h5ad(folder / "C2.h5ad").obsm["spatial"][::16][:12]
    with closing(open_image(folder / "images" / "C2.jpg", label="C2")) as image:
        patches = np.stack(list(cut(image, centres, SIZE, SIZE)))
    features = texture_features(patches)
    assert np.isfinite(features).all()
    assert (features.std(axis=0) > 0).mean() > 0.95
    count = features[:, FEATURE_NAMES.index("nuclei_count")]
    assert (count > 20).all()  # tissue of 224 px, about 150 µm, holds some dozen nuclei
    assert (count < 200).all()
    turned = texture_features(transform_patch(patches[3], 6)[None])[0]
    np.testing.assert_allclose(turned, features[3], rtol=1e-4, atol=2e-4)
