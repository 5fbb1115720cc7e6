"""Lattices from array coordinates, ``obs["array_row"]`` and ``obs["array_col"]``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from strecur._anndata import logger
from strecur.pp.grid.placement import MIN_SPOTS, Placement, SectionSpots, share_with_neighbours

if TYPE_CHECKING:
    from anndata import AnnData

HEX_ASPECT = 1.3
"""Rows of a doubled-column hex lattice are sqrt(3) times as far apart as columns, those of a turned square 1 time."""

FEW = 0.05
"""Share of the spots of a section that may contradict the others before its array coordinates mean something else."""

SURE, UNLIKELY = 50, 0.25
"""Number of spots from which a share of the less frequent parity between FEW and this one fits no lattice."""

SHIFTED = 0.5
"""Share of the misfit that remains where columns were counted in each row."""

ISOLATED = 0.1
"""With fewer spots that have a neighbour, whole numbers are pixels rather than positions of an array."""


def read_array_coordinates(adata: AnnData) -> np.ndarray | None:
    """Return (row, col) from ``array_row`` and ``array_col``, with NaN for what is no integer; ``None`` if absent."""
    if not {"array_row", "array_col"} <= set(adata.obs.columns):
        return None
    columns = [pd.to_numeric(adata.obs[c].astype(object), errors="coerce") for c in ("array_row", "array_col")]
    sites = np.column_stack(columns).astype(float)
    return np.where(np.abs(sites - np.rint(sites)) > 1e-6, np.nan, np.rint(sites))


def usable_array(name: str, array: np.ndarray, xy: np.ndarray) -> np.ndarray | None:
    """Return the array coordinates of a section as integers, or ``None`` if its sites follow from coordinates alone."""
    if not np.isfinite(array).all():
        logger.warning(
            "section %r: obs['array_row'] and obs['array_col'] are not all integers and are ignored there", name
        )
        return None
    if share_with_neighbours(array) < ISOLATED and np.isfinite(xy).all():
        logger.warning(
            "section %r: hardly a spot has a neighbour by obs['array_row'] and obs['array_col'], as if these were "
            "pixels; they are ignored there, and the coordinates of the spots are used",
            name,
        )
        return None
    odd = _odd_ones(array.astype(np.int64)).mean()
    if len(array) >= SURE and FEW < odd < UNLIKELY and np.isfinite(xy).all():
        logger.warning(
            "section %r: row + col has another parity in %.0f %% of the spots, as on no lattice; obs['array_row'] and "
            "obs['array_col'] are ignored there, and the coordinates of the spots are used",
            *(name, 100 * odd),
        )
        return None
    return array.astype(np.int64)


def doubled(part: SectionSpots) -> SectionSpots:
    """Double the columns of a hex lattice that are counted in each row: 0, 1, 2 instead of 0, 2, 4 and 1, 3, 5.

    In such an array, neighbouring rows are shifted by half a column, which the coordinates tell.
    """
    if part.array is None or len(part.array) < MIN_SPOTS or _odd_ones(part.array).mean() <= FEW:
        return part
    row, col = part.array.T
    candidates = [part.array, *(np.column_stack([row, 2 * col + (row + shift) % 2]) for shift in (0, 1))]
    misses = [_miss(array, part.xy) for array in candidates]
    best = int(np.argmin(misses))
    if not best or misses[best] > SHIFTED * misses[0] or _aspect(fit_affine(candidates[best], part.xy)) < HEX_ASPECT:
        return part
    logger.warning(
        "section %r: every second row is shifted by half a column, so obs['array_col'] counts the columns of each row; "
        "it is doubled, as Space Ranger does on a hex lattice",
        part.name,
    )
    return replace(part, array=candidates[best])


def _miss(array: np.ndarray, xy: np.ndarray) -> float:
    """Return how far spots lie from their array under the best affine map; infinite if there is none."""
    fit, known = fit_affine(array, xy), np.isfinite(xy).all(axis=1)
    if not np.isfinite(fit).all():
        return np.inf
    centred = array[known] - array[known].mean(axis=0)
    return float(np.linalg.norm(xy[known] - xy[known].mean(axis=0) - centred @ fit, axis=1).mean())


def are_array_positions(xy: np.ndarray) -> bool:
    """Return whether coordinates are those of a staggered array, columns 2 and rows 1 apart, instead of distances."""
    known = np.isfinite(xy).all(axis=1)
    if known.sum() < MIN_SPOTS or not np.array_equal(xy[known], np.rint(xy[known])):
        return False
    nearest = np.median(cKDTree(xy[known]).query(xy[known], k=2)[0][:, 1])
    return _odd_ones(xy[known].astype(np.int64)).mean() <= FEW and bool(np.isclose(nearest, np.sqrt(2)))


@dataclass(frozen=True)
class ArrayShape:
    """What array coordinates and coordinates of a section say together.

    Attributes
    ----------
    layout
        ``"hex"``, ``"square"``, or ``None`` if there are too few spots to tell.
    staggered
        Whether ``row + col`` has one parity, but for a few spots.
    odd_N
        Spots of the other parity, on a lattice that is staggered.
    swapped
        Whether rows and columns of a hex lattice are exchanged.
    """

    layout: str | None
    staggered: bool
    odd_N: np.ndarray
    swapped: bool = False


def describe_array(part: SectionSpots) -> ArrayShape:
    """Tell the layout of a section from the parity of its array, and from how far apart rows and columns are."""
    assert part.array is not None
    odd_N = _odd_ones(part.array)
    if odd_N.mean() > FEW:
        layout = "square" if len(odd_N) >= MIN_SPOTS else None
        return ArrayShape(layout, staggered=False, odd_N=np.zeros(len(odd_N), dtype=bool))
    aspect = _aspect(fit_affine(part.array[~odd_N], part.xy[~odd_N]))
    if not np.isfinite(aspect):
        return ArrayShape("hex" if len(odd_N) >= MIN_SPOTS else None, staggered=True, odd_N=odd_N)
    swapped = aspect < 1 / HEX_ASPECT
    layout = "hex" if swapped or aspect > HEX_ASPECT else "square"
    return ArrayShape(layout, staggered=True, odd_N=odd_N, swapped=swapped)


def without_array_as_coordinates(part: SectionSpots) -> SectionSpots:
    """Forget coordinates that are the array coordinates themselves: they say nothing about distances."""
    if part.array is None and are_array_positions(part.xy):
        logger.warning(
            "section %r: the coordinates are staggered whole numbers, as (array_col, array_row) on a hex lattice, and "
            "are read as such; pass layout='square' if they are distances",
            part.name,
        )
        return replace(part, array=part.xy[:, ::-1].astype(np.int64), xy=np.full(part.xy.shape, np.nan))
    if part.array is None or len(part.array) < MIN_SPOTS:
        return part
    steps = fit_affine(part.array, part.xy)
    staggered = _odd_ones(part.array).mean() <= FEW
    if not staggered or not np.isin(np.abs(np.round(steps, 6)), (0, 1)).all():
        return part
    logger.warning(
        "section %r: the coordinates of the spots are their array coordinates, not places on an image; the spacing is "
        "not known",
        part.name,
    )
    return replace(part, xy=np.full(part.xy.shape, np.nan))


def repaired(part: SectionSpots, shape: ArrayShape) -> SectionSpots:
    """Exchange rows and columns where they are swapped, and move spots that cannot be where their array says."""
    assert part.array is not None
    if shape.swapped:
        logger.warning(
            "section %r: columns are farther apart than rows, so obs['array_row'] and obs['array_col'] are swapped; "
            "they are read the other way round",
            part.name,
        )
        part = replace(part, array=part.array[:, ::-1].copy())
    wrong_N = shape.odd_N | _misplaced(part, shape)
    if not wrong_N.any():
        return part
    assert part.array is not None
    known = np.isfinite(part.xy[wrong_N]).all() and np.isfinite(fit_affine(part.array, part.xy)).all()
    if not known:
        msg = (
            f"section {part.name!r}: row + col of {int(wrong_N.sum())} spots has another parity than of all others, "
            "and there are no coordinates to tell where they lie; correct obs['array_row'] and obs['array_col']"
        )
        raise ValueError(msg)
    logger.warning(
        "section %r: %d spots are not where obs['array_row'] and obs['array_col'] say; they get the free site that is "
        "nearest to their coordinates",
        *(part.name, int(wrong_N.sum())),
    )
    return replace(part, array=_moved(part, wrong_N, staggered=shape.staggered))


def _odd_ones(array: np.ndarray) -> np.ndarray:
    """Return which spots have the less frequent parity of row + col."""
    parity = array.sum(axis=1) % 2
    return parity != (parity.mean() > 0.5)


def _misplaced(part: SectionSpots, shape: ArrayShape) -> np.ndarray:
    """Return a few spots that share their site with another one to which their coordinates do not bring them."""
    assert part.array is not None
    shared = pd.DataFrame(part.array).duplicated(keep=False).to_numpy()
    good = ~shared & ~shape.odd_N
    none = np.zeros(len(shared), dtype=bool)
    if not shared.any() or shared.mean() > 2 * FEW or not np.isfinite(part.xy[shared]).all():
        return none
    fit = fit_affine(part.array[good], part.xy[good])
    if not np.isfinite(fit).all():
        return none
    known = good & np.isfinite(part.xy).all(axis=1)
    away = np.linalg.norm(part.xy - part.array @ fit - (part.xy - part.array @ fit)[known].mean(axis=0), axis=1)
    return shared & (away > 0.5 * _pitch(fit, "hex" if shape.layout == "hex" else "square", staggered=shape.staggered))


def _moved(part: SectionSpots, wrong_N: np.ndarray, *, staggered: bool) -> np.ndarray:
    """Return the array coordinates with each wrong spot on the free site nearest to its coordinates."""
    assert part.array is not None
    array, good = part.array.copy(), ~wrong_N & np.isfinite(part.xy).all(axis=1)
    fit = fit_affine(array[good], part.xy[good])
    origin = (part.xy[good] - array[good] @ fit).mean(axis=0)
    parity = int(np.median(array[good].sum(axis=1) % 2))
    taken = set(map(tuple, array[~wrong_N].tolist()))
    for spot in np.flatnonzero(wrong_N):
        home = np.rint((part.xy[spot] - origin) @ np.linalg.inv(fit)).astype(int)
        sites = [(int(home[0]) + r, int(home[1]) + c) for r, c in product(range(-4, 5), repeat=2)]
        free = [s for s in sites if s not in taken and (not staggered or sum(s) % 2 == parity)]
        if not free:
            msg = f"section {part.name!r}: many spots share their array coordinates and their place; correct them"
            raise ValueError(msg)
        away = np.linalg.norm(np.array(free) @ fit + origin - part.xy[spot], axis=1)
        array[spot] = free[int(away.argmin())]
        taken.add(free[int(away.argmin())])
    return array


def fit_affine(array: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Return the steps (x, y) of one row and of one column by least squares; NaN where spots do not span a plane."""
    known = np.isfinite(xy).all(axis=1)
    if np.linalg.matrix_rank(array[known] - array[known].mean(axis=0) if known.any() else np.zeros((1, 2))) < 2:
        return np.full((2, 2), np.nan)
    return np.linalg.lstsq(array[known] - array[known].mean(axis=0), xy[known] - xy[known].mean(axis=0), rcond=None)[0]


