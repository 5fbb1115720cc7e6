"""Expression and counts as tasks: target, ridge regression, reliability of genes, scores."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch

from strecur import metrics
from strecur.engine import Augmentation
from strecur.models.base import own_fabric
from strecur.models.blend import EQUAL, blend_values, choose_value_weight
from strecur.models.calibration import fit_errors
from strecur.models.counts import log2_of
from strecur.models.ensemble import predict_ensemble
from strecur.models.expression import ExpressionModel, LinearExpressionModel
from strecur.models.features.spots import average, fit_image_features
from strecur.models.fitting import Lesson, Task, count_epochs, warn_if_behind
from strecur.models.gene_order import order_genes
from strecur.models.genes import choose_genes, count_genes, only_counts
from strecur.models.linear import tune_ridge
from strecur.models.network import build_network
from strecur.models.novelty import fit_on_training
from strecur.models.sections import Split, engine_sections, smallest_sections, split_sections
from strecur.models.targets import ExpressionTarget, counted_spots, fit_target, read_counts
from strecur.nn import CountHead, CountNetwork, ExpressionHead, GenARConfig, PatchConfig
from strecur.options import Inference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_fabric import Fabric

    from strecur._anndata import SectionData
    from strecur.engine import Section
    from strecur.models.fitting import Judges, Recipe, Request, Trained
    from strecur.models.network import Architecture
    from strecur.nn import BackboneConfig, SpotNetwork
    from strecur.options import Features

logger = logging.getLogger("strecur")

MIN_SPOTS = 2

OPTIMIZER_STEPS = 300
"""Optimizer steps of a network at most, however many outer steps a visit has."""

N_NETWORKS, N_NETWORKS_OF_MANY, MANY_SECTIONS = 4, 2, 8
"""Networks whose predictions are averaged; fewer of many sections, which take longer and make networks more alike."""

WEIGHT_DECAY, NOISE, DROP = 0.1, 0.3, 0.3

HIDE = 0.3
"""Share of the spots that are masked for recursions with two states, which infer them from their surroundings."""

SLOW = {"universal": 5e-4}
"""Learning rates by architecture; at 1e-3 the universal transformer, with eight calls, stays near the mean."""

TINY = 1e-12

CONSTANT = 0.01
"""Share of the measured spread below which a prediction counts as constant."""

COUNT_VISITS, COUNT_RATE = 120, 5e-3
"""Visits for models of counts, however many sections there are, each of which generates a fixed number of spots."""


PUBLISHED_PASSES, PUBLISHED_RATE, PUBLISHED_DECAY = 50, 1e-4, 1e-4
"""Passes over all spots, learning rate and weight decay of GenAR in its publication (appendix D)."""


@dataclass(frozen=True)
class ExpressionLesson(Lesson):
    """What is learned from, with the scale of the target and how well the baseline predicts spots held out.

    Attributes
    ----------
    scale
        Genes and scale of the target.
    log_NG, held_out_NG
        Measured values of the taught spots, and predictions of the baseline fitted without their group, as log2.
    taught_N
        Positions of the taught spots.
    reliability
        Table of genes.
    """

    scale: ExpressionTarget
    log_NG: np.ndarray
    held_out_NG: np.ndarray
    taught_N: np.ndarray
    reliability: pd.DataFrame


@dataclass(frozen=True)
class ExpressionTask(Task):
    """Learn expression from the representation ``obsm[use_rep]``."""

    use_rep: str
    genes: int | str | Sequence[str]
    extra_genes: str | Sequence[str]
    library_key: str | None
    kind: ClassVar[str] = "expression"
    default_halting: ClassVar[str | None] = None
    blend: ClassVar[float] = EQUAL
    takes_ensembles: ClassVar[bool] = True
    feature_defaults: ClassVar[Mapping[str, Any]] = {"n_components": 100, "neighbours": (9, 25, 81)}

    def split(self, data: SectionData, request: Request, rng: int) -> Split:
        """Split the sections that have counts; the others are left out."""
        if request.features.kind != "counts":
            msg = f"kind={request.features.kind!r} is for domains; expression is learned from an embedding and counts"
            raise ValueError(msg)
        has_counts = counted_spots(read_counts(data.table, request.features.layer))
        without = [name for name in data.names if not has_counts[data.rows(name)].any()]
        if without:
            logger.warning("sections %s have no counts and are left out", without)
        # in sections of a few hundred spots, those of blocks are missed more than they tell
        split = split_sections(data, np.where(has_counts, 0, -1), request.training.validation, rng, auto_blocks=False)
        n_taught = len(split.taught_N)
        if n_taught < MIN_SPOTS:
            msg = (
                f"sections {split.training} hold {n_taught} spots with counts and embedding; "
                f"at least {MIN_SPOTS} are needed"
            )
            raise ValueError(msg)
        return split

    def n_outputs(self, split: Split) -> int:
        return count_genes(self.genes, self.extra_genes)

    def training_defaults(self, recipe: Recipe, split: Split) -> Mapping[str, Any]:
        hide = HIDE if recipe.architecture.has_two_states else 0.0
        n_networks = N_NETWORKS if len(split.training) < MANY_SECTIONS else N_NETWORKS_OF_MANY
        return {
            "n_networks": 1 if recipe.is_preset else n_networks,
            "max_epochs": count_epochs(OPTIMIZER_STEPS, recipe, split),
            "learning_rate": SLOW.get(recipe.architecture.name),
            "weight_decay": WEIGHT_DECAY,
            "augmentation": Augmentation(noise=NOISE, drop=DROP, hide=hide, max_shift=recipe.backbone.period),
        }

    def fit_scale(self, own: Any, genes: Sequence[str], options: Features) -> ExpressionTarget:
        """Fit the scale of the target on the training spots."""
        return fit_target(own, genes, options)

    def learn(self, data: SectionData, split: Split, options: Features, rng: int) -> ExpressionLesson:
        own = only_counts(data.table, split.in_training_N, options.layer)
        genes = choose_genes(own, self.genes, self.extra_genes, library_key=self.library_key, layer=options.layer)
        scale = self.fit_scale(own, genes, options)
        target_NG = np.where(split.known_N[:, None], scale.measure(data.table), np.nan)
        features = fit_image_features(data, split.training, self.use_rep, options, rng)
        inputs, taught = features.inputs(data), split.taught_N
        log_NG = scale.log2(target_NG[taught])
        groups_N = held_out_groups(data, split.training)[taught]
        columns_NF = inputs.averaged_NF[taught]
        ridge = tune_ridge(columns_NF, log_NG, groups_N, rng)
        baseline, outside_N = ridge.fit(columns_NF, log_NG), ~split.in_block_N[taught]
        judged = baseline if outside_N.all() else ridge.fit(columns_NF[outside_N], log_NG[outside_N])
        reliability = rate_genes(genes, log_NG, ridge.held_out_NG, data.sections.codes[taught])
        sizes, learned_N = features.neighbours, np.where(split.known_N, 0, -1)
        novelty = fit_on_training(inputs.compared_NF, features.width, sizes, data, split.training, learned_N)
        parts = features, inputs, target_NG, baseline, judged, novelty
        return ExpressionLesson(*parts, scale, log_NG, ridge.held_out_NG, taught, reliability)

    def build(
        self, lesson: ExpressionLesson, split: Split, recipe: Recipe, rng: int
    ) -> tuple[SpotNetwork, Architecture]:
        """Create a network whose head starts at the mean of each gene."""
        network = make_network(lesson, recipe.architecture, recipe, rng)
        assert isinstance(network.head, ExpressionHead)
        network.head.set_scale(torch.from_numpy(lesson.log_NG))
        return network, recipe.architecture

    def validate(
        self, lesson: ExpressionLesson, judges: Judges, network: SpotNetwork, depth: int, fabric: Fabric
    ) -> dict[str, float]:
        """Score a network; in blocks of few spots the squared error is the finer measure, and chooses the weights."""
        truths = [lesson.scale.log2(truth) for truth in targets(judges.sections)]
        inference = Inference(depth=depth, symmetric=False)
        found = score_sections(truths, run([network], judges.sections, inference, fabric).log2)
        spread = np.nanvar(np.concatenate(truths), axis=0).mean()
        r2 = 1 - found["mse"] / max(spread, TINY)
        if judges.are_blocks:
            return judges.named({"r2": r2, "pcc": found["pcc"]})
        return judges.named({"pcc": found["pcc"], "r2": r2, "mse": found["mse"]})

    def has_collapsed(self, network: SpotNetwork, sections: Sequence[Section], depth: int, fabric: Fabric) -> bool:
        """Return whether the prediction hardly varies between spots, which the mean of each gene does not."""
        some = smallest_sections(sections)
        values_NG = np.concatenate(run([network], some, Inference(depth=depth, symmetric=False), fabric).values)
        truth_NG = np.concatenate(targets(some))
        known_N = ~np.isnan(truth_NG).any(axis=1)
        spread = values_NG[known_N].std(axis=0).mean()
        return bool(spread < CONSTANT * truth_NG[known_N].std(axis=0).mean())

    def linear_model(self, lesson: ExpressionLesson, split: Split) -> LinearExpressionModel:
        return LinearExpressionModel(
            target=lesson.scale,
            features=lesson.features,
            baseline=lesson.baseline,
            reliability=lesson.reliability,
            sections=split.training,
            errors=fit_errors(lesson.held_out_NG, lesson.log_NG),
            novelty=lesson.novelty,
        )

    def model(self, lesson: ExpressionLesson, split: Split, trained: Trained) -> ExpressionModel:
        """Return the model; with validation sections, rate its genes and calibrate it on them."""
        model = ExpressionModel(
            target=lesson.scale,
            features=lesson.features,
            baseline=lesson.baseline,
            reliability=lesson.reliability,
            sections=split.training,
            architecture=trained.recipe.architecture,
            backbone=trained.recipe.backbone,
            network=trained.network,
            further_networks=trained.networks[1:],
            halting=trained.recipe.halting,
            history=trained.history,
            scores=pd.DataFrame(),
            blend=self.blend,
            novelty=lesson.novelty,
        )
        if trained.judges.sections:
            judge_on(model, lesson, trained)
        return model

    def like(self, model: ExpressionModel) -> ExpressionTask:
        return replace(self, genes=model.genes, extra_genes=())

    def rate(self, model: ExpressionModel, folds: Iterable[tuple[ExpressionModel, SectionData]]) -> None:
        """Rate genes by the answers of models that have not seen a section, and by their networks."""
        truths, answers, networks = [], [], []
        for fold, data in folds:
            inputs = fold.features.inputs(data)
            sections = engine_sections(data, inputs)
            (network_NG,) = run(fold.networks, sections, Inference(depth=fold.architecture.n_steps), own_fabric()).log2
            counted_N = counted_spots(read_counts(data.table, fold.target.layer))
            truths.append(np.where(counted_N[:, None], fold.target.log2(fold.measure(data.table)), np.nan))
            networks.append(network_NG)
            answers.append(blend_values(network_NG, fold.baseline.predict(inputs.averaged_NF), fold.blend))
        model.reliability["pcc"] = mean_pcc(truths, answers)
        model.reliability["pcc_network"] = mean_pcc(truths, networks)


@dataclass(frozen=True)
class CountTask(ExpressionTask):
    """Learn raw counts by GenAR, whose answer is that of the network alone."""

    blend: ClassVar[float] = 1.0
    takes_ensembles: ClassVar[bool] = False

    def resolve_backbone(
        self, architecture: Architecture, backbone: str | BackboneConfig, layout: str
    ) -> BackboneConfig:
        """Return the backbone: with a recursion the one that is given, else one that sees spots one by one."""
        config = as_genar(architecture)
        if config.recursion is not None:
            return super().resolve_backbone(architecture, backbone, layout)
        if backbone != "windowed":
            msg = "without a recursion GenAR sees spots one by one and has no backbone; see GenARConfig(recursion=...)"
            raise ValueError(msg)
        return PatchConfig(config.condition_width, config.dropout)

    def training_defaults(self, recipe: Recipe, split: Split) -> Mapping[str, Any]:
        if recipe.halting is not None:
            msg = f"halting={recipe.halting!r} does not go with architecture='genar'; leave it out"
            raise ValueError(msg)
        config = as_genar(recipe.architecture)
        if config.as_published:
            return published_training(config, split)
        return {
            "max_epochs": -(-COUNT_VISITS // len(split.training)),
            "learning_rate": COUNT_RATE,
            "augmentation": Augmentation(noise=NOISE, drop=DROP, hide=0.0, max_shift=recipe.backbone.period),
        }

    def has_collapsed(self, network: SpotNetwork, sections: Sequence[Section], depth: int, fabric: Fabric) -> bool:
        """Return false: counts may well be the same everywhere."""
        return False

    def fit_scale(self, own: Any, genes: Sequence[str], options: Features) -> ExpressionTarget:
        """Return the scale of raw counts."""
        if options.target != "log2" or options.size_factor_key is not None:
            msg = f"architecture='genar' predicts raw counts; leave out target={options.target!r} and size_factor_key"
            raise ValueError(msg)
        return ExpressionTarget(list(genes), "counts", None, None, options.layer)

    def build(
        self, lesson: ExpressionLesson, split: Split, recipe: Recipe, rng: int
    ) -> tuple[SpotNetwork, Architecture]:
        """Create a network with scales, vocabulary and order of genes from the training spots."""
        counts_NG = lesson.target[lesson.taught_N]
        architecture, order_G = fit_counts(as_genar(recipe.architecture), counts_NG, lesson.scale.genes, rng)
        network = make_network(lesson, architecture, recipe, rng)
        assert isinstance(network.head, CountHead)
        network.head.fit(torch.from_numpy(order_G), torch.from_numpy(counts_NG))
        return network, architecture


def as_genar(architecture: Architecture) -> GenARConfig:
    """Return the architecture of a count task with its type."""
    assert isinstance(architecture, GenARConfig)
    return architecture


def published_training(config: GenARConfig, split: Split) -> Mapping[str, Any]:
    """Return how GenAR is trained in its publication.

    An optimizer step sees spots of one section; a section with more spots than it takes is visited several times in one
    pass over all spots.
    """
    spots_per_section = len(split.taught_N) / len(split.training)
    visits = PUBLISHED_PASSES * max(spots_per_section / config.spots_per_step, 1)
    return {
        "max_epochs": round(visits),
        "learning_rate": PUBLISHED_RATE,
        "weight_decay": PUBLISHED_DECAY,
        "warmup": 0,
        "ema": 0.0,
        "augmentation": Augmentation(noise=0, drop=0, hide=0, symmetric=False),
    }


def make_network(lesson: ExpressionLesson, architecture: Architecture, recipe: Recipe, rng: int) -> SpotNetwork:
    """Create a network for the genes of a lesson."""
    n_columns, n_genes = lesson.features.n_columns, len(lesson.scale.genes)
    return build_network(
        n_columns, architecture, recipe.backbone, ExpressionHead, n_genes, halting=recipe.halting, seed=rng
    )


def fit_counts(
    config: GenARConfig, counts_NG: np.ndarray, genes: Sequence[str], rng: int
) -> tuple[GenARConfig, np.ndarray]:
    """Fit scales, vocabulary and the order of the genes on the training spots, and log what will be clipped."""
    silent = [gene for gene, counted in zip(genes, np.asarray(counts_NG.any(axis=0)), strict=True) if not counted]
    if silent:
        logger.warning("genes %s have no count in training; only zeros can be learned for them", silent)
    config = config.fitted(len(genes), int(counts_NG.max()))
    largest = (config.vocabulary or 0) - 1
    clipped_NG = np.asarray(counts_NG > largest)
    if clipped_NG.any():
        logger.warning(
            "%d counts of the genes %s are clipped to %d in training (vocabulary=%d); the largest is %d",
            clipped_NG.sum(),
            [gene for gene, clipped in zip(genes, np.asarray(clipped_NG.any(axis=0)), strict=True) if clipped],
            largest,
            config.vocabulary,
            counts_NG.max(),
        )
    return config, order_genes(counts_NG, config.gene_order, config.n_groups, rng=rng)


def held_out_groups(data: SectionData, training: Sequence[str]) -> np.ndarray:
    """Return the section of every spot, or its quarter of the lattice if there is only one training section."""
    if len(training) > 1:
        return data.sections.codes
    rows, grid = data.rows(training[0]), data.grid
    lower, right = (axis > np.median(axis[rows]) for axis in (grid.row, grid.col))
    return 2 * lower + right


def rate_genes(
    genes: Sequence[str], target_NG: np.ndarray, held_out_NG: np.ndarray, codes_N: np.ndarray
) -> pd.DataFrame:
    """Return the reliability of every gene by the linear baseline."""
    own = [codes_N == code for code in np.unique(codes_N)]
    pcc_linear = mean_pcc([target_NG[rows] for rows in own], [held_out_NG[rows] for rows in own])
    return pd.DataFrame(
        {
            "pcc": pcc_linear,
            "pcc_network": np.nan,
            "pcc_linear": pcc_linear,
            "mean": target_NG.mean(axis=0),
            "sd": target_NG.std(axis=0),
        },
        index=pd.Index(genes, name="gene"),
    )


def judge_on(model: ExpressionModel, lesson: ExpressionLesson, trained: Trained) -> None:
    """Choose the blend and score all parts on spots that were held out; on whole sections, rate genes and errors too.

    Errors in blocks of training sections are smaller than in a new section.
    """
    inference = Inference(depth=model.architecture.n_steps)
    judges = trained.judges.sections
    found = run(model.networks, judges, inference, trained.fabric)
    network = found.log2
    linear = [lesson.judged_baseline.predict(averaged_NF) for averaged_NF in map(averaged, judges)]
    measured = targets(judges)
    known_N = ~np.isnan(np.concatenate(measured)).any(axis=1)
    truth_NG, network_NG, linear_NG = (np.concatenate(parts)[known_N] for parts in (measured, found.values, linear))
    if not model.predicts_counts:
        weight = choose_value_weight(network_NG, linear_NG, truth_NG)
        model.blend = trained.judges.limited(weight)
    truths = [model.target.log2(truth) for truth in measured]
    answers = [blend_values(a_NG, b_NG, model.blend) for a_NG, b_NG in zip(network, linear, strict=True)]
    model.scores = pd.DataFrame(
        {
            name: score_sections(truths, parts) | metrics.pooled_scores(np.concatenate(truths), np.concatenate(parts))
            for name, parts in (("answer", answers), ("network", network), ("linear", linear))
        }
    )
    warn_if_behind(model.scores, "pcc", trained.judges, model.blend)
    if not trained.judges.are_blocks:
        spread_NG = None if found.spreads is None else model.blend * np.concatenate(found.spreads)[known_N]
        model.errors = fit_errors(blend_values(network_NG, linear_NG, model.blend), truth_NG, spread_NG)
        model.reliability["pcc"] = mean_pcc(truths, answers)
        model.reliability["pcc_network"] = mean_pcc(truths, network)


def mean_pcc(truths: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Average the correlation of each gene over the sections where it is defined."""
    return pd.DataFrame(map(metrics.pcc_per_gene, truths, predicted)).mean().to_numpy()


