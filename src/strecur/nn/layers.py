"""The block of TRM (paper 004): post-norm, weight-free RMSNorm, SwiGLU, no biases."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Standard deviation of a unit normal truncated at ±2: dividing by it makes the truncated draw have the wanted one.
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


def rms_norm(h: Tensor) -> Tensor:
    """Scale every token to unit root mean square, in float32, without weights."""
    return F.rms_norm(h.float(), h.shape[-1:], eps=1e-5).to(h.dtype)


class SwiGLU(nn.Module):
    """Gated MLP; the hidden width is 4·d·2/3 rounded up to a multiple of 256."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = math.ceil(round(4 * width * 2 / 3) / 256) * 256
        self.up = linear(width, 2 * hidden)
        self.down = linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        gate, value = self.up(h).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


def sinusoidal_positions(row_N: Tensor, col_N: Tensor, width: int) -> Tensor:
    """Encode rows in the first and columns in the second half of the channels, base 10,000 (paper 000)."""
    n_pairs = width // 4
    frequency = 1e4 ** (-torch.arange(n_pairs, device=row_N.device, dtype=torch.float32) / n_pairs)
    angles = [axis_N.float()[:, None] * frequency for axis_N in (row_N, col_N)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=-1)
