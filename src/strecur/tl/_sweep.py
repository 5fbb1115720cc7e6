from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from strecur._arguments import check_several, check_whole
from strecur._settings import settings
from strecur.engine import Inference
from strecur.engine.predict import RESIDUAL_WINDOW
from strecur.nn import HistConfig
from strecur.tl._apply import hardware, make_scorer, read_input, require_two_states
from strecur.tl._checks import check_inference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur.engine import Prediction
    from strecur.models import DomainModel, ExpressionModel
    from strecur.models._network import Backbone


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
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Run a trained model with more and fewer updates of its states, to see which of them it needs.

    The weights stay as they are. A block is ``n_latent`` updates of the latent and one of the answer; what a network
    says after ``n_steps`` outer steps of ``n_deep`` blocks depends on the product of the two alone, so that all
    configurations with one ``n_latent`` come from a single run.

    Parameters
    ----------
    adata
        Spots of one or several sections; with ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the genes (or the
        representation) the model was trained on. Genes are matched by name. The object is not changed.
    model
        Trained with ``architecture="trm"``; it is not changed.
    label_key
        Column of ``obs`` with annotated domains to score a model of domains against. Predicted expression is scored
        against the counts of the model's genes, if the object has them.
    library_key
        Column of ``obs`` that tells sections apart.
    depths
        Numbers of outer steps.
    n_latent
        Numbers of updates of the latent in a block.
    n_deep
        Numbers of blocks in an outer step.
    symmetric
        Average the answers over the views of the lattice that look alike (flips; on square lattices also turns).
    rng
        Seed; it matters for models with random starts.
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
    One row per configuration and section: ``section``, ``n_steps``, ``n_deep``, ``n_latent``, ``n_blocks`` (n_steps ·
    n_deep), ``layer_evaluations`` (layers that a spot passes), ``residual`` (root mean square change of the states in
    the last block) and the scores that can be had: ``ari``, ``accuracy`` and ``macro_f1`` of domains, ``pcc_50``,
    ``pcc_all`` and ``rvd`` of expression.

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
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> table = st.tl.recursion_sweep(
    ...     adata, model, library_key="section", depths=(1, 2), n_latent=(1,), n_deep=(1,), progress=False
    ... )
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
    place = hardware(accelerator, precision)
    given = read_input(adata, model, library_key=library_key, table_key=table_key, **place)
    score = make_scorer(model, given, label_key)
    options = {"symmetric": symmetric, "seed": rng}
    inference = Inference(depth=max(depths) * max(n_deep), **options)
    variants = {n: with_updates(model, n_latent=n, n_deep=1) for n in dict.fromkeys(n_latent)}
    show_bar = settings.progress if progress is None else progress
    rows = []
    runs = list(product(given.parts, variants))
    for part, n in tqdm(runs, disable=not show_bar, desc="sweeping", unit="run"):
        ((run,),) = variants[n].predict([part], inference, **place)
        scores = {k: score(part.name, run.output_DN[k - 1]) for k in {d * t for d, t in product(depths, n_deep)}}
        per_block = (n + 1) * layers_per_call(model.backbone)
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


def layers_per_call(backbone: Backbone) -> int:
    """Layers that one call of a backbone passes, on all levels of its lattice."""
    if isinstance(backbone, HistConfig):
        return sum(backbone.encoder_depths) + sum(backbone.decoder_depths)
    return backbone.n_layers * (2 * getattr(backbone, "n_levels", 1) - 1)


def with_updates(model: DomainModel | ExpressionModel, *, n_latent: int, n_deep: int) -> DomainModel | ExpressionModel:
    """Return a copy of a model whose blocks and outer steps have so many updates; the model stays as it is."""
    network = deepcopy(model.network)
    network.recursion.n_latent, network.recursion.n_deep = n_latent, n_deep
    return replace(model, network=network)


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
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
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
        Trained with ``architecture="trm"``.
    label_key
        Column of ``obs`` with annotated domains to score a model of domains against. Predicted expression is scored
        against the counts of the model's genes, if the object has them.
    library_key
        Column of ``obs`` that tells sections apart.
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
    One row per section, restart (from 0) and outer step (from 1): ``section``, ``restart``, ``step``, ``residual``
    (root mean square change of the states in this step), ``converged`` (the restart, among this one and those before
    it, whose mean residual over the last three steps up to this one is smallest: what a run of so much depth and
    breadth would choose), ``pc1`` and ``pc2`` (the latent, projected onto the first two principal components of all
    steps and restarts of the section) and the scores that can be had: ``ari``, ``accuracy`` and ``macro_f1`` of
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
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> table = st.tl.landscape(adata, model, library_key="section", depth=2, breadth=2, n_spots=16, progress=False)
    >>> len(table)  # sections × restarts × steps
    8
    """
    require_two_states(model)
    check_inference(
        model.architecture,
        model.halting,
        depth=depth,
        breadth=breadth,
        noise=noise,
        halt_threshold=None,
        stop_early=False,
        rng=rng,
    )
    check_whole("n_spots", n_spots)
    if depth < 2:
        msg = f"depth={depth}: a trajectory needs at least two steps"
        raise ValueError(msg)
    place = hardware(accelerator, precision)
    given = read_input(adata, model, library_key=library_key, table_key=table_key, **place)
    score = make_scorer(model, given, label_key)
    inference = Inference(depth=depth, breadth=breadth, symmetric=False, noise=noise, seed=rng, keep_latents=n_spots)
    show_bar = settings.progress if progress is None else progress
    frames = []
    for part in tqdm(given.parts, disable=not show_bar, desc="exploring", unit="section"):
        (restarts,) = model.predict([part], inference, **place)
        frame = trajectories(restarts)
        frame.insert(0, "section", part.name)
        scores = [score(part.name, output_NC) for run in restarts for output_NC in run.output_DN]
        frames.append(pd.concat([frame, pd.DataFrame(scores, index=frame.index)], axis=1))
    return pd.concat(frames, ignore_index=True).astype({"section": "category"})


def trajectories(restarts: Sequence[Prediction]) -> pd.DataFrame:
    """Residual and place in the plane of the latents, one row per restart and step."""
    from sklearn.decomposition import PCA

    residual_BD = np.stack([run.residual_D for run in restarts])
    latents = np.concatenate([run.latents_DNE.reshape(len(run.latents_DNE), -1) for run in restarts])
    plane = PCA(n_components=2, svd_solver="full").fit_transform(latents)
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


def most_converged_so_far(residual_BD: np.ndarray) -> np.ndarray:
    """Restart that selection by residual takes for every depth and breadth; the first of equals."""
    recent = pd.DataFrame(residual_BD.T).rolling(RESIDUAL_WINDOW, min_periods=1).mean().fillna(np.inf).to_numpy().T
    return np.stack([recent[: breadth + 1].argmin(axis=0) for breadth in range(len(recent))])
