"""Assign every spot an integer site of a lattice, the geometry that all models work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from strecur._anndata import check_free, check_key, find_coordinates, logger, open_table, read_sections, require, write
from strecur._arguments import check_number
from strecur.pp.grid.array import from_array, read_array_coordinates
from strecur.pp.grid.cells import place_cells
from strecur.pp.grid.lattice import MIN_SPOTS, NoLatticeError, fit_lattice, likely_layout, place_few
from strecur.pp.grid.placement import GridFit, Placement, collect

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import Sections

LAYOUTS = ("auto", "hex", "square", "irregular")
SECTION_WORDS = ("library", "section", "sample", "slide", "slice", "batch")

FAR = 2
"""A spot moved by more than this many sites is worth a warning."""


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

    Array coordinates, ``obs["array_row"]`` and ``obs["array_col"]``, are used as they are if they exist. Otherwise the
    lattice is inferred from the coordinates of the spots, at any rotation and scale, with jitter, holes and smooth
    warps. If there is none, as for single cells, every cell gets its own site of a fine square grid. Each section is
    placed separately, and no two spots of a section share a site. The result depends neither on the order of the spots
    nor on the origin of the coordinates.

    Parameters
    ----------
    adata
        Spots of one or several sections.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), all spots are one section. It is
        recorded, and later calls use it unless they are given another one.
    layout
        ``"hex"`` (Visium; doubled columns: ``row + col`` has one parity, horizontal neighbours are 2 columns apart, and
        spots lie at :math:`(\sqrt{3}\,row, col)` times half the spacing), ``"square"`` (ST, Visium HD), ``"irregular"``
        (cells; array coordinates are ignored) or ``"auto"``. With array coordinates, auto means hex where ``row + col``
        has one parity in every section and rows are as far apart as on a hex lattice, otherwise square.
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
        ``"array"`` or ``"coordinates"``.
    ``uns[key_added]["spacing"]``
        Typical distance between neighbouring spots in each section, in the unit of the coordinates; for irregular cells
        this is ``cells_per_pitch`` sites. NaN where there are no coordinates or a single spot.
    ``uns[key_added]["sections"]``
        DataFrame, one row per section: ``n_spots``, ``spacing``, ``mean_displacement`` and ``max_displacement`` (from a
        spot to its site, in spacings; regular lattices may be stretched to fit).
    ``uns[key_added]["params"]``
        Arguments of the call: ``layout``, ``spatial_key``, ``cells_per_pitch`` and, if given, ``library_key``.

    Raises
    ------
    KeyError
        If ``library_key`` is not in ``obs``, or the coordinates are needed and not in ``obsm``.
    ValueError
        If spots of a section share a position, coordinates are not finite, or the spots do not form the lattice that
        ``layout`` names.

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
    _check_section_names(sections.names)
    xy = _find_positions(adata, table, spatial_key)
    array = None if layout == "irregular" else read_array_coordinates(table)
    if array is not None:
        _check_overlap(table, array, sections, library_key=library_key, what="array coordinates")
        fit = from_array(array, xy, sections, layout=layout)
    else:
        xy = _require_finite(table, xy, spatial_key)
        _check_overlap(table, xy, sections, library_key=library_key, what="coordinates")
        fit = _from_coordinates(xy, sections, layout=layout, cells_per_pitch=cells_per_pitch)
    _report(fit, cells_per_pitch)
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


def _check_section_names(names: list[str]) -> None:
    bad = [name for name in names if "/" in name or not name]
    if bad:
        msg = f"section names {bad} cannot be keys of a file; rename them without '/' (Series.cat.rename_categories)"
        raise ValueError(msg)


def _find_positions(data: AnnData | SpatialData, table: AnnData, spatial_key: str) -> np.ndarray | None:
    xy = find_coordinates(data, table, spatial_key)
    if xy is not None and (xy.ndim != 2 or xy.shape[1] != 2):
        msg = f"adata.obsm[{spatial_key!r}] has shape {xy.shape}; expected spots × 2 (x, y), so choose two columns"
        raise ValueError(msg)
    return xy


def _require_finite(adata: AnnData, xy: np.ndarray | None, spatial_key: str) -> np.ndarray:
    if xy is None:
        require(adata.obsm, spatial_key, where="obsm", hint="spatial_key names the coordinates (x, y) of the spots")
    assert xy is not None
    missing = ~np.isfinite(xy).all(axis=1)
    if missing.any():
        msg = (
            f"adata.obsm[{spatial_key!r}] holds NaN or infinite values for {int(missing.sum())} spots; "
            f"leave them out first: adata[np.isfinite(adata.obsm[{spatial_key!r}]).all(axis=1)]"
        )
        raise ValueError(msg)
    return xy


def _check_overlap(
    adata: AnnData, position: np.ndarray, sections: Sections, *, library_key: str | None, what: str
) -> None:
    """Raise if spots of a section share a position, or sections lie on top of each other."""
    frame = pd.DataFrame({"section": sections.codes, "first": position[:, 0], "second": position[:, 1]})
    shared = frame.duplicated(keep=False).to_numpy()
    if shared.any():
        worst = sections.names[np.bincount(sections.codes[shared]).argmax()]
        place = "" if library_key is None else f" of their section (most in {worst!r})"
        separating = [
            c for c in _section_columns(adata) if not frame.assign(column=_codes(adata, c)).duplicated().any()
        ]
        msg = (
            f"{int(shared.sum())} spots share their {what} with another spot{place}. If there are several sections, "
            f"pass library_key{_suggest(separating, library_key)}; otherwise keep one spot of each position"
        )
        raise ValueError(msg)
    if library_key is None and what == "coordinates" and len(position) > 1:
        nearest = cKDTree(position).query(position, k=2)[1][:, 1]
        mixed = [c for c in _section_columns(adata) if np.mean(_codes(adata, c)[nearest] != _codes(adata, c)) > 0.2]
        if mixed:
            msg = f"the sections of adata.obs[{mixed[0]!r}] lie on top of each other; pass library_key={mixed[0]!r}"
            raise ValueError(msg)


def _section_columns(adata: AnnData) -> list[str]:
    """Return the columns of ``obs`` with several values whose name suggests sections."""
    named = [c for c in adata.obs.columns if any(word in str(c).lower() for word in SECTION_WORDS)]
    return [c for c in named if 1 < adata.obs[c].nunique() <= adata.n_obs / 2]


def _codes(adata: AnnData, column: str) -> np.ndarray:
    return pd.factorize(adata.obs[column])[0]


def _suggest(columns: list[str], library_key: str | None) -> str:
    names = [c for c in columns if c != library_key]
    return f"={names[0]!r}" + (f" (or {names[1:]})" if names[1:] else "") if names else ""


def _from_coordinates(xy: np.ndarray, sections: Sections, *, layout: str, cells_per_pitch: float) -> GridFit:
    """Infer the lattice of each section, or assign irregular cells their own sites."""
    rows = [sections.rows(name) for name in sections.names]
    # A fixed order makes the result independent of the order of the spots, bit for bit.
    rows = [r[np.lexsort((xy[r, 0], xy[r, 1]))] for r in rows]
    parts = [xy[r] for r in rows]
    regular = layout
    if layout == "auto":
        telling = [part for part in parts if len(part) >= MIN_SPOTS]
        regular = likely_layout(telling) if telling else "irregular"
    if regular != "irregular":
        placements, failed = [], []
        for name, part in zip(sections.names, parts, strict=True):
            try:
                placements.append(_place_regular(part, regular))
            except NoLatticeError as error:
                failed.append(f"section {name!r}: {error}")
        if not failed:
            return collect(placements, rows, sections, layout=regular, source="coordinates")
        if layout != "auto":
            msg = f"the spots do not form a {layout} lattice ({'; '.join(failed)}); try layout='auto' or 'irregular'"
            raise ValueError(msg)
        logger.info("no regular lattice (%s); every spot gets its own site of a fine grid", "; ".join(failed))
    placements = [place_cells(part, cells_per_pitch=cells_per_pitch) for part in parts]
    return collect(placements, rows, sections, layout="irregular", source="coordinates")


def _place_regular(xy: np.ndarray, layout: str) -> Placement:
    try:
        return fit_lattice(xy, layout)
    except NoLatticeError:
        if len(xy) < MIN_SPOTS:
            return place_few(xy, layout)
        raise


def _report(fit: GridFit, cells_per_pitch: float) -> None:
    table = fit.sections
    logger.info(
        "%s lattice from %s: %d section(s), %d spots, spacing %.4g to %.4g, displacement mean %.2f, max %.2f spacings",
        *(fit.layout, "array coordinates" if fit.source == "array" else "spot coordinates"),
        *(len(table), table["n_spots"].sum(), table["spacing"].min(), table["spacing"].max()),
        *(np.average(table["mean_displacement"], weights=table["n_spots"]), table["max_displacement"].max()),
    )
    per_spacing = cells_per_pitch if fit.layout == "irregular" else 1.0
    far = table.index[table["max_displacement"] * per_spacing > FAR].tolist()
    if far and fit.source == "array":
        logger.warning(
            "array coordinates and spot coordinates disagree by more than %d spacings in %s; "
            "were they joined by barcode and section?",
            *(FAR, far),
        )
    elif far:
        logger.warning(
            "some spots moved by more than %d sites in %s (densely packed cells, or a warped lattice); "
            "see uns[...]['sections'], and raise cells_per_pitch for cells",
            *(FAR, far),
        )


def _to_int32(sites: np.ndarray) -> np.ndarray:
    if np.abs(sites).max() > np.iinfo(np.int32).max:
        msg = "the coordinates span too many sites for int32: some spots lie extremely far from the others"
        raise ValueError(msg)
    return sites.astype(np.int32)
