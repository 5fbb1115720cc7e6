"""Barcodes in the names of spots, which programs and joined objects write with different prefixes and suffixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable

# Nucleotides (Visium), places of bins and numbers of cells (Visium HD), and the number of the capture area.
BARCODE = r"((?:(?<![A-Za-z])[ACGTN]{10,}(?![A-Za-z])|s_\d+um_\d+_\d+|cellid_\d+))(-\d{1,2}(?!\d))?"


def split_barcodes(names: Iterable[object]) -> pd.DataFrame:
    """Return ``barcode`` and ``suffix`` (such as ``"-1"``) in each name; NaN where there is none."""
    found = pd.Series([str(name) for name in names], dtype=object).str.extract(BARCODE)
    return found.set_axis(["barcode", "suffix"], axis=1)


def original_barcodes(names: Iterable[object]) -> list[str]:
    """Return names as Space Ranger writes them, ``"AAAC…-1"``; names without barcode, or that would repeat, stay."""
    given = [str(name) for name in names]
    found = split_barcodes(given)
    original = found["barcode"] + found["suffix"].fillna("-1")
    return given if original.isna().any() or original.duplicated().any() else original.tolist()
