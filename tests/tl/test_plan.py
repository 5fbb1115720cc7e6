from __future__ import annotations

import logging
from dataclasses import replace

import calls
import numpy as np
import pytest
import torch

import strecur as st
from strecur.engine import Augmentation, cost
from strecur.models.network import BACKBONES, to_json
from strecur.models.plan import TrainingPlan, in_tiles, largest_tile, plan_training
from strecur.nn import (
    DenseConfig,
    FeedforwardConfig,
    HierarchicalConfig,
    HistConfig,
    Lattice,
    PatchConfig,
    TRMConfig,
    WindowedConfig,
)

from .conftest import QUICK, SMALL, train

GB = 10**9
APPLY = {"library_key": "section", "accelerator": "cpu", "precision": "32-true", "progress": False, "copy": True}


@pytest.fixture
def memory(monkeypatch):
    """Return what sets the memory that seems to be free."""

    def free(n_bytes: float) -> None:
        monkeypatch.setattr(estimate, "available_memory", lambda _device: n_bytes)

    return free


def plan(backbone: object, sizes: dict[str, int], tile: int | None = None, **options: object) -> TrainingPlan:
    settings = {"n_features": 200, "n_outputs": 7, "n_epochs": 10, "accelerator": "cpu", "precision": "32-true"}
    settings |= {"architecture": TRMConfig(), "backbone": backbone, "sizes": sizes, "layout": "square", "tile": tile}
    return plan_training(**settings | options)


def test_what_a_run_will_take_is_logged(sections, trained, caplog):
    with caplog.at_level(logging.INFO, logger="strecur"):
        model = train(sections, max_epochs=1)
    assert "training: 3 section(s), the largest of 118 spots, windowed backbone; about 0." in caplog.text
    assert "on cpu" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="strecur"):
        calls.trm_domains(sections, model, **APPLY)
    assert "prediction: 3 section(s)" in caplog.text


@pytest.mark.parametrize("backbone", [WindowedConfig(), HierarchicalConfig()])
def test_large_sections_repeat_calls_and_get_tiles_only_if_that_is_not_enough(backbone, memory):
    memory(52 * GB)
    assert plan(backbone, {"a": 4_000}) == (None, False)
    task = cost.Task(TRMConfig(), backbone, 200, 7, "square", training=True, on_cpu=True)
    again = replace(task, recompute=True)
    assert cost.memory(task, 330_000) > 0.9 * 52 * GB > cost.memory(again, 330_000)
    assert plan(backbone, {"a": 330_000}) == (None, True)
    tile, recompute = plan(backbone, {"a": 4_000, "b": 2_000_000})
    assert recompute
    assert tile == largest_tile(again, 0.9 * 52 * GB)
    assert cost.memory(again, _plan.spots_of_tile(again, tile)) < 52 * GB
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
    with pytest.raises(ValueError, match="20,000.*windowed"):
        plan(DenseConfig(), {"a": 20_001})


def test_sections_shown_in_parts_need_the_memory_of_a_part(memory):
    memory(3.42 * GB)
    assert plan(WindowedConfig(), {"a": 250_000}).tile is not None
    assert plan(WindowedConfig(), {"a": 250_000}, max_spots=4096) == (None, False)
    # tiles that are asked for are whole
    assert plan(WindowedConfig(), {"a": 250_000}, tile=32, max_spots=4096).tile == 32
    with pytest.raises(ValueError, match="20,000.*windowed"):
        plan(DenseConfig(), {"a": 20_001}, max_spots=4096)


