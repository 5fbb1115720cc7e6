from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from strecur.engine import Answer, Prediction, Section, make_fabric, predict
from strecur.engine.answers import vote
from strecur.nn import (
    TRM,
    DenseBackbone,
    DenseConfig,
    DomainHead,
    Lattice,
    SpotNetwork,
    TRMConfig,
    WindowedBackbone,
    WindowedConfig,
)
from strecur.options import Inference

FABRIC = make_fabric("cpu", 1, "32-true")


def network(backbone: str = "windowed", *, halting: str | None = "loss_proxy", **config: object) -> SpotNetwork:
    torch.manual_seed(0)
    bodies = {
        "windowed": lambda: WindowedBackbone(WindowedConfig(width=16, n_heads=2, window=4, n_global=2)),
        "dense": lambda: DenseBackbone(DenseConfig(width=16, n_heads=2)),
    }
    return SpotNetwork(4, TRM(bodies[backbone](), TRMConfig(n_latent=2, **config)), DomainHead(16, 3), halting=halting)


def section(name: str, n_rows: int = 7, n_cols: int = 9, layout: str = "square") -> Section:
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(n_rows), torch.arange(n_cols), indexing="ij"))
    col = 2 * col + row % 2 if layout == "hex" else col
    features = torch.randn(n_rows * n_cols, 4, generator=torch.Generator().manual_seed(n_rows))
    return Section(name, features, Lattice(row, col, (len(row),), layout))


def run(net: SpotNetwork, sections: list[Section], *, depth: int = 2, **options: object) -> list[Prediction]:
    """Predict with a single restart."""
    return [answer.restarts[0] for answer in restarts(net, sections, depth=depth, **options)]


def restarts(net: SpotNetwork, sections: list[Section], *, depth: int = 2, **options: object) -> list[Answer]:
    kept = {name: options.pop(name) for name in ("seed", "keep_steps", "keep_latents") if name in options}
    inference = Inference(depth, **options, stop_early="halt_threshold" in options)
    answers = predict(net, sections, inference, **kept, fabric=FABRIC, progress=False)
    assert [answer.section for answer in answers] == [section.name for section in sections]
    assert {len(answer) for answer in answers} <= {inference.breadth}
    return answers


@pytest.mark.parametrize("layout", ["square", "hex"])
@pytest.mark.parametrize("backbone", ["windowed", "dense"])
def test_mirrored_sections_get_the_same_answer(layout, backbone):
    net, part = network(backbone), section("a", layout=layout)
    mirrored = replace(part, lattice=part.lattice.moved(transpose=False, flip_row=True, flip_col=False))
    (plain,), (flipped,) = run(net, [part]), run(net, [mirrored])
    np.testing.assert_allclose(plain.output_DN, flipped.output_DN, atol=1e-5)
    (one,), (other,) = run(net, [part], symmetric=False), run(net, [mirrored], symmetric=False)
    assert np.abs(one.output_DN - other.output_DN).max() > 1e-3


