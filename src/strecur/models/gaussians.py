"""Groups of points as Gaussians with a common covariance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHRINKAGE = 0.01
"""Share of an isotropic covariance, so that directions in which training spots hardly vary do not decide."""

CHUNK = 16_384


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Means of groups and their common covariance.

    Attributes
    ----------
    mean_CF
        Mean of each group, float32.
    whiten_FF
        Triangular factor of the inverse covariance: ``whiten_FF @ whiten_FF.T``, float32.
    """

    mean_CF: np.ndarray
    whiten_FF: np.ndarray

    @property
    def log_density_at_mean(self) -> float:
        """Logarithm of the density at a mean, without the constant for the number of dimensions."""
        return float(np.log(np.diag(self.whiten_FF)).sum())

    def squared_distances(self, values_NF: np.ndarray) -> np.ndarray:
        """Squared Mahalanobis distance of every point to every group, points × groups float64."""
        centres_CF = self.mean_CF.astype(np.float64) @ self.whiten_FF
        found = np.empty((len(values_NF), len(centres_CF)))
        for start in range(0, len(values_NF), CHUNK):
            rows = slice(start, start + CHUNK)
            white_NF = values_NF[rows].astype(np.float64) @ self.whiten_FF
            found[rows] = np.square(white_NF[:, None] - centres_CF).sum(axis=2)
        return found


def fit_gaussians(values_NF: np.ndarray, group_N: np.ndarray) -> Gaussians:
    """Fit the groups 0, 1, …, each of which has points."""
    from sklearn.covariance import ShrunkCovariance

    mean_CF = group_means(values_NF, group_N)
    fitted = ShrunkCovariance(shrinkage=SHRINKAGE, assume_centered=True, store_precision=False)
    covariance_FF = fitted.fit(values_NF - mean_CF[group_N]).covariance_
    # constant columns tell nothing
    floor = max(1e-6 * np.trace(covariance_FF) / len(covariance_FF), 1e-12)
    whiten_FF = np.linalg.cholesky(np.linalg.inv(covariance_FF + floor * np.eye(len(covariance_FF))))
    return Gaussians(mean_CF.astype(np.float32), whiten_FF.astype(np.float32))


def group_means(values_NF: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Mean of each group 0, 1, …, float64."""
    return np.stack([values_NF[group_N == group].mean(axis=0, dtype=np.float64) for group in range(group_N.max() + 1)])
