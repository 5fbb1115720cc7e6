"""Backbones describe themselves, and so does one from outside the package."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from strecur.engine import Augmentation, Section, cost, fit, make_fabric, predict
from strecur.nn import (
    BACKBONES,
    RECURSIONS,
    Backbone,
    BackboneConfig,
    DenseConfig,
    DomainHead,
    GenARConfig,
    HierarchicalConfig,
    HistConfig,
    Lattice,
    PatchConfig,
    SpotNetwork,
    TRMConfig,
    WindowedConfig,
)
from strecur.nn.layers import rms_norm
from strecur.options import Inference, Training

FABRIC = make_fabric("cpu", 1, "32-true")
TRAINING = Training(max_epochs=40, learning_rate=1e-2, warmup=1, schedule="linear", weight_decay=0.5, ema=0.5)


# All that somebody outside the package has to write


class Pooled(Backbone):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.linear = width, nn.Linear(width, width)

    def forward(self, h_TD: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        return rms_norm(h_TD + torch.tanh(self.linear(h_TD - h_TD.mean(dim=0))))


@dataclass(frozen=True)
class PooledConfig(BackboneConfig):
    width: int = 24

    def build(self) -> Pooled:
        return Pooled(self.width)


def section(name: str, seed: int = 0) -> Section:
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"))
    target = (row >= 4).long()
    features = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed)) + 2 * target[:, None]
    return Section(name, features, Lattice(row, col, (64,), "square"), target)


@pytest.mark.parametrize("recursion", RECURSIONS)
def test_a_backbone_from_outside_is_trained_and_predicts(recursion):
    torch.manual_seed(0)
    config = PooledConfig()
    net = SpotNetwork(4, recursion().build(config.build()), DomainHead(config.width, 2), halting="loss_proxy")
    options = {"n_steps": 2, "augment": Augmentation(noise=0.2, drop=0, hide=0), "seed": 0, "progress": False}
    history = fit(net, [section("a"), section("b", 1)], TRAINING, fabric=FABRIC, **options)
    assert len(history) == TRAINING.max_epochs
    new = section("c", 2)
    (answer,) = predict(net, [new], Inference(2), fabric=FABRIC, progress=False)
    assert (answer.best.output_DN[-1].argmax(axis=1) == new.target_N.numpy()).mean() > 0.9


def test_a_backbone_from_outside_has_a_cost():
    config = PooledConfig()
    before = torch.get_rng_state()
    assert config.n_weights == 24 * 24 + 24
    assert torch.equal(torch.get_rng_state(), before)
    assert config.n_layers_per_call == 1
    assert PooledConfig(10_000).n_layers_per_call == 1
    for training in (True, False):
        load = cost.Workload(TRMConfig(), config, 4, 2, "square", training=training)
        assert 0 < cost.memory(load, 1000) < cost.memory(load, 2000)
        # every spot may see every other one
        assert cost.operations(load, 10**6) > 3.9 * cost.operations(load, 5 * 10**5)


def test_the_defaults_of_a_backbone_are_those_of_one_that_sees_its_whole_section():
    config = PooledConfig()
    assert (config.name, config.max_spots, config.sees_other_spots) == ("custom", None, True)
    assert config.for_layout("irregular") == config
    assert config.partitions() is None
    assert config.period == 0
    assert config.n_context == 1
    with pytest.raises(ValueError, match="only windowed and hierarchical"):
        config.receptive_field(1)


def test_built_in_backbones_describe_their_modules():
    assert [config.name for config in BACKBONES] == ["windowed", "dense", "hierarchical", "hist", "patch"]
    assert [config.name for config in (*RECURSIONS, GenARConfig)] == ["trm", "universal", "feedforward", "genar"]
    assert [config().has_two_states for config in (*RECURSIONS, GenARConfig)] == [True, False, False, False]
    for kind in BACKBONES:
        config = replace(kind(), width=32)
        built = config.build()
        assert isinstance(built, Backbone)
        assert (built.width, built.n_context) == (config.width, config.n_context)
        assert built.absolute_positions == (kind is DenseConfig)
        assert config.sees_other_spots == (kind is not PatchConfig)
        # without biases and norms; maps between levels count as a layer each
        n_weights = sum(p.numel() for p in built.parameters())
        assert 0.8 * n_weights < config.n_weights < 2 * n_weights


def test_windows_of_irregular_lattices_are_larger():
    for kind in BACKBONES:
        assert kind.for_layout("hex") == kind.for_layout("square") == kind()
    assert WindowedConfig.for_layout("irregular") == WindowedConfig(window=12)
    assert HistConfig.for_layout("irregular") == HistConfig()


def test_periods_and_layers_of_the_defaults():
    periods = {config.name: config().period for config in BACKBONES}
    assert periods == {"windowed": 8, "dense": 0, "hierarchical": 24, "hist": 24, "patch": 0}
    layers = {config.name: config().n_layers_per_call for config in BACKBONES}
    assert layers == {"windowed": 2, "dense": 2, "hierarchical": 5, "hist": 6, "patch": 1}
    # coarser levels have a quarter of the tokens
    assert HierarchicalConfig().layer_passes == 2 + 2 / 4 + 1 / 16
    assert HistConfig().layer_passes == 2 + (1 + 2) / 4 + 1 / 16
