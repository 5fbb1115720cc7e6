"""Order of genes in which neighbours have similar expression, for next-scale generation (GenAR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from scipy import sparse

LARGEST_GROUP = 10
GENES_PER_PART = 12


@dataclass(frozen=True)
class GeneOrder:
    """A permutation of the genes and the groups it puts together.

    Attributes
    ----------
    order_G
        Which gene stands at each place, int64.
    group_G
        Group of the gene at each place, rising from 0, int64.
    """

    order_G: np.ndarray
    group_G: np.ndarray

    def arrange(self, values_NG: np.ndarray) -> np.ndarray:
        """Bring columns from the order of the panel into this order."""
        return self._checked(values_NG)[:, self.order_G]

    def restore(self, values_NG: np.ndarray) -> np.ndarray:
        """Bring columns back into the order of the panel."""
        return self._checked(values_NG)[:, np.argsort(self.order_G)]

    def _checked(self, values_NG: np.ndarray) -> np.ndarray:
        if values_NG.shape[1] != len(self.order_G):
            msg = f"{values_NG.shape[1]} genes for an order of {len(self.order_G)}; fit the order on the same panel"
            raise ValueError(msg)
        return values_NG


def gene_groups(counts_NG: np.ndarray | sparse.spmatrix, n_groups: int = 4, *, rng: int = 0) -> GeneOrder:
    """Cluster genes by their profile over the training spots and put each cluster's genes side by side.

    Profiles are standardised and clustered by k-means; a cluster of more than 10 genes is clustered again, into one
    part per 12 genes but at least 2. Clusters come in order of their mean count, the highest first, and the parts of
    a cluster likewise; inside a part genes keep the order of the panel. Genes without any count form the last group.
    Every gene of the panel is in the order: none is cut off.

    Parameters
    ----------
    counts_NG
        Raw counts of the training spots, spots × genes, array or sparse.
    n_groups
        Number of clusters, before large ones are split.
    rng
        Seed of k-means.

    Returns
    -------
    The order and its groups.

    Raises
    ------
    ValueError
        If fewer genes than groups have counts, or a count is NaN.

    Notes
    -----
    The released code of GenAR, in which clusters have the arbitrary order of k-means.
    """
    counts_NG = np.asarray(counts_NG if isinstance(counts_NG, np.ndarray) else counts_NG.toarray(), dtype=np.float64)
    if np.isnan(counts_NG).any():
        msg = "the counts hold NaN; fit the gene order on spots that were measured"
        raise ValueError(msg)
    mean_G = counts_NG.mean(axis=0)
    silent_G = np.asarray(~counts_NG.any(axis=0))
    expressed = np.flatnonzero(~silent_G)
    if len(expressed) < n_groups:
        msg = f"{len(expressed)} of {len(silent_G)} genes have counts, too few for n_groups={n_groups}; lower n_groups"
        raise ValueError(msg)
    profile_GN = standardised_profiles(counts_NG)
    groups = [
        part
        for cluster in clusters(expressed, profile_GN, mean_G, n_groups, rng)
        for part in split(cluster, profile_GN, mean_G, rng)
    ]
    if silent_G.any():
        groups.append(np.flatnonzero(silent_G))
    return GeneOrder(np.concatenate(groups), np.repeat(np.arange(len(groups)), [len(group) for group in groups]))


def order_genes(counts_NG: np.ndarray, how: str, n_groups: int, *, rng: int = 0) -> np.ndarray:
    """Return which gene of the panel stands at each place: by ``"clusters"``, as in the ``"panel"``, or ``"random"``.

    Clusters are those of :func:`gene_groups`.
    """
    if how == "clusters":
        return gene_groups(counts_NG, n_groups, rng=rng).order_G
    n_genes = counts_NG.shape[1]
    return np.arange(n_genes) if how == "panel" else np.random.default_rng(rng).permutation(n_genes)


def standardised_profiles(counts_NG: np.ndarray) -> np.ndarray:
    """Profile of every gene over the spots with mean 0 and standard deviation 1 (0 if constant), genes × spots."""
    deviation_G = counts_NG.std(axis=0)
    return ((counts_NG - counts_NG.mean(axis=0)) / np.where(deviation_G > 0, deviation_G, 1)).T


def split(genes: np.ndarray, profile_GN: np.ndarray, mean_G: np.ndarray, rng: int) -> list[np.ndarray]:
    """Cut a large cluster into parts."""
    if len(genes) <= LARGEST_GROUP:
        return [genes]
    return clusters(genes, profile_GN, mean_G, max(2, len(genes) // GENES_PER_PART), rng)


def clusters(genes: np.ndarray, profile_GN: np.ndarray, mean_G: np.ndarray, n: int, rng: int) -> list[np.ndarray]:
    """Cluster some genes by their profiles; the cluster with the highest mean count first."""
    from sklearn.cluster import KMeans

    label = KMeans(n, n_init=10, random_state=rng).fit_predict(profile_GN[genes])
    found = [genes[label == k] for k in np.unique(label)]
    return sorted(found, key=lambda members: -mean_G[members].mean())
