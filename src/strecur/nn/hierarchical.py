"""Hierarchical sparse transformers on a lattice (HiST, paper 001): windows, coarsening, and global tokens.

:class:`HierarchicalBackbone` is the small one that a recursion applies again and again, :class:`HistBackbone` the one
of the paper. Both see nothing but spots: parents exist where a child does, and a missing child adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.layers import BranchEnd, SwiGLU, in_chunks, linear, rms_norm, shrink_branches
from strecur.nn.windowed import relative_pairs

if TYPE_CHECKING:
    from strecur.nn.lattice import Lattice, Windows

# Added to the logit of a pair that does not count: its weight is zero in every precision, also where no pair counts.
MASKED = -1e4


@dataclass(frozen=True)
class HierarchicalConfig:
    """A V-cycle of post-norm layers, the same on every level, for recursion.

    Attributes
    ----------
    width
        Channels of a token.
    n_heads
        Attention heads.
    window
        Cells along a side of a window, even; shifted windows are moved by half of it.
    n_levels
        Lattices, each with half the rows and columns of the one before.
    n_layers
        Layers on each level on the way down, and again on the way up.
    n_global
        Global tokens of a section.
    """

    width: int = 192
    n_heads: int = 4
    window: int = 6
    n_levels: int = 3
    n_layers: int = 1
    n_global: int = 4


@dataclass(frozen=True)
class HistConfig:
    """The network of paper 001, for use without recursion.

    Attributes
    ----------
    width
        Channels of a token.
    n_heads
        Attention heads.
    window
        Cells along a side of a window, even; shifted windows are moved by half of it.
    encoder_depths
        Layers on each level on the way down, finest first.
    decoder_depths
        Layers on each level on the way up, finest last; one level less than in the encoder.
    n_global
        Global tokens of a section.
    dropout
        Share of the inputs and of the attention weights that is dropped in training.
    cells_per_pitch
        Cells to the distance of neighbouring spots, on which a regular lattice is laid out before the network sees it,
        as its turned and sheared copies are (``strecur.engine.HistAugmentation``); ``None``: as it is.
    """

    width: int = 512
    n_heads: int = 8
    window: int = 6
    encoder_depths: tuple[int, ...] = (1, 1, 1)
    decoder_depths: tuple[int, ...] = (2, 1)
    n_global: int = 1
    dropout: float = 0.05
    cells_per_pitch: float | None = None


class SlideAttention(nn.Module):
    """Spots attend to their windows, and besides to the global tokens; global tokens attend to their whole section.

    A spot has a regular window and a shifted one. It attends to all spots of either in one softmax, to each once, with
    a learned bias for the offset between two cells. Its attention to the global tokens is a second softmax, and the
    two results are added: W-MSA(X) + MCA(X, C) in equation 1 of paper 001.
    """

    def __init__(self, n_heads: int, window: int, dropout: float = 0.0) -> None:
        super().__init__()
        if window % 2:
            msg = f"window={window} cannot be moved by half of itself; choose {window - 1} or {window + 1}"
            raise ValueError(msg)
        self.n_heads, self.window, self.dropout = n_heads, window, dropout
        self.bias = nn.Parameter(torch.zeros(n_heads, (2 * window - 1) ** 2))
        self.register_buffer("pair_KK", relative_pairs(window), persistent=False)
        self.register_buffer("twice_KK", pairs_in_both_windows(window), persistent=False)

    def forward(self, tokens_SM: Tensor, spots_N: Tensor, window_spots_N: Tensor, lattice: Lattice) -> Tensor:
        """Attend with queries, keys and values (…, 3D) of tokens and spots, and of spots in windows; return (T, D)."""
        tokens, spots = self.attend_globally(tokens_SM, spots_N, lattice)
        return torch.cat([tokens, spots + self.attend_in_windows(window_spots_N, lattice)])

    def attend_globally(self, tokens_SM: Tensor, spots_N: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
        """Let spots attend to the global tokens of their section, and those to themselves and all its spots."""
        token_parts, spot_parts = [], []
        for tokens, spots in zip(tokens_SM.chunk(lattice.n_sections), lattice.split(spots_N), strict=True):
            (token_q, token_k, token_v), (spot_q, spot_k, spot_v) = self.heads(tokens), self.heads(spots)
            spot_parts.append(self.attend(spot_q, token_k, token_v))
            all_k, all_v = torch.cat([token_k, spot_k], dim=1), torch.cat([token_v, spot_v], dim=1)
            token_parts.append(self.attend(token_q, all_k, all_v))
        return torch.cat(token_parts), torch.cat(spot_parts)

    def attend(self, q_HLE: Tensor, k_HLE: Tensor, v_HLE: Tensor) -> Tensor:
        """Attention without a mask, (L, D); the fused kernel gains nothing from so few tokens on one side."""
        scores_HLL = raised(q_HLE @ k_HLE.mT) / q_HLE.shape[-1] ** 0.5
        weights_HLL = F.dropout(scores_HLL.softmax(dim=-1), self.dropout, self.training)
        return (weights_HLL.to(v_HLE.dtype) @ v_HLE).transpose(0, 1).flatten(1)

    def heads(self, qkv_L: Tensor) -> Tensor:
        """Split (L, 3D) into q, k and v, (3, H, L, E)."""
        return qkv_L.unflatten(1, (3, self.n_heads, -1)).permute(1, 2, 0, 3)

    def attend_in_windows(self, qkv_N: Tensor, lattice: Lattice) -> Tensor:
        """Let each spot attend to its regular and its shifted window in one softmax, (N, D)."""
        bias_HKK = self.bias.to(qkv_N.dtype)[:, self.pair_KK]
        once_HKK = bias_HKK.masked_fill(self.twice_KK, MASKED)
        windows = (lattice.windows(self.window, offset) for offset in (0, self.window // 2))
        (regular, *regular_sums), (shifted, *shifted_sums) = (
            part.map(partial(self.attend_within, qkv_N=qkv_N, bias_HKK=bias))
            for part, bias in zip(windows, (bias_HKK, once_HKK), strict=True)
        )
        total, top = (torch.stack(pair) for pair in zip(regular_sums, shifted_sums, strict=True))
        scale = (top - top.amax(dim=0)).exp()
        regular_share, shifted_share = (scale / (scale * total).sum(dim=0)).to(regular.dtype)
        return (regular_share * regular + shifted_share * shifted).flatten(1)

    def attend_within(self, windows: Windows, qkv_N: Tensor, bias_HKK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attend within some windows, short of the division by the total weight.

        Returns, for each of their spots and each head, the weighted sum of the values (N, H, E), the total weight
        (N, H, 1) and the largest logit, of which the weights are relative (N, H, 1). Written out, since the fused
        kernel is several times slower on a CPU for so many small windows with a bias.
        """
        n_heads, (n_windows, n_slots) = self.n_heads, windows.occupied_WK.shape
        rows = qkv_N.reshape(3 * n_heads * len(qkv_N), -1)
        at = torch.arange(3 * n_heads, device=rows.device)[:, None] + windows.spot_WK.flatten() * (3 * n_heads)
        q, k, v = rows.index_select(0, at.flatten()).view(3, n_heads * n_windows, n_slots, -1)
        empty_WK = torch.zeros_like(windows.occupied_WK, dtype=q.dtype).masked_fill(~windows.occupied_WK, MASKED)
        bias_BKK = (bias_HKK[:, None] + empty_WK[:, None, :]).flatten(0, 1)
        scores_BKK = raised(torch.baddbmm(bias_BKK, q, k.mT, alpha=q.shape[-1] ** -0.5))
        top_BK1 = scores_BKK.detach().amax(dim=-1, keepdim=True)
        weights_BKK = (scores_BKK - top_BK1).exp()
        total_BK1 = weights_BKK.sum(dim=-1, keepdim=True)
        out_BKE = F.dropout(weights_BKK, self.dropout, self.training).to(v.dtype) @ v
        at = windows.site_N[:, None] + torch.arange(n_heads, device=rows.device) * (n_windows * n_slots)
        parts = (part.flatten(0, 1).index_select(0, at.flatten()) for part in (out_BKE, total_BK1, top_BK1))
        return tuple(part.view(*at.shape, -1) for part in parts)


