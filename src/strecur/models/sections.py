"""From the sections of a table to those of the engine."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from strecur._arguments import filled
from strecur.engine import Section
from strecur.engine.augmentation import nearest
from strecur.engine.data import is_missing, take_spots
from strecur.nn import Lattice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur._anndata import SectionData
    from strecur.models.features.spots import Inputs

logger = logging.getLogger("strecur")

MIN_SECTIONS = 4
"""With fewer sections, one that is held out for validation costs more than it gains."""

BLOCKS = "blocks"
"""Validation on blocks of the training sections."""

BLOCKS_ALONG_SIDE = 6
BLOCK_SHARE = 0.15
"""Share of the spots with a target that lie in validation blocks."""

CHECKED_SPOTS = 5_000
"""Spots by which a collapse is noticed: a single section may be of one domain throughout."""

MIN_BLOCK_SPOTS = 25
"""With fewer spots in blocks, chance would choose."""


@dataclass(frozen=True)
class Split:
    """Sections to train on and to validate on, which spots have a target, and which of these lie in validation blocks.

    Blocks are parts of the training sections whose targets the network does not learn from; none with ``held_out``.
    """

    training: list[str]
    held_out: list[str]
    in_training_N: np.ndarray
    known_N: np.ndarray
    in_block_N: np.ndarray

    @property
    def taught_N(self) -> np.ndarray:
        """Positions of the spots of training sections that have a target."""
        return np.flatnonzero(self.in_training_N & self.known_N)


def smallest_sections(sections: Sequence[Section]) -> list[Section]:
    """Return the smallest sections that hold enough spots together to notice a collapse."""
    by_size = sorted(sections, key=lambda section: len(section.features_NF))
    before_S = np.cumsum([0, *(len(section.features_NF) for section in by_size)])[:-1]
    return [section for section, before in zip(by_size, before_S, strict=True) if before < CHECKED_SPOTS]


def split_sections(
    data: SectionData, group_N: np.ndarray, validation: str | Sequence[str] | None, rng: int, *, auto_blocks: bool
) -> Split:
    """Hold out sections or blocks of those that have a target; sections without one are left out.

    Parameters
    ----------
    data
        Sections.
    group_N
        Domain of every spot, or zero where tasks know no domains; -1 without a target.
    validation
        Option of :class:`strecur.Training`.
    rng
        Seed of the choice.
    auto_blocks
        Whether ``"auto"`` takes blocks where no section can be spared.
    """
    known_N = group_N >= 0
    names = [name for name in data.names if known_N[data.rows(name)].any()]
    held_out = choose_validation(validation, names, rng)
    training = [name for name in names if name not in held_out]
    in_block_N = np.zeros(len(group_N), dtype=bool)
    wanted = (BLOCKS, "auto") if auto_blocks else (BLOCKS,)
    if not held_out and isinstance(validation, str) and validation in wanted:
        chosen_N = choose_blocks(data, training, group_N, rng)
        if chosen_N.sum() >= MIN_BLOCK_SPOTS:
            in_block_N = chosen_N
        else:
            logger.info("too few spots to hold blocks out; the length of the training is not chosen")
    return Split(training, held_out, data.within(training), known_N, in_block_N)


def choose_blocks(data: SectionData, names: Sequence[str], group_N: np.ndarray, rng: int) -> np.ndarray:
    """Mark the spots of randomly chosen blocks, so that every group keeps half of its spots or more.

    A block is a 6 × 6th of the extent of a section; about 15 % of the spots of a section lie in the chosen ones.
    """
    generator = np.random.default_rng(rng)
    in_block_N = np.zeros(len(group_N), dtype=bool)
    spare_C = np.bincount(group_N[data.within(names) & (group_N >= 0)]) // 2
    for name in names:
        rows = data.rows(name)[group_N[data.rows(name)] >= 0]
        row, col = (np.floor(BLOCKS_ALONG_SIDE * relative(axis[rows])) for axis in (data.grid.row, data.grid.col))
        block_N, wanted = BLOCKS_ALONG_SIDE * row + col, BLOCK_SHARE * len(rows)
        for block in generator.permutation(np.unique(block_N)):
            own = rows[block_N == block]
            taken_C = np.bincount(group_N[own], minlength=len(spare_C))
            if len(own) <= wanted and (taken_C <= spare_C).all():
                in_block_N[own] = True
                wanted, spare_C = wanted - len(own), spare_C - taken_C
    return in_block_N


def relative(values_N: np.ndarray) -> np.ndarray:
    """Scale values to 0 and just below 1."""
    least = values_N.min()
    return (values_N - least) / (values_N.max() - least + 1)


def choose_validation(validation: str | Sequence[str] | None, names: Sequence[str], rng: int) -> list[str]:
    """Choose validation sections: those named, none, or with ``"auto"`` one of at least four."""
    if validation is None or (isinstance(validation, str) and validation == BLOCKS and BLOCKS not in names):
        return []
    if isinstance(validation, str) and validation == "auto":
        return [names[int(np.random.default_rng(rng).integers(len(names)))]] if len(names) >= MIN_SECTIONS else []
    chosen = [str(name) for name in np.atleast_1d(np.asarray(validation, dtype=object))]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        msg = f"validation sections {unknown} are not among the sections to learn from {list(names)}"
        raise ValueError(msg)
    if len(chosen) == len(names):
        msg = f"all sections {list(names)} are for validation; none is left to train on"
        raise ValueError(msg)
    return chosen


def hide_targets(target_N: np.ndarray, hidden_N: np.ndarray) -> np.ndarray:
    """Return a copy of targets, spots or spots × genes, in which those of some spots are missing."""
    missing = np.nan if target_N.dtype.kind == "f" else -1
    return np.where(hidden_N.reshape(-1, *[1] * (target_N.ndim - 1)), missing, target_N).astype(target_N.dtype)


def engine_sections(
    data: SectionData, inputs: Inputs, names: Sequence[str] | None = None, target: np.ndarray | None = None
) -> list[Section]:
    """Cut features, lattice and target into sections, all of them or those named."""
    made = []
    for name in data.names if names is None else names:
        rows, grid = data.rows(name), data.grid
        lattice = Lattice(torch.from_numpy(grid.row[rows]), torch.from_numpy(grid.col[rows]), (len(rows),), grid.layout)
        own_target = None if target is None else torch.from_numpy(target[rows])
        own_views = {element: torch.from_numpy(values[rows]) for element, values in inputs.views.items()}
        columns = inputs.columns_NF
        own = columns if len(rows) == len(columns) else columns[rows]  # large enough to save a copy
        made.append(Section(name, torch.from_numpy(own), lattice, own_target, own_views))
    return made


def has_target(section: Section) -> bool:
    """Whether some spot of a section has a target."""
    return not bool(is_missing(filled(section.target_N)).all())


def surroundings(section: Section, n_spots: int) -> Section:
    """Return the nearest spots of one that has a target, which is the same for the same section."""
    if len(section.features_NF) <= n_spots:
        return section
    return take_spots(section, nearest(section, n_spots, torch.Generator().manual_seed(0)))
