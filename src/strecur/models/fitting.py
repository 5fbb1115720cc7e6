"""Train a model: the one way from the sections of a table to a fitted model, for every task."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import pandas as pd

from strecur._arguments import filled
from strecur._settings import settings
from strecur.engine import Checkpoint, fit
from strecur.engine.checkpoint import checksum_sections
from strecur.engine.devices import make_fabric
from strecur.models.blend import EQUAL
from strecur.models.network import resolve_architecture, resolve_backbone, to_json
from strecur.models.plan import in_tiles, plan_training
from strecur.models.sections import engine_sections, has_target, hide_targets, surroundings
from strecur.nn.halting import RECIPES
from strecur.options import Features, Training, fill
from strecur.presets import Preset, hist

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from lightning_fabric import Fabric

    from strecur._anndata import SectionData
    from strecur.engine import Section
    from strecur.engine.state import History
    from strecur.models.features.spots import Inputs, SpotFeatures
    from strecur.models.network import Architecture
    from strecur.models.novelty import SpotNovelty
    from strecur.models.plan import TrainingPlan
    from strecur.models.sections import Split
    from strecur.nn import BackboneConfig, HistConfig, SpotNetwork

logger = logging.getLogger("strecur")

LINEAR = "linear"

MIN_LEFT_OUT = 2
"""Training sections that are needed to leave one of them out."""

SHORT = 0.5
"""Share of the usual epochs below which a training counts as short."""

OF_TRAINING = {"epoch", "seconds", "train_loss", "learning_rate"}
"""Entries of the record of an epoch that are no scores of its validation."""

AVERAGES = 10
"""Lengths of a moving average of weights, 1 / (1 - decay) optimizer steps, that a training has to hold."""

MIN_EPOCHS = 10
"""Passes over the sections at least, however many optimizer steps that takes."""

TRAINING_DEFAULTS = {
    "learning_rate": 1e-3,
    "warmup": 30,
    "schedule": "linear",
    "weight_decay": 0.5,
    "ema": 0.98,
    "n_networks": 1,
}


@dataclass(frozen=True)
class Request:
    """What a caller asks for: names or configurations, and options."""

    architecture: str | Architecture | Preset
    backbone: str | BackboneConfig
    halting: str | None
    features: Features
    training: Training


@dataclass(frozen=True)
class Recipe:
    """A request with names and defaults resolved.

    Attributes
    ----------
    architecture, backbone
        Configuration of the network.
    halting
        Name of the halting recipe, or ``None``.
    training
        Options of the training, all filled in.
    is_preset
        Whether a published system was asked for, which is trained as published.
    usual_epochs
        Epochs of a training whose length is not given.
    """

    architecture: Architecture
    backbone: BackboneConfig
    halting: str | None
    training: Training
    is_preset: bool
    usual_epochs: int = 0


@dataclass(frozen=True)
class Lesson:
    """What is learned from, and what the linear baseline learned of it.

    Attributes
    ----------
    features, inputs
        Fitted features, and those of all spots.
    target
        Target of every spot.
    baseline
        Linear model on the same features.
    judged_baseline
        The same without what the network is validated on, beside which the network is judged.
    novelty
        How strange spots of new sections are; ``None`` with too few spots.
    """

    features: SpotFeatures
    inputs: Inputs
    target: np.ndarray
    baseline: Any
    judged_baseline: Any
    novelty: SpotNovelty | None


@dataclass(frozen=True)
class Judges:
    """What a network is validated on: whole sections, or blocks of the training sections.

    Attributes
    ----------
    sections
        Sections in which the spots to be judged have a target; empty: no validation.
    are_blocks
        Whether these spots are blocks of training sections.
    """

    sections: list[Section]
    are_blocks: bool

    def limited(self, weight: float) -> float:
        """Limit the weight of the network in the blend that was chosen on these spots.

        Blocks are more alike to what the network saw than a new section is, and can only lower it below an equal one.
        """
        return min(weight, EQUAL) if self.are_blocks else weight

    def named(self, scores: Mapping[str, float]) -> dict[str, float]:
        """Name scores, for the history of a training, after where they were measured."""
        place = "blocks" if self.are_blocks else "validation"
        return {f"{place}_{name}": score for name, score in scores.items()}


@dataclass(frozen=True)
class Trained:
    """Trained networks, how they were trained, and the sections they were trained and validated on."""

    networks: list[SpotNetwork]
    recipe: Recipe
    history: pd.DataFrame
    training: list[Section]
    judges: Judges
    fabric: Fabric

    @property
    def network(self) -> SpotNetwork:
        """The first network."""
        return self.networks[0]


class Task(ABC):
    """What is learned. A task owns target, head, linear baseline, defaults and scores."""

    kind: ClassVar[str]
    default_halting: ClassVar[str | None]
    takes_ensembles: ClassVar[bool] = False
    feature_defaults: ClassVar[Mapping[str, Any]]

    @abstractmethod
    def split(self, data: SectionData, request: Request, rng: int) -> Any:
        """Choose the sections to train on and to validate on."""

    @abstractmethod
    def n_outputs(self, split: Any) -> int:
        """Return the number of domains or genes."""

    def resolve_backbone(
        self, architecture: Architecture, backbone: str | BackboneConfig, layout: str
    ) -> BackboneConfig:
        """Return the backbone for an architecture and a lattice."""
        return resolve_backbone(backbone, layout)

    @abstractmethod
    def training_defaults(self, recipe: Recipe, split: Split) -> Mapping[str, Any]:
        """Return defaults of the training, in place of those of :data:`TRAINING_DEFAULTS`."""

    @abstractmethod
    def learn(self, data: SectionData, split: Any, options: Features, rng: int) -> Any:
        """Fit target, features and linear baseline on the training sections."""

    @abstractmethod
    def build(self, lesson: Any, split: Any, recipe: Recipe, rng: int) -> tuple[SpotNetwork, Architecture]:
        """Create a network and prepare it for the target."""

    @abstractmethod
    def validate(
        self, lesson: Any, judges: Judges, network: SpotNetwork, depth: int, fabric: Fabric
    ) -> dict[str, float]:
        """Score a network on what it does not learn from; the first score chooses the weights."""

    @abstractmethod
    def has_collapsed(self, network: Any, sections: Sequence[Section], depth: int, fabric: Fabric) -> bool:
        """Return whether the answer on the training sections is no better than a constant one."""

    @abstractmethod
    def linear_model(self, lesson: Any, split: Any) -> Any:
        """Return the linear baseline as a model of its own."""

    @abstractmethod
    def model(self, lesson: Any, split: Any, trained: Trained) -> Any:
        """Return the model, scored and calibrated on the validation sections if there are any."""

    def like(self, model: Any) -> Task:
        """Return the task of learning the same as a model from other sections."""
        return self

    @abstractmethod
    def rate(self, model: Any, folds: Iterable[tuple[Any, SectionData]]) -> None:
        """Rate a model by others that were fitted without one of its training sections each, on these sections."""


def fit_model(task: Task, data: SectionData, request: Request, *, rng: int) -> Any:
    """Fit features, linear baseline and network on the training sections; return the model of the task."""
    split = task.split(data, request, rng)
    options = fill(request.features, task.feature_defaults)
    if request.architecture == LINEAR:
        return task.linear_model(task.learn(data, split, options, rng), split)

    recipe = resolve(task, request, data.grid.layout, split)
    training = recipe.training
    plan = plan_training(
        recipe.architecture,
        recipe.backbone,
        data.sizes([*split.training, *split.held_out]),
        data.grid.layout,
        n_features=filled(options.n_components) * (1 + len(filled(options.neighbours))),
        n_outputs=task.n_outputs(split),
        n_epochs=filled(training.max_epochs) * filled(training.n_networks),
        tile=training.tile,
        max_spots=getattr(training.augmentation, "max_spots", 0),
    )
    if filled(training.n_networks) > 1 and not task.takes_ensembles:
        msg = f"n_networks={training.n_networks}: ensembles are for expression; leave n_networks out"
        raise ValueError(msg)
    if training.leave_one_out and split.held_out:
        msg = (
            f"leave_one_out measures the answer on the training sections, and {split.held_out} are held out for "
            "validation; leave it out, or pass validation=None or 'blocks'"
        )
        raise ValueError(msg)
    if training.leave_one_out and len(split.training) < MIN_LEFT_OUT:
        msg = f"leave_one_out needs at least {MIN_LEFT_OUT} training sections; there is {split.training}"
        raise ValueError(msg)
    lesson = task.learn(data, split, options, rng)
    trained = train_networks(task, data, split, lesson, recipe, plan, rng)
    model = task.model(lesson, split, trained)
    if training.leave_one_out:
        task.rate(model, leave_one_out(task.like(model), data, request, split, rng))
    return model


def train_networks(
    task: Task, data: SectionData, split: Split, lesson: Lesson, recipe: Recipe, plan: TrainingPlan, rng: int
) -> Trained:
    """Train one network, or several of an ensemble one after the other; an interruption keeps those that are done."""
    fabric = make_fabric(settings.accelerator, settings.devices, settings.precision)
    sections, judges = part_sections(data, split, lesson, visit=getattr(recipe.training.augmentation, "max_spots", 0))
    networks: list[SpotNetwork] = []
    histories: list[History] = []
    n_networks = filled(recipe.training.n_networks)
    for i in range(n_networks):
        seed = member_seed(rng, i)
        network, architecture = task.build(lesson, split, recipe, seed)
        recipe = replace(recipe, architecture=architecture)
        network.recursion.recompute = plan.recompute

        def validate(candidate: Any, depth: int = architecture.n_steps) -> dict[str, float]:
            return task.validate(lesson, judges, candidate, depth, fabric)

        def has_collapsed(candidate: Any, depth: int = architecture.n_steps) -> bool:
            return task.has_collapsed(candidate, sections, depth, fabric)

        history = fit(
            network,
            in_tiles(sections, architecture, recipe.backbone, plan.tile),
            shared_time(recipe.training),
            n_steps=architecture.n_steps,
            augment=filled(recipe.training.augmentation),
            fabric=fabric,
            seed=seed,
            has_collapsed=has_collapsed,
            validate=validate if judges.sections else None,
            progress=settings.progress,
            title="training" if n_networks == 1 else f"training network {i + 1} of {n_networks}",
            checkpoint=open_checkpoint(recipe, judges, i),
        )
        if history.interrupted and networks:
            logger.warning("the model keeps the %d networks trained before the interruption", len(networks))
            break
        networks.append(network.cpu())
        histories.append(history)
        if history.interrupted:
            break
    warn_if_short(min(histories, key=len), recipe)
    return Trained(networks, recipe, join_histories(histories), sections, judges, fabric)


def member_seed(rng: int, i: int) -> int:
    """Return the seed of a network of an ensemble; the first is the network that would be trained alone."""
    return rng if i == 0 else int(np.random.SeedSequence([rng, i]).generate_state(1)[0])


def shared_time(training: Training) -> Training:
    """Give each network its share of the time limit."""
    if training.max_minutes is None:
        return training
    return replace(training, max_minutes=training.max_minutes / filled(training.n_networks))


def join_histories(histories: Sequence[History]) -> pd.DataFrame:
    """Return the records of all epochs, those of several networks with the number of their network."""
    if len(histories) == 1:
        return pd.DataFrame(histories[0])
    return pd.concat(
        [pd.DataFrame(history).assign(network=i) for i, history in enumerate(histories)], ignore_index=True
    )


def leave_one_out(
    task: Task, data: SectionData, request: Request, split: Split, rng: int
) -> Iterator[tuple[Any, SectionData]]:
    """Train a model without each of the training sections; yield it with the section that it has not seen."""
    request = replace(request, training=replace(request.training, leave_one_out=False, checkpoint=None))
    for left_out in split.training:
        logger.info("training without section %r, to measure the answer there", left_out)
        others = [name for name in split.training if name != left_out]
        yield fit_model(task, data.only(others), request, rng=rng), data.only([left_out])


def warn_if_short(history: Sequence[Mapping[str, float]], recipe: Recipe) -> None:
    """Warn of a training much shorter than usual that was not stopped by its validation."""
    n_epochs, patience = len(history), recipe.training.patience
    scores = [[value for name, value in record.items() if name not in OF_TRAINING] for record in history]
    validations = [first for first, *_ in filter(None, scores)]
    if validations and len(validations) - 1 - validations.index(max(validations)) >= patience:
        return
    if n_epochs < SHORT * recipe.usual_epochs:
        logger.warning(
            "the network was trained for %d epochs, and %d are usual here: it may not be trained out; leave out "
            "max_epochs and max_minutes, or raise them",
            *(n_epochs, recipe.usual_epochs),
        )


def warn_if_behind(scores: pd.DataFrame, measure: str, judges: Judges, blend: float) -> None:
    """Warn of a network that predicts held-out spots worse than the linear baseline."""
    network, linear = scores.loc[measure, "network"], scores.loc[measure, "linear"]
    if network < linear:
        logger.warning(
            "on %s, the network (%s %.3f) is behind the linear baseline (%.3f); its weight in the answer is %.2f",
            *("held-out blocks" if judges.are_blocks else "the validation sections", measure, network, linear, blend),
        )


def part_sections(data: SectionData, split: Split, lesson: Lesson, *, visit: int) -> tuple[list[Section], Judges]:
    """Return the sections to train on, and those to validate on: held-out ones, or blocks of the former.

    The network does not learn the targets of blocks. Of sections larger than a ``visit`` of the training (0: all of a
    section), as many spots around one block are judged.
    """
    inputs, target, in_block_N = lesson.inputs, lesson.target, split.in_block_N
    if not in_block_N.any():
        held_out = engine_sections(data, inputs, split.held_out, target)
        return engine_sections(data, inputs, split.training, target), Judges(held_out, are_blocks=False)
    training, blocks = (
        engine_sections(data, inputs, split.training, hide_targets(target, hidden_N))
        for hidden_N in (in_block_N, ~in_block_N)
    )
    judged = [surroundings(section, visit or len(section.features_NF)) for section in blocks if has_target(section)]
    return training, Judges(judged, are_blocks=True)


def resolve(task: Task, request: Request, layout: str, split: Split) -> Recipe:
    """Turn names into configurations, and fill in the options of the training."""
    preset = find_preset(request)
    if preset is None:
        architecture = resolve_architecture(request.architecture)
        backbone = task.resolve_backbone(architecture, request.backbone, layout)
        training = request.training
        halting = task.default_halting if request.halting == "auto" else request.halting
    else:
        architecture, backbone = preset.architecture, preset.backbone
        training = fill(request.training, preset.training)
        halting = preset.halting if request.halting == "auto" else request.halting
    check_halting(halting, task.kind, backbone)
    if training.early_exit and halting is None:
        msg = "early_exit needs a halting recipe; pass halting=..., or leave early_exit out"
        raise ValueError(msg)
    if training.n_steps is not None:
        architecture = architecture.with_steps(training.n_steps)
    recipe = Recipe(architecture, backbone, halting, training, preset is not None)
    defaults = task.training_defaults(recipe, split)
    published = None if preset is None else preset.training.get("max_epochs")
    training = fill(fill(training, defaults), TRAINING_DEFAULTS)
    if preset is not None and request.training.ema is None:
        visits = filled(training.max_epochs) * len(split.training) / training.batch_sections
        training = shorten_average(training, visits * architecture.n_steps)
    return replace(recipe, training=training, usual_epochs=published or defaults["max_epochs"])


def shorten_average(training: Training, optimizer_steps: float) -> Training:
    """Limit the moving average to a tenth of the training; a longer one still holds the untrained weights at its end.

    Published systems are trained for many more optimizer steps than are usual here.
    """
    longest = max(1 - AVERAGES / optimizer_steps, 0.0)
    return replace(training, ema=min(filled(training.ema), longest))


def count_epochs(optimizer_steps: int, recipe: Recipe, split: Split) -> int:
    """Return the number of passes over the training sections that take this many optimizer steps."""
    return max(optimizer_steps // (recipe.architecture.n_steps * len(split.training)), MIN_EPOCHS)


def find_preset(request: Request) -> Preset | None:
    """Return the preset that is asked for, if any; ``"hist"`` takes a backbone of its own kind."""
    if isinstance(request.architecture, Preset):
        return request.architecture
    if not isinstance(request.architecture, str) or request.architecture != "hist":
        return None
    return hist(None if request.backbone in ("windowed", "hist") else cast("HistConfig", request.backbone))


def check_halting(halting: object, kind: str, backbone: BackboneConfig) -> None:
    """Raise unless the recipe fits the task and the backbone has the global token that the halt head reads."""
    fitting = [name for name, recipe in RECIPES.items() if recipe.task in (kind, "any")]
    if halting is not None and (not isinstance(halting, str) or halting not in fitting):
        msg = f"halting={halting!r} does not fit {kind}; choose one of {fitting}, or None"
        raise ValueError(msg)
    if halting is not None and backbone.n_context == 0:
        msg = f"halting={halting!r} is read from a global token; choose halting=None, or n_global=1 in {backbone}"
        raise ValueError(msg)


def open_checkpoint(recipe: Recipe, judges: Judges, member: int) -> Checkpoint | None:
    """Return the checkpoint of a network, with what tells it from others; ``None`` without a folder."""
    if recipe.training.checkpoint is None:
        return None
    folder = Path(recipe.training.checkpoint)
    about = {
        "architecture": to_json(recipe.architecture),
        "backbone": to_json(recipe.backbone),
        "halting": recipe.halting,
        "precision": settings.precision,
        "validation": checksum_sections(judges.sections),
    }
    return Checkpoint(folder / f"network_{member}" if member else folder, about)
