from __future__ import annotations

import logging
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
import torch

from strecur._anndata import open_table
from strecur._arguments import as_names
from strecur._settings import settings
from strecur.engine import Augmentation, FitConfig, fit
from strecur.engine.fit import make_fabric
from strecur.models import ExpressionModel
from strecur.models._features import fit_image_features
from strecur.models._intervals import fit_errors
from strecur.models._network import Architecture, Backbone, build_network, resolve_architecture, resolve_backbone
from strecur.models._targets import counted_spots, fit_target, read_counts
from strecur.models.linear import fit_linear_expression
from strecur.nn import ExpressionHead, GenARConfig, TRMConfig, UniversalConfig
from strecur.tl import _train_counts as counts
from strecur.tl._checkpoint import open_checkpoint
from strecur.tl._checks import check_halting, check_training
from strecur.tl._embedded import Embedded, input_of, read_embedded
from strecur.tl._genes import choose_genes, only_counts
from strecur.tl._hist import EPOCHS, OPTIMISATION, hist_augmentation, hist_network, is_hist
from strecur.tl._plan import in_tiles, largest_shift, plan_training, section_sizes
from strecur.tl._rate_expression import rate_genes, rate_network, validator
from strecur.tl._sections import choose_validation, make_sections

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")

MIN_SPOTS = 2
WEIGHT_DECAY, NOISE, DROP = 0.1, 0.3, 0.3

# At the rate of the others, gradients through eight calls leave the universal transformer near the mean.
RATE, RATE_UNIVERSAL = 1e-3, 5e-4

# TRM reads hidden spots from their surroundings; the others only see less.
HIDE = 0.3


