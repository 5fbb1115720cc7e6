from __future__ import annotations

from dataclasses import replace

import calls
import numpy as np
import pytest
from scipy import sparse

import strecur as st
from strecur.engine import HistAugmentation
from strecur.engine.state import History
from strecur.engine.training import learning_rate
from strecur.nn import FeedforwardConfig, HistBackbone, HistConfig

from .conftest import train

TINY = HistConfig(width=16, n_heads=2)
APPLY = {"library_key": "section"}


def train_genes(sections, **options: object):
    """Learn four genes from coordinates and noise, which is quick and nothing else."""
    rng = np.random.default_rng(0)
    sections.obsm["X_patch"] = rng.normal(size=(sections.n_obs, 6)).astype(np.float32)
    options = {"architecture": "hist", "backbone": TINY, "max_epochs": 2, "neighbours": (), **options}
    return calls.train_expression(sections, genes=list(sections.var_names[:4]), **{**APPLY, **options})


def test_the_published_system_is_what_is_trained(sections, monkeypatch):
    seen = {}

    def recorded(network, parts, config, **options):
        seen.update(network=network, config=config, **options)
        return History([{"epoch": 1, "train_loss": 0.0}])

    monkeypatch.setattr("strecur.models.fitting.fit", recorded)
    model = train(sections, architecture="hist", backbone="windowed", max_epochs=None)
    assert model.network.linear_start is None
    assert model.architecture == FeedforwardConfig()
    published = HistConfig(cells_per_pitch=1.5)
    assert model.backbone == published
    assert (published.width, published.window, published.encoder_depths, published.decoder_depths) == (
        *(512, 6),
        *((1, 1, 1), (2, 1)),
    )
    assert isinstance(seen["network"].recursion.backbone, HistBackbone)
    config = seen["config"]
    assert (config.max_epochs, config.learning_rate, config.weight_decay, config.ema) == (100, 1e-4, 1e-4, 0.0)
    assert seen["augment"] == HistAugmentation()
    assert model.halting is None
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    expected = 0.5e-4 * (1 + np.cos(np.pi * np.arange(100) / 100))
    np.testing.assert_allclose(rates, expected, atol=1e-9)
    linear = [learning_rate(step, 100, replace(config, schedule="linear")) for step in range(1, 101)]
    assert np.abs(np.subtract(rates, linear)).max() > 1e-5


def test_domains_are_learned_and_a_saved_model_says_the_same(sections, tmp_path):
    # a small network for a short time
    backbone, options = HistConfig(width=32, n_heads=2), {"learning_rate": 3e-3, "max_epochs": 25}
    model = train(sections, architecture="hist", backbone=backbone, **options)
    result = calls.trm_domains(sections, model, **APPLY, copy=True)
    assert st.metrics.domain_scores(sections.obs["domain"], result.obs["trm_domains"])["accuracy"] > 0.7
    model.save(tmp_path / "model")
    again = calls.trm_domains(sections, st.load_model(tmp_path / "model"), **APPLY, copy=True)
    assert np.array_equal(again.obsm["trm_domains_proba"], result.obsm["trm_domains_proba"])


def test_expression_has_pooled_scores_beside_those_by_gene(sections):
    model = train_genes(sections, validation="S3")
    assert {"pcc", "mse", "rvd", "r2_pooled", "pcc_pooled"} == set(model.scores.index)
    truth = model.measure(sections[sections.obs["section"] == "S3"])
    part = sections[sections.obs["section"] == "S3"].copy()
    calls.predict_expression(part, model, **APPLY)
    expected = st.metrics.pooled_scores(truth, part.obsm["trm_expression_network"])
    assert model.scores.loc["pcc_pooled", "network"] == pytest.approx(expected["pcc_pooled"], abs=1e-3)
    # genes differ in their means, which pooling rewards
    assert model.scores.loc["pcc_pooled", "network"] > model.scores.loc["pcc", "network"] + 0.1


def test_the_head_starts_at_the_training_means(sections):
    model = train_genes(sections, max_epochs=1, validation=None)
    expected = np.log2(1 + sparse.csr_matrix(sections.X)[:, :4].toarray()).mean(axis=0)
    np.testing.assert_allclose(model.network.head.mean_G.numpy(), expected, rtol=1e-4)


