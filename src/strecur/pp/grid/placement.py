"""Spots of one section, their sites, and those of all sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from strecur._anndata import Sections

MIN_SPOTS = 8
"""With fewer spots, a lattice cannot be told from chance."""


@dataclass(frozen=True)
class SectionSpots:
    """What is known of the spots of one section before they have sites.

    Attributes
    ----------
    name
        Name of the section.
    rows
        Positions of its spots in the object. Those with coordinates are sorted by them, so that the result does not
        depend on the order of the object.
    array
        Array coordinates (row, col), spots × 2 int64, or ``None``.
    xy
        Coordinates, spots × 2; NaN if they are not known or say nothing about the lattice.
    """

    name: str
    rows: np.ndarray
    array: np.ndarray | None
    xy: np.ndarray

    @property
    def source(self) -> str:
        """Where the sites come from."""
        return "coordinates" if self.array is None else "array"


@dataclass(frozen=True)
class Placement:
    """Sites (row, col) of one section's spots, their pitch, and how far each spot is from its site, in pitches."""

    sites: np.ndarray
    pitch: float
    displacement: np.ndarray


@dataclass(frozen=True)
class GridFit:
    """Sites of all spots, the layout, and a table of the geometry of each section with the source of its sites."""

    sites: np.ndarray
    layout: str
    sections: pd.DataFrame

    @property
    def source(self) -> str:
        """Where the sites come from: ``"array"``, ``"coordinates"``, or ``"both"`` for sections of either."""
        sources = self.sections["source"].unique()
        return str(sources[0]) if len(sources) == 1 else "both"


def collect(placements: list[Placement], parts: list[SectionSpots], sections: Sections, *, layout: str) -> GridFit:
    """Join the placements of all sections."""
    sites = np.empty((len(sections.codes), 2), dtype=np.int64)
    for part, placement in zip(parts, placements, strict=True):
        sites[part.rows] = placement.sites
    table = pd.DataFrame(
        {
            "n_spots": [len(p.sites) for p in placements],
            "spacing": [p.pitch for p in placements],
            "mean_displacement": [float(np.mean(p.displacement)) for p in placements],
            "max_displacement": [float(np.max(p.displacement)) for p in placements],
            "source": [part.source for part in parts],
        },
        index=pd.Index(sections.names, name="section"),
    )
    return GridFit(sites, layout, table)


def site_ids(sites: np.ndarray) -> np.ndarray:
    """Number the sites of the bounding box row by row."""
    low, high = sites.min(axis=0), sites.max(axis=0)
    return (sites[:, 0] - low[0]) * (high[1] - low[1] + 1) + sites[:, 1] - low[1]


def share_with_neighbours(sites: np.ndarray) -> float:
    """Return the share of spots with another one on a neighbouring site; 1 where there are too few spots to tell."""
    if len(sites) < MIN_SPOTS:
        return 1.0
    # the farthest neighbours are those in a row of a hex lattice, 2 columns apart
    return float(np.mean(cKDTree(sites).query(sites, k=2)[0][:, 1] <= 2))
