"""Assign every spot an integer site of a lattice, the geometry that all models work on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from strecur._anndata import (
    check_free,
    check_key,
    find_coordinates,
    logger,
    open_table,
    read_pitches,
    read_sections,
    require,
    warn_of_rounding,
    write,
)
from strecur._arguments import check_number
from strecur._tissue import warn_of_background
from strecur.pp.grid.array import (
    ISOLATED,
    doubled,
    read_array_coordinates,
    usable_array,
    without_array_as_coordinates,
)
from strecur.pp.grid.layouts import Finding, common_layout, find_layout, place
from strecur.pp.grid.placement import MIN_SPOTS, GridFit, SectionSpots, collect, share_with_neighbours
from strecur.pp.grid.structure import check_overlap, separating_columns, suggest, warn_of_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import Sections

LAYOUTS = ("auto", "hex", "square", "irregular")
SOURCES = {"array": "array coordinates", "coordinates": "spot coordinates", "both": "array and spot coordinates"}

FAR = 2
"""A spot moved by more than this many sites is worth a warning."""

SAME_SIZE = {"square": 1.5, "irregular": 3.0}
"""Ratio of the distances between neighbouring spots up to which sections are taken for alike."""

MANY = 50
"""Number of spots from which most of them cannot be sections by themselves."""

SHARED = 0.01
"""Share of cells at the coordinates of another one above which they are worth a warning."""


def to_grid(
    adata: AnnData | SpatialData,
    *,
    library_key: str | None = None,
    layout: Literal["auto", "hex", "square", "irregular"] = "auto",
    spatial_key: str = "spatial",
    cells_per_pitch: float = 1.5,
    key_added: str = "grid",
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    r"""Assign every spot an integer site (row, col) of a lattice.

    Array coordinates, ``obs["array_row"]`` and ``obs["array_col"]``, are used as they are in the sections that have
    them. Otherwise the lattice is inferred from the coordinates of the spots, at any rotation and scale, with jitter,
    holes and smooth warps. If there is none, as for single cells, every cell gets its own site of a fine square grid;
    cells at the same coordinates get neighbouring ones. Each section is placed separately, and no two spots of a
    section share a site. The result depends neither on the order of the spots nor on the origin of the coordinates.

    Every section tells its layout by itself, and all must have the same. Input that contradicts itself is put right
    with a warning where it is clear what is meant: exchanged rows and columns, array coordinates in the place of
    coordinates or pixels in the place of array coordinates, single spots off the lattice. Otherwise it raises.

    Parameters
    ----------
    adata
        Spots of one or several sections.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), all spots are one section, with a
        warning if a column seems to name several. It is recorded, and later calls use it unless they are given another
        one.
    layout
        ``"hex"`` (Visium; doubled columns: ``row + col`` has one parity, horizontal neighbours are 2 columns apart, and
        spots lie at :math:`(\sqrt{3}\,row, col)` times half the spacing), ``"square"`` (ST, Visium HD), ``"irregular"``
        (cells; array coordinates are ignored) or ``"auto"``. With array coordinates, auto means hex where ``row + col``
        has one parity and rows are as far apart as on a hex lattice, otherwise square.
    spatial_key
        Key of ``obsm`` with the spot coordinates (x, y), spots × 2, in any unit. If the table of a SpatialData has
        none, the centroids of the shapes that it annotates are used.
    cells_per_pitch
        Sites per typical distance between irregular cells, at least 1; below 1.5 some cells have to move far.
    key_added
        Key of the results in ``obsm`` and ``uns``.
    copy
        Return a changed copy instead of changing ``adata``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``, or the copy. Writes:

    ``obsm[key_added]``
        int32, spots × 2: row and column. Array coordinates keep their origin, others start at 0 in each section.
    ``obsm[spatial_key]``
        float64, spots × 2: the centroids, if the coordinates are those of shapes.
    ``uns[key_added]["layout"]``
        ``"hex"``, ``"square"`` or ``"irregular"``. ST arrays of 2,000 spots, whose staggered rows form a square lattice
        rotated by 45 degrees, are ``"square"`` and use every other site.
    ``uns[key_added]["source"]``
        ``"array"``, ``"coordinates"``, or ``"both"`` if they differ by section.
    ``uns[key_added]["spacing"]``
        Typical distance between neighbouring spots in each section, in the unit of the coordinates; for irregular cells
        this is ``cells_per_pitch`` sites. NaN where there are no coordinates, these are array coordinates, or there is
        a single spot.
    ``uns[key_added]["sections"]``
        DataFrame, one row per section: ``n_spots``, ``spacing``, ``mean_displacement`` and ``max_displacement`` (from a
        spot to its site, in spacings; regular lattices may be stretched to fit), and ``source``.
    ``uns[key_added]["params"]``
        Arguments of the call: ``layout``, ``spatial_key``, ``cells_per_pitch`` and, if given, ``library_key``.

    Raises
    ------
    KeyError
        If ``library_key`` is not in ``obs``, or the coordinates are needed and not in ``obsm``.
    ValueError
        If spots of a section share a position of a regular lattice, the values of a column of ``obs`` lie on top of
        each other, sections have different layouts, coordinates are not finite, or the spots do not form the lattice
        that ``layout`` names.

    Notes
    -----
    Irregular cells are placed as in the integer mapping of HiST :cite:p:`hist`, but each takes the nearest free site by
    Euclidean distance.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> adata.uns["grid"]["layout"]
    'hex'
    """
    table = open_table(adata, table_key=table_key, copy=copy)
    check_key(key_added)
    check_free(table, key_added, default="grid")
    _check_options(layout, cells_per_pitch)
    sections = read_sections(table, library_key)
    _check_section_names(table, sections, library_key)
    xy = _find_positions(adata, table, spatial_key)
    array = None if layout == "irregular" else read_array_coordinates(table)
    parts = _split(table, sections, array, xy, layout)
    _require_finite(table, parts, xy, spatial_key)
    _check_structure(table, xy, sections, library_key=library_key, spatial_key=spatial_key)
    findings = [find_layout(part) if layout != "irregular" else Finding(part, None) for part in parts]
    chosen = common_layout(findings) if layout == "auto" else layout
    _check_shared(table, findings, chosen, library_key)
    placements = place(findings, chosen, cells_per_pitch=cells_per_pitch)
    fit = collect(placements, [found.part for found in findings], sections, layout=chosen)
    _report(fit, sections, cells_per_pitch)
    warn_of_background(table)
    params = {"layout": layout, "spatial_key": spatial_key, "cells_per_pitch": float(cells_per_pitch)}
    record = {
        "params": params if library_key is None else {**params, "library_key": library_key},
        "layout": fit.layout,
        "source": fit.source,
        "spacing": fit.sections["spacing"].to_dict(),
        "sections": fit.sections,
    }
    found = {} if xy is None or spatial_key in table.obsm else {spatial_key: xy}
    write(table, obsm={key_added: _to_int32(fit.sites), **found}, uns={key_added: record})
    _warn_of_sizes(table, sections, fit.layout, key_added)
    return table if copy else None


def _check_options(layout: str, cells_per_pitch: float) -> None:
    if layout not in LAYOUTS:
        msg = f"layout={layout!r} is not one of {list(LAYOUTS)}"
        raise ValueError(msg)
    check_number("cells_per_pitch", cells_per_pitch)
    if cells_per_pitch < 1:
        msg = (
            f"cells_per_pitch={cells_per_pitch!r}: at least 1 is needed to give every cell a site, 1.5 or more is good"
        )
        raise ValueError(msg)


def _check_section_names(adata: AnnData, sections: Sections, library_key: str | None) -> None:
    bad = [name for name in sections.names if "/" in name or not name]
    if bad:
        msg = f"section names {bad} cannot be keys of a file; rename them without '/' (Series.cat.rename_categories)"
        raise ValueError(msg)
    if adata.n_obs >= MANY and len(sections.names) > adata.n_obs / 2:
        msg = (
            f"adata.obs[{library_key!r}] has {len(sections.names)} values for {adata.n_obs} spots, as if it named the "
            "spots; library_key names the column with the section of each spot"
        )
        raise ValueError(msg)


def _find_positions(data: AnnData | SpatialData, table: AnnData, spatial_key: str) -> np.ndarray | None:
    xy = find_coordinates(data, table, spatial_key)
    warn_of_rounding(table, spatial_key)
    if xy is not None and (xy.ndim != 2 or xy.shape[1] != 2):
        msg = f"adata.obsm[{spatial_key!r}] has shape {xy.shape}; expected spots × 2 (x, y), so choose two columns"
        raise ValueError(msg)
    return xy


def _split(
    table: AnnData, sections: Sections, array: np.ndarray | None, xy: np.ndarray | None, layout: str
) -> list[SectionSpots]:
    """Return the spots of each section, with array coordinates where they can be used."""
    xy = np.full((table.n_obs, 2), np.nan) if xy is None else xy
    by_name = np.argsort(np.argsort(table.obs_names.to_numpy(dtype=object), kind="stable"))
    parts = []
    for name in sections.names:
        rows = sections.rows(name)
        # A fixed order makes the result independent of the order of the spots, bit for bit.
        rows = rows[np.lexsort((by_name[rows], xy[rows, 0], xy[rows, 1]))]
        own = None if array is None else usable_array(name, array[rows], xy[rows])
        part = SectionSpots(name, rows, own, xy[rows])
        parts.append(doubled(without_array_as_coordinates(part)) if layout in ("auto", "hex") else part)
    return parts


def _require_finite(adata: AnnData, parts: list[SectionSpots], xy: np.ndarray | None, spatial_key: str) -> None:
    """Raise if sections without array coordinates lack coordinates."""
    needed = [part for part in parts if part.array is None]
    if needed and xy is None:
        require(adata.obsm, spatial_key, where="obsm", hint="spatial_key names the coordinates (x, y) of the spots")
    for part in needed:
        if len(part.xy) >= MIN_SPOTS and not np.ptp(part.xy, axis=0).any():
            msg = (
                f"all {len(part.xy)} spots of section {part.name!r} have the same coordinates in "
                f"adata.obsm[{spatial_key!r}]; read them again"
            )
            raise ValueError(msg)
    n_missing = sum(int((~np.isfinite(part.xy).all(axis=1)).sum()) for part in needed)
    if n_missing:
        msg = (
            f"adata.obsm[{spatial_key!r}] holds NaN or infinite values for {n_missing} spots; "
            f"leave them out first: adata[np.isfinite(adata.obsm[{spatial_key!r}]).all(axis=1)]"
        )
        raise ValueError(msg)


def _check_structure(
    adata: AnnData, xy: np.ndarray | None, sections: Sections, *, library_key: str | None, spatial_key: str
) -> None:
    """Raise if sections that the object knows lie on top of each other, warn if they are taken as one."""
    if xy is not None and np.isfinite(xy).all():
        check_overlap(adata, xy, sections, library_key=library_key, spatial_key=spatial_key)
    if library_key is None:
        warn_of_sections(adata, xy)


def _check_shared(adata: AnnData, findings: list[Finding], layout: str, library_key: str | None) -> None:
    """Raise if spots of a section share their place on a regular lattice; log that irregular cells do."""
    places = pd.concat([_places(found.part) for found in findings], ignore_index=True)
    rows = places.pop("row").to_numpy()
    shared = places.duplicated(keep=False).to_numpy()
    if not shared.any():
        return
    if layout == "irregular":
        logger.log(
            logging.WARNING if shared.mean() > SHARED else logging.INFO,
            "%d of %d spots share their coordinates with another one; they get neighbouring sites",
            *(int(shared.sum()), len(shared)),
        )
        return
    worst = places["section"][shared].mode()[0]
    of_section = "" if library_key is None else f" of their section (most in {worst!r})"
    what = "array coordinates" if findings[0].part.array is not None else "coordinates"
    columns = separating_columns(adata[rows[shared]], places[shared], library_key)
    msg = (
        f"{int(shared.sum())} spots share their {what} with another spot{of_section}. If there are several sections, "
        f"pass library_key{suggest(columns)}; otherwise correct these coordinates, or pass layout='irregular', which "
        "gives every spot a site of its own"
    )
    raise ValueError(msg)


def _places(part: SectionSpots) -> pd.DataFrame:
    place = part.xy if part.array is None else part.array
    return pd.DataFrame({"row": part.rows, "section": part.name, "first": place[:, 0], "second": place[:, 1]})


def _report(fit: GridFit, sections: Sections, cells_per_pitch: float) -> None:
    table = fit.sections
    logger.info(
        "%s lattice from %s: %d section(s), %d spots, spacing %.4g to %.4g, displacement mean %.2f, max %.2f spacings",
        *(fit.layout, SOURCES[fit.source], len(table), table["n_spots"].sum()),
        *(table["spacing"].min(), table["spacing"].max()),
        *(np.average(table["mean_displacement"], weights=table["n_spots"]), table["max_displacement"].max()),
    )
    per_spacing = cells_per_pitch if fit.layout == "irregular" else 1.0
    is_far = table["max_displacement"] * per_spacing > FAR
    by_array = table["source"] == "array"
    if (is_far & by_array).any():
        logger.warning(
            "array coordinates and spot coordinates disagree by more than %d spacings in %s; "
            "were they joined by barcode and section?",
            *(FAR, table.index[is_far & by_array].tolist()),
        )
    if (is_far & ~by_array).any():
        logger.warning(
            "some spots moved by more than %d sites in %s (densely packed cells, or a warped lattice); "
            "see uns[...]['sections'], and raise cells_per_pitch for cells",
            *(FAR, table.index[is_far & ~by_array].tolist()),
        )
    lonely = [name for name in sections.names if share_with_neighbours(fit.sites[sections.rows(name)]) < ISOLATED]
    if lonely:
        logger.warning(
            "hardly a spot of the sections %s has a neighbour on the lattice, so models see each spot alone; check the "
            "coordinates, or pass layout='irregular' if the spots are sparse",
            lonely,
        )


def _warn_of_sizes(adata: AnnData, sections: Sections, layout: str, key: str) -> None:
    """Warn if the spots of a section are much farther apart than those of another one."""
    pitches, pitches_um = read_pitches(adata, sections.names, grid_key=key)
    in_um = len(pitches_um) == len(pitches)
    known, unit = (pitches_um, "µm") if in_um else (pitches, "units of the coordinates")
    if layout == "hex" or not known or max(known) <= SAME_SIZE[layout] * min(known):
        return
    logger.warning(
        "neighbouring spots are %.4g to %.4g %s apart in the sections of this object; if these are bins of several "
        "sizes, or coordinates in several units, place each kind in an object of its own",
        *(min(known), max(known), unit),
    )


def _to_int32(sites: np.ndarray) -> np.ndarray:
    if np.abs(sites).max() > np.iinfo(np.int32).max:
        msg = "the coordinates span too many sites for int32: some spots lie extremely far from the others"
        raise ValueError(msg)
    return sites.astype(np.int32)