def test_the_slide_token_is_kept_and_is_that_of_the_section(sections):
    model = train_genes(sections, max_epochs=1, validation=None)
    calls.predict_expression(sections, model, **APPLY, symmetric=False)
    tokens = sections.uns["trm_expression"]["slide_tokens"]
    names = list(sections.uns["trm_expression"]["sections"].index)
    assert tokens.shape == (len(names), 1, TINY.width)
    assert tokens.dtype == np.float32
    assert np.ptp(tokens, axis=0).max() > 1e-4
    alone = sections[sections.obs["section"] == names[-1]].copy()
    calls.predict_expression(alone, model, **APPLY, symmetric=False)
    np.testing.assert_allclose(alone.uns["trm_expression"]["slide_tokens"][0], tokens[-1], atol=1e-5)
    assert not np.allclose(tokens[-1], tokens[0], atol=1e-4)


def test_a_section_without_predicted_spots_has_no_token(sections):
    model = train_genes(sections, max_epochs=1, validation=None)
    outside = (sections.obs["section"] == "S2").to_numpy()
    sections.obsm["X_patch"][outside] = np.nan
    calls.predict_expression(sections, model, **APPLY)
    names = sections.uns["trm_expression"]["sections"].index
    missing = np.isnan(sections.uns["trm_expression"]["slide_tokens"]).all(axis=(1, 2))
    assert list(names[missing]) == ["S2"]


def test_there_is_no_token_where_the_network_has_none(sections):
    model = train_genes(sections, max_epochs=1, validation=None, backbone=replace(TINY, n_global=0))
    calls.predict_expression(sections, model, **APPLY)
    assert "slide_tokens" not in sections.uns["trm_expression"]


@pytest.mark.parametrize(
    "option", [{"positions": "rope"}, {"positions": "none", "shifted": False}, {"skip": False, "resampling": "mean"}]
)
def test_an_ablation_is_trained_saved_and_read(sections, option, tmp_path):
    model = train_genes(sections, backbone=replace(TINY, **option), validation=None)
    assert model.backbone == replace(TINY, cells_per_pitch=1.5, **option)
    calls.predict_expression(sections, model, **APPLY)
    expected = sections.obsm["trm_expression"].copy()
    model.save(tmp_path / "model")
    calls.predict_expression(sections, st.load_model(tmp_path / "model"), **APPLY)
    assert np.array_equal(sections.obsm["trm_expression"], expected)


def test_another_backbone_does_not_belong_to_it(sections):
    with pytest.raises(ValueError, match="HiST has a backbone of its own"):
        train(sections, architecture="hist", backbone="dense")


def test_the_preset_is_what_its_name_stands_for(sections):
    preset = st.presets.hist(TINY)
    assert preset.backbone == replace(TINY, cells_per_pitch=1.5)
    assert preset.training["schedule"] == "cosine"
    assert preset.training["augmentation"] == HistAugmentation()
    named = train(sections, architecture="hist", backbone=TINY, max_epochs=1)
    given = train(sections, architecture=preset, max_epochs=1)
    assert (given.architecture, given.backbone, given.halting) == (named.architecture, named.backbone, None)
    for (name, a), b in zip(named.network.named_parameters(), given.network.parameters(), strict=True):
        assert np.array_equal(a.detach(), b.detach()), name


def test_options_of_the_caller_come_before_those_of_a_preset(sections):
    preset = replace(st.presets.hist(TINY), training={**st.presets.hist(TINY).training, "max_epochs": 3})
    assert len(train(sections, architecture=preset, max_epochs=1).history) == 1
    assert len(train(sections, architecture=preset, max_epochs=None).history) == 3


def test_a_preset_of_wrong_options_cannot_be_made():
    with pytest.raises(TypeError, match="epochs"):
        replace(st.presets.hist(), training={"epochs": 3})
    with pytest.raises(ValueError, match="max_epochs=0"):
        replace(st.presets.hist(), training={"max_epochs": 0})
