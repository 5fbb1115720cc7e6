"""Cell types as features: one column for each type of the training sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._anndata import logger, require
from strecur._labels import clean_labels, sorted_labels

if TYPE_CHECKING:
    from anndata import AnnData

    from strecur.options import Features

DEFAULT_KEY = "cell_type"
SHOWN = 5


@dataclass(frozen=True)
class CellTypeFeatures:
    """Cell types of the training sections, by name.

    Attributes
    ----------
    types
        Their names, sorted.
    key
        ``obs`` column of the type of each spot.
    """

    types: list[str]
    key: str

    def transform(self, adata: AnnData) -> np.ndarray:
        """Return one column per type, spots × types float32, with a one for the type of the spot, if it is known."""
        codes = pd.Index(self.types).get_indexer(read_types(adata, self.key))
        columns = np.zeros((adata.n_obs, len(self.types)), dtype=np.float32)
        known = np.flatnonzero(codes >= 0)
        columns[known, codes[known]] = 1
        return columns

    def report_unknown(self, adata: AnnData) -> None:
        """Log how many spots have no type, or one that no training section has."""
        found = read_types(adata, self.key)
        new = found.notna() & ~found.isin(self.types)
        if new.any() or found.isna().any():
            names = sorted_labels(set(found[new]))
            logger.warning(
                "adata.obs[%r]: %d of %d spots have no cell type, and %d one that is in no training section%s; their "
                "features of cell types are zero",
                *(self.key, found.isna().sum(), adata.n_obs, new.sum()),
                f" ({', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''})" if names else "",
            )


def read_types(adata: AnnData, key: str) -> pd.Series:
    """Read the type of every spot as text, missing ones as ``None``."""
    require(adata.obs, key, where="obs", hint="cell_type_key names the column of cell types")
    column = adata.obs[key]
    if pd.api.types.is_float_dtype(column):
        msg = f"adata.obs[{key!r}] holds numbers with decimals (dtype {column.dtype}); cell types are categories"
        raise ValueError(msg)
    return clean_labels(column)


def fit_cell_type_features(adata: AnnData, options: Features) -> CellTypeFeatures:
    """Collect the cell types of all spots of ``adata``, which must hold the training sections and nothing else."""
    key = options.cell_type_key or DEFAULT_KEY
    types = sorted_labels(set(read_types(adata, key).dropna()))
    if len(types) < 2:
        msg = f"adata.obs[{key!r}] names {len(types)} cell type(s) {types} in the training sections; two are needed"
        raise ValueError(msg)
    logger.info("features are the %d cell types of adata.obs[%r]", len(types), key)
    return CellTypeFeatures(types, key)
