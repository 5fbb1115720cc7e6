"""What a run will take is told before it starts, and a run that cannot end well is not started."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from strecur._settings import settings
from strecur.engine import Inference, estimate
from strecur.engine.data import symmetries
from strecur.engine.fit import fast_bf16
from strecur.engine.tiles import cut_section, halo, period
from strecur.models._network import to_json
from strecur.nn import DenseConfig, GenARConfig, PatchConfig, WindowedConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from strecur._anndata import Sections
    from strecur.engine import Section
    from strecur.engine.estimate import Task
    from strecur.models import DomainModel, ExpressionModel
    from strecur.models._network import Architecture, Backbone

logger = logging.getLogger("strecur")

MAX_DENSE_SPOTS = 20_000
"""Attention between all pairs of more spots fits into memory, but would not end."""

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
        Whether calls of the backbone are repeated for the gradient (``nn.recursion.Recursion``).
    """

    tile: int | None = None
    recompute: bool = False


def plan_training(
    architecture: Architecture,
    backbone: Backbone,
    sizes: Mapping[str, int],
    layout: str,
    *,
    n_features: int,
    n_outputs: int,
    n_epochs: int,
    tile: int | None,
    max_spots: int = 0,
    accelerator: str | None,
    precision: str | None,
) -> TrainingPlan:
    """Tell what a training will take, and find how it fits: as it is, with calls repeated, or in tiles besides.

    A visit shows at most ``max_spots`` of a section that is not cut into tiles; 0: all.

    Raises
    ------
    ValueError
        If it does not fit into memory; the message says what would.
    """
    if not applies(architecture, backbone):
        return TrainingPlan()
    device = find_device(accelerator)
    task = estimate.Task(
        architecture,
        backbone,
        n_features,
        n_outputs,
        layout,
        training=True,
        mixed=is_mixed(precision, device),
        on_cpu=device.type == "cpu",
    )
    name = check_dense_size(backbone, sizes)
    seen = dict(sizes)
    if tile is None and max_spots:
        seen = {name: min(n_spots, max_spots) for name, n_spots in sizes.items()}
    free = USABLE * estimate.available_memory(device)
    largest = seen[name]
    if estimate.memory(task, spots_together(task, largest, tile)) > free and estimate.n_calls(architecture) > 1:
        task = replace(task, recompute=True)
        logger.info(
            "section %r is large: calls of the backbone are repeated to save memory, for a third more time", name
        )
    if tile is None and estimate.memory(task, largest) > free:
        tile = largest_tile(task, free)
        if tile is None:
            raise ValueError(too_large(task, name, largest, free))
        logger.info(
            "section %r is too large to train on at once; it is cut into tiles of %d × %d cells", name, *[tile] * 2
        )
    together = spots_together(task, largest, tile)
    if estimate.memory(task, together) > free:
        raise ValueError(too_large(task, f"{name} in tiles of {tile}", together, free))
    overlap = 1 if tile is None else spots_of_tile(task, tile) / (density(layout) * tile**2)
    work = n_epochs * architecture.n_steps * sum(estimate.operations(task, n) for n in seen.values()) * overlap
    report(task, sizes, estimate.memory(task, together), work, device)
    return TrainingPlan(tile, task.recompute)


def check_prediction(
    model: DomainModel | ExpressionModel,
    sizes: Mapping[str, int],
    layout: str,
    *,
    depth: int,
    n_views: int = 1,
    n_runs: int = 1,
    accelerator: str | None,
    precision: str | None,
) -> None:
    """Tell what a prediction will take, with so many views in memory at once and so many runs one after the other.

    Raises
    ------
    ValueError
        If it does not fit into memory; the message says what would.
    """
    if not applies(model.architecture, model.backbone):
        return
    device = find_device(accelerator)
    n_features, n_outputs = model.network.embedding.in_features, model.network.head.linear.out_features
    task = estimate.Task(
        model.architecture,
        model.backbone,
        n_features,
        n_outputs,
        layout,
        training=False,
        mixed=is_mixed(precision, device),
        on_cpu=device.type == "cpu",
    )
    name = check_dense_size(model.backbone, sizes)
    free = USABLE * estimate.available_memory(device)
    needed = estimate.memory(task, sizes[name], n_views)
    if needed > free and n_views > 1 and estimate.memory(task, sizes[name]) < free:
        msg = f"stop_early keeps all views of section {name!r} in memory ({gigabytes(needed)}, {gigabytes(free)} are "
        raise ValueError(msg + "free); leave it out, or pass symmetric=False")
    if needed > free:
        raise ValueError(too_large(task, name, sizes[name], free))
    work = depth * n_runs * sum(estimate.operations(task, n) for n in sizes.values())
    report(task, sizes, needed, work, device)


def largest_shift(backbone: Backbone) -> int:
    """How far training moves sections, in cells, so that windows fall everywhere; 0 for backbones without windows."""
    return 0 if isinstance(backbone, DenseConfig | PatchConfig) else period(backbone)


def plan_inference(
    model: DomainModel | ExpressionModel,
    sections: Sections,
    layout: str,
    *,
    depth: int | None,
    breadth: int,
    noise: float,
    symmetric: bool,
    stop_early: bool,
    halt_threshold: float | None,
    keep_steps: bool,
    rng: int,
    accelerator: str | None,
    precision: str | None,
) -> tuple[Inference, float]:
    """Fill in what was not given, and tell what the prediction will take; return the threshold of halting too.

    Raises
    ------
    ValueError
        If it does not fit into memory; the message says what would.
    """
    recipe_threshold = model.network.recipe.threshold if model.halting else 0.5
    threshold = halt_threshold or model.halt_threshold or recipe_threshold
    inference = Inference(
        depth=depth or model.architecture.n_steps,
        breadth=breadth,
        symmetric=symmetric,
        halt_threshold=threshold if stop_early else None,
        noise=noise,
        seed=rng,
        keep_steps=keep_steps,
    )
    n_views = len(symmetries(layout)) if symmetric else 1
    check_prediction(
        model,
        section_sizes(sections, sections.names),
        layout,
        depth=inference.depth,
        n_views=n_views if stop_early else 1,
        n_runs=n_views * breadth,
        accelerator=accelerator,
        precision=precision,
    )
    return inference, threshold


