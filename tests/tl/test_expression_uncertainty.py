from __future__ import annotations

from dataclasses import replace

import calls
import numpy as np
import pytest
from toy_histology import GENES, RUN, apply, join, make_section, train

import strecur as st

KEY = "trm_expression"


@pytest.fixture(scope="module")
def model(_pair):
    return train(_pair, halting="random_k", max_epochs=4)


def test_restarts_are_averaged_and_their_spread_is_written(model, new):
    restarts = apply(new, model, breadth=3, rng=5)
    converged = apply(new, model, breadth=3, rng=5, selection="converged")
    spread_NG = restarts.obsm[f"{KEY}_spread"]
    assert spread_NG.dtype == np.float32
    assert (spread_NG > 0).all()
    np.testing.assert_array_equal(spread_NG, converged.obsm[f"{KEY}_spread"])
    # one of three lies at most √2 standard deviations from their mean
    assert (np.abs(converged.obsm[KEY] - restarts.obsm[KEY]) <= 1.4143 * spread_NG + 1e-6).all()
    assert not np.allclose(converged.obsm[KEY], restarts.obsm[KEY])
    np.testing.assert_array_equal(apply(new, model, breadth=3, rng=5).obsm[KEY], restarts.obsm[KEY])
    assert not np.array_equal(apply(new, model, breadth=3, rng=6).obsm[KEY], restarts.obsm[KEY])
    assert f"{KEY}_spread" not in apply(new, model).obsm


def test_restarts_of_a_section_do_not_depend_on_other_sections(model, pair, new):
    alone = apply(new, model, breadth=2).obsm[KEY]
    joined = join(make_section("S1", 1), make_section("S3", 3))
    together = apply(joined, model, breadth=2)
    np.testing.assert_allclose(together.obsm[KEY][joined.obs["section"] == "S3"], alone, atol=1e-5)


def test_stopping_early_is_a_run_of_as_many_steps(model, new):
    probability = apply(new, model, depth=6).uns[KEY]["sections"].loc["S3", "halt_probability"]
    stopped = apply(new, model, depth=6, stop_early=True, halt_threshold=probability / 2)
    n_steps = int(stopped.uns[KEY]["sections"].loc["S3", "n_steps"])
    assert 2 <= n_steps < 6
    np.testing.assert_array_equal(stopped.obsm[KEY], apply(new, model, depth=n_steps).obsm[KEY])


def test_the_halting_threshold_of_the_model_is_calibrated_and_saved(model, pair, tmp_path):
    own = replace(model)
    threshold = calls.calibrate_halting(pair, own, **RUN, depth=4)
    assert own.halt_threshold == threshold
    settled = apply(pair, own, depth=4).uns[KEY]["sections"]["halt_probability"]
    assert settled.min() < threshold < settled.max()
    own.save(tmp_path / "model")
    assert st.load_model(tmp_path / "model").halt_threshold == threshold


def test_intervals_hold_the_truth_as_often_as_wanted(pair, tmp_path):
    own = train(pair, architecture="feedforward", max_epochs=10)
    table = calls.calibrate_expression(join(*(make_section(f"C{i}", 10 + i) for i in range(3))), own, **RUN)
    assert list(table.index) == GENES
    assert list(table.columns) == ["pcc", "mae", "width"]
    assert (table["width"] > table["mae"]).all()
    own.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model")
    test = join(*(make_section(f"T{i}", 20 + i) for i in range(3)))
    truth_NG = own.measure(test)
    for coverage in (0.5, 0.9):
        found = apply(test, loaded, coverage=coverage)
        width_NG = found.obsm[f"{KEY}_interval"]
        assert width_NG.dtype == np.float32
        inside = np.abs(found.obsm[KEY] - truth_NG) <= width_NG
        assert inside.mean() == pytest.approx(coverage, abs=0.04)


def test_a_validation_section_calibrates_and_training_sections_do_not(pair):
    assert train(pair).errors is None
    assert train(pair, validation="S2").errors is not None


def test_a_linear_model_is_calibrated_where_it_was_held_out(pair, new):
    linear = train(pair, architecture="linear")
    found = apply(new, linear, coverage=0.9)
    inside = np.abs(found.obsm[KEY] - linear.measure(new)) <= found.obsm[f"{KEY}_interval"]
    assert inside.mean() == pytest.approx(0.9, abs=0.06)
    with pytest.raises(ValueError, match="linear model knows its errors"):
        calls.calibrate_expression(pair, linear, **RUN)


def lacking_a_gene(adata):
    return adata[:, GENES[1:]].copy()


def without_counts(adata):
    adata = adata.copy()
    adata.X[:] = 0
    return adata


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lacking_a_gene, {}, r"genes \['g0'\] of the model"),
        (without_counts, {}, "no spot has counts"),
        (None, {"depth": 0}, "depth=0"),
        (None, {"selection": "vote"}, "selection='vote'"),
    ],
)
def test_calibration_refuses_what_does_not_fit(change, options, message, model, new):
    adata = new if change is None else change(new)
    own = replace(model)
    with pytest.raises(ValueError, match=message):
        calls.calibrate_expression(adata, own, **{**RUN, **options})
    assert own.errors is model.errors


def test_calibration_is_for_models_of_expression(new):
    with pytest.raises(TypeError, match="train_expression"):
        calls.calibrate_expression(new, "model")
