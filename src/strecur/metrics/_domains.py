"""Scores of predicted domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.metrics import accuracy_score, adjusted_rand_score, f1_score, normalized_mutual_info_score

from strecur._arguments import check_whole
from strecur._labels import clean_labels
from strecur.metrics._arrays import require_same_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import ArrayLike


def domain_scores(truth: ArrayLike | pd.Series, predicted: ArrayLike | pd.Series) -> dict[str, float]:
    """Compare predicted domains with annotated ones.

    Spots without annotation (NaN, ``None``, ``""``, ``"nan"``, ``"NA"``) or without prediction are dropped; labels are
    compared as strings.

    Parameters
    ----------
    truth
        Annotated label of every spot: array, list, Series or categorical.
    predicted
        Predicted label of every spot, in the same order.

    Returns
    -------
    Dictionary of

    - ``ari``: adjusted Rand index; 1 is perfect, 0 is chance and the score of a constant prediction.
    - ``nmi``: normalised mutual information (arithmetic mean).
    - ``accuracy``: share of spots with the right label.
    - ``macro_f1``: F1 averaged over the labels of either argument.
    - ``n_spots``: number of spots scored.
    - ``n_missing``: number of annotated spots without prediction.

    Raises
    ------
    ValueError
        If lengths or indices differ.

    Examples
    --------
    >>> import strecur as st
    >>> st.metrics.domain_scores(["L1", "L1", "L2", None], ["L1", "L2", "L2", "L2"])["accuracy"]
    0.6666666666666666
    """
    require_same_labels(truth, predicted)
    truth, predicted = clean_labels(truth), clean_labels(predicted)
    annotated = truth.notna().to_numpy()
    scored = annotated & predicted.notna().to_numpy()
    counts = {"n_spots": int(scored.sum()), "n_missing": int((annotated & ~scored).sum())}
    # scikit-learn gives 1.0 for two empty labellings
    if not scored.any():
        return dict.fromkeys(("ari", "nmi", "accuracy", "macro_f1"), np.nan) | counts
    true, pred = truth.to_numpy()[scored].astype(str), predicted.to_numpy()[scored].astype(str)
    return {
        "ari": float(adjusted_rand_score(true, pred)),
        "nmi": float(normalized_mutual_info_score(true, pred)),
        "accuracy": float(accuracy_score(true, pred)),
        "macro_f1": float(f1_score(true, pred, average="macro", zero_division=0)),
        **counts,
    }


def expected_calibration_error(
    truth: ArrayLike | pd.Series, proba: ArrayLike | pd.DataFrame, labels: Sequence[str], *, n_bins: int = 15
) -> float:
    """Measure the distance between confidence and accuracy.

    The confidence of a spot is the probability of its most probable label. Spots are binned by confidence into
    ``n_bins`` bins of equal width; the result is the mean distance between accuracy and confidence of a bin, weighted
    by its number of spots. Spots without annotation or with NaN probabilities are dropped; an annotation that is not
    among ``labels`` counts as a wrong prediction.

    Parameters
    ----------
    truth
        Annotated label of every spot.
    proba
        Probabilities in [0, 1], spots × labels.
    labels
        Name of each column of ``proba``.
    n_bins
        Number of bins.

    Returns
    -------
    Error in [0, 1]; 0 is perfectly calibrated, NaN if no spot can be scored.

    Raises
    ------
    ValueError
        If shapes or indices differ or values are not probabilities.

    Notes
    -----
    Guo et al., *On calibration of modern neural networks* (2017), section 2.

    Examples
    --------
    >>> import strecur as st
    >>> proba = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]]
    >>> round(st.metrics.expected_calibration_error(["L1", "L2", "L2", "L2"], proba, ["L1", "L2"]), 3)
    0.3
    """
    require_same_labels(truth, proba)
    check_whole("n_bins", n_bins)
    truth, probabilities = clean_labels(truth), np.asarray(proba, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] != len(labels):
        msg = f"proba has shape {probabilities.shape}; expected spots × {len(labels)} labels"
        raise ValueError(msg)
    scored = truth.notna().to_numpy() & ~np.isnan(probabilities).any(axis=1)
    if not scored.any():
        return np.nan
    probabilities = probabilities[scored]
    if probabilities.min() < 0 or probabilities.max() > 1 + 1e-4:
        msg = f"proba holds values from {probabilities.min():.3g} to {probabilities.max():.3g}; expected probabilities"
        raise ValueError(msg)
    confidence = probabilities.max(axis=1)
    best = np.asarray(labels).astype(str)[probabilities.argmax(axis=1)]
    correct = best == truth.to_numpy()[scored].astype(str)
    bins = np.clip((confidence * n_bins).astype(int), 0, n_bins - 1)
    # |accuracy − confidence| of a bin times its spots is the absolute sum of the differences in it
    gap = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gap).sum() / len(confidence))
