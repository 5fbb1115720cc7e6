"""Runs that are stopped, repeated, or many: through the verbs that people call."""

from __future__ import annotations

import gc
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import calls
import numpy as np
import pytest
import torch
from toy_histology import GENES, RUN
from toy_histology import SMALL as SMALL_IMAGES

import strecur as st
from strecur.engine import checkpoint
from strecur.nn import HistConfig, SpotNetwork, TRMConfig, WindowedConfig

from .conftest import train as train_domains

if TYPE_CHECKING:
    import anndata as ad

APPLY = {"library_key": "section"}


def train_expression(adata: ad.AnnData, **options: object) -> st.models.ExpressionModel:
    return calls.train_expression(adata, **{**SMALL_IMAGES, **RUN, "genes": GENES, "max_epochs": 3, **options})


def weights(model: object) -> dict[str, torch.Tensor]:
    return model.network.state_dict()


def same(first: object, second: object) -> bool:
    return all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


@pytest.fixture(params=["domains", "expression"])
def task(request, sections, pair):
    """Both verbs with two outer steps, each with an object to learn from and one to apply the model to."""
    if request.param == "domains":
        return partial(train_domains, n_steps=2), sections, calls.trm_domains
    return partial(train_expression, n_steps=2), pair, calls.predict_expression


def stop_at(monkeypatch, error: type[BaseException], step: int) -> None:
    """Raise at an optimizer step."""
    seen, original = [], SpotNetwork.training_step

    def training_step(self, *arguments):
        seen.append(1)
        if len(seen) == step:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(SpotNetwork, "training_step", training_step)


# Interruption


@pytest.mark.parametrize(("step", "n_epochs"), [(1, 0), (2, 0), (6, 1)])
def test_an_interrupt_returns_the_model_so_far(step, n_epochs, task, monkeypatch, tmp_path, caplog):
    train, adata, apply = task
    chosen = ["S1"] if n_epochs == 0 else ["S1", "S2"]
    adata = adata[adata.obs["section"].isin(chosen)].copy()
    with monkeypatch.context() as patch:
        stop_at(patch, KeyboardInterrupt, step)
        model = train(adata, validation=None)
    assert len(model.history) == n_epochs
    assert f"interrupted after {n_epochs} epochs" in caplog.text
    # it can be applied, saved and loaded as any other
    model.save(tmp_path / "model")
    found, again = (
        apply(adata, m, **APPLY, copy=True, key_added="k") for m in (model, st.load_model(tmp_path / "model"))
    )
    key = "k_proba" if "k_proba" in found.obsm else "k"
    assert np.isfinite(found.obsm[key]).all()
    np.testing.assert_array_equal(found.obsm[key], again.obsm[key])


def test_an_interrupt_returns_the_best_model_so_far(sections, monkeypatch):
    """With validation the weights of the best epoch are kept, although later ones were reached."""
    scores = iter([0.1, 0.9, 0.2, 0.3])
    seen = []

    def validate(_task, _lesson, _judges, network: SpotNetwork, *_: object) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"validation_ari": next(scores, 0.0)}

    monkeypatch.setattr("strecur.models.domain_task.DomainTask.validate", validate)
    # two sections and two steps make four a epoch; validated every five epochs
    stop_at(monkeypatch, KeyboardInterrupt, 4 * 17 + 1)
    model = train_domains(sections, validation="S3", max_epochs=40, n_steps=2)
    assert len(model.history) == 17
    assert len(seen) == 3
    assert all(torch.equal(value, seen[1][name]) for name, value in weights(model).items())


TINY = {"backbone": WindowedConfig(width=16, n_heads=2, window=4, n_global=1), "use_rep": "X_few", "neighbours": (7,)}


class CrashError(Exception):
    pass


def test_a_training_that_crashed_goes_on_to_the_same_model(task, monkeypatch, tmp_path, caplog):
    train, adata, _ = task
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0)
    expected = train(adata)
    with monkeypatch.context() as patch:
        stop_at(patch, CrashError, 1 + 2 * len(expected.sections) * 2)
        with pytest.raises(CrashError):
            train(adata, checkpoint=tmp_path / "run")
    steps = []
    original = SpotNetwork.training_step
    monkeypatch.setattr(SpotNetwork, "training_step", lambda self, *rest: (steps.append(1), original(self, *rest))[1])
    with caplog.at_level("INFO", "strecur"):
        resumed = train(adata, checkpoint=str(tmp_path / "run"))
    assert "goes on after epoch 2" in caplog.text
    assert len(steps) == 2 * len(expected.sections)
    assert same(resumed, expected)
    left = [history.drop(columns="seconds") for history in (resumed.history, expected.history)]
    assert left[0].equals(left[1])
    assert [path.name for path in (tmp_path / "run").iterdir()] == [checkpoint.FILE]


def test_a_checkpoint_of_another_call_is_refused(task, tmp_path):
    train, adata, _ = task
    train(adata, checkpoint=tmp_path)
    others = {
        "rng": {"rng": 1},
        "max_epochs": {"max_epochs": 4},
        "architecture": {"architecture": "universal"},
        "backbone": {"backbone": WindowedConfig(width=32, n_heads=2, window=6, n_global=1)},
        "validation": {"validation": "S2"},
        "halting": {"halting": "random_k"},
    }
    for name, change in others.items():
        with pytest.raises(ValueError, match=f"another training.*{'seed' if name == 'rng' else name}"):
            train(adata, checkpoint=tmp_path, **change)
    changed = adata.copy()
    changed.X[0, 0] += 1
    if "X_patch" in changed.obsm:
        changed.obsm["X_patch"][0] += 1
        changed.obsm["X_patch_d4"][0] += 1
    with pytest.raises(ValueError, match=r"another training.*sections \(.*S1"):
        train(changed, checkpoint=tmp_path)


