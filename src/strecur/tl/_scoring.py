"""Models of both tasks as a cross-validation uses them: what is known, train, predict, score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from strecur import metrics
from strecur._anndata import read_labels, read_section_data, read_sections
from strecur._tissue import find_background
from strecur.models.linear import fit_linear_domains, is_sparse
from strecur.models.targets import counted_spots, read_counts
from strecur.tl._domains import train_domains, trm_domains
from strecur.tl._expression import predict_expression, train_expression

if TYPE_CHECKING:
    from anndata import AnnData

    from strecur.models import DomainModel, ExpressionModel
    from strecur.options import Inference

LINEAR, SINGLE_SPOTS = "linear", "linear, single spots"
KEY = "cross_validate"


class Scoring(ABC):
    """How models of a task are trained, run and scored in a cross-validation."""

    library_key: str | None
    options: ClassVar[set[str]]
    baselines: ClassVar[tuple[str, ...]]
    use_rep: ClassVar[str | None]

    @abstractmethod
    def known(self, table: AnnData, layer: str | None) -> np.ndarray:
        """Return which spots can be learned from and scored."""

    @abstractmethod
    def train(self, train: AnnData, **options: Any) -> Any:
        """Train a model."""

    @abstractmethod
    def predict(self, test: AnnData, model: Any, inference: Inference, rng: int) -> Any:
        """Predict the spots held out."""

    @abstractmethod
    def network_alone(self, test: AnnData, model: Any) -> Any:
        """Return what the network predicts without the linear baseline; ``None`` if that is the answer already."""

    @abstractmethod
    def predict_baselines(self, train: AnnData, test: AnnData, model: Any) -> dict[str, Any]:
        """Predict the spots held out by linear models."""

    @abstractmethod
    def score(self, test: AnnData, model: Any, predicted: Any) -> dict[str, float]:
        """Score a prediction."""


@dataclass(frozen=True)
class DomainScoring(Scoring):
    """Domains, learned from ``obs[label_key]``."""

    library_key: str | None
    label_key: str
    options: ClassVar[set[str]] = set()
    baselines: ClassVar[tuple[str, ...]] = (LINEAR, SINGLE_SPOTS)
    use_rep: ClassVar[str | None] = None

    def known(self, table: AnnData, layer: str | None) -> np.ndarray:
        """Return which spots are annotated."""
        return read_labels(table, self.label_key).notna().to_numpy()

    def train(self, train: AnnData, **options: Any) -> DomainModel:
        return train_domains(train, self.label_key, library_key=self.library_key, **options)

    def predict(self, test: AnnData, model: DomainModel, inference: Inference, rng: int) -> pd.Series:
        trm_domains(test, model, library_key=self.library_key, key_added=KEY, inference=inference, rng=rng)
        return test.obs[KEY]

    def network_alone(self, test: AnnData, model: DomainModel) -> pd.Series:
        return test.obs[f"{KEY}_network"]

    def predict_baselines(self, train: AnnData, test: AnnData, model: DomainModel) -> dict[str, pd.Series]:
        """Logistic regressions: that of the model, and one that sees no neighbours."""
        (columns_NF, target_N), (new_MF, _) = (self.input_of(part, model) for part in (train, test))
        own = slice(model.features.width)  # neighbourhoods stand behind
        fitted = fit_linear_domains(columns_NF[:, own], target_N, len(model.labels), equal_weight=is_sparse(target_N))
        labels = np.array(model.labels, dtype=object)
        single = pd.Series(np.full(test.n_obs, None, dtype=object), index=test.obs_names)
        single.iloc[~find_background(test)] = labels[fitted.predict_proba(new_MF[:, own]).argmax(axis=1)]
        return {LINEAR: test.obs[f"{KEY}_linear"], SINGLE_SPOTS: single}

    def input_of(self, part: AnnData, model: DomainModel) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of all spots, and the domains of those the model learned from, -1 for the others."""
        data = read_section_data(part, self.library_key)
        target_N = pd.Index(model.labels).get_indexer(read_labels(data.table, self.label_key))
        own_N = np.isin(np.array(data.names)[data.sections.codes], model.sections)
        return model.features.inputs(data).columns_NF, np.where(own_N, target_N, -1)

    def score(self, test: AnnData, model: DomainModel, predicted: pd.Series) -> dict[str, float]:
        truth, sections = read_labels(test, self.label_key), read_sections(test, self.library_key)
        scores = [
            metrics.domain_scores(truth.iloc[rows], predicted.iloc[rows])
            for rows in map(sections.rows, sections.names)
            if truth.iloc[rows].notna().any()
        ]
        return over_sections(scores)


@dataclass(frozen=True)
class ExpressionScoring(Scoring):
    """Expression, learned from counts."""

    library_key: str | None
    options: ClassVar[set[str]] = {"genes", "extra_genes"}
    baselines: ClassVar[tuple[str, ...]] = (LINEAR,)
    use_rep: ClassVar[str | None] = "X_patch"

    def known(self, table: AnnData, layer: str | None) -> np.ndarray:
        """Return which spots have counts."""
        return counted_spots(read_counts(table, layer))

    def train(self, train: AnnData, **options: Any) -> Any:
        return train_expression(train, library_key=self.library_key, **options)

    def predict(self, test: AnnData, model: ExpressionModel, inference: Inference, rng: int) -> np.ndarray:
        predict_expression(test, model, library_key=self.library_key, key_added=KEY, inference=inference, rng=rng)
        return test.obsm[f"{KEY}_log2" if model.predicts_counts else KEY]

    def network_alone(self, test: AnnData, model: ExpressionModel) -> np.ndarray | None:
        return None if model.predicts_counts else test.obsm[f"{KEY}_network"]

    def predict_baselines(
        self,
        train: AnnData,
        test: AnnData,
        model: ExpressionModel,
    ) -> dict[str, np.ndarray]:
        """Ridge regression, that of the model."""
        return {LINEAR: test.obsm[f"{KEY}_linear"]}

    def score(self, test: AnnData, model: ExpressionModel, predicted: np.ndarray) -> dict[str, float]:
        truth, sections = model.target.log2(model.measure(test)), read_sections(test, self.library_key)
        truth[~self.known(test, model.target.layer)] = np.nan
        scores = [
            metrics.expression_scores(truth[rows], predicted[rows])
            for rows in map(sections.rows, sections.names)
            if not np.isnan(truth[rows]).all()
        ]
        return over_sections(scores)


def describe_split(scoring: Scoring, train: AnnData, test: AnnData, model: Any) -> dict[str, float]:
    """Return how much was learned from, and how far the group held out is from it."""
    sections = read_sections(train, scoring.library_key)
    n_spots = sum(len(sections.rows(name)) for name in model.sections)
    novelty = test.uns[KEY]["sections"]["novelty"].mean()
    return {"n_train_sections": len(model.sections), "n_train_spots": n_spots, "novelty": novelty}


def over_sections(scores: list[dict[str, float]]) -> dict[str, float]:
    """Average over the sections of a group, as scores of joined sections reward telling sections apart; sum spots."""
    table = pd.DataFrame(scores)
    spots = table.columns[table.columns.str.startswith(("n_spots", "n_missing"))]
    return table.mean().to_dict() | table[spots].sum().to_dict() | {"n_test_sections": len(table)}
