from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from strecur.engine import Section, make_fabric, predict
from strecur.engine.tiles import cut_lattice, cut_section
from strecur.nn import (
    BackboneConfig,
    DenseConfig,
    DomainHead,
    FeedforwardConfig,
    HierarchicalConfig,
    HistConfig,
    Lattice,
    RecursionConfig,
    SpotNetwork,
    TRMConfig,
    UniversalConfig,
    WindowedConfig,
)
from strecur.options import Inference

FABRIC = make_fabric("cpu", 1, "32-true")
SMALL = {"width": 16, "n_heads": 2, "n_global": 0}
ONCE, TWICE = FeedforwardConfig(), TRMConfig(n_latent=1, n_deep=1)
CASES = {
    "windowed": (TWICE, WindowedConfig(**SMALL, window=4)),
    "windowed, three layers": (UniversalConfig(n_repeats=2), WindowedConfig(**SMALL, window=4, n_layers=3)),
    "hierarchical": (ONCE, HierarchicalConfig(**SMALL, window=4, n_levels=2)),
    "hist": (ONCE, HistConfig(**SMALL, window=4, encoder_depths=(1, 1), decoder_depths=(1,))),
    "hist, finer": (
        ONCE,
        HistConfig(**SMALL, window=4, encoder_depths=(1, 1), decoder_depths=(1,), cells_per_pitch=1.5),
    ),
}


def halo(recursion: RecursionConfig, backbone: BackboneConfig) -> int:
    return backbone.receptive_field(recursion.n_calls)


def network(recursion: RecursionConfig, backbone: BackboneConfig) -> SpotNetwork:
    torch.manual_seed(0)
    body = backbone.build()
    for name, parameter in body.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return SpotNetwork(5, recursion.build(body), DomainHead(16, 3), halting=None).eval()


def section(n_rows: int, n_cols: int, layout: str = "square") -> Section:
    """Most cells of a rectangle, whose corner lies anywhere."""
    generator = torch.Generator().manual_seed(n_rows)
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(n_rows), torch.arange(n_cols), indexing="ij"))
    kept = torch.rand(len(row), generator=generator) < 0.9
    row, col = row[kept] - 7, col[kept] + 3
    lattice = Lattice(row, 2 * col + row % 2 if layout == "hex" else col, (len(row),), layout)
    return Section("a", torch.randn(len(row), 5, generator=generator), lattice, torch.arange(len(row)) % 3)


@pytest.mark.parametrize("layout", ["square", "hex"])
@pytest.mark.parametrize("case", CASES)
def test_no_spot_beyond_the_halo_changes_the_answer(case, layout):
    """The gradient of one answer reaches some spot at the rim of the halo (or near it), and none farther off."""
    recursion, backbone = CASES[case]
    around = halo(recursion, backbone)
    side = 2 * (around + 12)  # beyond the halo of every spot that is looked at
    part, net = section(side, side, layout), network(recursion, backbone)
    cell = part.lattice.cells_N2
    farthest = 0
    for offset in range(8):
        middle = int((cell - cell.median(dim=0).values - offset).abs().sum(dim=1).argmin())
        features = part.features_NF.clone().requires_grad_()
        x_TD = net.embed(features, part.lattice)
        state = net.recursion.step(net.recursion.start(x_TD), x_TD, part.lattice)
        (gradient,) = torch.autograd.grad(state[0][middle].square().sum() + state[0][middle].sum(), features)
        reached = (cell - cell[middle]).abs()[gradient.abs().sum(dim=1) > 0].max()
        farthest = max(farthest, int(reached))
    assert farthest <= around
    slack = 4 if isinstance(backbone, HistConfig) and backbone.cells_per_pitch else 1
    assert farthest >= around - slack


@pytest.mark.parametrize("layout", ["square", "hex"])
@pytest.mark.parametrize("case", CASES)
def test_prediction_in_tiles_equals_that_of_the_whole_section(case, layout):
    recursion, backbone = CASES[case]
    part, net = section(50, 41, layout), network(recursion, backbone)
    inference = Inference(2, symmetric=False)
    (whole,), (tiled,), (careless,) = (
        predict(net, [part], replace(inference, **tiles), fabric=FABRIC, progress=False)[0].restarts
        for tiles in ({}, {"tile": 16, "halo": halo(recursion, backbone)}, {"tile": 16, "halo": 1})
    )
    np.testing.assert_allclose(tiled.output_DN, whole.output_DN, atol=1e-5)
    np.testing.assert_allclose(tiled.latent_ND, whole.latent_ND, atol=1e-5)
    np.testing.assert_allclose(tiled.residual_D, whole.residual_D, rtol=1e-4)
    assert np.abs(careless.output_DN - whole.output_DN).max() > 1e-3


def test_global_tokens_see_whole_sections_and_are_not_predicted_in_tiles():
    net = network(TWICE, WindowedConfig(width=16, n_heads=2, n_global=1))
    with pytest.raises(ValueError, match="n_global=0"):
        predict(net, [section(20, 20)], Inference(1, tile=8, halo=4), fabric=FABRIC, progress=False)
    with pytest.raises(ValueError, match="only windowed and hierarchical"):
        halo(TWICE, DenseConfig())


def test_halo_of_the_defaults():
    # a window, then half a window with each further layer
    assert halo(TRMConfig(), WindowedConfig()) == 7 + 7 * 4
    assert halo(FeedforwardConfig(), WindowedConfig(n_layers=1)) == 7
    assert halo(TRMConfig(n_deep=2), WindowedConfig()) == 7 + 15 * 4


@pytest.mark.parametrize("side", [3, 10, 1000])
def test_every_spot_is_inner_in_one_tile_and_has_its_surroundings(side):
    lattice = section(30, 23, "hex").lattice
    tiles = cut_lattice(lattice, side, halo=4)
    inner = torch.cat([tile.spot_T[tile.inner_T] for tile in tiles])
    assert torch.equal(inner.sort().values, torch.arange(len(lattice.row_N)))
    cell = lattice.cells_N2
    for tile in tiles:
        distance = (cell[:, None] - cell[tile.spot_T[tile.inner_T]]).abs().amax(dim=2).amin(dim=1)
        assert set(torch.nonzero(distance <= 4).flatten().tolist()) <= set(tile.spot_T.tolist())
    assert len(tiles) == {3: 80, 10: 9, 1000: 1}[side]


@pytest.mark.parametrize("kind", ["domains", "expression"])
def test_the_labels_of_the_halo_do_not_count(kind):
    part = section(30, 23)
    n_spots = len(part.features_NF)
    values = torch.arange(n_spots)
    target = values % 3 if kind == "domains" else values[:, None].float().repeat(1, 2)
    if kind == "domains":
        target[part.lattice.row_N < 3] = -1  # the upper tiles know no domain
    part = replace(part, target_N=target, views={4: -part.features_NF})
    before = target.clone()
    tiles = cut_section(part, 10, 5)
    known = [t.target_N >= 0 if kind == "domains" else ~t.target_N.isnan().any(dim=1) for t in tiles]
    assert sum(int(k.sum()) for k in known) == (n_spots if kind == "expression" else int((target >= 0).sum()))
    assert all(0 < int(k.sum()) < len(k) for k in known)
    assert len({t.name for t in tiles}) == len(tiles) == (9 if kind == "expression" else 6)
    assert torch.equal(part.target_N, before)
    for tile in tiles:
        assert torch.equal(tile.views[4], -tile.features_NF)
        assert len(tile.lattice.row_N) == len(tile.features_NF)
