from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.attention import (
    Groups,
    attend_fused,
    gather_heads,
    relative_pairs,
    scatter_heads,
    split_heads,
    split_tokens,
    values_in_windows,
)
from strecur.nn.backbone import SLOTS_PER_SPOT, Backbone, BackboneConfig, Partition
from strecur.nn.devices import is_on_cpu
from strecur.nn.layers import BranchEnd, SwiGLU, hidden_width, in_chunks, linear, rms_norm

if TYPE_CHECKING:
    from typing import Self

    from strecur.nn.lattice import Lattice, Windows

# At 1.5 cells per spot distance, a window of 12 cells holds as many spots as one of 8 on a regular lattice.
IRREGULAR_WINDOW = 12


@dataclass(frozen=True)
class WindowedConfig(BackboneConfig):
    """Attention within windows of lattice cells, alternately regular and shifted, and with a few global tokens.

    Attributes
    ----------
    width
        Channels of a token.
    n_layers
        Transformer layers.
    n_heads
        Attention heads.
    window
        Cells along a side of a window.
    n_global
        Global tokens per section.
    """

    name: ClassVar[str] = "windowed"

    width: int = 192
    n_layers: int = 2
    n_heads: int = 4
    window: int = 8
    n_global: int = 4

    def build(self) -> WindowedBackbone:
        return WindowedBackbone(self)

    @classmethod
    def for_layout(cls, layout: str) -> Self:
        """Return the default configuration for a lattice: windows with about as many spots on every layout."""
        return cls(window=IRREGULAR_WINDOW) if layout == "irregular" else cls()

    def partitions(self) -> list[list[Partition]]:
        return [[(self.window, self.offset(i))] for i in reversed(range(self.n_layers))]

    def offset(self, layer: int) -> int:
        """Shift of the windows of a layer in cells."""
        return layer % 2 * (self.window // 2)

    @property
    def n_context(self) -> int:
        return self.n_global

    @property
    def n_weights(self) -> int:
        return self.n_layers * self.weights_per_layer

    @property
    def n_layers_per_call(self) -> int:
        return self.n_layers

    @property
    def n_seen(self) -> int:
        """Slots that a spot attends to: those of its window and the global tokens."""
        return self.window**2 + self.n_global

    def tokens_seen(self, layout: str, n_spots: int) -> float:
        return SLOTS_PER_SPOT[layout] * self.window**2

    def values_kept(self, layout: str) -> float:
        in_windows = 3 * self.width * self.n_seen / self.window**2 + self.n_heads * self.n_seen
        return 4 * hidden_width(self.width) + 8 * self.width + SLOTS_PER_SPOT[layout] * in_windows

    def values_passing(self, layout: str) -> float:
        return max(3 * hidden_width(self.width), values_in_windows(self.width, self.n_heads, self.n_seen, layout))


class WindowedLayer(nn.Module):
    """Post-norm layer; a spot sees its window and the global tokens, a global token sees its whole section."""

    pair_KK: Tensor

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
        """Apply the second half of the layer, in which tokens do not see each other."""
        return rms_norm(h_TD + self.mlp(h_TD))

    def attend(self, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        tokens, spots = split_tokens(qkv_T, lattice)
        return torch.cat([self.attend_globally(tokens, spots, lattice), self.attend_locally(qkv_T, lattice)])

    def attend_globally(self, tokens_SM: Tensor, spots_N: Tensor, lattice: Lattice) -> Tensor:
        """Let each global token attend to the global tokens and all spots of its section."""
        outputs = []
        for own_tokens, own_spots in zip(tokens_SM.chunk(lattice.n_sections), lattice.split(spots_N), strict=True):
            q, token_k, token_v = split_heads(own_tokens, self.n_heads)
            _, spot_k, spot_v = split_heads(own_spots, self.n_heads)
            scores_HML = torch.cat([q @ token_k.mT, q @ spot_k.mT], dim=-1) / q.shape[-1] ** 0.5
            weights_HML = scores_HML.softmax(dim=-1).to(token_v.dtype)
            to_tokens, to_spots = weights_HML.split([len(own_tokens), len(own_spots)], dim=-1)
            outputs.append((to_tokens @ token_v + to_spots @ spot_v).transpose(0, 1).flatten(1))
        return torch.cat(outputs)

    def attend_locally(self, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        """Let each spot attend to its window and the global tokens of its section, in one softmax, (N, D)."""
        windows = lattice.windows(self.window, self.offset)
        if not is_on_cpu(qkv_T):
            return self.attend_in_groups(windows, qkv_T, lattice)
        (out_ND,) = windows.map(lambda some: (self.attend_within(some, qkv_T, lattice),))
        return out_ND

    def attend_within(self, windows: Windows, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        """Attend within windows; return a row for each of their spots.

        Keys and values of the global tokens are in extra slots at the end of each window. Written out, because the
        fused kernel is several times slower on a CPU for many small windows with a bias.
        """
        n_slots = windows.spot_WK.shape[1]
        n_global = (len(qkv_T) - len(lattice.row_N)) // lattice.n_sections
        token_WL = tokens_seen(windows, n_global, lattice)
        q, k, v = gather_heads(qkv_T, token_WL, self.n_heads)
        bias = self.attention_bias(windows, n_global, q.dtype).flatten(0, 1)
        scores_BKL = torch.baddbmm(bias, q[:, :n_slots], k.mT, alpha=q.shape[-1] ** -0.5)
        out_BKE = scores_BKL.softmax(dim=-1).to(v.dtype) @ v
        return scatter_heads(out_BKE, windows, self.n_heads).flatten(1)

    def attend_in_groups(self, windows: Windows, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        """Do the same for all windows with the fused kernel."""
        n_global = (len(qkv_T) - len(lattice.row_N)) // lattice.n_sections
        token_WL = tokens_seen(windows, n_global, lattice)
        bias_HKL = F.pad(self.bias[:, self.pair_KK], (0, n_global))
        occupied_WL = F.pad(windows.occupied_WK, (0, n_global), value=True)
        groups = Groups(token_WL[:, : windows.spot_WK.shape[1]], token_WL, occupied_WL)
        slots = attend_fused(qkv_T, groups, bias_HKL[None], self.n_heads)
        return slots.index_select(0, windows.site_N)

    def attention_bias(self, windows: Windows, n_global: int, dtype: torch.dtype) -> Tensor:
        """Relative position bias, zero towards global tokens, minus infinity towards empty slots; (H, W, K, K + M)."""
        bias_HKL = F.pad(self.bias.to(dtype)[:, self.pair_KK], (0, n_global))
        empty_WL = F.pad(~windows.occupied_WK, (0, n_global))
        masked_WL = torch.zeros_like(empty_WL, dtype=dtype).masked_fill(empty_WL, -torch.inf)
        return bias_HKL.unsqueeze(1) + masked_WL[:, None]


def tokens_seen(windows: Windows, n_global: int, lattice: Lattice) -> Tensor:
    """Token in each slot of windows, then the global tokens of their section, (W, K + M)."""
    global_WM = windows.section_W[:, None] * n_global + torch.arange(n_global, device=windows.section_W.device)
    return torch.cat([windows.spot_WK + n_global * lattice.n_sections, global_WM], dim=1)


class WindowedBackbone(Backbone):
    """Regular and shifted windows in turn, plus global tokens; cost is linear in the number of spots."""

    def __init__(self, config: WindowedConfig) -> None:
        super().__init__()
        self.width, self.n_context, self.window = config.width, config.n_global, config.window
        self.layers = nn.ModuleList(WindowedLayer(config, config.offset(i)) for i in range(config.n_layers))
        self.offsets = sorted({config.offset(i) for i in range(config.n_layers)})

    def prepare(self, lattice: Lattice) -> None:
        for offset in self.offsets:
            lattice.windows(self.window, offset)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        for layer in self.layers:
            h_TD = layer(h_TD, lattice)
        return h_TD
