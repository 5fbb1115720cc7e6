"""Backbone of HiST: a hierarchical transformer with an encoder and a decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from strecur.nn.attention import Positions, SlideAttention, split_tokens
from strecur.nn.backbone import Backbone
from strecur.nn.hierarchical import HierarchyConfig, gather_children, prepare_levels, spread_to_children
from strecur.nn.layers import in_chunks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur.nn.backbone import Partition
    from strecur.nn.lattice import Lattice

Resampling = Literal["convolution", "merge", "mean"]


@dataclass(frozen=True)
class HistConfig(HierarchyConfig):
    """Network of HiST :cite:p:`hist`, for use without recursion.

    Attributes
    ----------
    width
        Channels of a token.
    n_heads
        Attention heads.
    window
        Cells along a side of a window, even; shifted windows are shifted by half of it.
    encoder_depths
        Layers on each level on the way down, finest first.
    decoder_depths
        Layers on each level on the way up, finest last; one level less than in the encoder.
    n_global
        Global tokens per section, of which the paper has one ("calibration token"); 0 for none.
    dropout
        Dropout of the inputs and of the attention weights.
    cells_per_pitch
        Resample regular lattices to an irregular one with this many cells per distance of neighbouring spots, like the
        rotated and sheared copies of :class:`strecur.engine.HistAugmentation`. If ``None``, use the lattice as it is.
    positions
        How attention within a window knows the offset of two cells: a learned bias (``"relative"``, HiST), rotary
        positions of rows and columns (``"rope"``), a fixed bias that falls with the distance, differently fast in each
        head (``"alibi"``), or not at all (``"none"``).
    skip
        Concatenate the tokens of the encoder in the decoder (skip connections).
    shifted
        Attend to shifted windows too.
    resampling
        From one level to the next: ``"convolution"`` has a matrix for each of the four children (HiST); ``"merge"``
        also normalises the concatenated children before it, as in Swin transformers; ``"mean"`` has one matrix for the
        mean of the children, so that their places do not matter.

    Examples
    --------
    >>> from strecur.nn import HistConfig
    >>> without_skip = HistConfig(width=64, n_heads=4, skip=False)
    >>> without_skip.build().fuse.in_features, HistConfig(width=64, n_heads=4).build().fuse.in_features
    (64, 128)
    """

    name: ClassVar[str] = "hist"

    width: int = 512
    n_heads: int = 8
    window: int = 6
    encoder_depths: tuple[int, ...] = (1, 1, 1)
    decoder_depths: tuple[int, ...] = (2, 1)
    n_global: int = 1
    dropout: float = 0.05
    cells_per_pitch: float | None = None
    positions: Positions = "relative"
    skip: bool = True
    shifted: bool = True
    resampling: Resampling = "convolution"

    def __post_init__(self) -> None:
        for name, kind in (("positions", Positions), ("resampling", Resampling)):
            if getattr(self, name) not in get_args(kind):
                msg = f"{name}={getattr(self, name)!r}; choose one of {list(get_args(kind))}"
                raise ValueError(msg)
        if self.positions == "rope" and self.head_width % 4:
            msg = (
                f"positions='rope' needs a multiple of 4 channels per head; width={self.width}, n_heads={self.n_heads}"
            )
            raise ValueError(msg)

    @property
    def head_width(self) -> int:
        """Channels of an attention head."""
        return self.width // self.n_heads

    @property
    def width_up(self) -> int:
        """Channels of a token that leaves a level of the decoder."""
        return 2 * self.width if self.skip else self.width

    def windows_of(self, size: int) -> list[Partition]:
        return super().windows_of(size) if self.shifted else [(size, 0)]

    def build(self) -> HistBackbone:
        return HistBackbone(self)

    @property
    def down(self) -> Sequence[int]:
        return self.encoder_depths

    @property
    def up(self) -> Sequence[int]:
        return self.decoder_depths[::-1]

    def receptive_field(self, n_calls: int) -> int:
        cells = super().receptive_field(n_calls)
        if self.cells_per_pitch is None:
            return cells
        return math.ceil(cells / (self.cells_per_pitch * 0.75**0.5)) + 1

    @property
    def weights_per_layer(self) -> int:
        return 15 * self.width**2

    @property
    def n_weights(self) -> int:
        return (self.n_layers_per_call + 2) * self.weights_per_layer  # 2 for the maps between levels

    @property
    def layer_passes(self) -> float:
        down = sum(depth / 4**level for level, depth in enumerate(self.down))
        return down + sum(depth / 4**level for level, depth in enumerate(self.up))

    def values_kept(self, layout: str) -> float:
        return 20 * self.width + self.window_values_kept(layout)

    def values_passing(self, layout: str) -> float:
        return max(3 * (4 * self.width), self.window_values_passing(layout))


class HistLayer(nn.Module):
    """Pre-norm layer with LayerNorm, separate queries, keys and values for windows and for global tokens, and ReLU."""

    def __init__(self, config: HistConfig) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.window_qkv = nn.Linear(config.width, 3 * config.width)
        self.global_qkv = nn.Linear(config.width, 3 * config.width)
        self.attention = SlideAttention(
            config.n_heads,
            config.window,
            config.dropout,
            positions=config.positions,
            shifted=config.shifted,
            head_width=config.head_width,
        )
        if config.positions == "relative":
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
        """Apply the second half of the layer, in which tokens do not see each other."""
        return h_TD + self.mlp(self.mlp_norm(h_TD))


class HistStage(nn.ModuleList):
    """Layers of one level."""

    def __init__(self, config: HistConfig, depth: int) -> None:
        super().__init__(HistLayer(config) for _ in range(depth))

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        for layer in self:
            h_TD = layer(h_TD, lattice)
        return h_TD


class HistCoarsening(nn.Module):
    """Sum over the children that exist, with one matrix for each of the four; tokens have a map of their own.

    With ``"merge"`` the concatenated children are normalised before; with ``"mean"`` there is one matrix for their
    mean.
    """

    def __init__(self, d_in: int, d_out: int, resampling: Resampling = "convolution") -> None:
        super().__init__()
        self.is_mean = resampling == "mean"
        self.tokens = nn.Linear(d_in, d_out)
        self.before = nn.LayerNorm(4 * d_in) if resampling == "merge" else nn.Identity()
        self.spots = nn.Linear(d_in if self.is_mean else 4 * d_in, d_out, bias=False)
        self.norm = nn.LayerNorm(d_out)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        """Go from the tokens of ``lattice`` to those of ``lattice.coarser``."""
        tokens, spots = split_tokens(h_TD, lattice)
        children = gather_children(spots, lattice)
        if self.is_mean:
            children = children.unflatten(1, (4, -1)).sum(dim=1) / count_children(lattice).to(children.dtype)
        return torch.cat([self.tokens(tokens), self.norm(self.spots(self.before(children)))])


def count_children(lattice: Lattice) -> Tensor:
    """Count the spots of each parent, (P, 1)."""
    return lattice.windows(2, 0).occupied_WK.sum(dim=1, keepdim=True)


class HistUncoarsening(nn.Module):
    """One matrix for each of the four children, equal at initialisation; tokens have a map of their own.

    With ``"mean"`` one matrix serves all four.
    """

    def __init__(self, d_in: int, d_out: int, resampling: Resampling = "convolution") -> None:
        super().__init__()
        self.is_mean = resampling == "mean"
        self.tokens = nn.Linear(d_in, d_out)
        self.spots = nn.Linear(d_in, d_out if self.is_mean else 4 * d_out, bias=False)
        if not self.is_mean:
            with torch.no_grad():
                self.spots.weight.copy_(self.spots.weight[:d_out].repeat(4, 1))
        self.norm = nn.LayerNorm(d_out)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        """Go from the tokens of ``lattice.coarser`` to those of ``lattice``."""
        tokens, parents = split_tokens(h_TD, lattice.coarser)
        children = self.spots(parents)
        if self.is_mean:
            children = children.repeat(1, 4)
        return torch.cat([self.tokens(tokens), self.norm(spread_to_children(children, lattice))])


class HistBackbone(Backbone):
    """Encoder and decoder of HiST; each level of the decoder concatenates the tokens of the encoder (skip connection).

    There are parents only where there are spots. A last linear map brings the concatenated tokens back to ``width``;
    the head of HiST reads both.
    """

    def __init__(self, config: HistConfig) -> None:
        super().__init__()
        if len(config.decoder_depths) != len(config.encoder_depths) - 1:
            msg = f"{config} needs a decoder depth for every level but the coarsest: one less than encoder_depths"
            raise ValueError(msg)
        width = self.width = config.width
        self.n_context, self.cells_per_pitch = config.n_global, config.cells_per_pitch
        self.window, self.n_levels = config.window, len(config.encoder_depths)
        self.skip, how = config.skip, config.resampling
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(HistStage(config, depth) for depth in config.encoder_depths)
        self.coarsen = nn.ModuleList(HistCoarsening(width, width, how) for _ in config.decoder_depths)
        self.uncoarsen = nn.ModuleList(
            HistUncoarsening(width if i == 0 else config.width_up, width, how)
            for i in range(len(config.decoder_depths))
        )
        self.decoder = nn.ModuleList(HistStage(config, depth) for depth in config.decoder_depths)
        self.fuse = nn.Linear(config.width_up, width)

    def at_own_scale(self, lattice: Lattice) -> Lattice:
        """Return the lattice that the layers see."""
        return lattice if self.cells_per_pitch is None else lattice.finer(self.cells_per_pitch)

    def prepare(self, lattice: Lattice) -> None:
        prepare_levels(self.at_own_scale(lattice), self.window, self.n_levels)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        lattice = self.at_own_scale(lattice)
        first, *coarser = self.encoder
        h_TD = first(self.dropout(h_TD), lattice)
        passed = []
        for coarsen, stage in zip(self.coarsen, coarser, strict=True):
            passed.append((h_TD, lattice))
            h_TD, lattice = coarsen(h_TD, lattice), lattice.coarser
            h_TD = stage(h_TD, lattice)
        for uncoarsen, stage in zip(self.uncoarsen, self.decoder, strict=True):
            lateral_TD, lattice = passed.pop()
            h_TD = stage(uncoarsen(h_TD, lattice), lattice)
            if self.skip:
                h_TD = torch.cat([h_TD, lateral_TD], dim=1)
        return self.fuse(h_TD)
