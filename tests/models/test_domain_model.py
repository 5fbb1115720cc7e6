from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import strecur as st
from strecur.models import DomainModel
from strecur.models.features.spots import SpotFeatures
from strecur.models.io.schema import SchemaError, check_values
from strecur.models.linear import LinearDomains
from strecur.models.network import BACKBONES, architecture_from_json, backbone_from_json, build_network, to_json
from strecur.nn import (
    BackboneConfig,
    DenseConfig,
    DomainHead,
    FeedforwardConfig,
    HierarchicalConfig,
    HistConfig,
    TRMConfig,
    UniversalConfig,
    WindowedConfig,
)

if TYPE_CHECKING:
    from pathlib import Path


def make_model() -> DomainModel:
    features = SpotFeatures("X_own", 3, standardised=True, neighbours=(7,))
    architecture, backbone = TRMConfig(), WindowedConfig(width=16, n_heads=2)
    rng = np.random.default_rng(0)
    return DomainModel(
        labels=["ä", "b"],
        features=features,
        architecture=architecture,
        backbone=backbone,
        network=build_network(6, architecture, backbone, DomainHead, 2, halting="loss_proxy", seed=3),
        baseline=LinearDomains(rng.normal(size=(6, 2)).astype("f4"), np.zeros(2, "f4")),
        halting="loss_proxy",
        history=pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_ari": [np.nan, 0.3]}),
        scores=pd.DataFrame({"network": {"ari": 0.5}, "linear": {"ari": 0.4}}),
        sections=["S1"],
        smoothing=7,
    )


@pytest.fixture
def saved(tmp_path: Path) -> tuple[DomainModel, Path]:
    model = make_model()
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


def test_everything_comes_back(saved):
    model, path = saved
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "weights.safetensors"]
    for loaded in (st.load_model(path), st.load_model(str(path))):
        assert isinstance(loaded, DomainModel)
        assert loaded.labels == model.labels
        assert loaded.smoothing == model.smoothing
        assert (loaded.id, loaded.sections, loaded.halting) == (model.id, model.sections, "loss_proxy")
        assert (loaded.architecture, loaded.backbone, loaded.features) == (
            *(model.architecture, model.backbone, model.features),
        )
        pd.testing.assert_frame_equal(loaded.history, model.history)
        pd.testing.assert_frame_equal(loaded.scores, model.scores)
        expected = model.network.state_dict()
        assert {"recursion.y_init", "recursion.z_init"} <= set(expected)
        assert all(np.array_equal(value, expected[name]) for name, value in loaded.network.state_dict().items())
        assert np.array_equal(loaded.baseline.weight_FC, model.baseline.weight_FC)


def test_a_model_is_not_overwritten_by_accident(saved):
    model, path = saved
    with pytest.raises(FileExistsError, match="overwrite=True"):
        model.save(path)
    other = make_model()
    other.save(path, overwrite=True)
    assert st.load_model(path).id == other.id
    assert [p.name for p in path.parent.iterdir()] == ["model"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not a model folder"):
        make_model().save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    model, path = saved

    def full_disk(path: Path, data: bytes) -> None:
        path.write_bytes(data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("strecur.models.io.folders.write_through", full_disk)
    with pytest.raises(OSError, match=r"No space left .*the model that was there is kept"):
        make_model().save(path, overwrite=True)
    assert st.load_model(path).id == model.id
    assert [p.name for p in path.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("name", ["config.json", "weights.safetensors"])
def test_missing_files_are_named(name, saved):
    (saved[1] / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        st.load_model(saved[1])
    shutil.rmtree(saved[1])
    with pytest.raises(FileNotFoundError, match="not a complete model folder"):
        st.load_model(saved[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, "format 99"), ({"kind": "weather"}, "unknown kind 'weather'"), ({"format": None}, "format None")],
)
def test_other_versions_and_kinds_are_refused(change, message, saved):
    path = saved[1] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        st.load_model(saved[1])


@pytest.mark.parametrize(
    "config",
    [
        TRMConfig(6, 3, 8),
        TRMConfig(sigma=(1.0, 8.0), damping=0.05, noise=0.01),
        UniversalConfig(),
        FeedforwardConfig(),
        WindowedConfig(width=64),
        DenseConfig(n_heads=6),
        HierarchicalConfig(n_levels=2),
        HistConfig(encoder_depths=(1, 2), decoder_depths=(1,)),
    ],
)
def test_configurations_survive_json(config):
    values = json.loads(json.dumps(to_json(config)))
    if isinstance(config, BackboneConfig):
        assert backbone_from_json(values, BACKBONES) == config
    else:
        assert architecture_from_json(values) == config


def test_building_is_seeded_and_leaves_the_global_generator_alone():
    import torch

    before = torch.get_rng_state()
    make = lambda seed: build_network(6, TRMConfig(), WindowedConfig(), DomainHead, 2, halting="loss_proxy", seed=seed)  # noqa: E731
    assert torch.equal(make(1).embedding.weight, make(1).embedding.weight)
    assert not torch.equal(make(1).embedding.weight, make(2).embedding.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_description_is_readable():
    assert "trm over a windowed backbone" in repr(make_model())
    assert "ä, b" in repr(make_model())


@pytest.mark.parametrize("size", [0, -7, 10**8, 7.0, "7"])
def test_no_folder_brings_a_smoothing_that_makes_no_sense(size, saved):
    _, path = saved
    config = json.loads((path / "config.json").read_text())
    check_values(config, BACKBONES)
    with pytest.raises(SchemaError, match="smoothing"):
        check_values({**config, "smoothing": size}, BACKBONES)