def test_sections_do_not_influence_each_other():
    net, parts = network(), [section("a"), section("b", 3, 3), section("c", 1, 1)]
    forwards, backwards = run(net, parts), run(net, parts[::-1])[::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert np.array_equal(one.output_DN, other.output_DN)
    (alone,) = run(net, parts[1:2])
    np.testing.assert_allclose(alone.output_DN, forwards[1].output_DN, atol=1e-6)


def test_a_deeper_run_begins_like_a_shallow_one():
    net, part = network(), section("a")
    (shallow,), (deep,) = run(net, [part], depth=2), run(net, [part], depth=5)
    assert deep.output_DN.shape == (5, 63, 3)
    np.testing.assert_allclose(deep.output_DN[:2], shallow.output_DN, atol=1e-6)
    np.testing.assert_allclose(deep.halt_probability_D[:2], shallow.halt_probability_D, atol=1e-6)
    assert not np.array_equal(deep.latent_ND, shallow.latent_ND)


def test_outputs_are_probabilities_and_halting_starts_at_the_bias():
    (found,) = run(network(), [section("a")])
    np.testing.assert_allclose(found.output_DN.sum(axis=2), 1, atol=1e-5)
    np.testing.assert_allclose(found.halt_probability_D, 1 / (1 + np.exp(5)), rtol=1e-4)
    (without,) = run(network(halting=None), [section("a")])
    assert np.isnan(without.halt_probability_D).all()


def test_targets_are_not_looked_at():
    net, part = network(), section("a")
    target = torch.zeros(63, dtype=torch.long)
    assert np.array_equal(run(net, [part])[0].output_DN, run(net, [replace(part, target_N=target)])[0].output_DN)


def stopping(net: SpotNetwork, thresholds: dict[int, float]) -> SpotNetwork:
    """Let a section of a given number of spots report a halt probability after each step."""

    def probability(halt_SL: torch.Tensor | None, n_sections: int) -> torch.Tensor:
        return halt_SL.mean(dim=-1)

    original = net.step

    def step(batch, carry):
        output, _, after = original(batch, carry)
        rows = [thresholds[n] for n in batch.lattice.length_S]
        return output, torch.tensor(rows)[:, None], after

    net.step, net.halt_probability = step, probability
    return net


def test_a_section_that_stops_equals_a_run_of_so_many_steps():
    net, part = network(), section("a")
    (fixed,) = run(net, [part], depth=2)
    (stopped,) = run(stopping(network(), {63: 0.9}), [part], depth=6, halt_threshold=0.7)
    assert stopped.n_steps == 2
    np.testing.assert_allclose(stopped.output_DN[-1], fixed.output_DN[-1], atol=1e-6)
    np.testing.assert_allclose(stopped.latent_ND, fixed.latent_ND, atol=1e-6)
    assert stopped.output_DN.shape[0] == 6
    assert np.isfinite(stopped.residual_D).sum() == 2
    (never,) = run(stopping(network(), {63: 0.6}), [part], depth=6, halt_threshold=0.7)
    assert never.n_steps == 6
    (late,) = run(stopping(network(), {63: 0.9}), [part], depth=6, halt_threshold=0.7, min_steps=4)
    assert late.n_steps == 4


@pytest.mark.parametrize("limit", [1, 150, 10**6])
def test_views_one_after_the_other_equal_all_together(limit, monkeypatch):
    net, parts = network(), [section("a"), section("b", 9, 7), section("c", 1, 1)]
    options = {"depth": 3, "breadth": 2, "noise": 0.1, "keep_latents": 4}
    expected = restarts(net, parts, **options)
    monkeypatch.setattr(import_module("strecur.engine.prediction"), "MAX_BATCH_SPOTS", limit)
    sizes, inner = [], net.step
    net.step = lambda batch, carry: (sizes.append(len(batch.features_NF)), inner(batch, carry))[1]
    found = restarts(net, parts, **options)
    assert max(sizes) == {1: 63, 150: 126, 10**6: 504}[limit]
    for runs, expected_runs in zip(found, expected, strict=True):
        for one, other in zip(runs, expected_runs, strict=True):
            for name in ("output_DN", "latent_ND", "halt_probability_D", "residual_D", "latents_DNE"):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_the_queue_equals_one_by_one(slots):
    sizes = [(7, 9), (3, 3), (1, 1), (5, 5), (4, 8)]
    parts = [section(f"s{i}", *size) for i, size in enumerate(sizes)]
    halts = {63: 0.9, 9: 0.1, 1: 0.9, 25: 0.1, 32: 0.9}
    options = {"depth": 4, "halt_threshold": 0.7, "breadth": 2, "noise": 0.1}
    calls = []
    net = stopping(network(), halts)
    inner = net.step
    net.step = lambda batch, carry: (calls.append(batch.lattice.n_sections), inner(batch, carry))[1]
    together = restarts(net, parts, slots=slots, **options)
    alone = [restarts(stopping(network(), halts), [part], **options)[0] for part in parts]
    for runs, expected in zip(together, alone, strict=True):
        for one, other in zip(runs, expected, strict=True):
            assert one.n_steps == other.n_steps
            np.testing.assert_allclose(one.output_DN, other.output_DN, atol=1e-5)
            np.testing.assert_allclose(one.residual_D, other.residual_D, atol=1e-5)
    views = 8
    assert sum(calls) == views * sum(run.n_steps for runs in together for run in runs)


def test_no_sections_no_results():
    assert restarts(network(), []) == []


def test_restarts_differ_and_depend_on_nothing_but_seed_name_and_number():
    net, parts = network(), [section("a"), section("b", 3, 3)]
    first = restarts(net, parts, breadth=3, seed=1)
    again = restarts(net, parts[::-1], breadth=3, seed=1, slots=4)[::-1]
    for one, other in zip(first, again, strict=True):
        for run_one, run_other in zip(one, other, strict=True):
            np.testing.assert_allclose(run_one.output_DN, run_other.output_DN, atol=1e-5)
    outputs = [run.output_DN for run in first[0].restarts]
    assert not np.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not np.allclose(outputs[0], restarts(net, parts, breadth=1)[0].restarts[0].output_DN, atol=1e-4)
    assert not np.allclose(outputs[0], restarts(net, parts, breadth=3, seed=2)[0].restarts[0].output_DN, atol=1e-4)
    more = restarts(net, parts, breadth=5, seed=1)
    np.testing.assert_allclose(more[0].restarts[2].output_DN, outputs[2], atol=1e-6)


def test_noise_can_be_switched_off():
    net, part = network(noise=0.1), section("a")
    (plain,), (again,) = run(net, [part]), run(net, [part])
    assert np.array_equal(plain.output_DN, again.output_DN)
    (noisy,), (same,), (other,) = (run(net, [part], noise=0.1, seed=s) for s in (0, 0, 1))
    assert np.array_equal(noisy.output_DN, same.output_DN)
    assert not np.allclose(noisy.output_DN, plain.output_DN, atol=1e-4)
    assert not np.allclose(noisy.output_DN, other.output_DN, atol=1e-4)


def test_residuals_compare_real_states():
    net, part = network(), section("a")
    (found,) = run(net, [part], depth=5, symmetric=False)
    from strecur.engine import collate

    batch = collate([part])
    with torch.no_grad():
        carry, expected = net.start(batch), []
        for _ in range(5):
            before = carry.state
            _, _, carry = net.step(batch, carry)
            squares = [(a - b).square().mean() for a, b in zip(carry.state, before, strict=True)]
            expected.append(float(torch.stack(squares).mean().sqrt()))
    np.testing.assert_allclose(found.residual_D, expected, rtol=1e-4)
    assert found.residual == pytest.approx(np.mean(expected[-3:]), rel=1e-4)


def restart(labels: list[int], residual: float, n_classes: int = 3, p: float = 0.8) -> Prediction:
    output = np.full((2, len(labels), n_classes), (1 - p) / (n_classes - 1), dtype=np.float32)
    output[:, np.arange(len(labels)), labels] = p
    return Prediction(output, np.zeros((len(labels), 4)), np.zeros(2), np.full(2, residual), 2)


def test_selection_among_restarts():
    runs = (restart([0, 1, 2], 0.3), restart([0, 2, 2], 0.1), restart([1, 1, 2], 0.2))
    answer, single = Answer("a", runs), Answer("a", runs[:1])
    assert answer.best is runs[1]
    assert answer.combined("converged")[-1].argmax(axis=1).tolist() == [0, 2, 2]
    voted = answer.combined("vote")
    assert voted[-1].argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(voted.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(answer.combined("mean"), np.mean([r.output_DN for r in runs], axis=0))
    assert np.array_equal(single.combined("vote"), runs[0].output_DN)
    np.testing.assert_allclose(answer.agreement(np.array([0, 1, 2])), [2 / 3, 2 / 3, 1])
    assert answer.disagreement == pytest.approx(np.mean([2 / 3, 2 / 3, 0]))
    assert np.isnan(single.disagreement)
    equal = (restart([0], 0.1), restart([1], 0.1))
    assert Answer("a", equal).best is equal[0]
    unknown = (restart([0], np.nan), restart([1], np.nan))
    assert Answer("a", unknown).best is unknown[0]


def test_equal_votes_are_told_apart_by_probability():
    outputs = np.stack([restart([0], 0, p=0.5).output_DN, restart([1], 0, p=0.9).output_DN])
    assert vote(outputs)[-1].argmax(axis=1).tolist() == [1]
    sure = np.stack([restart([0], 0, p=0.4).output_DN] * 2 + [restart([1], 0, p=1.0).output_DN])
    assert vote(sure)[-1].argmax(axis=1).tolist() == [0]


def test_the_last_step_alone():
    (all_steps,), (last,) = (run(network(), [section("a")], depth=3, keep_steps=keep) for keep in (True, False))
    assert last.output_DN.shape == (1, 63, 3)
    assert np.array_equal(last.output_DN[0], all_steps.output_DN[-1])


def test_latents_by_step_are_those_of_shorter_runs():
    net, part = network(), section("a")
    (found,) = run(net, [part], depth=3, keep_latents=5)
    rows = [0, 15, 31, 46, 62]
    assert found.latents_DNE.shape == (3, 5, 16)
    for depth in (1, 2, 3):
        (shorter,) = run(net, [part], depth=depth)
        assert shorter.latents_DNE is None
        np.testing.assert_allclose(found.latents_DNE[depth - 1], shorter.latent_ND[rows], atol=1e-6)
    (stopped,) = run(stopping(network(), {63: 0.9}), [part], depth=6, halt_threshold=0.7, keep_latents=1000)
    assert stopped.latents_DNE.shape == (6, 63, 16)
    assert all(np.array_equal(latent, stopped.latent_ND) for latent in stopped.latents_DNE[1:])
