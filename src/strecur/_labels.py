"""Labels of spots and names of sections: one text for each, and none where the label is missing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MISSING_WORDS = frozenset(
    {
        *("nan", "na", "none", "null", "nil", "nat", "unk", "unknown", "missing", "undefined", "undetermined"),
        *("unannotated", "unlabelled", "unlabeled", "unassigned", "unclassified"),
        *("notavailable", "notannotated", "notlabelled", "notlabeled", "notassigned", "notclassified", "notdetermined"),
        *("noannotation", "nolabel"),
    }
)
"""What missing labels become as text, letters alone and in lower case."""

PLUS_OR_MINUS = {"+", "+-", "+/-"}
"""Labels without a letter or digit that are not missing."""


WHOLE_NUMBER = re.compile(r"([+-]?\d+)\.0*")
"""A whole number that was a float before it became text."""


def clean_labels(values: pd.Series | Sequence[object]) -> pd.Series:
    """Return labels as strings, with missing ones as ``None``; a Series of objects whatever the text type of pandas.

    Missing are NaN, infinite numbers, text without letters and digits, words such as "NA", "<NA>", "not annotated" and
    "Not_annotated" in any case, and -1 unless there are other negative numbers. Whole numbers are written alike
    whatever their type: a column of integers that lacks some holds floats.
    """
    shape = np.asarray(values, dtype=object).shape
    if len(shape) != 1:
        msg = f"labels have shape {shape}; pass one label per spot"
        raise ValueError(msg)
    given = pd.Series(values).astype(object)
    infinite = np.array([isinstance(value, float | np.floating) and np.isinf(value) for value in given], dtype=bool)
    missing = given.isna().to_numpy() | infinite
    written = {label: label_text(label) for label in given[~missing].unique()}
    if is_code_of_missing({text for text in written.values() if text is not None}):
        written = {label: None if text == "-1" else text for label, text in written.items()}
    found = np.empty(len(given), dtype=object)
    found[~missing] = [written[label] for label in given[~missing]]
    return pd.Series(found, index=given.index, name=given.name, dtype=object)


def label_text(label: object) -> str | None:
    """Return a label as text, ``None`` if it is a word for a missing one."""
    text = (label.decode() if isinstance(label, bytes) else as_text(label)).strip()
    number = WHOLE_NUMBER.fullmatch(text)
    text = str(int(number[1])) if number else text
    return None if _is_word_for_missing(text) else text


def _is_word_for_missing(text: str) -> bool:
    letters = "".join(character for character in text.lower() if character.isalnum())
    if not letters:
        return text not in PLUS_OR_MINUS
    # "n/a" and "(none)" are missing; "na 2" has a digit, "na+" a sign
    return letters in MISSING_WORDS and "+" not in text


def read_categories(column: pd.Series) -> list[str]:
    """Return the possible labels of a column as strings, in the order of its categories, otherwise sorted.

    Whole numbers come first, sorted by value.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(dict.fromkeys(clean_labels(list(column.cat.categories)).dropna()))
    return sorted_labels(clean_labels(column).dropna().unique())


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """Sort labels; whole numbers come first, by value."""
    return sorted(labels, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def as_text(value: object) -> str:
    """Return a value as text, whole numbers alike whether they are integers or floats."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def is_code_of_missing(labels: set[str]) -> bool:
    """Return whether -1 among labels stands for a missing one: all others are codes from 0, or names."""
    others = labels - {"-1"}
    return "-1" in labels and bool(others) and not any(label.startswith("-") for label in others)
