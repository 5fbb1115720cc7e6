"""Memory and time of a run, estimated from configurations before it starts.

Memory counts the values per spot: in training those kept for the gradient of one outer step, in prediction the states
and the widest layer. Constants are measured with the allocator of PyTorch on the networks of this package; the process
takes more on a CPU, see benchmarks/memory.py.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from strecur.nn.devices import CHUNK, CHUNK_ON_GPU

if TYPE_CHECKING:
    from strecur.nn import BackboneConfig, RecursionConfig

# Share of the memory of single precision that mixed precision takes; norms and states stay in float32.
MIXED = {"training": 0.57, "prediction": 0.65}
# Share of the speed of a large matrix product that networks reach; measured by benchmarks/scaling.py.
EFFICIENCY = {"training": 0.3, "prediction": 0.4}
COPIES_OF_WEIGHTS = 5  # weights, average, two moments, and gradients or the best weights of a validation
FLOAT = 4
# On a CPU, freed memory stays allocated in pieces that the next layer cannot use.
HEAP = {"training": 1.3, "prediction": 1.0}
AT_FIRST_USE = 30e6  # bytes that libraries allocate on a CPU at the first computation


@dataclass(frozen=True)
class Workload:
    """What a network is to compute.

    Attributes
    ----------
    recursion, backbone
        Configuration of the network.
    n_features, n_outputs
        Columns of its input and output.
    layout
        Layout of the lattice.
    training
        Whether gradients are computed.
    mixed
        Whether matrix products are in half precision.
    on_cpu
        Whether to count what the process takes on a CPU beyond the values themselves.
    recompute
        Whether gradient checkpointing is used, which keeps the values of one call of the backbone at a time.
    """

    recursion: RecursionConfig
    backbone: BackboneConfig
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

    @property
    def n_weights(self) -> int:
        """Approximate number of weights of the network."""
        return self.backbone.n_weights + self.backbone.width * (self.n_features + self.n_outputs)


def memory(load: Workload, n_spots: int, n_views: int = 1) -> float:
    """Peak memory in bytes of a step on ``n_spots`` spots, with the states of ``n_views`` views."""
    found = bytes_of_training(load, n_spots) if load.training else bytes_of_prediction(load, n_spots, n_views)
    return HEAP[load.phase] * found + AT_FIRST_USE if load.on_cpu else found


def bytes_of_training(load: Workload, n_spots: int) -> float:
    """Bytes that PyTorch holds at the peak of a training step."""
    recursion, backbone = load.recursion, load.backbone
    at_once = 1 if load.recompute else recursion.n_gradient_calls
    kept = at_once * backbone.layer_passes * backbone.values_kept(load.layout)
    if load.recompute:
        kept += 3 * backbone.width * recursion.n_gradient_calls  # inputs of the calls
    values = n_spots * (kept * mixed_share(load) + 4 * backbone.width + 3 * load.n_features + 4 * load.n_outputs)
    return FLOAT * (COPIES_OF_WEIGHTS * load.n_weights + values)


def bytes_of_prediction(load: Workload, n_spots: int, n_views: int) -> float:
    """Bytes that PyTorch holds at the peak of a step of prediction."""
    width, passing = load.backbone.width, load.backbone.values_passing(load.layout)
    in_layers = mixed_share(load) * (
        13 * width * n_spots + passing * min(n_spots, CHUNK if load.on_cpu else CHUNK_ON_GPU)
    )
    in_head = n_spots * (5 * width + 3 * load.n_outputs)
    # the states of the other views are kept during the step of one view
    always = n_spots * (2 * load.n_features + (n_views - 1) * 2 * width)
    return FLOAT * (load.n_weights + always + max(in_layers, in_head))


def mixed_share(load: Workload) -> float:
    """Share of the memory of single precision."""
    return MIXED[load.phase] if load.mixed else 1.0


def operations(load: Workload, n_spots: int) -> float:
    """Floating-point operations of one outer step on a section, including the backward pass in training."""
    recursion, backbone = load.recursion, load.backbone
    seen = backbone.tokens_seen(load.layout, n_spots)
    per_pass = 2 * backbone.weights_per_layer + 4 * seen * backbone.width
    passes = recursion.n_calls
    if load.training:
        passes += (3 if load.recompute else 2) * recursion.n_gradient_calls
    ends = 2 * backbone.width * (load.n_features + load.n_outputs) * (3 if load.training else 1)
    return n_spots * (passes * backbone.layer_passes * per_pass + ends)


def seconds(load: Workload, operations: float, device: torch.device) -> float:
    """Approximate time of a number of operations on this machine."""
    return operations / (EFFICIENCY[load.phase] * matrix_rate(device, mixed=load.mixed))


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
    """Free memory of a device in bytes; infinite if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return math.inf
    table = Path("/proc/meminfo")
    if table.exists():
        # unlike free pages, this includes reclaimable caches
        found = [line.split()[1] for line in table.read_text().splitlines() if line.startswith("MemAvailable")]
        if found:
            return 1024 * int(found[0])
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return math.inf
