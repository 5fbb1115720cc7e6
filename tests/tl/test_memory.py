"""Trainings and predictions that hardly fit into memory, or do not."""

from __future__ import annotations

import logging
from dataclasses import replace

import calls
import numpy as np
import pytest
import torch

import strecur as st
from strecur.engine import Augmentation, cost
from strecur.models.plan import in_tiles
from strecur.nn import HistConfig, WindowedConfig

from .conftest import QUICK, SMALL, train

APPLY = {"library_key": "section", "copy": True}


def test_what_a_run_will_take_is_logged(sections, trained, caplog):
    with caplog.at_level(logging.INFO, logger="strecur"):
        model = train(sections, max_epochs=1)
    assert "training: 3 section(s), the largest of 118 spots, windowed backbone; about 0." in caplog.text
    assert "on cpu" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="strecur"):
        calls.trm_domains(sections, model, **APPLY)
    assert "prediction: 3 section(s)" in caplog.text


@pytest.mark.parametrize("backbone", [SMALL["backbone"], HistConfig(width=32, n_heads=2, dropout=0.2)])
def test_a_training_that_repeats_calls_gives_the_same_model(sections, memory, backbone):
    options = {"max_epochs": 1, "backbone": backbone, "validation": None}
    usual = train(sections, **options)
    assert not usual.network.recursion.recompute
    load = cost.Workload(usual.architecture, usual.backbone, 30, 3, "hex", training=True, on_cpu=True)
    needed = [cost.memory(replace(load, recompute=recompute), 118) for recompute in (True, False)]
    memory(sum(needed) / 2 / 0.9)
    sparing = train(sections, **options)
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
    train(sections, max_epochs=1, validation=None, slots=1)
    assert sorted(sizes) == [(n, min(n, 60)) for n in sorted(sections.obs["section"].value_counts())]
    sizes.clear()
    train(sections, max_epochs=1, tile=14)
    assert all(before == after for before, after in sizes)


def test_nothing_is_computed_before(sections, trained, memory, monkeypatch):
    memory(10**5)
    monkeypatch.setattr("strecur.models.fitting.fit", lambda *_a, **_k: pytest.fail("training began"))
    fitted = "strecur.models.domain_task.fit_domain_features"
    monkeypatch.setattr(fitted, lambda *_a, **_k: pytest.fail("features were fitted"))
    with pytest.raises(ValueError, match=r"training on section 'S2' \(118 spots\) would take"):
        train(sections)
    before = set(sections.obs)
    with pytest.raises(ValueError, match=r"prediction on section 'S2' \(118 spots\) would take"):
        calls.trm_domains(sections, trained, **APPLY)
    assert set(sections.obs) == before


def test_stopping_early_needs_memory_for_all_views(sections, trained, memory):
    load = cost.Workload(trained.architecture, trained.backbone, 30, 3, "hex", training=False, on_cpu=True)
    one, all_views = (cost.memory(load, 118, n_views) for n_views in (1, 4))
    memory((one + all_views) / 2 / 0.9)
    assert calls.trm_domains(sections, trained, **APPLY) is not None
    with pytest.raises(ValueError, match="symmetric=False"):
        calls.trm_domains(sections, trained, **APPLY, stop_early=True)
    assert calls.trm_domains(sections, trained, **APPLY, stop_early=True, symmetric=False) is not None


def test_training_in_tiles_learns_from_every_label_once(sections, monkeypatch):
    seen = []
    original = in_tiles

    def recorded(*arguments):
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr("strecur.models.fitting.in_tiles", recorded)
    options = {"backbone": WindowedConfig(width=32, n_heads=2, window=4), "architecture": "feedforward"}
    model = train(sections, tile=7, max_epochs=15, learning_rate=2e-3, validation=None, **options)
    # sections of 14 × 14 spots in four tiles each
    (tiles,) = seen
    assert len(tiles) == 12
    assert sum(int((part.target_N >= 0).sum()) for part in tiles) == sections.obs["domain"].notna().sum()
    assert any((part.target_N < 0).any() for part in tiles)
    result = calls.trm_domains(sections, model, **APPLY)
    scores = st.metrics.domain_scores(sections.obs["domain"], result.obs["trm_domains"])
    assert scores["accuracy"] > 0.8
    # tiles that hold whole sections are the sections
    whole, none = train(sections, tile=14, max_epochs=1, **options), train(sections, max_epochs=1, **options)
    for one, other in zip(whole.network.parameters(), none.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_expression_learns_in_tiles(sections):
    sections.obsm["X_patch"] = sections.obsm["spatial"].astype(np.float32)
    options = {k: v for k, v in QUICK.items() if k != "neighbours"} | {"backbone": SMALL["backbone"]}
    genes = list(sections.var_names[:4])
    options |= {"tile": 7, "neighbours": (), "n_networks": 1, "max_epochs": 1}
    model = calls.train_expression(sections, library_key="section", genes=genes, **options)
    assert model.history["train_loss"].notna().all()
