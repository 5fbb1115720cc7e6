"""Which spots lie in the tissue."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from strecur._labels import clean_labels

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("strecur")

NO_TISSUE = {"0", "false", "f", "no", "n", "out", "outside"}
TISSUE = {"1", "true", "t", "yes", "y", "in", "inside"}


def outside_tissue(column: pd.Series) -> np.ndarray:
    """Return where ``in_tissue`` is 0, false or a word for it; raise where it is neither that nor 1 nor missing."""
    values = clean_labels(column).str.lower()
    strange = sorted(set(values.dropna()) - NO_TISSUE - TISSUE)
    if strange:
        msg = (
            f"adata.obs['in_tissue'] holds {strange[:5]}; it is 1 for spots in the tissue and 0 for others. Convert "
            "it, or rename the column if it means something else"
        )
        raise ValueError(msg)
    return values.isin(NO_TISSUE).to_numpy()


def find_background(adata: AnnData) -> np.ndarray:
    """Return which spots lie outside the tissue: those where ``obs["in_tissue"]`` is 0 or false."""
    if "in_tissue" not in adata.obs:
        return np.zeros(adata.n_obs, dtype=bool)
    return outside_tissue(adata.obs["in_tissue"])


def warn_of_background(adata: AnnData) -> None:
    """Warn of spots outside the tissue."""
    outside = find_background(adata)
    if outside.any():
        logger.warning(
            "%d of %d spots lie outside the tissue (obs['in_tissue'] is 0); models leave them out, and their results "
            "are missing",
            *(int(outside.sum()), len(outside)),
        )
