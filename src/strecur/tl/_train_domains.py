from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from strecur import metrics
from strecur._anndata import (
    open_table,
    read_grid,
    read_labels,
    read_sections,
)
from strecur._settings import settings
from strecur.engine import Augmentation, FitConfig, Inference, Section, fit, predict
from strecur.engine.fit import make_fabric
from strecur.models import DomainModel
from strecur.models._features import fit_features
from strecur.models._network import (
    Architecture,
    Backbone,
    build_network,
    resolve_architecture,
    resolve_backbone,
)
from strecur.models._smoothing import choose_smoothing, smooth_restarts
from strecur.models.linear import fit_linear_domains
from strecur.nn import DomainHead
from strecur.tl._checkpoint import open_checkpoint
from strecur.tl._checks import check_halting, check_training
from strecur.tl._hist import EPOCHS, OPTIMISATION, hist_augmentation, hist_network, is_hist
from strecur.tl._labels import encode_labels, keep_trained_labels
from strecur.tl._plan import in_tiles, largest_shift, plan_training, section_sizes
from strecur.tl._sections import choose_validation, make_sections
from strecur.tl._uncertainty import calibrate_on

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")

VISITED_SPOTS = 4096
"""Spots of a section that one visit of the training shows."""

VISITS, MIN_EPOCHS = 100, 20
"""Visits of all sections together, and passes over them at least."""

FEW_SPOTS = 1200
"""With fewer annotated spots to learn from a network starts from the linear model; of two Visium sections it learned
better without."""


