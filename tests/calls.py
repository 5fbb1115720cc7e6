"""Functions called with all options side by side, which are put into the option objects they belong to."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import strecur as st

if TYPE_CHECKING:
    from collections.abc import Callable

HARDWARE = {"accelerator", "devices", "precision", "progress"}
TRAINED_WITH = {"features": st.Features, "training": st.Training}
RUN_WITH = {"inference": st.Inference}
OPTIONS = {
    **dict.fromkeys(("train_domains", "train_expression"), TRAINED_WITH),
    **dict.fromkeys(("trm_domains", "predict_expression", "calibrate", "calibrate_expression"), RUN_WITH),
    "embed_patches": {"patches": st.pp.Patches},
}


def grouped(name: str, /, **flat: Any) -> dict[str, Any]:
    """Put the options of a function into mappings by object."""
    found = {}
    for argument, kind in OPTIONS.get(name, {}).items():
        own = {field.name: flat.pop(field.name) for field in fields(kind) if field.name in flat}
        if own:
            found[argument] = {**(flat.pop(argument, None) or {}), **own}
    return flat | found


def call(function: Callable, /, *arguments: Any, **flat: Any) -> Any:
    """Call a public function; hardware options are set around the call."""
    hardware = {key: flat.pop(key) for key in HARDWARE & flat.keys()}
    with st.settings.override(**hardware):
        return function(*arguments, **grouped(function.__name__, **flat))


def __getattr__(name: str) -> Callable:
    """Return a function of ``strecur.tl`` that takes all options side by side."""
    if name in st.tl.__all__:
        return partial(call, getattr(st.tl, name))
    raise AttributeError(name)