@pytest.mark.parametrize("backbone", [SMALL["backbone"], HistConfig(width=32, n_heads=2, dropout=0.2)])
def test_a_training_that_repeats_calls_gives_the_same_model(sections, memory, backbone):
    usual = train(sections, max_epochs=1, backbone=backbone)
    assert not usual.network.recursion.recompute
    task = cost.Task(usual.architecture, usual.backbone, 30, 3, "hex", training=True, on_cpu=True)
    needed = [cost.memory(replace(task, recompute=recompute), 118) for recompute in (True, False)]
    memory(sum(needed) / 2 / 0.9)
    sparing = train(sections, max_epochs=1, backbone=backbone)
    assert sparing.network.recursion.recompute
    for one, other in zip(usual.network.parameters(), sparing.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_domains_are_learned_from_parts_of_large_sections(sections, monkeypatch):
    monkeypatch.setattr("strecur.models.domain_task.CROP", 60)
    sizes = []
    original = Augmentation.__call__

    def recorded(self, section, generator):
        sizes.append((len(section.features_NF), len(original(self, section, generator).features_NF)))
        return original(self, section, generator)

    monkeypatch.setattr(Augmentation, "__call__", recorded)
    train(sections, max_epochs=1)
    assert sorted(sizes) == [(n, min(n, 60)) for n in sorted(sections.obs["section"].value_counts())]
    sizes.clear()
    train(sections, max_epochs=1, tile=14)
    assert all(before == after for before, after in sizes)


def test_nothing_is_computed_before(sections, trained, memory, monkeypatch):
    memory(10**5)
    for module in ("_train_domains", "_train_expression"):
        monkeypatch.setattr(f"strecur.tl.{module}.fit", lambda *_a, **_k: pytest.fail("training began"))
    monkeypatch.setattr("strecur.models.domain_task.fit_domain_features", lambda *_a, **_k: pytest.fail("features were fitted"))
    with pytest.raises(ValueError, match=r"training on section 'S2' \(118 spots\) would take"):
        train(sections)
    before = set(sections.obs)
    with pytest.raises(ValueError, match=r"prediction on section 'S2' \(118 spots\) would take"):
        calls.trm_domains(sections, trained, **APPLY)
    assert set(sections.obs) == before


def test_stopping_early_needs_memory_for_all_views(sections, trained, memory):
    task = cost.Task(trained.architecture, trained.backbone, 30, 3, "hex", training=False, on_cpu=True)
    one, all_views = (cost.memory(task, 118, n_views) for n_views in (1, 4))
    memory((one + all_views) / 2 / 0.9)
    assert calls.trm_domains(sections, trained, **APPLY) is not None
    with pytest.raises(ValueError, match="symmetric=False"):
        calls.trm_domains(sections, trained, **APPLY, stop_early=True)
    assert calls.trm_domains(sections, trained, **APPLY, stop_early=True, symmetric=False) is not None


def test_training_in_tiles_learns_from_every_label_once(sections, monkeypatch):
    seen = []
    original = _plan.in_tiles

    def recorded(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr("strecur.models.fitting.in_tiles", recorded)
    options = {"backbone": WindowedConfig(width=32, n_heads=2, window=4), "architecture": "feedforward"}
    model = train(sections, tile=7, max_epochs=40, **options)
    # sections of 14 × 14 spots in four tiles each
    (tiles,) = seen
    assert len(tiles) == 12
    assert sum(int((part.target_N >= 0).sum()) for part in tiles) == sections.obs["domain"].notna().sum()
    assert any((part.target_N < 0).any() for part in tiles)
    result = calls.trm_domains(sections, model, **APPLY)
    scores = st.metrics.domain_scores(sections.obs["domain"], result.obs["trm_domains"])
    assert scores["accuracy"] > 0.8
    # tiles that hold whole sections are the sections
    whole, none = train(sections, tile=14, max_epochs=2, **options), train(sections, max_epochs=2, **options)
    for one, other in zip(whole.network.parameters(), none.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_expression_learns_in_tiles(sections):
    sections.obsm["X_patch"] = sections.obsm["spatial"].astype(np.float32)
    options = {k: v for k, v in QUICK.items() if k != "neighbours"} | {"backbone": SMALL["backbone"]}
    genes = list(sections.var_names[:4])
    model = calls.train_expression(sections, library_key="section", genes=genes, tile=7, neighbours=(), **options)
    assert model.history["train_loss"].notna().all()


def test_sections_no_wider_than_a_tile_stay_whole():
    from strecur.engine import Section
    from strecur.nn import Lattice

    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(9), torch.arange(5), indexing="ij"))
    part = Section("a", torch.zeros(45, 2), Lattice(row, 2 * col, (45,), "hex"), torch.zeros(45, dtype=torch.long))
    assert in_tiles([part], TRMConfig(), WindowedConfig(), 9) == [part]
    assert len(in_tiles([part], TRMConfig(), WindowedConfig(), 5)) == 2
    assert in_tiles([part], TRMConfig(), WindowedConfig(), None) == [part]


@pytest.mark.parametrize(("backbone", "expected"), [(WindowedConfig(), 8), (HierarchicalConfig(), 24)])
def test_sections_are_moved_until_the_windows_are_the_same_again(backbone, expected):
    assert largest_shift(backbone) == expected
    row_N, col_N = (axis.flatten() for axis in torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij"))
    lattice = Lattice(row_N, col_N, (len(row_N),), "square")
    body = BACKBONES[to_json(backbone)["name"]][1](backbone).double()
    h_TD = torch.randn(len(row_N) + body.n_context, body.width, dtype=torch.float64)

    def moved(shift: int) -> torch.Tensor:
        with torch.no_grad():
            return body(h_TD, lattice.moved(transpose=False, flip_row=False, flip_col=False, shift=(shift, 0)))

    torch.testing.assert_close(moved(expected), moved(0), atol=1e-8, rtol=0)
    assert not torch.allclose(moved(expected // 2), moved(0), atol=1e-3)


def test_backbones_without_windows_are_not_moved():
    assert largest_shift(DenseConfig()) == largest_shift(PatchConfig()) == 0
