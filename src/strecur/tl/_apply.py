"""What the tools that only look at a model share: its input, and how its output compares with what is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strecur import metrics
from strecur._anndata import open_table, read_grid, read_labels, read_sections
from strecur._settings import settings
from strecur.models import DomainModel, ExpressionModel
from strecur.nn import TRMConfig
from strecur.tl._checks import require_model
from strecur.tl._embedded import read_embedded
from strecur.tl._plan import check_prediction, section_sizes
from strecur.tl._sections import make_sections

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import Sections
    from strecur.engine import Section

    Score = Callable[[str, np.ndarray], dict[str, float]]


@dataclass(frozen=True)
class ModelInput:
    """The sections of an object as a model wants them, in the order of their names, and the spots they are made of."""

    table: AnnData
    sections: Sections
    parts: list[Section]


def read_input(
    adata: AnnData | SpatialData,
    model: DomainModel | ExpressionModel,
    *,
    library_key: str | None,
    table_key: str | None,
    accelerator: str | None,
    precision: str | None,
) -> ModelInput:
    """Read the sections of an object for a model of either kind; nothing is changed."""
    table = open_table(adata, table_key=table_key, read_only=True)
    if isinstance(model, ExpressionModel):
        embedded = read_embedded(table, model.features.source.use_rep, library_key)
        table, sections, grid = embedded.table, embedded.sections, embedded.grid
    else:
        sections = read_sections(table, library_key)
        grid = read_grid(table, sections)
    check_prediction(
        model,
        section_sizes(sections, sections.names),
        grid.layout,
        depth=model.architecture.n_steps,
        accelerator=accelerator,
        precision=precision,
    )
    columns = model.features.transform(table, sections, grid)
    views = model.features.views(table, sections, grid)
    return ModelInput(table, sections, make_sections(columns, sections, grid, sections.names, views=views))


def require_two_states(model: DomainModel | ExpressionModel) -> None:
    """Refuse what is no model, and models that have no answer and latent to update."""
    require_model(model, DomainModel, ExpressionModel)
    if not isinstance(model.architecture, TRMConfig):
        msg = "only recursions with two states can be explored so; train with architecture='trm'"
        raise ValueError(msg)


def hardware(accelerator: str | None, precision: str | None) -> dict[str, str | None]:
    """Device family and precision to run on: as given, or as in the settings."""
    return {"accelerator": accelerator or settings.accelerator, "precision": precision or settings.precision}


def make_scorer(model: DomainModel | ExpressionModel, given: ModelInput, label_key: str | None) -> Score:
    """Return what scores the output of a section, by its name; it finds nothing where nothing is known."""
    if isinstance(model, ExpressionModel):
        if label_key is not None:
            msg = f"label_key={label_key!r} is for models of domains; predicted expression is scored against the counts"
            raise ValueError(msg)
        return _expression_scorer(model, given)
    return (lambda _name, _proba_NC: {}) if label_key is None else _domain_scorer(model, given, label_key)


def _domain_scorer(model: DomainModel, given: ModelInput, label_key: str) -> Score:
    truth_N, labels = read_labels(given.table, label_key).to_numpy(), np.array(model.labels, dtype=object)

    def score(name: str, proba_NC: np.ndarray) -> dict[str, float]:
        found = metrics.domain_scores(truth_N[given.sections.rows(name)], labels[proba_NC.argmax(axis=1)])
        return {key: found[key] for key in ("ari", "accuracy", "macro_f1")}

    return score


def _expression_scorer(model: ExpressionModel, given: ModelInput) -> Score:
    truth_NG = model.measure(given.table)
    measured = np.isfinite(truth_NG).any(axis=0)
    if not measured.any():
        return lambda _name, _predicted_NG: {}

    def score(name: str, predicted_NG: np.ndarray) -> dict[str, float]:
        truth, predicted = truth_NG[given.sections.rows(name)][:, measured], predicted_NG[:, measured]
        pcc = metrics.pcc_per_gene(truth, predicted)
        scores = {"pcc_50": metrics.pcc_top(pcc, 50), "pcc_all": metrics.pcc_top(pcc)}
        return scores | {"rvd": metrics.rvd(truth, predicted)}

    return score
