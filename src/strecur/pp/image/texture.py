"""Hand-crafted features of H&E patches: stain intensity, texture at three scales, nuclei. No network, no torch.

Every feature is invariant to reflections and quarter turns of the patch. Lengths are in pixels of the 224 px patch, so
patches of all sections should span the same number of micrometres.
"""

from __future__ import annotations

import numpy as np

from strecur.pp.image.stain import BLACK, TYPICAL_STAINS, with_residual

SIZE = 224
SCALES = (1, 2, 4)
"""Texture is measured on the patch and on its averages over 2 × 2 and 4 × 4 pixels."""

HEMATOXYLIN_RANGE, EOSIN_RANGE = 0.2, 0.08
"""Concentrations of :func:`skimage.color.separate_stains` from 0 to these values are spread over the grey levels."""

NUCLEUS_LIMITS = (0.03, 0.15)
"""Limits of Otsu's threshold on haematoxylin, so that no nuclei are found in a patch without nuclei."""

MIN_NUCLEUS_PX = 20


def _names() -> tuple[str, ...]:
    names = ["mean_red", "mean_green", "mean_blue", "mean_saturation", "white_fraction"]
    for stain in ("hematoxylin", "eosin"):
        names += [f"{stain}_{s}" for s in ("mean", "sd", "skew", "p10", "p50", "p90", "centre_minus_rim")]
    names += ["stain_correlation"]
    for scale in SCALES:
        for stain in ("hematoxylin", "eosin"):
            names += [f"{stain}_x{scale}_{s}" for s in ("sd", "edge_mean", "edge_sd", "curvature_sd")]
            names += [f"{stain}_x{scale}_{s}" for s in ("contrast", "homogeneity", "energy", "correlation")]
        names += [f"hematoxylin_x{scale}_pattern_{i}" for i in range(10)]
        names += [f"coherence_x{scale}_local", f"coherence_x{scale}_patch"]
    names += ["nuclei_count", "nuclei_area_fraction", "nuclei_clumps"]
    names += [f"nucleus_{s}_{t}" for s in ("area", "eccentricity", "hematoxylin", "eosin") for t in ("mean", "sd")]
    return (*names, "nucleus_contrast", "nucleus_spacing_mean", "nucleus_spacing_sd")


FEATURE_NAMES = _names()


def texture_features(patches: np.ndarray) -> np.ndarray:
    """Compute the features of H&E patches.

    Parameters
    ----------
    patches
        Patches × 224 × 224 × 3, uint8.

    Returns
    -------
    Float32, patches × features in the order of :data:`FEATURE_NAMES`.
    """
    return np.stack([_describe(patch) for patch in patches]).astype(np.float32)


def _describe(patch: np.ndarray) -> np.ndarray:
    from skimage.color import separate_stains

    patch = np.where(patch.max(axis=-1, keepdims=True) < BLACK, np.uint8(255), patch)
    # Not rgb2hed: its third stain, DAB, is not part of H&E and absorbs most of the eosin.
    stains = separate_stains(patch, np.linalg.inv(with_residual(TYPICAL_STAINS).T)).astype(np.float32)
    hematoxylin, eosin = stains[..., 0], stains[..., 1]
    features = [*_colour(patch), *_intensity(hematoxylin), *_intensity(eosin), _correlation(hematoxylin, eosin)]
    for scale in SCALES:
        features += _texture_of_stain(_shrink(hematoxylin, scale), HEMATOXYLIN_RANGE)
        features += _texture_of_stain(_shrink(eosin, scale), EOSIN_RANGE)
        features += _patterns(_shrink(hematoxylin, scale))
        features += _coherence(_shrink(hematoxylin + eosin, scale))
    return np.array([*features, *_nuclei(hematoxylin, eosin)])


def _colour(patch: np.ndarray) -> list[float]:
    channels = np.ascontiguousarray(np.moveaxis(patch, -1, 0))
    darkest, brightest = channels.min(axis=0), channels.max(axis=0)
    saturation = 1 - darkest / np.maximum(brightest, 1)
    return [*channels.mean(axis=(1, 2)) / 255, saturation.mean(), (darkest > 200).mean()]


def _intensity(stain: np.ndarray) -> list[float]:
    mean, sd = stain.mean(dtype=float), stain.std(dtype=float)
    skew = ((stain - mean) ** 3).mean(dtype=float) / sd**3 if sd > 1e-6 else 0.0
    quarter = len(stain) // 4
    centre = stain[quarter:-quarter, quarter:-quarter]
    rim = (stain.sum(dtype=float) - centre.sum(dtype=float)) / (stain.size - centre.size)
    return [mean, sd, skew, *np.percentile(stain, [10, 50, 90]), centre.mean(dtype=float) - rim]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    spread = a.std(dtype=float) * b.std(dtype=float)
    return ((a - a.mean()) * (b - b.mean())).mean(dtype=float) / spread if spread > 1e-9 else 0.0


