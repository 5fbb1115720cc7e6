"""How much memory and time a run will take, told from configurations before anything is computed.

Memory counts the values that a spot needs: in training what is kept for the gradient of one outer step, in prediction
the states and the widest layer. Constants are measured with the allocator of torch, on the networks of this package; on
the processor the system counts more, as benchmarks/memory.py shows.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from strecur.nn import (
    DenseConfig,
    FeedforwardConfig,
    HierarchicalConfig,
    HistConfig,
    TRMConfig,
    UniversalConfig,
    WindowedConfig,
)
from strecur.nn.layers import CHUNK, hidden_width

Recursion = TRMConfig | UniversalConfig | FeedforwardConfig
Backbone = WindowedConfig | DenseConfig | HierarchicalConfig | HistConfig

# Slots of the windows that hold a spot are fewer than all: at the border, and where cells outnumber spots.
SLOTS_PER_SPOT = {"hex": 1.15, "square": 1.15, "irregular": 2.6}
# Share of the memory of single precision that mixed precision takes; norms and states stay as they are.
MIXED = {"training": 0.57, "prediction": 0.65}
# Share of the rate of a large matrix product that networks reach; measured by benchmarks/scaling.py.
EFFICIENCY = {"training": 0.3, "prediction": 0.4}
COPIES_OF_WEIGHTS = 5  # weights, average, two moments, and gradients or the best weights of a validation
FLOAT = 4
# On the processor memory that was given back stays, in pieces that the next layer cannot use.
HEAP = {"training": 1.3, "prediction": 1.0}
AT_FIRST_USE = 30e6  # bytes that libraries take on the processor when they begin to compute


@dataclass(frozen=True)
class Task:
    """What a network is to do.

    Attributes
    ----------
    recursion, backbone
        Configuration of the network.
    n_features, n_outputs
        Columns of its input and output.
    layout
        Layout of the lattice.
    training
        Whether gradients are wanted.
    mixed
        Whether matrix products are in half precision.
    on_cpu
        Whether to count what the system does on the processor, beyond the values themselves.
    recompute
        Whether calls of the backbone are repeated for the gradient, so that only one at a time is kept.
    """

    recursion: Recursion
    backbone: Backbone
    n_features: int
    n_outputs: int
    layout: str
    training: bool
    mixed: bool = False
    on_cpu: bool = False
    recompute: bool = False

    @property
    def phase(self) -> str:
        """Key of the constants."""
        return "training" if self.training else "prediction"


def memory(task: Task, n_spots: int, n_views: int = 1) -> float:
    """Bytes at the peak of a step on ``n_spots`` spots together, in as many views."""
    found = bytes_of_values(task, n_spots, n_views)
    return HEAP[task.phase] * found + AT_FIRST_USE if task.on_cpu else found


def bytes_of_values(task: Task, n_spots: int, n_views: int) -> float:
    """Bytes that torch holds at the peak."""
    width, n_outputs, shape = task.backbone.width, task.n_outputs, (task.backbone, task.layout)
    if task.training:
        at_once = 1 if task.recompute else n_calls(task.recursion)
        kept = at_once * layer_passes(task.backbone) * values_kept(*shape)
        if task.recompute:
            kept += 3 * width * n_calls(task.recursion)  # where the calls begin
        values = n_spots * (kept * factor(task) + 4 * width + 3 * task.n_features + 4 * n_outputs)
        return FLOAT * (COPIES_OF_WEIGHTS * n_weights(task) + values)
    in_layers = factor(task) * (13 * width * n_spots + values_passing(*shape) * min(n_spots, CHUNK))
    in_head = n_spots * (5 * width + 3 * n_outputs)
    # the states of further views wait beside those of the one that advances
    always = n_spots * (2 * task.n_features + (n_views - 1) * 2 * width)
    return FLOAT * (n_weights(task) + always + max(in_layers, in_head))


def factor(task: Task) -> float:
    """Share of the memory of single precision."""
    return MIXED[task.phase] if task.mixed else 1.0


def n_calls(recursion: Recursion) -> int:
    """Calls of the backbone through which the gradient of an outer step goes."""
    if isinstance(recursion, TRMConfig):
        return recursion.n_latent + 1
    return recursion.n_repeats if isinstance(recursion, UniversalConfig) else 1


def n_calls_in_all(recursion: Recursion) -> int:
    """Calls of the backbone in an outer step."""
    return n_calls(recursion) * getattr(recursion, "n_deep", 1)


def layer_passes(backbone: Backbone) -> float:
    """Layers a spot goes through in one call; those on coarser lattices count by their share of tokens."""
    if isinstance(backbone, HierarchicalConfig):
        both_ways = sum(2 / 4**level for level in range(backbone.n_levels - 1))
        return backbone.n_layers * (both_ways + 1 / 4 ** (backbone.n_levels - 1))
    if isinstance(backbone, HistConfig):
        down = sum(depth / 4**level for level, depth in enumerate(backbone.encoder_depths))
        return down + sum(depth / 4**level for level, depth in enumerate(reversed(backbone.decoder_depths)))
    return backbone.n_layers


def values_kept(backbone: Backbone, layout: str) -> float:
    """Values per token that one layer keeps for its gradient."""
    width, hidden = backbone.width, hidden_width(backbone.width)
    if isinstance(backbone, DenseConfig):
        return 4 * hidden + 9 * width
    slots, in_window = SLOTS_PER_SPOT[layout], backbone.window**2
    if isinstance(backbone, WindowedConfig):
        seen = in_window + backbone.n_global
        return 4 * hidden + 8 * width + slots * (3 * width * seen / in_window + backbone.n_heads * seen)
    # regular and shifted windows
    windows = 2 * slots * (5 * width + 2 * backbone.n_heads * in_window)
    if isinstance(backbone, HierarchicalConfig):
        return 4 * hidden + 8 * width + windows
    return 20 * width + windows


def values_passing(backbone: Backbone, layout: str) -> float:
    """Values per token that are there for a moment in the widest part of a layer."""
    mlp = 3 * (4 * backbone.width if isinstance(backbone, HistConfig) else hidden_width(backbone.width))
    if isinstance(backbone, DenseConfig):
        return mlp
    seen = backbone.window**2 + backbone.n_global
    return max(mlp, SLOTS_PER_SPOT[layout] * (3 * backbone.width + 3 * backbone.n_heads * seen))


def weights_per_layer(backbone: Backbone) -> int:
    """Weights that every token of a layer is multiplied with."""
    width = backbone.width
    if isinstance(backbone, HistConfig):
        return 15 * width**2
    return 4 * width**2 + 3 * width * hidden_width(width)


def n_weights(task: Task) -> int:
    """Weights of the network, about."""
    backbone = task.backbone
    if isinstance(backbone, HierarchicalConfig):
        n_layers = 2 * backbone.n_layers + 2  # and the maps between levels
    elif isinstance(backbone, HistConfig):
        n_layers = sum(backbone.encoder_depths) + sum(backbone.decoder_depths) + 2
    else:
        n_layers = backbone.n_layers
    return n_layers * weights_per_layer(backbone) + backbone.width * (task.n_features + task.n_outputs)


def operations(task: Task, n_spots: int) -> float:
    """Floating-point operations of one outer step on a section, forwards and, in training, backwards."""
    backbone = task.backbone
    if isinstance(backbone, DenseConfig):
        seen = n_spots
    else:
        slots = SLOTS_PER_SPOT[task.layout] * (1 if isinstance(backbone, WindowedConfig) else 2)
        seen = slots * backbone.window**2
    per_pass = 2 * weights_per_layer(backbone) + 4 * seen * backbone.width
    passes = n_calls_in_all(task.recursion)
    if task.training:
        passes += (3 if task.recompute else 2) * n_calls(task.recursion)
    ends = 2 * backbone.width * (task.n_features + task.n_outputs) * (3 if task.training else 1)
    return n_spots * (passes * layer_passes(backbone) * per_pass + ends)


def seconds(task: Task, operations: float, device: torch.device) -> float:
    """Time that so many operations take on this machine, about."""
    return operations / (EFFICIENCY[task.phase] * matrix_rate(device, mixed=task.mixed))


def matrix_rate(device: torch.device, *, mixed: bool, size: int = 1024) -> float:
    """Operations per second of a matrix product."""
    a = torch.ones(size, size, dtype=torch.bfloat16 if mixed else torch.float32, device=device)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def available_memory(device: torch.device) -> float:
    """Bytes that are free on a device; infinite where that cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return math.inf
    table = Path("/proc/meminfo")
    if table.exists():
        # unlike the free pages, this counts what caches would give back
        found = [line.split()[1] for line in table.read_text().splitlines() if line.startswith("MemAvailable")]
        if found:
            return 1024 * int(found[0])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return math.inf
