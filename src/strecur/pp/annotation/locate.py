"""Spots in polygons."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from strecur._anndata import logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from strecur.pp.annotation.polygons import Regions

# Annotation in the wrong unit covers another part of the plane than the section, annotation in the right one does not.
WRONG_UNIT, RIGHT_UNIT = 0.4, 0.6


class Located(NamedTuple):
    """Labels of spots, one row per spot and annotator; polygons without spots; number of spots with several labels."""

    votes: pd.DataFrame
    empty: list[tuple[str, str]]
    n_overlapping: int


def locate(regions: Regions, xy: np.ndarray, *, scale: float, known: Mapping[str, float], section: str) -> Located:
    """Return the label of every spot that lies in a polygon, for each annotator.

    Where polygons overlap, the smallest one counts, and among equally large ones the last. Spots on an outline are
    inside. ``known`` has the scales of other units, to tell whether one of them is the right one.
    """
    polygons = regions.polygons
    spot, polygon = _pairs(polygons, xy, scale)
    _check_unit(polygons, xy, scale=scale, known=known, section=section, n_inside=len(np.unique(spot)))
    found = pd.DataFrame({"row": spot, "polygon": polygon})
    found["label"] = polygons["label"].to_numpy()[polygon]
    found["annotator"] = polygons["annotator"].to_numpy()[polygon]
    found["area"] = np.array([geometry.area for geometry in polygons["geometry"]])[polygon]
    found = found.sort_values(["row", "area", "polygon"], ascending=[True, True, False])
    by_spot = found.groupby(["row", "annotator"], sort=False)["label"]
    empty = polygons["name"][~np.isin(np.arange(len(polygons)), polygon)]
    return Located(
        by_spot.first().reset_index(),
        [(name, "contains no spot") for name in empty],
        int((by_spot.nunique() > 1).groupby("row").any().sum()),
    )


def _pairs(polygons: pd.DataFrame, xy: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the spots that lie in polygons, and in which."""
    import shapely

    scaled = shapely.transform(polygons["geometry"].to_numpy(), lambda corners: corners * scale)
    known = np.flatnonzero(np.isfinite(xy).all(axis=1))
    polygon, spot = shapely.STRtree(shapely.points(xy[known])).query(scaled, predicate="intersects")
    return known[spot], polygon


def _check_unit(
    polygons: pd.DataFrame, xy: np.ndarray, *, scale: float, known: Mapping[str, float], section: str, n_inside: int
) -> None:
    """Raise if no spot lies in a polygon, and warn if the polygons are rather in another unit."""
    box, spots = _box(polygons), np.array([np.nanmin(xy, axis=0), np.nanmax(xy, axis=0)])
    spans = f"the polygons span {_span(box * scale)}, the spots {_span(spots)}"
    others = {"1": 1.0} | {repr(unit): factor for unit, factor in known.items()}
    others = {unit: factor for unit, factor in others.items() if factor != scale}
    overlap = {unit: _overlap(box * factor, spots) for unit, factor in others.items()}
    likely = max(overlap, key=lambda unit: overlap[unit], default="")
    fits = overlap.get(likely, 0.0) > RIGHT_UNIT
    if n_inside == 0:
        counts = {unit: len(np.unique(_pairs(polygons, xy, factor)[0])) for unit, factor in others.items()}
        likely = likely if fits else max(counts, key=lambda unit: counts[unit], default="")
        hint = "check that they belong to this section, and their unit (scale=...)"
        if counts.get(likely):
            hint = f"with scale={likely} {counts[likely]} spots would"
        msg = f"none of the {len(xy)} spots of section {section!r} lies in a polygon: {spans}; {hint}"
        raise ValueError(msg)
    if fits and _overlap(box * scale, spots) < WRONG_UNIT:
        logger.warning(
            "section %r: %s; with scale=%s they would cover the same area. Is the unit right?", section, spans, likely
        )


def _box(polygons: pd.DataFrame) -> np.ndarray:
    """Return the lower and the upper corner of the rectangle around all polygons."""
    import shapely

    return np.asarray(shapely.total_bounds(polygons["geometry"].to_numpy())).reshape(2, 2)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two rectangles."""
    inside = np.minimum(first[1], second[1]) - np.maximum(first[0], second[0])
    common = float(np.prod(np.maximum(inside, 0)))
    total = float(np.prod(first[1] - first[0]) + np.prod(second[1] - second[0])) - common
    return common / total if total > 0 else 0.0


def _span(box: np.ndarray) -> str:
    (x0, y0), (x1, y1) = box
    return f"x {x0:.4g} to {x1:.4g}, y {y0:.4g} to {y1:.4g}"


def near_other_labels(xy: np.ndarray, labels: np.ndarray, border: float) -> np.ndarray:
    """Return which spots have a spot of another label within ``border`` times the distance of neighbouring spots.

    A tenth is added, since coordinates of lattices are rounded. Spots without label do not count.
    """
    from scipy.spatial import cKDTree

    finite = np.flatnonzero(np.isfinite(xy).all(axis=1))
    near = np.zeros(len(xy), dtype=bool)
    if len(finite) < 2:
        return near
    spacing = np.median(cKDTree(xy[finite]).query(xy[finite], k=2)[0][:, 1])
    codes = pd.factorize(labels)[0]
    known = finite[codes[finite] >= 0]
    pairs = known[cKDTree(xy[known]).query_pairs(1.1 * border * spacing, output_type="ndarray")]
    near[pairs[codes[pairs[:, 0]] != codes[pairs[:, 1]]].ravel()] = True
    return near
