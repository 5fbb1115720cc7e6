"""Shares of the time of a step, from the profiler."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
operations = importlib.import_module("operations")
KINDS = [*operations.KINDS, operations.OTHERS]


def test_shares_of_known_operations():
    a = torch.randn(400, 400)
    found = operations.shares(lambda: (a @ a).softmax(dim=-1))
    assert found[KINDS].sum() == pytest.approx(1, abs=1e-6)
    assert set(found.index[found == 0]) >= {KINDS[1], KINDS[3]}
    assert (found[["matrix products of all spots", "softmax"]] > 0).all()


@pytest.mark.parametrize(("name", "kind"), [("mm", 0), ("baddbmm", 1), ("copy_", 4), ("mul", -1)])
def test_kinds_of_operations(name, kind):
    event = type("Event", (), {"key": f"aten::{name}"})
    assert operations.kind_of(event) == KINDS[kind]
