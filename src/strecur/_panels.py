"""Gene panels that are chosen by name: their members, and how the data name them."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._arguments import as_names, nearest_name
from strecur._genes import clean_genes, name_columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

logger = logging.getLogger("strecur")

MAX_HINTS = 10
"""Number of absent genes for which the most similar name is looked up, which takes a while for each."""

SIMILAR = 0.75


@dataclass(frozen=True)
class Panel:
    """Genes with a source, by human symbols.

    Attributes
    ----------
    name
        Name by which it is chosen.
    description, source, doi
        What the genes stand for, and where they were published.
    genes
        Symbols of today.
    """

    name: str
    description: str
    source: str
    doi: str
    genes: list[str]


@dataclass(frozen=True)
class Found:
    """Genes of a panel in the data.

    Attributes
    ----------
    column
        Position among the columns of names.
    rows
        For every gene that is there, its rows of ``var``: several if a symbol is not unique.
    capitalised
        Whether genes were found as Erbb2 instead of ERBB2.
    """

    column: int
    rows: dict[str, list[int]]
    capitalised: bool


def read_panels() -> dict[str, Panel]:
    """Return the panels by name."""
    return {name: Panel(name, **entry) for name, entry in _read_file()["panels"].items()}


@cache
def _read_file() -> dict:
    # by path: strecur.datasets is not imported for it
    path = files("strecur") / "datasets" / "files" / "panels.json"
    return json.loads(path.read_text(encoding="utf-8"))


def count_named(names: Iterable[str]) -> int:
    """Return how many genes names of genes and panels stand for, at most."""
    panels = read_panels()
    return sum(len(panels[name].genes) if name in panels else 1 for name in names)


def name_genes(argument: str, names: str | Sequence[str], var: pd.DataFrame, *, by_index: bool = False) -> list[str]:
    """Replace the panels among some names by their genes, as the data name them.

    Parameters
    ----------
    argument
        Name of the argument, for messages.
    names
        Genes and panels. Genes stay as they are, also those that do not exist.
    var
        Table of genes. Members of panels are looked up in its index and its text columns.
    by_index
        Name members by the index of ``var``. If ``False`` (default), by the column that holds the genes in ``names``;
        without such genes, by the column in which most members were found.

    Returns
    -------
    Names without duplicates, in the order given. Members that the data lack are left out and logged.

    Raises
    ------
    KeyError
        If no gene of a panel is in the data.
    """
    given, panels = as_names(argument, names), read_panels()
    own = [name for name in given if name not in panels]
    if len(own) == len(given):
        return given
    columns = [clean_genes(var.index), *(clean_genes(var[column]) for column in name_columns(var))]
    found = {name: find_panel(panels[name], columns) for name in given if name in panels}
    for name, match in found.items():
        report(argument, panels[name], match, columns)
    if by_index:
        labels = [str(name) for name in var.index]
    else:
        labels = columns[_column_of(clean_genes(own), columns, otherwise=next(iter(found.values())).column)]
    taken = set(clean_genes(own))
    result = []
    for name in given:
        if name not in panels:
            result.append(name)
            continue
        members = [labels[row] for rows in found[name].rows.values() for row in rows]
        # a gene given with another version of its id stays as it was given
        result += [member for member in members if member and clean_genes([member])[0] not in taken]
    return list(dict.fromkeys(result))


def _column_of(own: list[str], columns: list[list[str]], *, otherwise: int) -> int:
    """Return the position of the column that holds most of some names."""
    n_found = [len(set(own).intersection(column)) for column in columns]
    return int(np.argmax(n_found)) if max(n_found) else otherwise


def find_panel(panel: Panel, columns: Sequence[Sequence[str]]) -> Found:
    """Look a panel up in the column, and in the spelling, in which most of its genes are found."""
    every = [
        Found(position, _find_in(panel, column, capitalised=capitalised), capitalised)
        for position, column in enumerate(columns)
        for capitalised in (False, True)
    ]
    return max(every, key=lambda found: len(found.rows))


def _find_in(panel: Panel, column: Sequence[str], *, capitalised: bool) -> dict[str, list[int]]:
    """Return the rows of every gene that is in a column, under its symbol or an earlier one."""
    spellings = {gene: [gene, *_read_file()["earlier_symbols"].get(gene, [])] for gene in panel.genes}
    if capitalised:
        spellings = {gene: [symbol.capitalize() for symbol in symbols] for gene, symbols in spellings.items()}
    wanted = {symbol for symbols in spellings.values() for symbol in symbols}
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(pd.Index(column).isin(wanted)).tolist():
        rows_of.setdefault(column[row], []).append(row)
    first = {gene: next((s for s in symbols if s in rows_of), None) for gene, symbols in spellings.items()}
    return {gene: rows_of[symbol] for gene, symbol in first.items() if symbol is not None}


def report(argument: str, panel: Panel, found: Found, columns: Sequence[Sequence[str]]) -> None:
    """Log which genes of a panel are left out, and how they were matched; raise if there is none."""
    names = columns[found.column]
    if not found.rows:
        msg = (
            f"{argument}: none of the {len(panel.genes)} genes of the panel {panel.name!r} ({panel.genes[0]}, "
            f"{panel.genes[1]}, …) is in the data, whose genes are {list(columns[0][:5])}…; human and mouse symbols "
            "are looked up in adata.var_names and in the text columns of adata.var"
        )
        raise KeyError(msg)
    if found.capitalised:
        example = next(iter(found.rows))
        logger.info("panel %r: human genes are matched by their symbols as in mouse (%s: %s)", panel.name, example,
                    names[found.rows[example][0]])  # fmt: skip
    absent = [gene for gene in panel.genes if gene not in found.rows]
    if absent:
        others = sorted(set(names).difference(names[rows[0]] for rows in found.rows.values()))
        hints = [_with_nearest(gene, others) for gene in absent[:MAX_HINTS]] + absent[MAX_HINTS:]
        logger.warning("panel %r: %d of %d genes are not in the data and left out: %s", panel.name, len(absent),
                       len(panel.genes), ", ".join(hints))  # fmt: skip


def _with_nearest(gene: str, names: Iterable[str]) -> str:
    nearest = nearest_name(gene, names, cutoff=SIMILAR)
    return f"{gene} (nearest: {nearest})" if nearest else gene
