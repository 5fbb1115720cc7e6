from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from strecur._anndata import (
    check_free,
    check_key,
    find_library_key,
    open_table,
    read_section_data,
    read_sections,
    write,
)
from strecur._arguments import check_probability, check_whole, filled
from strecur._geometry import physical_positions
from strecur.models import ExpressionModel, LinearExpressionModel
from strecur.models.blend import blend_values
from strecur.models.counts import log2_of
from strecur.models.expression_task import CountTask, ExpressionTask
from strecur.models.features.representation import EMBED
from strecur.models.fitting import Request, fit_model
from strecur.models.novelty import rate_section
from strecur.models.plan import plan_inference
from strecur.models.sections import engine_sections
from strecur.nn import GenARConfig
from strecur.options import Features, Inference, Training, as_options
from strecur.tl._inputs import recorded, require_model
from strecur.tl._novelty import share_novel
from strecur.tl._reasoning import describe_answers, residual_table, slide_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import SectionData
    from strecur.engine import Section
    from strecur.models.features.spots import Inputs
    from strecur.models.network import Architecture
    from strecur.models.targets import ExpressionTarget
    from strecur.nn import BackboneConfig
    from strecur.presets import Preset


def train_expression(
    adata: AnnData | SpatialData,
    *,
    library_key: str | None = None,
    use_rep: str = "X_patch",
    genes: int | str | Sequence[str] = 300,
    extra_genes: str | Sequence[str] = (),
    architecture: Literal["trm", "universal", "feedforward", "genar", "hist", "linear"] | Architecture | Preset = "trm",
    backbone: Literal["windowed", "dense", "hierarchical", "hist"] | BackboneConfig = "windowed",
    halting: Literal["auto", "pcc", "rvd", "mse", "gene_pcc", "random_k"] | None = "auto",
    features: Features | Mapping[str, Any] | None = None,
    training: Training | Mapping[str, Any] | None = None,
    rng: int = 0,
    table_key: str | None = None,
) -> LinearExpressionModel:
    """Train a model that predicts expression from histology, on sections where both were measured.

    Genes, principal components of the embedding, the network and, on the same features, a ridge regression as linear
    baseline are fitted on the training sections alone. ``adata`` is not changed.

    Parameters
    ----------
    adata
        Spots of one or several sections; with raw counts, ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and an
        embedding of their image patches from :func:`strecur.pp.embed_patches`. Spots whose embedding is NaN are left
        out, and so are sections without any count.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    use_rep
        Embedding in ``obsm``. If ``obsm[f"{use_rep}_d4"]`` contains it for all rotations and flips of the patches
        (``views=8``), sections are rotated and flipped with their patches, in training and in prediction.
    genes
        Genes to predict: names, or how many to choose by
        :func:`~strecur.pp.high_mean_high_variance_genes` on the training sections. Names are genes, or panels such as
        ``"breast"`` (:func:`strecur.datasets.gene_panels`). Genes of a panel that the data lack are left out and
        logged.
    extra_genes
        Genes or panels that are added to those chosen, such as ``genes=300, extra_genes="breast"``.
    architecture
        How the backbone is iterated: a tiny recursive model, a universal transformer, or once; ``"genar"`` generates
        raw counts, gene group by gene group from coarse to fine, from the features of a spot
        (:class:`strecur.nn.GenARConfig` can also let it see the section); ``"hist"`` for the whole system of HiST
        (:func:`strecur.presets.hist`); ``"linear"`` for the ridge regression alone; or a configuration of
        ``strecur.nn`` or a preset.
    backbone
        Network that is iterated: attention within windows (cost linear in the number of spots), over whole sections (as
        in the spatial TRM), or within windows of a hierarchy of lattices (linear too); or a configuration of
        ``strecur.nn``. Not for GenAR on single spots.
    halting
        Recipe that teaches the network when to stop: by the correlation, the relative variance distance or the squared
        error of spots held out at every step, the correlation gene by gene, or at random steps. ``"auto"`` (default)
        and ``None`` for none.
    features
        Options of the features and the target: a :class:`strecur.Features` or a mapping.
    training
        Options of the training: a :class:`strecur.Training` or a mapping.
    rng
        Seed; the same seed gives the same model on the same CPU.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The fitted :class:`~strecur.models.ExpressionModel`, or :class:`~strecur.models.LinearExpressionModel` with
    ``architecture="linear"``.

    Raises
    ------
    KeyError
        If a key, a gene or every gene of a panel does not exist; the message lists those that do.
    OSError
        If the folder of the checkpoint cannot be written.
    ValueError
        If there are no counts, fewer than two spots with counts and embedding to train on, a section does not fit into
        memory, or the folder holds the checkpoint of another training.

    Notes
    -----
    The recursion is that of the spatial Tiny Recursive Model :cite:p:`spatialtrm`: an optimizer step after every outer
    step, with the state carried over without gradient. Spots without any count are not learned from, but predicted.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, mpp=1.0)
    >>> model = st.tl.train_expression(adata, genes=5, training={"max_epochs": 1})
    >>> len(model.genes)
    5
    """
    request = Request(
        architecture,
        backbone,
        halting,
        as_options(Features, "features", features),
        as_options(Training, "training", training),
    )
    check_whole("rng", rng, least=0)
    table = open_table(adata, table_key=table_key)
    if table.n_vars == 0:
        msg = "the object has no genes; training needs sections with raw counts beside their images"
        raise ValueError(msg)
    library_key = find_library_key(table, library_key)
    is_counts = getattr(architecture, "name", architecture) == GenARConfig.name
    task = (CountTask if is_counts else ExpressionTask)(use_rep, genes, extra_genes, library_key)
    return fit_model(task, read_section_data(table, library_key, use_rep=use_rep, hint=EMBED), request, rng=rng)


