from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strecur._geometry import ELEMENTS, KEEP_ROWS
from strecur.nn import Batch, Lattice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from strecur.nn import Backbone


@dataclass(frozen=True)
class Section:
    """One section as tensors.

    Attributes
    ----------
    name
        Name of the section.
    features_NF
        Features of every spot.
    lattice
        Position of every spot.
    target_N
        Target of every spot where it is known: a domain, or the expression of all genes (N, G).
    views
        Features under other symmetries than the identity, if they depend on it; by element of
        ``strecur._geometry.ELEMENTS``.
    """

    name: str
    features_NF: Tensor
    lattice: Lattice
    target_N: Tensor | None = None
    views: Mapping[int, Tensor] = field(default_factory=dict)


def symmetries(layout: str) -> tuple[int, ...]:
    """Return the elements of :data:`strecur._geometry.ELEMENTS` that are symmetries of a lattice, identity first."""
    return KEEP_ROWS if layout == "hex" else tuple(range(len(ELEMENTS)))


def view(section: Section, element: int, shift: tuple[int, int] = (0, 0)) -> Section:
    """Return the section under a symmetry, with the features of that view; targets stay with their spots."""
    transpose, flip_row, flip_col = ELEMENTS[element]
    moved = section.lattice.moved(transpose=transpose, flip_row=flip_row, flip_col=flip_col, shift=shift)
    return replace(section, features_NF=section.views.get(element, section.features_NF), lattice=moved, views={})


def is_missing(target_N: Tensor) -> Tensor:
    """Which spots have no domain, or no expression of some gene."""
    return target_N.isnan().flatten(1).any(dim=1) if target_N.is_floating_point() else target_N < 0


def take_spots(section: Section, spot_T: Tensor) -> Section:
    """Return some spots of a section; they keep their cells and windows."""
    return replace(
        section,
        features_NF=section.features_NF[spot_T],
        lattice=section.lattice.take(spot_T),
        target_N=None if section.target_N is None else section.target_N[spot_T],
        views={element: values[spot_T] for element, values in section.views.items()},
    )


def require_spots(sections: Sequence[Section]) -> None:
    """Raise if a section has no spots."""
    empty = [section.name for section in sections if not len(section.features_NF)]
    if empty:
        msg = f"sections {empty} have no spots; leave them out"
        raise ValueError(msg)


def collate(sections: Sequence[Section], device: torch.device | str = "cpu", backbone: Backbone | None = None) -> Batch:
    """Concatenate sections into one batch, without padding.

    The index tensors of the backbone are built before the batch is moved to a GPU.
    """
    lattice = Lattice.concatenate([s.lattice for s in sections])
    if backbone is not None and torch.device(device).type != "cpu":
        backbone.prepare(lattice)
    features = [s.features_NF for s in sections]
    targets = [s.target_N for s in sections if s.target_N is not None]
    return Batch(
        (torch.cat(features) if len(features) > 1 else features[0]).to(device),
        lattice.to(device),
        torch.cat(targets).to(device) if len(targets) == len(sections) else None,
    )
