"""Tissue masks and stain normalisation of H&E images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strecur._anndata import find_library_key, open_table, read_sections
from strecur._arguments import as_names
from strecur.pp.image.sources import find_images

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import ArrayLike
    from spatialdata import SpatialData

TYPICAL_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
"""Optical density of haematoxylin and eosin in red, green and blue (Ruifrok and Johnston 2001)."""

MIN_DENSITY = 0.15
"""Pixels of lower optical density carry little information on a stain (Macenko et al. 2009)."""

BLACK = 25
"""Pixels darker than this in all channels are not tissue: masks are black, and the hue of black is noise."""

MIN_STAINED, MAX_SAMPLE = 100, 100_000
"""Smallest number of stained pixels of a thumbnail, and about the largest that is used."""


def tissue_mask(rgb: np.ndarray) -> np.ndarray:
    """Find tissue by colour: Otsu's threshold on saturation, specks removed and small holes filled.

    Parameters
    ----------
    rgb
        Thumbnail of a section, uint8.

    Returns
    -------
    Boolean mask, rows × columns.
    """
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    brightest = rgb.max(axis=-1).astype(np.float32)
    saturation = 1 - rgb.min(axis=-1) / np.maximum(brightest, 1)
    saturation[brightest < BLACK] = 0
    saturation = gaussian(saturation, 1)
    # The limits matter for images that are all glass or all tissue.
    threshold = np.clip(threshold_otsu(saturation), 0.05, 0.25)
    speck = max(1, rgb.shape[0] * rgb.shape[1] // 20_000)
    return remove_small_holes(remove_small_objects(saturation > threshold, max_size=speck), max_size=speck)


def white_point(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the colour of the empty slide: the median outside the tissue, or the brightest colour if there is none."""
    background = rgb[~mask & (rgb.mean(axis=-1) > 128)]
    if len(background) < 0.005 * mask.size:
        return np.percentile(rgb.reshape(-1, 3), 99, axis=0)
    return np.median(background, axis=0)


def optical_density(rgb: np.ndarray, white: np.ndarray) -> np.ndarray:
    """Return -log10 of the transmitted light, per channel."""
    return -np.log10((rgb.astype(np.float32) + 1) / (np.asarray(white, dtype=np.float32) + 1))


