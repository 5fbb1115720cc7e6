"""Domains as a task: labels, logistic regression, scores."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
import torch

from strecur import metrics
from strecur._anndata import read_labels
from strecur.engine import Augmentation, predict
from strecur.models.blend import EQUAL, blend_proba, choose_proba_weight
from strecur.models.calibration import measure_coverage, negative_log_likelihood
from strecur.models.domain import DomainModel, calibrate_domains
from strecur.models.features.spots import fit_domain_features
from strecur.models.fitting import Lesson, Task, count_epochs, warn_if_behind
from strecur.models.linear import LinearDomains, fit_linear_domains, is_sparse
from strecur.models.network import build_network
from strecur.models.novelty import fit_on_training
from strecur.models.sections import Split, engine_sections, smallest_sections, split_sections
from strecur.models.smoothing import choose_smoothing, smooth_answers
from strecur.nn import DomainHead
from strecur.options import Inference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lightning_fabric import Fabric

    from strecur._anndata import SectionData
    from strecur.engine import Section
    from strecur.models.fitting import Judges, Recipe, Request, Trained
    from strecur.models.network import Architecture
    from strecur.nn import SpotNetwork
    from strecur.options import Features

logger = logging.getLogger("strecur")

UNLABELLED = -1

JUDGED_SPOTS = 20_000
"""Spots at most that the baselines are fitted on by which training spots are judged for their novelty."""

CROP = 4096
"""Spots of a section that one visit of the training shows."""

OPTIMIZER_STEPS = 800
"""Optimizer steps at most, however many outer steps a visit has."""

NEARLY = 0.95
"""Share of the entropy of the domains; a frequent domain may be named everywhere by a network that tells rare ones."""

FEW_SPOTS = 1200
"""With fewer annotated spots a network starts from the linear model; with more it learned better without."""


@dataclass(frozen=True)
class DomainSplit(Split):
    """Sections to train and validate on, the domains of the former, and the index of each spot's domain or -1."""

    labels: list[str]
    target_N: np.ndarray


