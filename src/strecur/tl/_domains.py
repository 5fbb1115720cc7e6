from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from strecur._anndata import check_free, check_key, find_library_key, open_table, read_section_data, write
from strecur._arguments import check_number, check_probability, check_whole, filled
from strecur.models import DomainModel
from strecur.models.calibration import label_sets, temper
from strecur.models.domain_task import UNLABELLED, DomainTask
from strecur.models.fitting import Request, fit_model
from strecur.models.plan import plan_inference
from strecur.models.sections import engine_sections
from strecur.options import Features, Inference, Training, as_options
from strecur.tl._inputs import recorded, require_model
from strecur.tl._novelty import share_novel
from strecur.tl._reasoning import describe_answers, residual_table, settling_steps, slide_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import SectionData
    from strecur.engine import Answer
    from strecur.models.network import Architecture
    from strecur.nn import BackboneConfig
    from strecur.presets import Preset


def train_domains(
    adata: AnnData | SpatialData,
    label_key: str,
    *,
    library_key: str | None = None,
    use_rep: str | None = None,
    architecture: Literal["trm", "universal", "feedforward", "hist"] | Architecture | Preset = "trm",
    backbone: Literal["windowed", "dense", "hierarchical", "hist"] | BackboneConfig = "windowed",
    halting: Literal["auto", "loss_proxy", "weighted_bce", "random_k"] | None = "auto",
    features: Features | Mapping[str, Any] | None = None,
    training: Training | Mapping[str, Any] | None = None,
    rng: int = 0,
    table_key: str | None = None,
) -> DomainModel:
    """Train a model of tissue domains on annotated sections.

    Genes, principal components, the network and, on the same features, a logistic regression as linear baseline are
    fitted on the annotated sections alone. ``adata`` is not changed.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and raw counts. Sections
        without any label are left out.
    label_key
        Column of ``obs`` with the annotated domains. Spots without one are seen as context and not learned from.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    use_rep
        Representation in ``obsm`` to use instead of principal components of expression.
    architecture
        How the backbone is iterated: a tiny recursive model, a universal transformer, or once; ``"hist"`` for the whole
        system of HiST (:func:`strecur.presets.hist`); or a configuration of ``strecur.nn`` or a preset.
    backbone
        Network that is iterated: attention within windows (cost linear in the number of spots), over whole sections (as
        in the spatial TRM), or within windows of a hierarchy of lattices (linear too); or a configuration of
        ``strecur.nn``.
    halting
        Recipe that teaches the network when to stop, on spots held out at every step (``"loss_proxy"``: their
        cross-entropy; ``"weighted_bce"``: the same, balanced over domains) or at random steps (``"random_k"``).
        ``"auto"`` (default) is ``"loss_proxy"``, and none for presets; ``None`` for none.
    features
        Options of the features: a :class:`strecur.Features` or a mapping.
    training
        Options of the training: a :class:`strecur.Training` or a mapping.
    rng
        Seed; the same seed gives the same model on the same CPU.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The fitted :class:`~strecur.models.DomainModel`.

    Raises
    ------
    KeyError
        If a key does not exist; the message lists those that do.
    OSError
        If the folder of the checkpoint cannot be written.
    ValueError
        If there are fewer than two domains, ``X`` holds no counts where counts are needed, a section does not fit into
        memory, or the folder holds the checkpoint of another training.

    Notes
    -----
    The recursion is that of the spatial Tiny Recursive Model :cite:p:`spatialtrm`: an optimizer step after every outer
    step, with the state carried over without gradient. With fewer than 1,200 annotated spots the network starts from
    the logistic regression and learns to correct it. Devices, precision and the progress bar are
    :data:`strecur.settings`.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> model.labels
    ['L1', 'L2', 'L3']
    """
    request = Request(
        architecture,
        backbone,
        halting,
        as_options(Features, "features", features),
        as_options(Training, "training", training),
    )
    check_whole("rng", rng, least=0)
    data = read_section_data(open_table(adata, table_key=table_key), library_key)
    return fit_model(DomainTask(label_key, use_rep), data, request, rng=rng)


