from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from strecur.engine import Section, cost
from strecur.models.plan import TrainingPlan, in_tiles, largest_tile, plan_training, spots_of_tile
from strecur.nn import (
    DenseConfig,
    FeedforwardConfig,
    HierarchicalConfig,
    Lattice,
    PatchConfig,
    TRMConfig,
    WindowedConfig,
)

GB = 10**9


def plan(backbone: object, sizes: dict[str, int], tile: int | None = None, **options: object) -> TrainingPlan:
    settings = {"n_features": 200, "n_outputs": 7, "n_epochs": 10}
    settings |= {"architecture": TRMConfig(), "backbone": backbone, "sizes": sizes, "layout": "square", "tile": tile}
    return plan_training(**settings | options)


@pytest.mark.parametrize("backbone", [WindowedConfig(), HierarchicalConfig()])
def test_large_sections_repeat_calls_and_get_tiles_only_if_that_is_not_enough(backbone, memory):
    memory(52 * GB)
    assert plan(backbone, {"a": 4_000}) == (None, False)
    load = cost.Workload(TRMConfig(), backbone, 200, 7, "square", training=True, on_cpu=True)
    again = replace(load, recompute=True)
    assert cost.memory(load, 330_000) > 0.9 * 52 * GB > cost.memory(again, 330_000)
    assert plan(backbone, {"a": 330_000}) == (None, True)
    tile, recompute = plan(backbone, {"a": 4_000, "b": 2_000_000})
    assert recompute
    assert tile == largest_tile(again, 0.9 * 52 * GB)
    assert cost.memory(again, spots_of_tile(again, tile)) < 52 * GB
    memory(20 * GB)
    assert plan(backbone, {"a": 2_000_000}).tile < tile
    # a smaller one may be wanted
    assert plan(backbone, {"a": 2_000_000}, tile=32).tile == 32


def test_one_call_is_not_repeated(memory):
    memory(52 * GB)
    tile, recompute = plan(WindowedConfig(), {"a": 2_000_000}, architecture=FeedforwardConfig())
    assert tile is not None
    assert not recompute


def test_what_cannot_fit_raises_and_says_what_would(memory):
    memory(GB)
    with pytest.raises(ValueError, match=r"'b' \(16,000 spots\).*are free.*would fit"):
        plan(DenseConfig(), {"a": 900, "b": 16_000})
    memory(1.3 * GB)
    with pytest.raises(ValueError, match="tile=48 would fit"):
        plan(WindowedConfig(), {"a": 250_000}, tile=256)
    memory(0.01 * GB)
    with pytest.raises(ValueError, match="smaller network"):
        plan(WindowedConfig(), {"a": 900})
    with pytest.raises(ValueError, match=r"20,000.*windowed"):
        plan(DenseConfig(), {"a": 20_001})


def test_sections_shown_in_parts_need_the_memory_of_a_part(memory):
    memory(3.42 * GB)
    assert plan(WindowedConfig(), {"a": 250_000}).tile is not None
    assert plan(WindowedConfig(), {"a": 250_000}, max_spots=4096) == (None, False)
    # tiles that are asked for are whole
    assert plan(WindowedConfig(), {"a": 250_000}, tile=32, max_spots=4096).tile == 32
    with pytest.raises(ValueError, match=r"20,000.*windowed"):
        plan(DenseConfig(), {"a": 20_001}, max_spots=4096)


def test_sections_no_wider_than_a_tile_stay_whole():
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(9), torch.arange(5), indexing="ij"))
    part = Section("a", torch.zeros(45, 2), Lattice(row, 2 * col, (45,), "hex"), torch.zeros(45, dtype=torch.long))
    assert in_tiles([part], TRMConfig(), WindowedConfig(), 9) == [part]
    assert len(in_tiles([part], TRMConfig(), WindowedConfig(), 5)) == 2
    assert in_tiles([part], TRMConfig(), WindowedConfig(), None) == [part]


@pytest.mark.parametrize(("backbone", "expected"), [(WindowedConfig(), 8), (HierarchicalConfig(), 24)])
def test_sections_are_moved_until_the_windows_are_the_same_again(backbone, expected):
    assert backbone.period == expected
    row_N, col_N = (axis.flatten() for axis in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    lattice = Lattice(row_N, col_N, (len(row_N),), "square")
    body = backbone.build().double()
    h_TD = torch.randn(len(row_N) + body.n_context, body.width, dtype=torch.float64)

    def moved(shift: int) -> torch.Tensor:
        with torch.no_grad():
            return body(h_TD, lattice.moved(transpose=False, flip_row=False, flip_col=False, shift=(shift, 0)))

    torch.testing.assert_close(moved(expected), moved(0), atol=1e-8, rtol=0)
    assert not torch.allclose(moved(expected // 2), moved(0), atol=1e-3)


def test_backbones_without_windows_are_not_moved():
    assert DenseConfig().period == PatchConfig().period == 0
