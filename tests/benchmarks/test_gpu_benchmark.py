"""The benchmark of GPUs on a machine without one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
gpu = importlib.import_module("gpu")


@pytest.fixture
def without_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "ENOUGH_SECONDS", 1e-9)
    monkeypatch.setitem(gpu.MATRIX, "cpu", 64)


def test_the_columns_of_the_cpu_remain(without_gpu, tmp_path, capsys):
    gpu.main(["--spots", "40", "16", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "finds no GPU" in printed
    assert torch.__version__ in printed
    table = pd.read_csv(tmp_path / "gpu.csv")
    assert len(table) == 2 * len(gpu.METHODS) * len(gpu.PHASES)
    assert set(table["device"]) == {"cpu"}
    assert (table[["seconds", "tflops", "share"]] > 0).all(axis=None)
    # share and speed have the same peak in every row
    assert (table["tflops"] / table["share"]).std() < 1e-2 * (table["tflops"] / table["share"]).mean()


def test_the_network_of_the_paper_does_the_most_and_is_for_small_sections(without_gpu):
    cpu = torch.device("cpu")
    loads = {method: gpu.workload(method, "training step", cpu) for method in gpu.METHODS}
    work = {method: gpu.operations(load, 4_000) for method, load in loads.items()}
    assert work["paper"] > 3 * work["windowed"]
    assert gpu.measure("paper", "prediction", 500_000, gpu.make_fabric("cpu", 1, None), 1.0) is None


def test_devices_are_beside_each_other():
    row = {"method": "windowed", "phase": "prediction", "n_spots": 10, "share": 0.5}
    table = pd.DataFrame([{**row, "device": "cuda", "seconds": 1.0}, {**row, "device": "cpu", "seconds": 8.0}])
    (found,) = gpu.side_by_side(table).to_dict("records")
    assert found["times faster"] == 8
    assert found["share (cuda)"] == 0.5


def test_without_any_device_nothing_is_measured(without_gpu):
    with pytest.raises(SystemExit, match="nothing was measured"):
        gpu.main(["--no-cpu"])
