"""Cells of spots, and outlines of domains: the cells of their spots, dissolved."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur.pp.grid.cells import local_pitch

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

STEPS = {
    "hex": np.array([[0, 2], [0, -2], [1, 1], [1, -1], [-1, 1], [-1, -1]]),
    "square": np.array([[0, 1], [0, -1], [1, 0], [-1, 0]]),
    "staggered": np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]),
}
"""Lattice steps to the sites that share a side of the cell of a spot."""

FAR = 10.0
PRECISION = 1e-6


def dissolve(xy: np.ndarray, sites: np.ndarray, labels: pd.Series, *, layout: str) -> dict[str, BaseGeometry]:
    """Return the outline of each label: the union of the cells of its spots.

    Spots without label take part and are in no outline.
    """
    import shapely

    rows, cells, spacing = spot_cells(xy, sites, layout=layout)
    labels = labels.iloc[rows]
    return {
        str(label): shapely.union_all(cells[np.asarray(labels == label)], grid_size=PRECISION * spacing)
        for label in labels.dropna().unique()
    }


def spot_cells(xy: np.ndarray, sites: np.ndarray, *, layout: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the Voronoi cells of spots: positions of the spots that have one, their polygons, and the spacing.

    On a lattice, empty sites take part, so that each spot has one hexagon or square. Cells of an irregular layout reach
    as far as the typical distance between spots. Of several spots at one place the first counts.
    """
    import shapely

    finite = np.flatnonzero(np.isfinite(xy).all(axis=1))
    kept = finite[np.sort(np.unique(xy[finite], axis=0, return_index=True)[1])]
    spacing = local_pitch(xy[kept]) if len(kept) > 1 else 1.0
    xy, sites = xy[kept], sites[kept]
    steps = _steps(sites, layout)
    cells = _voronoi_cells(xy, np.empty((0, 2)) if steps is None else _empty_sites(xy, sites, steps))
    if steps is None:
        cells = shapely.intersection(cells, shapely.buffer(shapely.points(xy), spacing))
    return kept, cells, spacing


def _steps(sites: np.ndarray, layout: str) -> np.ndarray | None:
    """Return the steps of a lattice; ``None`` for irregular cells and for spots on one line."""
    if layout == "irregular" or np.linalg.matrix_rank(sites - sites.mean(axis=0)) < 2:
        return None
    staggered = layout == "square" and len(np.unique(sites.sum(axis=1) % 2)) == 1
    return STEPS["staggered" if staggered else layout]


def _empty_sites(xy: np.ndarray, sites: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the coordinates of the sites without spot next to those with one."""
    centred = sites - sites.mean(axis=0)
    step_xy = steps @ np.linalg.lstsq(centred, xy - xy.mean(axis=0), rcond=None)[0]
    beside = pd.DataFrame((sites[:, None] + steps).reshape(-1, 2), columns=["row", "col"])
    beside[["x", "y"]] = (xy[:, None] + step_xy).reshape(-1, 2)
    taken = pd.MultiIndex.from_arrays(sites.T)
    free = ~pd.MultiIndex.from_frame(beside[["row", "col"]]).isin(taken)
    return beside[free].groupby(["row", "col"])[["x", "y"]].mean().to_numpy()


def _voronoi_cells(xy: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the Voronoi cell of each point of ``xy`` among all points, as an array of polygons."""
    import shapely
    from scipy.spatial import Voronoi

    points = np.vstack([xy, others])
    centre = points.mean(axis=0)
    away = FAR * max(np.ptp(points, axis=0).max(), 1.0)
    # Four points far away close the cells on the outside.
    corners = away * np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
    diagram = Voronoi(np.vstack([points - centre, corners]))
    regions = [diagram.regions[diagram.point_region[i]] for i in range(len(xy))]
    vertex = np.concatenate(regions).astype(np.int64)
    cell = np.repeat(np.arange(len(xy)), [len(region) for region in regions])
    return shapely.convex_hull(shapely.multipoints(shapely.points(diagram.vertices[vertex] + centre), indices=cell))
