from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from strecur._anndata import check_free, check_key, open_table, read_grid, read_sections, write
from strecur._settings import settings
from strecur.engine import combine
from strecur.engine.restarts import SELECTIONS, agreement, most_converged, pairwise_disagreement
from strecur.models import DomainModel
from strecur.models._calibration import label_sets, temper
from strecur.tl._apply import hardware
from strecur.tl._checks import check_calibration, check_inference, check_selection, require_model
from strecur.tl._labels import UNLABELLED, settling_steps
from strecur.tl._plan import plan_inference
from strecur.tl._reasoning import describe_sections, means_by_section, residual_table
from strecur.tl._sections import join, make_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def trm_domains(
    adata: AnnData | SpatialData,
    model: DomainModel,
    *,
    library_key: str | None = None,
    depth: int | None = None,
    breadth: int = 1,
    selection: Literal["converged", "vote", "mean"] = "converged",
    noise: float = 0.0,
    symmetric: bool = True,
    stop_early: bool = False,
    halt_threshold: float | None = None,
    coverage: float | None = None,
    abstain: float = 0.0,
    rng: int = 0,
    key_added: str = "trm_domains",
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Label every spot of new sections, with nothing fitted on them.

    Parameters
    ----------
    adata
        Spots of one or several sections; ``obsm["grid"]`` comes from :func:`strecur.pp.to_grid`. They have the genes
        (or the representation) the model was trained on; genes are matched by name.
    model
        From :func:`train_domains` or :func:`strecur.load_model`.
    library_key
        Column of ``obs`` that tells sections apart.
    depth
        Outer steps to think for; not given: as many as in training.
    breadth
        Independent restarts from random starting points, whose agreement tells how firm the answer is.
    selection
        How restarts become one answer: the best ``"converged"`` one, a ``"vote"`` for every spot, or the ``"mean"``.
    noise
        Standard deviation of the noise added to every update of the states.
    symmetric
        Average the answers over the views of the lattice that look alike (flips; on square lattices also turns).
    stop_early
        Stop a section at its halt step instead of running all steps.
    halt_threshold
        Probability above which a section has halted, in (0, 1); not given: that of the model, from
        :func:`calibrate_halting` or its recipe.
    coverage
        Also write, for every spot, a set of domains that holds the true one with this probability, in (0, 1). The model
        must have been calibrated, by :func:`calibrate` or on its validation sections.
    abstain
        Confidence below which a spot gets no domain, in [0, 1).
    rng
        Seed; the same seed gives the same restarts, whatever other sections are there.
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

    ``obs[key]``
        Domain of each spot (categorical of the training labels); missing where the confidence is below ``abstain``.
    ``obs[f"{key}_confidence"]``
        Probability of the most probable domain (float32).
    ``obs[f"{key}_settling_step"]``
        First outer step after which the spot's domain no longer changes, from 1 (int).
    ``obs[f"{key}_linear"]``
        Domain by the linear baseline (categorical).
    ``obsm[f"{key}_proba"]``
        Probability of each domain, calibrated if the model is (float32, spots × domains).
    ``obsm[f"{key}_latent"]``
        Latent z, or y of a network with one state (float32, spots × width).
    ``obsm[f"{key}_steps"]``
        Domain after each outer step, as an index into the categories (int16, spots × depth).
    ``obs[f"{key}_agreement"]``
        With ``breadth > 1``: share of the restarts that name the spot's domain (float32).
    ``obsm[f"{key}_set"]``
        With ``coverage``: which domains are in the spot's set (bool, spots × domains).
    ``obs[f"{key}_set_size"]``
        With ``coverage``: their number (int).
    ``uns[key]``
        ``params``, ``categories``, ``model`` (its id), ``sections`` (a table of n_spots, n_steps, halt_step,
        halt_probability, residual, mean_confidence, linear_agreement, novelty and, for several restarts, disagreement
        by section) and ``residuals`` (a table of section, restart, step and residual). The novelty is the distance to
        the nearest training section in the space of the representation; 1: as far as training sections are from one
        another, NaN: there was only one.

    Raises
    ------
    KeyError
        If the lattice or the representation is missing.
    ValueError
        If fewer than half of the model's genes are found, the representation has another width, or ``coverage`` is
        wanted of a model that was not calibrated.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> st.tl.trm_domains(adata, model, library_key="section", progress=False)
    >>> adata.obs["trm_domains"].cat.categories.to_list()
    ['L1', 'L2', 'L3']
    """
    check_key(key_added)
    require_model(model, DomainModel)
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
    check_selection(selection, SELECTIONS)
    check_calibration(model, coverage=coverage, abstain=abstain)
    table = open_table(adata, table_key=table_key, copy=copy)
    check_free(table, key_added, default="trm_domains")
    sections = read_sections(table, library_key)
    grid = read_grid(table, sections)
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
        keep_steps=True,
        rng=rng,
        accelerator=accelerator,
        precision=precision,
    )
    values = model.features.representation(table)
    columns = model.features.columns(values, sections, grid)
    parts = make_sections(columns, sections, grid, sections.names)
    restarts = model.predict(
        parts,
        inference,
        **hardware(accelerator, precision),
        progress=settings.progress if progress is None else progress,
    )
    proba_DNC = join(sections, [combine(runs, selection) for runs in restarts], axis=1)
    steps_ND = proba_DNC.argmax(axis=2).T.astype(np.int16)
    proba_NC = temper(proba_DNC[-1], model.temperature)
    label_N, confidence_N = steps_ND[:, -1], proba_NC.max(axis=1)
    linear_N = join(sections, model.predict_linear(parts), axis=0).argmax(axis=1)
    obs = {
        key_added: pd.Categorical.from_codes(np.where(confidence_N < abstain, UNLABELLED, label_N), model.labels),
        f"{key_added}_confidence": confidence_N,
        f"{key_added}_settling_step": settling_steps(steps_ND),
        f"{key_added}_linear": pd.Categorical.from_codes(linear_N, model.labels),
    }
    by_section = describe_sections(sections, restarts, threshold)
    by_section["mean_confidence"] = means_by_section(sections, confidence_N)
    by_section["linear_agreement"] = means_by_section(sections, label_N == linear_N)
    by_section["novelty"] = model.features.novelty(values, sections)
    if breadth > 1:
        firm = [agreement(runs, label_N[sections.rows(n)]) for n, runs in zip(sections.names, restarts, strict=True)]
        obs[f"{key_added}_agreement"] = join(sections, firm, axis=0)
        by_section["disagreement"] = [pairwise_disagreement(runs) for runs in restarts]
    latents = [runs[most_converged(runs)].latent_ND for runs in restarts]
    params = {**asdict(replace(inference, halt_threshold=threshold)), "stop_early": stop_early, "selection": selection}
    params |= {"smoothing": model.smoothing, "temperature": model.temperature, "abstain": abstain}
    if library_key is not None:
        params["library_key"] = library_key
    obsm = {
        f"{key_added}_proba": proba_NC,
        f"{key_added}_latent": join(sections, latents, axis=0),
        f"{key_added}_steps": steps_ND,
    }
    if coverage is not None:
        params["coverage"] = coverage
        obsm[f"{key_added}_set"] = label_sets(proba_NC, model.conformal_scores, coverage)
        obs[f"{key_added}_set_size"] = obsm[f"{key_added}_set"].sum(axis=1)
    write(
        table,
        obs=obs,
        obsm=obsm,
        uns={
            key_added: {
                "params": params,
                "categories": model.labels,
                "model": model.id,
                "sections": by_section,
                "residuals": residual_table(sections, restarts),
            }
        },
    )
    return table if copy else None