def predict_expression(
    adata: AnnData | SpatialData,
    model: LinearExpressionModel,
    *,
    library_key: str | None = None,
    inference: Inference | Mapping[str, Any] | None = None,
    coverage: float | None = None,
    rng: int = 0,
    key_added: str = "trm_expression",
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Predict the expression of every spot from its histology; nothing is fitted on the sections predicted.

    The answer is a blend of the network and the linear baseline, which are written beside it. The answer of models of
    counts is that of the network alone.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the embedding the
        model was trained on, from :func:`strecur.pp.embed_patches`. Genes are not needed: the spots may come from
        :func:`strecur.pp.tile_image`.
    model
        From :func:`train_expression` or :func:`strecur.load_model`.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    inference
        Depth, breadth and other options of the prediction: a :class:`strecur.Inference` or a mapping.
    coverage
        Also write, for every spot and gene, half the width of the interval around the prediction that contains the
        measured value with this probability, between 0 and 1. The model must be calibrated, by
        :func:`calibrate_expression` or on its validation sections.
    rng
        Seed; the same seed gives the same restarts and samples, whatever other sections are there.
    key_added
        Name of the results.
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
    ``obsm[f"{key}_network"]``, ``obsm[f"{key}_linear"]``
        The same by the network alone (unless the model is linear), and by the linear baseline; the latter is
        log2(count + 1) beside counts.
    ``obsm[f"{key}_log2"]``
        For models of counts: the mean of log2(count + 1) over the predicted distributions (float32, spots × genes),
        which varies even where the predicted counts are almost the same everywhere.
    ``obsm[f"{key}_sample"]``
        With ``n_samples``: the first of the samples (int32 like the counts). Samples vary as counts do, from gene to
        gene and in their totals, but single values are worse predictions.
    ``obsm[f"{key}_spread"]``
        For an ensemble or with ``breadth > 1``: standard deviation over the networks and restarts; with ``n_samples``:
        of log2(count + 1) over the samples (float32, spots × genes).
    ``obsm[f"{key}_interval"]``
        With ``coverage``: half the width of the interval (float32, spots × genes). It is wider where the networks of an
        ensemble differ more than on the sections the model was calibrated on.
    ``obs[f"{key}_novelty"]``
        Share of the training spots whose patches were less strange, from 0 to 1 (float32); see :func:`trm_domains`.
    ``uns[key]``
        ``params``, ``var_names`` (the genes), ``target`` (their scale; with ``target_sum`` and
        ``size_factor_key`` if it is depth-normalised), ``model`` (its id), ``reliability`` (a table of
        how well each gene is predicted, with ``pcc`` of this answer; NaN if another ``blend`` than that of the model
        was chosen and not measured; see :class:`~strecur.models.ExpressionModel`) and ``sections`` (a table of
        n_spots, n_predicted, novelty, novel and, for a network, n_steps, halt_step, halt_probability and residual by
        section) and, for a network, ``residuals`` (a table of section, restart, step and residual) and, if it has
        global tokens, ``slide_tokens`` (float32, sections × tokens × width, in the order of ``sections``).

    Raises
    ------
    KeyError
        If the lattice or the embedding is missing.
    ValueError
        If the embedding is of another encoder or width, an option does not fit the model, or ``coverage`` is given for
        a model that is not calibrated.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, mpp=1.0)
    >>> model = st.tl.train_expression(adata, genes=5, training={"max_epochs": 1})
    >>> st.tl.predict_expression(adata, model)
    >>> adata.obsm["trm_expression"].shape[1]
    5
    """
    options = check_expression_call(model, inference=inference, coverage=coverage, rng=rng, key_added=key_added)
    table = open_table(adata, table_key=table_key, copy=copy)
    check_free(table, key_added, default="trm_expression")
    library_key = find_library_key(table, library_key)
    data = read_section_data(table, library_key, use_rep=model.features.use_rep, hint=EMBED)
    inputs = model.features.inputs(data)
    linear_NG = model.baseline.predict(inputs.averaged_NF)
    found, by_section = {"": linear_NG}, pd.DataFrame(index=pd.Index(data.names, name="section"))
    record: dict[str, Any] = {}
    params: dict[str, Any] = {"coverage": coverage, "library_key": library_key}
    if isinstance(model, ExpressionModel):
        options = plan_inference(model, options, data.sizes(), data.grid.layout)
        names = read_sections(table, library_key).names
        found, by_section, record = run_network(model, data, engine_sections(data, inputs), options, names, rng)
        found = {"": blend_values(found["_network"], linear_NG, filled(options.blend)), **found}
        params |= {**recorded(options), "rng": rng}
    if coverage is not None:
        spread_NG = filled(options.blend) * found["_spread"] if of_ensemble(model) else None
        found["_interval"] = filled(model.errors).half_width(found[""], coverage, spread_NG)
    by_section.insert(0, "n_predicted", list(data.sizes().values()))
    novelty_N = rate_patches(model, data, inputs)
    by_section["novelty"] = inputs.novelty
    by_section["novel"] = share_novel(data, novelty_N)
    record = {
        "params": {name: value for name, value in params.items() if value is not None},
        "var_names": list(model.genes),
        "target": model.target.scale,
        **describe_depth(model.target),
        "model": model.id,
        "reliability": model.rated(options.blend),
        "sections": with_all_sections(table, library_key, by_section),
        **record,
    }
    found["_linear"] = linear_NG
    obsm = {f"{key_added}{name}": as_stored(name, data.spread(v), model.target) for name, v in found.items()}
    write(table, obs={f"{key_added}_novelty": data.spread(novelty_N)}, obsm=obsm, uns={key_added: record})
    return table if copy else None


def run_network(
    model: ExpressionModel,
    data: SectionData,
    sections: list[Section],
    options: Inference,
    names: Sequence[str],
    rng: int,
) -> tuple[dict[str, np.ndarray], pd.DataFrame, dict[str, Any]]:
    """Return what the network predicts by suffix of the key, a table of sections, and further entries of ``uns``.

    ``names`` are those of all sections, also of those without a spot to predict.
    """
    answers = model.predict(sections, options, rng=rng)
    found = {"_network": data.join([answer.combined(filled(options.selection))[-1] for answer in answers])}
    if len(answers[0]) > 1:
        found["_spread"] = data.join([answer.spread for answer in answers])
    if model.predicts_counts:
        found["_log2"] = data.join([log2_of(run)[-1] for answer in answers for run in answer.restarts])
    if options.n_samples:
        drawn = model.draw_counts(sections, options, rng=rng)
        found["_spread"] = data.join([draws.spread_NG for draws in drawn])
        found["_sample"] = data.join([draws.first_NG for draws in drawn])
    by_section = describe_answers(data, answers, options).drop(columns="n_spots")
    return found, by_section, {"residuals": residual_table(answers), **slide_tokens(model, answers, names)}


def of_ensemble(model: LinearExpressionModel) -> bool:
    """Return whether a model has several networks."""
    return isinstance(model, ExpressionModel) and len(model.networks) > 1


def rate_patches(model: LinearExpressionModel, data: SectionData, inputs: Inputs) -> np.ndarray:
    """Rate how strange the patch of every spot is; NaN if the model does not know."""
    grid, parts = data.grid, [data.rows(name) for name in data.names]
    positions_N2 = physical_positions(grid.row, grid.col, grid.layout)
    found = [rate_section(model.novelty, inputs.compared_NF[rows], None, positions_N2[rows]) for rows in parts]
    return data.join(found)


def as_stored(name: str, values: np.ndarray, target: ExpressionTarget) -> np.ndarray:
    """Return counts as integers, unless there are missing spots, which integers cannot represent."""
    if target.scale != "counts" or name not in {"", "_network", "_sample"} or np.isnan(values).any():
        return values
    return values.astype(np.int32)


def describe_depth(target: ExpressionTarget) -> dict[str, object]:
    """Return what is needed to bring other counts to the scale of a depth-normalised target."""
    if target.median_size is None:
        return {}
    key = {} if target.size_factor_key is None else {"size_factor_key": target.size_factor_key}
    return {"target_sum": target.median_size, **key}


def check_expression_call(
    model: LinearExpressionModel,
    *,
    inference: Inference | Mapping[str, Any] | None = None,
    coverage: float | None = None,
    rng: int = 0,
    key_added: str = "trm_expression",
) -> Inference:
    """Check what a call of :func:`predict_expression` asks of the model; return the options of the prediction."""
    check_key(key_added)
    require_model(model, ExpressionModel, LinearExpressionModel)
    options = as_options(Inference, "inference", inference)
    check_whole("rng", rng, least=0)
    check_options(model, options, coverage)
    return options


def check_options(model: LinearExpressionModel, options: Inference, coverage: float | None) -> None:
    """Raise if a linear model is to be run in steps, or intervals are wanted of a model that is not calibrated."""
    if not isinstance(model, ExpressionModel) and options != Inference():
        msg = "a linear model has no recursion to run; leave out inference, or train a network"
        raise ValueError(msg)
    if coverage is not None:
        check_probability("coverage", coverage)
        if model.errors is None:
            msg = "coverage needs a calibrated model; run strecur.tl.calibrate_expression(adata, model) first"
            raise ValueError(msg)


def with_all_sections(table: AnnData, library_key: str | None, by_section: pd.DataFrame) -> pd.DataFrame:
    """Add the number of spots, and the sections of which no spot was predicted."""
    sections = read_sections(table, library_key)
    by_section = by_section.reindex(pd.Index(sections.names, name="section"))
    by_section["n_predicted"] = by_section["n_predicted"].fillna(0).astype(int)
    by_section.insert(0, "n_spots", np.bincount(sections.codes, minlength=len(sections.names)))
    return by_section