def trm_domains(
    adata: AnnData | SpatialData,
    model: DomainModel,
    *,
    library_key: str | None = None,
    inference: Inference | Mapping[str, Any] | None = None,
    coverage: float | None = None,
    abstain: float = 0.0,
    novelty: float | None = None,
    rng: int = 0,
    key_added: str = "trm_domains",
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Label the domains of every spot of new sections; nothing is fitted on them.

    The answer is a blend of the network and the linear baseline, which are written beside it.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the genes (or the
        representation) the model was trained on. Genes are matched by name.
    model
        From :func:`train_domains` or :func:`strecur.load_model`.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    inference
        Depth, breadth and other options of the prediction: a :class:`strecur.Inference` or a mapping.
    coverage
        Also write, for every spot, a set of domains that contains the true one with this probability, between 0 and 1.
        The model must be calibrated, by :func:`calibrate` or on its validation sections.
    abstain
        Confidence below which a spot gets no domain, at least 0 and below 1.
    novelty
        Novelty above which a spot gets no domain, between 0 and 1: with 0.95, about 5 % of the spots of tissue that the
        model knows get none either. If ``None`` (default), all get one.
    rng
        Seed; the same seed gives the same restarts, whatever other sections are there.
    key_added
        Name of the results.
    copy
        Return a changed copy instead of changing ``adata``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``, or with ``copy=True`` the AnnData. Writes, with ``key`` for ``key_added``:

    ``obs[key]``
        Domain of each spot (categorical of the training labels); missing where the confidence is below ``abstain`` or
        the novelty above ``novelty``, and outside the tissue (``obs["in_tissue"]`` is 0), where all results are
        missing: NaN, false, step 0 and index -1.
    ``obs[f"{key}_confidence"]``
        Probability of the most probable domain (float32).
    ``obs[f"{key}_novelty"]``
        How strange the spot is (float32): the share of the training spots, judged by what was fitted without their
        block of the section, that were less strange; NaN if there were too few. Domains that the model never saw are
        near 1.
    ``obs[f"{key}_settling_step"]``
        First outer step after which the spot's domain no longer changes, from 1 (int).
    ``obs[f"{key}_network"]``, ``obs[f"{key}_linear"]``
        Domain by the network alone, and by the linear baseline (categorical).
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
        halt_probability, residual, mean_confidence, linear_agreement, novelty, novel and, for several restarts,
        disagreement by section), ``residuals`` (a table of section, restart, step and residual) and, for a network
        with global tokens, ``slide_tokens`` (float32, sections × tokens × width). The novelty of a section is the
        distance to the nearest training section in the space of the representation; 1: as far as training sections
        are from one another, NaN: there was only one. ``novel`` is the share of its spots stranger than 99 % of the
        training spots; more than 5 % are logged.

    Raises
    ------
    KeyError
        If the lattice or the representation is missing.
    ValueError
        If fewer than half of the model's genes are found, the representation has another width, an option does not fit
        the model, or ``coverage`` is given for a model that is not calibrated.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model, inference={"depth": 4})
    >>> adata.obs["trm_domains"].cat.categories.to_list()
    ['L1', 'L2', 'L3']
    """
    options = check_domains_call(
        model,
        inference=inference,
        coverage=coverage,
        abstain=abstain,
        novelty=novelty,
        rng=rng,
        key_added=key_added,
    )
    table = open_table(adata, table_key=table_key, copy=copy)
    check_free(table, key_added, default="trm_domains")
    data = read_section_data(table, library_key)
    options = plan_inference(model, options, data.sizes(), data.grid.layout)
    found = ask_model(model, data, options, rng)

    params = {**recorded(options), "rng": rng, "library_key": find_library_key(table, library_key)}
    params |= {"smoothing": model.smoothing, "temperature": model.temperature}
    params |= {"abstain": abstain, "coverage": coverage, "novelty": novelty}
    obs, obsm = label_spots(model, data, found, abstain=abstain, novelty=novelty)
    if coverage is not None:
        obsm["_set"] = label_sets(obsm["_proba"], filled(model.conformal_scores), coverage)
        obs["_set_size"] = obsm["_set"].sum(axis=1)
    record = {
        "params": {name: value for name, value in params.items() if value is not None},
        "categories": model.labels,
        "model": model.id,
        "sections": describe_answers(data, found.answers, options).join(describe_sections(data, found, obs)),
        "residuals": residual_table(found.answers),
        **slide_tokens(model, found.answers, data.names),
    }
    write(
        table,
        obs={f"{key_added}{name}": of_all_spots(data, values) for name, values in obs.items()},
        obsm={f"{key_added}{name}": of_all_spots(data, values) for name, values in obsm.items()},
        uns={key_added: record},
    )
    return table if copy else None


@dataclass(frozen=True)
class Found:
    """What a model says of some sections: restarts of the network, the answer, its parts, and what is strange."""

    answers: list[Answer]
    proba_DNC: np.ndarray
    network_N: np.ndarray
    linear_N: np.ndarray
    novelty_N: np.ndarray
    novelty_S: Sequence[float]


def ask_model(model: DomainModel, data: SectionData, options: Inference, rng: int) -> Found:
    """Run the network and the linear baseline, and rate how strange spots and sections are."""
    inputs = model.features.inputs(data)
    sections = engine_sections(data, inputs)
    answers = model.predict(sections, options, rng=rng)
    network_NC = data.join([answer.combined(filled(options.selection))[-1] for answer in answers])
    compared = [inputs.compared_NF[data.rows(name)] for name in data.names]
    return Found(
        answers,
        proba_DNC=data.join(model.answers(sections, options, answers), axis=1),
        network_N=network_NC.argmax(axis=1),
        linear_N=data.join(model.predict_linear(sections)).argmax(axis=1),
        novelty_N=data.join(model.rate_novelty(sections, compared)),
        novelty_S=inputs.novelty,
    )


def label_spots(
    model: DomainModel, data: SectionData, found: Found, *, abstain: float, novelty: float | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return what is written in ``obs`` and ``obsm``, by suffix of the key."""
    steps_ND = found.proba_DNC.argmax(axis=2).T.astype(np.int16)
    proba_NC = temper(found.proba_DNC[-1], model.temperature)
    label_N, confidence_N = steps_ND[:, -1], proba_NC.max(axis=1)
    withheld_N = confidence_N < abstain
    if novelty is not None:
        withheld_N |= found.novelty_N > novelty

    def named(codes_N: np.ndarray) -> pd.Categorical:
        return pd.Categorical.from_codes(codes_N, model.labels)

    obs = {
        "": named(np.where(withheld_N, UNLABELLED, label_N)),
        "_confidence": confidence_N,
        "_settling_step": settling_steps(steps_ND),
        "_novelty": found.novelty_N,
        "_network": named(found.network_N),
        "_linear": named(found.linear_N),
    }
    if len(found.answers[0].restarts) > 1:
        agreement = [answer.agreement(label_N[data.rows(answer.section)]) for answer in found.answers]
        obs["_agreement"] = data.join(agreement)
    obsm = {
        "_proba": proba_NC,
        "_latent": data.join([answer.best.latent_ND for answer in found.answers]),
        "_steps": steps_ND,
    }
    return obs, obsm


