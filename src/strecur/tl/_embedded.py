"""Spots whose image patch was embedded, and what becomes of the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strecur._anndata import Grid, Sections, read_array, read_grid, read_sections, require
from strecur.models._representation import EMBED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from strecur.models._features import SpotFeatures

logger = logging.getLogger("strecur")


@dataclass(frozen=True)
class Embedded:
    """The spots of an object that have a representation, with the sections and the lattice of these spots alone.

    The others have NaN in every column, as where a patch lies outside the image. They take part in nothing.
    """

    table: AnnData
    rows: np.ndarray
    n_spots: int
    sections: Sections
    grid: Grid

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Put results of the embedded spots in the order of the whole object; the others get NaN."""
        whole = np.full((self.n_spots, *values.shape[1:]), np.nan, dtype=np.float32)
        whole[self.rows] = values
        return whole


def read_embedded(table: AnnData, use_rep: str, library_key: str | None) -> Embedded:
    """Find the spots that have a representation."""
    require(table.obsm, use_rep, where="obsm", hint=EMBED)
    rows = np.flatnonzero(~np.isnan(read_array(table, use_rep, dtype=np.float32).reshape(table.n_obs, -1)).all(axis=1))
    n_missing = table.n_obs - len(rows)
    if n_missing == table.n_obs:
        msg = f"adata.obsm[{use_rep!r}] is NaN for all {table.n_obs} spots. {EMBED}"
        raise ValueError(msg)
    part = table
    if n_missing:
        logger.warning("%d of %d spots have no embedding and are left out", n_missing, table.n_obs)
        part = (table.to_memory() if table.isbacked else table)[rows]
    sections = read_sections(part, library_key)
    return Embedded(part, rows, table.n_obs, sections, read_grid(part, sections))


def input_of(
    features: SpotFeatures, embedded: Embedded
) -> tuple[np.ndarray, dict[int, np.ndarray], np.ndarray, list[float]]:
    """Return features of every spot, those under other symmetries, their mean, and the novelty of every section."""
    values = features.representation(embedded.table)
    views = features.views(embedded.table, embedded.sections, embedded.grid)
    columns = views[0] if views else features.columns(values, embedded.sections, embedded.grid)
    return columns, views, average_views(columns, views), features.novelty(values, embedded.sections)


def average_views(columns: np.ndarray, views: Mapping[int, np.ndarray]) -> np.ndarray:
    """Mean of the features over the symmetries, which is what the linear baseline sees."""
    if not views:
        return columns
    total = np.zeros_like(columns)
    for values in views.values():
        total += values
    return total / len(views)
