from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strecur._symmetry import ELEMENTS, KEEP_ROWS
from strecur.nn import Batch, Lattice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
        Features of the section under other symmetries than the identity, where they depend on it; by element of
        ``strecur._symmetry.ELEMENTS``.
    """

    name: str
    features_NF: Tensor
    lattice: Lattice
    target_N: Tensor | None = None
    views: Mapping[int, Tensor] = field(default_factory=dict)


def symmetries(layout: str) -> tuple[int, ...]:
    """List the elements of :data:`strecur._symmetry.ELEMENTS` that map a lattice onto its like, identity first."""
    return KEEP_ROWS if layout == "hex" else tuple(range(len(ELEMENTS)))


def view(section: Section, element: int, shift: tuple[int, int] = (0, 0)) -> Section:
    """Return the section under a symmetry: lattice and features belong together, targets go with their spots."""
    transpose, flip_row, flip_col = ELEMENTS[element]
    moved = section.lattice.moved(transpose=transpose, flip_row=flip_row, flip_col=flip_col, shift=shift)
    return replace(section, features_NF=section.views.get(element, section.features_NF), lattice=moved, views={})


@dataclass(frozen=True)
class Augmentation:
    """What changes from one visit of a training section to the next.

    Attributes
    ----------
    noise
        Standard deviation of the Gaussian noise added to every feature.
    drop
        Probability that a feature is zero for the whole section; the others are scaled up.
    hide
        Probability that all features of a spot are zero, so that it is read from its surroundings.
    symmetric
        Mirror (and on square lattices turn) the section at random.
    max_shift
        Move the lattice by up to this many cells, which moves the window grid.
    max_spots
        Show so many spots of a larger section, those nearest to one that is drawn from the spots with a target; 0: all.
        A visit then costs as much whatever the size of the section.
    """

    noise: float = 0.2
    drop: float = 0.3
    hide: float = 0.3
    symmetric: bool = True
    max_shift: int = 0
    max_spots: int = 0

    def __call__(self, section: Section, generator: torch.Generator) -> Section:
        """Draw one augmented copy."""
        if 0 < self.max_spots < len(section.features_NF):
            section = take(section, nearest(section, self.max_spots, generator))
        choices = symmetries(section.lattice.layout)
        chosen = int(torch.randint(len(choices), (), generator=generator)) if self.symmetric else 0
        rows, cols = torch.randint(self.max_shift + 1, (2,), generator=generator).tolist()
        cols *= 2 if section.lattice.layout == "hex" else 1
        section = view(section, choices[chosen], (rows, cols))
        features = section.features_NF + self.noise * torch.randn(section.features_NF.shape, generator=generator)
        keep_F = torch.rand(features.shape[1], generator=generator) >= self.drop
        features = features * keep_F / (1 - self.drop)
        if self.hide:
            features = features * (torch.rand(len(features), 1, generator=generator) >= self.hide)
        return replace(section, features_NF=features)


def nearest(section: Section, n_spots: int, generator: torch.Generator) -> Tensor:
    """Choose the spots nearest to a random one with a target, in their order."""
    known = (~is_missing(section.target_N)).nonzero().squeeze(1)
    centre = known[torch.randint(len(known), (), generator=generator)]
    position_N2 = section.lattice.position_N2
    distance_N = (position_N2 - position_N2[centre]).square().sum(dim=1)
    return distance_N.topk(n_spots, largest=False).indices.sort().values


def is_missing(target_N: Tensor) -> Tensor:
    """Which spots have no domain, or no expression of any gene."""
    return target_N.isnan().flatten(1).any(dim=1) if target_N.is_floating_point() else target_N < 0


def take(section: Section, spot_T: Tensor) -> Section:
    """Some spots of a section; they stay in their cells, and so in their windows."""
    return replace(
        section,
        features_NF=section.features_NF[spot_T],
        lattice=section.lattice.take(spot_T),
        target_N=None if section.target_N is None else section.target_N[spot_T],
        views={element: values[spot_T] for element, values in section.views.items()},
    )


def require_spots(sections: Sequence[Section]) -> None:
    """Refuse sections without spots."""
    empty = [section.name for section in sections if not len(section.features_NF)]
    if empty:
        msg = f"sections {empty} have no spots; leave them out"
        raise ValueError(msg)


def collate(sections: Sequence[Section], device: torch.device | str = "cpu") -> Batch:
    """Concatenate sections into one batch, without padding."""
    targets = [s.target_N for s in sections]
    return Batch(
        (torch.cat([s.features_NF for s in sections]) if len(sections) > 1 else sections[0].features_NF).to(device),
        Lattice.concatenate([s.lattice for s in sections]).to(device),
        None if any(t is None for t in targets) else torch.cat(targets).to(device),
    )
