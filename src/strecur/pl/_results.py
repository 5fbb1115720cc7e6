"""Results to plot: entries of an object or tables of scores, their sections and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._anndata import find_library_key, open_table, read_sections, require
from strecur._arguments import meant
from strecur._labels import as_text, read_categories

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import Sections

SCORE_NAMES = {"ari": "ARI", "macro_f1": "macro F1"}
# of all other scores, more is better
LOWER_IS_BETTER = ("loss", "mse", "mae", "rvd", "rvd_std", "error")


def made_by(key: str, tool: str = "trm_domains") -> str:
    """Return the hint of an error about a missing result."""
    return f"Run strecur.tl.{tool}(adata, model, key_added={key!r}) first."


def open_result(adata: AnnData | SpatialData, key: str, *, table_key: str | None, **slots: Sequence[str]) -> AnnData:
    """Return the table to read, after checking that the entries of a result exist, such as ``obs=[key]``."""
    table = open_table(adata, table_key=table_key, read_only=True)
    for slot, names in slots.items():
        for name in names:
            require(getattr(table, slot), name, where=slot, hint=made_by(key))
    return table


@dataclass(frozen=True)
class ChosenSections:
    """Sections to draw, in this order, by name; ``titles`` are empty if the table is a single section."""

    titles: dict[str, str]
    all_sections: Sections

    @property
    def names(self) -> list[str]:
        """Names in the order of drawing."""
        return list(self.titles)

    @property
    def rows(self) -> dict[str, np.ndarray]:
        """Positions of the spots of each section."""
        return {name: self.all_sections.rows(name) for name in self.titles}


def choose_sections(
    table: AnnData, key: str, *, library_key: str | None, library_id: str | Sequence[str] | None
) -> ChosenSections:
    """Choose the sections ``library_id`` (all if ``None``) of the result ``key``.

    If ``library_key`` is ``None``, the one the result was made with is used, else that of the lattice.
    """
    library_key = find_library_key(table, library_key, key=key)
    sections = read_sections(table, library_key)
    wanted = _choose_names(library_id, sections.names, f"obs[{library_key!r}]")
    return ChosenSections({name: "" if library_key is None else name for name in wanted}, sections)


def _choose_names(library_id: str | Sequence[str] | None, existing: Sequence[str], where: str) -> list[str]:
    """Return the names of the sections to draw after checking that they exist; all if ``library_id`` is ``None``."""
    given = existing if library_id is None else np.atleast_1d(np.asarray(library_id, dtype=object))
    wanted = [as_text(name) for name in given]
    unknown = [name for name in wanted if name not in existing]
    if unknown:
        msg = f"library_id={unknown} are not sections of {where}{meant(unknown[0], existing)}; there are {existing}"
        raise KeyError(msg)
    return wanted


def value_by_section(table: AnnData, chosen: ChosenSections, column: str | None) -> pd.Series:
    """Return the value of a column for each section; "" without a column."""
    if column is None:
        return pd.Series("", index=chosen.names)
    require(table.obs, column, where="obs", hint="name a column that is constant in each section")
    found = {name: table.obs[column].iloc[rows].astype(str).unique() for name, rows in chosen.rows.items()}
    several = [name for name, values in found.items() if len(values) > 1]
    if several:
        msg = f"adata.obs[{column!r}] differs within the sections {several}; it must be constant in each section"
        raise ValueError(msg)
    return pd.Series({name: values[0] for name, values in found.items()})


def read_answer_labels(table: AnnData, key: str) -> list[str]:
    """Return the labels of the model, in the order of the columns of its probabilities and the codes of its steps."""
    return [str(name) for name in table.uns.get(key, {}).get("categories", read_categories(table.obs[key]))]


def check_table(table: pd.DataFrame, columns: Sequence[str], *, made_with: str) -> None:
    """Raise unless the table has rows and these columns; the message names the call that makes it."""
    if not isinstance(table, pd.DataFrame):
        msg = f"expected a table from {made_with}, got {type(table).__name__}"
        raise TypeError(msg)
    if table.empty:
        msg = f"the table has no rows; make it with {made_with}"
        raise ValueError(msg)
    missing = [name for name in columns if name not in table]
    if missing:
        msg = f"the table has no column {missing}; there are {list(table.columns)}. It is made with {made_with}"
        raise KeyError(msg)


def find_score(table: pd.DataFrame, score: str | None, columns: Sequence[str], *, made_with: str) -> str | None:
    """Return the column of scores: ``score``, else the first that is not among ``columns``, else ``None``."""
    check_table(table, [*columns, *([score] if score else [])], made_with=made_with)
    return score or next((name for name in table if name not in columns), None)


def choose_table_sections(
    table: pd.DataFrame, library_id: str | Sequence[str] | None
) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of the sections ``library_id`` (all if ``None``), and the names of these in order."""
    wanted = _choose_names(library_id, list(table["section"].unique()), "the table")
    return table[table["section"].isin(wanted)], wanted
