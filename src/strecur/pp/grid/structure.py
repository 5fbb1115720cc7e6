"""Sections that an object knows of: columns of ``obs`` that tell overlapping coordinates apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from strecur._anndata import logger, read_xy
from strecur.pp.grid.placement import MIN_SPOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from strecur._anndata import Sections

WHOLE = ("library", "section", "sample", "slide", "slice", "donor", "patient", "puck", "replicate")
"""Words in names of columns whose values have coordinates of their own."""

PARTS = ("batch", "fov", "field", "region", "roi", "tile", "image", "core", "chip", "plane")
"""Words in names of columns whose values may have coordinates of their own."""

MIXED = 0.2
"""Share of spots whose nearest spot has another value, above which values lie on top of each other."""

REACH = 1.25
"""Spots are in contact up to this many times the median distance to the nearest one."""

MORE_CONTACT, NAMED_CONTACT = 1.25, 0.95
"""How many times more spots of their own value are in contact where values were put on top of each other, and the same
for columns whose names suggest sections."""

MAX_VALUES = 5000


def check_overlap(
    adata: AnnData, xy: np.ndarray, sections: Sections, *, library_key: str | None, spatial_key: str
) -> None:
    """Raise if the spots of different values of a column lie on top of each other within a section."""
    if adata.n_obs < MIN_SPOTS:
        return
    nearest, contact = _nearest(xy, sections.codes), None
    columns: dict[str | None, pd.Series] = {c: adata.obs[c] for c in _columns(adata, library_key)}
    if library_key is None and (suffixes := _suffixes(adata)) is not None:
        columns[None] = suffixes
    for column, values in columns.items():
        codes = pd.factorize(values)[0]
        if _share_mixed(codes, nearest) <= MIXED:
            continue
        contact = _contact(xy, sections.codes) if contact is None else contact
        # the spots of each section or field of view keep a distance from one another, not from those of another one
        own = _contact(xy, pd.factorize(pd.MultiIndex.from_arrays([sections.codes, codes]))[0])
        if own > (NAMED_CONTACT if column is None or _is_named(adata, column) else MORE_CONTACT) * contact:
            if column is None:
                raise ValueError(_suffix_message(values, spatial_key))
            raise ValueError(_overlap_message(adata, column, codes, sections, library_key, spatial_key))


def warn_of_sections(adata: AnnData, xy: np.ndarray | None) -> None:
    """Warn if all spots are taken as one section although a column names several.

    Regions that lie on top of each other in other coordinates were put in their places in these, as are fields of view
    in coordinates of the slide.
    """
    images = list(adata.uns.get("spatial", {}))
    if len(images) > 1:
        logger.warning(
            "all spots are taken as one section, but uns['spatial'] has several, %s; pass library_key to keep these "
            "apart",
            images[:5],
        )
        return
    for column in _columns(adata, None):
        sizes = adata.obs[column].value_counts()
        names = [str(name) for name in sizes.index[sizes > 0]]
        if not _knows_sections(adata, column) or sizes[sizes > 0].median() < MIN_SPOTS:
            continue
        if not _names_sections(column) and _is_stitched(adata, column, xy):
            continue
        logger.warning(
            "all spots are taken as one section, but obs[%r] has %d values %s; pass library_key=%r to keep these apart",
            *(column, len(names), names[:5], column),
        )
        return


def _is_stitched(adata: AnnData, column: str, xy: np.ndarray | None) -> bool:
    """Return whether the values of a column lie on top of each other in coordinates that were moved to these."""
    if xy is None:
        return False
    codes, one = pd.factorize(adata.obs[column])[0], np.zeros(adata.n_obs, dtype=int)
    rows = np.flatnonzero(codes == np.bincount(codes[codes >= 0]).argmax())
    for key in _pairs(adata):
        other = _read_finite(adata, key)
        if other is not None and _share_mixed(codes, _nearest(other, one)) > MIXED and _is_moved(other[rows], xy[rows]):
            return True
    return False


def _is_moved(before: np.ndarray, after: np.ndarray) -> bool:
    """Return whether an affine map leads from coordinates to others, but for rounding."""
    design = np.column_stack([before, np.ones(len(before))])
    miss = after - design @ np.linalg.lstsq(design, after, rcond=None)[0]
    return bool(np.abs(miss).max() <= 0.01 * np.ptp(after, axis=0).max())


def separating_columns(adata: AnnData, place: pd.DataFrame, library_key: str | None) -> list[str]:
    """Return the columns that tell all spots apart that share a place."""
    return [
        column
        for column in _columns(adata, library_key)
        if not place.assign(column=pd.factorize(adata.obs[column])[0]).duplicated().any()
    ]


def suggest(columns: Sequence[str]) -> str:
    """Return ``"='a' (or ['b'])"`` for the message of an error."""
    return f"={columns[0]!r}" + (f" (or {list(columns[1:])})" if len(columns) > 1 else "") if columns else ""


def _region_key(adata: AnnData) -> str | None:
    return adata.uns.get("spatialdata_attrs", {}).get("region_key")


def _knows_sections(adata: AnnData, column: str) -> bool:
    return column == _region_key(adata) or _names_sections(column)


def _names_sections(column: str) -> bool:
    return any(word in column.lower() for word in WHOLE)


def _columns(adata: AnnData, library_key: str | None) -> list[str]:
    """Return the columns of a limited number of values, those first whose names suggest sections."""
    instance_key = adata.uns.get("spatialdata_attrs", {}).get("instance_key")
    skipped = {library_key, instance_key, "array_row", "array_col", "in_tissue"}
    found = [
        c for c in map(str, adata.obs.columns) if c in adata.obs and c not in skipped and _is_discrete(adata.obs[c])
    ]
    ranks = {c: (not _knows_sections(adata, c), not _is_named(adata, c)) for c in found}
    return sorted(found, key=lambda c: ranks[c])


def _is_named(adata: AnnData, column: str) -> bool:
    return _knows_sections(adata, column) or any(word in column.lower() for word in PARTS)


def _is_discrete(column: pd.Series) -> bool:
    kinds = ("string", "categorical", "boolean", "integer", "mixed-integer")
    if pd.api.types.infer_dtype(column, skipna=True) not in kinds:
        return False
    return 1 < column.nunique() <= min(len(column) / 2, MAX_VALUES)


def _groups(codes: np.ndarray) -> list[np.ndarray]:
    """Return the positions of the spots of each code."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)


