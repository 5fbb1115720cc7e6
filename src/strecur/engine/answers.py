"""Results of prediction: the restarts of a section, and their combination into one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

RESIDUAL_WINDOW = 3
"""Last outer steps over which the residual is averaged."""


@dataclass(frozen=True)
class Prediction:
    """Result of one restart on one section.

    Attributes
    ----------
    output_DN
        Output after each outer step (or only the last), (depth, N, C or G) float32, averaged over the symmetric views.
        A section that stopped keeps its output.
    latent_ND
        Last latent, averaged over the views, float32.
    halt_probability_D
        Halt probability after each outer step; NaN for a network without a halt head.
    residual_D
        Root mean square change of the states in each outer step, per token and channel :cite:p:`eqr`; NaN in the first
        step of a recursion with one state, and after the section stopped.
    n_steps
        Outer steps that were run.
    latents_DNE
        Latent of the kept spots after each outer step, (depth, spots, width) float32, or ``None``.
    tokens_MD
        Global tokens of the section after the last step, of the same state as the latent and averaged over the views,
        (tokens, width) float32.
    """

    output_DN: np.ndarray
    latent_ND: np.ndarray
    halt_probability_D: np.ndarray
    residual_D: np.ndarray
    n_steps: int
    latents_DNE: np.ndarray | None = None
    tokens_MD: np.ndarray | None = None

    @property
    def residual(self) -> float:
        """Mean residual of the last three outer steps that were run."""
        known = self.residual_D[: self.n_steps][-RESIDUAL_WINDOW:]
        known = known[np.isfinite(known)]
        return float(known.mean()) if len(known) else np.nan


@dataclass(frozen=True)
class Answer:
    """All restarts of one section.

    Attributes
    ----------
    section
        Name of the section.
    restarts
        Result of each restart.
    """

    section: str
    restarts: tuple[Prediction, ...]

    def __len__(self) -> int:
        return len(self.restarts)

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.restarts)

    @property
    def best(self) -> Prediction:
        """Restart with the smallest residual over its last three outer steps :cite:p:`eqr`; the first of ties."""
        residuals = np.array([restart.residual for restart in self.restarts])
        return self.restarts[int(np.nanargmin(residuals)) if np.isfinite(residuals).any() else 0]

    def combined(self, selection: str) -> np.ndarray:
        """Combine the outputs of the restarts after each outer step, (depth, N, C or G).

        Parameters
        ----------
        selection
            ``"converged"``, the output of :attr:`best`; ``"mean"`` over all restarts; or ``"vote"``, for every spot the
            mean over the restarts whose most probable class is the most frequent one, where ties are broken by the sum
            of the probabilities.
        """
        if len(self) == 1 or selection == "converged":
            return self.best.output_DN
        outputs_BDN = np.stack([restart.output_DN for restart in self])
        return outputs_BDN.mean(axis=0) if selection == "mean" else vote(outputs_BDN)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of the last output over the restarts, (N, C or G)."""
        return np.std([restart.output_DN[-1] for restart in self], axis=0)

    def agreement(self, choice_N: np.ndarray) -> np.ndarray:
        """Share of restarts whose last output has the class ``choice_N``, for every spot."""
        return np.mean([restart.output_DN[-1].argmax(axis=-1) == choice_N for restart in self], axis=0)

    @property
    def disagreement(self) -> float:
        """Share of spots in which two restarts have different classes, averaged over pairs; NaN for one restart."""
        n = len(self)
        if n == 1:
            return np.nan
        choice_BN = np.stack([restart.output_DN[-1].argmax(axis=-1) for restart in self])
        classes = np.arange(self.restarts[0].output_DN.shape[-1])
        counts_NC = (choice_BN[..., None] == classes).sum(axis=0)
        same_N = (counts_NC * (counts_NC - 1)).sum(axis=-1) / (n * (n - 1))
        return float(1 - same_N.mean())


def vote(outputs_BDN: np.ndarray) -> np.ndarray:
    """Average the outputs of the restarts that agree with the majority, for every spot and outer step."""
    choice_BDN = outputs_BDN.argmax(axis=-1)
    classes = np.arange(outputs_BDN.shape[-1])
    votes_DNC = (choice_BDN[..., None] == classes).sum(axis=0)
    # probabilities of B restarts sum to at most B, so that this never outweighs a vote
    winner_DN = (votes_DNC + outputs_BDN.sum(axis=0) / (len(outputs_BDN) + 1)).argmax(axis=-1)
    agrees_BDN = (choice_BDN == winner_DN)[..., None]
    return ((outputs_BDN * agrees_BDN).sum(axis=0) / agrees_BDN.sum(axis=0)).astype(outputs_BDN.dtype)
