"""Attention within windows of lattice cells and with global tokens, shared by several backbones."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.backbone import SLOTS_PER_SPOT
from strecur.nn.devices import chunk_size, is_on_cpu

if TYPE_CHECKING:
    from strecur.nn.lattice import Lattice, Windows

Positions = Literal["relative", "rope", "alibi", "none"]

LONGEST_WAVE = 1e4
"""Base of the wavelengths of rotary positions, as in TRM."""

# Added to the logit of a masked pair: its weight is zero in every precision, also where all pairs are masked.
MASKED = -1e4


def relative_pairs(window: int) -> Tensor:
    """Index of the offset (row, column) of every pair of slots into the bias table, shape (K, K)."""
    cell = torch.arange(window)
    row_K, col_K = (axis.flatten() for axis in torch.meshgrid(cell, cell, indexing="ij"))
    d_row, d_col = (axis[None, :] - axis[:, None] + window - 1 for axis in (row_K, col_K))
    return d_row * (2 * window - 1) + d_col


def offsets_in_window(window: int) -> Tensor:
    """Row and column of every slot of a window, (K, 2)."""
    cell = torch.arange(window)
    return torch.cartesian_prod(cell, cell)


def alibi_bias(n_heads: int, window: int) -> Tensor:
    """Attention bias that falls with the distance of two cells, with a slope for each head (ALiBi), (H, K, K)."""
    cell_K2 = offsets_in_window(window).double()
    slope_H = 2.0 ** (-8 * torch.arange(1, n_heads + 1, dtype=torch.float64) / n_heads)
    return (-slope_H[:, None, None] * torch.cdist(cell_K2, cell_K2)).float()


def rotary_angles(window: int, head_width: int) -> Tensor:
    """Angles by which rotary positions turn the channels of every slot, (K, E/2): the first half by row, then column.

    Only differences within a window matter, so that they count from its first cell and stay exact at any coordinate.
    """
    n_waves = head_width // 4
    frequency_W = LONGEST_WAVE ** (-torch.arange(n_waves, dtype=torch.float64) / n_waves)
    return (offsets_in_window(window)[..., None] * frequency_W).flatten(1).float()


def rotate(x_BKE: Tensor, angle_KE: Tensor) -> Tensor:
    """Turn the pairs of channels (e, e + E/2) of every slot by its angles."""
    cos_KE, sin_KE = angle_KE.cos().to(x_BKE.dtype), angle_KE.sin().to(x_BKE.dtype)
    first, second = x_BKE.chunk(2, dim=-1)
    return torch.cat([first * cos_KE - second * sin_KE, first * sin_KE + second * cos_KE], dim=-1)


def split_tokens(h_TD: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Split into global tokens (S·M, …) and spots (N, …)."""
    n_spots = len(lattice.row_N)
    tokens, spots = h_TD.split([len(h_TD) - n_spots, n_spots])
    return tokens, spots


def split_heads(qkv_L: Tensor, n_heads: int) -> Tensor:
    """Split (L, 3D) into q, k and v, (3, H, L, E)."""
    return qkv_L.unflatten(1, (3, n_heads, -1)).permute(1, 2, 0, 3)


def gather_heads(qkv_L: Tensor, token_WK: Tensor, n_heads: int) -> Tensor:
    """Gather q, k and v of the tokens in the slots of windows, (3, H·W, K, E)."""
    # one row for each token, part (query, key, value) and head
    rows = qkv_L.reshape(3 * n_heads * len(qkv_L), -1)
    at = torch.arange(3 * n_heads, device=rows.device)[:, None] + token_WK.flatten() * (3 * n_heads)
    return rows.index_select(0, at.flatten()).view(3, n_heads * len(token_WK), token_WK.shape[1], -1)


def scatter_heads(slots_BKE: Tensor, windows: Windows, n_heads: int) -> Tensor:
    """Take values of all slots, (H·W, K, …), back to the spots of the windows, (N, H, …)."""
    at_NH = windows.site_N[:, None] + torch.arange(n_heads, device=slots_BKE.device) * windows.spot_WK.numel()
    return slots_BKE.flatten(0, 1).index_select(0, at_NH.flatten()).view(*at_NH.shape, -1)


class Groups(NamedTuple):
    """Tokens that attend to the same slots.

    Attributes
    ----------
    asking_WK, seen_WL
        Token in each slot that attends, and in each slot that is attended to.
    occupied_WL
        Which of the second are not empty; at least one of each group.
    place_W
        Which bias each group has; ``None``: all the same.
    """

    asking_WK: Tensor
    seen_WL: Tensor
    occupied_WL: Tensor
    place_W: Tensor | None = None

    def split(self, size: int) -> list[Groups]:
        """Cut into chunks of groups."""
        columns = [() if part is None else part.split(size) for part in self]
        return [Groups(*parts) for parts in zip_longest(*columns)]


