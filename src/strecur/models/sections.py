"""From the sections of a table to those of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from strecur.engine import Section
from strecur.nn import Lattice

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur._anndata import SectionData
    from strecur.models.features.spots import Inputs

MIN_SECTIONS = 4
"""With fewer sections, one that is held out for validation costs more than it gains."""


@dataclass(frozen=True)
class Split:
    """Sections to train on and to validate on, and which spots of the former have a target."""

    training: list[str]
    held_out: list[str]
    in_training_N: np.ndarray
    known_N: np.ndarray

    @property
    def taught_N(self) -> np.ndarray:
        """Positions of the spots that are learned from."""
        return np.flatnonzero(self.in_training_N & self.known_N)


def split_sections(data: SectionData, known_N: np.ndarray, validation: str | Sequence[str] | None, rng: int) -> Split:
    """Hold out some of the sections that have a target; sections without one are left out."""
    names = [name for name in data.names if known_N[data.rows(name)].any()]
    held_out = choose_validation(validation, names, rng)
    training = [name for name in names if name not in held_out]
    return Split(training, held_out, data.within(training), known_N)


def choose_validation(validation: str | Sequence[str] | None, names: Sequence[str], rng: int) -> list[str]:
    """Choose validation sections: those named, none, or with ``"auto"`` one of at least four."""
    if validation is None:
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