def raised(scores: Tensor) -> Tensor:
    """At least float32: reductions of bf16 are coarse, and slow on a CPU."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def pairs_in_both_windows(window: int) -> Tensor:
    """Which pairs of slots of a shifted window share a regular window too, (K, K): those of one quarter."""
    half = torch.arange(window) // (window // 2)
    quarter_K = (2 * half[:, None] + half).flatten()
    return quarter_K[:, None] == quarter_K


def split_tokens(h_TD: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Cut into global tokens (S·M, …) and spots (N, …)."""
    n_spots = len(lattice.row_N)
    return h_TD.split([len(h_TD) - n_spots, n_spots])


def gather_children(spots_ND: Tensor, lattice: Lattice) -> Tensor:
    """Put the spots next to their siblings, slot by slot, zero where there is none; (parents, 4D)."""
    parents = lattice.windows(2, 0)
    table = spots_ND.new_zeros(parents.occupied_WK.numel(), spots_ND.shape[1])
    return table.index_copy(0, parents.site_N, spots_ND).view(len(parents.occupied_WK), -1)


def spread_to_children(parents_P4D: Tensor, lattice: Lattice) -> Tensor:
    """Give each spot its quarter of its parent, (N, D)."""
    return parents_P4D.unflatten(1, (4, -1)).flatten(0, 1).index_select(0, lattice.windows(2, 0).site_N)


