"""Refuse arguments that make no sense, before anything is computed."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_whole(name: str, value: object, *, least: float = 1) -> None:
    """Refuse what is no whole number, or one below ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        msg = f"{name}={value!r}: pass a whole number"
        raise TypeError(msg)
    if value < least:
        msg = f"{name}={value}: at least {'one' if least == 1 else least} is needed"
        raise ValueError(msg)


def check_number(name: str, value: object) -> None:
    """Refuse what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"{name}={value!r}: pass a number"
        raise TypeError(msg)
    if not math.isfinite(value):
        msg = f"{name}={value}: pass a finite number"
        raise ValueError(msg)


def check_positive(name: str, value: object) -> None:
    """Refuse what is no finite number above zero."""
    check_number(name, value)
    if value <= 0:
        msg = f"{name}={value} must be positive"
        raise ValueError(msg)


def check_share(name: str, value: object) -> None:
    """Refuse what is no number from 0 to 1."""
    check_number(name, value)
    if not 0 <= value <= 1:
        msg = f"{name}={value} must lie between 0 and 1"
        raise ValueError(msg)


def check_several(name: str, values: object, *, least: int = 1) -> None:
    """Refuse what is no sequence of whole numbers, or holds one below ``least``."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        msg = f"{name}={values!r}: pass a list of whole numbers"
        raise TypeError(msg)
    for i, value in enumerate(values):
        check_whole(f"{name}[{i}]", value, least=least)


def as_names(argument: str, names: str | Sequence[str]) -> list[str]:
    """Return one name or several as a list."""
    if not isinstance(names, str) and not hasattr(names, "__iter__"):
        msg = f"{argument}={names!r}: pass names"
        raise TypeError(msg)
    return [names] if isinstance(names, str) else [str(name) for name in names]
