"""How far predicted expression may be off, by gene and by how high it is predicted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

N_BINS = 4
LEVELS = np.linspace(0, 1, 201)
MIN_SPOTS = 20


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
    """

    edge_EG: np.ndarray
    error_BQG: np.ndarray
    count_BG: np.ndarray

    def half_width(self, predicted_NG: np.ndarray, coverage: float) -> np.ndarray:
        """Half the width of the interval that holds the truth with this probability, spots × genes float32.

        It is at least the ⌈(n + 1) · coverage⌉-th smallest of the ``n`` errors (split conformal prediction), rounded up
        to the next of ``LEVELS``, or the largest if there are fewer.
        """
        bin_NG = (predicted_NG[None] > self.edge_EG[:, None]).sum(axis=0)
        level_BG = np.minimum((self.count_BG + 1) * coverage / self.count_BG, 1)
        # rounded first, since in floating point 200 * .07 is a little more than 14
        index_BG = np.ceil(np.round(level_BG * (len(LEVELS) - 1), 9)).astype(int)
        width_BG = np.take_along_axis(self.error_BQG, index_BG[:, None], axis=1)[:, 0]
        return width_BG[bin_NG, np.arange(predicted_NG.shape[1])].astype(np.float32)


def fit_errors(predicted_NG: np.ndarray, truth_NG: np.ndarray) -> ExpressionErrors:
    """Collect the errors of spots whose truth is known (no NaN) and that the model was not trained on."""
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
    )