def section_sizes(sections: Sections, names: Sequence[str]) -> dict[str, int]:
    """Number of spots of each named section."""
    return {name: len(sections.rows(name)) for name in names}


def applies(architecture: Architecture, backbone: Backbone) -> bool:
    """Whether there is a network whose memory grows with the section; GenAR takes spots in groups."""
    return (
        architecture is not None and not isinstance(architecture, GenARConfig) and not isinstance(backbone, PatchConfig)
    )


def check_dense_size(backbone: Backbone, sizes: Mapping[str, int]) -> str:
    """Refuse sections on which attention between all pairs of spots would not end; return the largest section."""
    largest = max(sizes, key=sizes.get)
    if isinstance(backbone, DenseConfig) and sizes[largest] > MAX_DENSE_SPOTS:
        msg = (
            f"section {largest!r} has {sizes[largest]:,} spots; the dense backbone is for at most {MAX_DENSE_SPOTS:,}. "
            "Train with backbone='windowed', whose cost grows linearly."
        )
        raise ValueError(msg)
    return largest


def find_device(accelerator: str | None) -> torch.device:
    """Device that Fabric will choose, as far as memory goes."""
    name = accelerator or settings.accelerator
    if name in ("cuda", "gpu") or (name == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    return torch.device(name if name in ("cpu", "mps") else "cpu")


def is_mixed(precision: str | None, device: torch.device) -> bool:
    """Whether matrix products are in half precision."""
    precision = precision or settings.precision
    return fast_bf16(device) if precision is None else "mixed" in precision


def density(layout: str) -> float:
    """Spots to a cell of a full lattice."""
    return 1 / 1.5**2 if layout == "irregular" else 1.0


def spots_of_tile(task: Task, tile: int) -> int:
    """Spots of a full tile with its halo."""
    return int(density(task.layout) * (tile + 2 * halo(task.recursion, task.backbone)) ** 2)


def spots_together(task: Task, n_spots: int, tile: int | None) -> int:
    """Spots of a section that are in memory at once."""
    return n_spots if tile is None else min(n_spots, spots_of_tile(task, tile))


def largest_tile(task: Task, free: float) -> int | None:
    """Side of the largest tile that fits, None if there is none."""
    if isinstance(task.backbone, DenseConfig):
        return None
    fitting = [side for side in TILE_SIDES if estimate.memory(task, spots_of_tile(task, side)) < free]
    return fitting[0] if fitting else None


def too_large(task: Task, name: str, n_spots: int, free: float) -> str:
    """Say what does not fit and what would."""
    needed = gigabytes(estimate.memory(task, n_spots))
    msg = f"{task.phase} on section {name!r} ({n_spots:,} spots) would take {needed} of memory, {gigabytes(free)} are "
    return f"{msg}free. {' '.join(remedies(task, n_spots, free))}"


def remedies(task: Task, n_spots: int, free: float) -> list[str]:
    """What would fit."""
    found = []
    windowed = replace(task, backbone=WindowedConfig())
    if not isinstance(task.backbone, WindowedConfig):
        smaller = estimate.memory(windowed, n_spots)
        if smaller < min(free, estimate.memory(task, n_spots)):
            found.append(f"backbone='windowed' would take {gigabytes(smaller)}.")
    tile = largest_tile(task, free) if task.training else None
    if tile is not None:
        found.append(f"tile={tile} would fit.")
    fitting = next((n for n in (n_spots // 2**k for k in range(1, 30)) if n and estimate.memory(task, n) < free), None)
    if fitting is not None and tile is None:
        found.append(f"Sections of {fitting:,} spots would fit: cut the section, or use a machine with more memory.")
    return found or ["A smaller network is needed, or a machine with more memory."]


def report(task: Task, sizes: Mapping[str, int], needed: float, work: float, device: torch.device) -> None:
    """Log what a run will take."""
    if not logger.isEnabledFor(logging.INFO):
        return
    duration = estimate.seconds(task, work, device)
    logger.info(
        "%s: %d section(s), the largest of %d spots, %s backbone; about %s of memory, %s on %s",
        *(task.phase, len(sizes), max(sizes.values()), to_json(task.backbone)["name"], gigabytes(needed)),
        *(f"{duration:.0f} s" if duration < 100 else f"{duration / 60:.0f} min", device.type),
    )


def gigabytes(n_bytes: float) -> str:
    """Bytes in words."""
    return f"{n_bytes / 1e9:.1f} GB"


def in_tiles(
    sections: Sequence[Section], architecture: Architecture, backbone: Backbone, tile: int | None
) -> list[Section]:
    """Cut training sections that are wider than a tile; the halo is what a spot hears from in one outer step."""
    if tile is None or not applies(architecture, backbone):
        return list(sections)
    around = halo(architecture, backbone)
    parts = []
    for section in sections:
        extent = section.lattice.cells_N2.amax(dim=0) - section.lattice.cells_N2.amin(dim=0)
        parts += [section] if int(extent.max()) < tile else cut_section(section, tile, around)
    return parts
