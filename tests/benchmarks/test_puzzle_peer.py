"""What another implementation of TRM is given, and how its time is counted."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
peer, networks = map(importlib.import_module, ("puzzle_peer", "puzzle_networks"))
SMALL = networks.Sudokus(box=(2, 2), n_clues=6)


def test_given_cells_have_the_number_of_their_answer():
    sections = [SMALL.draw(np.random.default_rng(i), f"puzzle {i}") for i in range(6)]
    preset = networks.Preset(
        SMALL, "mixer", 16, 1, 2, 1, 2, networks.Training(batch_sections=4, max_epochs=1), n_train=6, n_test=0
    )
    stream = peer.batches(preset, sections, seed=0)
    for size in (4, 2, 4):
        batch = next(stream)
        given = batch["input"] > 0
        assert batch["input"].shape == batch["output"].shape == (size, 16)
        assert torch.equal(batch["input"][given], batch["output"][given])
        assert set(batch["output"].flatten().tolist()) == {1, 2, 3, 4}
        assert 6 <= given.sum(dim=1).min() < 16


def test_seconds_leave_out_the_evaluation(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 14.0, 20.0])
    monkeypatch.setattr(peer.time, "process_time", lambda: next(clock))
    curve = peer.Curve(lambda network: {"exact": network})
    assert [curve.measure(0.1), curve.measure(0.2)] == [{"exact": 0.1}, {"exact": 0.2}]
    assert [row["cpu_seconds"] for row in curve.rows] == [3.0, 7.0]
