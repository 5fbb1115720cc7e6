"""Scores of the structure of predicted expression: between genes and in space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.neighbors import radius_neighbors_graph

from strecur._geometry import physical_positions
from strecur._threads import check_fork
from strecur.metrics._arrays import correlation, pair, varies

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Sites within this distance are neighbours: 6, 4 and 12 of them. Hex has doubled columns and rows √3 apart.
NEIGHBOUR_DISTANCE = {"hex": 2.0, "square": 1.0, "irregular": 2.0}


def gene_structure(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Compute the gene structure correlation: whether co-expressed genes are predicted to be co-expressed.

    Pearson correlation between the upper triangles of the two gene × gene correlation matrices (GSC in the literature),
    over the genes that vary in truth and prediction.

    Parameters
    ----------
    truth
        Measured values, spots × genes.
    predicted
        Predicted values of the same shape.

    Returns
    -------
    Correlation in [-1, 1]; NaN with fewer than three varying genes.

    Raises
    ------
    ValueError
        If shapes, indices or columns differ, or single values of a spot are missing.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> rng = np.random.default_rng(0)
    >>> truth = np.log2(rng.poisson(3, (50, 4)) + 1.0)
    >>> round(st.metrics.gene_structure(truth, 3 * truth), 3)
    1.0
    """
    truth, predicted, _ = pair(truth, predicted)
    both = varies(truth) & varies(predicted)
    if both.sum() < 3:
        return np.nan
    upper = np.triu_indices(int(both.sum()), k=1)
    true, pred = (np.corrcoef(values[:, both], rowvar=False)[upper] for values in (truth, predicted))
    return float(correlation(true[:, None], pred[:, None])[0])


def moran_structure(truth: ArrayLike, predicted: ArrayLike, graph: sparse.spmatrix | sparse.sparray) -> float:
    """Compute the spatial structure correlation: whether spatially variable genes are predicted to be so.

    Moran's I of every gene is computed in truth and prediction; the result is the Pearson correlation between the two
    lists (SSC in the literature), over the genes that vary in both.

    Parameters
    ----------
    truth
        Measured values, spots × genes.
    predicted
        Predicted values of the same shape.
    graph
        Neighbours of every spot, spots × spots, for example from :func:`lattice_graph` or squidpy's
        ``obsp["spatial_connectivities"]``.

    Returns
    -------
    Correlation in [-1, 1]; NaN with fewer than three varying genes or without neighbours.

    Raises
    ------
    RuntimeError
        If this process was forked after numba had started threads.
    ValueError
        If ``graph`` is not spots × spots.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> rng = np.random.default_rng(0)
    >>> truth = np.log2(rng.poisson(3, (50, 4)) + 1.0)
    >>> graph = st.metrics.lattice_graph([(i // 10, i % 10) for i in range(50)], layout="square")
    >>> round(st.metrics.moran_structure(truth, truth, graph), 3)
    1.0
    """
    from scanpy.metrics import morans_i

    check_fork()
    truth, predicted, valid = pair(truth, predicted)
    if np.shape(graph) != (len(valid), len(valid)):
        msg = f"graph has shape {np.shape(graph)}; expected spots × spots, {len(valid)} × {len(valid)}"
        raise ValueError(msg)
    graph = sparse.csr_matrix(graph, dtype=np.float64)[valid][:, valid]
    both = varies(truth) & varies(predicted)
    if both.sum() < 3 or graph.sum() == 0:
        return np.nan
    true, pred = (morans_i(graph, np.ascontiguousarray(values[:, both].T)) for values in (truth, predicted))
    return float(correlation(true[:, None], pred[:, None])[0])


def lattice_graph(
    grid: ArrayLike, *, layout: Literal["hex", "square", "irregular"], sections: ArrayLike | None = None
) -> sparse.csr_matrix:
    """Connect every spot to its neighbours on the lattice of its section.

    Parameters
    ----------
    grid
        Row and column of every spot, spots × 2, as in ``obsm["grid"]``.
    layout
        As in ``uns["grid"]["layout"]``: ``"hex"`` connects the 6 nearest sites, ``"square"`` the 4
        nearest, ``"irregular"`` all sites within two steps.
    sections
        Section of every spot; spots of different sections are never connected. If ``None`` (default), one section.

    Returns
    -------
    Symmetric matrix of ones, spots × spots, without the spots themselves.

    Raises
    ------
    ValueError
        If ``layout`` is unknown.

    Examples
    --------
    >>> import strecur as st
    >>> graph = st.metrics.lattice_graph([[0, 0], [0, 1], [1, 0]], layout="square")
    >>> graph.sum(axis=1).ravel().tolist()
    [[2.0, 1.0, 1.0]]
    """
    if layout not in NEIGHBOUR_DISTANCE:
        msg = f"layout={layout!r} is unknown; there are {list(NEIGHBOUR_DISTANCE)}"
        raise ValueError(msg)
    sites = np.asarray(grid)
    if sites.ndim != 2 or sites.shape[1] != 2 or sites.dtype.kind not in "iuf" or not np.isfinite(sites).all():
        msg = (
            f"grid has shape {sites.shape}; expected row and column of every spot, spots × 2, as in adata.obsm['grid']"
        )
        raise ValueError(msg)
    positions = physical_positions(sites[:, 0], sites[:, 1], layout)
    codes = np.zeros(len(positions)) if sections is None else pd.factorize(np.asarray(sections))[0]
    if len(codes) != len(positions):
        msg = f"sections has {len(codes)} entries for {len(positions)} spots; pass one per spot"
        raise ValueError(msg)
    # A third coordinate separates the sections.
    points = np.column_stack([positions, codes * 10.0])
    return radius_neighbors_graph(points, 1.01 * NEIGHBOUR_DISTANCE[layout], mode="connectivity")


def principal_components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two principal components of rows (rows × 2) and their shares of the variance."""
    from sklearn.decomposition import PCA

    if np.ptp(values, axis=0).max() == 0:  # all rows are the same
        return np.zeros((len(values), 2)), np.zeros(2)
    pca = PCA(2, svd_solver="full")
    return pca.fit_transform(values), pca.explained_variance_ratio_
