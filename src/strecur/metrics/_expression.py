"""Scores of predicted expression."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import r2_score

from strecur._arguments import check_positive, check_whole
from strecur.metrics._arrays import correlation, dense, pair, varies
from strecur.metrics._structure import gene_structure, moran_structure

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike
    from scipy import sparse

TOP_GENES = (10, 50, 100, 200, 300)


def pcc_per_gene(truth: ArrayLike, predicted: ArrayLike) -> np.ndarray:
    """Correlate prediction and truth over the spots, for each gene.

    Parameters
    ----------
    truth
        Measured values, spots × genes: array, sparse matrix or DataFrame.
    predicted
        Predicted values of the same shape.

    Returns
    -------
    Pearson correlation per gene, float64. NaN where truth or prediction is constant up to rounding (centred norm of at
    most 1e-12 · √spots · max|value|).

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
    >>> st.metrics.pcc_per_gene(truth, 2 * truth + 1).round(3).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    truth, predicted, _ = pair(truth, predicted)
    return correlation(truth, predicted)


def pcc_top(pcc: ArrayLike, k: int | None = None) -> float:
    """Average the ``k`` highest correlations.

    Parameters
    ----------
    pcc
        Correlation per gene, NaN where undefined, as :func:`pcc_per_gene` returns it.
    k
        Number of genes, ranked by their own correlation, so that the genes may differ between methods. If ``None``
        (default), or more than there are, all with a defined correlation.

    Returns
    -------
    Mean over the best ``k`` defined genes; NaN if there is none. Undefined genes are left out, not scored as zero.

    Raises
    ------
    ValueError
        If ``k`` is below one.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> st.metrics.pcc_top([0.5, np.nan, 0.25, 0.75], 2)
    0.625
    """
    if k is not None:
        check_whole("k", k)
    pcc = np.asarray(pcc, dtype=np.float64)
    best = np.sort(pcc[~np.isnan(pcc)])[::-1][:k]
    return float(best.mean()) if len(best) else np.nan


