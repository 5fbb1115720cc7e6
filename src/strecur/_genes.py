"""Names of genes: identifiers, symbols and what they say about a gene."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._labels import label_text

if TYPE_CHECKING:
    from collections.abc import Iterable

ENSEMBL_ID = re.compile(r"ENS[A-Z]*\d+")
ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*\d+)\.\d+$")

MITOCHONDRIAL = re.compile(r"mt[-.:]\S+", re.IGNORECASE)
"""Genes of the mitochondrial genome: MT-CO1, mt-Co1, MT.CO1; not MTOR, MT1X or MTHFR."""

RIBOSOMAL = re.compile(r"(rpsa|rplp[0-2]l?|rp[sl]\d+[axy]?l?\d*)(-?ps?\d+)?([-.]\d+)?", re.IGNORECASE)
"""Proteins of the cytosolic ribosome and their pseudogenes: RPS6, Rpl13a, RPS4Y1, RPL7P1; not RPS6KA1 or MRPL3.

A number at the end belongs to a name that occurred twice (RPS6-1), or to a copy of the gene (rps27.1 of zebrafish).
"""


def clean_genes(names: Iterable[object]) -> list[str]:
    """Strip blanks, and the version of Ensembl ids; other names stay.

    A missing name becomes the empty string, and so do words for it that several genes have as their name.
    """
    column = pd.Series(list(names), dtype=object)
    cleaned = [ENSEMBL_VERSION.sub(r"\1", str(name).strip()) for name in column.where(column.notna(), "")]
    words = {name for name, n in Counter(cleaned).items() if n > 1 and label_text(name) is None}
    return ["" if name in words else name for name in cleaned] if words else cleaned


def name_columns(var: pd.DataFrame) -> list[str]:
    """Return the columns that may hold names of genes: text wherever it is not missing."""
    return [column for column in var.columns if _is_text(var[column])]


def _is_text(column: pd.Series) -> bool:
    values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column.dropna()
    return len(values) > 0 and all(isinstance(value, str) for value in values)


def is_mitochondrial_or_ribosomal(var: pd.DataFrame, gene_symbols: str | None) -> np.ndarray:
    """Tell mitochondrial and ribosomal genes by a column of symbols; if ``None``, by any name that ``var`` has."""
    columns = [var.index, *(var[c] for c in name_columns(var))] if gene_symbols is None else [var[gene_symbols]]
    found = np.zeros(len(var), dtype=bool)
    for column in columns:
        found |= [bool(MITOCHONDRIAL.fullmatch(n) or RIBOSOMAL.fullmatch(n)) for n in clean_genes(column)]
    return found


def are_all_ids(var: pd.DataFrame, gene_symbols: str | None) -> bool:
    """Return whether genes are named by Ensembl ids alone, which say nothing about them."""
    columns = [var.index, *(var[c] for c in name_columns(var))] if gene_symbols is None else [var[gene_symbols]]
    names = [name for column in columns for name in clean_genes(column)]
    return all(ENSEMBL_ID.fullmatch(name) for name in names if name)
