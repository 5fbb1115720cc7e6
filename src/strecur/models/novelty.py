"""Distance of sections from those a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur._anndata import Sections


@dataclass(frozen=True, eq=False)
class FamiliarSections:
    """Means of the training sections in the space of the representation, before any standardisation.

    A network answers with confidence far from what it has seen, and standardising a section hides how strange it is.
    The mean of a whole section is known well enough to tell other tissues, other chemistries and other depths apart.

    Attributes
    ----------
    means_SP
        Mean of each training section, float32.
    scale_P
        Standard deviation of the spots within training sections, float32.
    """

    means_SP: np.ndarray
    scale_P: np.ndarray

    def novelty(self, values_NP: np.ndarray) -> float:
        """Return the distance to the nearest training section, in units of the mean distance between these.

        NaN with a single training section, which knows no distance.
        """
        if len(self.means_SP) < 2:
            return np.nan
        nearest = min(self.distance(values_NP.mean(axis=0), mean) for mean in self.means_SP)
        return float(nearest / max(self.between, 1e-12))

    @cached_property
    def between(self) -> float:
        """Mean distance between two training sections."""
        return float(np.mean([self.distance(a, b) for a, b in combinations(self.means_SP, 2)]))

    def distance(self, a_P: np.ndarray, b_P: np.ndarray) -> float:
        """Return the root mean square difference of two means, in standard deviations of the spots."""
        return float(np.sqrt(np.square((a_P - b_P) / self.scale_P).mean()))


def find_familiar(values_NP: np.ndarray, sections: Sections, training: Sequence[str]) -> FamiliarSections:
    """Describe the training sections by the representation of their spots."""
    parts = [values_NP[sections.rows(name)] for name in training]
    scale_P = np.sqrt(np.mean([part.var(axis=0) for part in parts], axis=0))
    return FamiliarSections(
        np.stack([part.mean(axis=0) for part in parts]).astype(np.float32),
        np.where(scale_P > 1e-6, scale_P, 1.0).astype(np.float32),
    )