def rvd(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Compute the relative variance distance: whether predictions vary as much as the truth.

    Mean over genes of ((var predicted − var truth) / var truth)², population variances. 0 is perfect, 1 is a
    constant prediction, and there is no upper bound. Genes that are constant in the truth are left out.

    Parameters
    ----------
    truth
        Measured values, spots × genes.
    predicted
        Predicted values of the same shape.

    Returns
    -------
    Mean over genes, NaN if every gene is constant.

    Raises
    ------
    ValueError
        If shapes, indices or columns differ, or single values of a spot are missing.

    Notes
    -----
    Definition of the code of Stem, adopted by the spatial TRM :cite:p:`spatialtrm`, which prints σ where the code has
    variances (see :func:`rvd_std`).

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> rng = np.random.default_rng(0)
    >>> truth = np.log2(rng.poisson(3, (50, 4)) + 1.0)
    >>> st.metrics.rvd(truth, truth), st.metrics.rvd(truth, np.ones_like(truth))
    (0.0, 1.0)
    """
    return _relative_distance(truth, predicted, spread=np.var)


def rvd_std(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Compute the relative distance of standard deviations instead of variances (see :func:`strecur.metrics.rvd`).

    Parameters
    ----------
    truth
        Measured values, spots × genes.
    predicted
        Predicted values of the same shape.

    Returns
    -------
    Mean over genes, NaN if every gene is constant.

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
    >>> round(st.metrics.rvd_std(truth, truth / 2), 3)
    0.25
    """
    return _relative_distance(truth, predicted, spread=np.std)


def pooled_scores(truth: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Score all spot × gene entries at once, in counts.

    Both matrices are converted to counts (negative ones to 0) and flattened. Such scores are high if highly and lowly
    expressed genes are told apart, even if no gene is predicted, and are not comparable with scores per gene.

    Parameters
    ----------
    truth
        Measured ``log2(counts + 1)``, spots × genes.
    predicted
        Predicted values of the same shape.

    Returns
    -------
    Dictionary of ``r2_pooled`` (coefficient of determination) and ``pcc_pooled`` (Pearson correlation).

    Raises
    ------
    ValueError
        If shapes, indices or columns differ, or single values of a spot are missing.

    Notes
    -----
    R² and PCC of HiST :cite:p:`hist` (released code, evaluation).

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> rng = np.random.default_rng(0)
    >>> truth = np.log2(rng.poisson(3, (50, 4)) + 1.0)
    >>> round(st.metrics.pooled_scores(truth, truth)["r2_pooled"], 3)
    1.0
    """
    truth, predicted, _ = pair(truth, predicted)
    true, pred = _counts(truth).reshape(-1, 1), _counts(predicted).reshape(-1, 1)
    r2 = float(r2_score(true, pred)) if varies(true).all() else np.nan
    return {"r2_pooled": r2, "pcc_pooled": float(correlation(true, pred)[0])}


def depth_normalised(log_counts: ArrayLike, *, target_sum: float | None = None) -> np.ndarray:
    """Remove the sequencing depth of the spots from ``log2(counts + 1)``.

    With c = max(2^log_counts − 1, 0), the result is log2(c · target_sum / total + 1), where total is the sum of c over
    the given genes of a spot. A spot without counts has no composition and becomes NaN.

    Raw log counts mostly show how deeply a spot was sequenced: a predictor that knows only the total of a spot, with
    c = total · mean profile, correlates with most genes. After this step it is constant. The effect of depth on the
    log of rare genes (more zeros in shallow spots) remains, so that scores slightly above zero are not yet a signal.

    Parameters
    ----------
    log_counts
        ``log2(counts + 1)``, spots × genes, measured or predicted.
    target_sum
        Total to which every spot is scaled. If ``None`` (default), the median of the totals above 0.

    Returns
    -------
    Float64 spots × genes.

    Raises
    ------
    ValueError
        If ``log_counts`` is not a table of numbers, or ``target_sum`` is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> st.metrics.depth_normalised(np.log2([[1 + 1, 3 + 1], [2 + 1, 6 + 1]])).round(3).tolist()
    [[1.322, 2.459], [1.322, 2.459]]
    """
    counts = _counts(dense(log_counts))
    total = counts.sum(axis=1)
    if target_sum is None:
        target_sum = _median_total(counts)
    elif not np.isnan(target_sum):  # of spots without counts
        check_positive("target_sum", target_sum)
    scale = np.divide(target_sum, total, out=np.full_like(total, np.nan), where=total > 0)
    return np.log2(counts * scale[:, None] + 1)


def expression_scores(
    truth: ArrayLike, predicted: ArrayLike, *, graph: sparse.spmatrix | sparse.sparray | None = None
) -> dict[str, float]:
    """Compute all scores of predicted expression.

    Parameters
    ----------
    truth
        Measured ``log2(counts + 1)``, spots × genes: array, sparse matrix or DataFrame.
    predicted
        Predicted values of the same shape.
    graph
        Neighbours of every spot (:func:`lattice_graph`); adds ``moran_structure``.

    Returns
    -------
    Dictionary of

    - ``pcc_10``, ``pcc_50``, ``pcc_100``, ``pcc_200``, ``pcc_300``, ``pcc_all``: :func:`pcc_top` of
      :func:`pcc_per_gene`; all genes if there are fewer than ``k``.
    - the same with suffix ``_depth_normalised``: after :func:`depth_normalised` of truth and prediction, both scaled to
      the median total of the truth. If they are low and the raw ones are high, depth was predicted.
    - ``n_undefined``, ``n_undefined_depth_normalised``: genes without a correlation.
    - ``mse``, ``mae``: mean over all entries.
    - ``rvd``, ``rvd_std``, ``gene_structure``, ``r2_pooled``, ``pcc_pooled``: the functions of that name.
    - ``n_constant``: genes constant in the truth, which ``rvd`` leaves out.
    - ``moran_structure``: only with ``graph``.
    - ``n_genes``, ``n_spots``: numbers scored; ``n_missing``: spots left out because truth or prediction is NaN.
    - ``n_spots_depth_normalised``: spots scored, which have counts in truth and prediction.

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
    >>> scores = st.metrics.expression_scores(truth, truth + rng.normal(0, 0.1, truth.shape))
    >>> scores["pcc_all"] > 0.9, scores["n_spots"]
    (True, 50)
    """
    spatial = {} if graph is None else {"moran_structure": moran_structure(truth, predicted, graph)}
    truth, predicted, valid = pair(truth, predicted)
    error = predicted - truth
    scores = _pcc_scores(truth, predicted) | {
        "mse": float((error**2).mean()) if error.size else np.nan,
        "mae": float(np.abs(error).mean()) if error.size else np.nan,
        "rvd": rvd(truth, predicted),
        "rvd_std": rvd_std(truth, predicted),
        "n_constant": int((~varies(truth)).sum()),
        "gene_structure": gene_structure(truth, predicted),
        **pooled_scores(truth, predicted),
        "n_genes": truth.shape[1],
        "n_missing": int((~valid).sum()),
    }
    target_sum = _median_total(_counts(truth))
    normalised = [depth_normalised(values, target_sum=target_sum) for values in (truth, predicted)]
    depth = {f"{name}_depth_normalised": value for name, value in _pcc_scores(*normalised).items()}
    return scores | depth | spatial


def _pcc_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Mean of the best correlations for the usual numbers of genes."""
    truth, predicted, _ = pair(truth, predicted)
    pcc = correlation(truth, predicted)
    top = {f"pcc_{k}": pcc_top(pcc, k) for k in TOP_GENES}
    return top | {"pcc_all": pcc_top(pcc), "n_undefined": int(np.isnan(pcc).sum()), "n_spots": len(truth)}


def _relative_distance(truth: ArrayLike, predicted: ArrayLike, *, spread: Callable[..., np.ndarray]) -> float:
    """Mean squared relative difference of the spread of genes, over the genes that vary in the truth."""
    truth, predicted, _ = pair(truth, predicted)
    genes = varies(truth)
    if not genes.any():
        return np.nan
    expected, got = spread(truth[:, genes], axis=0), spread(predicted[:, genes], axis=0)
    return float((((got - expected) / expected) ** 2).mean())


def _counts(log_counts: np.ndarray) -> np.ndarray:
    return np.maximum(np.exp2(log_counts) - 1, 0)


def _median_total(counts: np.ndarray) -> float:
    """Median of the totals above 0, NaN if there is none."""
    total = counts.sum(axis=1)
    return float(np.median(total[total > 0])) if (total > 0).any() else np.nan