def attend_fused(qkv_T: Tensor, groups: Groups, bias_PHKL: Tensor, n_heads: int, dropout: float = 0.0) -> Tensor:
    """Attend within groups with the fused kernel of PyTorch, for GPUs; return all slots that attend, (W · K, D)."""
    q_TD, kv_T = qkv_T.tensor_split([qkv_T.shape[1] // 3], dim=1)
    parts = []
    for asking_WK, seen_WL, occupied_WL, place_W in groups.split(chunk_size(qkv_T) // groups.seen_WL.shape[1] or 1):
        bias_WHKL = bias_PHKL if place_W is None else bias_PHKL.index_select(0, place_W)
        mask_WHKL = torch.where(occupied_WL[:, None, None], bias_WHKL.to(q_TD.dtype), -torch.inf)
        q_WKHE = q_TD.index_select(0, asking_WK.flatten()).view(*asking_WK.shape, n_heads, -1)
        k_WLHE, v_WLHE = kv_T.index_select(0, seen_WL.flatten()).view(*seen_WL.shape, 2, n_heads, -1).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q_WKHE, k_WLHE, v_WLHE))
        out_WHKE = F.scaled_dot_product_attention(q, k, v, mask_WHKL, dropout_p=dropout)
        parts.append(out_WHKE.transpose(1, 2).reshape(-1, q_TD.shape[1]))
    return torch.cat(parts)


def values_in_windows(width: int, n_heads: int, n_seen: int, layout: str) -> float:
    """Values per token that attention within windows of ``n_seen`` slots holds, without gradient."""
    return SLOTS_PER_SPOT[layout] * (3 * width + 3 * n_heads * n_seen)


class SlideAttention(nn.Module):
    """Attention of spots to their windows and the global tokens, and of global tokens to their whole section.

    A spot has a regular window and a shifted one. It attends to all spots of both in one softmax, to each once, with a
    learned bias for the offset between two cells. Its attention to the global tokens is a second softmax, and the two
    results are added: W-MSA(X) + MCA(X, C) in equation 1 of HiST.

    Parameters
    ----------
    n_heads
        Attention heads.
    window
        Cells along a side of a window.
    dropout
        Dropout of the attention weights.
    positions
        How the offset of two cells of a window enters: a learned bias, rotations of queries and keys, a fixed bias that
        falls with the distance, or not at all.
    shifted
        Whether there are shifted windows.
    head_width
        Channels of a head; for rotations only.
    """

    pair_KK: Tensor
    twice_KK: Tensor
    fixed_HKK: Tensor
    angle_KE: Tensor
    quarter_PQ: Tensor

    def __init__(
        self,
        n_heads: int,
        window: int,
        dropout: float = 0.0,
        *,
        positions: Positions = "relative",
        shifted: bool = True,
        head_width: int = 0,
    ) -> None:
        super().__init__()
        if window % 2:
            msg = (
                f"window={window} must be even, so that it can be shifted by half; choose {window - 1} or {window + 1}"
            )
            raise ValueError(msg)
        self.n_heads, self.window, self.dropout = n_heads, window, dropout
        self.positions, self.shifted = positions, shifted
        if positions == "relative":
            self.bias = nn.Parameter(torch.zeros(n_heads, (2 * window - 1) ** 2))
            self.register_buffer("pair_KK", relative_pairs(window), persistent=False)
        else:
            fixed = alibi_bias(n_heads, window) if positions == "alibi" else torch.zeros(n_heads, window**2, window**2)
            self.register_buffer("fixed_HKK", fixed, persistent=False)
        if positions == "rope":
            self.register_buffer("angle_KE", rotary_angles(window, head_width), persistent=False)
        self.register_buffer("twice_KK", pairs_in_both_windows(window), persistent=False)
        self.register_buffer("quarter_PQ", quarter_of_slots(window).argsort(stable=True).view(4, -1), persistent=False)

    def forward(self, tokens_SM: Tensor, spots_N: Tensor, window_spots_N: Tensor, lattice: Lattice) -> Tensor:
        """Attend with queries, keys and values (…, 3D) of tokens and spots, and of spots in windows; return (T, D)."""
        tokens, spots = self.attend_globally(tokens_SM, spots_N, lattice)
        return torch.cat([tokens, spots + self.attend_in_windows(window_spots_N, lattice)])

    def attend_globally(self, tokens_SM: Tensor, spots_N: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
        """Let spots attend to the global tokens of their section, and those to themselves and all its spots."""
        token_parts, spot_parts = [], []
        for tokens, spots in zip(tokens_SM.chunk(lattice.n_sections), lattice.split(spots_N), strict=True):
            token_q, token_k, token_v = split_heads(tokens, self.n_heads)
            spot_q, spot_k, spot_v = split_heads(spots, self.n_heads)
            spot_parts.append(self.attend(spot_q, token_k, token_v))
            all_k, all_v = torch.cat([token_k, spot_k], dim=1), torch.cat([token_v, spot_v], dim=1)
            token_parts.append(self.attend(token_q, all_k, all_v))
        return torch.cat(token_parts), torch.cat(spot_parts)

    def attend(self, q_HLE: Tensor, k_HLE: Tensor, v_HLE: Tensor) -> Tensor:
        """Attention without a mask, (L, D); the fused kernel gains nothing from so few tokens on one side."""
        scores_HLL = at_least_float32(q_HLE @ k_HLE.mT) / q_HLE.shape[-1] ** 0.5
        weights_HLL = F.dropout(scores_HLL.softmax(dim=-1), self.dropout, self.training)
        return (weights_HLL.to(v_HLE.dtype) @ v_HLE).transpose(0, 1).flatten(1)

    def attend_in_windows(self, qkv_N: Tensor, lattice: Lattice) -> Tensor:
        """Let each spot attend to its regular and its shifted window in one softmax, (N, D)."""
        if self.is_fused(qkv_N):
            return self.attend_from_quarters(qkv_N, lattice)
        bias_HKK = self.offset_bias(qkv_N.dtype)
        if not self.shifted:
            attend = partial(self.attend_within, qkv_N=qkv_N, bias_HKK=bias_HKK)
            values, total, _ = lattice.windows(self.window, 0).map(attend)
            return (values / total.to(values.dtype)).flatten(1)
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

    def is_fused(self, qkv_N: Tensor) -> bool:
        """Whether the fused kernel attends: on GPUs, to both windows, and without rotations within them."""
        return not is_on_cpu(qkv_N) and self.shifted and self.positions != "rope"

    def offset_bias(self, dtype: torch.dtype) -> Tensor:
        """Bias of the attention between two slots of a window, (H, K, K)."""
        if self.positions == "relative":
            return self.bias.to(dtype)[:, self.pair_KK]
        return self.fixed_HKK.to(dtype)

    def attend_within(self, windows: Windows, qkv_N: Tensor, bias_HKK: Tensor) -> tuple[Tensor, ...]:
        """Attend within windows, without dividing by the total weight.

        Returns, for each of their spots and each head, the weighted sum of the values (N, H, E), the total weight
        (N, H, 1) and the largest logit, which the weights are relative to (N, H, 1). Written out, because the fused
        kernel is several times slower on a CPU for many small windows with a bias.
        """
        q, k, v = gather_heads(qkv_N, windows.spot_WK, self.n_heads)
        if self.positions == "rope":
            q, k = rotate(q, self.angle_KE), rotate(k, self.angle_KE)
        empty_WK = torch.zeros_like(windows.occupied_WK, dtype=q.dtype).masked_fill(~windows.occupied_WK, MASKED)
        bias_BKK = (bias_HKK[:, None] + empty_WK[:, None, :]).flatten(0, 1)
        scores_BKK = at_least_float32(torch.baddbmm(bias_BKK, q, k.mT, alpha=q.shape[-1] ** -0.5))
        top_BK1 = scores_BKK.detach().amax(dim=-1, keepdim=True)
        weights_BKK = (scores_BKK - top_BK1).exp()
        total_BK1 = weights_BKK.sum(dim=-1, keepdim=True)
        out_BKE = F.dropout(weights_BKK, self.dropout, self.training).to(v.dtype) @ v
        return tuple(scatter_heads(part, windows, self.n_heads) for part in (out_BKE, total_BK1, top_BK1))

    def attend_from_quarters(self, qkv_N: Tensor, lattice: Lattice) -> Tensor:
        """Do the same with the fused kernel: the spots of a quarter of a window see the same two windows."""
        quarters = lattice.quarters(self.window)
        bias_HKK = self.offset_bias(torch.float32)
        once_HKK = bias_HKK.masked_fill(self.twice_KK, MASKED)
        # a quarter is the opposite one of its shifted window
        bias_HPQL = torch.cat([bias_HKK[:, self.quarter_PQ], once_HKK[:, self.quarter_PQ.flip(0)]], dim=-1)
        groups = Groups(quarters.spots.spot_WK, quarters.seen_QL, quarters.occupied_QL, quarters.place_Q)
        dropout = self.dropout if self.training else 0.0
        slots = attend_fused(qkv_N, groups, bias_HPQL.transpose(0, 1), self.n_heads, dropout)
        return slots.index_select(0, quarters.spots.site_N)


def at_least_float32(scores: Tensor) -> Tensor:
    """Convert half precision to float32: reductions of bf16 are coarse, and slow on a CPU."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def quarter_of_slots(window: int) -> Tensor:
    """Which quarter of a window each slot is in, row by row, (K,)."""
    half = torch.arange(window) // (window // 2)
    return (2 * half[:, None] + half).flatten()


def pairs_in_both_windows(window: int) -> Tensor:
    """Which pairs of slots of a shifted window share a regular window too, (K, K): those of one quarter."""
    quarter_K = quarter_of_slots(window)
    return quarter_K[:, None] == quarter_K
