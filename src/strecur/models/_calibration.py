"""From a network's probabilities to ones that can be taken at their word, on annotated spots it was not trained on."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

TINY = 1e-30
SHARPNESS = (0.05, 20.0)


def temper(proba_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Flatten (temperature > 1) or sharpen (< 1) probabilities; their order stays.

    Parameters
    ----------
    proba_NC
        Probabilities, spots × domains.
    temperature
        What the log-probabilities are divided by.

    Returns
    -------
    Probabilities, spots × domains, float32.

    Notes
    -----
    Guo et al., *On calibration of modern neural networks* (2017), section 4.2.
    """
    return np.exp(_log_tempered(proba_NC, 1 / temperature)).astype(np.float32)


def fit_temperature(proba_NC: np.ndarray, target_N: np.ndarray) -> float:
    """Find the temperature, between 1/20 and 20, at which the annotated domains are most likely.

    Parameters
    ----------
    proba_NC
        Probabilities, spots × domains.
    target_N
        Index of the annotated domain of every spot.
    """
    # the likelihood is convex in the inverse of the temperature
    found = minimize_scalar(
        lambda sharpness: _mean_loss(_log_tempered(proba_NC, sharpness), target_N), bounds=SHARPNESS, method="bounded"
    )
    return float(1 / found.x)


def negative_log_likelihood(proba_NC: np.ndarray, target_N: np.ndarray) -> float:
    """Mean over spots of -log p of the annotated domain."""
    return _mean_loss(_log(proba_NC), target_N)


def conformal_scores(proba_NC: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Probability of the annotated domain of every spot, in descending order: from the most to the least expected."""
    return np.sort(proba_NC[np.arange(len(target_N)), target_N])[::-1]


def label_sets(proba_NC: np.ndarray, scores: np.ndarray, coverage: float) -> np.ndarray:
    """Choose for every spot the domains among which the true one is with probability ``coverage``.

    A domain belongs to the set if it is at least as probable as the annotated one of the ⌈(n + 1) · coverage⌉-th of the
    ``n`` calibration spots (split conformal prediction); the most probable domain always does.

    Parameters
    ----------
    proba_NC
        Probabilities, tempered as those the scores were made of.
    scores
        From :func:`conformal_scores`.
    coverage
        Wanted share of spots whose set holds the true domain, in (0, 1).

    Returns
    -------
    Spots × domains, bool.

    Notes
    -----
    Sadinle, Lei and Wasserman, *Least ambiguous set-valued classifiers with bounded error levels* (2019). The share is
    right on average for spots that are exchangeable with the calibration spots, thus for sections like those.
    """
    # in floating point 100 * .07 is a little more than 7
    rank = int(np.ceil(round((len(scores) + 1) * coverage, 9)))
    sets_NC = proba_NC >= (scores[rank - 1] if rank <= len(scores) else 0)
    sets_NC[np.arange(len(sets_NC)), proba_NC.argmax(axis=1)] = True
    return sets_NC


def _log(proba_NC: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(proba_NC, dtype=np.float64), TINY))


def _log_tempered(proba_NC: np.ndarray, sharpness: float) -> np.ndarray:
    return log_softmax(sharpness * _log(proba_NC), axis=1)


def _mean_loss(log_proba_NC: np.ndarray, target_N: np.ndarray) -> float:
    return float(-log_proba_NC[np.arange(len(target_N)), target_N].mean())