def train_domains(
    adata: AnnData | SpatialData,
    label_key: str,
    *,
    library_key: str | None = None,
    architecture: Literal["trm", "universal", "feedforward", "hist"] | Architecture = "trm",
    backbone: Literal["windowed", "dense", "hierarchical", "hist"] | Backbone = "windowed",
    use_rep: str | None = None,
    layer: str | None = None,
    size_factor_key: str | None = None,
    n_genes: int = 3000,
    n_components: int = 50,
    standardise: bool = True,
    neighbours: Sequence[int] = (19, 91, 301),
    halting: Literal["loss_proxy", "weighted_bce", "random_k"] | None = "loss_proxy",
    smoothing: int | None = None,
    tile: int | None = None,
    validation: Literal["auto"] | str | Sequence[str] | None = "auto",
    max_epochs: int | None = None,
    max_minutes: float | None = None,
    checkpoint: str | Path | None = None,
    augmentation: Augmentation | None = None,
    rng: int = 0,
    accelerator: str | None = None,
    devices: int = 1,
    precision: str | None = None,
    progress: bool | None = None,
    table_key: str | None = None,
) -> DomainModel:
    """Learn domains from annotated sections.

    Everything is fitted on the annotated sections alone: genes, principal components, the network and, on the same
    features, a logistic regression that is shown beside every result. The object is not changed.

    Parameters
    ----------
    adata
        Spots of one or several sections; ``obsm["grid"]`` comes from :func:`strecur.pp.to_grid`.
        Sections without any label are left out.
    label_key
        Column of ``obs`` with the annotated domains. Spots without one are context, but nothing is learned from them.
    library_key
        Column of ``obs`` that tells sections apart.
    architecture
        How the network is iterated: a tiny recursive model, a universal transformer, or the backbone once;
        ``"hist"`` for the whole system of HiST: its network (run once), optimisation, 100 epochs and augmentation; or a
        configuration of ``strecur.nn``.
    backbone
        What is iterated: attention within windows (cost linear in spots), over whole sections (the paper), or within
        windows of a hierarchy of lattices (linear too; ``"hist"`` is the large network of HiST); or a configuration
        of ``strecur.nn``.
    use_rep
        Representation in ``obsm`` to use in place of principal components of expression.
    layer
        Layer of raw counts; ``X`` if not given.
    size_factor_key
        Column of ``obs`` with the library size of each spot, to normalise by; not given: log2(counts + 1), as in the
        paper.
    n_genes
        Highly variable genes, chosen across sections.
    n_components
        Principal components.
    standardise
        Centre and scale each section by itself, which removes section effects without seeing labels.
    neighbours
        Append the mean of the representation over this many nearest spots; ``()`` for none.
    halting
        Learn when to stop, from spots held out at every step (``"loss_proxy"``: their cross-entropy;
        ``"weighted_bce"``: the same with every domain counting alike) or from random steps (``"random_k"``); ``None``:
        do not learn it.
    smoothing
        Nearest spots, the spot itself included, over which log-probabilities of network and baseline are averaged; not
        given: 7 where a vote of as many neighbours names the annotated domain of 99 % of the spots, which it does
        where spots are small against domains; otherwise 1.
    tile
        Train on tiles of so many cells of the lattice along a side, each seen with as much of its surroundings as
        reaches it in one outer step, all of them in every pass; not given: a pass shows 4,096 neighbouring spots of
        every section, elsewhere each time. Global tokens see the tile or part in training, the section in prediction.
    validation
        Sections on which the best weights are chosen and the model is calibrated (see :func:`calibrate`); ``"auto"``
        takes one if there are at least four.
    max_epochs
        Passes over the training sections; not given: 100 visits in all, such as 50 passes over two sections, but at
        least 20 passes.
    max_minutes
        Shorten the training to what fits; the result then depends on the speed of the machine.
    checkpoint
        Folder in which the state of the training is kept after epochs, so that the same call goes on from there after a
        crash, to the same model; not given: nothing is written.
    augmentation
        How training sections are varied; see :class:`strecur.engine.Augmentation`.
    rng
        Seed; the same seed gives the same model on the same CPU.
    accelerator
        Device family as in Lightning (``"cpu"``, ``"cuda"``, …); not given: ``settings.accelerator``.
    devices
        Number of devices; more than one needs ``torchrun``.
    precision
        Precision as in Lightning; not given: bf16 where the device is faster with it.
    progress
        Show a progress bar; not given: ``settings.progress``.
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
        If nothing can be written to the folder of the checkpoint.
    ValueError
        If there are fewer than two domains, ``X`` holds no counts where counts are needed, or a section does not fit
        into memory, or the folder holds the checkpoint of another training; the message says what would do.

    Notes
    -----
    The recursion is that of the spatial Tiny Recursive Model (section 3): an optimizer step after every outer step,
    with the state carried on without gradient. With fewer than 1,200 annotated spots the network starts from the
    logistic regression and learns what to correct; HiST never does.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> model.labels
    ['L1', 'L2', 'L3']
    """
    check_training(
        neighbours=neighbours,
        max_epochs=max_epochs,
        max_minutes=max_minutes,
        tile=tile,
        augmentation=augmentation,
        rng=rng,
        n_genes=n_genes,
        n_components=n_components,
        devices=devices,
        smoothing=1 if smoothing is None else smoothing,
    )
    table = open_table(adata, table_key=table_key)
    sections = read_sections(table, library_key)
    grid = read_grid(table, sections)
    labels, target = encode_labels(read_labels(table, label_key), label_key)
    annotated = [name for name in sections.names if (target[sections.rows(name)] >= 0).any()]
    held_out = choose_validation(validation, annotated, rng)
    training = [name for name in annotated if name not in held_out]
    labels, target = keep_trained_labels(labels, target, sections, training)
    as_hist = is_hist(architecture)
    if as_hist:
        architecture, backbone = hist_network(backbone)
        max_epochs, halting = max_epochs or EPOCHS, None
    architecture = resolve_architecture(architecture)
    backbone = resolve_backbone(backbone, grid.layout)
    check_halting(halting, "domains", backbone)
    n_epochs = max_epochs or max(VISITS // len(training), MIN_EPOCHS)
    if augmentation is None:
        augmentation = hist_augmentation(backbone) if as_hist else vary(backbone, tile)
    plan = plan_training(
        architecture,
        backbone,
        section_sizes(sections, annotated),
        grid.layout,
        n_features=n_components * (1 + len(neighbours)),
        n_outputs=len(labels),
        n_epochs=n_epochs,
        tile=tile,
        max_spots=getattr(augmentation, "max_spots", 0),
        accelerator=accelerator,
        precision=precision,
    )

    features = fit_features(
        table,
        sections,
        training,
        use_rep=use_rep,
        layer=layer,
        size_factor_key=size_factor_key,
        n_genes=n_genes,
        n_components=n_components,
        standardise=standardise,
        neighbours=neighbours,
        rng=rng,
    )
    columns = features.transform(table, sections, grid)
    in_training = np.isin(sections.codes, [sections.names.index(name) for name in training])
    baseline = fit_linear_domains(columns[in_training], target[in_training], len(labels))

    is_small = not as_hist and (target[in_training] >= 0).sum() < FEW_SPOTS
    options = {"halting": halting, "linear_start": is_small, "seed": rng}
    network = build_network(features.n_columns, architecture, backbone, DomainHead, len(labels), **options)
    if is_small:
        network.start_from(torch.from_numpy(baseline.weight_FC), torch.from_numpy(baseline.bias_C))
    network.recursion.recompute = plan.recompute
    fabric = make_fabric(accelerator or settings.accelerator, devices, precision or settings.precision)
    judges = make_sections(columns, sections, grid, held_out, target)
    config = FitConfig(architecture.n_steps, max_minutes=max_minutes, max_epochs=n_epochs)
    if as_hist:
        config = replace(config, **OPTIMISATION)
    parts = make_sections(columns, sections, grid, training, target)
    history = fit(
        network,
        in_tiles(parts, architecture, backbone, plan.tile),
        config,
        fabric=fabric,
        augment=augmentation,
        seed=rng,
        validate=validator(judges, architecture.n_steps, fabric) if judges else None,
        progress=settings.progress if progress is None else progress,
        checkpoint=open_checkpoint(
            checkpoint, architecture, backbone, halting=halting, judges=judges, precision=precision
        ),
    )
    model = DomainModel(
        labels=labels,
        features=features,
        architecture=architecture,
        backbone=backbone,
        network=network.cpu(),
        baseline=baseline,
        halting=halting,
        history=pd.DataFrame(history),
        scores=pd.DataFrame(),
        sections=training,
        smoothing=smoothing or choose_smoothing(parts, len(labels)),
    )
    if judges:
        found = predict(network, judges, Inference(architecture.n_steps), fabric=fabric, progress=False)
        found = smooth_restarts(found, judges, model.smoothing)
        proba_NC = np.concatenate([p.output_DN[-1] for (p,) in found])
        judged_N = np.concatenate([s.target_N.numpy() for s in judges])
        model.scores = score_validation(model, judges, proba_NC, judged_N)
        if (judged_N >= 0).any():
            calibrate_on(model, proba_NC, judged_N)
    return model


def vary(backbone: Backbone, tile: int | None) -> Augmentation:
    """Change sections from visit to visit; those that are not cut into tiles are shown in parts."""
    return Augmentation(max_shift=largest_shift(backbone), max_spots=0 if tile else VISITED_SPOTS)


def validator(judges: Sequence[Section], depth: int, fabric: object) -> object:
    """Score a network on the validation sections."""

    def validate(network: object) -> dict[str, float]:
        found = predict(network, judges, Inference(depth, symmetric=False), fabric=fabric, progress=False)
        truth = np.concatenate([s.target_N.numpy() for s in judges])
        predicted = np.concatenate([p.output_DN[-1].argmax(axis=1) for (p,) in found])
        return {"validation_ari": score(truth, predicted)["ari"]}

    return validate


def score(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Domain scores of integer targets, where -1 is unlabelled."""
    labelled = truth >= 0
    return metrics.domain_scores(truth[labelled], predicted[labelled])


def score_validation(
    model: DomainModel, judges: Sequence[Section], proba_NC: np.ndarray, truth_N: np.ndarray
) -> pd.DataFrame:
    """Model and linear baseline on the validation sections, side by side."""
    by_line = np.concatenate(model.predict_linear(judges)).argmax(axis=1)
    return pd.DataFrame({"network": score(truth_N, proba_NC.argmax(axis=1)), "linear": score(truth_N, by_line)})
