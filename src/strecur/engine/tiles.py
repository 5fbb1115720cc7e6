"""Large sections in tiles: a block of cells, and around it as many as it needs to be computed as in the section.

A spot hears of another one over a limited distance in one outer step, if there are no global tokens: its window, the
windows that touch that one in the layer before, and so on through all layers of all calls. This distance is the halo.
Global tokens see a whole section, in a tile only the tile; networks that have them are trained, not applied, by tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strecur.engine.data import is_missing, take
from strecur.engine.estimate import n_calls_in_all
from strecur.nn import Batch, HierarchicalConfig, HistConfig, Lattice, WindowedConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur.engine.data import Section
    from strecur.engine.estimate import Backbone, Recursion
    from strecur.nn import Carry, SpotNetwork

# Partition of one axis into windows: their size and offset.
Partition = tuple[int, int]


def halo(recursion: Recursion, backbone: Backbone) -> int:
    """Cells from which a spot hears in one outer step, to each side.

    Raises
    ------
    ValueError
        If every spot hears from its whole section.
    """
    layers = partitions(backbone)
    distances = []
    for cell in range(period(backbone)):
        low = high = cell
        for seen in [*layers] * n_calls_in_all(recursion):
            low, high = (
                min((low + offset) // size * size - offset for size, offset in seen),
                max((high + offset) // size * size - offset + size - 1 for size, offset in seen),
            )
        distances += [cell - low, high - cell]
    found = max(distances)
    if isinstance(backbone, HistConfig) and backbone.cells_per_pitch is not None:
        found = math.ceil(found / (backbone.cells_per_pitch * 0.75**0.5)) + 1
    return found


def period(backbone: Backbone) -> int:
    """Cells by which a section can be moved so that its windows are the same again."""
    return math.lcm(*(size for seen in partitions(backbone) for size, _ in seen))


def partitions(backbone: Backbone) -> list[list[Partition]]:
    """Which windows a token looks at, layer by layer, the last layer first."""
    if isinstance(backbone, WindowedConfig):
        offsets = [(i % 2) * (backbone.window // 2) for i in range(backbone.n_layers)]
        return [[(backbone.window, offset)] for offset in reversed(offsets)]
    if isinstance(backbone, HierarchicalConfig):
        depths = [backbone.n_layers] * backbone.n_levels
        return _cycle(backbone.window, depths, depths[:-1])
    if isinstance(backbone, HistConfig):
        return _cycle(backbone.window, backbone.encoder_depths, backbone.decoder_depths[::-1])
    msg = f"a spot hears from its whole section through {backbone}; only windowed and hierarchical backbones have tiles"
    raise ValueError(msg)


def _cycle(window: int, down: Sequence[int], up: Sequence[int]) -> list[list[Partition]]:
    """Levels, finest first; going to and from a coarser one joins a spot with the others of its parent."""

    def layers(level: int, depth: int) -> list[list[Partition]]:
        size = window * 2**level
        return [[(size, 0), (size, size // 2)]] * depth

    def parents(level: int) -> list[list[Partition]]:
        return [[(2 ** (level + 1), 0)]]

    levels = range(len(up))
    way_up = [step for level in levels for step in layers(level, up[level]) + parents(level)]
    way_down = [step for level in reversed(levels) for step in parents(level) + layers(level, down[level])]
    return way_up + layers(len(up), down[-1]) + way_down


@dataclass(frozen=True)
class Tile:
    """Spots of a tile with its halo, and which of these belong to the tile itself."""

    spot_T: Tensor
    inner_T: Tensor


def cut_lattice(lattice: Lattice, side: int, halo: int) -> list[Tile]:
    """Cut one section into tiles of ``side`` × ``side`` cells that hold a spot; every spot is inner in one."""
    cell_N2 = lattice.cells_N2 - lattice.cells_N2.amin(dim=0)
    block_N2 = cell_N2 // side
    tiles = []
    for block_2 in torch.unique(block_N2, dim=0):
        first, last = block_2 * side - halo, (block_2 + 1) * side - 1 + halo
        spot_T = ((cell_N2 >= first) & (cell_N2 <= last)).all(dim=1).nonzero().squeeze(1)
        tiles.append(Tile(spot_T, (block_N2[spot_T] == block_2).all(dim=1)))
    return tiles


def cut_section(section: Section, side: int, halo: int) -> list[Section]:
    """Cut a training section into tiles; spots of the halo count as unlabelled. A tile without labels is left out."""
    tiles = []
    for i, tile in enumerate(cut_lattice(section.lattice, side, halo)):
        part = take(section, tile.spot_T)
        target_T = part.target_N
        target_T[~tile.inner_T] = torch.nan if target_T.is_floating_point() else -1
        if not is_missing(target_T).all():
            tiles.append(replace(part, name=f"{section.name}/{i}"))
    return tiles


def step_in_tiles(
    network: SpotNetwork, batch: Batch, carry: Carry, tiles: Sequence[Tile]
) -> tuple[Tensor, Tensor | None, Carry]:
    """One outer step of one section, tile by tile; equal to :meth:`SpotNetwork.step` if the halo is large enough."""
    output_N, states = None, []
    for tile in tiles:
        part = Batch(batch.features_NF[tile.spot_T], batch.lattice.take(tile.spot_T))
        before = replace(carry, state=tuple(state[tile.spot_T] for state in carry.state))
        output_T, _, after = network.step(part, before)
        if output_N is None:
            n_spots = len(batch.features_NF)
            output_N = output_T.new_empty(n_spots, output_T.shape[1])
            states = [state.new_empty(n_spots, state.shape[1]) for state in after.state]
        inner_N = tile.spot_T[tile.inner_T]
        output_N[inner_N] = output_T[tile.inner_T]
        for state_N, state_T in zip(states, after.state, strict=True):
            state_N[inner_N] = state_T[tile.inner_T]
    return output_N, None, replace(carry, state=tuple(states), step=carry.step + 1)
