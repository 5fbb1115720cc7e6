"""Shape of a synthetic section: positions of its sites, their tissue mask and their depth below the surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

MARGIN = 2.0
"""White border of the section in pitches."""

FIELD_STEPS = 4
"""Samples of a field per pitch."""

LOST = 0.01
"""Share of sites on tissue without a spot."""

ROW_HEIGHT = {"hex": np.sqrt(3) / 2, "square": 1.0, "irregular": 1.0}
"""Distance of neighbouring rows in pitches."""


@dataclass(frozen=True)
class Field:
    """A smooth random field of zero mean and unit variance over the section and its margin."""

    values: np.ndarray

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """Sample at positions (x, y) in pitches, spots × 2."""
        return ndimage.map_coordinates(self.values, (xy.T[::-1] + MARGIN) * FIELD_STEPS, order=1, mode="nearest")


@dataclass(frozen=True)
class Anatomy:
    """Shape of one section in pitches, with functions of positions (x, y), spots × 2.

    Attributes
    ----------
    extent
        Width and height of the sites.
    inward
        Unit vector from the surface to the deepest layer.
    bend
        Curvature of the layers, in 1 / pitch.
    ripple, outline, cellularity
        Fields that warp the layers, roughen the edges of the tissue, and set the density of cells.
    holes
        x, y and radius of each hole.
    thickness
        Share of the tissue in each layer, from the surface down.
    """

    extent: np.ndarray
    inward: np.ndarray
    bend: float
    ripple: Field
    outline: Field
    cellularity: Field
    holes: np.ndarray
    thickness: np.ndarray

    def depth(self, xy: np.ndarray) -> np.ndarray:
        """Return the depth below the surface; only its order matters, since layers are quantiles of the depth."""
        offset = xy - self.extent / 2
        along, across = offset @ self.inward, offset @ (self.inward[::-1] * (1, -1))
        return along + self.bend / 2 * across**2 + self.ripple(xy)

    def in_tissue(self, xy: np.ndarray) -> np.ndarray:
        """Tell where there is tissue: a rounded rectangle with a rough edge and holes."""
        roughness = self.outline(xy)
        offset = np.abs(xy - self.extent / 2) / (self.extent / 2)
        inside = np.sum(offset**3, axis=1) ** (1 / 3) < 0.93 + 0.05 * roughness
        for x, y, radius in self.holes:
            inside &= np.hypot(xy[:, 0] - x, xy[:, 1] - y) > radius * (1 + 0.3 * np.clip(roughness, -1, 1))
        return inside


def draw_positions(rng: np.random.Generator, size: tuple[int, int], layout: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw array coordinates (row, col) and positions (x, y) in pitches of every site; irregular cells are jittered."""
    row, col = (index.ravel() for index in np.indices(size))
    x, y = col.astype(float), row * ROW_HEIGHT[layout]
    if layout == "hex":
        col = 2 * col + row % 2
        x = col / 2
    xy = np.column_stack([x, y])
    if layout == "irregular":
        # Less than half a pitch, so that no two cells coincide.
        xy += rng.uniform(-0.45, 0.45, xy.shape)
    return np.column_stack([row, col]), xy


def draw_anatomy(rng: np.random.Generator, extent: np.ndarray, n_domains: int) -> Anatomy:
    """Draw the shape of a section whose sites span ``extent`` (width and height in pitches)."""
    angle = rng.uniform(-0.5, 0.5)
    thickness = rng.uniform(0.7, 1.4, n_domains)
    return Anatomy(
        extent=extent,
        inward=np.array([np.sin(angle), np.cos(angle)]),
        bend=rng.uniform(-1.0, 1.0) / extent.min(),
        ripple=draw_field(rng, extent, 4.0),
        outline=draw_field(rng, extent, 2.0),
        cellularity=draw_field(rng, extent, 2.0),
        holes=_draw_holes(rng, extent),
        thickness=thickness / thickness.sum(),
    )


def draw_field(rng: np.random.Generator, extent: np.ndarray, scale: float) -> Field:
    """Draw a field that varies over ``scale`` pitches."""
    shape = np.ceil((extent[::-1] + 2 * MARGIN) * FIELD_STEPS).astype(int) + 1
    values = ndimage.gaussian_filter(rng.normal(size=shape), scale * FIELD_STEPS)
    return Field((values - values.mean()) / values.std())


def _draw_holes(rng: np.random.Generator, extent: np.ndarray) -> np.ndarray:
    """Draw two to four holes well inside the outline, as x, y and radius."""
    n = int(rng.integers(2, 5))
    angle, distance = rng.uniform(0, 2 * np.pi, n), 0.55 * np.sqrt(rng.uniform(size=n))
    centre = extent / 2 * (1 + distance[:, None] * np.column_stack([np.cos(angle), np.sin(angle)]))
    # At least one site is lost, whatever the roughness; large sections have larger holes.
    return np.column_stack([centre, rng.uniform(1.1, max(1.3, 0.07 * extent.min()), n)])
