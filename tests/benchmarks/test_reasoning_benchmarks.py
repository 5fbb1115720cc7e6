"""Computations of the benchmarks of halting, uncertainty and transfer."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import strecur as st
from strecur.nn import WindowedConfig

if TYPE_CHECKING:
    from strecur.models import DomainModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
halting, kept, transfer, uncertainty = map(
    importlib.import_module, ("halting", "kept_models", "transfer", "uncertainty")
)
SMALL = WindowedConfig(width=32, n_heads=2, n_global=1)


@pytest.fixture(scope="module")
def sections() -> ad.AnnData:
    adata = st.datasets.synthetic_sections(n_sections=3, n_rows=12, n_cols=12, n_domains=3)
    st.pp.to_grid(adata, library_key="section")
    return adata


@pytest.fixture(scope="module")
def model(sections) -> DomainModel:
    part = kept.of_sections(sections, ["S1"])
    return st.tl.train_domains(part, "domain", backbone=SMALL, training={"max_epochs": 2})


def test_errors_rise_with_an_uncertainty_that_is_right():
    error = np.arange(20) >= 16
    found = uncertainty.error_by_group(np.arange(20.0), error)
    assert list(found.values()) == [0, 0, 0, 0, 1]
    backwards = uncertainty.error_by_group(-np.arange(20.0), error)
    assert list(backwards.values()) == [1, 0, 0, 0, 0]


def test_entropy_is_largest_where_nothing_is_known():
    found = uncertainty.entropy(np.array([[1.0, 0.0], [0.5, 0.5]]))
    np.testing.assert_allclose(found, [0, np.log(2)], atol=1e-9)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["a", "b", "c", "d"]])
def test_no_section_has_two_uses(names):
    for test in names:
        training, calibrating = uncertainty.split(names, test)
        assert sorted([*training, calibrating, test]) == names
        assert uncertainty.split(names, test, training) == (training, calibrating)


def test_all_measures_of_uncertainty_are_scored(sections, model):
    calibrating, test = (kept.of_sections(sections, [name]) for name in ("S2", "S3"))
    rows = uncertainty.domain_rows(model, calibrating, test, 2, 3)
    table = pd.DataFrame(rows).set_index("what")
    assert table.loc["calibration", ["ece", "ece_before", "coverage"]].between(0, 1).all()
    assert 1 <= table.loc["calibration", "set_size"] <= 3
    scored = table[table["auroc"].notna()]
    assert len(scored) == 6
    assert scored["auroc"].between(0, 1).all()
    # fifths of equal size
    errors = scored[[f"error_{i}" for i in range(1, 6)]].mean(axis=1)
    np.testing.assert_allclose(errors, 1 - table.loc["calibration", "accuracy"], atol=0.03)


def test_the_last_change_of_a_spot_is_that_of_its_own_latent(sections, model):
    test = kept.of_sections(sections, ["S3"])
    order = np.random.default_rng(0).permutation(test.n_obs)
    straight, shuffled = (
        uncertainty.last_changes(uncertainty.explore(part, model, 3, 2)[0]) for part in (test, test[order].copy())
    )
    np.testing.assert_allclose(shuffled, straight[order], rtol=1e-3, atol=1e-5)
    assert straight.std() > 0


def test_halting_saves_steps_and_is_scored_like_a_run_of_so_many(sections, model):
    train, test = (kept.of_sections(sections, [name]) for name in ("S1", "S3"))
    options = argparse.Namespace(task="domains", depth=4)
    table = pd.DataFrame(halting.compare(train, test, model, options)).set_index("stop")
    assert list(table.index) == ["depth of training", "never", "published", "calibrated"]
    assert table.loc["never", "n_steps"] == 4
    assert table.loc["published", "threshold"] == 0.7
    # a threshold that every probability exceeds: halts at the first step that may
    found = halting.predict(test, model, "domains", depth=4, stop_early=True, halt_threshold=1e-6)
    assert found["n_steps"] == 2
    assert found["ari"] == pytest.approx(table.loc["depth of training", "ari"])


def test_genes_are_found_by_the_first_id_of_their_symbol(tmp_path):
    var = pd.DataFrame({"symbol": ["A", "B", "A"]}, index=["E1", "E2", "E3"])
    ad.AnnData(np.zeros((1, 3), dtype=np.float32), var=var).write_h5ad(tmp_path / "one.h5ad")
    assert transfer.ids_of_symbols(tmp_path) == {"A": "E1", "B": "E2"}


def test_clusters_of_the_domains_themselves_are_perfect(sections):
    section = kept.of_sections(sections, ["S1"])
    codes = section.obs["domain"].astype("category").cat.codes.to_numpy()
    assert transfer.score_clusters(section, np.eye(3)[codes], 0.0, 0) == 1
    noise = np.random.default_rng(0).normal(size=(section.n_obs, 3))
    assert transfer.score_clusters(section, noise, 0.0, 0) < 0.3


def test_means_and_spread_are_those_over_seeds():
    rows = [
        {"weight": 0.0, "method": "m", "depth": 1, "seed": seed, "section": section, "ari": ari}
        for seed, values in enumerate([(0.1, 0.3), (0.3, 0.5)])
        for section, ari in zip("AB", values, strict=True)
    ]
    row = transfer.summarise(pd.DataFrame(rows)).iloc[0]
    assert (row["mean"], row["std"], row["size"]) == (0.3, pytest.approx(np.sqrt(0.02), abs=1e-3), 2)
    assert (row["A"], row["B"]) == (0.2, 0.4)


def test_a_model_is_trained_once(sections, tmp_path, monkeypatch):
    options = argparse.Namespace(models=tmp_path, data=Path("toy"), size_factor_key=None)
    spec = kept.ModelSpec("domains", ("S1",), epochs=1)
    first = kept.trained(sections, spec, options)
    assert first.sections == ["S1"]
    monkeypatch.setattr(st.tl, "train_domains", None)
    assert kept.trained(sections, spec, options).id == first.id


def test_a_setting_is_found_again_in_the_written_table(tmp_path):
    path = tmp_path / "table.csv"
    kept.append(pd.DataFrame(), [{"test": "A", "epochs": "default", "seed": 0, "score": np.nan}], path)
    table = kept.append(kept.read_table(path), [{"test": "B", "epochs": 15, "seed": 0, "score": 1.0}], path)
    for found in (table, kept.read_table(path)):
        assert kept.expression.is_done(found, {"test": "A", "epochs": "default", "seed": 0})
        assert kept.expression.is_done(found, {"test": "B", "epochs": 15, "seed": 0})
        assert not kept.expression.is_done(found, {"test": "B", "epochs": "default", "seed": 0})
