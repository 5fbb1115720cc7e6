"""The augmentation of HiST (paper 001): mirrored, sheared, turned and thinned out sections on a fine lattice."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from strecur.nn import Lattice

if TYPE_CHECKING:
    from strecur.engine.data import Section


@dataclass(frozen=True)
class HistAugmentation:
    """Deform the lattice of a section at random; features and targets stay with their spots.

    The schedule scales probabilities, not angles. Patches are not turned with the lattice.

    Attributes
    ----------
    mirror, shear, rotate
        Probability of each deformation.
    drop
        Probability that a spot is left out.
    max_shear, max_turn
        Largest angle of shear, and of a turn away from a right angle, in degrees.
    last
        Share of the probabilities that is left at the end of the training, approached linearly.
    cells_per_pitch
        Cells to the distance of neighbouring spots; from 1.5 on hardly any spot moves by more than one.
    strength
        Share of the probabilities now.
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

    def at(self, share_done: float) -> HistAugmentation:
        """As it is after some share of the training, 0 to 1."""
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
        """Linear map of (down, right) positions, 2 × 2: mirrored, then sheared, then turned."""
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


def free_cells(position_N2: Tensor) -> Tensor:
    """Give every position a cell of its own, integers (N, 2) from 0 on.

    The position that is closest to a cell takes it; the others, closest first, take the nearest cell that is left.
    """
    position_N2 = position_N2.numpy()
    cell_N2 = np.floor(position_N2 + 0.5).astype(np.int64)
    closest_first = np.argsort(np.square(position_N2 - cell_N2).sum(axis=1), kind="stable")
    _, first = np.unique(cell_N2[closest_first], axis=0, return_index=True)
    waiting = np.delete(closest_first, first)
    taken = set(map(tuple, cell_N2[closest_first[first]].tolist()))
    for i in waiting:
        chosen = nearest_free(*position_N2[i].tolist(), taken)
        taken.add(chosen)
        cell_N2[i] = chosen
    return torch.from_numpy(cell_N2 - cell_N2.min(axis=0))


def nearest_free(row: float, col: float, taken: set[tuple[int, int]]) -> tuple[int, int]:
    """Find the nearest cell that is not taken, by true distance, in growing squares around the position."""
    home_row, home_col = math.floor(row + 0.5), math.floor(col + 0.5)
    reach, best, chosen = 0, math.inf, None
    while best > reach - 0.5:
        steps = range(-reach, reach + 1)
        ring = ((home_row + i, home_col + j) for i in steps for j in steps if max(abs(i), abs(j)) == reach)
        for cell in ring:
            distance = math.hypot(cell[0] - row, cell[1] - col)
            if distance < best and cell not in taken:
                best, chosen = distance, cell
        reach += 1
    return chosen
