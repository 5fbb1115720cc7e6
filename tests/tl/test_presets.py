"""Presets of the papers."""

from __future__ import annotations

from dataclasses import replace

import pytest

import strecur as st
from strecur.engine.state import History
from strecur.models.network import build_network
from strecur.nn import DomainHead, TRMConfig


def test_the_network_of_the_spatial_trm_has_the_parameters_of_the_paper():
    preset = st.presets.paper_domains()
    parts = (preset.architecture, preset.backbone, DomainHead, 7)
    network = build_network(50, *parts, halting=preset.halting, seed=0)
    assert sum(p.numel() for p in network.parameters()) == 896_065
    assert (preset.architecture.n_latent, preset.architecture.n_deep, preset.architecture.n_steps) == (6, 3, 8)


def test_its_options_are_those_of_the_paper_unless_the_caller_gives_others(sections, monkeypatch):
    seen = {}

    def recorded(network, parts, training, **options):
        seen.update(network=network, training=training, **options)
        return History([{"epoch": 1, "train_loss": 0.0}])

    monkeypatch.setattr("strecur.models.fitting.fit", recorded)
    preset = st.presets.paper_domains()
    features = {"neighbours": (), "standardise": False, "n_components": 6}
    model = st.tl.train_domains(
        sections, "domain", architecture=preset, features=features, training={"warmup": 5, "validation": None}
    )
    training = seen["training"]
    assert (training.slots, training.learning_rate, training.weight_decay) == (8, 1e-4, 0.1)
    assert (training.warmup, training.schedule) == (5, "linear")
    assert (seen["augment"].noise, seen["augment"].drop, seen["augment"].hide) == (0.1, 0.1, 0.0)
    assert seen["n_steps"] == 8
    assert (model.halting, model.network.linear_start) == ("loss_proxy", None)
    assert model.features.n_columns == 6


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epochs": 50}, 0.9875),  # 50 passes over two sections, eight outer steps each: 800 steps
        ({"max_epochs": 50, "batch_sections": 2}, 0.975),
        ({"max_epochs": 10_000}, 0.999),
        ({"max_epochs": 50, "ema": 0.9995}, 0.9995),
    ],
)
def test_its_moving_average_forgets_the_untrained_weights(sections, monkeypatch, options, expected):
    seen = {}

    def recorded(network, parts, training, **rest):
        seen["ema"] = training.ema
        return History([{"epoch": 1, "train_loss": 0.0}])

    monkeypatch.setattr("strecur.models.fitting.fit", recorded)
    two = sections[sections.obs["section"].isin(sections.obs["section"].unique()[:2])].copy()
    st.tl.train_domains(
        two, "domain", architecture=st.presets.paper_domains(), training={"validation": None, **options}
    )
    assert seen["ema"] == pytest.approx(expected)


def test_it_trains_and_labels(sections):
    preset = st.presets.paper_domains()
    small = replace(preset.backbone, width=24)
    preset = replace(preset, backbone=small, architecture=replace(preset.architecture, n_latent=1, n_deep=1))
    options = {"max_epochs": 15, "learning_rate": 2e-3, "warmup": 10, "ema": 0.98}
    model = st.tl.train_domains(
        sections, "domain", architecture=preset, features={"n_components": 8, "neighbours": (7,)}, training=options
    )
    losses = model.history["train_loss"]
    assert losses.iloc[-5:].mean() < 0.85 * losses.iloc[:5].mean()
    found = st.tl.trm_domains(sections, model, inference={"blend": 1.0}, copy=True)
    assert found.obs["trm_domains"].nunique() == 3


@pytest.mark.parametrize("wrong", [{"epochs": 3}, {"slots": 0}])
def test_a_preset_with_wrong_options_raises_when_it_is_made(wrong):
    with pytest.raises((TypeError, ValueError), match="epochs|slots"):
        replace(st.presets.paper_domains(), training=wrong)


def test_presets_are_architectures_with_names_of_their_own():
    assert isinstance(st.presets.paper_domains().architecture, TRMConfig)
    assert set(st.presets.__all__) == {"Preset", "hist", "paper_domains"}
