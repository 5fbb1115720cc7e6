"""Device, precision, number of devices and progress bar are taken from the settings, by every verb and every model."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_histology import train as train_expression

import strecur as st
from strecur._anndata import read_section_data
from strecur._settings import Settings
from strecur.engine import make_fabric
from strecur.models.sections import engine_sections

from .conftest import train

CALLS = {
    "train_domains": lambda adata, _model: train(adata, max_epochs=1),
    "trm_domains": st.tl.trm_domains,
    "calibrate": lambda adata, model: st.tl.calibrate(adata, replace(model), "domain"),
    "calibrate_halting": lambda adata, model: st.tl.calibrate_halting(adata, replace(model), depth=1),
    "recursion_sweep": lambda adata, model: st.tl.recursion_sweep(
        adata, model, depths=(1,), n_latent=(1,), n_deep=(1,)
    ),
    "landscape": lambda adata, model: st.tl.landscape(adata, model, depth=2, breadth=1, n_spots=20),
    "predict": lambda adata, model: model.predict(as_sections(adata, model)),
}


def as_sections(adata, model):
    data = read_section_data(adata, None)
    return engine_sections(data, model.features.inputs(data))


@pytest.fixture
def fabrics(monkeypatch) -> list[tuple]:
    """Return the arguments of every fabric that is made from here on."""
    seen = []

    def recorded(*arguments):
        seen.append(arguments)
        return make_fabric(*arguments)

    for module in ("models.base", "models.fitting"):
        monkeypatch.setattr(f"strecur.{module}.make_fabric", recorded)
    return seen


@pytest.mark.parametrize("name", CALLS)
def test_every_call_computes_where_and_how_the_settings_say(name, sections, trained, fabrics):
    with st.settings.override(accelerator="cpu", precision="bf16-mixed"):
        CALLS[name](sections, trained)
    assert set(fabrics) == {("cpu", 1, "bf16-mixed")}
    fabrics.clear()
    CALLS[name](sections, trained)
    assert set(fabrics) == {("cpu", 1, "32-true")}


@pytest.mark.parametrize("name", CALLS)
def test_no_call_starts_where_the_settings_cannot_compute(name, sections, trained):
    with st.settings.override(accelerator="abacus"), pytest.raises(ValueError, match="accelerator='abacus'"):
        CALLS[name](sections, trained)


def test_the_number_of_devices_is_for_training_alone(sections, trained, fabrics, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with st.settings.override(devices=2):
        with pytest.raises(ValueError, match=r"devices=2 .*torchrun"):
            train(sections)
        fabrics.clear()
        st.tl.trm_domains(sections, trained)
    assert fabrics == [("cpu", 1, "32-true")]
    assert "LOCAL_RANK" not in os.environ


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_matrix_products_have_the_precision_of_the_settings(precision, dtype, sections, trained):
    seen = []
    hook = trained.network.embedding.register_forward_hook(lambda *found: seen.append(found[-1].dtype))
    try:
        with st.settings.override(precision=precision):
            (answer, *_) = trained.predict(as_sections(sections, trained), st.Inference(symmetric=False))
    finally:
        hook.remove()
    assert set(seen) == {dtype}
    assert answer.best.output_DN.dtype == np.float32


def test_models_of_expression_obey_too(pair, new, fabrics):
    with st.settings.override(precision="bf16-mixed"):
        model = train_expression(pair, max_epochs=1)
        st.tl.predict_expression(new, model)
        st.tl.calibrate_expression(new, model)
    assert set(fabrics) == {("cpu", 1, "bf16-mixed")}
    assert len(fabrics) == 3


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_if_the_settings_say_so(progress, sections, trained, capsys):
    with st.settings.override(progress=progress):
        train(sections, max_epochs=1)
        trained.predict(as_sections(sections, trained))
        st.tl.recursion_sweep(sections, trained, depths=(1,), n_latent=(1,), n_deep=(1,))
        arguments = {"groups": ["S1"], "seeds": (0,), "architectures": "feedforward"}
        st.tl.cross_validate(sections, "domain", **arguments, train={"training": {"max_epochs": 1}})
        assert st.settings.progress is progress
    shown = capsys.readouterr().err
    for bar in ("sweeping", "cross-validating", "it/s" if not progress else "%"):
        assert (bar in shown) == progress
    assert (shown != "") == progress


def test_override_restores_after_an_error_and_when_nested():
    before = dict(vars(st.settings))
    with st.settings.override(precision="64-true", devices=3) as given:
        assert given is st.settings
        with pytest.raises(ZeroDivisionError), st.settings.override(precision="bf16-mixed"):
            _ = (st.settings.precision, st.settings.devices) == ("bf16-mixed", 3) and 1 / 0
        assert (st.settings.precision, st.settings.devices) == ("64-true", 3)
    assert dict(vars(st.settings)) == before


def test_override_restores_what_is_assigned_inside():
    before = st.settings.progress
    with st.settings.override(devices=1):
        st.settings.progress = not before
    assert st.settings.progress is before


def test_an_unknown_setting_is_named_and_changes_nothing():
    before = dict(vars(st.settings))
    with pytest.raises(AttributeError, match=r"unknown settings \['presicion'\]; there are .*'precision'"):
        st.settings.override(accelerator="cuda", presicion="32-true").__enter__()
    assert dict(vars(st.settings)) == before


def test_defaults():
    fresh = Settings()
    assert (fresh.accelerator, fresh.devices, fresh.precision, fresh.progress) == ("auto", 1, None, True)


def test_the_folder_of_data_sets_is_that_of_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STRECUR_DATA", str(tmp_path))
    assert Settings().dataset_dir == tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["train_domains", "trm_domains"])
def test_a_gpu_that_is_not_there_is_named(name, sections, trained):
    with (
        st.settings.override(accelerator="cuda"),
        pytest.raises(ValueError, match="'cuda', but PyTorch finds no such GPU"),
    ):
        CALLS[name](sections, trained)
