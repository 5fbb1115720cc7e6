"""Augmentation of training sections."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from strecur.engine.data import is_missing, symmetries, take_spots, view
from strecur.nn import Lattice

if TYPE_CHECKING:
    from strecur.engine.data import Section


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training section, drawn anew at every visit.

    Attributes
    ----------
    noise
        Standard deviation of the Gaussian noise added to every feature.
    drop
        Feature dropout: probability that a feature is zero for the whole section; the others are scaled up.
    hide
        Spot dropout (masking): probability that all features of a spot are zero, so that its target has to be
        predicted from its surroundings.
    symmetric
        Flip (on square lattices also rotate) the section at random.
    max_shift
        Shift the lattice by up to this many cells, relative to the windows.
    max_spots
        Crop sections to at most this many spots: the nearest neighbours of a randomly chosen spot with a target, so
        that the cost of a visit does not depend on the size of the section. If 0, use whole sections.
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
            section = take_spots(section, nearest(section, self.max_spots, generator))
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
    """Choose the nearest neighbours of a random spot with a target, in their order."""
    assert section.target_N is not None
    known = (~is_missing(section.target_N)).nonzero().squeeze(1)
    centre = known[torch.randint(len(known), (), generator=generator)]
    position_N2 = section.lattice.position_N2
    distance_N = (position_N2 - position_N2[centre]).square().sum(dim=1)
    return distance_N.topk(n_spots, largest=False).indices.sort().values


@dataclass(frozen=True)
class HistAugmentation:
    """Augmentation of HiST :cite:p:`hist`: random flips, shears and rotations of the lattice, and spots left out.

    Features and targets stay with their spots; patches are not rotated with the lattice. The deformed section is on an
    irregular lattice. The probabilities decrease over the training.

    Attributes
    ----------
    mirror, shear, rotate
        Probability of each deformation.
    drop
        Probability that a spot is left out.
    max_shear, max_turn
        Largest angle of shear, and of rotation away from multiples of 90°, in degrees.
    last
        Factor on the probabilities at the end of the training.
    cells_per_pitch
        Cells per distance of neighbouring spots; with at least 1.5, hardly any spot moves by more than one cell.
    strength
        Current factor on the probabilities.
    schedule
        How the factor goes from 1 to ``last``: ``"linear"``, or ``"cosine"`` as in the paper.

    Examples
    --------
    >>> from strecur.engine import HistAugmentation
    >>> [round(HistAugmentation(schedule="cosine").at(share).strength, 2) for share in (0, 0.25, 0.5, 1)]
    [1.0, 0.88, 0.6, 0.2]
    """

    mirror: float = 0.75
    shear: float = 0.75
    rotate: float = 0.75
    drop: float = 0.2
    max_shear: float = 15.0
    max_turn: float = 30.0
    last: float = 0.2
    cells_per_pitch: float = 1.5
    strength: float = 1.0
    schedule: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if self.schedule not in {"linear", "cosine"}:
            msg = f"schedule={self.schedule!r}; choose 'linear' or 'cosine'"
            raise ValueError(msg)

    def at(self, share_done: float) -> HistAugmentation:
        """Return the augmentation after a share of the training, from 0 to 1."""
        if self.schedule == "cosine":
            share_done = (1 - math.cos(math.pi * share_done)) / 2
        return replace(self, strength=1 + (self.last - 1) * share_done)

    def __call__(self, section: Section, generator: torch.Generator) -> Section:
        """Draw one deformed copy."""
        kept_N = torch.rand(len(section.features_NF), generator=generator) >= self.drop * self.strength
        kept_N[0] |= not kept_N.any()
        position_N2 = section.lattice.position_N2[kept_N]
        if section.lattice.layout != "irregular":
            position_N2 = position_N2 * self.cells_per_pitch
        centred_N2 = position_N2 - position_N2.mean(dim=0).round()
        cell_N2 = free_cells(centred_N2 @ self.draw_map(generator).T)
        lattice = Lattice(cell_N2[:, 0], cell_N2[:, 1], (len(cell_N2),), "irregular")
        target_N = None if section.target_N is None else section.target_N[kept_N]
        return replace(section, features_NF=section.features_NF[kept_N], lattice=lattice, target_N=target_N, views={})

    def draw_map(self, generator: torch.Generator) -> Tensor:
        """Draw the linear map of (down, right) positions, 2 × 2: flip, then shear, then rotation."""
        happens_3 = torch.rand(3, generator=generator) < self.strength * torch.tensor(
            [self.mirror, self.shear, self.rotate]
        )
        quarters = int(torch.randint(4, (), generator=generator))
        lean, deviation = (2 * torch.rand(2, generator=generator) - 1).tolist()
        found = torch.eye(2, dtype=torch.float64)
        if happens_3[0]:
            found = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)) @ found
        if happens_3[1]:
            slope = math.tan(math.radians(self.max_shear * lean))
            found = torch.tensor([[1.0, slope], [0.0, 1.0]], dtype=torch.float64) @ found
        if happens_3[2]:
            angle = math.radians(90 * quarters + self.max_turn * deviation)
            turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
            found = torch.tensor(turn, dtype=torch.float64) @ found
        return found


def free_cells(positions: Tensor) -> Tensor:
    """Assign every position to a cell of its own, integers (N, 2) from 0.

    The position closest to a cell takes it; the others, closest first, take the nearest free cell.
    """
    position_N2 = positions.numpy()
    cell_N2 = np.floor(position_N2 + 0.5).astype(np.int64)
    closest_first = np.argsort(np.square(position_N2 - cell_N2).sum(axis=1), kind="stable")
    _, first = np.unique(cell_N2[closest_first], axis=0, return_index=True)
    waiting = np.delete(closest_first, first)
    taken = set(map(tuple, cell_N2[closest_first[first]].tolist()))
    for i in waiting:
        row, col = position_N2[i].tolist()
        chosen = nearest_free(row, col, taken)
        taken.add(chosen)
        cell_N2[i] = chosen
    return torch.from_numpy(cell_N2 - cell_N2.min(axis=0))


def nearest_free(row: float, col: float, taken: set[tuple[int, int]]) -> tuple[int, int]:
    """Find the nearest free cell, searching in growing squares around the position."""
    home_row, home_col = math.floor(row + 0.5), math.floor(col + 0.5)
    reach, best, chosen = 0, math.inf, (home_row, home_col)
    while best > reach - 0.5:
        steps = range(-reach, reach + 1)
        ring = ((home_row + i, home_col + j) for i in steps for j in steps if max(abs(i), abs(j)) == reach)
        for cell in ring:
            distance = math.hypot(cell[0] - row, cell[1] - col)
            if distance < best and cell not in taken:
                best, chosen = distance, cell
        reach += 1
    return chosen
