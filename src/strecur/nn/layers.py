"""Layers of TRM: post-norm, weight-free RMSNorm, SwiGLU, no biases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.devices import chunk_size

if TYPE_CHECKING:
    from collections.abc import Callable

# Standard deviation of a unit normal truncated at ±2; draws are divided by it.
TRUNCATED_STD = 0.87962566103423978


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal truncated at two sigma whose standard deviation after truncation is ``std``."""
    scale = std / TRUNCATED_STD
    return nn.init.trunc_normal_(tensor, std=scale, a=-2 * scale, b=2 * scale)


def linear(d_in: int, d_out: int, *, bias: bool = False) -> nn.Linear:
    """Linear map with truncated LeCun-normal weights and zero bias."""
    layer = nn.Linear(d_in, d_out, bias=bias)
    truncated_normal_(layer.weight, 1 / math.sqrt(d_in))
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class BranchEnd(nn.Linear):
    """Last linear map of a residual branch."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__(d_in, d_out, bias=False)
        truncated_normal_(self.weight, 1 / math.sqrt(d_in))


@torch.no_grad()
def shrink_branches(network: nn.Module, gain: float) -> None:
    """Multiply the residual branches of a new network by ``gain``; below 1, layers are closer to the identity."""
    for module in network.modules():
        if isinstance(module, BranchEnd):
            module.weight *= gain


def rms_norm(h: Tensor) -> Tensor:
    """Scale every token to unit root mean square, in float32, without weights."""
    return F.rms_norm(h.float(), h.shape[-1:], eps=1e-5).to(h.dtype)


def hidden_width(width: int) -> int:
    """Hidden width of the gated MLP: 4·d·2/3 rounded up to a multiple of 256."""
    return math.ceil(round(4 * width * 2 / 3) / 256) * 256


class SwiGLU(nn.Module):
    """Gated MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = hidden_width(width)
        self.up = linear(width, 2 * hidden)
        self.down = BranchEnd(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        gate, value = self.up(h).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def in_chunks(change: Callable[[Tensor], Tensor], h_TD: Tensor) -> Tensor:
    """Apply a map of single tokens that keeps shape and dtype, in chunks if there is no gradient."""
    size = chunk_size(h_TD)
    if torch.is_grad_enabled() or len(h_TD) <= size:
        return change(h_TD)
    changed_TD = torch.empty_like(h_TD)
    for part, target in zip(h_TD.split(size), changed_TD.split(size), strict=True):
        target.copy_(change(part))
    return changed_TD


def sinusoidal_positions(row_N: Tensor, col_N: Tensor, width: int) -> Tensor:
    """Encode rows in the first and columns in the second half of the channels, with base 10,000 (the spatial TRM)."""
    n_pairs = width // 4
    frequency = 1e4 ** (-torch.arange(n_pairs, device=row_N.device, dtype=torch.float32) / n_pairs)
    angles = [axis_N.float()[:, None] * frequency for axis_N in (row_N, col_N)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)
