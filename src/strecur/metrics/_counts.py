"""Scores of predicted counts, on the scale of counts rather than logarithms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from sklearn.metrics import precision_score, recall_score

from strecur._arguments import check_positive
from strecur.metrics._arrays import correlation, pair

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# Up to this dispersion, a negative binomial equals the Poisson distribution up to rounding.
NO_DISPERSION = 1e-8


def negative_binomial_log_likelihood(
    counts: ArrayLike, predicted: ArrayLike, *, dispersion: ArrayLike | None = None, min_mean: float = 0.01
) -> np.ndarray:
    """Compute the log-likelihood of the counts of each gene, with the predictions as means of negative binomials.

    The variance of a gene is mean + dispersion · mean²; a dispersion of 0 is a Poisson distribution.

    Parameters
    ----------
    counts
        Measured counts, spots × genes: array, sparse matrix or DataFrame.
    predicted
        Predicted counts of the same shape, not necessarily integers.
    dispersion
        Dispersion per gene, best from :func:`strecur.metrics.moment_dispersion` of the training spots. If ``None``
        (default), that of ``counts``.
    min_mean
        Smaller predictions are raised to it, because any count is impossible under a mean of 0. It determines the
        score of integer predictions at zeros, so compare models at the same value.

    Returns
    -------
    Natural log-likelihood per gene, mean over spots, float64; higher is better. NaN if no spot is left.

    Raises
    ------
    ValueError
        If shapes, indices or columns differ, or counts are not non-negative integers.

    Notes
    -----
    One of the additional scores of GenAR :cite:p:`genar`.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> counts = np.array([[0, 2, 5], [1, 0, 7], [3, 4, 0], [2, 1, 9]])
    >>> likelihood = st.metrics.negative_binomial_log_likelihood(counts, counts.mean(axis=0) * np.ones_like(counts))
    >>> likelihood.shape
    (3,)
    """
    counts, predicted = _counts_and_prediction(counts, predicted)
    dispersion = moment_dispersion(counts) if dispersion is None else np.asarray(dispersion, dtype=np.float64)
    if dispersion.shape not in ((), counts.shape[1:]) or not (np.isfinite(dispersion) & (dispersion >= 0)).all():
        msg = f"dispersion must be one non-negative number per gene, {counts.shape[1]} in all; see moment_dispersion"
        raise ValueError(msg)
    check_positive("min_mean", min_mean)
    if not len(counts):
        return np.full(counts.shape[1], np.nan)
    mean = np.maximum(predicted, min_mean)
    size = 1 / np.maximum(dispersion, NO_DISPERSION)
    negative_binomial = stats.nbinom.logpmf(counts, size, size / (size + mean))
    poisson = stats.poisson.logpmf(counts, mean)
    return np.where(dispersion > NO_DISPERSION, negative_binomial, poisson).mean(axis=0)


def moment_dispersion(counts: ArrayLike) -> np.ndarray:
    """Estimate the dispersion of every gene from its mean and variance over the spots.

    Parameters
    ----------
    counts
        Measured counts, spots × genes.

    Returns
    -------
    (variance − mean) / mean² per gene (sample variance), 0 where the variance is below the mean, and 0 for a gene
    without counts.

    Raises
    ------
    ValueError
        If counts are not non-negative integers.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> counts = np.array([[0, 2, 5], [1, 0, 7], [3, 4, 0], [2, 1, 9]])
    >>> st.metrics.moment_dispersion(counts).round(3).tolist()
    [0.074, 0.381, 0.351]
    """
    counts, _ = _counts_and_prediction(counts, counts)
    if len(counts) < 2:
        return np.zeros(counts.shape[1])
    mean, variance = counts.mean(axis=0), counts.var(axis=0, ddof=1)
    return np.maximum(np.divide(variance - mean, mean**2, out=np.zeros_like(mean), where=mean > 0), 0)


def zero_scores(counts: ArrayLike, predicted: ArrayLike) -> dict[str, float]:
    """Score how well zeros are predicted, over all spots and genes at once.

    Parameters
    ----------
    counts
        Measured counts, spots × genes.
    predicted
        Predicted counts of the same shape; a value below 0.5 is a predicted zero.

    Returns
    -------
    Dictionary of

    - ``zero_precision``: share of predicted zeros that are zeros; NaN if no zero is predicted.
    - ``zero_recall``: share of zeros that are predicted; NaN if there is no zero.

    Raises
    ------
    ValueError
        If shapes, indices or columns differ, or counts are not non-negative integers.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> counts = np.array([[0, 2, 5], [1, 0, 7], [3, 4, 0], [2, 1, 9]])
    >>> st.metrics.zero_scores(counts, counts)["zero_recall"]
    1.0
    """
    counts, predicted = _counts_and_prediction(counts, predicted)
    true, pred = (counts == 0).ravel(), (predicted < 0.5).ravel()
    return {
        "zero_precision": float(precision_score(true, pred, zero_division=np.nan)) if len(true) else np.nan,
        "zero_recall": float(recall_score(true, pred, zero_division=np.nan)) if len(true) else np.nan,
    }


def library_size_correlation(counts: ArrayLike, predicted: ArrayLike) -> float:
    """Correlate the measured and the predicted totals of the spots.

    It shows whether scores are high only because the depth of each spot is predicted; compare with scores of
    :func:`strecur.metrics.depth_normalised` values.

    Parameters
    ----------
    counts
        Measured counts, spots × genes.
    predicted
        Predicted counts of the same shape.

    Returns
    -------
    Pearson correlation of the row sums, NaN if one side is constant.

    Raises
    ------
    ValueError
        If shapes, indices or columns differ, or counts are not non-negative integers.

    Examples
    --------
    >>> import numpy as np
    >>> import strecur as st
    >>> counts = np.array([[0, 2, 5], [1, 0, 7], [3, 4, 0], [2, 1, 9]])
    >>> round(st.metrics.library_size_correlation(counts, 2 * counts), 3)
    1.0
    """
    counts, predicted = _counts_and_prediction(counts, predicted)
    return float(correlation(counts.sum(axis=1, keepdims=True), predicted.sum(axis=1, keepdims=True))[0])


def _counts_and_prediction(counts: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return counts and prediction of the spots that both have; raise unless the first are counts."""
    true, pred, _ = pair(counts, predicted)
    if (true < 0).any() or (true != np.floor(true)).any():
        msg = "counts must be whole numbers from 0 on; convert log2(counts + 1) with 2**values - 1 and round"
        raise ValueError(msg)
    return true, pred
