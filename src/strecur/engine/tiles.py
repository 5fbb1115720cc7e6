"""Tiled computation for sections that exceed memory.

Each tile has a halo as wide as the receptive field of one outer step (``BackboneConfig.receptive_field``), so that the
spots inside the tile get the same result as on the whole section. This does not hold for global tokens, which see only
the tile; networks with global tokens can be trained in tiles, but predict on whole sections.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from strecur.engine.data import is_missing, take_spots
from strecur.nn import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from strecur.engine.data import Section
    from strecur.nn import Carry, Lattice, SpotNetwork


@dataclass(frozen=True)
class Tile:
    """Indices of the spots of a tile and its halo, and which of them are inside the tile."""

    spot_T: Tensor
    inner_T: Tensor


def cut_lattice(lattice: Lattice, side: int, halo: int) -> list[Tile]:
    """Cut one section into tiles of ``side`` × ``side`` cells with a halo; every spot is inside one tile."""
    cell_N2 = lattice.cells_N2 - lattice.cells_N2.amin(dim=0)
    block_N2 = cell_N2 // side
    tiles = []
    for block_2 in torch.unique(block_N2, dim=0):
        first, last = block_2 * side - halo, (block_2 + 1) * side - 1 + halo
        spot_T = ((cell_N2 >= first) & (cell_N2 <= last)).all(dim=1).nonzero().squeeze(1)
        tiles.append(Tile(spot_T, (block_N2[spot_T] == block_2).all(dim=1)))
    return tiles


def cut_section(section: Section, side: int, halo: int) -> list[Section]:
    """Cut a training section into tiles, without those that have no target; the halo is unlabelled."""
    tiles = []
    for i, tile in enumerate(cut_lattice(section.lattice, side, halo)):
        part = take_spots(section, tile.spot_T)
        target_T = part.target_N
        assert target_T is not None
        target_T[~tile.inner_T] = torch.nan if target_T.is_floating_point() else -1
        if not is_missing(target_T).all():
            tiles.append(replace(part, name=f"{section.name}/{i}"))
    return tiles


def step_in_tiles(
    network: SpotNetwork, batch: Batch, carry: Carry, tiles: Sequence[Tile]
) -> tuple[Tensor, Tensor | None, Carry]:
    """Run one outer step of one section tile by tile; equal to :meth:`SpotNetwork.step` if the halo is wide enough."""
    output_N: Tensor | None = None
    states: list[Tensor] = []
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
    assert output_N is not None
    return output_N, None, replace(carry, state=tuple(states), step=carry.step + 1)
