"""The layout of each section, the one they have in common, and the sites on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from strecur._anndata import logger
from strecur.pp.grid.array import describe_array, place_by_array, repaired
from strecur.pp.grid.cells import place_cells
from strecur.pp.grid.lattice import NoLatticeError, fit_lattice, likely_layout, place_few
from strecur.pp.grid.placement import MIN_SPOTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur.pp.grid.placement import Placement, SectionSpots

SURE = 50
"""Fewer cells than these may form a lattice by chance."""


@dataclass(frozen=True)
class Finding:
    """What one section says of the layout.

    Attributes
    ----------
    part
        Its spots, with array coordinates put right.
    layout
        Its layout, or ``None`` if there are too few spots to tell.
    staggered
        Whether its array coordinates have rows that are staggered; ``None`` without array coordinates.
    placement
        Sites on this layout, if they are known already.
    reason
        Why there is no regular lattice.
    """

    part: SectionSpots
    layout: str | None
    staggered: bool | None = None
    placement: Placement | None = None
    reason: str = ""


def find_layout(part: SectionSpots) -> Finding:
    """Tell the layout of one section from its array coordinates, else from the coordinates of its spots."""
    if part.array is not None:
        shape = describe_array(part)
        part = repaired(part, shape) if shape.layout != "square" or shape.staggered else part
        return Finding(part, shape.layout, shape.staggered)
    distinct = part.xy[~pd.DataFrame(part.xy).duplicated().to_numpy()]
    if len(distinct) < MIN_SPOTS:
        return Finding(part, None)
    layout = likely_layout([distinct])
    if layout == "irregular":
        return Finding(part, layout, reason="the directions between neighbours have no order")
    try:
        placement = fit_lattice(distinct, layout)
    except NoLatticeError as error:
        return Finding(part, "irregular", reason=str(error))
    return Finding(part, layout, placement=placement if len(distinct) == len(part.xy) else None)


def common_layout(findings: Sequence[Finding]) -> str:
    """Return the layout of most spots; raise if sections that can tell have another one."""
    votes: dict[str, int] = {}
    for found in findings:
        if found.layout is not None:
            votes[found.layout] = votes.get(found.layout, 0) + len(found.part.rows)
    if not votes:
        return _layout_of_few(findings)
    chosen = max(votes, key=lambda layout: votes[layout])
    others = {found.part.name: found.layout for found in findings if not _agrees(found, chosen)}
    if others:
        kept = [found.part.name for found in findings if found.part.name not in others]
        msg = (
            f"sections have different layouts: {', '.join(f'{n!r} is {v}' for n, v in others.items())}, but "
            f"{kept[:5]} are {chosen}, and all sections of a lattice have one. Place each kind in an object of its "
            "own, or pass layout='irregular' to treat all spots as cells"
        )
        raise ValueError(msg)
    for found in findings:
        if chosen == "irregular" and found.reason:
            logger.info("section %r has no regular lattice: %s", found.part.name, found.reason)
    return chosen


def _layout_of_few(findings: Sequence[Finding]) -> str:
    """Return the layout of sections none of which can tell by itself."""
    with_array = [found for found in findings if found.staggered is not None]
    if not with_array:
        return "irregular"
    n_spots = sum(len(found.part.rows) for found in with_array)
    return "hex" if all(found.staggered for found in with_array) and n_spots >= MIN_SPOTS else "square"


def _agrees(found: Finding, layout: str) -> bool:
    """Return whether a section can be placed on a layout that most others have."""
    if found.layout in (layout, None):
        return layout != "hex" or found.staggered is not False
    if layout == "irregular":
        return found.staggered is None and len(found.part.rows) < SURE
    if found.staggered is not None:
        return False
    try:
        fit_lattice(found.part.xy, layout)
    except NoLatticeError:
        return False
    return True


def place(findings: Sequence[Finding], layout: str, *, cells_per_pitch: float) -> list[Placement]:
    """Place the spots of all sections on one layout.

    Raises
    ------
    ValueError
        If the spots of a section do not form it; the message names all such sections.
    """
    placements, failed = [], []
    for found in findings:
        try:
            placements.append(_place_one(found, layout, cells_per_pitch))
        except NoLatticeError as error:
            failed.append(f"section {found.part.name!r}: {error}")
    if failed:
        msg = f"the spots do not form a {layout} lattice ({'; '.join(failed)}); try layout='auto' or 'irregular'"
        raise ValueError(msg)
    return placements


def _place_one(found: Finding, layout: str, cells_per_pitch: float) -> Placement:
    part = found.part
    if part.array is not None and layout != "irregular":
        _check_array(found, layout)
        return place_by_array(part, layout)
    if layout == "irregular":
        return place_cells(part.xy, cells_per_pitch=cells_per_pitch)
    if found.layout == layout and found.placement is not None:
        return found.placement
    try:
        return fit_lattice(part.xy, layout)
    except NoLatticeError:
        if len(part.xy) < MIN_SPOTS:
            return place_few(part.xy, layout)
        raise


def _check_array(found: Finding, layout: str) -> None:
    """Raise unless the array coordinates of a section form the layout; staggered ones form both."""
    if found.layout in (layout, None) and (layout == "square" or found.staggered):
        return
    if layout == "hex" and found.staggered:
        return
    why = "row + col has one parity" if found.staggered else "row + col has both parities in a section"
    msg = (
        f"layout={layout!r} does not fit obs['array_row'] and obs['array_col']: {why}, as on a "
        f"{found.layout or 'square'} lattice. Leave layout out, or remove these columns to use the coordinates of the "
        "spots"
    )
    raise ValueError(msg)
