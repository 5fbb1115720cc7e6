"""What is computed in another way on a GPU than on a CPU; results agree up to rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Tokens or slots that are computed at a time without gradient, where values are wider than the states: few enough for
# the caches of a CPU, and enough to fill a GPU. The fused kernel of a GPU takes at most 65,535 windows at a time.
CHUNK, CHUNK_ON_GPU = 4096, 65_536


def is_on_cpu(values: Tensor) -> bool:
    """Whether to compute as it is fast on a CPU.

    Elsewhere, windows are computed by the fused kernel of PyTorch, in larger chunks, and nothing waits for the device.
    """
    return values.device.type == "cpu"


def chunk_size(values: Tensor) -> int:
    """Tokens or slots that are computed at a time without gradient."""
    return CHUNK if is_on_cpu(values) else CHUNK_ON_GPU


def sum_of_chosen(values_N: Tensor, chosen_N: Tensor) -> Tensor:
    """Sum the chosen values; on a GPU with zeros instead of the others, because to select them is to wait for it."""
    return values_N[chosen_N].sum() if is_on_cpu(values_N) else values_N.masked_fill(~chosen_N, 0).sum()
