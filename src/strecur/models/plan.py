"""Memory and time of a run, estimated before it starts; a run that cannot fit raises."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from strecur._arguments import filled
from strecur._settings import settings
from strecur.engine import cost
from strecur.engine.data import symmetries
from strecur.engine.devices import fast_bf16
from strecur.engine.tiles import cut_section
from strecur.nn import GenARConfig, WindowedConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from strecur.engine import Section
    from strecur.engine.cost import Workload
    from strecur.models import DomainModel, ExpressionModel
    from strecur.models.network import Architecture
    from strecur.nn import BackboneConfig, RecursionConfig
    from strecur.options import Inference

logger = logging.getLogger("strecur")

USABLE = 0.9
"""Share of the free memory that a run may take."""

TILE_SIDES = (512, 384, 256, 192, 128, 96, 64, 48, 32)


class TrainingPlan(NamedTuple):
    """How a training fits into memory.

    Attributes
    ----------
    tile
        Side of the tiles into which sections are cut, in cells; ``None``: whole sections.
    recompute
        Whether to use gradient checkpointing (``nn.recursion.Recursion``).
    """

    tile: int | None = None
    recompute: bool = False


def plan_training(
    architecture: Architecture,
    backbone: BackboneConfig,
    sizes: Mapping[str, int],
    layout: str,
    *,
    n_features: int,
    n_outputs: int,
    n_epochs: int,
    tile: int | None,
    max_spots: int = 0,
) -> TrainingPlan:
    """Log what a training will take, and find how it fits: as it is, with gradient checkpointing, or in tiles as well.

    A visit shows at most ``max_spots`` of a section that is not cut into tiles; 0: all.

    Raises
    ------
    ValueError
        If it does not fit into memory; the message says what would.
    """
    recursion = planned_recursion(architecture, backbone)
    if recursion is None:
        return TrainingPlan()
    device = find_device()
    load = cost.Workload(
        recursion,
        backbone,
        n_features,
        n_outputs,
        layout,
        training=True,
        mixed=is_mixed(device),
        on_cpu=device.type == "cpu",
    )
    name = check_size(backbone, sizes)
    seen = dict(sizes)
    if tile is None and max_spots:
        seen = {name: min(n_spots, max_spots) for name, n_spots in sizes.items()}
    free = USABLE * cost.available_memory(device)
    largest = seen[name]
    if cost.memory(load, spots_together(load, largest, tile)) > free and recursion.n_gradient_calls > 1:
        load = replace(load, recompute=True)
        logger.info("section %r is large: gradient checkpointing saves memory and takes a third more time", name)
    if tile is None and cost.memory(load, largest) > free:
        tile = largest_tile(load, free)
        if tile is None:
            raise ValueError(too_large(load, name, largest, free))
        logger.info(
            "section %r is too large to train on at once; it is cut into tiles of %d × %d cells", name, *[tile] * 2
        )
    together = spots_together(load, largest, tile)
    if cost.memory(load, together) > free:
        raise ValueError(too_large(load, f"{name} in tiles of {tile}", together, free))
    overlap = 1 if tile is None else spots_of_tile(load, tile) / (density(layout) * tile**2)
    work = n_epochs * recursion.n_steps * sum(cost.operations(load, n) for n in seen.values()) * overlap
    report(load, sizes, cost.memory(load, together), work, device)
    return TrainingPlan(tile, load.recompute)


def check_prediction(
    model: DomainModel | ExpressionModel,
    sizes: Mapping[str, int],
    layout: str,
    *,
    depth: int,
    n_views: int = 1,
    n_runs: int = 1,
) -> None:
    """Log what a prediction will take, with ``n_views`` in memory at once and ``n_runs`` one after the other.

    Raises
    ------
    ValueError
        If it does not fit into memory; the message says what would.
    """
    recursion = planned_recursion(model.architecture, model.backbone)
    if recursion is None:
        return
    device = find_device()
    load = cost.Workload(
        recursion,
        model.backbone,
        model.network.embedding.in_features,
        model.network.head.linear.out_features,
        layout,
        training=False,
        mixed=is_mixed(device),
        on_cpu=device.type == "cpu",
    )
    name = check_size(model.backbone, sizes)
    free = USABLE * cost.available_memory(device)
    needed = cost.memory(load, sizes[name], n_views)
    if needed > free and n_views > 1 and cost.memory(load, sizes[name]) < free:
        msg = f"stop_early keeps all views of section {name!r} in memory ({gigabytes(needed)}, {gigabytes(free)} are "
        raise ValueError(msg + "free); leave it out, or pass symmetric=False")
    if needed > free:
        raise ValueError(too_large(load, name, sizes[name], free))
    work = depth * n_runs * sum(cost.operations(load, n) for n in sizes.values())
    report(load, sizes, needed, work, device)


def plan_inference(
    model: DomainModel | ExpressionModel, inference: Inference, sizes: Mapping[str, int], layout: str
) -> Inference:
    """Fill in what is ``None``, check that the model can do the rest, and log what the prediction will take.

    Raises
    ------
    ValueError
        If it does not fit the model or the memory; the message says what would.
    """
    check_inference(model, inference)
    recipe = model.network.recipe
    inference = replace(
        inference,
        depth=inference.depth or model.architecture.n_steps,
        selection=inference.selection or model.selections[0],
        blend=model.blend if inference.blend is None else inference.blend,
        halt_threshold=inference.halt_threshold or model.halt_threshold or (recipe.threshold if recipe else 0.5),
    )
    n_views = len(symmetries(layout)) if inference.symmetric else 1
    check_prediction(
        model,
        sizes,
        layout,
        depth=filled(inference.depth),
        n_views=n_views if inference.stop_early else 1,
        n_runs=n_views * inference.breadth * len(model.networks),
    )
    return inference


def check_inference(model: DomainModel | ExpressionModel, inference: Inference) -> None:
    """Raise if the model cannot be run like this."""
    if inference.selection is not None and inference.selection not in model.selections:
        msg = f"selection={inference.selection!r}; choose one of {list(model.selections)}"
        raise ValueError(msg)
    if inference.stop_early and model.halting is None:
        msg = "the model was trained without halting and cannot stop early; train it with halting=... or give a depth"
        raise ValueError(msg)
    if (inference.breadth > 1 or inference.noise) and not model.has_two_states:
        msg = "breadth > 1 and noise are for recursions with two states; train with architecture='trm'"
        raise ValueError(msg)
    if inference.blend is not None and inference.blend < 1 and model.predicts_counts:
        msg = f"blend={inference.blend}: counts are predicted by the network alone; leave blend out"
        raise ValueError(msg)
    if inference.n_samples and not model.predicts_counts:
        msg = "n_samples is for models of counts; train with architecture='genar'"
        raise ValueError(msg)


def planned_recursion(architecture: Architecture, backbone: BackboneConfig) -> RecursionConfig | None:
    """Return the recursion whose memory grows with the section; GenAR, which takes spots in groups, has none."""
    grows = backbone.sees_other_spots and architecture.name != GenARConfig.name
    return architecture.body if grows else None


def check_size(backbone: BackboneConfig, sizes: Mapping[str, int]) -> str:
    """Raise if a section is so large that the backbone would take too long; return the largest section."""
    largest = max(sizes, key=lambda name: sizes[name])
    if backbone.max_spots is not None and sizes[largest] > backbone.max_spots:
        msg = (
            f"section {largest!r} has {sizes[largest]:,} spots; the {backbone.name} backbone is for at most "
            f"{backbone.max_spots:,}. Train with backbone='windowed', whose cost grows linearly."
        )
        raise ValueError(msg)
    return largest


def find_device() -> torch.device:
    """Return the device that Fabric will choose, as far as memory is concerned; raise if there is none such."""
    name = settings.accelerator
    if name == "cuda" and not torch.cuda.is_available():
        msg = "settings.accelerator is 'cuda', but PyTorch finds no such GPU; set it to 'auto' or 'cpu'"
        raise ValueError(msg)
    if name in ("auto", "cuda", "gpu") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device(name if name in ("cpu", "mps") else "cpu")


def is_mixed(device: torch.device) -> bool:
    """Whether matrix products are in half precision."""
    return fast_bf16(device) if settings.precision is None else "mixed" in settings.precision


def density(layout: str) -> float:
    """Spots per cell of a full lattice."""
    return 1 / 1.5**2 if layout == "irregular" else 1.0


def spots_of_tile(load: Workload, tile: int) -> int:
    """Spots of a full tile with its halo."""
    halo = load.backbone.receptive_field(load.recursion.n_calls)
    return int(density(load.layout) * (tile + 2 * halo) ** 2)


def spots_together(load: Workload, n_spots: int, tile: int | None) -> int:
    """Spots of a section that are in memory at once."""
    return n_spots if tile is None else min(n_spots, spots_of_tile(load, tile))


def largest_tile(load: Workload, free: float) -> int | None:
    """Side of the largest tile that fits; ``None`` if there is none."""
    if load.backbone.partitions() is None:
        return None
    fitting = [side for side in TILE_SIDES if cost.memory(load, spots_of_tile(load, side)) < free]
    return fitting[0] if fitting else None


def too_large(load: Workload, name: str, n_spots: int, free: float) -> str:
    """Say what does not fit and what would."""
    needed = gigabytes(cost.memory(load, n_spots))
    msg = f"{load.phase} on section {name!r} ({n_spots:,} spots) would take {needed} of memory, {gigabytes(free)} are "
    return f"{msg}free. {' '.join(remedies(load, n_spots, free))}"


def remedies(load: Workload, n_spots: int, free: float) -> list[str]:
    """Say what would fit."""
    found = []
    windowed = replace(load, backbone=WindowedConfig())
    if load.backbone.name != windowed.backbone.name:
        smaller = cost.memory(windowed, n_spots)
        if smaller < min(free, cost.memory(load, n_spots)):
            found.append(f"backbone='windowed' would take {gigabytes(smaller)}.")
    tile = largest_tile(load, free) if load.training else None
    if tile is not None:
        found.append(f"tile={tile} would fit.")
    fitting = next((n for n in (n_spots // 2**k for k in range(1, 30)) if n and cost.memory(load, n) < free), None)
    if fitting is not None and tile is None:
        found.append(f"Sections of {fitting:,} spots would fit: cut the section, or use a machine with more memory.")
    return found or ["A smaller network is needed, or a machine with more memory."]


def report(load: Workload, sizes: Mapping[str, int], needed: float, work: float, device: torch.device) -> None:
    """Log what a run will take."""
    if not logger.isEnabledFor(logging.INFO):
        return
    duration = cost.seconds(load, work, device)
    logger.info(
        "%s: %d section(s), the largest of %d spots, %s backbone; about %s of memory, %s on %s",
        *(load.phase, len(sizes), max(sizes.values()), load.backbone.name, gigabytes(needed)),
        *(f"{duration:.0f} s" if duration < 100 else f"{duration / 60:.0f} min", device.type),
    )


def gigabytes(n_bytes: float) -> str:
    """Format a number of bytes."""
    return f"{n_bytes / 1e9:.1f} GB"


def in_tiles(
    sections: Sequence[Section], architecture: Architecture, backbone: BackboneConfig, tile: int | None
) -> list[Section]:
    """Cut training sections that are wider than a tile; the halo is the receptive field of one outer step."""
    recursion = planned_recursion(architecture, backbone)
    if tile is None or recursion is None:
        return list(sections)
    halo = backbone.receptive_field(recursion.n_calls)
    parts = []
    for section in sections:
        extent = section.lattice.cells_N2.amax(dim=0) - section.lattice.cells_N2.amin(dim=0)
        parts += [section] if int(extent.max()) < tile else cut_section(section, tile, halo)
    return parts