def describe_sections(data: SectionData, found: Found, obs: Mapping[str, Any]) -> pd.DataFrame:
    """Return confidence, agreement with the linear baseline and novelty of each section; warn of novel ones."""
    columns = {
        "mean_confidence": data.means(obs["_confidence"]),
        "linear_agreement": data.means(found.proba_DNC[-1].argmax(axis=1) == found.linear_N),
        "novelty": found.novelty_S,
        "novel": share_novel(data, found.novelty_N),
    }
    if "_agreement" in obs:
        columns["disagreement"] = [answer.disagreement for answer in found.answers]
    return pd.DataFrame(columns, index=pd.Index(data.names, name="section"))


def of_all_spots(data: SectionData, values: np.ndarray | pd.Categorical) -> np.ndarray | pd.Categorical:
    """Return values in the order of the whole object, missing for spots outside the tissue.

    Missing are no category, NaN, false, code -1 and step 0.
    """
    if isinstance(values, pd.Categorical):
        codes = data.spread(np.asarray(values.codes), missing=UNLABELLED)
        return pd.Categorical.from_codes(codes, values.categories)
    if values.dtype.kind == "f":
        return data.spread(values)
    return data.spread(values, missing=UNLABELLED if values.dtype == np.int16 else 0)


def check_domains_call(
    model: DomainModel,
    *,
    inference: Inference | Mapping[str, Any] | None = None,
    coverage: float | None = None,
    abstain: float = 0.0,
    novelty: float | None = None,
    rng: int = 0,
    key_added: str = "trm_domains",
) -> Inference:
    """Check what a call of :func:`trm_domains` asks of the model; return the options of the prediction."""
    check_key(key_added)
    require_model(model, DomainModel)
    options = as_options(Inference, "inference", inference)
    check_whole("rng", rng, least=0)
    check_calibration(model, coverage, abstain)
    check_novelty(model, novelty)
    return options


def check_novelty(model: DomainModel, novelty: float | None) -> None:
    """Raise unless the level is a share, and the model knows how strange spots are."""
    if novelty is None:
        return
    check_probability("novelty", novelty)
    if model.novelty is None:
        msg = (
            "the model does not know how strange spots are: it had too few training spots, or is of an earlier version"
        )
        raise ValueError(msg)


def check_calibration(model: DomainModel, coverage: float | None, abstain: float) -> None:
    """Raise unless both are shares, and the model is calibrated if label sets are wanted."""
    if coverage is not None:
        check_probability("coverage", coverage)
        if model.conformal_scores is None:
            msg = "coverage needs a calibrated model; run strecur.tl.calibrate(adata, model, label_key) first"
            raise ValueError(msg)
    if not 0 <= check_number("abstain", abstain) < 1:
        msg = f"abstain={abstain} must be at least 0 and below 1"
        raise ValueError(msg)