def _aspect(fit: np.ndarray) -> float:
    """Return the distance of rows over that of columns; NaN if it is not known."""
    if not np.isfinite(fit).all() or not fit.any(axis=1).all():
        return np.nan
    return float(np.linalg.norm(fit[0]) / np.linalg.norm(fit[1]))


def _pitch(fit: np.ndarray, layout: str, *, staggered: bool) -> float:
    """Return the mean distance of neighbouring sites."""
    if layout == "hex":
        steps = np.array([[0, 2], [1, 1], [1, -1]])
    else:
        steps = np.array([[1, 1], [1, -1]] if staggered else [[1, 0], [0, 1]])
    return float(np.linalg.norm(steps @ fit, axis=1).mean())


def place_by_array(part: SectionSpots, layout: str) -> Placement:
    """Keep array coordinates; measure the spacing, and how far spots lie from them under the best affine map."""
    assert part.array is not None
    array, xy, fit = part.array, part.xy, fit_affine(part.array, part.xy)
    staggered = bool(_odd_ones(array).mean() <= FEW)
    pitch = _pitch(fit, layout, staggered=staggered)
    known = np.isfinite(xy).all(axis=1)
    if np.isnan(pitch) and known.sum() > 1:  # spots on one line
        pitch = float(np.median(cKDTree(xy[known]).query(xy[known], k=2)[0][:, 1]))
    centre = (xy[known] - array[known] @ fit).mean(axis=0) if known.any() else np.full(2, np.nan)
    return Placement(array, pitch, np.linalg.norm(xy - array @ fit - centre, axis=1) / pitch)
