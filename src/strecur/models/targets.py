"""Targets of models of expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from strecur._anndata import find_genes, read_matrix, require_counts
from strecur.models.features.expression import size_factors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from strecur.options import Features


@dataclass(frozen=True)
class ExpressionTarget:
    """From counts to the scale that is predicted.

    Attributes
    ----------
    genes
        Genes, by name.
    scale
        ``"log2"``: log2(counts + 1); ``"log2_normalised"``: the same of counts that are divided by the library size of
        their spot and multiplied by ``median_size``; ``"counts"``: the counts themselves.
    median_size
        Median library size of the training spots; only for ``"log2_normalised"``.
    size_factor_key
        ``obs`` column of library sizes; ``None``: the sum over all genes of the object.
    layer
        Layer of the counts; ``None`` is ``X``.
    """

    genes: list[str]
    scale: str
    median_size: float | None
    size_factor_key: str | None
    layer: str | None

    def measure(self, adata: AnnData) -> np.ndarray:
        """Return the values of every spot, spots × genes float32; NaN for missing genes or library size."""
        selection, _ = find_genes(adata, self.genes)
        counts = read_counts(adata, self.layer)
        values = (counts @ selection).toarray()
        if self.median_size is not None:
            sizes = library_sizes(adata, counts, self.size_factor_key)
            values *= (self.median_size / sizes).astype(np.float32)[:, None]
        if self.scale != "counts":
            values = np.log2(values + 1, dtype=np.float32)
        values[:, selection.getnnz(axis=0) == 0] = np.nan
        return values

    def log2(self, values: np.ndarray) -> np.ndarray:
        """Bring counts to log2(counts + 1), the scale on which genes are compared; other scales are log2 already."""
        return np.log2(values + 1, dtype=np.float32) if self.scale == "counts" else values


def fit_target(adata: AnnData, genes: Sequence[str], options: Features) -> ExpressionTarget:
    """Fit the scale on training spots, which is all that ``adata`` holds."""
    if options.target == "log2":
        if options.size_factor_key is not None:
            msg = "size_factor_key is for target='log2_normalised'; 'log2' takes the counts as they are"
            raise ValueError(msg)
        return ExpressionTarget(list(genes), "log2", None, None, options.layer)
    sizes = library_sizes(adata, read_counts(adata, options.layer), options.size_factor_key)
    return ExpressionTarget(
        list(genes), options.target, float(np.nanmedian(sizes)), options.size_factor_key, options.layer
    )


def read_counts(adata: AnnData, layer: str | None) -> sparse.csr_matrix:
    """Read raw counts, spots × genes float32."""
    counts = read_matrix(adata, layer)
    require_counts(counts, adata)
    return sparse.csr_matrix(counts, dtype=np.float32)


def counted_spots(counts: sparse.csr_matrix) -> np.ndarray:
    """Return which spots have any count."""
    return np.asarray(counts.sum(axis=1)).ravel() > 0


def library_sizes(adata: AnnData, counts: sparse.csr_matrix, size_factor_key: str | None) -> np.ndarray:
    """Return the library size of every spot; NaN without any count."""
    counted = counted_spots(counts)
    sizes = np.full(adata.n_obs, np.nan)
    if size_factor_key is None:
        sizes[counted] = np.asarray(counts.sum(axis=1)).ravel()[counted]
    else:
        sizes[counted] = size_factors(adata[counted], size_factor_key)
    return sizes