def test_without_a_checkpoint_training_writes_nothing(task, tmp_path, monkeypatch):
    train, adata, _ = task
    monkeypatch.chdir(tmp_path)
    train(adata, max_epochs=1)
    assert list(tmp_path.iterdir()) == []


# Repetition


def test_dropout_is_drawn_from_the_seed_and_leaves_the_global_state_alone(sections):
    small = {"architecture": "hist", "backbone": HistConfig(width=16, n_heads=2, dropout=0.3), "max_epochs": 2}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train_domains(sections, **small)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(train_domains(sections, **small), first)
    assert not same(train_domains(sections, **small, rng=1), first)


def test_dropout_goes_on_after_a_validation(sections, monkeypatch):
    modes, original = [], SpotNetwork.training_step

    def recorded(self, *rest):
        modes.append(self.training)
        return original(self, *rest)

    monkeypatch.setattr(SpotNetwork, "training_step", recorded)
    small = {"architecture": "hist", "backbone": HistConfig(width=16, n_heads=2), "max_epochs": 7}
    assert "validation_ari" in train_domains(sections, **small, validation="S3").history
    assert len(modes) == 14
    assert all(modes)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_another_precision_gives_nearly_the_same(precision, sections, trained):
    """Rounded to 8 bits, probabilities differ by some percent; in double precision hardly."""
    found = {
        p: calls.trm_domains(sections, trained, **{**APPLY, "precision": p}, copy=True).obsm["trm_domains_proba"]
        for p in ("32-true", precision)
    }
    tolerance = {"bf16-mixed": 0.05, "64-true": 1e-4}[precision]
    assert np.abs(found["32-true"] - found[precision]).max() < tolerance


def test_the_number_of_threads_hardly_matters(sections, trained):
    """Sums are taken in another order; the tolerance is what docs/reliability.md states."""
    before, found = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            result = calls.trm_domains(sections, trained, **APPLY, symmetric=False, copy=True)
            found.append(result.obsm["trm_domains_proba"])
    finally:
        torch.set_num_threads(before)
    assert np.abs(found[1] - found[0]).max() < 1e-5


def test_sections_are_predicted_alike_in_any_company(task):
    """Alone, together, and in another order."""
    train, adata, apply = task
    model = train(adata, max_epochs=1)
    together = apply(adata, model, **APPLY, copy=True, key_added="k")
    key = "k_proba" if "k_proba" in together.obsm else "k"
    backwards = apply(adata[::-1].copy(), model, **APPLY, copy=True, key_added="k")
    np.testing.assert_allclose(backwards.obsm[key][::-1], together.obsm[key], atol=1e-5, rtol=1e-5)
    for name in adata.obs["section"].unique():
        chosen = (adata.obs["section"] == name).to_numpy()
        alone = apply(adata[chosen].copy(), model, **APPLY, copy=True, key_added="k")
        np.testing.assert_allclose(alone.obsm[key], together.obsm[key][chosen], atol=1e-5, rtol=1e-5)


# Failure and load


def test_a_loss_that_is_no_number_stops_with_the_place_and_changes_nothing(task, monkeypatch):
    train, adata, _ = task
    before, original = adata.copy(), SpotNetwork.training_step
    seen = []

    def broken(self, batch, carry, generator):
        loss, carry = original(self, batch, carry, generator)
        seen.append(len(batch.features_NF))
        return loss * (torch.nan if len(seen) == 2 else 1), carry

    monkeypatch.setattr(SpotNetwork, "training_step", broken)
    message = r"loss became nan in epoch 1, outer step 2, on section\(s\) \['S\d'\]; lower learning_rate, or .*32-true"
    with pytest.raises(FloatingPointError, match=message):
        train(adata, slots=1)
    assert list(adata.obs) == list(before.obs)
    assert set(adata.obsm) == set(before.obsm)
    assert set(adata.uns) == set(before.uns)


def test_a_hundred_sections_in_one_call(sections):
    rows = np.arange(sections.n_obs) % 100
    many = sections.copy()
    many.obsm["X_few"] = many.X[:, :5].toarray()
    many.obs["section"] = [f"part {row}" for row in rows]
    model = train_domains(many, max_epochs=1, validation=None, architecture="feedforward", **TINY)
    assert len(model.sections) == 100
    calls.trm_domains(many, model, **APPLY, symmetric=False)
    assert len(many.uns["trm_domains"]["sections"]) == 100
    assert many.obs["trm_domains"].notna().all()


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory where Linux tells it")
def test_repeated_fits_and_predictions_do_not_pile_up(sections):
    one = sections[sections.obs["section"] == "S1"].copy()
    one.obsm["X_few"] = one.X[:, :5].toarray()
    held = []
    small = {**TINY, "architecture": TRMConfig(n_latent=1, n_steps=1), "max_epochs": 1, "validation": None}
    for i in range(20):
        model = train_domains(one, rng=i, **small)
        calls.trm_domains(one, model, **APPLY, symmetric=False)
        del model
        gc.collect()
        held.append(resident())
    # what one run needs, features and batches besides the model, is more than this
    assert held[-1] - held[9] < 4e6, held