@dataclass(frozen=True)
class DomainTask(Task):
    """Learn the domains of ``obs[label_key]``."""

    label_key: str
    use_rep: str | None
    kind: ClassVar[str] = "domains"
    default_halting: ClassVar[str | None] = "loss_proxy"
    feature_defaults: ClassVar[Mapping[str, Any]] = {"n_components": 50, "neighbours": (19, 91, 301)}

    def split(self, data: SectionData, request: Request, rng: int) -> DomainSplit:
        """Split the sections that have an annotation; domains that no training section has count as unlabelled."""
        labels, target_N = encode_labels(read_labels(data.table, self.label_key), self.label_key)
        split = split_sections(data, target_N, request.training.validation, rng, auto_blocks=True)
        labels, target_N = keep_trained_labels(labels, target_N, split)
        parts = split.training, split.held_out, split.in_training_N, target_N >= 0, split.in_block_N
        return DomainSplit(*parts, labels, target_N)

    def n_outputs(self, split: DomainSplit) -> int:
        return len(split.labels)

    def training_defaults(self, recipe: Recipe, split: Split) -> Mapping[str, Any]:
        crop = 0 if recipe.training.tile else CROP
        return {
            "max_epochs": count_epochs(OPTIMIZER_STEPS, recipe, split),
            "augmentation": Augmentation(max_shift=recipe.backbone.period, max_spots=crop),
        }

    def learn(self, data: SectionData, split: DomainSplit, options: Features, rng: int) -> Lesson:
        features = fit_domain_features(data, split.training, self.use_rep, options, rng)
        inputs = features.inputs(data)

        sparse = is_sparse(split.target_N[split.in_training_N])

        def fit(own_N: np.ndarray) -> LinearDomains:
            target_N = split.target_N[own_N]
            return fit_linear_domains(inputs.columns_NF[own_N], target_N, len(split.labels), equal_weight=sparse)

        baseline, outside_N = fit(split.in_training_N), split.in_training_N & ~split.in_block_N
        judged = fit(outside_N) if split.in_block_N.any() else baseline

        def fit_logits(taught: np.ndarray, judged: np.ndarray) -> np.ndarray:
            chosen = np.random.default_rng(rng).permutation(taught)[:JUDGED_SPOTS]
            present, own_N = np.unique(split.target_N[chosen], return_inverse=True)
            linear = fit_linear_domains(inputs.columns_NF[chosen], own_N, len(present), equal_weight=sparse)
            return linear.logits(inputs.columns_NF[judged])

        sizes = features.neighbours
        novelty = fit_on_training(
            inputs.compared_NF, features.width, sizes, data, split.training, split.target_N, fit_logits
        )
        features = features.with_domains(data, split.training, split.target_N)
        return Lesson(features, inputs, split.target_N, baseline, judged, novelty)

    def build(self, lesson: Lesson, split: DomainSplit, recipe: Recipe, rng: int) -> tuple[SpotNetwork, Architecture]:
        """Create a network, which starts from the linear model where annotated spots are few."""
        few = not recipe.is_preset and len(split.taught_N) < FEW_SPOTS
        network = build_network(
            lesson.features.n_columns,
            recipe.architecture,
            recipe.backbone,
            DomainHead,
            len(split.labels),
            halting=recipe.halting,
            linear_start=few,
            seed=rng,
        )
        if few:
            network.start_from(torch.from_numpy(lesson.baseline.weight_FC), torch.from_numpy(lesson.baseline.bias_C))
        return network, recipe.architecture

    def validate(
        self, lesson: Lesson, judges: Judges, network: SpotNetwork, depth: int, fabric: Fabric
    ) -> dict[str, float]:
        """Score a network; in blocks, the weights are chosen that make the best blend with the linear baseline.

        The likelihood of the blend is a finer measure than the labels of few spots.
        """
        inference = Inference(depth=depth, symmetric=False)
        answers = predict(network, judges.sections, inference, fabric=fabric, progress=False)
        network_NC = np.concatenate([answer.restarts[0].output_DN[-1] for answer in answers])
        truth_N = targets(judges.sections)
        ari = score_domains(truth_N, network_NC.argmax(axis=1))["ari"]
        if not judges.are_blocks:
            return judges.named({"ari": ari})
        features_NF = np.concatenate([section.features_NF.numpy() for section in judges.sections])
        blend_NC = blend_proba(network_NC[None], lesson.judged_baseline.predict_proba(features_NF), EQUAL)[0]
        known_N = truth_N >= 0
        likelihood = -negative_log_likelihood(blend_NC[known_N], truth_N[known_N])
        return judges.named({"log_likelihood": likelihood, "ari": ari})

    def has_collapsed(self, network: SpotNetwork, sections: Sequence[Section], depth: int, fabric: Fabric) -> bool:
        """Return whether the loss is that of the class frequencies, or nearly so and one domain is named everywhere."""
        some = smallest_sections(sections)
        inference = Inference(depth=depth, symmetric=False)
        answers = predict(network, some, inference, keep_steps=False, fabric=fabric, progress=False)
        truth_N, proba_NC = targets(some), np.concatenate([answer.best.output_DN[-1] for answer in answers])
        known_N = truth_N >= 0
        if len(np.unique(truth_N[known_N])) < 2:  # nothing to tell apart
            return False
        share_C = np.bincount(truth_N[known_N], minlength=proba_NC.shape[1]) / known_N.sum()
        entropy = -(share_C[share_C > 0] * np.log(share_C[share_C > 0])).sum()
        loss = negative_log_likelihood(proba_NC[known_N], truth_N[known_N])
        names_one = len(np.unique(proba_NC.argmax(axis=1))) == 1
        return bool(loss >= entropy * (NEARLY if names_one else 1))

    def linear_model(self, lesson: Lesson, split: DomainSplit) -> Any:
        msg = "architecture='linear' is for expression; the linear model of domains comes with every network"
        raise ValueError(msg)

    def model(self, lesson: Lesson, split: DomainSplit, trained: Trained) -> DomainModel:
        """Return the model; with validation sections, score and calibrate it on them."""
        model = DomainModel(
            labels=split.labels,
            features=lesson.features,
            architecture=trained.recipe.architecture,
            backbone=trained.recipe.backbone,
            network=trained.network,
            baseline=lesson.baseline,
            novelty=lesson.novelty,
            halting=trained.recipe.halting,
            history=trained.history,
            scores=pd.DataFrame(),
            sections=split.training,
            smoothing=trained.recipe.training.smoothing or choose_smoothing(trained.training, len(split.labels)),
        )
        if trained.judges.sections:
            judge_on(model, lesson, trained)
        return model

    def rate(self, model: DomainModel, folds: Iterable[tuple[DomainModel, SectionData]]) -> None:
        """Calibrate a model on the answers of models that have not seen a section."""
        proba, targets = {}, {}
        for fold, data in folds:
            (name,) = data.names
            labels = read_labels(data.table, self.label_key)
            # domains that the others do not have are not known to the fold
            targets[name] = pd.Index(model.labels).get_indexer(labels.where(labels.isin(fold.labels)))
            sections = engine_sections(data, fold.features.inputs(data))
            inference = Inference(depth=fold.architecture.n_steps, blend=fold.blend, selection="converged")
            (proba_DNC,) = fold.answers(sections, inference, fold.predict(sections, inference, keep_steps=False))
            proba[name] = np.zeros((data.table.n_obs, len(model.labels)), dtype=np.float32)
            proba[name][:, [model.labels.index(label) for label in fold.labels]] = proba_DNC[-1]
        calibrate_domains(model, np.concatenate([*proba.values()]), np.concatenate([*targets.values()]))
        model.coverage = measure_coverage(proba, targets)