class RecursiveLayer(nn.Module):
    """Post-norm layer in the manner of TRM: weight-free RMSNorm, SwiGLU, no biases."""

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        self.qkv = linear(config.width, 3 * config.width)
        self.attention = SlideAttention(config.n_heads, config.window)
        self.out = BranchEnd(config.width, config.width)
        self.mlp = SwiGLU(config.width)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        tokens, spots = split_tokens(self.qkv(h_TD), lattice)
        h_TD = rms_norm(h_TD + self.out(self.attention(tokens, spots, spots, lattice)))
        return in_chunks(self.refine, h_TD)

    def refine(self, h_TD: Tensor) -> Tensor:
        """Second half of the layer, which looks at single tokens."""
        return rms_norm(h_TD + self.mlp(h_TD))


class HierarchicalBackbone(nn.Module):
    """Refine, coarsen and do the same there, come back, refine again; the levels share their weights.

    Every token leaves with unit root mean square. Moving a section by ``window * 2 ** (n_levels - 1)`` cells changes
    nothing; by another distance it moves the windows too.
    """

    absolute_positions = False

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        if config.n_levels < 2:
            msg = f"n_levels={config.n_levels} leaves nothing to coarsen; choose at least 2, or the windowed backbone"
            raise ValueError(msg)
        self.width, self.n_context, self.n_levels = config.width, config.n_global, config.n_levels
        self.descent = nn.ModuleList(RecursiveLayer(config) for _ in range(config.n_layers))
        self.coarsen = linear(4 * config.width, config.width)
        self.uncoarsen = BranchEnd(config.width, 4 * config.width)
        self.ascent = nn.ModuleList(RecursiveLayer(config) for _ in range(config.n_layers))
        shrink_branches(self, 1 / config.n_levels)  # passed on every level; the features would be lost on the way

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        return self.cycle(h_TD, lattice, self.n_levels - 1)

    def cycle(self, h_TD: Tensor, lattice: Lattice, n_coarser: int) -> Tensor:
        for layer in self.descent:
            h_TD = layer(h_TD, lattice)
        if n_coarser == 0:
            return h_TD
        tokens, spots = split_tokens(h_TD, lattice)
        parents = rms_norm(self.coarsen(gather_children(spots, lattice)))
        coarse_TD = self.cycle(torch.cat([tokens, parents]), lattice.coarser, n_coarser - 1)
        tokens, parents = split_tokens(coarse_TD, lattice.coarser)
        h_TD = torch.cat([tokens, rms_norm(spots + spread_to_children(self.uncoarsen(parents), lattice))])
        del spots, coarse_TD, parents  # large where the section is
        for layer in self.ascent:
            h_TD = layer(h_TD, lattice)
        return h_TD