def stained_pixels(rgb: np.ndarray, *, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the optical density of about 100,000 stained pixels of a thumbnail, and the white point."""
    mask = tissue_mask(rgb)
    white = white_point(rgb, mask)
    density = optical_density(rgb[mask], white)
    density = density[density.mean(axis=1) > MIN_DENSITY]
    if len(density) < MIN_STAINED:
        msg = f"{label} has too few stained pixels ({len(density)}); leave out the section, or stain_reference"
        raise ValueError(msg)
    return density[:: max(1, len(density) // MAX_SAMPLE)], white


def fit_stains(density: np.ndarray, *, label: str) -> dict[str, list]:
    """Find the two stains of H&E by the extreme directions in the plane of optical densities (Macenko et al. 2009).

    Parameters
    ----------
    density
        Optical densities, pixels × 3.
    label
        Name of the image in messages.

    Returns
    -------
    ``stains`` (haematoxylin and eosin, unit vectors) and ``strength`` (99th percentile of their concentrations).
    """
    _, vectors = np.linalg.eigh(density.T @ density)
    plane = vectors[:, [2, 1]] * np.sign(density.mean(axis=0) @ vectors[:, [2, 1]])
    angle = np.arctan2(*(density @ plane).T[::-1])
    extremes = np.percentile(angle, [1, 99])
    stains = np.column_stack([np.cos(extremes), np.sin(extremes)]) @ plane.T
    if stains[0] @ (TYPICAL_STAINS[0] - TYPICAL_STAINS[1]) < stains[1] @ (TYPICAL_STAINS[0] - TYPICAL_STAINS[1]):
        stains = stains[::-1]
    typical = TYPICAL_STAINS / np.linalg.norm(TYPICAL_STAINS, axis=1, keepdims=True)
    deviation = np.degrees(np.arccos(np.clip((stains * typical).sum(axis=1), -1, 1)))
    apart = np.degrees(np.ptp(extremes))
    if deviation.max() > 50 or apart < 3:
        msg = (
            f"{label} does not look like H&E: its two stains lie {apart:.0f} degrees apart and deviate by "
            f"{deviation.round().tolist()} degrees from haematoxylin and eosin; leave out stain_reference"
        )
        raise ValueError(msg)
    concentration = np.linalg.lstsq(stains.T, density.T, rcond=None)[0]
    strength = np.maximum(np.percentile(concentration, 99, axis=1), 0.01)
    return {"stains": stains.tolist(), "strength": strength.tolist()}


def fit_stain_reference(
    adata: AnnData | SpatialData,
    image: object = None,
    *,
    library_key: str | None = None,
    sections: Sequence[str] | None = None,
    table_key: str | None = None,
) -> dict[str, object]:
    """Fit the stain colours of the training sections, for :func:`~strecur.pp.embed_patches` of all sections.

    The two stains are fitted to all sections together, each section relative to its own white point (Macenko et al.
    2009). Fit on the training sections only, so that the stain of a test section does not reach the model.

    Parameters
    ----------
    adata
        Spots of one or several sections.
    image
        Image of each section as in :func:`~strecur.pp.embed_patches`.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`; without either, all spots are one section.
    sections
        Sections to fit on. If ``None`` (default), all.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    Dictionary of plain numbers and strings, which ``json.dump`` can save: ``method``, ``stains`` (2 × 3 unit vectors of
    optical density), ``strength`` (2), ``white`` (3) and ``sections``.

    Raises
    ------
    KeyError
        If a section is unknown or has no image.
    ValueError
        If an image has no tissue or does not look like H&E.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> reference = st.pp.fit_stain_reference(adata, library_key="section", sections=["S1"])
    >>> reference["sections"]
    ['S1']
    """
    table = open_table(adata, table_key=table_key)
    sources = find_images(
        adata, table, image, read_sections(table, find_library_key(table, library_key)), image_scale=1.0
    )
    names = list(sources) if sections is None else as_names("sections", sections)
    if not names:
        msg = f"sections is empty; choose some of {list(sources)}, or leave it out"
        raise ValueError(msg)
    missing = sorted(set(names) - set(sources))
    if missing:
        msg = f"no image for the sections {missing}; there are images for {list(sources)}"
        raise KeyError(msg)
    fits = []
    for name in names:
        with closing(sources[name].open()) as opened:
            fits.append(stained_pixels(opened.thumbnail(), label=f"the image of section {name!r}"))
    smallest = min(len(density) for density, _ in fits)
    # Every section has the same weight, however large its tissue is.
    pooled = np.concatenate([density[:: len(density) // smallest] for density, _ in fits])
    reference = fit_stains(pooled, label=f"the stain reference of {names}")
    white = np.mean([white for _, white in fits], axis=0)
    return {"method": "macenko", **reference, "white": white.tolist(), "sections": names}


def read_stain_reference(reference: Mapping | str | Path) -> dict[str, Any]:
    """Return a stain reference given as a dictionary or as a JSON file, with its numbers as plain lists."""
    if isinstance(reference, Mapping):
        values = dict(reference)
    else:
        path = Path(reference)
        if not path.is_file():
            msg = f"stain_reference: the file {path} does not exist"
            raise FileNotFoundError(msg)
        values = json.loads(path.read_text())
    missing = {"method", "stains", "strength", "white"} - set(values)
    if missing or values["method"] != "macenko":
        msg = f"stain_reference is not one of strecur.pp.fit_stain_reference (keys {sorted(values)})"
        raise ValueError(msg)
    return {k: np.asarray(v).tolist() if k != "method" else v for k, v in values.items()}


class StainNormalizer:
    """Map the stains of one section to those of a reference, linearly in optical density; white stays white."""

    def __init__(self, thumbnail: np.ndarray, reference: Mapping, *, label: str) -> None:
        density, white = stained_pixels(thumbnail, label=label)
        own = fit_stains(density, label=label)
        gain = np.append(np.asarray(reference["strength"]) / own["strength"], 1.0)
        from_own = np.linalg.inv(with_residual(own["stains"]))
        self.operator = (with_residual(reference["stains"]) * gain @ from_own).astype(np.float32)
        self.density = optical_density(np.repeat(np.arange(256)[:, None], 3, axis=1), white)
        self.white = np.asarray(reference["white"], dtype=np.float32)

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        """Normalise patches, ... × 3 uint8."""
        density = np.stack([self.density[patches[..., c], c] for c in range(3)], axis=-1)
        light = (self.white + 1) * np.float32(10) ** -(density @ self.operator.T) - 1
        return np.clip(np.rint(light), 0, 255).astype(np.uint8)


def with_residual(stains: ArrayLike) -> np.ndarray:
    """Return the two stains as columns, with the direction orthogonal to both as the third."""
    first, second = np.asarray(stains, dtype=float)
    residual = np.cross(first, second)
    return np.column_stack([first, second, residual / np.linalg.norm(residual)])
