from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Sequence

# More sites than these never tie for the last place among the nearest of a regular lattice of moderate size.
MAX_TIES = 24
CHUNK = 16_384


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centre and scale of one section; a constant column has scale 1."""
    scale = features.std(axis=0)
    return features.mean(axis=0), np.where(scale > 1e-6, scale, 1.0)


def neighbourhood_means(features: np.ndarray, positions: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Average the features over the nearest spots of the same section, the spot itself included.

    Spots that tie for the last place share it, so the result depends on no order and keeps the lattice's symmetries.

    Parameters
    ----------
    features
        One section, spots × features.
    positions
        Spots × 2.
    sizes
        Numbers of spots to average over; more than the section has means all of it. Empty: no columns.

    Returns
    -------
    Spots × (features · sizes), float32, in the order of ``sizes``.
    """
    n_spots = len(features)
    tree = cKDTree(positions)
    means = np.empty((n_spots, len(sizes), features.shape[1]), dtype=np.float32)
    n_query = min(max(sizes, default=1) + MAX_TIES, n_spots)
    for start in range(0, n_spots, CHUNK):
        rows = slice(start, start + CHUNK)
        distance, neighbour = tree.query(positions[rows], k=np.arange(1, n_query + 1), workers=-1)
        for s, size in enumerate(sizes):
            near = slice(min(size + MAX_TIES, n_query))
            weights = shared_last_place(distance[:, near], min(size, n_spots))
            means[rows, s] = weighted_sums(weights, neighbour[:, near], features)
    return means.reshape(n_spots, -1)


def shared_last_place(distance: np.ndarray, size: int) -> np.ndarray:
    """Return weights that sum to one: equal for the nearest ``size`` spots, the last place shared among ties."""
    limit = distance[:, size - 1, None]
    tolerance = 1e-6 * (1 + limit)
    inside, tied = distance < limit - tolerance, np.abs(distance - limit) <= tolerance
    share = (size - inside.sum(axis=1)) / tied.sum(axis=1)
    return (inside + tied * share[:, None]) / size


def weighted_sums(weights: np.ndarray, neighbour: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Sum over neighbours as one sparse product."""
    from scipy import sparse

    pointer = np.arange(len(weights) + 1) * weights.shape[1]
    shape = (len(weights), len(features))
    return sparse.csr_matrix((weights.ravel(), neighbour.ravel(), pointer), shape=shape) @ features
