"""Gene panels for predicting expression from histology."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from strecur import _anndata
from strecur._arguments import check_whole, meant
from strecur._genes import are_all_ids, is_mitochondrial_or_ribosomal
from strecur._panels import name_genes, read_panels
from strecur._threads import threads_kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")


def high_mean_high_variance_genes(
    adata: AnnData | SpatialData,
    n_genes: int = 300,
    *,
    library_key: str | None = None,
    cutoff: int | None = None,
    extra_genes: str | Sequence[str] = (),
    layer: str | None = None,
    gene_symbols: str | None = None,
    n_top_genes: int = 2000,
    table_key: str | None = None,
) -> list[str]:
    """Choose genes that are both abundant and variable, the usual panel to compare H&E predictors.

    Genes that are highly variable in at least one section (empty spots and genes dropped, counts normalised to the
    median total, log1p) are ranked by mean and by standard deviation of their raw counts over all spots. The panel are
    the genes among the first ``cutoff`` of both lists (protocol of Stem, Zhu et al. 2025), without mitochondrial and
    ribosomal ones (MT-…, RPS…, RPL… of human, mouse and other species; not MTOR, MT1X or RPS6KA1). Pass the training
    sections only, joined on their common genes (``anndata.concat(..., join="inner")``); a panel chosen with the test
    section leaks information. Sections of fewer than two spots with counts choose no genes.

    Parameters
    ----------
    adata
        Spots of one or several sections; with raw counts.
    n_genes
        Size of the panel. The smallest cut-off that reaches it is used; if that gives more genes, those with the best
        sum of ranks are kept.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`; without either, all spots are one section.
    cutoff
        Length of the two lists. If given, the size of the panel follows from it and ``n_genes`` is not used.
    extra_genes
        Genes to add to the panel in any case, such as markers, or panels by name, such as ``"breast"``
        (:func:`strecur.datasets.gene_panels`).
    layer
        Layer of raw counts. If ``None`` (default), ``X``.
    gene_symbols
        Column of ``var`` with gene symbols, by which mitochondrial and ribosomal genes are excluded. If ``None``
        (default), ``var_names`` and all text columns of ``var``.
    n_top_genes
        Number of highly variable genes per section.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    Names from ``var_names`` in alphabetical order; ``adata`` is not changed.

    Raises
    ------
    KeyError
        If a key, an extra gene or every gene of a panel is missing.
    ValueError
        If the data are not counts, or fewer than ``n_genes`` genes qualify.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> len(st.pp.high_mean_high_variance_genes(adata, 10, library_key="section"))
    10
    """
    table = _anndata.open_table(adata, table_key=table_key)
    if gene_symbols is not None:
        _anndata.require(table.var, gene_symbols, where="var")
    check_whole("n_genes", n_genes)
    check_whole("n_top_genes", n_top_genes)
    if cutoff is not None:
        check_whole("cutoff", cutoff)
    if not table.var_names.is_unique:
        msg = "adata.var_names are not unique; run adata.var_names_make_unique() first"
        raise ValueError(msg)
    extra_genes = name_genes("extra_genes", extra_genes, table.var, by_index=True)
    unknown = sorted(set(extra_genes) - set(table.var_names))
    if unknown:
        hint = meant(unknown[0], [*read_panels(), *table.var_names])
        msg = f"extra_genes {unknown} are not in adata.var_names{hint} (such as {list(table.var_names[:5])})"
        raise KeyError(msg)
    sections = _anndata.read_sections(table, _anndata.find_library_key(table, library_key))
    counts = sparse.csr_matrix(_anndata.read_matrix(table, layer))
    _anndata.require_counts(counts, table)

    if are_all_ids(table.var, gene_symbols):
        logger.warning(
            "genes have Ensembl ids and no symbols, so mitochondrial and ribosomal ones are not excluded; add the "
            "symbols as a column of adata.var"
        )
    excluded = is_mitochondrial_or_ribosomal(table.var, gene_symbols)
    candidates = np.flatnonzero(_variable_genes(counts, sections, n_top_genes) & ~excluded)
    mean_rank, sd_rank = _ranks(counts[:, candidates])
    # A gene is in the panel of cut-off N if both its ranks are below N.
    needed = np.maximum(mean_rank, sd_rank) + 1
    if cutoff is None:
        if n_genes > len(candidates):
            msg = f"n_genes={n_genes}, but {len(candidates)} genes are highly variable in a section and not excluded"
            raise ValueError(msg)
        cutoff = int(np.sort(needed)[n_genes - 1])
        inside = np.flatnonzero(needed <= cutoff)
        chosen = inside[np.argsort((mean_rank + sd_rank)[inside], kind="stable")[:n_genes]]
    else:
        chosen = np.flatnonzero(needed <= cutoff)
    panel = sorted({*table.var_names[candidates[chosen]], *extra_genes})
    _warn_silent(counts, sections, table, panel)
    logger.info("%d genes with a cut-off of %d among %d candidates", len(panel), cutoff, len(candidates))
    return panel


def _variable_genes(counts: sparse.csr_matrix, sections: _anndata.Sections, n_top_genes: int) -> np.ndarray:
    """Return a mask of genes that are highly variable in at least one section."""
    import scanpy as sc
    from anndata import AnnData

    variable = np.zeros(counts.shape[1], dtype=bool)
    usable = _anndata.sections_with_counts(counts, sections)
    with threads_kept():
        for name in usable:
            section = AnnData(counts[sections.rows(name)].astype(np.float32))
            section.var["position"] = np.arange(section.n_vars)
            sc.pp.filter_cells(section, min_counts=1)
            sc.pp.filter_genes(section, min_counts=1)
            sc.pp.normalize_total(section)
            sc.pp.log1p(section)
            sc.pp.highly_variable_genes(section, n_top_genes=min(n_top_genes, section.n_vars))
            variable[section.var["position"][section.var["highly_variable"]]] = True
    return variable


def _ranks(counts: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return the rank of every gene by mean and by standard deviation (ddof 1), the highest being 0."""
    n = counts.shape[0]
    counts = counts.astype(np.float64)
    mean = np.asarray(counts.mean(axis=0)).ravel()
    square = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
    sd = np.sqrt(np.maximum(square - mean**2, 0) * n / (n - 1))
    mean_rank, sd_rank = (np.argsort(np.argsort(-values, kind="stable"), kind="stable") for values in (mean, sd))
    return mean_rank, sd_rank


def _warn_silent(counts: sparse.csr_matrix, sections: _anndata.Sections, table: AnnData, panel: list[str]) -> None:
    """Warn of genes without counts in a section, which after an outer join may not have been measured there."""
    columns = table.var_names.get_indexer(panel)
    for name in sections.names:
        total = np.asarray(counts[sections.rows(name)][:, columns].sum(axis=0)).ravel()
        silent = [gene for gene, count in zip(panel, total, strict=True) if count == 0]
        if silent:
            logger.warning("section %r has no count of %s; was it measured there?", name, silent[:5])
