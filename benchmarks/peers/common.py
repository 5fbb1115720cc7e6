"""Shared by all runners: arguments, reading the section, and writing the labels.

``benchmarks/peers.py`` starts each runner in the virtual environment of its method, so this module may import nothing
beyond the dependencies of scanpy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.mixture import GaussianMixture


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("section", type=Path, help="the section to label")
    parser.add_argument("out", type=Path, help="CSV of one label per spot to write")
    parser.add_argument("--domains", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--train", type=Path, nargs="*", help="annotated sections, for supervised methods")
    return parser.parse_args()


def read_normalised(options: argparse.Namespace, n_genes: int | None = 3000) -> ad.AnnData:
    """Read the section as log1p of counts per 10,000, restricted to highly variable genes."""
    adata = ad.read_h5ad(options.section)
    key = options.size_factor_key
    sizes = np.asarray(adata.X.sum(axis=1)).ravel() if key is None else adata.obs[key].to_numpy(dtype=float)
    adata.X = sparse.csr_matrix(sparse.diags(1e4 / sizes) @ adata.X, dtype=np.float32)
    sc.pp.log1p(adata)
    if n_genes is not None and n_genes < adata.n_vars:
        sc.pp.highly_variable_genes(adata, n_top_genes=n_genes)
        adata = adata[:, adata.var["highly_variable"]].copy()
    return adata


def lattice_neighbours(adata: ad.AnnData, n_neighbors: int = 6) -> sparse.csr_matrix:
    """Connect every spot of a hexagonal lattice with its neighbours."""
    xy = np.asarray(adata.obsm["spatial"], dtype=float)
    distance, index = cKDTree(xy).query(xy, k=n_neighbors + 1)
    near = distance[:, 1:] < 1.5 * np.median(distance[:, 1])
    rows = np.repeat(np.arange(len(xy)), n_neighbors).reshape(near.shape)
    graph = sparse.csr_matrix((np.ones(near.sum()), (rows[near], index[:, 1:][near])), shape=(len(xy), len(xy)))
    return graph.maximum(graph.T).tocsr()


def tied_mixture(latent: np.ndarray, n_domains: int, seed: int) -> np.ndarray:
    """Cluster like mclust in the published pipelines (model EEE), without R."""
    return GaussianMixture(n_domains, covariance_type="tied", n_init=5, random_state=seed).fit_predict(latent)


def write_labels(options: argparse.Namespace, names: pd.Index, labels: object) -> None:
    pd.DataFrame({"label": np.asarray(labels).astype(str)}, index=names).to_csv(options.out, index_label="spot")
