"""The ablation table of HiST, on small sections."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from toy_histology import join, make_section

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
hist = importlib.import_module("hist")


@pytest.fixture
def adata():
    return join(*(make_section(name, seed) for seed, name in enumerate(["S1", "S2", "S3"], 1)))


def tiny(tmp_path, *more: str) -> list[str]:
    options = ["--data", "toy", "--sections", "S1", "S2", "S3", "--width", "16", "--heads", "2", "--epochs", "2"]
    return [*options, "--genes", "5", "--out", str(tmp_path / "table.csv"), *more]


def test_every_row_is_trained_once_on_the_other_sections(adata, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hist, "read", lambda _options: adata)
    learned = []
    train = hist.train

    def recorded(part, row, *arguments):
        learned.append((row, sorted(part.obs["section"].unique())))
        return train(part, row, *arguments)

    monkeypatch.setattr(hist, "train", recorded)
    rows = ["HiST", "RoPE", "no calibration token", "no augmentation"]
    hist.main(tiny(tmp_path, "--rows", *rows))
    others = [["S2", "S3"], ["S1", "S3"], ["S1", "S2"]]
    assert learned == [(row, part) for part in others for row in rows]
    table = pd.read_csv(tmp_path / "table.csv")
    assert sorted(table["row"]) == sorted([*rows, "ridge"] * 3)
    assert np.isfinite(table[hist.SCORES]).all(axis=None)
    size = table.groupby("row")["n_weights"].first()
    assert size["HiST"] > size["RoPE"]  # which has no table of offsets
    again = hist.summarise(table)
    assert "ridge" in again.index
    hist.main(tiny(tmp_path, "--rows", *rows))
    assert len(learned) == 12
    assert "r2_pooled" in capsys.readouterr().out


def test_the_first_row_is_the_published_network(adata, tmp_path):
    options = hist.parse_options(tiny(tmp_path, "--rows", "HiST"))
    model = hist.train(adata, "HiST", list(adata.var_names[:4]), options, 0)
    assert model.backbone.cells_per_pitch == 1.5
    assert (model.backbone.positions, model.backbone.skip, model.backbone.n_global) == ("relative", True, 1)
    assert model.features.neighbours == ()
    assert next(iter(hist.ROWS)) == "HiST"
    for row, (network, augmentation) in hist.ROWS.items():
        assert (row == "HiST") == (not network and not augmentation)
        hist.HistConfig(**network)
        hist.HistAugmentation(**augmentation)


def test_negative_predictions_count_as_zero(adata):
    model = SimpleNamespace(genes=list(adata.var_names[:4]))
    truth = np.log2(adata[:, model.genes].X.toarray() + 1)
    adata.obsm["right"], adata.obsm["low"] = truth, np.where(truth == 0, -5, truth)
    assert hist.score(adata, model, "low") == hist.score(adata, model, "right")
    assert hist.score(adata, model, "right")["r2_pooled"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("n", "sizes"), [(4, [2, 2, 2, 3]), (2, [4, 5]), (9, [1] * 9)])
def test_folds_hold_every_section_once(n, sizes):
    names = [f"s{i}" for i in range(9)]
    folds = hist.make_folds(names, n)
    assert [len(fold) for fold in folds] == sizes
    assert sorted(name for fold in folds for name in fold) == names
    assert hist.make_folds(names[::-1], n) == folds
    assert hist.make_folds(names, None) == [[name] for name in names]


def test_folds_and_options_that_cannot_be(tmp_path):
    with pytest.raises(SystemExit, match="choose 2 to 3"):
        hist.make_folds(["a", "b", "c"], 4)
    for wrong in (["--data", "x"], ["--hest", "x", "--stain", "A1"], ["--sections", "S1"]):
        with pytest.raises(SystemExit):
            hist.parse_options(wrong)


def test_the_figure_shows_differences_from_the_network_of_the_same_fold_and_seed(tmp_path, monkeypatch):
    rows = [
        {"test": test, "seed": seed, "row": row, "r2_pooled": level + gain, "pcc_all": level - gain}
        for test, seed, level in (("C3", 0, 0.3), ("C3", 1, 0.5), ("C2", 0, 0.7))
        for row, gain in (("HiST", 0.0), ("RoPE", 0.1), ("no augmentation", 0.2))
    ]
    rows.append({"test": "C2", "seed": 9, "row": "RoPE", "r2_pooled": 9.0, "pcc_all": 9.0})  # nothing to compare with
    table = pd.DataFrame(rows).reindex(columns=["test", "seed", "row", *hist.SCORES])
    kept = []
    monkeypatch.setattr(hist.plt, "close", kept.append)
    hist.draw(table, tmp_path / "figure.png")
    by_score = kept[0].axes
    assert [label.get_text() for label in by_score[0].get_yticklabels()] == ["no augmentation", "RoPE"]
    for ax, sign in zip(by_score, (1, -1), strict=True):
        dots = np.concatenate([line.get_xydata() for line in ax.lines[:2]])
        assert len(dots) == 6
        np.testing.assert_allclose(dots[dots[:, 1] == 0, 0], sign * 0.2)
        np.testing.assert_allclose(dots[dots[:, 1] == 1, 0], sign * 0.1)
