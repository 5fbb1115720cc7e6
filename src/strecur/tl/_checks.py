"""Arguments that both tasks share, checked before anything is computed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from strecur._arguments import check_number, check_positive, check_several, check_whole
from strecur.models import DomainModel, ExpressionModel
from strecur.nn import TRMConfig
from strecur.nn.halting import RECIPES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur.models._network import Architecture, Backbone


def require_model(model: object, *kinds: type) -> None:
    """Refuse what is no model of these kinds."""
    if not isinstance(model, kinds):
        makers = {DomainModel: "strecur.tl.train_domains", ExpressionModel: "strecur.tl.train_expression"}
        wanted = " or ".join(makers[kind] for kind in kinds)
        hint = "; load it with strecur.load_model" if isinstance(model, str) else ""
        msg = f"expected a model from {wanted}, got {type(model).__name__}{hint}"
        raise TypeError(msg)


def check_training(
    *,
    neighbours: Sequence[int],
    max_epochs: int | None,
    max_minutes: float | None,
    tile: int | None,
    augmentation: object,
    rng: int,
    **numbers: object,
) -> None:
    """Refuse numbers that no training can do with; those in ``numbers`` are at least one."""
    for name, value in numbers.items():
        check_whole(name, value)
    for name, value in (("max_epochs", max_epochs), ("tile", tile)):
        if value is not None:
            check_whole(name, value)
    if max_minutes is not None:
        check_positive("max_minutes", max_minutes)
    check_several("neighbours", neighbours)
    if augmentation is not None and not callable(augmentation):
        msg = f"augmentation={augmentation!r}: pass a strecur.engine.Augmentation, or leave it out"
        raise TypeError(msg)
    check_whole("rng", rng, least=0)


def check_halting(halting: str | None, task: str, backbone: Backbone | None) -> None:
    """Name the recipes that fit the task, and refuse a backbone without the token that tells when to stop."""
    fitting = [name for name, recipe in RECIPES.items() if recipe.task in (task, "any")]
    if halting is not None and (not isinstance(halting, str) or halting not in fitting):
        msg = f"halting={halting!r} does not fit {task}; choose one of {fitting}, or None"
        raise ValueError(msg)
    if halting is not None and getattr(backbone, "n_global", 1) == 0:
        msg = f"halting={halting!r} is read from a global token; choose halting=None, or n_global=1 in {backbone}"
        raise ValueError(msg)


def check_inference(
    architecture: Architecture,
    halting: str | None,
    *,
    depth: int | None,
    breadth: int,
    noise: float,
    halt_threshold: float | None,
    stop_early: bool,
    rng: int,
) -> None:
    """Refuse a depth or breadth below one, a threshold that is no probability, and what the model cannot do."""
    for name, value in (("depth", 1 if depth is None else depth), ("breadth", breadth)):
        check_whole(name, value)
    check_whole("rng", rng, least=0)
    check_number("noise", noise)
    if noise < 0:
        msg = f"noise={noise} must not be negative"
        raise ValueError(msg)
    if halt_threshold is not None:
        check_share("halt_threshold", halt_threshold)
    if stop_early and halting is None:
        msg = "the model was trained without halting and cannot stop early; train it with halting=... or give a depth"
        raise ValueError(msg)
    if (breadth > 1 or noise) and not isinstance(architecture, TRMConfig):
        msg = "breadth > 1 and noise are for recursions with two states; train with architecture='trm'"
        raise ValueError(msg)


def check_share(name: str, value: float) -> None:
    """Refuse what is no probability strictly between 0 and 1."""
    check_number(name, value)
    if not 0 < value < 1:
        msg = f"{name}={value} must lie between 0 and 1"
        raise ValueError(msg)


def check_samples(model: ExpressionModel, n_samples: int, temperature: float) -> None:
    """Refuse a number of samples that shows no spread, and samples of a model that predicts no counts."""
    check_whole("n_samples", n_samples, least=-math.inf)
    check_positive("temperature", temperature)
    if n_samples < 0 or n_samples == 1:
        msg = f"n_samples={n_samples} must be 0 or at least 2"
        raise ValueError(msg)
    if n_samples and model.target.scale != "counts":
        msg = "n_samples is for models of counts; train with architecture='genar'"
        raise ValueError(msg)


def check_calibration(model: DomainModel, *, coverage: float | None, abstain: float) -> None:
    """Refuse shares that are none, and label sets of a model that was not calibrated."""
    if coverage is not None:
        check_share("coverage", coverage)
    if coverage is not None and model.conformal_scores is None:
        msg = "coverage needs a calibrated model; run strecur.tl.calibrate(adata, model, label_key) first"
        raise ValueError(msg)
    check_number("abstain", abstain)
    if not 0 <= abstain < 1:
        msg = f"abstain={abstain} must be at least 0 and below 1"
        raise ValueError(msg)


def check_selection(selection: str, allowed: Sequence[str]) -> None:
    """Refuse an unknown way to choose among restarts."""
    if selection not in allowed:
        msg = f"selection={selection!r}; choose one of {list(allowed)}"
        raise ValueError(msg)
