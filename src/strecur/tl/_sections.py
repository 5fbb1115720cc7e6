"""What both tasks share: from an AnnData to the sections of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from strecur.engine import Section
from strecur.nn import Lattice

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from strecur._anndata import Grid, Sections

# With fewer sections, giving one away costs more than choosing the checkpoint gains.
MIN_SECTIONS = 4


def make_sections(
    features: np.ndarray,
    sections: Sections,
    grid: Grid,
    names: Sequence[str],
    target: np.ndarray | None = None,
    views: Mapping[int, np.ndarray] | None = None,
) -> list[Section]:
    """Cut features (and those of other symmetries), lattice and target into the named sections."""
    made = []
    for name in names:
        rows = sections.rows(name)
        lattice = Lattice(torch.from_numpy(grid.row[rows]), torch.from_numpy(grid.col[rows]), (len(rows),), grid.layout)
        own_target = None if target is None else torch.from_numpy(target[rows])
        own_views = {element: torch.from_numpy(values[rows]) for element, values in (views or {}).items()}
        own = features if len(rows) == len(features) else features[rows]  # large enough to do without a copy
        made.append(Section(name, torch.from_numpy(own), lattice, own_target, own_views))
    return made


def choose_validation(validation: str | Sequence[str] | None, names: Sequence[str], rng: int) -> list[str]:
    """Sections to select the checkpoint on: named ones, none, or with ``"auto"`` one of at least four."""
    if validation is None:
        return []
    if validation == "auto":
        return [names[np.random.default_rng(rng).integers(len(names))]] if len(names) >= MIN_SECTIONS else []
    chosen = [str(name) for name in np.atleast_1d(np.asarray(validation, dtype=object))]
    unknown = [name for name in chosen if name not in names]
    if unknown:
        msg = f"validation sections {unknown} are not among the sections to learn from {list(names)}"
        raise ValueError(msg)
    if len(chosen) == len(names):
        msg = f"all sections {list(names)} are for validation; none is left to train on"
        raise ValueError(msg)
    return chosen


def join(sections: Sections, parts: Sequence[np.ndarray], *, axis: int) -> np.ndarray:
    """Put results by section back into the order of the AnnData."""
    order = np.concatenate([sections.rows(name) for name in sections.names])
    return np.take(np.concatenate(parts, axis=axis), np.argsort(order), axis=axis).astype(np.float32)
