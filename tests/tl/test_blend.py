"""Answers are blends of network and linear baseline, whose parts are written beside them."""

from __future__ import annotations

from pathlib import Path

import calls
import numpy as np
import pytest
from toy_histology import apply
from toy_histology import train as train_expression

import strecur as st
from strecur.models.blend import blend_proba

from .conftest import train

RELEASED = Path(__file__).parents[1] / "fixtures" / "format_0.1"


def test_without_held_out_sections_both_parts_have_equal_weight(sections, trained):
    assert trained.blend == 0.5
    found = calls.trm_domains(sections, trained, copy=True)
    network = calls.trm_domains(sections, trained, copy=True, blend=1.0)
    linear = calls.trm_domains(sections, trained, copy=True, blend=0.0)
    expected = blend_proba(network.obsm["trm_domains_proba"][None], linear.obsm["trm_domains_proba"], 0.5)[0]
    np.testing.assert_allclose(found.obsm["trm_domains_proba"], expected, atol=1e-5)
    assert (network.obs["trm_domains"] == found.obs["trm_domains_network"]).all()
    assert (linear.obs["trm_domains"] == found.obs["trm_domains_linear"]).all()
    assert found.uns["trm_domains"]["params"]["blend"] == 0.5
    # settling steps, steps and confidence are those of the answer
    steps = found.obsm["trm_domains_steps"]
    labels = found.obs["trm_domains"].cat.categories
    assert (labels[steps[:, -1]] == found.obs["trm_domains"]).all()


def test_held_out_sections_choose_the_weight_and_score_all_parts(sections):
    model = train(sections, validation="S3", max_epochs=4)
    assert list(model.scores) == ["answer", "network", "linear"]
    part = sections[sections.obs["section"] == "S3"].copy()
    truth = part.obs["domain"]
    for blend, name in ((None, "answer"), (1.0, "network"), (0.0, "linear")):
        found = calls.trm_domains(part, model, copy=True, **({} if blend is None else {"blend": blend}))
        scores = st.metrics.domain_scores(truth, found.obs["trm_domains"])
        assert scores["accuracy"] == pytest.approx(model.scores.loc["accuracy", name])


def test_held_out_sections_without_a_known_domain_choose_nothing(sections):
    domains = sections.obs["domain"].astype(str)
    sections.obs["domain"] = domains.where(sections.obs["section"] != "S3", "unheard of")
    model = train(sections, validation="S3")
    assert model.blend == 0.5
    assert model.temperature == 1
    assert model.conformal_scores is None
    assert calls.trm_domains(sections, model, copy=True).uns["trm_domains"]["params"]["blend"] == 0.5


def test_the_weight_is_saved_and_that_of_older_models_is_one(sections, trained, tmp_path):
    trained.save(tmp_path / "model")
    assert st.load_model(tmp_path / "model").blend == trained.blend
    assert st.load_model(RELEASED / "domains").blend == 1
    assert st.load_model(RELEASED / "expression").blend == 1


def test_expression_is_a_mean_of_network_and_ridge_regression(pair, new):
    model = train_expression(pair)
    assert model.blend == 0.5
    found = apply(new, model)
    mean = (found.obsm["trm_expression_network"] + found.obsm["trm_expression_linear"]) / 2
    np.testing.assert_allclose(found.obsm["trm_expression"], mean, atol=1e-5)
    assert np.array_equal(apply(new, model, blend=1.0).obsm["trm_expression"], found.obsm["trm_expression_network"])
    assert st.get.expression(found, "trm_expression_network").shape == (new.n_obs, len(model.genes))


def test_errors_and_reliability_are_those_of_the_answer(pair, new):
    from toy_histology import join, make_section

    four = join(*(make_section(f"S{k}", k) for k in (1, 2, 4, 5)))
    model = train_expression(four, validation="S5", max_epochs=3)
    part = four[four.obs["section"] == "S5"].copy()
    found = apply(part, model, coverage=0.9)
    truth = model.measure(part)
    pcc = st.metrics.pcc_per_gene(truth, found.obsm["trm_expression"])
    np.testing.assert_allclose(model.reliability["pcc"], pcc, atol=1e-5)
    alone = st.metrics.pcc_per_gene(truth, found.obsm["trm_expression_network"])
    np.testing.assert_allclose(model.reliability["pcc_network"], alone, atol=1e-5)
    inside = np.abs(found.obsm["trm_expression"] - truth) <= found.obsm["trm_expression_interval"]
    # at least: quantiles of few spots are rounded up
    assert 0.9 <= inside.mean() < 0.98
    assert model.scores.loc["mse", "answer"] <= min(model.scores.loc["mse", ["network", "linear"]]) + 1e-6


@pytest.mark.parametrize("blend", [-0.1, 1.1, float("nan")])
def test_a_weight_that_is_not_a_share_raises(blend):
    with pytest.raises(ValueError, match="blend"):
        st.Inference(blend=blend)


def test_counts_are_predicted_by_the_network_alone(pair, new):
    import small_world as world

    model = world._count_model()
    assert model.blend == 1
    with pytest.raises(ValueError, match="counts are predicted by the network alone"):
        apply(new, model, blend=0.5)
    found = apply(new, model)
    assert np.array_equal(found.obsm["trm_expression"], found.obsm["trm_expression_network"])
