"""How unlike a section, and each of its spots, is to those a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from strecur._geometry import physical_positions
from strecur.models.features.neighbourhood import neighbourhood_means
from strecur.models.gaussians import Gaussians, fit_gaussians

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from strecur._anndata import SectionData, Sections

    Fit = Callable[[np.ndarray, np.ndarray], np.ndarray]

COMPONENTS = 20
"""Leading components in which spots are compared."""

MAX_SIZES = 2
"""Neighbourhoods at most, the smallest ones, whose means are compared."""

MIN_NEIGHBOURHOODS = 2
"""Neighbourhoods side by side in training for each component, for a covariance that can be relied on."""

SMOOTHED = 19
"""Spots over which scores are averaged."""

MIN_REFERENCE = 100
"""Training spots from which the strangest hundredth of them is known."""

N_BLOCKS = 3
"""Blocks of a section, each of which is judged once."""

LEVELS = np.linspace(0, 0.99, 397)
TINY = 1e-12

PREFIX = "novelty."
"""Of the names of arrays in model folders."""


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


@dataclass(frozen=True, eq=False)
class SpotNovelty:
    """How strange a spot is, compared with training spots that were judged without their block.

    Three scores are averaged over the 19 nearest spots, and the largest, in units of its spread in training, decides:
    the distance to the nearest domain; this distance compared with that to the mean of all spots, which finds spots
    that lie between domains :cite:p:`relativemahalanobis`; and the energy of the linear baseline :cite:p:`energyood`.
    Without domains, as for expression, there is the first one alone.

    Attributes
    ----------
    columns_S
        Features that are compared: leading components of the smallest neighbourhoods.
    domains
        The domains, or all spots as one group.
    background
        All spots as one group.
    centre_K, spread_K
        Median of each score in training, and its distance from there to the quantile .9.
    quantiles_L
        Quantiles of the largest score in training, at ``LEVELS``.
    excess
        Mean of what lies above the last of these quantiles.
    """

    columns_S: np.ndarray
    domains: Gaussians
    background: Gaussians
    centre_K: np.ndarray
    spread_K: np.ndarray
    quantiles_L: np.ndarray
    excess: float

    def rate(self, features_NF: np.ndarray, logits_NC: np.ndarray | None, positions_N2: np.ndarray) -> np.ndarray:
        """Return the share of the training spots that were less strange, from 0 to 1, float32.

        Above .99, shares are extrapolated.

        Parameters
        ----------
        features_NF
            Features of the spots of one section.
        logits_NC
            Logits of the linear baseline; ``None`` without domains.
        positions_N2
            Where the spots lie.
        """
        scores_NK = strangeness(self.domains, self.background, features_NF[:, self.columns_S], logits_NC)
        worst_N = ((smoothed(scores_NK, positions_N2) - self.centre_K) / self.spread_K).max(axis=1)
        inside_N = np.interp(worst_N, self.quantiles_L, LEVELS)
        beyond_N = np.maximum(worst_N - self.quantiles_L[-1], 0) / self.excess
        share_N = np.where(beyond_N > 0, 1 - (1 - LEVELS[-1]) * np.exp(-beyond_N), inside_N)
        return np.where(np.isfinite(worst_N), share_N, np.nan).astype(np.float32)


def strangeness(
    domains: Gaussians, background: Gaussians, values_NS: np.ndarray, logits_NC: np.ndarray | None
) -> np.ndarray:
    """Return the scores of every spot, higher for stranger ones, spots × 3 or, without logits, spots × 1."""
    from scipy.special import logsumexp

    distance_N = domains.squared_distances(values_NS).min(axis=1)
    log_distance_N = np.log(distance_N + TINY)
    if logits_NC is None:
        return log_distance_N[:, None]
    relative_N = distance_N - background.squared_distances(values_NS)[:, 0]
    return np.column_stack([log_distance_N, relative_N, -logsumexp(logits_NC, axis=1)])


def smoothed(scores_NK: np.ndarray, positions_N2: np.ndarray) -> np.ndarray:
    """Average scores over the nearest spots."""
    return neighbourhood_means(scores_NK, positions_N2, (SMOOTHED,))


def compared_columns(width: int, sizes: Sequence[int], n_spots: int) -> np.ndarray:
    """Choose the features in which spots are compared.

    Leading components of the means over the smallest neighbourhoods, as many as the training sections hold enough of
    these for, side by side.

    Parameters
    ----------
    width
        Components.
    sizes
        Spots of the neighbourhoods whose means follow the components.
    n_spots
        Spots of the training.
    """
    leading = min(COMPONENTS, width)
    if not len(sizes):
        return np.arange(leading)
    smallest, *others = np.argsort(sizes, kind="stable")[:MAX_SIZES]
    few = min(leading, max(n_spots // (MIN_NEIGHBOURHOODS * sizes[smallest]), 1))
    compared = [(smallest, few)]
    compared += [(place, leading) for place in others if n_spots >= MIN_NEIGHBOURHOODS * leading * sizes[place]]
    return np.concatenate([(1 + place) * width + np.arange(n) for place, n in compared])


def fit_novelty(
    columns_S: np.ndarray,
    features: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    groups: Sequence[np.ndarray],
    fit_logits: Fit | None,
) -> SpotNovelty | None:
    """Fit on the training spots, and judge each of them by what was fitted without its block of the section.

    Parameters
    ----------
    columns_S
        From :func:`compared_columns`.
    features
        Features of the spots of each training section.
    positions
        Where the spots of each lie.
    groups
        Domain of every spot of each, -1 where there is none; without domains 0 for all.
    fit_logits
        Given which of all spots to learn from and which to judge, fits the linear baseline on the former and returns
        its logits of the latter; ``None`` without domains.

    Returns
    -------
    The fitted object; ``None`` with too few spots, or fewer than two domains outside a block.
    """
    features_NF, group_N = np.concatenate(features), np.concatenate(groups)
    # in every round another block of each section is judged, so that the other sections show its tissue
    block_N = np.concatenate([(blocks(place_N2) + i) % N_BLOCKS for i, place_N2 in enumerate(positions)])
    known_N = group_N >= 0
    values_NS = features_NF[:, columns_S]

    scores_NK = np.empty((len(group_N), 1 if fit_logits is None else 3))
    fair_N = known_N.copy()
    for block in range(N_BLOCKS):
        taught_N, judged_N = known_N & (block_N != block), block_N == block
        present, own_N = np.unique(group_N[taught_N], return_inverse=True)
        if taught_N.sum() <= MIN_NEIGHBOURHOODS * len(columns_S) or len(present) < (1 if fit_logits is None else 2):
            return None
        fair_N[judged_N] &= np.isin(group_N[judged_N], present)  # others are strange indeed
        logits = None if fit_logits is None else fit_logits(taught_N, judged_N)
        scores_NK[judged_N] = strangeness(*fit_pair(values_NS[taught_N], own_N), values_NS[judged_N], logits)
    ends = np.cumsum([len(part) for part in features])[:-1]
    parts = [smoothed(part, place) for part, place in zip(np.split(scores_NK, ends), positions, strict=True)]
    if fair_N.sum() < MIN_REFERENCE:
        return None
    reference_NK = np.concatenate(parts)[fair_N]
    centre_K, high_K = np.quantile(reference_NK, [0.5, 0.9], axis=0)
    spread_K = np.maximum(high_K - centre_K, TINY)
    worst_N = ((reference_NK - centre_K) / spread_K).max(axis=1)
    quantiles_L = np.quantile(worst_N, LEVELS)
    above_N = worst_N[worst_N > quantiles_L[-1]] - quantiles_L[-1]
    excess = max(float(above_N.mean()) if len(above_N) else 0.0, TINY)
    pair = fit_pair(values_NS[known_N], group_N[known_N])
    return SpotNovelty(columns_S, *pair, centre_K, spread_K, quantiles_L, excess)


def fit_pair(values_NS: np.ndarray, group_N: np.ndarray) -> tuple[Gaussians, Gaussians]:
    """Fit groups, and all points as one group."""
    return fit_gaussians(values_NS, group_N), fit_gaussians(values_NS, np.zeros(len(group_N), dtype=int))


def fit_on_training(
    compared_NF: np.ndarray,
    width: int,
    sizes: Sequence[int],
    data: SectionData,
    training: Sequence[str],
    group_N: np.ndarray,
    fit_logits: Fit | None = None,
) -> SpotNovelty | None:
    """Fit on the training sections of a table.

    Parameters
    ----------
    compared_NF
        Features of all spots, as in :class:`strecur.models.features.spots.Inputs`: components, and their means over
        neighbourhoods.
    width, sizes
        Number of components, and spots of the neighbourhoods.
    data, training
        Sections, and the names of those of the training.
    group_N
        Domain of every spot, -1 where there is none; without domains 0 for all that are learned from.
    fit_logits
        Given positions in the table to learn from and to judge, fits the linear baseline on the former and returns its
        logits of the latter; ``None`` without domains.
    """
    grid, parts = data.grid, [data.rows(name) for name in training]
    rows = np.concatenate(parts)
    positions = [physical_positions(grid.row[part], grid.col[part], grid.layout) for part in parts]
    return fit_novelty(
        compared_columns(width, sizes, int((group_N[rows] >= 0).sum())),
        [compared_NF[part] for part in parts],
        positions,
        [group_N[part] for part in parts],
        None if fit_logits is None else lambda taught_N, judged_N: fit_logits(rows[taught_N], rows[judged_N]),
    )


def rate_section(
    novelty: SpotNovelty | None, features_NF: np.ndarray, logits_NC: np.ndarray | None, positions_N2: np.ndarray
) -> np.ndarray:
    """Rate the spots of a section as :meth:`SpotNovelty.rate` does; NaN if it is not known how strange spots are."""
    if novelty is None:
        return np.full(len(features_NF), np.nan, dtype=np.float32)
    return novelty.rate(features_NF, logits_NC, positions_N2)


def novelty_to_arrays(novelty: SpotNovelty | None) -> dict[str, np.ndarray]:
    """Name the arrays of a model folder."""
    if novelty is None:
        return {}
    found = {name: np.atleast_1d(value) for name, value in vars(novelty).items() if not isinstance(value, Gaussians)}
    for group in ("domains", "background"):
        found |= {f"{group}.{name}": value for name, value in vars(getattr(novelty, group)).items()}
    return {f"{PREFIX}{name}": value for name, value in found.items()}


def novelty_from_arrays(arrays: Mapping[str, np.ndarray]) -> SpotNovelty | None:
    """Undo :func:`novelty_to_arrays`."""
    own = {name.removeprefix(PREFIX): value for name, value in arrays.items() if name.startswith(PREFIX)}
    if not own:
        return None
    domains, background = (
        Gaussians(own.pop(f"{group}.mean_CF"), own.pop(f"{group}.whiten_FF")) for group in ("domains", "background")
    )
    excess = own.pop("excess").item()
    return SpotNovelty(**own, domains=domains, background=background, excess=excess)


def blocks(positions_N2: np.ndarray) -> np.ndarray:
    """Number the spots of a section by block: nine parts, of which three that share no row or column are one block."""
    inner = np.arange(1, N_BLOCKS) / N_BLOCKS
    row_N, col_N = (np.searchsorted(np.quantile(axis, inner), axis, side="right") for axis in positions_N2.T)
    return (row_N + col_N) % N_BLOCKS
