"""Lattices from array coordinates, ``obs["array_row"]`` and ``obs["array_col"]``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from strecur._anndata import logger
from strecur.pp.grid.lattice import MIN_SPOTS
from strecur.pp.grid.placement import GridFit, Placement, collect

if TYPE_CHECKING:
    from anndata import AnnData

    from strecur._anndata import Sections

HEX_ASPECT = 1.3
"""Rows of a doubled-column hex lattice are sqrt(3) times as far apart as columns, those of a turned square 1 time."""


def read_array_coordinates(adata: AnnData) -> np.ndarray | None:
    """Return integer (row, col) from ``array_row`` and ``array_col``, or ``None`` if absent or not integers."""
    if not {"array_row", "array_col"} <= set(adata.obs.columns):
        return None
    columns = [pd.to_numeric(adata.obs[c].astype(object), errors="coerce") for c in ("array_row", "array_col")]
    sites = np.column_stack(columns).astype(float)
    if np.isnan(sites).any() or np.abs(sites - np.rint(sites)).max() > 1e-6:
        logger.warning("obs['array_row'] and obs['array_col'] are not all integers and are ignored")
        return None
    return np.rint(sites).astype(np.int64)


def from_array(array: np.ndarray, xy: np.ndarray | None, sections: Sections, *, layout: str) -> GridFit:
    """Keep array coordinates; spot coordinates are used to tell the layout and to measure the spacing."""
    xy = np.full(array.shape, np.nan) if xy is None else xy
    rows = [sections.rows(name) for name in sections.names]
    fits = [_fit_affine(array[r], xy[r]) for r in rows]
    staggered = all(len(np.unique(array[r].sum(axis=1) % 2)) == 1 for r in rows)
    found = _array_layout(staggered=staggered, n_spots=len(array), aspect=_aspect(fits))
    if layout not in ("auto", found) and not (layout == "hex" and staggered):
        why = "row + col has one parity" if found == "hex" else "row + col has both parities in a section"
        msg = (
            f"layout={layout!r} does not fit obs['array_row'] and obs['array_col']: {why}, as on a {found} lattice. "
            "Leave layout out, or remove these columns to use the coordinates of the spots"
        )
        raise ValueError(msg)
    layout = found if layout == "auto" else layout
    placements = [
        _measure(array[r], xy[r], fit, layout, staggered=staggered) for r, fit in zip(rows, fits, strict=True)
    ]
    return collect(placements, rows, sections, layout=layout, source="array")


def _array_layout(*, staggered: bool, n_spots: int, aspect: float) -> str:
    """Tell hex from square; staggered rows may also be a square lattice turned by 45 degrees."""
    if not staggered:
        return "square"
    if np.isfinite(aspect):
        return "hex" if aspect > HEX_ASPECT else "square"
    return "hex" if n_spots >= MIN_SPOTS else "square"


def _fit_affine(array: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return the steps (x, y) of one row and of one column by least squares; NaN where spots do not span a plane."""
    known = np.isfinite(xy).all(axis=1)
    if np.linalg.matrix_rank(array[known] - array[known].mean(axis=0) if known.any() else np.zeros((1, 2))) < 2:
        return np.full((2, 2), np.nan)
    return np.linalg.lstsq(array[known] - array[known].mean(axis=0), xy[known] - xy[known].mean(axis=0), rcond=None)[0]


def _aspect(fits: list[np.ndarray]) -> float:
    """Return the distance of rows over that of columns, the median over sections where it is known."""
    ratios = [
        np.linalg.norm(fit[0]) / np.linalg.norm(fit[1]) for fit in fits if np.isfinite(fit).all() and fit[1].any()
    ]
    return float(np.median(ratios)) if ratios else np.nan


def _measure(array: np.ndarray, xy: np.ndarray, fit: np.ndarray, layout: str, *, staggered: bool) -> Placement:
    """Measure the spacing, and how far spots lie from their sites under the best affine map of the array."""
    if layout == "hex":
        steps = np.array([[0, 2], [1, 1], [1, -1]])
    else:
        steps = np.array([[1, 1], [1, -1]] if staggered else [[1, 0], [0, 1]])
    pitch = float(np.linalg.norm(steps @ fit, axis=1).mean())
    known = np.isfinite(xy).all(axis=1)
    if np.isnan(pitch) and known.sum() > 1:  # spots on one line
        pitch = float(np.median(cKDTree(xy[known]).query(xy[known], k=2)[0][:, 1]))
    centre = (xy[known] - array[known] @ fit).mean(axis=0) if known.any() else np.full(2, np.nan)
    return Placement(array, pitch, np.linalg.norm(xy - array @ fit - centre, axis=1) / pitch)
