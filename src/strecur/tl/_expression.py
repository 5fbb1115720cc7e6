from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from strecur._anndata import check_free, check_key, open_table, read_sections, write
from strecur._settings import settings
from strecur.engine import combine
from strecur.models import ExpressionModel
from strecur.tl._apply import hardware
from strecur.tl._checks import check_inference, check_samples, check_selection, check_share, require_model
from strecur.tl._embedded import input_of, read_embedded
from strecur.tl._plan import plan_inference
from strecur.tl._reasoning import describe_sections, residual_table
from strecur.tl._sections import join, make_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur.models._targets import ExpressionTarget


def predict_expression(
    adata: AnnData | SpatialData,
    model: ExpressionModel,
    *,
    library_key: str | None = None,
    depth: int | None = None,
    breadth: int = 1,
    selection: Literal["mean", "converged"] = "mean",
    noise: float = 0.0,
    symmetric: bool = True,
    stop_early: bool = False,
    halt_threshold: float | None = None,
    coverage: float | None = None,
    n_samples: int = 0,
    temperature: float = 1.0,
    rng: int = 0,
    key_added: str = "trm_expression",
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Predict expression of every spot from its histology, with nothing fitted on the sections predicted.

    Parameters
    ----------
    adata
        Spots of one or several sections. They need ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the embedding
        the model was trained on, made by :func:`strecur.pp.embed_patches`, but no genes: they may come from
        :func:`strecur.pp.tile_image`.
    model
        From :func:`train_expression` or :func:`strecur.load_model`.
    library_key
        Column of ``obs`` that tells sections apart.
    depth
        Outer steps to think for; not given: as many as in training.
    breadth
        Independent restarts from random starting points, whose spread tells how firm the answer is.
    selection
        How restarts become one answer: their ``"mean"``, or the best ``"converged"`` one.
    noise
        Standard deviation of the noise added to every update of the states.
    symmetric
        Average the predictions over the views of the lattice that look alike (flips; on square lattices also turns),
        each with the features of the patches turned so, if the model was trained on them.
    stop_early
        Stop a section at its halt step instead of running all steps.
    halt_threshold
        Probability above which a section has halted, in (0, 1); not given: that of the model, from
        :func:`calibrate_halting` or its recipe.
    coverage
        Also write, for every spot and gene, half the width of the interval around the prediction that holds the
        measured value with this probability, in (0, 1). The model must have been calibrated, by
        :func:`calibrate_expression` or on its validation sections.
    n_samples
        Of a model of counts: draw them so many times, at least twice, to see how firm they are. The prediction stays
        as it is.
    temperature
        Of the samples; below 1 they are closer to the most probable counts, and vary less.
    rng
        Seed; the same seed gives the same restarts and samples, whatever other sections are there.
    key_added
        Name of the results.
    accelerator
        Device family as in Lightning (``"cpu"``, ``"cuda"``, …); not given: ``settings.accelerator``.
    precision
        Precision as in Lightning; not given: bf16 where the device is faster with it.
    progress
        Show a progress bar; not given: ``settings.progress``.
    copy
        Return a changed copy instead of changing ``adata``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``, or with ``copy=True`` the AnnData. Writes, with ``key`` for ``key_added``:

    ``obsm[key]``
        Predicted expression on the scale of the training target (float32, spots × genes). Spots whose embedding is
        NaN, such as those outside the image, have NaN. Counts are int32, but float32 if such spots are there.
    ``obsm[f"{key}_linear"]``
        The same by the linear baseline; log2(count + 1) beside counts.
    ``obsm[f"{key}_log2"]``
        Of counts: the mean of log2(count + 1) over the predicted distributions (float32, spots × genes). Where the
        predicted counts are nearly the same everywhere, it still tells spots apart.
    ``obsm[f"{key}_sample"]``
        With ``n_samples``: the first of the samples (int32 as the counts). Samples vary as counts do, from gene to
        gene and in their totals, but single values are worse predictions.
    ``obsm[f"{key}_spread"]``
        With ``breadth > 1``: standard deviation over the restarts; with ``n_samples``: of log2(count + 1) over the
        samples (float32, spots × genes).
    ``obsm[f"{key}_interval"]``
        With ``coverage``: half the width of the interval (float32, spots × genes).
    ``uns[key]``
        ``params``, ``var_names`` (the genes), ``target`` (their scale; with ``target_sum`` and
        ``size_factor_key`` if it is depth-normalised), ``model`` (its id), ``reliability`` (a table of
        how well each gene is predicted; see :class:`~strecur.models.ExpressionModel`) and ``sections`` (a table of
        n_spots, n_predicted, novelty and, of a network, n_steps, halt_step, halt_probability and residual by section)
        and, of a network, ``residuals`` (a table of section, restart, step and residual).

    Raises
    ------
    KeyError
        If the lattice or the embedding is missing.
    ValueError
        If the embedding is of another encoder or width, an option is out of range or does not fit the model, or
        ``coverage`` is wanted of a model that was not calibrated.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, library_key="section", mpp=1.0, progress=False)
    >>> model = st.tl.train_expression(adata, library_key="section", genes=5, max_epochs=1, progress=False)
    >>> st.tl.predict_expression(adata, model, library_key="section", progress=False)
    >>> adata.obsm["trm_expression"].shape[1]
    5
    """
    check_key(key_added)
    require_model(model, ExpressionModel)
    check_inference(
        model.architecture,
        model.halting,
        depth=depth,
        breadth=breadth,
        noise=noise,
        halt_threshold=halt_threshold,
        stop_early=stop_early,
        rng=rng,
    )
    check_selection(selection, ("mean", "converged"))
    check_samples(model, n_samples, temperature)
    if coverage is not None:
        check_share("coverage", coverage)
        require_errors(model)
    table = open_table(adata, table_key=table_key, copy=copy)
    check_free(table, key_added, default="trm_expression")
    embedded = read_embedded(table, model.features.source.use_rep, library_key)
    sections, grid = embedded.sections, embedded.grid
    columns, views, averaged, novelty = input_of(model.features, embedded)
    linear_NG = model.baseline.predict(averaged)
    predicted_NG, by_section = linear_NG, pd.DataFrame(index=pd.Index(sections.names, name="section"))
    obsm, uns, params = {}, {}, {}
    if model.network is not None:
        inference, threshold = plan_inference(
            model,
            sections,
            grid.layout,
            depth=depth,
            breadth=breadth,
            noise=noise,
            symmetric=symmetric,
            stop_early=stop_early,
            halt_threshold=halt_threshold,
            keep_steps=False,
            rng=rng,
            accelerator=accelerator,
            precision=precision,
        )
        parts = make_sections(columns, sections, grid, sections.names, views=views)
        place = hardware(accelerator, precision)
        show_bar = settings.progress if progress is None else progress
        restarts = model.predict(parts, inference, **place, progress=show_bar)
        predicted_NG = join(sections, [combine(runs, selection)[-1] for runs in restarts], axis=0)
        by_section = describe_sections(sections, restarts, threshold).drop(columns="n_spots")
        if breadth > 1:
            spread = [np.std([run.output_DN[-1] for run in runs], axis=0) for runs in restarts]
            obsm[f"{key_added}_spread"] = embedded.spread(join(sections, spread, axis=0))
        if model.target.scale == "counts":
            log2_NG = join(sections, [run.log2_DN[-1] for (run,) in restarts], axis=0)
            obsm[f"{key_added}_log2"] = embedded.spread(log2_NG)
        if n_samples:
            drawn = model.draw_counts(parts, inference, n_samples, temperature=temperature, **place)
            spread_NG = join(sections, [draws.spread_NG for draws in drawn], axis=0)
            first_NG = join(sections, [draws.first_NG for draws in drawn], axis=0)
            obsm[f"{key_added}_spread"] = embedded.spread(spread_NG)
            obsm[f"{key_added}_sample"] = whole_numbers(embedded.spread(first_NG), model.target)
        uns["residuals"] = residual_table(sections, restarts)
        params = {**asdict(replace(inference, halt_threshold=threshold)), "stop_early": stop_early}
        params |= {"selection": selection, "n_samples": n_samples, "temperature": temperature}
    if coverage is not None:
        params["coverage"] = coverage
        obsm[f"{key_added}_interval"] = embedded.spread(model.errors.half_width(predicted_NG, coverage))
    by_section.insert(0, "n_predicted", np.bincount(sections.codes, minlength=len(sections.names)))
    by_section["novelty"] = novelty
    if library_key is not None:
        params["library_key"] = library_key
    write(
        table,
        obsm={
            key_added: whole_numbers(embedded.spread(predicted_NG), model.target),
            f"{key_added}_linear": embedded.spread(linear_NG),
            **obsm,
        },
        uns={
            key_added: {
                "params": params,
                "var_names": list(model.genes),
                "target": model.target.scale,
                **depth_of(model.target),
                "model": model.id,
                "reliability": model.reliability.copy(),
                "sections": with_all_sections(table, library_key, by_section),
                **uns,
            }
        },
    )
    return table if copy else None


def whole_numbers(predicted_NG: np.ndarray, target: ExpressionTarget) -> np.ndarray:
    """Store counts as integers, unless there are missing spots, which integers cannot tell."""
    if target.scale != "counts" or np.isnan(predicted_NG).any():
        return predicted_NG
    return predicted_NG.astype(np.int32)


def depth_of(target: ExpressionTarget) -> dict[str, object]:
    """What is needed to bring other counts to the scale of a depth-normalised target."""
    if target.median_size is None:
        return {}
    key = {} if target.size_factor_key is None else {"size_factor_key": target.size_factor_key}
    return {"target_sum": target.median_size, **key}


def require_errors(model: ExpressionModel) -> None:
    """Refuse intervals of a model that does not know its errors."""
    if model.errors is None:
        msg = "coverage needs a calibrated model; run strecur.tl.calibrate_expression(adata, model) first"
        raise ValueError(msg)


def with_all_sections(table: AnnData, library_key: str | None, by_section: pd.DataFrame) -> pd.DataFrame:
    """Add how many spots there are, and the sections of which no spot was predicted."""
    sections = read_sections(table, library_key)
    by_section = by_section.reindex(pd.Index(sections.names, name="section"))
    by_section["n_predicted"] = by_section["n_predicted"].fillna(0).astype(int)
    by_section.insert(0, "n_spots", np.bincount(sections.codes, minlength=len(sections.names)))
    return by_section