def train_expression(
    adata: AnnData | SpatialData,
    *,
    library_key: str | None = None,
    use_rep: str = "X_patch",
    genes: int | Sequence[str] = 300,
    extra_genes: Sequence[str] = (),
    target: Literal["log2", "log2_normalised"] = "log2",
    layer: str | None = None,
    size_factor_key: str | None = None,
    architecture: Literal["trm", "universal", "feedforward", "genar", "hist", "linear"] | Architecture = "trm",
    backbone: Literal["windowed", "dense"] | Backbone = "windowed",
    n_components: int = 100,
    standardise: bool = True,
    neighbours: Sequence[int] = (9, 25, 81),
    halting: Literal["pcc", "rvd", "mse", "gene_pcc", "random_k"] | None = None,
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
) -> ExpressionModel:
    """Learn to predict expression from histology, on sections where both were measured.

    Everything is fitted on the training sections alone: genes, principal components of the embedding, the network and,
    on the same features, a ridge regression that is shown beside every result. The object is not changed.

    Parameters
    ----------
    adata
        Spots of one or several sections. They need raw counts, ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and
        an embedding of their image patches from :func:`strecur.pp.embed_patches`. Spots whose embedding is NaN are
        left out, and so are sections without any count.
    library_key
        Column of ``obs`` that tells sections apart.
    use_rep
        Embedding in ``obsm``. If ``obsm[f"{use_rep}_d4"]`` holds it for all turns and mirrorings of the patches
        (``views=8``), sections are turned and mirrored with their patches, in training and in prediction.
    genes
        Genes to predict: names, or how many to choose by
        :func:`~strecur.pp.high_mean_high_variance_genes` on the training sections.
    extra_genes
        Names that are added to those chosen.
    target
        Scale to predict: ``"log2"`` is log2(counts + 1), as in the paper, in which the depth of a spot dominates;
        ``"log2_normalised"`` the same after dividing the counts by the library size of their spot, times the median
        library size of the training spots. ``architecture="genar"`` predicts counts in any case.
    layer
        Layer of raw counts; ``X`` if not given.
    size_factor_key
        Column of ``obs`` with the library size of each spot, for ``"log2_normalised"``; not given: the sum over all
        genes of the object.
    architecture
        How the network is iterated: a tiny recursive model, a universal transformer, or the backbone once;
        ``"genar"`` generates raw counts, gene group by gene group from coarse to fine, out of the features of a spot
        (:class:`strecur.nn.GenARConfig` also lets it see the section); ``"hist"`` for the whole system of HiST: its
        network (run once), optimisation, 100 epochs and augmentation; ``"linear"`` for the ridge regression alone; or a
        configuration of ``strecur.nn``.
    backbone
        What is iterated: attention within windows (cost linear in spots) or over whole sections (the paper);
        or a configuration of ``strecur.nn``. Not for GenAR on single spots.
    n_components
        Principal components of the embedding.
    standardise
        Centre and scale each section by itself, which removes section effects such as staining.
    neighbours
        Append the mean of the components over this many nearest spots; ``()`` for none.
    halting
        Recipe by which the network learns when to stop: by the correlation, the relative variance distance or the
        squared error of spots held out at every step, the correlation gene by gene, or at random steps.
    tile
        Train on tiles of so many cells of the lattice along a side, each seen with as much of its surroundings as
        reaches it in one outer step; not given: whole sections, or tiles if one exceeds the free memory even with calls
        of the backbone repeated. Global tokens see the tile in training and the section in prediction.
    validation
        Sections on which the best weights are chosen; ``"auto"`` takes one if there are at least four.
    max_epochs
        Passes over the training sections; not given: 100, 200 for a single section, fewer for more than four. GenAR
        learns from some spots of a section in each, and makes 120 visits in all.
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
    The fitted :class:`~strecur.models.ExpressionModel`.

    Raises
    ------
    KeyError
        If a key or a gene does not exist; the message lists those that do.
    OSError
        If nothing can be written to the folder of the checkpoint.
    ValueError
        If there are no counts, fewer than two spots with counts and embedding to train on, or a section does not fit
        into memory, or the folder holds the checkpoint of another training; the message says what would do.

    Notes
    -----
    The recursion is that of the spatial Tiny Recursive Model (section 3): an optimizer step after every outer step,
    with the state carried on without gradient. Spots without any count teach nothing, but are predicted.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, library_key="section", mpp=1.0, progress=False)
    >>> model = st.tl.train_expression(adata, library_key="section", genes=5, max_epochs=1, progress=False)
    >>> len(model.genes)
    5
    """
    check_training(
        neighbours=neighbours,
        max_epochs=max_epochs,
        max_minutes=max_minutes,
        tile=tile,
        augmentation=augmentation,
        rng=rng,
        n_components=n_components,
        devices=devices,
    )
    is_linear = isinstance(architecture, str) and architecture == "linear"
    as_hist = is_hist(architecture)
    if as_hist:
        architecture, backbone = hist_network(backbone)
        max_epochs = max_epochs or EPOCHS
    architecture = None if is_linear else resolve_architecture(architecture)
    embedded = read_embedded(read_measured(adata, table_key), use_rep, library_key)
    split = split_sections(embedded, layer, validation, rng)
    part, sections, grid = embedded.table, embedded.sections, embedded.grid
    is_counts = isinstance(architecture, GenARConfig)
    if is_counts:
        options = {"target": target, "size_factor_key": size_factor_key, "halting": halting}
        backbone = counts.check_counts(architecture, backbone, **options)
    backbone = None if is_linear else resolve_backbone(backbone, grid.layout)
    check_halting(halting, "expression", backbone)
    n_epochs = count_epochs(max_epochs, len(split.training))
    if not is_linear:
        plan = plan_training(
            architecture,
            backbone,
            section_sizes(sections, sections.names),
            grid.layout,
            n_features=n_components * (1 + len(neighbours)),
            n_outputs=genes if isinstance(genes, Integral) else len(as_names("genes", genes)),
            n_epochs=n_epochs,
            tile=tile,
            accelerator=accelerator,
            precision=precision,
        )

    own = only_counts(part, split.in_training, layer)
    panel = choose_genes(own, genes, extra_genes, library_key=library_key, layer=layer)
    if is_counts:
        scale = counts.count_target(panel, layer)
    else:
        scale = fit_target(own, panel, target, size_factor_key=size_factor_key, layer=layer)
    target_NG = np.where(split.has_counts[:, None], scale.measure(part), np.nan)
    features = fit_image_features(
        part,
        sections,
        split.training,
        use_rep=use_rep,
        n_components=n_components,
        standardise=standardise,
        neighbours=neighbours,
        rng=rng,
    )
    columns, views, averaged, _ = input_of(features, embedded)
    taught = np.flatnonzero(split.in_training & split.has_counts)
    groups_N = held_out_groups(embedded, split.training)
    log_NG = scale.log2(target_NG[taught])
    baseline, held_out_NG = fit_linear_expression(averaged[taught], log_NG, groups_N[taught])
    if is_counts:
        architecture, order_G = counts.fit_counts(architecture, target_NG[taught], panel, rng)
    model = ExpressionModel(
        target=scale,
        features=features,
        architecture=architecture,
        backbone=backbone,
        network=None,
        baseline=baseline,
        halting=None if is_linear else halting,
        reliability=rate_genes(scale.genes, log_NG, held_out_NG, sections.codes[taught]),
        history=pd.DataFrame(),
        scores=pd.DataFrame(),
        sections=split.training,
        errors=fit_errors(held_out_NG, log_NG) if is_linear else None,
    )
    if is_linear:
        return model

    model.network = build_network(
        features.n_columns, architecture, backbone, ExpressionHead, len(panel), halting=halting, seed=rng
    )
    model.network.recursion.recompute = plan.recompute
    schedule = {
        "max_epochs": n_epochs,
        "learning_rate": RATE_UNIVERSAL if isinstance(architecture, UniversalConfig) else RATE,
        "weight_decay": WEIGHT_DECAY,
    }
    augment = default_augmentation(architecture, backbone)
    if as_hist:
        schedule, augment = schedule | OPTIMISATION, hist_augmentation(backbone)
    if is_counts:
        model.network.head.fit(torch.from_numpy(order_G), torch.from_numpy(target_NG[taught]))
        schedule = counts.schedule(len(split.training), max_epochs)
    else:
        model.network.head.set_scale(torch.from_numpy(log_NG))
    fabric = make_fabric(accelerator or settings.accelerator, devices, precision or settings.precision)
    judges = make_sections(columns, sections, grid, split.held_out, target_NG, views)
    history = fit(
        model.network,
        in_tiles(
            make_sections(columns, sections, grid, split.training, target_NG, views), architecture, backbone, plan.tile
        ),
        FitConfig(architecture.n_steps, max_minutes=max_minutes, **schedule),
        fabric=fabric,
        augment=augmentation or augment,
        seed=rng,
        validate=validator(judges, architecture.n_steps, fabric, scale) if judges else None,
        progress=settings.progress if progress is None else progress,
        checkpoint=open_checkpoint(
            checkpoint, architecture, backbone, halting=halting, judges=judges, precision=precision
        ),
    )
    model.network.cpu()
    model.history = pd.DataFrame(history)
    if judges:
        linear = [baseline.predict(averaged[sections.rows(name)]) for name in split.held_out]
        rate_network(model, judges, linear, fabric)
    return model


