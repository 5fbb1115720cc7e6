"""Learning curve of GenAR, on small sections with a small network."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_histology import join, make_section

from strecur.nn import GenARConfig
from strecur.nn.genar.model import GenAR
from strecur.nn.genar.targets import clip_counts, gaussian_labels, log_shares

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
curve = importlib.import_module("genar_curve")
TINY = {"width": 16, "n_layers": 1, "n_heads": 2, "condition_width": 8, "linear_start": False}


@pytest.fixture(scope="module")
def adata():
    return join(*(make_section(name, seed) for seed, name in enumerate(["S1", "S2", "S3"], 1)))


def test_the_loss_of_the_frequencies_is_the_divergence_of_the_labels_from_them(adata):
    genes = list(adata.var_names[:4])
    order_G = torch.tensor([2, 0, 3, 1])
    counts_NG = torch.from_numpy(adata[:, genes].X.toarray())[:, order_G]
    config = GenARConfig(scales="single", **TINY).fitted(4, int(counts_NG.max()))
    model = SimpleNamespace(
        network=SimpleNamespace(head=SimpleNamespace(genar=GenAR(config), order_G=order_G)), genes=genes
    )
    clipped_NG, _ = clip_counts(counts_NG, config.n_tokens)
    label_NGV = gaussian_labels(clipped_NG, config.n_tokens, config.softness).numpy()
    log_GV = log_shares(counts_NG, 4, config.n_tokens).log_softmax(dim=-1).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.nan_to_num(label_NGV * (np.log(label_NGV) - log_GV)).sum(axis=(1, 2)).mean()
    assert curve.loss_of_frequencies(adata, genes, model) == pytest.approx(divergence, rel=0.02)


def test_a_curve_has_one_row_for_each_pass(adata, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(curve, "read_sections", lambda _options: adata)
    small = SimpleNamespace(paper=partial(GenARConfig.paper, **TINY))
    monkeypatch.setattr(curve, "GenARConfig", small)
    monkeypatch.setattr(curve, "choose_panel", lambda train, n: list(train.var_names[:n]))
    given = ["--data", "toy", "--sections", "S1", "S2", "S3", "--test", "S3", "--genes", "8", "--spots", "100"]
    monkeypatch.setattr(sys, "argv", ["genar_curve.py", *given, "--minutes", "0.02", "--out", str(tmp_path / "a.csv")])
    curve.main()
    table = pd.read_csv(tmp_path / "a.csv")
    assert table["optimizer_steps"].tolist() == [2 * (i + 1) for i in range(len(table))]
    assert (tmp_path / "a.png").exists()
    shown = capsys.readouterr().out
    assert "optimizer steps" in shown
    assert "ridge" in shown


def test_tenths_hold_every_pass_once():
    table = pd.DataFrame({"optimizer_steps": np.arange(3, 78, 3), "train_loss": np.arange(25.0)})
    found = curve.by_tenth(table.assign(loss_of_frequencies=7.0))
    assert len(found) == 10
    assert found["optimizer_steps"].iloc[-1] == 75
    sizes = np.diff(found["optimizer_steps"], prepend=0) / 3
    assert (found["train_loss"] * sizes).sum() == table["train_loss"].sum()
    assert len(curve.by_tenth(table.iloc[:4].assign(loss_of_frequencies=7.0))) == 4
