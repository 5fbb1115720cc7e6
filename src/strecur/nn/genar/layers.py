"""Layers of GenAR: transformer blocks conditioned on a spot."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.genar.targets import log2_of_tokens
from strecur.nn.layers import truncated_normal_

if TYPE_CHECKING:
    from collections.abc import Iterator

# Standard deviation of the weights at the published width; it is larger in narrower networks, so that activations keep
# their scale.
PAPER_STD, PAPER_WIDTH = 0.02, 768
LARGEST_TEMPERATURE = 100.0


def initialise(network: nn.Module, width: int) -> None:
    """Draw all weights of a network from one truncated normal that depends on its width; biases are zero."""
    std = PAPER_STD * math.sqrt(PAPER_WIDTH / width)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            truncated_normal_(module.weight, std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


@contextmanager
def random_state_from(generator: torch.Generator) -> Iterator[None]:
    """Seed the global random state, which dropout draws from, by ``generator``, and restore it at the end."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class Attention(nn.Module):
    """Causal attention with normalised queries and keys and a learned temperature per head."""

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

    The gates start near zero but not at it, as in the released code, where all weights are drawn from one normal.
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
        """Stochastic depth: in training, drop the update of random spots and scale up the others."""
        if not self.training or self.drop_path == 0:
            return update_NLD
        keep_N11 = torch.rand(len(update_NLD), 1, 1, device=update_NLD.device) >= self.drop_path
        return update_NLD * keep_N11 / (1 - self.drop_path)


def modulate(h_NLD: Tensor, scale_N1D: Tensor, shift_N1D: Tensor) -> Tensor:
    """Normalise without weights, then scale and shift by the condition."""
    return F.layer_norm(h_NLD, h_NLD.shape[-1:], eps=1e-6) * (1 + scale_N1D) + shift_N1D


class FiLM(nn.Module):
    """Scale and shift by the identity of a gene group; initially the identity map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, 2 * width))

    def start_as_identity(self) -> None:
        for parameter in self.generator[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, h_NPD: Tensor, identity_PD: Tensor) -> Tensor:
        scale_PD, shift_PD = self.generator(identity_PD).chunk(2, dim=-1)
        return h_NPD * (1 + scale_PD) + shift_PD


class TiltedShares(nn.Module):
    """Linear model of counts: logits of their frequencies in training, tilted by the condition.

    The frequency of a count is multiplied by exp(tilt · log2(count + 1)), which to first order shifts the mean of
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

    log_share_PV: Tensor

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
        """Half the squared error of log2(count + 1) to first order, in variances; mean over spots, sum over groups."""
        share_PV, log2_V = self.log_share_PV.softmax(dim=-1), log2_of_tokens(self.log_share_PV)
        mean_P, square_P = share_PV @ log2_V, share_PV @ log2_V.square()
        variance_P = square_P - mean_P.square()
        error_NP = (values_NP + 1).log2() - mean_P - variance_P * self.tilt(condition_NC).float()
        return (error_NP.square() / variance_P).sum(dim=-1).mean() / 2