def score_sections(truths: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> dict[str, float]:
    """Score sections; spots whose truth is NaN do not count."""
    error_NG = np.concatenate(predicted) - np.concatenate(truths)
    pcc = metrics.pcc_top(mean_pcc(truths, predicted))
    rvd = np.mean([metrics.rvd(*pair) for pair in zip(truths, predicted, strict=True)])
    return {"pcc": pcc, "mse": float(np.nanmean(np.square(error_NG))), "rvd": float(rvd)}


def targets(sections: Sequence[Section]) -> list[np.ndarray]:
    """Return the targets of some sections."""
    return [section.target_N.numpy() for section in sections if section.target_N is not None]


def averaged(section: Section) -> np.ndarray:
    """Return the features of a section that the linear baseline reads."""
    return average(section.features_NF.numpy(), {element: view.numpy() for element, view in section.views.items()})


class Found(NamedTuple):
    """Predictions of some sections, spots × genes each.

    Attributes
    ----------
    values
        On the scale of the target.
    log2
        On the log2 scale, on which genes are compared.
    spreads
        Standard deviation over the networks of an ensemble; ``None`` for one network.
    """

    values: list[np.ndarray]
    log2: list[np.ndarray]
    spreads: list[np.ndarray] | None


def run(networks: Sequence[SpotNetwork], judges: Sequence[Section], inference: Inference, fabric: Fabric) -> Found:
    """Predict sections with one network, or with several whose predictions are averaged."""
    answers = predict_ensemble(networks, judges, inference, fabric=fabric)
    values = [answer.combined("mean")[-1] for answer in answers]
    if isinstance(networks[0], CountNetwork):
        return Found(values, [log2_of(answer.restarts[0])[-1] for answer in answers], None)
    return Found(values, values, [answer.spread for answer in answers] if len(networks) > 1 else None)
