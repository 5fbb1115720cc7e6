"""Parts of GenAR (paper 002): blocks conditioned on a spot, and the embedding of the spot.

Shape suffixes beside those of the package: ``P`` gene groups of one scale, ``L`` positions of a sequence; ``C`` is the
width of the condition.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.genar_targets import log2_of_tokens
from strecur.nn.layers import sinusoidal_positions, truncated_normal_

if TYPE_CHECKING:
    from collections.abc import Iterator

# Standard deviation of weights at the paper's width; narrower networks start larger, so that signals keep their size.
PAPER_STD, PAPER_WIDTH = 0.02, 768
LARGEST_TEMPERATURE = 100.0


def initialise(network: nn.Module, width: int) -> None:
    """Draw all weights of a network of some width from one truncated normal; biases are zero."""
    std = PAPER_STD * math.sqrt(PAPER_WIDTH / width)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            truncated_normal_(module.weight, std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@contextmanager
def random_state_from(generator: torch.Generator) -> Iterator[None]:
    """Let dropout depend on ``generator`` alone, and leave the global random state as it was."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class Attention(nn.Module):
    """Causal attention between unit queries and keys, times a learned temperature per head."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.log_temperature_H = nn.Parameter(torch.full((n_heads,), math.log(4)))
        self.out = nn.Linear(width, width)

    def forward(self, h_NLD: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv_3NHLE = (self.qkv(h_NLD) + bias).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv_3NHLE
        temperature_H = self.log_temperature_H.clamp(max=math.log(LARGEST_TEMPERATURE)).exp()
        q = F.normalize(q, dim=-1) * temperature_H[:, None, None]
        attended = F.scaled_dot_product_attention(
            q.to(v.dtype), F.normalize(k, dim=-1).to(v.dtype), v, is_causal=True, scale=1.0
        )
        return self.out(attended.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and MLP, each normalised, shifted, scaled and gated by the condition.

    The gates start near zero but not at it, as in the released code: every weight is drawn from the same normal.
    """

    def __init__(self, width: int, n_heads: int, hidden: int, condition_width: int, drop_path: float) -> None:
        super().__init__()
        self.modulation = nn.Linear(condition_width, 6 * width)
        self.attention = Attention(width, n_heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.drop_path = drop_path

    def forward(self, h_NLD: Tensor, condition_NC: Tensor) -> Tensor:
        modulation = self.modulation(F.silu(condition_NC))[:, None].chunk(6, dim=-1)
        for layer, (scale, shift, gate) in ((self.attention, modulation[:3]), (self.mlp, modulation[3:])):
            h_NLD = h_NLD + self.skip_some(gate * layer(modulate(h_NLD, scale, shift)))
        return h_NLD

    def skip_some(self, update_NLD: Tensor) -> Tensor:
        """In training, leave the update out for some spots and enlarge the others."""
        if not self.training or self.drop_path == 0:
            return update_NLD
        keep_N11 = torch.rand(len(update_NLD), 1, 1, device=update_NLD.device) >= self.drop_path
        return update_NLD * keep_N11 / (1 - self.drop_path)


def modulate(h_NLD: Tensor, scale_N1D: Tensor, shift_N1D: Tensor) -> Tensor:
    """Normalise without weights, then scale and shift as the condition says."""
    return F.layer_norm(h_NLD, h_NLD.shape[-1:], eps=1e-6) * (1 + scale_N1D) + shift_N1D


class FiLM(nn.Module):
    """Scale and shift by the identity of a gene group; starts as the identity map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 2 * width))

    def start_as_identity(self) -> None:
        nn.init.zeros_(self.generator[-1].weight)
        nn.init.zeros_(self.generator[-1].bias)

    def forward(self, h_NPD: Tensor, identity_PD: Tensor) -> Tensor:
        scale_PD, shift_PD = self.generator(identity_PD).chunk(2, dim=-1)
        return h_NPD * (1 + scale_PD) + shift_PD


class TiltedShares(nn.Module):
    """Logits of a linear model of counts: their shares in training, tilted by the condition.

    The share of a count is multiplied by exp(tilt · log2(count + 1)), which to first order moves the mean of
    log2(count + 1) by its variance times the tilt.

    Parameters
    ----------
    condition_width
        Width of the condition.
    n_groups
        Number of gene groups.
    vocabulary
        Number of count tokens.
    """

    def __init__(self, condition_width: int, n_groups: int, vocabulary: int) -> None:
        super().__init__()
        self.tilt = nn.Linear(condition_width, n_groups)
        self.register_buffer("log_share_PV", torch.zeros(n_groups, vocabulary))

    def start_untilted(self) -> None:
        nn.init.zeros_(self.tilt.weight)

    def forward(self, condition_NC: Tensor) -> Tensor:
        tilt_NP = self.tilt(condition_NC).float()
        return self.log_share_PV + tilt_NP[..., None] * log2_of_tokens(self.log_share_PV)

    def loss(self, condition_NC: Tensor, values_NP: Tensor) -> Tensor:
        """Squared error of log2(count + 1) to first order, in variances; halved, mean over spots, sum over groups."""
        share_PV, log2_V = self.log_share_PV.softmax(dim=-1), log2_of_tokens(self.log_share_PV)
        mean_P, square_P = share_PV @ log2_V, share_PV @ log2_V.square()
        variance_P = square_P - mean_P.square()
        error_NP = (values_NP + 1).log2() - mean_P - variance_P * self.tilt(condition_NC).float()
        return (error_NP.square() / variance_P).sum(dim=-1).mean() / 2


class ConditionEncoder(nn.Module):
    """Embed a spot from the features of its patch and its place in the section.

    Parameters
    ----------
    n_features
        Width of the patch features.
    condition_width
        Width of the embedding.
    hidden
        Width of the embedded features; places get half of it.
    dropout
        Rate inside and on the result.
    """

    def __init__(self, n_features: int, condition_width: int, *, hidden: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        self.place_width = hidden // 2
        self.features = nn.Sequential(
            nn.LayerNorm(n_features),
            nn.Linear(n_features, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
        )
        self.place = nn.Sequential(
            nn.Linear(2, hidden // 4),
            nn.GELU(),
            nn.Linear(hidden // 4, self.place_width),
            nn.LayerNorm(self.place_width),
        )
        self.join = nn.Sequential(
            nn.Linear(hidden + self.place_width, condition_width), nn.LayerNorm(condition_width), nn.Dropout(dropout)
        )
        initialise(self, condition_width)

    def forward(self, features_NF: Tensor, xy_N2: Tensor) -> Tensor:
        """Embed spots; ``xy_N2`` runs from 0 to 1 within each section. Returns (N, C)."""
        place_N = self.place(xy_N2) + sinusoidal_positions(xy_N2[:, 0], xy_N2[:, 1], self.place_width)
        return self.join(torch.cat([self.features(features_NF), place_N], dim=-1))
