"""Which domains are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from strecur._labels import clean_labels, label_text, read_categories
from strecur.metrics._arrays import require_same_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike


def confusion_table(
    truth: ArrayLike | pd.Series,
    predicted: ArrayLike | pd.Series,
    *,
    labels: Sequence[str] | None = None,
    shares: bool = False,
) -> pd.DataFrame:
    """Count the spots of every annotated domain by their predicted domain.

    Spots without annotation or without prediction (NaN, ``None``, ``""``, ``"nan"``, ``"NA"``) are left out; labels are
    compared as strings.

    Parameters
    ----------
    truth
        Annotated label of every spot: array, list, Series or categorical.
    predicted
        Predicted label of every spot, in the same order.
    labels
        Domains that can be predicted, in their order, such as ``model.labels``. If ``None`` (default), the categories
        of ``predicted``, and without categories the labels that occur in ``predicted``, sorted.
    shares
        Divide each row by its sum, so that the diagonal is the recall of each domain.

    Returns
    -------
    Table with a row per annotated and a column per predicted domain: ``labels`` in both, so that a column of zeros is a
    domain that is never predicted, followed by rows of annotated domains that are not among them, which are always
    wrong. Counts (int), or shares (float) with NaN in rows without spots.

    Raises
    ------
    ValueError
        If lengths or indices differ, or ``labels`` lacks a predicted domain or has one twice.

    Examples
    --------
    >>> import strecur as st
    >>> table = st.metrics.confusion_table(["L1", "L1", "L2", "WM"], ["L1", "L2", "L2", "L2"])
    >>> table.loc["WM"].to_dict()
    {'L1': 0, 'L2': 1}
    """
    rows, columns, true, pred = _align(truth, predicted, labels)
    counts = np.zeros((len(rows), len(rows)), dtype=np.int64)
    if len(true):
        counts = confusion_matrix(true, pred, labels=rows)
    table = pd.DataFrame(
        counts[:, : len(columns)], pd.Index(rows, name="truth"), pd.Index(columns, name="predicted"), copy=True
    )
    return table.div(table.sum(axis=1).replace(0, np.nan), axis=0) if shares else table


def scores_by_domain(
    truth: ArrayLike | pd.Series, predicted: ArrayLike | pd.Series, *, labels: Sequence[str] | None = None
) -> pd.DataFrame:
    """Score the prediction of every domain.

    Spots without annotation or without prediction are left out, as in :func:`confusion_table`.

    Parameters
    ----------
    truth
        Annotated label of every spot: array, list, Series or categorical.
    predicted
        Predicted label of every spot, in the same order.
    labels
        Domains that can be predicted, in their order. If ``None`` (default), those of ``predicted``, as in
        :func:`confusion_table`.

    Returns
    -------
    Table with a row per domain (``labels``, then annotated domains that are not among them) and the columns

    - ``precision``: share of the spots with this prediction that are annotated so; NaN if it is never predicted.
    - ``recall``: share of the spots with this annotation that are predicted so; NaN if there is no such spot.
    - ``f1``: harmonic mean of the two; NaN if the domain is neither annotated nor predicted.
    - ``n_spots``: number of spots with this annotation.
    - ``n_predicted``: number of spots with this prediction.

    Raises
    ------
    ValueError
        If lengths or indices differ, or ``labels`` lacks a predicted domain or has one twice.

    Examples
    --------
    >>> import strecur as st
    >>> scores = st.metrics.scores_by_domain(["L1", "L1", "L2", "WM"], ["L1", "L2", "L2", "L2"])
    >>> scores["recall"].to_dict()
    {'L1': 0.5, 'L2': 1.0, 'WM': 0.0}
    """
    rows, _, true, pred = _align(truth, predicted, labels)
    found = {name: np.full(len(rows), np.nan) for name in ("precision", "recall", "f1")}
    if len(true):
        scores = precision_recall_fscore_support(true, pred, labels=rows, zero_division=np.nan)
        found = dict(zip(found, scores, strict=False))
    table = pd.DataFrame(found, pd.Index(rows, name="domain"))
    for column, values in (("n_spots", true), ("n_predicted", pred)):
        table[column] = pd.Series(values, dtype=object).value_counts().reindex(rows, fill_value=0).to_numpy()
    return table


def _align(
    truth: ArrayLike | pd.Series, predicted: ArrayLike | pd.Series, labels: Sequence[str] | None
) -> tuple[list[str], list[str], np.ndarray, np.ndarray]:
    """Return all domains, those that can be predicted, and both labels of the spots that have both."""
    require_same_labels(truth, predicted)
    true, pred = clean_labels(truth), clean_labels(predicted)
    known = _categories(predicted) if labels is None else [label_text(label) for label in labels]
    columns = [label for label in known if label is not None]
    unknown = sorted({*pred.dropna()} - {*columns})
    if unknown or len({*known}) < len(labels or ()) or len(columns) < len(known):
        what = f"lacks the predicted domains {unknown}" if unknown else "has a domain twice or an empty one"
        msg = f"labels={list(map(str, known))} {what}"
        raise ValueError(msg)
    scored = (true.notna().to_numpy()) & (pred.notna().to_numpy())
    true_N, pred_N = true.to_numpy()[scored].astype(str), pred.to_numpy()[scored].astype(str)
    present = {*true_N}
    others = [label for label in _categories(truth) if label in present and label not in columns]
    return [*columns, *others], columns, true_N, pred_N


def _categories(values: ArrayLike | pd.Series) -> list[str]:
    """Return the possible labels of an array, in the order of its categories, otherwise sorted."""
    return read_categories(values if isinstance(values, pd.Series) else pd.Series(values))
