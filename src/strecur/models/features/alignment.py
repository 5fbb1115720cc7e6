"""Centre and scale of a section that may hold only a part of the tissue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logsumexp, softmax

from strecur.models.features.neighbourhood import moments, neighbourhood_means
from strecur.models.gaussians import Gaussians, fit_gaussians

if TYPE_CHECKING:
    from collections.abc import Sequence

COMPONENTS, MIN_COMPONENTS = 20, 10
"""Leading components in which domains are told apart, fewer with few spots."""

RING = 19
"""Spots of a surroundings, whose means tell domains apart better than single spots."""

MIN_SURROUNDINGS = 2
"""Surroundings side by side in training for each component, for a covariance that can be relied on."""

STEPS = 6
PRIOR_SPOTS = 50
"""Spots that the moments of the training sections count as."""

SHIFT_SD, SCALE_SD = 0.5, 0.3
"""Usual difference between sections: of centres, in standard deviations of the spots, and of log scales."""

STRANGE = 0.99
"""Training spots less strange than this share may belong to a domain."""


@dataclass(frozen=True, eq=False)
class DomainMoments:
    """Moments of the domains in training, by which a new section is centred and scaled.

    Sections are centred and scaled separately, which is right as long as they hold the same domains. The moments of a
    section that holds a part of them follow from those of its domains. Domains and moments are estimated in turn
    (expectation maximisation), starting at the moments of the training sections; spots far from all domains do not
    count. The section's own moments are used where they make its spots at least as likely, as in whole sections.

    Attributes
    ----------
    centre_P, scale_P
        Mean over the training sections of their own moments, float32.
    mean_CP, variance_CP
        Of the spots of each domain, after each training section was centred and scaled, float32.
    surroundings
        Domains in the means of the leading components over the 19 nearest spots.
    limit
        Squared distance to its domain that 99 % of the surroundings in training do not reach.
    """

    centre_P: np.ndarray
    scale_P: np.ndarray
    mean_CP: np.ndarray
    variance_CP: np.ndarray
    surroundings: Gaussians
    limit: float

    def of_section(self, values_NP: np.ndarray, positions_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return centre and scale of a section.

        Parameters
        ----------
        values_NP
            Representation of its spots.
        positions_N2
            Where the spots lie.
        """
        leading = self.surroundings.mean_CF.shape[1]
        means_NS = neighbourhood_means(values_NP[:, :leading], positions_N2, (RING,))
        own = moments(values_NP)
        matched = self.match(values_NP, means_NS)
        return matched if self.support(means_NS, *matched) > self.support(means_NS, *own) else own

    def match(self, values_NP: np.ndarray, means_NS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Estimate the moments from those of the domains that the section holds."""
        centre_P, scale_P = self.centre_P, self.scale_P
        values_NP = values_NP.astype(np.float64)  # sums of squares lose small differences
        squared_NP = np.square(values_NP)
        for _ in range(STEPS):
            share_NC = softmax(self.log_densities(means_NS, centre_P, scale_P), axis=1)[:, :-1]
            count_C, known_N = share_NC.sum(axis=0), share_NC.sum(axis=1)
            if count_C.sum() < 1:  # no spot belongs to a domain
                break
            total = count_C.sum() + PRIOR_SPOTS
            mean_CP = share_NC.T @ values_NP / np.maximum(count_C, 1e-9)[:, None]
            within_P = np.maximum(known_N @ squared_NP - count_C @ np.square(mean_CP), 0)
            ratio_P = within_P / (count_C @ self.variance_CP)
            share = PRIOR_SPOTS / total
            scale_P = np.sqrt((1 - share) * ratio_P + share * np.square(self.scale_P))
            rest_P = known_N @ values_NP - scale_P * (count_C @ self.mean_CP)
            centre_P = (rest_P + PRIOR_SPOTS * self.centre_P) / total
        return centre_P.astype(np.float32), scale_P.astype(np.float32)

    def support(self, means_NS: np.ndarray, centre_P: np.ndarray, scale_P: np.ndarray) -> float:
        """Return the log-likelihood of the surroundings, which overlap, and of these moments."""
        leading = means_NS.shape[1]
        log_scale_S = np.log(scale_P[:leading])
        density_N = logsumexp(self.log_densities(means_NS, centre_P, scale_P), axis=1)
        shift_S = ((centre_P - self.centre_P) / self.scale_P)[:leading]
        stretch_S = log_scale_S - np.log(self.scale_P[:leading])
        # heavy tails: another technology may differ in all components
        prior = -np.log1p(np.square(np.concatenate([shift_S / SHIFT_SD, stretch_S / SCALE_SD]))).sum()
        return float((density_N - log_scale_S.sum()).sum() / RING + prior)

    def log_densities(self, means_NS: np.ndarray, centre_P: np.ndarray, scale_P: np.ndarray) -> np.ndarray:
        """Log densities of every surroundings in every domain, and in the last column outside all of them."""
        leading = means_NS.shape[1]
        distance_NC = self.surroundings.squared_distances((means_NS - centre_P[:leading]) / scale_P[:leading])
        outside_N1 = np.full((len(means_NS), 1), self.limit)
        return self.surroundings.log_density_at_mean - np.hstack([distance_NC, outside_N1]) / 2


def fit_moments(
    values_NP: np.ndarray, positions_N2: np.ndarray, target_N: np.ndarray, sections: Sequence[np.ndarray]
) -> DomainMoments | None:
    """Fit the domains of the training sections; ``None`` with too few spots.

    Parameters
    ----------
    values_NP
        Representation of all spots.
    positions_N2
        Where the spots lie in their section.
    target_N
        Domain of every spot, -1 where there is none.
    sections
        Positions of the spots of each training section.
    """
    rows, known_N = np.concatenate(sections), target_N[np.concatenate(sections)] >= 0
    leading = min(COMPONENTS, values_NP.shape[1], int(known_N.sum()) // (MIN_SURROUNDINGS * RING))
    if leading < min(MIN_COMPONENTS, values_NP.shape[1]):
        return None
    of_each = [moments(values_NP[part]) for part in sections]
    own_NP = np.vstack([(values_NP[part] - mean) / sd for part, (mean, sd) in zip(sections, of_each, strict=True)])
    ends = np.cumsum([len(part) for part in sections])[:-1]
    means_NS = np.vstack(
        [
            neighbourhood_means(own[:, :leading], positions_N2[part], (RING,))
            for own, part in zip(np.split(own_NP, ends), sections, strict=True)
        ]
    )
    group_N = target_N[rows][known_N]
    own_NP, means_NS = own_NP[known_N], means_NS[known_N]
    surroundings = fit_gaussians(means_NS, group_N)
    distance_N = surroundings.squared_distances(means_NS)[np.arange(len(group_N)), group_N]
    groups = [own_NP[group_N == group] for group in range(group_N.max() + 1)]
    return DomainMoments(
        np.mean([mean for mean, _ in of_each], axis=0).astype(np.float32),
        np.sqrt(np.mean([np.square(sd) for _, sd in of_each], axis=0)).astype(np.float32),
        np.stack([part.mean(axis=0) for part in groups]).astype(np.float32),
        np.maximum([part.var(axis=0) for part in groups], 1e-6).astype(np.float32),
        surroundings,
        float(np.quantile(distance_N, STRANGE)),
    )
