from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from strecur import metrics
from strecur._anndata import read_labels
from strecur._arguments import check_number, check_whole
from strecur._settings import settings
from strecur.engine import Inference, combine
from strecur.engine.restarts import SELECTIONS, most_converged
from strecur.models import DomainModel, ExpressionModel
from strecur.models._calibration import conformal_scores, fit_temperature, negative_log_likelihood, temper
from strecur.tl._apply import hardware, read_input
from strecur.tl._checks import check_inference, check_selection, require_model

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import Sections

logger = logging.getLogger("strecur")

# The halt probability is at least this far from 0 and 1, which no threshold may be.
MARGIN = 1e-6


def calibrate(
    adata: AnnData | SpatialData,
    model: DomainModel,
    label_key: str,
    *,
    library_key: str | None = None,
    depth: int | None = None,
    breadth: int = 1,
    selection: Literal["converged", "vote", "mean"] = "converged",
    rng: int = 0,
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Make a model's probabilities honest, on annotated sections it was not trained on.

    Finds the temperature at which the annotated domains are most likely, and how improbable the annotated domain of a
    spot may look. Both are kept in the model, saved with it, and used by :func:`trm_domains`: the temperature always,
    the rest with ``coverage``. Predicted domains stay the same. Calibrate with the depth, breadth and selection that
    will be used.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the genes (or the
        representation) the model was trained on. Genes are matched by name. The object is not changed.
    model
        From :func:`train_domains` or :func:`strecur.load_model`; its calibration is replaced.
    label_key
        Column of ``obs`` with the annotated domains. Spots without one, or with one the model does not know, are left
        out.
    library_key
        Column of ``obs`` that tells sections apart.
    depth
        Outer steps to think for; not given: as many as in training.
    breadth
        Independent restarts from random starting points.
    selection
        How restarts become one answer, as in :func:`trm_domains`.
    rng
        Seed; the same seed gives the same restarts, whatever other sections are there.
    accelerator
        Device family as in Lightning (``"cpu"``, ``"cuda"``, …); not given: ``settings.accelerator``.
    precision
        Precision as in Lightning; not given: bf16 where the device is faster with it.
    progress
        Show a progress bar; not given: ``settings.progress``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    Rows ``"before"`` and ``"after"``, columns ``nll`` (mean negative log-likelihood of the annotated domains) and
    ``ece`` (expected calibration error), on these sections.

    Raises
    ------
    KeyError
        If the lattice, the representation or ``label_key`` is missing.
    TypeError
        If the model is not one of domains.
    ValueError
        If no spot has a label that the model knows.

    Notes
    -----
    Spots of one section resemble each other, and a new section may differ from all of these. Shares that are right for
    many sections like these may be off in any single one: use several, and look at the ``novelty`` of new ones.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> first = adata[adata.obs["section"] == "S1"].copy()
    >>> second = adata[adata.obs["section"] == "S2"].copy()
    >>> model = st.tl.train_domains(first, "domain", library_key="section", max_epochs=1, progress=False)
    >>> table = st.tl.calibrate(second, model, "domain", library_key="section", progress=False)
    >>> bool(table.loc["after", "nll"] <= table.loc["before", "nll"])
    True
    """
    require_model(model, DomainModel)
    check_inference(
        model.architecture,
        model.halting,
        depth=depth,
        breadth=breadth,
        noise=0.0,
        halt_threshold=None,
        stop_early=False,
        rng=rng,
    )
    check_selection(selection, SELECTIONS)
    place = hardware(accelerator, precision)
    given = read_input(adata, model, library_key=library_key, table_key=table_key, **place)
    target_N = known_labels(given.table, given.sections, model, label_key)
    inference = Inference(depth or model.architecture.n_steps, breadth=breadth, seed=rng, keep_steps=False)
    show_bar = settings.progress if progress is None else progress
    restarts = model.predict(given.parts, inference, **place, progress=show_bar)
    proba_NC = np.concatenate([combine(runs, selection)[-1] for runs in restarts])
    target_N = np.concatenate([target_N[given.sections.rows(part.name)] for part in given.parts])
    return calibrate_on(model, proba_NC, target_N)


def known_labels(table: AnnData, sections: Sections, model: DomainModel, label_key: str) -> np.ndarray:
    """Index of each spot's annotated domain among the model's, -1 where there is none; warns of what looks wrong."""
    values = read_labels(table, label_key)
    target_N = pd.Index(model.labels).get_indexer(values)
    unknown = sorted(set(values[target_N < 0].dropna()))
    if unknown:
        logger.warning("spots of the domains %s are left out; the model knows %s", unknown, model.labels)
    if not (target_N >= 0).any():
        msg = f"no spot of adata.obs[{label_key!r}] has a domain that the model knows: {model.labels}"
        raise ValueError(msg)
    annotated = {name for name in sections.names if (target_N[sections.rows(name)] >= 0).any()}
    seen = sorted(annotated & set(model.sections))
    if seen:
        logger.warning(
            "the model was trained on the sections %s, on which it is surer than on new ones; calibrate on others", seen
        )
    return target_N


def calibrate_on(model: DomainModel, proba_NC: np.ndarray, target_N: np.ndarray) -> pd.DataFrame:
    """Fit temperature and conformal scores on the spots with a label (target ≥ 0), and say what changed."""
    labelled = target_N >= 0
    proba_NC, target_N = proba_NC[labelled], target_N[labelled]
    model.temperature = fit_temperature(proba_NC, target_N)
    tempered_NC = temper(proba_NC, model.temperature)
    model.conformal_scores = conformal_scores(tempered_NC, target_N)
    truth = np.array(model.labels, dtype=object)[target_N]
    rows = [
        {
            "nll": negative_log_likelihood(values_NC, target_N),
            "ece": metrics.expected_calibration_error(truth, values_NC, model.labels),
        }
        for values_NC in (proba_NC, tempered_NC)
    ]
    return pd.DataFrame(rows, index=["before", "after"])


def calibrate_halting(
    adata: AnnData | SpatialData,
    model: DomainModel | ExpressionModel,
    *,
    library_key: str | None = None,
    quantile: float = 0.5,
    depth: int = 16,
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    table_key: str | None = None,
) -> float:
    """Place a model's halting threshold where its halt probabilities are.

    A threshold that suits one recipe and data set may never be reached on another, or always at once. This runs each
    section until its halt probability has settled and takes a quantile of them. It needs no labels, so that the
    training sections will do. The threshold is kept in the model, saved with it, and used in prediction if none is
    given there.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the genes (or the
        representation) the model was trained on. Genes are matched by name. The object is not changed.
    model
        Trained with ``halting``; its threshold is replaced.
    library_key
        Column of ``obs`` that tells sections apart.
    quantile
        Share of these sections whose probability settles below the threshold, so that they never halt, in [0, 1).
    depth
        Outer steps after which halt probabilities count as settled.
    accelerator
        Device family as in Lightning (``"cpu"``, ``"cuda"``, …); not given: ``settings.accelerator``.
    precision
        Precision as in Lightning; not given: bf16 where the device is faster with it.
    progress
        Show a progress bar; not given: ``settings.progress``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The threshold.

    Raises
    ------
    KeyError
        If the lattice or the representation is missing.
    TypeError
        If it is no model.
    ValueError
        If the model was trained without halting, or a number is out of range.

    Notes
    -----
    In the spatial Tiny Recursive Model (appendix F) the recipes with a threshold of .7 halt at the first or at no step,
    because their probabilities settle at .997, .27 and .07.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> threshold = st.tl.calibrate_halting(adata, model, library_key="section", depth=2, progress=False)
    >>> model.halt_threshold == threshold
    True
    """
    require_model(model, DomainModel, ExpressionModel)
    if model.halting is None:
        msg = "the model was trained without halting and has no threshold to calibrate; train it with halting=..."
        raise ValueError(msg)
    check_number("quantile", quantile)
    check_whole("depth", depth)
    if not 0 <= quantile < 1:
        msg = f"quantile={quantile} must be at least 0 and below 1"
        raise ValueError(msg)
    place = hardware(accelerator, precision)
    given = read_input(adata, model, library_key=library_key, table_key=table_key, **place)
    show_bar = settings.progress if progress is None else progress
    inference = Inference(depth, keep_steps=False)
    restarts = model.predict(given.parts, inference, **place, progress=show_bar)
    settled = [runs[most_converged(runs)].halt_probability_D[-1] for runs in restarts]
    threshold = np.quantile(settled, quantile)
    model.halt_threshold = float(np.clip(threshold, MARGIN, 1 - MARGIN))
    return model.halt_threshold
