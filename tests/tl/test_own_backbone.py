"""A backbone that is not part of the package, through training, prediction, saving and loading."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import strecur as st
from strecur.models import ModelFolderError
from strecur.nn import Backbone, BackboneConfig

from .conftest import train


class Pooled(Backbone):
    def __init__(self, config: PooledConfig) -> None:
        super().__init__()
        self.width, self.share = config.width, config.share
        self.linear = torch.nn.Linear(config.width, config.width)

    def forward(self, h_TD, _lattice):
        return h_TD + torch.tanh(self.linear(h_TD + self.share * h_TD.mean(dim=0)))


@dataclass(frozen=True)
class PooledConfig(BackboneConfig):
    name = "pooled"
    share: float = 0.5

    def build(self) -> Pooled:
        return Pooled(self)


class OtherConfig(PooledConfig):
    name = "pooled-too"


SMALL = PooledConfig(width=16, share=0.25)


@pytest.fixture(scope="module")
def model(_sections) -> st.models.DomainModel:
    return train(_sections, backbone=SMALL, normalise=False, validation=None, n_steps=2, slots=1)


def probabilities(adata, model, **options) -> np.ndarray:
    return st.tl.trm_domains(adata, model, copy=True, **options).obsm["trm_domains_proba"]


def test_it_learns_and_predicts_in_every_way(model, sections):
    assert model.backbone is SMALL
    assert "over a pooled backbone" in repr(model)
    assert model.history["train_loss"].is_monotonic_decreasing
    found = st.tl.trm_domains(sections, model, inference={"depth": 2, "breadth": 2, "blend": 1.0}, copy=True)
    assert st.metrics.domain_scores(sections.obs["domain"], found.obs["trm_domains"])["accuracy"] > 0.8
    assert len(st.tl.recursion_sweep(sections, model, depths=(1, 2), n_latent=(1,), n_deep=(1,))) == 2 * 3
    assert 0 < st.tl.calibrate_halting(sections, model, depth=2) < 1


def test_a_saved_model_predicts_the_same(model, sections, tmp_path):
    model.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model", backbones=[PooledConfig])
    assert loaded.backbone == SMALL
    np.testing.assert_array_equal(probabilities(sections, loaded), probabilities(sections, model))
    # and can be saved again
    loaded.save(tmp_path / "again")
    assert st.load_model(tmp_path / "again", backbones=[OtherConfig, PooledConfig]).backbone == SMALL


@pytest.mark.parametrize("backbones", [(), (OtherConfig,)])
def test_without_its_configuration_loading_names_it(backbones, model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(ModelFolderError, match=r"backbone.name: is 'pooled'"):
        st.load_model(tmp_path / "model", backbones=backbones)


def test_a_configuration_with_other_fields_is_not_its_own(model, tmp_path):
    @dataclass(frozen=True)
    class Changed(BackboneConfig):
        name = "pooled"
        depth: int = 2

    model.save(tmp_path / "model")
    with pytest.raises(ModelFolderError, match=r"backbone: (lacks|has)"):
        st.load_model(tmp_path / "model", backbones=[Changed])


def test_models_of_the_package_load_beside_it(trained, tmp_path, sections):
    trained.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model", backbones=[PooledConfig])
    np.testing.assert_array_equal(probabilities(sections, loaded), probabilities(sections, trained))


def test_what_it_says_of_itself_is_used(sections):
    with pytest.raises(ValueError, match=r"receptive field of .* is the whole section"):
        train(sections, backbone=SMALL, tile=7)

    class Tiny(PooledConfig):
        max_spots = 50

    with pytest.raises(ValueError, match=r"'S\d' has 1\d\d spots; the pooled backbone is for at most 50"):
        train(sections, backbone=Tiny(width=16))


def test_it_predicts_expression_too(pair, new, tmp_path):
    model = st.tl.train_expression(
        pair, genes=5, backbone=replace(SMALL, share=0.0), features={"n_components": 6}, training={"max_epochs": 1}
    )
    model.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model", backbones=[PooledConfig])
    found = [st.tl.predict_expression(new, m, copy=True).obsm["trm_expression"] for m in (model, loaded)]
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)
