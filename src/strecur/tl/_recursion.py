from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from strecur import metrics
from strecur._anndata import read_labels
from strecur._arguments import check_several, check_whole, filled
from strecur._settings import settings
from strecur.engine.answers import RESIDUAL_WINDOW
from strecur.metrics._structure import principal_components
from strecur.models import DomainModel, ExpressionModel
from strecur.nn import TRM
from strecur.options import Inference
from strecur.tl._inputs import ModelInput, read_input, require_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur.engine import Answer, Section

    Score = Callable[[str, np.ndarray], dict[str, float]]


def recursion_sweep(
    adata: AnnData | SpatialData,
    model: DomainModel | ExpressionModel,
    *,
    label_key: str | None = None,
    library_key: str | None = None,
    depths: Sequence[int] = (1, 2, 4, 8),
    n_latent: Sequence[int] = (1, 2, 3, 6),
    n_deep: Sequence[int] = (1, 2, 3),
    symmetric: bool = True,
    rng: int = 0,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Run a trained model with more and fewer updates of its states, to measure how many it needs.

    The weights do not change. A block is ``n_latent`` updates of the latent and one of the answer; the output after
    ``n_steps`` outer steps of ``n_deep`` blocks depends only on their product, so all configurations with one
    ``n_latent`` come from a single run.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the genes (or the
        representation) the model was trained on. Genes are matched by name. The object is not changed.
    model
        Trained with ``architecture="trm"``; it is not changed. Of an ensemble, the first network is run.
    label_key
        Column of ``obs`` with annotated domains to score a model of domains against. Predicted expression is scored
        against the counts of the model's genes, if the object has them.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    depths
        Numbers of outer steps.
    n_latent
        Numbers of updates of the latent in a block.
    n_deep
        Numbers of blocks in an outer step.
    symmetric
        Test-time augmentation: average over the flips (on square lattices also rotations) of the lattice.
    rng
        Seed; it matters for models with random starts.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    One row per configuration and section: ``section``, ``n_steps``, ``n_deep``, ``n_latent``, ``n_blocks`` (n_steps ·
    n_deep), ``layer_evaluations`` (layers that a spot passes), ``residual`` (root mean square change of the states in
    the last block) and, where the truth is known, scores: ``ari``, ``accuracy`` and ``macro_f1`` of domains,
    ``pcc_50``, ``pcc_all`` and ``rvd`` of expression.

    Raises
    ------
    KeyError
        If the lattice, the representation or ``label_key`` is missing.
    ValueError
        If a number is below one, or the model has no two states.

    Notes
    -----
    Spatial Tiny Recursive Model, Figs. 1 and 7; the paper counts layer evaluations as forward passes.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> table = st.tl.recursion_sweep(adata, model, depths=(1, 2), n_latent=(1,), n_deep=(1,))
    >>> table["n_blocks"].to_list()
    [1, 2, 1, 2]
    """
    for name, values in (("depths", depths), ("n_latent", n_latent), ("n_deep", n_deep)):
        check_several(name, values)
        if len(values) == 0:
            msg = f"{name} is empty: at least one number is needed"
            raise ValueError(msg)
    check_whole("rng", rng, least=0)
    require_two_states(model)
    inference = Inference(depth=max(depths) * max(n_deep), symmetric=symmetric)
    given = read_input(adata, model, inference, library_key=library_key, table_key=table_key)
    score = make_scorer(model, given, label_key)
    variants = {n: with_updates(model, n_latent=n, n_deep=1) for n in dict.fromkeys(n_latent)}
    rows = []
    runs = list(product(given.sections, variants))
    for part, n in tqdm(runs, disable=not settings.progress, desc="sweeping", unit="run"):
        run = predict_alone(variants[n], part, given.inference, rng).best
        scores = {k: score(part.name, run.output_DN[k - 1]) for k in {d * t for d, t in product(depths, n_deep)}}
        per_block = (n + 1) * model.backbone.n_layers_per_call
        rows += [
            {
                "section": part.name,
                "n_steps": depth,
                "n_deep": deep,
                "n_latent": n,
                "n_blocks": depth * deep,
                "layer_evaluations": depth * deep * per_block,
                "residual": float(run.residual_D[depth * deep - 1]),
                **scores[depth * deep],
            }
            for depth, deep in product(depths, n_deep)
        ]
    return pd.DataFrame(rows).astype({"section": "category"})


def with_updates(model: DomainModel | ExpressionModel, *, n_latent: int, n_deep: int) -> DomainModel | ExpressionModel:
    """Return a copy of a model with another number of updates per block and blocks per outer step."""
    network = deepcopy(model.network)
    recursion = network.recursion
    assert isinstance(recursion, TRM)
    recursion.n_latent, recursion.n_deep = n_latent, n_deep
    return replace(only_first(model), network=network)


def only_first(model: DomainModel | ExpressionModel) -> DomainModel | ExpressionModel:
    """Return a model with the first network of an ensemble alone, whose steps can be followed."""
    return replace(model, further_networks=[]) if isinstance(model, ExpressionModel) else model


def landscape(
    adata: AnnData | SpatialData,
    model: DomainModel | ExpressionModel,
    *,
    label_key: str | None = None,
    library_key: str | None = None,
    depth: int = 16,
    breadth: int = 8,
    noise: float = 0.0,
    n_spots: int = 256,
    rng: int = 0,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Follow a model's states from random starts, to see whether they all arrive at one answer.

    Each section is run ``breadth`` times for ``depth`` outer steps, without averaging over views of the lattice. Where
    the restarts end in one place, the answer does not depend on the start; where they end apart, the one that changes
    least at the end is the one to take, if its residual tells right from wrong.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the genes (or the
        representation) the model was trained on. Genes are matched by name. The object is not changed.
    model
        Trained with ``architecture="trm"``. Of an ensemble, the first network is run.
    label_key
        Column of ``obs`` with annotated domains to score a model of domains against. Predicted expression is scored
        against the counts of the model's genes, if the object has them.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    depth
        Outer steps of each run.
    breadth
        Independent restarts from random starting points; 1 follows the start the model was trained with.
    noise
        Standard deviation of the noise added to every update of the states.
    n_spots
        Spots, evenly spread over the rows of a section, whose latents make the trajectories.
    rng
        Seed; the same seed gives the same restarts, whatever other sections are there.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    One row per section, restart (from 0) and outer step (from 1): ``section``, ``restart``, ``step``, ``residual``
    (root mean square change of the states in this step), ``converged`` (the restart, among this one and those before
    it, whose mean residual over the last three steps up to this one is smallest: what a run of so much depth and
    breadth would choose), ``pc1`` and ``pc2`` (the latent, projected onto the first two principal components of all
    steps and restarts of the section) and, where the truth is known, scores: ``ari``, ``accuracy`` and ``macro_f1`` of
    domains, ``pcc_50``, ``pcc_all`` and ``rvd`` of expression.

    Raises
    ------
    KeyError
        If the lattice, the representation or ``label_key`` is missing.
    ValueError
        If depth or breadth is too small, or the model has no two states.

    Notes
    -----
    Equilibrium Reasoners, sections 3 and 4. A section's scores after the last step say how far the result depends on
    the start: see :func:`strecur.metrics.path_dependence`.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> table = st.tl.landscape(adata, model, depth=2, breadth=2, n_spots=16)
    >>> len(table)  # sections × restarts × steps
    8
    """
    require_two_states(model)
    check_whole("n_spots", n_spots)
    check_whole("rng", rng, least=0)
    inference = Inference(depth=depth, breadth=breadth, symmetric=False, noise=noise)
    if depth < 2:
        msg = f"depth={depth}: a trajectory needs at least two steps"
        raise ValueError(msg)
    given = read_input(adata, model, inference, library_key=library_key, table_key=table_key)
    score = make_scorer(model, given, label_key)
    frames = []
    for part in tqdm(given.sections, disable=not settings.progress, desc="exploring", unit="section"):
        answer = predict_alone(only_first(model), part, given.inference, rng, keep_latents=n_spots)
        frame = trajectories(answer)
        frame.insert(0, "section", part.name)
        scores = [score(part.name, output_NC) for run in answer.restarts for output_NC in run.output_DN]
        frames.append(pd.concat([frame, pd.DataFrame(scores, index=frame.index)], axis=1))
    return pd.concat(frames, ignore_index=True).astype({"section": "category"})


def predict_alone(
    model: DomainModel | ExpressionModel, section: Section, inference: Inference, rng: int, *, keep_latents: int = 0
) -> Answer:
    """Run a model on one section, keeping the output after every step."""
    with settings.override(progress=False):
        (answer,) = model.predict([section], inference, rng=rng, keep_steps=True, keep_latents=keep_latents)
    return answer


def trajectories(answer: Answer) -> pd.DataFrame:
    """Return residual and position in the plane of the latents, one row per restart and step."""
    residual_BD = np.stack([run.residual_D for run in answer.restarts])
    latents = np.concatenate([flat(filled(run.latents_DNE)) for run in answer.restarts])
    plane, _ = principal_components(latents)
    restart, step = (axis.ravel() for axis in np.indices(residual_BD.shape))
    return pd.DataFrame(
        {
            "restart": restart,
            "step": step + 1,
            "residual": residual_BD.ravel(),
            "converged": most_converged_so_far(residual_BD).ravel(),
            "pc1": plane[:, 0],
            "pc2": plane[:, 1],
        }
    )


def flat(values_DNE: np.ndarray) -> np.ndarray:
    """Join all axes but the first."""
    return values_DNE.reshape(len(values_DNE), -1)


def most_converged_so_far(residual_BD: np.ndarray) -> np.ndarray:
    """Return the restart that selection by residual takes for every depth and breadth; the first of equals."""
    recent = pd.DataFrame(residual_BD.T).rolling(RESIDUAL_WINDOW, min_periods=1).mean().fillna(np.inf).to_numpy().T
    return np.stack([recent[: breadth + 1].argmin(axis=0) for breadth in range(len(recent))])


def require_two_states(model: object) -> None:
    """Raise unless this is a model whose recursion has an answer and a latent."""
    require_model(model, DomainModel, ExpressionModel)
    if not model.has_two_states:  # type: ignore[attr-defined]
        msg = "this needs a recursion with two states; train with architecture='trm'"
        raise ValueError(msg)


def make_scorer(model: DomainModel | ExpressionModel, given: ModelInput, label_key: str | None) -> Score:
    """Return what scores the output of a section, by its name; no scores where the truth is not known."""
    if isinstance(model, ExpressionModel):
        if label_key is not None:
            msg = f"label_key={label_key!r} is for models of domains; predicted expression is scored against the counts"
            raise ValueError(msg)
        return expression_scorer(model, given)
    return (lambda _name, _proba_NC: {}) if label_key is None else domain_scorer(model, given, label_key)


def domain_scorer(model: DomainModel, given: ModelInput, label_key: str) -> Score:
    """Return what scores domains against an annotation."""
    truth_N, labels = read_labels(given.data.table, label_key).to_numpy(), np.array(model.labels, dtype=object)

    def score(name: str, proba_NC: np.ndarray) -> dict[str, float]:
        found = metrics.domain_scores(truth_N[given.data.rows(name)], labels[proba_NC.argmax(axis=1)])
        return {key: found[key] for key in ("ari", "accuracy", "macro_f1")}

    return score


def expression_scorer(model: ExpressionModel, given: ModelInput) -> Score:
    """Return what scores expression against the counts, if there are any."""
    truth_NG = model.measure(given.data.table)
    measured = np.isfinite(truth_NG).any(axis=0)
    if not measured.any():
        return lambda _name, _predicted_NG: {}

    def score(name: str, predicted_NG: np.ndarray) -> dict[str, float]:
        truth, predicted = truth_NG[given.data.rows(name)][:, measured], predicted_NG[:, measured]
        pcc = metrics.pcc_per_gene(truth, predicted)
        scores = {"pcc_50": metrics.pcc_top(pcc, 50), "pcc_all": metrics.pcc_top(pcc)}
        return scores | {"rvd": metrics.rvd(truth, predicted)}

    return score
