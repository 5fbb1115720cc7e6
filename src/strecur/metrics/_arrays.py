"""Parts shared by the scores: pairing of spots and correlations, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def require_same_labels(truth: Any, predicted: Any) -> None:
    """Raise unless both have the same length and, if both are pandas objects, the same index and columns."""
    if np.shape(truth)[:1] != np.shape(predicted)[:1]:
        msg = f"truth has shape {np.shape(truth)} and the prediction {np.shape(predicted)}; they must match"
        raise ValueError(msg)
    for axis in ("index", "columns"):
        ours, theirs = getattr(truth, axis, None), getattr(predicted, axis, None)
        if isinstance(ours, pd.Index) and isinstance(theirs, pd.Index) and not ours.equals(theirs):
            msg = f"truth and prediction differ in their {axis}; bring them into the same order with .reindex first"
            raise ValueError(msg)


def dense(values: Any, axes: str = "spots × genes") -> np.ndarray:
    """Return a matrix (array, sparse matrix or DataFrame) as float64 array."""
    try:
        matrix = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"expected numbers, {axes}: {error}"
        raise ValueError(msg) from error
    if matrix.ndim != 2:
        msg = f"expected {axes}, got shape {matrix.shape}"
        raise ValueError(msg)
    return matrix


def pair(truth: ArrayLike, predicted: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth and prediction of the spots that both have, and a mask of those spots.

    A spot is missing if its whole row is NaN; other NaN are errors.
    """
    require_same_labels(truth, predicted)
    true, pred = dense(truth), dense(predicted)
    if true.shape != pred.shape:
        msg = f"truth has shape {true.shape} and the prediction {pred.shape}; they must match"
        raise ValueError(msg)
    valid = ~(np.isnan(true).all(axis=1) | np.isnan(pred).all(axis=1))
    for name, values in (("truth", true), ("the prediction", pred)):
        if not np.isfinite(values[valid]).all():
            genes = np.flatnonzero(~np.isfinite(values[valid]).all(axis=0))
            msg = (
                f"{name} has NaN or infinite values in {len(genes)} genes (columns {genes[:5].tolist()} …) "
                "of spots that are not missing as a whole; leave those genes out first"
            )
            raise ValueError(msg)
    return true[valid], pred[valid], valid


def varies(values: np.ndarray) -> np.ndarray:
    """Tell which columns are not constant up to rounding."""
    if len(values) < 2:
        return np.zeros(values.shape[1], dtype=bool)
    norm = np.linalg.norm(values - values.mean(axis=0), axis=0)
    return norm > 1e-12 * np.sqrt(len(values)) * np.abs(values).max(axis=0)


def correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of each column, NaN where one side is constant."""
    result = np.full(a.shape[1], np.nan)
    defined = varies(a) & varies(b)
    if not defined.any():
        return result
    a, b = standardised(a[:, defined]), standardised(b[:, defined])
    result[defined] = np.clip((a * b).sum(axis=0), -1, 1)
    return result


def standardised(values: np.ndarray) -> np.ndarray:
    """Centre the columns and scale them to norm 1."""
    centred = values - values.mean(axis=0)
    return centred / np.linalg.norm(centred, axis=0)