def _shrink(stain: np.ndarray, scale: int) -> np.ndarray:
    side = len(stain) // scale
    return stain.reshape(side, scale, side, scale).mean(axis=(1, 3))


def _grey_levels(stain: np.ndarray, upper: float, levels: int) -> np.ndarray:
    return np.clip(stain * (levels / upper), 0, levels - 1).astype(np.uint8)


def _texture_of_stain(stain: np.ndarray, upper: float) -> list[float]:
    from skimage.feature import graycomatrix, graycoprops
    from skimage.filters import laplace, sobel

    edges = sobel(stain)
    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    pairs = graycomatrix(_grey_levels(stain, upper, 16), [1], angles, levels=16, symmetric=True)
    pairs = pairs.sum(axis=3, keepdims=True).astype(float)
    pairs /= pairs.sum(axis=(0, 1), keepdims=True)
    cooccurrence = [graycoprops(pairs, p)[0, 0] for p in ("contrast", "homogeneity", "energy", "correlation")]
    return [stain.std(dtype=float), edges.mean(), edges.std(), laplace(stain).std(), *cooccurrence]


def _patterns(stain: np.ndarray) -> list[float]:
    """Return the histogram of rotation-invariant local binary patterns (Ojala et al. 2002)."""
    from skimage.feature import local_binary_pattern

    codes = local_binary_pattern(_grey_levels(stain, HEMATOXYLIN_RANGE, 256), P=8, R=1, method="uniform").astype(int)
    inner = codes[1:-1, 1:-1]
    return list(np.bincount(inner.ravel(), minlength=10) / inner.size)


def _coherence(stain: np.ndarray) -> list[float]:
    """Return how parallel the edges are, from 0 (no direction) to 1 (fibres), around each pixel and over the patch."""
    from skimage.feature import structure_tensor

    tensor = structure_tensor(stain, sigma=3)
    rr, rc, cc = (t[3:-3, 3:-3] for t in tensor)
    local = np.hypot(rr - cc, 2 * rc) / (rr + cc + 1e-7)
    rr, rc, cc = rr.mean(), rc.mean(), cc.mean()
    return [local.mean(), np.hypot(rr - cc, 2 * rc) / (rr + cc + 1e-7)]


def _nuclei(hematoxylin: np.ndarray, eosin: np.ndarray) -> list[float]:
    from scipy.spatial import cKDTree
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu

    smooth = gaussian(hematoxylin, 1.5)
    inside = smooth > np.clip(threshold_otsu(smooth), *NUCLEUS_LIMITS)
    clumps = _clumps(inside, hematoxylin, eosin)
    shape = np.column_stack([clumps.mean(axis=0), clumps.std(axis=0)]).ravel() if len(clumps) else np.zeros(8)
    # Touching nuclei form one clump but keep a peak each.
    peaks = peak_local_max(gaussian(hematoxylin, 3), min_distance=5, labels=inside.astype(int), exclude_border=False)
    spacing = cKDTree(peaks).query(peaks, k=2)[0][:, 1] if len(peaks) > 1 else np.array([float(SIZE)])
    contrast = hematoxylin[inside].mean() - hematoxylin[~inside].mean() if 0 < inside.mean() < 1 else 0.0
    return [len(peaks), inside.mean(), len(clumps), *shape, contrast, spacing.mean(), spacing.std()]


def _clumps(inside: np.ndarray, hematoxylin: np.ndarray, eosin: np.ndarray) -> np.ndarray:
    """Return area, eccentricity, mean haematoxylin and mean eosin of each connected piece."""
    from scipy.ndimage import label

    labels, n = label(inside)
    row, col = np.nonzero(inside)
    piece = labels[row, col] - 1
    area = np.bincount(piece, minlength=n)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(piece, values, minlength=n) / np.maximum(area, 1)

    r, c = row - mean(row)[piece], col - mean(col)[piece]
    # A pixel is a square, not a point: it adds 1/12 to the variance.
    rr, cc, rc = mean(r * r) + 1 / 12, mean(c * c) + 1 / 12, mean(r * c)
    half, spread = (rr + cc) / 2, np.hypot((rr - cc) / 2, rc)
    eccentricity = np.sqrt(2 * spread / (half + spread))
    table = np.column_stack([area, eccentricity, mean(hematoxylin[inside]), mean(eosin[inside])])
    return table[area >= MIN_NUCLEUS_PX]
