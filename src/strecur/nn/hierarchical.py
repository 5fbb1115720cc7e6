"""Hierarchical backbone for recursion, after HiST: windows, coarser lattices, and global tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from strecur.nn.attention import SlideAttention, split_tokens, values_in_windows
from strecur.nn.backbone import SLOTS_PER_SPOT, Backbone, BackboneConfig, Partition
from strecur.nn.layers import BranchEnd, SwiGLU, hidden_width, in_chunks, linear, rms_norm, shrink_branches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur.nn.lattice import Lattice


class HierarchyConfig(BackboneConfig):
    """What the two hierarchical backbones have in common: :class:`SlideAttention` on lattices of several levels."""

    n_heads: int
    window: int
    n_global: int

    @property
    def down(self) -> Sequence[int]:
        """Layers on each level on the way to the coarsest one, finest first."""
        raise NotImplementedError

    @property
    def up(self) -> Sequence[int]:
        """Layers on each level but the coarsest on the way back, finest first."""
        raise NotImplementedError

    def windows_of(self, size: int) -> list[Partition]:
        """Windows of one layer, ``size`` cells of the finest lattice along a side: regular and shifted ones."""
        return [(size, 0), (size, size // 2)]

    def partitions(self) -> list[list[Partition]]:
        """Windows of all layers; a step between two levels joins a spot with the others of its parent."""

        def layers(level: int, depth: int) -> list[list[Partition]]:
            return [self.windows_of(self.window * 2**level)] * depth

        def parents(level: int) -> list[list[Partition]]:
            return [[(2 ** (level + 1), 0)]]

        levels = range(len(self.up))
        way_up = [step for level in levels for step in layers(level, self.up[level]) + parents(level)]
        way_down = [step for level in reversed(levels) for step in parents(level) + layers(level, self.down[level])]
        return way_up + layers(len(self.up), self.down[-1]) + way_down

    @property
    def n_context(self) -> int:
        return self.n_global

    @property
    def n_layers_per_call(self) -> int:
        return sum(self.down) + sum(self.up)

    def tokens_seen(self, layout: str, n_spots: int) -> float:
        return SLOTS_PER_SPOT[layout] * len(self.windows_of(self.window)) * self.window**2

    def window_values_kept(self, layout: str) -> float:
        """Values per token that the attention within all windows keeps for the gradient."""
        kept = 5 * self.width + 2 * self.n_heads * self.window**2
        return len(self.windows_of(self.window)) * SLOTS_PER_SPOT[layout] * kept

    def window_values_passing(self, layout: str) -> float:
        """Values per token that the attention within one window holds, without gradient."""
        return values_in_windows(self.width, self.n_heads, self.window**2 + self.n_global, layout)


@dataclass(frozen=True)
class HierarchicalConfig(HierarchyConfig):
    """V-cycle of post-norm layers, the same on every level, for recursion; after HiST :cite:p:`hist`.

    Attributes
    ----------
    width
        Channels of a token.
    n_heads
        Attention heads.
    window
        Cells along a side of a window, even; shifted windows are shifted by half of it.
    n_levels
        Lattices, each with half the rows and columns of the one before.
    n_layers
        Layers on each level on the way down, and again on the way up.
    n_global
        Global tokens per section.
    """

    name: ClassVar[str] = "hierarchical"

    width: int = 192
    n_heads: int = 4
    window: int = 6
    n_levels: int = 3
    n_layers: int = 1
    n_global: int = 4

    def build(self) -> HierarchicalBackbone:
        return HierarchicalBackbone(self)

    @property
    def down(self) -> Sequence[int]:
        return [self.n_layers] * self.n_levels

    @property
    def up(self) -> Sequence[int]:
        return [self.n_layers] * (self.n_levels - 1)

    @property
    def n_weights(self) -> int:
        return (2 * self.n_layers + 2) * self.weights_per_layer  # 2 for the maps between levels

    @property
    def layer_passes(self) -> float:
        both_ways = sum(2 / 4**level for level in range(self.n_levels - 1))
        return self.n_layers * (both_ways + 1 / 4 ** (self.n_levels - 1))

    def values_kept(self, layout: str) -> float:
        return 4 * hidden_width(self.width) + 8 * self.width + self.window_values_kept(layout)

    def values_passing(self, layout: str) -> float:
        return max(3 * hidden_width(self.width), self.window_values_passing(layout))


def gather_children(spots_ND: Tensor, lattice: Lattice) -> Tensor:
    """Concatenate the spots of each parent, slot by slot, zero where there is none; (parents, 4D)."""
    parents = lattice.windows(2, 0)
    table = spots_ND.new_zeros(parents.occupied_WK.numel(), spots_ND.shape[1])
    return table.index_copy(0, parents.site_N, spots_ND).view(len(parents.occupied_WK), -1)


def spread_to_children(parents_P4D: Tensor, lattice: Lattice) -> Tensor:
    """Give each spot its quarter of its parent, (N, D)."""
    return parents_P4D.unflatten(1, (4, -1)).flatten(0, 1).index_select(0, lattice.windows(2, 0).site_N)


def prepare_levels(lattice: Lattice, window: int, n_levels: int) -> None:
    """Build the index tensors of a lattice and of its coarser levels."""
    for level in range(n_levels):
        lattice.quarters(window)
        lattice = lattice.coarser if level < n_levels - 1 else lattice


class RecursiveLayer(nn.Module):
    """Post-norm layer as in TRM: weight-free RMSNorm, SwiGLU, no biases."""

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
        """Apply the second half of the layer, in which tokens do not see each other."""
        return rms_norm(h_TD + self.mlp(h_TD))


class HierarchicalBackbone(Backbone):
    """Refine, coarsen, do the same on the coarser lattice, uncoarsen, refine again; all levels share their weights.

    There are parents only where there are spots; a missing child adds nothing. Every token leaves with unit root mean
    square. Shifting a section by ``window * 2 ** (n_levels - 1)`` cells changes nothing; other shifts move the windows
    too.
    """

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        if config.n_levels < 2:
            msg = f"n_levels={config.n_levels}: choose at least 2, or use the windowed backbone"
            raise ValueError(msg)
        self.width, self.n_context, self.n_levels = config.width, config.n_global, config.n_levels
        self.window = config.window
        self.descent = nn.ModuleList(RecursiveLayer(config) for _ in range(config.n_layers))
        self.coarsen = linear(4 * config.width, config.width)
        self.uncoarsen = BranchEnd(config.width, 4 * config.width)
        self.ascent = nn.ModuleList(RecursiveLayer(config) for _ in range(config.n_layers))
        # the layers are applied on every level: with full branches the features would be lost on the way
        shrink_branches(self, 1 / config.n_levels)

    def prepare(self, lattice: Lattice) -> None:
        prepare_levels(lattice, self.window, self.n_levels)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        return self.cycle(h_TD, lattice, self.n_levels - 1)

    def cycle(self, h_TD: Tensor, lattice: Lattice, n_coarser: int) -> Tensor:
        """Apply the layers of one level, and between them those of ``n_coarser`` coarser levels."""
        for layer in self.descent:
            h_TD = layer(h_TD, lattice)
        if n_coarser == 0:
            return h_TD
        tokens, spots = split_tokens(h_TD, lattice)
        parents = rms_norm(self.coarsen(gather_children(spots, lattice)))
        coarse_TD = self.cycle(torch.cat([tokens, parents]), lattice.coarser, n_coarser - 1)
        tokens, parents = split_tokens(coarse_TD, lattice.coarser)
        h_TD = torch.cat([tokens, rms_norm(spots + spread_to_children(self.uncoarsen(parents), lattice))])
        del spots, coarse_TD, parents  # to save memory
        for layer in self.ascent:
            h_TD = layer(h_TD, lattice)
        return h_TD
