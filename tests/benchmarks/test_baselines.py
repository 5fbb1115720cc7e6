"""Simple predictions that the benchmarks of expression compare with."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
baselines = importlib.import_module("baselines")


def test_smoothing_averages_the_nearest_spots():
    positions = np.stack(np.meshgrid(np.arange(9), np.arange(9), indexing="ij"), axis=-1).reshape(-1, 2)
    values = np.zeros((81, 1), dtype=np.float32)
    values[40] = 9
    expected = np.zeros((9, 9))
    expected[3:6, 3:6] = 1
    np.testing.assert_allclose(baselines.smooth(values, positions).reshape(9, 9), expected, atol=1e-6)


def test_retrieval_averages_the_most_similar_spots():
    reference = np.array([[1, 0], [0.9, 0.1], [0, 1], [-1, 0]], dtype=np.float32)
    target = np.array([[1.0], [3.0], [10.0], [20.0]], dtype=np.float32)
    query = np.array([[5, 0.01], [0, 0.2]], dtype=np.float32)
    # the angle counts, not the length
    assert baselines.retrieve(reference, target, query, 2).ravel().tolist() == [2, 6.5]
    assert baselines.retrieve(reference, target, query, 1).ravel().tolist() == [1, 10]
    assert baselines.retrieve(reference, target, query, 50).ravel().tolist() == [8.5, 8.5]
