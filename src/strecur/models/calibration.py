"""Calibration on sections a model was not trained on.

Domains: temperature scaling and split-conformal label sets. Expression: split-conformal intervals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from strecur._arguments import filled

if TYPE_CHECKING:
    from collections.abc import Mapping

TINY = 1e-30

USUAL_COVERAGE = 0.9
"""At which coverage is measured."""

SHARPNESS = (0.05, 20.0)

N_BINS = 4
LEVELS = np.linspace(0, 1, 201)
MIN_SPOTS = 20


def temper(proba_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Flatten (temperature > 1) or sharpen (< 1) probabilities; their order does not change.

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
    """Return the mean over spots of -log p of the annotated domain."""
    return _mean_loss(_log(proba_NC), target_N)


def conformal_scores(proba_NC: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Return the probability of the annotated domain of every spot, in descending order."""
    return np.sort(proba_NC[np.arange(len(target_N)), target_N])[::-1]


def label_sets(proba_NC: np.ndarray, scores: np.ndarray, coverage: float) -> np.ndarray:
    """Return for every spot a set of domains that contains the true one with probability ``coverage``.

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


def measure_coverage(proba: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Return how often the sets of a section hold the true domain, if all others are calibrated on.

    Parameters
    ----------
    proba
        Probabilities of each section by a model that has not seen it, spots × domains.
    targets
        Index of the annotated domain of its spots, -1 where there is none.

    Returns
    -------
    By section ``n_spots`` with a domain, ``coverage`` and mean ``set_size`` of sets for 90 %.
    """
    rows = {}
    for name, proba_NC in proba.items():
        others = [other for other in proba if other != name and (targets[other] >= 0).any()]
        known_N = targets[name] >= 0
        if not others or not known_N.any():
            continue
        own_NC, truth_N = proba_NC[known_N], targets[name][known_N]
        their_N = np.concatenate([targets[other] for other in others])
        their_NC = np.concatenate([proba[other] for other in others])[their_N >= 0]
        their_N = their_N[their_N >= 0]
        temperature = fit_temperature(their_NC, their_N)
        scores = conformal_scores(temper(their_NC, temperature), their_N)
        sets_NC = label_sets(temper(own_NC, temperature), scores, USUAL_COVERAGE)
        covered = sets_NC[np.arange(len(truth_N)), truth_N].mean()
        rows[name] = {"n_spots": len(truth_N), "coverage": covered, "set_size": sets_NC.sum(axis=1).mean()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["n_spots", "coverage", "set_size"])


def _log(proba_NC: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(proba_NC, dtype=np.float64), TINY))


def _log_tempered(proba_NC: np.ndarray, sharpness: float) -> np.ndarray:
    return log_softmax(sharpness * _log(proba_NC), axis=1)


def _mean_loss(log_proba_NC: np.ndarray, target_N: np.ndarray) -> float:
    return float(-log_proba_NC[np.arange(len(target_N)), target_N].mean())


@dataclass(frozen=True)
class ExpressionErrors:
    """Absolute errors on sections a model was not trained on, as quantiles.

    Expression spreads more where it is high, so that a gene's spots are told apart by the quarter of its predictions
    they fall in; a quarter of few spots (many predictions are equal) has the errors of all.

    Attributes
    ----------
    edge_EG
        Bounds between the quarters, by gene, float32.
    error_BQG
        Quantiles of the absolute error in each quarter, at ``LEVELS``, float32.
    count_BG
        Spots they were taken from.
    spread_G
        Root mean square, over these spots, of the standard deviation over the networks of an ensemble, float32;
        ``None`` for one network.
    """

    edge_EG: np.ndarray
    error_BQG: np.ndarray
    count_BG: np.ndarray
    spread_G: np.ndarray | None = None

    def half_width(self, predicted_NG: np.ndarray, coverage: float, spread_NG: np.ndarray | None = None) -> np.ndarray:
        """Return half the width of the interval that contains the truth with this probability, spots × genes float32.

        It is at least the ⌈(n + 1) · coverage⌉-th smallest of the ``n`` errors (split conformal prediction), rounded up
        to the next of ``LEVELS``, or the largest if there are fewer. Where networks of an ensemble differ more
        (``spread_NG``) than on the sections the errors were taken from, it is as many times wider.
        """
        bin_NG = (predicted_NG[None] > self.edge_EG[:, None]).sum(axis=0)
        level_BG = np.minimum((self.count_BG + 1) * coverage / self.count_BG, 1)
        # rounded first, since in floating point 200 * .07 is a little more than 14
        index_BG = np.ceil(np.round(level_BG * (len(LEVELS) - 1), 9)).astype(int)
        width_BG = np.take_along_axis(self.error_BQG, index_BG[:, None], axis=1)[:, 0]
        width_NG = width_BG[bin_NG, np.arange(predicted_NG.shape[1])]
        if self.spread_G is not None and spread_NG is not None:
            width_NG = width_NG * self.inflation(spread_NG)
        return width_NG.astype(np.float32)

    def inflation(self, spread_NG: np.ndarray) -> np.ndarray:
        """Return how many times more networks differ than where the errors were taken from, at least 1, spots × 1.

        Few networks tell it for all genes of a spot together, not for each.
        """
        usual = np.square(filled(self.spread_G)).sum()
        ratio_N1 = np.square(spread_NG).sum(axis=1, keepdims=True) / max(usual, TINY)
        return np.sqrt(np.maximum(ratio_N1, 1))


def fit_errors(predicted_NG: np.ndarray, truth_NG: np.ndarray, spread_NG: np.ndarray | None = None) -> ExpressionErrors:
    """Fit the errors of spots the model was not trained on and whose truth is known (no NaN).

    ``spread_NG`` is the standard deviation over the networks of an ensemble.
    """
    edge_EG = np.quantile(predicted_NG, np.arange(1, N_BINS) / N_BINS, axis=0)
    bin_NG = (predicted_NG[None] > edge_EG[:, None]).sum(axis=0)
    error_NG = np.abs(predicted_NG - truth_NG)
    by_bin = []
    for b in range(N_BINS):
        few_G = (bin_NG == b).sum(axis=0) < MIN_SPOTS
        by_bin.append(np.where((bin_NG == b) | few_G, error_NG, np.nan))
    quantiles = [np.nanquantile(errors_NG, LEVELS, axis=0, method="higher") for errors_NG in by_bin]
    return ExpressionErrors(
        edge_EG.astype(np.float32),
        np.stack(quantiles).astype(np.float32),
        np.stack([np.isfinite(errors_NG).sum(axis=0) for errors_NG in by_bin]),
        None if spread_NG is None else np.sqrt(np.square(spread_NG).mean(axis=0)).astype(np.float32),
    )
