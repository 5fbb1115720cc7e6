from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.layers import BranchEnd, SwiGLU, in_chunks, linear, rms_norm

if TYPE_CHECKING:
    from strecur.nn.lattice import Lattice, Windows


@dataclass(frozen=True)
class WindowedConfig:
    """Attention within windows of lattice cells, regular and shifted in turn, and with a few global tokens."""

    width: int = 192
    n_layers: int = 2
    n_heads: int = 4
    window: int = 8
    n_global: int = 4


class WindowedLayer(nn.Module):
    """One post-norm layer; a spot sees its window and the global tokens, a global token sees its whole section."""

    def __init__(self, config: WindowedConfig, offset: int) -> None:
        super().__init__()
        self.n_heads, self.window, self.offset = config.n_heads, config.window, offset
        self.qkv = linear(config.width, 3 * config.width)
        self.out = BranchEnd(config.width, config.width)
        self.mlp = SwiGLU(config.width)
        self.bias = nn.Parameter(torch.zeros(config.n_heads, (2 * config.window - 1) ** 2))
        self.register_buffer("pair_KK", relative_pairs(config.window), persistent=False)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        h_TD = rms_norm(h_TD + self.out(self.attend(self.qkv(h_TD), lattice)))
        return in_chunks(self.refine, h_TD)

    def refine(self, h_TD: Tensor) -> Tensor:
        """Second half of the layer, which looks at single tokens."""
        return rms_norm(h_TD + self.mlp(h_TD))

    def attend(self, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        n_spots = len(lattice.row_N)
        tokens, spots = qkv_T.split([len(qkv_T) - n_spots, n_spots])
        return torch.cat([self.attend_globally(tokens, spots, lattice), self.attend_locally(qkv_T, lattice)])

    def attend_globally(self, tokens_SM: Tensor, spots_N: Tensor, lattice: Lattice) -> Tensor:
        """Let each global token attend to the global tokens and all spots of its section."""
        outputs = []
        for own_tokens, own_spots in zip(tokens_SM.chunk(lattice.n_sections), lattice.split(spots_N), strict=True):
            (q, *of_tokens), (_, *of_spots) = self.heads(own_tokens), self.heads(own_spots)
            (token_k, spot_k), (token_v, spot_v) = zip(of_tokens, of_spots, strict=True)
            scores_HML = torch.cat([q @ token_k.mT, q @ spot_k.mT], dim=-1) / q.shape[-1] ** 0.5
            weights_HML = scores_HML.softmax(dim=-1).to(token_v.dtype)
            to_tokens, to_spots = weights_HML.split([len(own_tokens), len(own_spots)], dim=-1)
            outputs.append((to_tokens @ token_v + to_spots @ spot_v).transpose(0, 1).flatten(1))
        return torch.cat(outputs)

    def heads(self, qkv_L: Tensor) -> Tensor:
        """Split (L, 3D) into q, k and v, (3, H, L, E)."""
        return qkv_L.unflatten(1, (3, self.n_heads, -1)).permute(1, 2, 0, 3)

    def attend_locally(self, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        """Let each spot attend to its window and the global tokens of its section, in one softmax, (N, D)."""
        windows = lattice.windows(self.window, self.offset)
        (out_ND,) = windows.map(lambda some: (self.attend_within(some, qkv_T, lattice),))
        return out_ND

    def attend_within(self, windows: Windows, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        """Attend within some windows; return a row for each of their spots.

        Keys and values of the global tokens are in extra slots at the end of each window. Written out, since the fused
        kernel is several times slower on a CPU for so many small windows with a bias.
        """
        n_heads, (n_windows, n_slots) = self.n_heads, windows.spot_WK.shape
        n_global = (len(qkv_T) - len(lattice.row_N)) // lattice.n_sections
        global_WM = windows.section_W[:, None] * n_global + torch.arange(n_global, device=qkv_T.device)
        token_WL = torch.cat([windows.spot_WK + n_global * lattice.n_sections, global_WM], dim=1)
        # one row for each token, part (query, key, value) and head
        rows = qkv_T.reshape(3 * n_heads * len(qkv_T), -1)
        at = torch.arange(3 * n_heads, device=rows.device)[:, None] + token_WL.flatten() * (3 * n_heads)
        q, k, v = rows.index_select(0, at.flatten()).view(3, n_heads * n_windows, n_slots + n_global, -1)
        bias = self.attention_bias(windows, n_global, q.dtype).flatten(0, 1)
        scores_BKL = torch.baddbmm(bias, q[:, :n_slots], k.mT, alpha=q.shape[-1] ** -0.5)
        out_BKE = scores_BKL.softmax(dim=-1).to(v.dtype) @ v
        at_NH = windows.site_N[:, None] + torch.arange(n_heads, device=rows.device) * (n_windows * n_slots)
        return out_BKE.flatten(0, 1).index_select(0, at_NH.flatten()).view(len(at_NH), -1)

    def attention_bias(self, windows: Windows, n_global: int, dtype: torch.dtype) -> Tensor:
        """Relative position bias, zero towards global tokens, minus infinity towards empty slots; (H, W, K, K + M)."""
        bias_HKL = F.pad(self.bias.to(dtype)[:, self.pair_KK], (0, n_global))
        empty_WL = F.pad(~windows.occupied_WK, (0, n_global))
        return (
            bias_HKL.unsqueeze(1) + torch.zeros_like(empty_WL, dtype=dtype).masked_fill(empty_WL, -torch.inf)[:, None]
        )


def relative_pairs(window: int) -> Tensor:
    """Index of the offset (row, column) of every pair of slots into the bias table, shape (K, K)."""
    cell = torch.arange(window)
    row_K, col_K = (axis.flatten() for axis in torch.meshgrid(cell, cell, indexing="ij"))
    d_row, d_col = (axis[None, :] - axis[:, None] + window - 1 for axis in (row_K, col_K))
    return d_row * (2 * window - 1) + d_col


class WindowedBackbone(nn.Module):
    """Regular and shifted windows in turn, plus global tokens; cost is linear in the number of spots."""

    absolute_positions = False

    def __init__(self, config: WindowedConfig) -> None:
        super().__init__()
        self.width, self.n_context, self.window = config.width, config.n_global, config.window
        self.layers = nn.ModuleList(
            WindowedLayer(config, offset=(i % 2) * (config.window // 2)) for i in range(config.n_layers)
        )

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        for layer in self.layers:
            h_TD = layer(h_TD, lattice)
        return h_TD