def _nearest(xy: np.ndarray, section_N: np.ndarray) -> np.ndarray:
    """Return the position of the nearest other spot of the same section; the spot itself if there is none."""
    nearest = np.arange(len(xy))
    for rows in _groups(section_N):
        if len(rows) > 1:
            near = cKDTree(xy[rows]).query(xy[rows], k=2)[1]
            # of spots that share a place, the second may be the spot itself
            nearest[rows] = rows[np.where(near[:, 1] == np.arange(len(rows)), near[:, 0], near[:, 1])]
    return nearest


def _share_mixed(codes: np.ndarray, nearest: np.ndarray) -> float:
    return float(np.mean(codes[nearest] != codes))


def _contact(xy: np.ndarray, codes: np.ndarray) -> float:
    """Return the mean number of spots of the same code that are about as far away as the nearest one.

    It is 6 or 4 on a lattice, about 2 for cells, which do not overlap, and 1 for points drawn at random, as are those
    of one cell type among all cells, or of several sections on top of each other.
    """
    counts = []
    for rows in _groups(codes):
        if len(rows) >= 3:
            distance = cKDTree(xy[rows]).query(xy[rows], k=min(8, len(rows)))[0][:, 1:]
            counts.append((distance <= REACH * np.median(distance[:, 0])).sum(axis=1))
    return float(np.mean(np.concatenate(counts))) if counts else 0.0


def _suffixes(adata: AnnData) -> pd.Series | None:
    """Return the ends of the names of spots, such as "-0" and "-1", which tell sections of joined objects apart."""
    ends = pd.Series(adata.obs_names, dtype=object).str.extract(r"[^-_]([-_][^-_]+)$")[0]
    return ends if ends.notna().all() and 1 < ends.nunique() <= min(len(ends) / MIN_SPOTS, MAX_VALUES) else None


def _suffix_message(suffixes: pd.Series, spatial_key: str) -> str:
    return (
        f"spots whose names end in {list(suffixes.unique()[:5])} lie on top of each other in {spatial_key!r}. If each "
        "has coordinates of its own, store the end in a column, adata.obs['section'] = "
        "adata.obs_names.str.extract('([-_][^-_]+)$')[0].to_numpy(), and pass library_key='section'"
    )


def _overlap_message(
    adata: AnnData, column: str, codes: np.ndarray, sections: Sections, library_key: str | None, spatial_key: str
) -> str:
    msg = f"the spots of different values of adata.obs[{column!r}] lie on top of each other in {spatial_key!r}. "
    if library_key is None:
        msg += f"If each has coordinates of its own, pass library_key={column!r}"
    else:
        msg += (
            f"If each has coordinates of its own, make a column of {library_key!r} and {column!r} together and pass it "
            "as library_key"
        )
    others = [key for key in _pairs(adata) if key != spatial_key]
    apart = [key for key in others if _is_apart(_read_finite(adata, key), codes, sections)]
    if apart:
        msg += f". In adata.obsm[{apart[0]!r}] they lie apart; pass spatial_key={apart[0]!r} to use these"
    return msg


def _pairs(adata: AnnData) -> list[str]:
    """Return the entries of ``obsm`` of two columns."""
    return [key for key in adata.obsm if tuple(adata.obsm[key].shape[1:]) == (2,)]


def _read_finite(adata: AnnData, key: str) -> np.ndarray | None:
    """Read coordinates; ``None`` if these are not numbers, or some are missing."""
    try:
        xy = read_xy(adata, key)
    except ValueError:
        return None
    return xy if np.isfinite(xy).all() else None


def _is_apart(xy: np.ndarray | None, codes: np.ndarray, sections: Sections) -> bool:
    return xy is not None and _share_mixed(codes, _nearest(xy, sections.codes)) <= MIXED