def judge_on(model: DomainModel, lesson: Lesson, trained: Trained) -> None:
    """Choose the blend, calibrate it and score it beside its parts, on spots that were held out.

    Label sets are promised for new sections, of which blocks of training sections tell nothing.
    """
    judges = trained.judges.sections
    inference = Inference(depth=model.architecture.n_steps)
    answers = predict(model.network, judges, inference, fabric=trained.fabric, progress=False)
    answers = smooth_answers(answers, judges, model.smoothing)
    network_NC = np.concatenate([answer.restarts[0].output_DN[-1] for answer in answers])
    linear_NC = np.concatenate(replace(model, baseline=lesson.judged_baseline).predict_linear(judges))
    truth_N = targets(judges)
    known_N = truth_N >= 0
    if known_N.any():
        weight = choose_proba_weight(network_NC[known_N], linear_NC[known_N], truth_N[known_N])
        model.blend = trained.judges.limited(weight)
    answer_NC = blend_proba(network_NC[None], linear_NC, model.blend)[0]
    if known_N.any():
        calibrate_domains(model, answer_NC, truth_N)
    if trained.judges.are_blocks:
        model.conformal_scores = None
    parts = {"answer": answer_NC, "network": network_NC, "linear": linear_NC}
    model.scores = pd.DataFrame({k: score_domains(truth_N, p.argmax(axis=1)) for k, p in parts.items()})
    warn_if_behind(model.scores, "ari", trained.judges, model.blend)


def encode_labels(values: pd.Series, label_key: str) -> tuple[list[str], np.ndarray]:
    """Return the domains in their order and the index of each spot's domain, -1 where unlabelled."""
    present = set(values.dropna())
    if len(present) < 2:
        msg = f"adata.obs[{label_key!r}] names {len(present)} domain(s) {sorted(present)}; at least two are needed"
        raise ValueError(msg)
    labels = sorted(present)
    return labels, pd.Index(labels).get_indexer(values).astype(np.int64)


def keep_trained_labels(labels: list[str], target_N: np.ndarray, split: Split) -> tuple[list[str], np.ndarray]:
    """Drop domains that no training section has; their spots count as unlabelled."""
    own_N = target_N[split.in_training_N]
    present = np.unique(own_N[own_N >= 0])
    dropped = [label for i, label in enumerate(labels) if i not in present]
    if dropped:
        logger.warning("domains %s are in no training section and cannot be learned", dropped)
    if len(present) < 2:
        msg = f"the training sections {split.training} hold {len(present)} domain(s); at least two are needed"
        raise ValueError(msg)
    renumber = np.full(len(labels) + 1, UNLABELLED)
    renumber[present] = np.arange(len(present))
    return [labels[i] for i in present], renumber[target_N]


def targets(sections: Sequence[Section]) -> np.ndarray:
    """Join the targets of some sections."""
    return np.concatenate([section.target_N.numpy() for section in sections if section.target_N is not None])


def score_domains(truth_N: np.ndarray, predicted_N: np.ndarray) -> dict[str, float]:
    """Score integer labels, where -1 is unlabelled."""
    labelled = truth_N >= 0
    return metrics.domain_scores(truth_N[labelled], predicted_N[labelled])
