"""Several networks are trained from different random numbers, and their predictions are averaged."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import calls
import numpy as np
import pytest
import torch
from toy_histology import SMALL, apply, join, make_section, train

import strecur as st
from strecur.engine import checkpoint
from strecur.models.calibration import fit_errors
from strecur.nn import HistConfig, SpotNetwork

from .conftest import train as train_domains


@pytest.fixture(scope="module")
def ensemble(_pair) -> st.models.ExpressionModel:
    return train(_pair, n_networks=3, halting="pcc")


def alone(model: st.models.ExpressionModel) -> list[st.models.ExpressionModel]:
    """Return a model of each of the networks of an ensemble."""
    return [replace(model, network=network, further_networks=[]) for network in model.networks]


def same_weights(first: SpotNetwork, second: SpotNetwork) -> bool:
    there = second.state_dict()
    return all(torch.equal(value, there[name]) for name, value in first.state_dict().items())


def test_the_first_network_is_the_one_that_is_trained_alone(pair, ensemble):
    single = train(pair, n_networks=1, halting="pcc")
    assert single.further_networks == []
    assert len(ensemble.networks) == 3
    assert same_weights(single.network, ensemble.network)
    assert "network" not in single.history
    assert ensemble.history["network"].tolist() == [0, 0, 1, 1, 2, 2]


def test_all_networks_differ_and_depend_on_the_seed(pair, ensemble):
    other = train(pair, n_networks=2, rng=1)
    networks = [*ensemble.networks, *other.networks]
    pairs = [(i, j) for i in range(len(networks)) for j in range(i)]
    assert not any(same_weights(networks[i], networks[j]) for i, j in pairs)


def test_the_answer_is_the_mean_over_the_networks(new, ensemble):
    found = apply(new, ensemble)
    parts = np.stack([apply(new, part).obsm["trm_expression_network"] for part in alone(ensemble)])
    np.testing.assert_allclose(found.obsm["trm_expression_network"], parts.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(found.obsm["trm_expression_spread"], parts.std(axis=0), atol=1e-6)
    blend = (found.obsm["trm_expression_network"] + found.obsm["trm_expression_linear"]) / 2
    np.testing.assert_allclose(found.obsm["trm_expression"], blend, atol=1e-6)
    assert "trm_expression_spread" not in apply(new, alone(ensemble)[0]).obsm


def test_restarts_are_those_of_each_network(new, ensemble):
    residuals = apply(new, ensemble, breadth=2).uns["trm_expression"]["residuals"]
    of_last = apply(new, alone(ensemble)[2], breadth=2).uns["trm_expression"]["residuals"]
    assert sorted(residuals["restart"].unique()) == list(range(6))
    last = residuals.loc[residuals["restart"] >= 4, "residual"].to_numpy()
    np.testing.assert_allclose(last, of_last["residual"].to_numpy(), rtol=1e-5)


def test_each_network_halts_by_itself(new, ensemble):
    """A network that is sure at once stops, while the others go on."""
    sure = deepcopy(ensemble.networks[1])
    torch.nn.init.constant_(sure.halt_head.linear.bias, 5.0)
    model = replace(ensemble, further_networks=[sure, ensemble.networks[2]])
    found = apply(new, model, depth=4, stop_early=True, min_steps=1, halt_threshold=0.7)
    residuals = found.uns["trm_expression"]["residuals"].dropna()
    assert residuals.groupby("restart")["step"].max().tolist() == [4, 1, 4]
    parts = [apply(new, part, depth=4, stop_early=True, min_steps=1, halt_threshold=0.7) for part in alone(model)]
    mean = np.mean([part.obsm["trm_expression_network"] for part in parts], axis=0)
    np.testing.assert_allclose(found.obsm["trm_expression_network"], mean, atol=1e-6)


def test_a_saved_ensemble_predicts_the_same_bit_for_bit(new, ensemble, tmp_path):
    ensemble.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model")
    assert all(map(same_weights, loaded.networks, ensemble.networks))
    first, second = (apply(new, model).obsm for model in (ensemble, loaded))
    assert np.array_equal(first["trm_expression"], second["trm_expression"])
    assert np.array_equal(first["trm_expression_spread"], second["trm_expression_spread"])
    assert "3 networks" in repr(loaded)


def test_a_folder_that_lacks_a_network_is_refused(ensemble, tmp_path):
    from safetensors.numpy import load_file, save_file

    ensemble.save(tmp_path / "model")
    weights = tmp_path / "model" / "weights.safetensors"
    save_file({k: v for k, v in load_file(weights).items() if not k.startswith("network_2.")}, weights)
    with pytest.raises(ValueError, match=r"network_2\..* missing"):
        st.load_model(tmp_path / "model")


class CrashError(Exception):
    pass


def stop_at(monkeypatch, error: type[BaseException], step: int) -> list[int]:
    """Raise at an optimizer step, counted from now; return the steps that were taken."""
    steps, original = [], SpotNetwork.training_step

    def training_step(self, *arguments):
        if len(steps) == step:
            raise error
        steps.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(SpotNetwork, "training_step", training_step)
    return steps


STEPS = 2 * 2 * 4  # of a network: epochs, sections, outer steps


def test_a_training_that_crashed_in_the_second_network_goes_on_there(pair, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0)
    expected = train(pair, n_networks=2)
    with monkeypatch.context() as patch:
        stop_at(patch, CrashError, STEPS + STEPS // 2)
        with pytest.raises(CrashError):
            train(pair, n_networks=2, checkpoint=tmp_path)
    steps = stop_at(monkeypatch, CrashError, 10**6)
    resumed = train(pair, n_networks=2, checkpoint=tmp_path)
    assert len(steps) == STEPS // 2
    assert all(map(same_weights, resumed.networks, expected.networks))
    assert resumed.history.drop(columns="seconds").equals(expected.history.drop(columns="seconds"))


@pytest.mark.parametrize(("step", "n_kept"), [(STEPS // 2, 1), (STEPS + STEPS // 2, 1), (2 * STEPS + 1, 2)])
def test_an_interruption_keeps_the_networks_that_are_done(step, n_kept, pair, new, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        steps = stop_at(patch, KeyboardInterrupt, step)
        model = train(pair, n_networks=3)
    assert len(steps) == step
    assert len(model.networks) == n_kept
    assert "interrupted" in caplog.text
    assert ("keeps the" in caplog.text) == (step > STEPS)
    assert np.isfinite(apply(new, model).obsm["trm_expression"]).all()


def test_the_weight_and_the_scores_are_those_of_the_mean(pair):
    four = join(*(make_section(f"S{k}", k) for k in (1, 2, 4, 5)))
    model = train(four, validation="S5", n_networks=2, max_epochs=3)
    part = four[four.obs["section"] == "S5"].copy()
    found = apply(part, model, coverage=0.9)
    truth = model.measure(part)
    for name, key in (("network", "trm_expression_network"), ("answer", "trm_expression")):
        error = np.square(found.obsm[key] - truth).mean()
        assert model.scores.loc["mse", name] == pytest.approx(error, rel=1e-4)
    np.testing.assert_allclose(
        model.reliability["pcc_network"],
        st.metrics.pcc_per_gene(truth, found.obsm["trm_expression_network"]),
        atol=1e-5,
    )
    # on the sections they were taken from, errors have their own width or more
    width = model.errors.half_width(found.obsm["trm_expression"], 0.9)
    assert (found.obsm["trm_expression_interval"] >= width).all()
    spread = model.blend * found.obsm["trm_expression_spread"]
    np.testing.assert_allclose(model.errors.spread_G, np.sqrt(np.square(spread).mean(axis=0)), rtol=1e-4)


def test_intervals_are_wider_where_networks_differ_more_than_in_the_calibration():
    rng = np.random.default_rng(0)
    predicted_NG, spread_NG = rng.normal(size=(200, 4)), rng.uniform(0.5, 1.5, size=(200, 4))
    errors = fit_errors(predicted_NG, predicted_NG + rng.normal(size=(200, 4)), spread_NG)
    usual = errors.half_width(predicted_NG, 0.9)
    level = np.broadcast_to(errors.spread_G, spread_NG.shape)
    for factor in (0, 0.5, 1):
        np.testing.assert_allclose(errors.half_width(predicted_NG, 0.9, factor * level), usual, rtol=1e-5)
    np.testing.assert_allclose(errors.half_width(predicted_NG, 0.9, 3 * level), 3 * usual, rtol=1e-5)
    one_network = fit_errors(predicted_NG, predicted_NG + 1)
    np.testing.assert_array_equal(one_network.half_width(predicted_NG, 0.9, spread_NG), 1)


def test_calibration_measures_the_spread_of_the_answer(new, ensemble, tmp_path):
    model = replace(ensemble, reliability=ensemble.reliability.copy())
    st.tl.calibrate_expression(new, model, library_key="section")
    spread = model.blend * apply(new, model).obsm["trm_expression_spread"]
    np.testing.assert_allclose(model.errors.spread_G, np.sqrt(np.square(spread).mean(axis=0)), rtol=1e-4)
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(st.load_model(tmp_path / "model").errors.spread_G, model.errors.spread_G)


def test_steps_are_followed_in_the_first_network(new, ensemble):
    options = {"library_key": "section", "depths": (1, 2), "n_latent": (1,), "n_deep": (1,)}
    both = [st.tl.recursion_sweep(new, model, **options) for model in (ensemble, alone(ensemble)[0])]
    assert both[0].equals(both[1])
    assert st.tl.landscape(new, ensemble, library_key="section", depth=2, breadth=2)["restart"].max() == 1


def test_the_time_limit_is_for_all_networks(pair, monkeypatch):
    limits = []
    from strecur.models import fitting

    original = fitting.fit

    def fit(network, sections, training, **rest):
        limits.append(training.max_minutes)
        return original(network, sections, training, **rest)

    monkeypatch.setattr(fitting, "fit", fit)
    train(pair, n_networks=3, max_minutes=6.0)
    assert limits == [2.0, 2.0, 2.0]


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("4", TypeError)])
def test_the_number_of_networks_is_a_positive_whole_number(value, error):
    with pytest.raises(error, match="n_networks"):
        st.Training(n_networks=value)


def test_tasks_with_one_network_say_so(sections, pair):
    with pytest.raises(ValueError, match="n_networks=2: ensembles are for expression"):
        train_domains(sections, n_networks=2)
    with pytest.raises(ValueError, match="n_networks=2: ensembles are for expression"):
        calls.train_expression(pair, library_key="section", genes=4, architecture="genar", n_networks=2)


def test_how_many_networks_there_are_by_default(pair, monkeypatch):
    options = {"library_key": "section", **{k: v for k, v in SMALL.items() if k != "n_networks"}, "genes": 3}
    assert len(calls.train_expression(pair, **options, max_epochs=1).networks) == 4
    monkeypatch.setattr("strecur.models.expression_task.MANY_SECTIONS", 2)
    assert len(calls.train_expression(pair, **options, max_epochs=1).networks) == 2
    options |= {"architecture": "hist", "backbone": HistConfig(width=16, n_heads=2)}
    assert len(calls.train_expression(pair, **options, max_epochs=1).networks) == 1
