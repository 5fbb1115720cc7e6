"""Tiny recursive models for spatial omics."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from strecur import _threads as _threads  # makes forked processes safe
from strecur._settings import settings
from strecur.options import Features, Inference, Training

if TYPE_CHECKING:
    from strecur import datasets, get, metrics, pl, pp, presets, tl
    from strecur.models import load_model

__version__ = version("strecur")
__all__ = [
    "Features",
    "Inference",
    "Training",
    "datasets",
    "get",
    "load_model",
    "metrics",
    "pl",
    "pp",
    "presets",
    "settings",
    "tl",
]


def __getattr__(name: str) -> object:
    """Load submodules on first use, so that ``import strecur`` stays fast."""
    if name == "load_model":
        return import_module("strecur.models").load_model
    if name in __all__:
        return import_module(f"strecur.{name}")
    msg = f"module 'strecur' has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return __all__
