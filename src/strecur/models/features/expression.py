"""Features of expression, fitted on training sections and applied to any section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from strecur._anndata import Sections, align_genes, logger, read_matrix, require, require_counts, sections_with_counts
from strecur._arguments import filled
from strecur._genes import clean_genes
from strecur._threads import threads_kept
from strecur.models.features.components import fit_components

if TYPE_CHECKING:
    from anndata import AnnData

    from strecur.options import Features

TARGET_SUM = 1e4
MIN_SHARED_GENES = 0.5
OTHER_KINDS = "For intensities of protein markers, pass features={'kind': 'intensities'}"


@dataclass(frozen=True)
class ExpressionFeatures:
    """Highly variable genes and their principal components, fitted on the training sections only.

    Attributes
    ----------
    genes
        Highly variable genes, by name (Ensembl ids without version).
    mean_G
        Mean of each gene over the training spots, float32.
    components_GP
        Principal axes, genes × components, float32; the largest loading of each is positive.
    size_factor_key
        ``obs`` column of library sizes; counts are divided by it and scaled to 10,000.
    layer
        Layer of the counts; ``None`` is ``X``.
    row_sums
        Without ``size_factor_key``: divide counts by their sum over all genes of the object, instead of taking them as
        they are.
    """

    genes: list[str]
    mean_G: np.ndarray
    components_GP: np.ndarray
    size_factor_key: str | None
    layer: str | None
    row_sums: bool = False

    def transform(self, adata: AnnData) -> np.ndarray:
        """Project every spot, spots × components float32; genes are matched by name, a missing gene counts zero."""
        selection, _ = align_genes(adata, self.genes, min_share=MIN_SHARED_GENES)
        log_counts = log_normalised(
            adata, selection, layer=self.layer, size_factor_key=self.size_factor_key, row_sums=self.row_sums
        )
        centre = self.mean_G @ self.components_GP
        return np.asarray(log_counts @ self.components_GP - centre, dtype=np.float32)


def fit_expression_features(adata: AnnData, sections: Sections, options: Features, rng: int) -> ExpressionFeatures:
    """Fit genes and components on all spots of ``adata``, which must hold the training sections and nothing else."""
    layer, size_factor_key = options.layer, options.size_factor_key
    genes = pd.unique(np.array([gene for gene in clean_genes(adata.var_names) if gene], dtype=object))
    selection, _ = align_genes(adata, genes, min_share=1.0)
    row_sums = options.normalise and size_factor_key is None
    if row_sums:
        logger.info(
            "counts are normalised by their sum over the %d genes of each spot; size_factor_key names another library "
            "size, and normalise=False takes counts as they are",
            adata.n_vars,
        )
    log_counts = log_normalised(adata, selection, layer=layer, size_factor_key=size_factor_key, row_sums=row_sums)
    chosen = highly_variable(log_counts, sections, options.n_genes)
    log_chosen = log_counts[:, np.flatnonzero(chosen)].toarray()
    mean_G, components_GP = fit_components(log_chosen, filled(options.n_components), rng)
    return ExpressionFeatures(genes[chosen].tolist(), mean_G, components_GP, size_factor_key, layer, row_sums)


def log_normalised(
    adata: AnnData, selection: sparse.csr_matrix, *, layer: str | None, size_factor_key: str | None, row_sums: bool
) -> sparse.csr_matrix:
    """Return log2(counts + 1) of the selected genes, scaled to a library size of 10,000 if there is one."""
    counts = read_matrix(adata, layer)
    require_counts(counts, adata, or_else=OTHER_KINDS)
    counts = sparse.csr_matrix(counts, dtype=np.float32)
    sizes = None
    if size_factor_key is not None:
        sizes = size_factors(adata, size_factor_key)
    elif row_sums:
        sizes = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
        sizes[sizes == 0] = 1  # a spot without counts stays empty
    counts = counts @ selection
    if sizes is not None:
        counts = sparse.diags((TARGET_SUM / sizes).astype(np.float32)) @ counts
    counts = counts.tocsr()
    counts.data = np.log2(counts.data + 1)
    return counts


def size_factors(adata: AnnData, size_factor_key: str) -> np.ndarray:
    """Read the library size of every spot and check it."""
    require(adata.obs, size_factor_key, where="obs", hint="size_factor_key names the library size of each spot")
    sizes = pd.to_numeric(adata.obs[size_factor_key].astype(object), errors="coerce").to_numpy(dtype=np.float64)
    bad = ~(np.isfinite(sizes) & (sizes > 0))
    if bad.any():
        msg = f"adata.obs[{size_factor_key!r}] must be positive and finite; it is not for {int(bad.sum())} spots"
        raise ValueError(msg)
    return sizes


def highly_variable(log_counts: sparse.csr_matrix, sections: Sections, n_genes: int) -> np.ndarray:
    """Choose genes by scanpy's dispersion ranking within each section (flavour "seurat").

    Sections of fewer than two spots with counts choose none.
    """
    import scanpy as sc
    from anndata import AnnData

    if log_counts.shape[1] <= n_genes:
        return np.ones(log_counts.shape[1], dtype=bool)
    usable = sections_with_counts(log_counts, sections)
    rows = np.flatnonzero(np.isin(sections.codes, [sections.names.index(name) for name in usable]))
    section = pd.Categorical.from_codes(sections.codes[rows], sections.names).remove_unused_categories()
    table = AnnData(log_counts[rows], obs=pd.DataFrame({"section": section}, index=rows.astype(str)))
    # scanpy undoes the logarithm, and needs to know its base.
    table.uns["log1p"] = {"base": 2}
    with threads_kept():
        sc.pp.highly_variable_genes(table, n_top_genes=n_genes, batch_key="section" if len(usable) > 1 else None)
    return table.var["highly_variable"].to_numpy()
