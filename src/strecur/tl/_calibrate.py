from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from strecur import metrics
from strecur._anndata import read_labels
from strecur._arguments import check_number, check_whole, filled
from strecur.models import DomainModel, ExpressionModel, LinearExpressionModel
from strecur.models.blend import blend_values
from strecur.models.calibration import USUAL_COVERAGE, fit_errors
from strecur.models.domain import calibrate_domains
from strecur.models.expression_task import mean_pcc
from strecur.models.targets import counted_spots, read_counts
from strecur.options import Inference, as_options
from strecur.tl._inputs import read_input, require_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import SectionData

logger = logging.getLogger("strecur")

# The halt probability is at least this far from 0 and 1, which a threshold cannot be.
MARGIN = 1e-6


def calibrate(
    adata: AnnData | SpatialData,
    model: DomainModel,
    label_key: str,
    *,
    library_key: str | None = None,
    inference: Inference | Mapping[str, Any] | None = None,
    rng: int = 0,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Calibrate the probabilities of a model of domains, on annotated sections it was not trained on.

    Fits the temperature at which the annotated domains are most likely, and the distribution of the probability of the
    annotated domain. Both are kept in the model, saved with it, and used by :func:`trm_domains`: the temperature
    always, the distribution with ``coverage``. The predicted domains do not change. Use the same ``inference`` here and
    there.

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
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    inference
        Depth, breadth and other options of the prediction: a :class:`strecur.Inference` or a mapping.
    rng
        Seed; the same seed gives the same restarts, whatever other sections are there.
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
    Temperature scaling and split-conformal prediction. Spots of one section resemble each other, and a new section may
    differ from all of these: the coverage holds on average over many sections like these, not for each. Use several
    sections, and look at the ``novelty`` of new ones.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> first = adata[adata.obs["section"] == "S1"].copy()
    >>> second = adata[adata.obs["section"] == "S2"].copy()
    >>> model = st.tl.train_domains(first, "domain", training={"max_epochs": 1})
    >>> table = st.tl.calibrate(second, model, "domain")
    >>> bool(table.loc["after", "nll"] <= table.loc["before", "nll"])
    True
    """
    require_model(model, DomainModel)
    options = as_options(Inference, "inference", inference)
    check_whole("rng", rng, least=0)
    given = read_input(adata, model, options, library_key=library_key, table_key=table_key)
    target_N = known_labels(given.data, model, label_key)
    answers = model.predict(given.sections, given.inference, rng=rng, keep_steps=False)
    proba_NC = np.concatenate([proba_DNC[-1] for proba_DNC in model.answers(given.sections, given.inference, answers)])
    target_N = np.concatenate([target_N[given.data.rows(name)] for name in given.data.names])
    return calibrate_domains(model, proba_NC, target_N)


def known_labels(data: SectionData, model: DomainModel, label_key: str) -> np.ndarray:
    """Return the index of each spot's annotated domain among the model's, -1 where there is none."""
    values = read_labels(data.table, label_key)
    target_N = pd.Index(model.labels).get_indexer(values)
    unknown = sorted(set(values[target_N < 0].dropna()))
    if unknown:
        logger.warning("spots of the domains %s are left out; the model knows %s", unknown, model.labels)
    if not (target_N >= 0).any():
        msg = f"no spot of adata.obs[{label_key!r}] has a domain that the model knows: {model.labels}"
        raise ValueError(msg)
    warn_if_seen(model.sections, [name for name in data.names if (target_N[data.rows(name)] >= 0).any()])
    return target_N


def warn_if_seen(trained: list[str], names: list[str]) -> None:
    """Warn if a model is calibrated on sections it was trained on."""
    seen = sorted(set(names) & set(trained))
    if seen:
        logger.warning(
            "the model was trained on the sections %s, on which it is more confident and more often right than on new "
            "ones; calibrate on others",
            seen,
        )


def calibrate_expression(
    adata: AnnData | SpatialData,
    model: ExpressionModel,
    *,
    library_key: str | None = None,
    inference: Inference | Mapping[str, Any] | None = None,
    rng: int = 0,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Measure the errors of a model of expression, on measured sections it was not trained on.

    The errors are kept in the model, saved with it, and give :func:`predict_expression` its intervals (``coverage``).
    So are the correlations of every gene: they become the reliability of answer and network, unless ``inference``
    changes the blend or the model is one of counts. Predictions do not change. Use the same ``inference`` here and
    there.

    Parameters
    ----------
    adata
        Spots of one or several sections; with counts, ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the
        embedding the model was trained on. Genes are matched by name. The object is not changed.
    model
        From :func:`train_expression` or :func:`strecur.load_model`; its errors and the columns ``pcc`` and
        ``pcc_network`` of its reliability are replaced.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    inference
        Depth, breadth and other options of the prediction: a :class:`strecur.Inference` or a mapping.
    rng
        Seed; the same seed gives the same restarts, whatever other sections are there.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    One row per gene: ``pcc`` (correlation over the spots of all sections), ``mae`` (mean absolute error) and
    ``width`` (mean width of the 90 % intervals), on the scale of the target.

    Raises
    ------
    KeyError
        If the lattice or the embedding is missing.
    TypeError
        If the model is not one of expression.
    ValueError
        If the model is linear, genes of the model are not measured, or no spot has counts.

    Notes
    -----
    Split-conformal prediction, for each gene and each quarter of its predicted values. Spots of one section resemble
    each other, and a new section may differ from all of these: the coverage holds on average over many sections like
    these, not for each.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, mpp=1.0)
    >>> model = st.tl.train_expression(adata, genes=5, training={"max_epochs": 1})
    >>> table = st.tl.calibrate_expression(adata, model)
    >>> table.columns.to_list()
    ['pcc', 'mae', 'width']
    """
    require_model(model, ExpressionModel, LinearExpressionModel)
    if not isinstance(model, ExpressionModel):
        msg = "a linear model knows its errors from training; only networks are calibrated"
        raise ValueError(msg)
    options = as_options(Inference, "inference", inference)
    check_whole("rng", rng, least=0)
    given = read_input(adata, model, options, library_key=library_key, table_key=table_key)
    truth_NG = model.measure(given.data.table)
    missing = [gene for gene, unknown in zip(model.genes, np.isnan(truth_NG).all(axis=0), strict=True) if unknown]
    if missing:
        msg = f"genes {missing[:10]} of the model are not measured here; calibrate on sections that have all"
        raise ValueError(msg)
    known_N = counted_spots(read_counts(given.data.table, model.target.layer))
    if not known_N.any():
        msg = "no spot has counts"
        raise ValueError(msg)
    warn_if_seen(model.sections, given.data.names)
    answers = model.predict(given.sections, given.inference, rng=rng, keep_steps=False)
    network_NG = given.data.join([answer.combined(filled(given.inference.selection))[-1] for answer in answers])
    linear_NG = model.baseline.predict(given.inputs.averaged_NF)
    predicted_NG = blend_values(network_NG, linear_NG, filled(given.inference.blend))
    if filled(given.inference.blend) == model.blend and not model.predicts_counts:
        rows = [np.intersect1d(given.data.rows(name), np.flatnonzero(known_N)) for name in given.data.names]
        rows = [own for own in rows if len(own)]
        for column, values_NG in (("pcc", predicted_NG), ("pcc_network", network_NG)):
            model.reliability[column] = mean_pcc([truth_NG[r] for r in rows], [values_NG[r] for r in rows])
    spread_NG = None
    if len(model.networks) > 1:
        spread_NG = filled(given.inference.blend) * given.data.join([answer.spread for answer in answers])[known_N]
    predicted_NG, truth_NG = predicted_NG[known_N], truth_NG[known_N]
    model.errors = fit_errors(predicted_NG, truth_NG, spread_NG)
    return pd.DataFrame(
        {
            "pcc": metrics.pcc_per_gene(truth_NG, predicted_NG),
            "mae": np.abs(predicted_NG - truth_NG).mean(axis=0),
            "width": 2 * model.errors.half_width(predicted_NG, USUAL_COVERAGE).mean(axis=0),
        },
        index=pd.Index(model.genes, name="gene"),
    )


def calibrate_halting(
    adata: AnnData | SpatialData,
    model: DomainModel | ExpressionModel,
    *,
    library_key: str | None = None,
    quantile: float = 0.5,
    depth: int = 16,
    table_key: str | None = None,
) -> float:
    """Set the halting threshold of a model from the halt probabilities it reaches.

    A threshold that suits one recipe and data set may never be reached on another, or always at once. This runs each
    section until its halt probability has settled and takes a quantile of these. It needs no labels, so the training
    sections can be used. The threshold is kept in the model, saved with it, and used in prediction unless another is
    given there.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the genes (or the
        representation) the model was trained on. Genes are matched by name. The object is not changed.
    model
        Trained with ``halting``; its threshold is replaced.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    quantile
        Share of these sections whose probability settles below the threshold, so that they never halt; at least 0 and
        below 1.
    depth
        Outer steps after which halt probabilities count as settled.
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
        If ``model`` is not a model.
    ValueError
        If the model was trained without halting, or a number is out of range.

    Notes
    -----
    In the spatial Tiny Recursive Model :cite:p:`spatialtrm` (appendix F) the recipes with a threshold of .7 halt at the
    first step or never, because their probabilities settle at .997, .27 and .07.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> threshold = st.tl.calibrate_halting(adata, model, depth=2)
    >>> model.halt_threshold == threshold
    True
    """
    require_model(model, DomainModel, ExpressionModel)
    if model.halting is None:
        msg = "the model was trained without halting and has no threshold to calibrate; train it with halting=..."
        raise ValueError(msg)
    if not 0 <= check_number("quantile", quantile) < 1:
        msg = f"quantile={quantile} must be at least 0 and below 1"
        raise ValueError(msg)
    given = read_input(adata, model, Inference(depth=depth), library_key=library_key, table_key=table_key)
    answers = model.predict(given.sections, given.inference, keep_steps=False)
    settled = [run.halt_probability_D[-1] for answer in answers for run in answer]
    model.halt_threshold = float(np.clip(np.quantile(settled, quantile), MARGIN, 1 - MARGIN))
    return model.halt_threshold
