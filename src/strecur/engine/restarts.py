"""From the restarts of a section to one answer (paper 003)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur.engine.predict import Prediction

SELECTIONS = ("converged", "mean", "vote")


def most_converged(restarts: Sequence[Prediction]) -> int:
    """Restart with the smallest residual over its last three outer steps; the first of equals."""
    residuals = np.array([restart.residual for restart in restarts])
    return int(np.nanargmin(residuals)) if np.isfinite(residuals).any() else 0


def combine(restarts: Sequence[Prediction], selection: str) -> np.ndarray:
    """Output after each outer step, (depth, N, C or G), out of that of the restarts.

    Parameters
    ----------
    restarts
        Predictions of one section.
    selection
        ``"converged"`` takes the restart with the smallest residual, ``"mean"`` averages all, ``"vote"`` averages for
        every spot those restarts whose most probable class is the most frequent one, equally frequent ones being told
        apart by the sum of their probabilities.
    """
    if len(restarts) == 1:
        return restarts[0].output_DN
    if selection == "converged":
        return restarts[most_converged(restarts)].output_DN
    outputs_BDN = np.stack([restart.output_DN for restart in restarts])
    return outputs_BDN.mean(axis=0) if selection == "mean" else vote(outputs_BDN)


def vote(outputs_BDN: np.ndarray) -> np.ndarray:
    """Mean of the outputs of those restarts that agree with the majority, spot by spot and step by step."""
    choice_BDN = outputs_BDN.argmax(axis=-1)
    classes = np.arange(outputs_BDN.shape[-1])
    votes_DNC = (choice_BDN[..., None] == classes).sum(axis=0)
    # probabilities of B restarts sum to at most B, so that this never outweighs a vote
    winner_DN = (votes_DNC + outputs_BDN.sum(axis=0) / (len(outputs_BDN) + 1)).argmax(axis=-1)
    agrees_BDN = (choice_BDN == winner_DN)[..., None]
    return ((outputs_BDN * agrees_BDN).sum(axis=0) / agrees_BDN.sum(axis=0)).astype(outputs_BDN.dtype)


def agreement(restarts: Sequence[Prediction], choice_N: np.ndarray) -> np.ndarray:
    """Share of restarts whose last output names the chosen class, for every spot."""
    return np.mean([restart.output_DN[-1].argmax(axis=-1) == choice_N for restart in restarts], axis=0)


def pairwise_disagreement(restarts: Sequence[Prediction]) -> float:
    """Share of spots on which two restarts differ, averaged over pairs; NaN for a single one."""
    if len(restarts) < 2:
        return np.nan
    choice_BN = np.stack([restart.output_DN[-1].argmax(axis=-1) for restart in restarts])
    n = len(choice_BN)
    counts_NC = (choice_BN[..., None] == np.arange(restarts[0].output_DN.shape[-1])).sum(axis=0)
    same_N = (counts_NC * (counts_NC - 1)).sum(axis=-1) / (n * (n - 1))
    return float(1 - same_N.mean())
