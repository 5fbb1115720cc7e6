"""Sites of the spots of one section, and of all sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from strecur._anndata import Sections


@dataclass(frozen=True)
class Placement:
    """Sites (row, col) of one section's spots, their pitch, and how far each spot is from its site, in pitches."""

    sites: np.ndarray
    pitch: float
    displacement: np.ndarray


@dataclass(frozen=True)
class GridFit:
    """Sites of all spots, the layout, its source, and a table of the geometry of each section."""

    sites: np.ndarray
    layout: str
    source: str
    sections: pd.DataFrame


def collect(
    placements: list[Placement], rows: list[np.ndarray], sections: Sections, *, layout: str, source: str
) -> GridFit:
    """Join the placements of all sections, whose spots are ``rows`` of the object."""
    sites = np.empty((len(sections.codes), 2), dtype=np.int64)
    for r, placement in zip(rows, placements, strict=True):
        sites[r] = placement.sites
    table = pd.DataFrame(
        {
            "n_spots": [len(p.sites) for p in placements],
            "spacing": [p.pitch for p in placements],
            "mean_displacement": [float(np.mean(p.displacement)) for p in placements],
            "max_displacement": [float(np.max(p.displacement)) for p in placements],
        },
        index=pd.Index(sections.names, name="section"),
    )
    return GridFit(sites, layout, source, table)


def site_ids(sites: np.ndarray) -> np.ndarray:
    """Number the sites of the bounding box row by row."""
    low, high = sites.min(axis=0), sites.max(axis=0)
    return (sites[:, 0] - low[0]) * (high[1] - low[1] + 1) + sites[:, 1] - low[1]
