from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from strecur import metrics
from strecur._settings import settings
from strecur.engine import Inference, combine
from strecur.models import ExpressionModel
from strecur.models._intervals import fit_errors
from strecur.models._targets import counted_spots, read_counts
from strecur.tl._apply import hardware, read_input
from strecur.tl._checks import check_inference, check_selection, require_model
from strecur.tl._sections import join

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")

USUAL_COVERAGE = 0.9


def calibrate_expression(
    adata: AnnData | SpatialData,
    model: ExpressionModel,
    *,
    library_key: str | None = None,
    depth: int | None = None,
    breadth: int = 1,
    selection: Literal["mean", "converged"] = "mean",
    symmetric: bool = True,
    rng: int = 0,
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Learn how far a model's predictions are off, on measured sections it was not trained on.

    The errors are kept in the model, saved with it, and give :func:`predict_expression` its intervals (``coverage``).
    Predictions stay the same. Calibrate with the depth, breadth and selection that will be used.

    Parameters
    ----------
    adata
        Spots of one or several sections; with counts, ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the
        embedding the model was trained on. Genes are matched by name. The object is not changed.
    model
        From :func:`train_expression` or :func:`strecur.load_model`; its errors are replaced.
    library_key
        Column of ``obs`` that tells sections apart.
    depth
        Outer steps to think for; not given: as many as in training.
    breadth
        Independent restarts from random starting points.
    selection
        How restarts become one answer, as in :func:`predict_expression`.
    symmetric
        Average the predictions over the views of the lattice that look alike.
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
    Split conformal prediction, gene by gene and for each quarter of the predicted values. Spots of one section resemble
    each other, and a new section may differ from all of these: shares that are right for many sections like these may
    be off in any single one.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, library_key="section", mpp=1.0, progress=False)
    >>> model = st.tl.train_expression(adata, library_key="section", genes=5, max_epochs=1, progress=False)
    >>> table = st.tl.calibrate_expression(adata, model, library_key="section", progress=False)
    >>> table.columns.to_list()
    ['pcc', 'mae', 'width']
    """
    require_model(model, ExpressionModel)
    if model.network is None:
        msg = "a linear model knows its errors from training; only networks are calibrated"
        raise ValueError(msg)
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
    check_selection(selection, ("mean", "converged"))
    place = hardware(accelerator, precision)
    given = read_input(adata, model, library_key=library_key, table_key=table_key, **place)
    truth_NG = model.measure(given.table)
    missing = [gene for gene, unknown in zip(model.genes, np.isnan(truth_NG).all(axis=0), strict=True) if unknown]
    if missing:
        msg = f"genes {missing[:10]} of the model are not measured here; calibrate on sections that have all"
        raise ValueError(msg)
    known_N = counted_spots(read_counts(given.table, model.target.layer))
    if not known_N.any():
        msg = "no spot has counts"
        raise ValueError(msg)
    seen = sorted(set(given.sections.names) & set(model.sections))
    if seen:
        logger.warning("the model was trained on the sections %s, where it errs less; calibrate on others", seen)
    inference = Inference(depth or model.architecture.n_steps, breadth, symmetric=symmetric, seed=rng, keep_steps=False)
    show_bar = settings.progress if progress is None else progress
    restarts = model.predict(given.parts, inference, **place, progress=show_bar)
    predicted_NG = join(given.sections, [combine(runs, selection)[-1] for runs in restarts], axis=0)
    predicted_NG, truth_NG = predicted_NG[known_N], truth_NG[known_N]
    model.errors = fit_errors(predicted_NG, truth_NG)
    return pd.DataFrame(
        {
            "pcc": metrics.pcc_per_gene(truth_NG, predicted_NG),
            "mae": np.abs(predicted_NG - truth_NG).mean(axis=0),
            "width": 2 * model.errors.half_width(predicted_NG, USUAL_COVERAGE).mean(axis=0),
        },
        index=pd.Index(model.genes, name="gene"),
    )
