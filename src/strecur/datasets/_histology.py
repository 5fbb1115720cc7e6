"""H&E-like images of synthetic sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from strecur.datasets._anatomy import Anatomy

STAINS = np.array([[0.56, 0.72, 0.41], [0.22, 0.80, 0.56]])
"""Optical density of haematoxylin and eosin in red, green and blue, as on many slides (Macenko et al. 2009)."""

# Values of the first domains; further domains repeat them.
NUCLEI = (8.0, 30.0, 18.0, 40.0, 13.0)
"""Nuclei per squared pitch."""

EOSIN = (0.16, 0.20, 0.24, 0.20, 0.30)
"""Optical density of the tissue between nuclei."""

CELLULARITY_EFFECT = 0.45
"""Log change of the number of nuclei per standard deviation of the cellularity."""

RADII = (0.025, 0.034, 0.045)
"""Standard deviations of the blurred nuclei, in pitches."""

GLASS = 0.008
"""Optical density of the empty slide."""


def draw_histology(
    rng: np.random.Generator, anatomy: Anatomy, borders: np.ndarray, pixels_per_pitch: float, margin: float
) -> np.ndarray:
    """Draw pink tissue with purple nuclei on a white slide.

    Parameters
    ----------
    rng
        Generator for the nuclei, the grain and the strength of the stains.
    anatomy
        Shape of the section.
    borders
        Depth at which each layer except the last one ends.
    pixels_per_pitch
        Resolution.
    margin
        Width of the slide around the sites, in pitches.

    Returns
    -------
    RGB image, uint8, height × width × 3.
    """
    width, height = np.ceil((anatomy.extent + 2 * margin) * pixels_per_pitch).astype(int)
    y, x = (index.ravel() for index in np.indices((height, width)))
    xy = (np.column_stack([x, y]) + 0.5) / pixels_per_pitch - margin
    tissue = anatomy.in_tissue(xy)
    domain = np.digitize(anatomy.depth(xy), borders)
    per_pitch = np.resize(NUCLEI, len(borders) + 1)[domain] * np.exp(CELLULARITY_EFFECT * anatomy.cellularity(xy))
    nuclei = _draw_nuclei(rng, (tissue * per_pitch / pixels_per_pitch**2).reshape(height, width), pixels_per_pitch)

    edge = ndimage.gaussian_filter(tissue.reshape(height, width).astype(float), 0.04 * pixels_per_pitch)
    eosin = np.resize(EOSIN, len(borders) + 1)[domain].reshape(height, width)
    eosin = (
        edge * ndimage.gaussian_filter(eosin, 0.3 * pixels_per_pitch) * _grain(rng, (height, width), pixels_per_pitch)
    )
    strength = rng.uniform(0.85, 1.15, 2)
    stains = strength * np.stack([nuclei + 0.12 * eosin, eosin * (1 - 0.5 * np.clip(nuclei, 0, 1))], axis=-1)
    light = 10 ** -(stains @ STAINS + GLASS)
    return np.clip(255 * light + rng.normal(0, 1.5, light.shape), 0, 255).astype(np.uint8)


def _draw_nuclei(rng: np.random.Generator, expected: np.ndarray, pixels_per_pitch: float) -> np.ndarray:
    """Draw the optical density of haematoxylin, given the expected number of nuclei in each pixel."""
    density = np.zeros(expected.shape)
    for radius in RADII:
        sigma = radius * pixels_per_pitch
        centres = rng.poisson(expected / len(RADII)) * rng.uniform(0.5, 1.0, expected.shape)
        density += ndimage.gaussian_filter(centres, sigma) * 2 * np.pi * sigma**2
    return np.clip(density, 0, 1.2)


def _grain(rng: np.random.Generator, shape: tuple[int, int], pixels_per_pitch: float) -> np.ndarray:
    """Draw fibres and patches of the tissue, as factors around 1."""
    fibres = ndimage.gaussian_filter(rng.normal(size=shape), (0.03 * pixels_per_pitch, 0.2 * pixels_per_pitch))
    patches = ndimage.gaussian_filter(rng.normal(size=shape), 0.5 * pixels_per_pitch)
    return np.clip(1 + 0.1 * fibres / fibres.std() + 0.08 * patches / patches.std(), 0.3, 2)
