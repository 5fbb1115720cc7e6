"""Share of strange spots in sections, and a warning where there are many."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from strecur._anndata import SectionData

logger = logging.getLogger("strecur")

LEVEL = 0.99
"""Spots above are novel, as one in a hundred training spots is."""

MANY = 0.05


def share_novel(data: SectionData, novelty_N: np.ndarray) -> list[float]:
    """Return the share of novel spots of each section, NaN if it is not known; warn where there are many."""
    novel_N = np.where(np.isnan(novelty_N), np.nan, novelty_N > LEVEL)
    shares = data.means(novel_N)
    for name, share in zip(data.names, shares, strict=True):
        if share > MANY:
            logger.warning(
                "section %s: %.0f %% of the spots are stranger than %.0f %% of the training spots; look where they "
                "are (novelty), the model may not know this tissue",
                name,
                100 * share,
                100 * LEVEL,
            )
    return list(shares)
