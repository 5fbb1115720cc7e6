"""What is particular to training a model of counts (GenAR, paper 002)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from strecur.models._targets import ExpressionTarget
from strecur.nn import PatchConfig
from strecur.pp._gene_order import gene_groups

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from strecur.models._network import Backbone
    from strecur.nn import GenARConfig

logger = logging.getLogger("strecur")

# Visits, however many sections there are: on two cores minutes, as each generates a fixed number of spots, or so many
# in every outer step of a recursion.
N_VISITS = 120
RATE = 5e-3


def check_counts(
    config: GenARConfig, backbone: str | Backbone, *, target: str, size_factor_key: str | None, halting: str | None
) -> str | Backbone:
    """Refuse options that a model of counts has no use for, and return the backbone it runs on."""
    if target != "log2" or size_factor_key is not None:
        msg = f"architecture='genar' predicts raw counts; leave out target={target!r} and size_factor_key"
        raise ValueError(msg)
    if halting is not None:
        msg = f"halting={halting!r} does not go with architecture='genar'; leave it out"
        raise ValueError(msg)
    if config.recursion is not None:
        return backbone
    if backbone != "windowed":
        msg = "without a recursion GenAR sees spots one by one and has no backbone; see GenARConfig(recursion=...)"
        raise ValueError(msg)
    return PatchConfig(config.condition_width, config.dropout)


def count_target(genes: Sequence[str], layer: str | None) -> ExpressionTarget:
    """Raw counts, as they are."""
    return ExpressionTarget(list(genes), "counts", None, None, layer)


def fit_counts(
    config: GenARConfig, counts_NG: np.ndarray, genes: Sequence[str], rng: int
) -> tuple[GenARConfig, np.ndarray]:
    """Fit scales, vocabulary and the order of the genes on the training spots, and report what will be clipped."""
    silent = [gene for gene, counted in zip(genes, counts_NG.any(axis=0), strict=True) if not counted]
    if silent:
        logger.warning("genes %s have no count in training; zeros are all that can be learned of them", silent)
    config = config.fitted(len(genes), int(counts_NG.max()))
    clipped_NG = counts_NG > config.vocabulary - 1
    if clipped_NG.any():
        logger.warning(
            "%d counts of the genes %s are clipped to %d in training (vocabulary=%d); the largest is %d",
            clipped_NG.sum(),
            [gene for gene, clipped in zip(genes, clipped_NG.any(axis=0), strict=True) if clipped],
            config.vocabulary - 1,
            config.vocabulary,
            counts_NG.max(),
        )
    return config, gene_groups(counts_NG, config.n_groups, rng=rng).order_G


def schedule(n_sections: int, max_epochs: int | None) -> dict[str, object]:
    """How long and how fast to train."""
    return {"max_epochs": max_epochs or -(-N_VISITS // n_sections), "learning_rate": RATE}
