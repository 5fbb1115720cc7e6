from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.layers import SwiGLU, linear, rms_norm

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
        self.out = linear(config.width, config.width)
        self.mlp = SwiGLU(config.width)
        self.bias = nn.Parameter(torch.zeros(config.n_heads, (2 * config.window - 1) ** 2))
        self.register_buffer("pair_KK", relative_pairs(config.window), persistent=False)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        h_TD = rms_norm(h_TD + self.out(self.attend(self.qkv(h_TD), lattice)))
        return rms_norm(h_TD + self.mlp(h_TD))

    def attend(self, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        n_tokens = len(qkv_T) - len(lattice.row_N)
        tokens = qkv_T[:n_tokens].view(lattice.n_sections, -1, qkv_T.shape[-1])
        spots = qkv_T[n_tokens:]
        return torch.cat([self.attend_globally(tokens, spots, lattice), self.attend_locally(tokens, spots, lattice)])

    def attend_globally(self, tokens_SM: Tensor, spots_N: Tensor, lattice: Lattice) -> Tensor:
        """Let each global token attend to the global tokens and all spots of its section."""
        outputs = []
        for own_tokens, own_spots in zip(tokens_SM, lattice.split(spots_N), strict=True):
            q, _, _ = self.heads(own_tokens)
            _, k, v = self.heads(torch.cat([own_tokens, own_spots]))
            scores_HML = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
            outputs.append((scores_HML.softmax(dim=-1) @ v).transpose(0, 1).flatten(1))
        return torch.cat(outputs)

    def attend_locally(self, tokens_SM: Tensor, spots_N: Tensor, lattice: Lattice) -> Tensor:
        """Let each spot attend to its window and the global tokens, in one softmax.

        Written out, since the fused kernel is several times slower on a CPU for so many small windows with a bias.
        """
        windows = lattice.windows(self.window, self.offset)
        table = spots_N.new_zeros(windows.occupied_WK.numel(), spots_N.shape[-1])
        table = table.index_copy(0, windows.site_N, spots_N).unflatten(0, windows.occupied_WK.shape)
        q, k, v = self.heads(table)
        _, token_k, token_v = (part[windows.section_W] for part in self.heads(tokens_SM))
        k, v = torch.cat([k, token_k], dim=-2).flatten(0, 1), torch.cat([v, token_v], dim=-2).flatten(0, 1)
        bias = self.attention_bias(windows, n_global=token_k.shape[-2], dtype=q.dtype).flatten(0, 1)
        scores_BKK = torch.baddbmm(bias, q.flatten(0, 1), k.transpose(-2, -1), alpha=q.shape[-1] ** -0.5)
        out_WHKE = (scores_BKK.softmax(dim=-1).to(v.dtype) @ v).unflatten(0, (-1, self.n_heads))
        return out_WHKE.transpose(1, 2).flatten(2).flatten(0, 1)[windows.site_N]

    def attention_bias(self, windows: Windows, n_global: int, dtype: torch.dtype) -> Tensor:
        """Relative position bias, zero towards global tokens, minus infinity towards empty slots; (W, H, K, K + M)."""
        bias_HKK = F.pad(self.bias.to(dtype)[:, self.pair_KK], (0, n_global))
        empty_WK = F.pad(~windows.occupied_WK, (0, n_global))
        return bias_HKK.unsqueeze(0).masked_fill(empty_WK[:, None, None, :], float("-inf"))

    def heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Split (…, L, 3D) into q, k, v of shape (…, H, L, E)."""
        return tuple(part.unflatten(-1, (self.n_heads, -1)).transpose(-3, -2) for part in qkv.chunk(3, dim=-1))


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