class HistLayer(nn.Module):
    """Pre-norm layer of paper 001: LayerNorm, queries, keys and values apart for windows and global tokens, ReLU."""

    def __init__(self, config: HistConfig) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.window_qkv = nn.Linear(config.width, 3 * config.width)
        self.global_qkv = nn.Linear(config.width, 3 * config.width)
        self.attention = SlideAttention(config.n_heads, config.window, config.dropout)
        nn.init.normal_(self.attention.bias, std=0.02)
        self.out = nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.ReLU(), nn.Linear(4 * config.width, config.width)
        )

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        normed = self.attention_norm(h_TD)
        tokens, spots = split_tokens(self.global_qkv(normed), lattice)
        window_spots = self.window_qkv(split_tokens(normed, lattice)[1])
        h_TD = h_TD + self.out(self.attention(tokens, spots, window_spots, lattice))
        return in_chunks(self.refine, h_TD)

    def refine(self, h_TD: Tensor) -> Tensor:
        """Second half of the layer, which looks at single tokens."""
        return h_TD + self.mlp(self.mlp_norm(h_TD))


class HistCoarsening(nn.Module):
    """One matrix for each of the four children, summed over those that exist; tokens have a map of their own."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(d_in, d_out)
        self.spots = nn.Linear(4 * d_in, d_out, bias=False)
        self.norm = nn.LayerNorm(d_out)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        """Go from the tokens of ``lattice`` to those of ``lattice.coarser``."""
        tokens, spots = split_tokens(h_TD, lattice)
        return torch.cat([self.tokens(tokens), self.norm(self.spots(gather_children(spots, lattice)))])


class HistUncoarsening(nn.Module):
    """One matrix for each of the four children, equal at first; tokens have a map of their own."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(d_in, d_out)
        self.spots = nn.Linear(d_in, 4 * d_out, bias=False)
        with torch.no_grad():
            self.spots.weight.copy_(self.spots.weight[:d_out].repeat(4, 1))
        self.norm = nn.LayerNorm(d_out)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        """Go from the tokens of ``lattice.coarser`` to those of ``lattice``."""
        tokens, parents = split_tokens(h_TD, lattice.coarser)
        return torch.cat([self.tokens(tokens), self.norm(spread_to_children(self.spots(parents), lattice))])


class HistBackbone(nn.Module):
    """Encoder and decoder of paper 001; each level of the decoder ends with the encoder's tokens beside its own.

    A last linear map brings the two back to ``width``, where the paper's head reads both.
    """

    absolute_positions = False

    def __init__(self, config: HistConfig) -> None:
        super().__init__()
        if len(config.decoder_depths) != len(config.encoder_depths) - 1:
            msg = f"{config} needs a decoder depth for every level but the coarsest: one less than encoder_depths"
            raise ValueError(msg)
        width = self.width = config.width
        self.n_context, self.cells_per_pitch = config.n_global, config.cells_per_pitch
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(stage(config, depth) for depth in config.encoder_depths)
        self.coarsen = nn.ModuleList(HistCoarsening(width, width) for _ in config.decoder_depths)
        self.uncoarsen = nn.ModuleList(
            HistUncoarsening(width if i == 0 else 2 * width, width) for i in range(len(config.decoder_depths))
        )
        self.decoder = nn.ModuleList(stage(config, depth) for depth in config.decoder_depths)
        self.fuse = nn.Linear(2 * width, width)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        if self.cells_per_pitch is not None:
            lattice = lattice.finer(self.cells_per_pitch)
        h_TD = run(self.encoder[0], self.dropout(h_TD), lattice)
        passed = []
        for coarsen, layers in zip(self.coarsen, self.encoder[1:], strict=True):
            passed.append((h_TD, lattice))
            h_TD, lattice = coarsen(h_TD, lattice), lattice.coarser
            h_TD = run(layers, h_TD, lattice)
        for uncoarsen, layers in zip(self.uncoarsen, self.decoder, strict=True):
            lateral_TD, lattice = passed.pop()
            h_TD = run(layers, uncoarsen(h_TD, lattice), lattice)
            h_TD = torch.cat([h_TD, lateral_TD], dim=1)
        return self.fuse(h_TD)


def stage(config: HistConfig, depth: int) -> nn.ModuleList:
    """Layers of one level."""
    return nn.ModuleList(HistLayer(config) for _ in range(depth))


def run(layers: nn.ModuleList, h_TD: Tensor, lattice: Lattice) -> Tensor:
    """Apply layers one after the other."""
    for layer in layers:
        h_TD = layer(h_TD, lattice)
    return h_TD
