"""The answer of a model: a blend of its network and its linear baseline."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

from strecur.models.calibration import fit_temperature, negative_log_likelihood, temper

EQUAL = 0.5
"""Weight of the network where no held-out section tells a better one."""

WEIGHTS = np.linspace(0, 1, 21)

EQUAL_SPOTS = 25
"""The weight of domains is averaged with an equal one that counts as many spots, so that chance does not choose it."""

TINY = 1e-30


def blend_proba(network_DNC: np.ndarray, linear_NC: np.ndarray, weight: float) -> np.ndarray:
    """Average log-probabilities.

    Parameters
    ----------
    network_DNC
        Probabilities of the network after each outer step, (depth, spots, domains).
    linear_NC
        Probabilities of the linear baseline.
    weight
        Weight of the network, from 0 to 1; the linear baseline has the rest.

    Returns
    -------
    Probabilities, float32 of the shape of ``network_DNC``.
    """
    if weight == 1:
        return network_DNC
    network, linear = (np.log(np.maximum(proba, TINY), dtype=np.float64) for proba in (network_DNC, linear_NC))
    return np.exp(log_softmax(weight * network + (1 - weight) * linear, axis=-1)).astype(np.float32)


def blend_values(network_NG: np.ndarray, linear_NG: np.ndarray, weight: float) -> np.ndarray:
    """Average predicted values, spots × genes float32; ``weight`` is that of the network, from 0 to 1."""
    if weight == 1:
        return network_NG
    return (weight * network_NG + (1 - weight) * linear_NG).astype(np.float32)


def choose_proba_weight(network_NC: np.ndarray, linear_NC: np.ndarray, target_N: np.ndarray) -> float:
    """Return the weight of the network at which the domains of held-out spots are most likely.

    Blends are compared after temperature scaling, as answers are. Otherwise a network that is right more often, but too
    certain, would get too little weight.

    Parameters
    ----------
    network_NC, linear_NC
        Probabilities of spots that neither was fitted on.
    target_N
        Index of the annotated domain of each of these spots.
    """
    loss = []
    for weight in WEIGHTS:
        proba_NC = blend_proba(network_NC[None], linear_NC, weight)[0]
        loss.append(negative_log_likelihood(temper(proba_NC, fit_temperature(proba_NC, target_N)), target_N))
    n_spots = len(target_N)
    return float((n_spots * WEIGHTS[np.argmin(loss)] + EQUAL_SPOTS * EQUAL) / (n_spots + EQUAL_SPOTS))


def choose_value_weight(network_NG: np.ndarray, linear_NG: np.ndarray, truth_NG: np.ndarray) -> float:
    """Return the weight of the network with the least squared error on held-out spots, all spots × genes."""
    loss = [np.square(blend_values(network_NG, linear_NG, weight) - truth_NG).mean() for weight in WEIGHTS]
    return float(WEIGHTS[np.argmin(loss)])