def count_epochs(max_epochs: int | None, n_sections: int) -> int:
    """About 200 to 400 visits by default, however many sections there are."""
    if max_epochs is not None:
        return max_epochs
    if n_sections == 1:
        return 200
    return 100 if n_sections <= 4 else max(400 // n_sections, 20)


def default_augmentation(architecture: Architecture, backbone: Backbone) -> Augmentation:
    """Vary sections as suits the network."""
    hide = HIDE if isinstance(architecture, TRMConfig) else 0.0
    return Augmentation(noise=NOISE, drop=DROP, hide=hide, max_shift=largest_shift(backbone))


def read_measured(adata: AnnData | SpatialData, table_key: str | None) -> AnnData:
    """Open the object, which must have genes."""
    table = open_table(adata, table_key=table_key)
    if table.n_vars == 0:
        msg = "the object has no genes; training needs sections with raw counts beside their images"
        raise ValueError(msg)
    return table


@dataclass(frozen=True)
class Split:
    """Sections to train on and to choose the weights on; which spots are in the former, and which have counts."""

    training: list[str]
    held_out: list[str]
    in_training: np.ndarray
    has_counts: np.ndarray


def split_sections(embedded: Embedded, layer: str | None, validation: str | Sequence[str] | None, rng: int) -> Split:
    """Leave out sections without counts, and give some of the others to validation."""
    sections = embedded.sections
    has_counts = counted_spots(read_counts(embedded.table, layer))
    measured = [name for name in sections.names if has_counts[sections.rows(name)].any()]
    if len(measured) < len(sections.names):
        logger.warning("sections %s have no counts and are left out", sorted(set(sections.names) - set(measured)))
    held_out = choose_validation(validation, measured, rng)
    training = [name for name in measured if name not in held_out]
    in_training = np.isin(sections.codes, [sections.names.index(name) for name in training])
    n_taught = int((in_training & has_counts).sum())
    if n_taught < MIN_SPOTS:
        msg = f"sections {training} hold {n_taught} spots with counts and embedding; at least {MIN_SPOTS} are needed"
        raise ValueError(msg)
    return Split(training, held_out, in_training, has_counts)


def held_out_groups(embedded: Embedded, training: Sequence[str]) -> np.ndarray:
    """Section of every spot, or its quarter of the lattice if there is one training section alone."""
    if len(training) > 1:
        return embedded.sections.codes
    rows, grid = embedded.sections.rows(training[0]), embedded.grid
    lower, right = (axis > np.median(axis[rows]) for axis in (grid.row, grid.col))
    return 2 * lower + right
