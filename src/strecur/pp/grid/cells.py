"""Irregular cells: one site of a fine square grid for each cell."""

from __future__ import annotations

from itertools import count
from math import floor, inf

import numpy as np
from scipy.spatial import cKDTree

from strecur.pp.grid.placement import Placement, site_ids


def place_cells(xy: np.ndarray, *, cells_per_pitch: float) -> Placement:
    """Assign each cell its own site of a fine square grid.

    The cell closest to a site takes it; the others, closest first, take the nearest free site.

    Parameters
    ----------
    xy
        Coordinates, cells × 2, sorted; cells that share them get neighbouring sites.
    cells_per_pitch
        Sites per typical distance between cells.

    Returns
    -------
    The placement; rows follow y, columns follow x.
    """
    pitch = local_pitch(np.unique(xy, axis=0))
    if len(xy) == 1:
        return Placement(np.zeros((1, 2), dtype=np.int64), pitch, np.zeros(1))
    scale = 1.0 if np.isnan(pitch) else cells_per_pitch / pitch  # all cells may share one place
    # Steps of 1e-6 sites make ties exact, whatever was added to the coordinates.
    position = np.round((xy - xy.min(axis=0))[:, ::-1] * scale, 6)
    sites = np.floor(position + 0.5).astype(np.int64)
    miss = np.round(np.linalg.norm(position - sites, axis=1), 6)
    closest_first = np.argsort(miss, kind="stable")
    first = np.unique(site_ids(sites)[closest_first], return_index=True)[1]
    waiting = np.delete(closest_first, first)
    sites[waiting] = _nearest_free_sites(position[waiting], sites[closest_first[first]])
    miss = np.linalg.norm(position - sites, axis=1) / cells_per_pitch
    return Placement(sites - sites.min(axis=0), pitch, miss)


def local_pitch(xy: np.ndarray, *, k: int = 18) -> float:
    """Return the spacing of a square grid with the typical density of the cells."""
    if len(xy) == 1:
        return np.nan
    k = min(k, len(xy) - 1)
    radius = cKDTree(xy).query(xy, k=[k + 1])[0][:, 0]
    return float(np.sqrt(np.median(np.pi * radius**2 / k)))


def _nearest_free_sites(positions: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Assign each position (row, col) in turn the nearest free site, by Euclidean distance."""
    # Sites are numbered row by row, in rows wide enough that the search never leaves one. A taken site points to its
    # neighbour, so that following pointers leads to the next free site on the left or right.
    width = int(taken[:, 1].max()) + 4 * (len(positions) + len(taken))
    ids = (taken[:, 0] * width + taken[:, 1]).tolist()
    left = {site: site - 1 for site in ids}
    right = {site: site + 1 for site in ids}
    chosen = np.empty((len(positions), 2), dtype=np.int64)
    for i, (y, x) in enumerate(positions.tolist()):
        home_row, home_col = floor(y + 0.5), floor(x + 0.5)
        best_distance = inf
        for rows_away in count():
            if rows_away > 0 and (rows_away - 0.5) ** 2 >= best_distance:
                break
            for row in (home_row - rows_away, home_row + rows_away):
                start = row * width
                for pointers in (left, right):
                    col = _follow(pointers, start + home_col) - start
                    distance = (row - y) ** 2 + (col - x) ** 2
                    if distance < best_distance:
                        best_distance, best = distance, (row, col)
        chosen[i] = best
        site = best[0] * width + best[1]
        left[site] = site - 1
        right[site] = site + 1
    return chosen


def _follow(pointers: dict[int, int], site: int) -> int:
    """Return the free site at the end of the pointers, and shorten the path for the next search (path compression)."""
    end = site
    while end in pointers:
        end = pointers[end]
    while site != end:
        pointers[site], site = end, pointers[site]
    return end
