"""Checks of arguments, made before anything is computed."""

from __future__ import annotations

import difflib
import math
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Value = TypeVar("Value")


def check_whole(name: str, value: object, *, least: float = 1) -> None:
    """Raise unless the value is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        msg = f"{name}={value!r}: pass a whole number"
        raise TypeError(msg)
    if value < least:
        msg = f"{name}={value}: at least {'one' if least == 1 else least} is needed"
        raise ValueError(msg)


def check_number(name: str, value: object) -> float:
    """Raise unless the value is a finite number; return it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        msg = f"{name}={value!r}: pass a number"
        raise TypeError(msg)
    if not math.isfinite(value):
        msg = f"{name}={value}: pass a finite number"
        raise ValueError(msg)
    return float(value)


def check_positive(name: str, value: object) -> None:
    """Raise unless the value is a finite number above 0."""
    if check_number(name, value) <= 0:
        msg = f"{name}={value} must be positive"
        raise ValueError(msg)


def check_not_negative(name: str, value: object) -> None:
    """Raise unless the value is a finite number of at least 0."""
    if check_number(name, value) < 0:
        msg = f"{name}={value} must not be negative"
        raise ValueError(msg)


def check_share(name: str, value: object) -> None:
    """Raise unless the value is a number from 0 to 1."""
    if not 0 <= check_number(name, value) <= 1:
        msg = f"{name}={value} must lie between 0 and 1"
        raise ValueError(msg)


def check_probability(name: str, value: object) -> None:
    """Raise unless the value is a number between 0 and 1, neither of them included."""
    if not 0 < check_number(name, value) < 1:
        msg = f"{name}={value} must lie between 0 and 1"
        raise ValueError(msg)


def check_several(name: str, values: Any, *, least: int = 1) -> None:
    """Raise unless the value is a sequence of whole numbers of at least ``least``."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        msg = f"{name}={values!r}: pass a list of whole numbers"
        raise TypeError(msg)
    for i, value in enumerate(values):
        check_whole(f"{name}[{i}]", value, least=least)


def nearest_name(name: object, names: Iterable[object], *, cutoff: float = 0.6) -> str | None:
    """Return the most similar of some names, whatever their case; ``None`` if none is similar."""
    by_lower = {other.lower(): other for other in names if isinstance(other, str)}
    found = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def meant(name: object, names: Iterable[object]) -> str:
    """Return a hint such as " (did you mean 'domain'?)", or nothing if no name is similar."""
    nearest = nearest_name(name, names)
    return f" (did you mean {nearest!r}?)" if nearest else ""


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise unless the value is one of the allowed names."""
    if value not in allowed:
        msg = f"{name}={value!r}; choose one of {list(allowed)}"
        raise ValueError(msg)


def as_names(argument: str, names: Any) -> list[str]:
    """Return one name or several as a list."""
    if not isinstance(names, str) and not hasattr(names, "__iter__"):
        msg = f"{argument}={names!r}: pass names"
        raise TypeError(msg)
    return [names] if isinstance(names, str) else [str(name) for name in names]


def filled(value: Value | None) -> Value:
    """Return a value that is not ``None``."""
    assert value is not None
    return value
