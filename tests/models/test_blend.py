"""The answer is a blend of network and linear baseline."""

from __future__ import annotations

import numpy as np
import pytest

from strecur.models.blend import blend_proba, blend_values, choose_proba_weight, choose_value_weight


def proba(seed: int, n_spots: int = 200, sharpness: float = 1.0) -> np.ndarray:
    logits = sharpness * np.random.default_rng(seed).normal(size=(n_spots, 3))
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def test_equal_weights_are_the_geometric_mean_at_every_step():
    steps, linear = np.stack([proba(0), proba(1)]), proba(2)
    expected = np.sqrt(steps * linear)
    found = blend_proba(steps, linear, 0.5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected / expected.sum(axis=-1, keepdims=True), rtol=1e-5)


def test_the_ends_are_the_parts():
    network, linear = proba(0), proba(1)
    assert np.array_equal(blend_proba(network[None], linear, 1.0)[0], network)
    np.testing.assert_allclose(blend_proba(network[None], linear, 0.0)[0], linear, rtol=1e-5)
    values, others = np.float32([[1, 2]]), np.float32([[3, 6]])
    assert np.array_equal(blend_values(values, others, 1.0), values)
    assert blend_values(values, others, 0.25).tolist() == [[2.5, 5.0]]


def test_a_certain_error_of_one_part_can_be_outvoted_and_nothing_is_infinite():
    network, linear = np.float32([[1.0, 0.0, 0.0]]), np.float32([[0.0, 1.0, 0.0]])
    found = blend_proba(network[None], linear, 0.5)[0]
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-6)


def test_the_better_part_gets_the_weight_and_independent_errors_are_shared():
    truth = np.random.default_rng(0).integers(3, size=4000)
    rng = np.random.default_rng(1)

    def noisy(noise: float) -> np.ndarray:
        logits = 2.0 * np.eye(3)[truth] + noise * rng.normal(size=(4000, 3))
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    good, other, bad = noisy(1.0), noisy(1.0), noisy(6.0)
    assert choose_proba_weight(good, bad, truth) > 0.8
    assert choose_proba_weight(bad, good, truth) < 0.2
    assert 0.3 < choose_proba_weight(good, other, truth) < 0.7


def test_certainty_alone_changes_no_weight():
    truth = np.random.default_rng(0).integers(3, size=4000)
    rng = np.random.default_rng(1)
    good, other = (2.0 * np.eye(3)[truth] + noise * rng.normal(size=(4000, 3)) for noise in (1.0, 2.0))

    def proba(logits: np.ndarray) -> np.ndarray:
        return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    weight = choose_proba_weight(proba(good), proba(other), truth)
    both_certain = choose_proba_weight(proba(3 * good), proba(3 * other), truth)
    assert weight > 0.7
    assert both_certain == pytest.approx(weight, abs=0.051)


def test_the_weight_of_values_minimises_the_squared_error():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(5000, 4))
    network, linear = truth + rng.normal(size=truth.shape), truth + 2 * rng.normal(size=truth.shape)
    # independent errors of variance 1 and 4: the best weight is 4/5
    assert choose_value_weight(network, linear, truth) == pytest.approx(0.8, abs=0.051)
    error = [np.square(blend_values(network, linear, w) - truth).mean() for w in (0.0, 0.8, 1.0)]
    assert error[1] < min(error[0], error[2])


def test_few_spots_move_the_weight_little():
    truth = np.random.default_rng(0).integers(3, size=4000)
    logits = 2.0 * np.eye(3)[truth] + np.random.default_rng(1).normal(size=(4000, 3))
    good, useless = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), proba(0, n_spots=4000)
    few, some, many = (choose_proba_weight(good[:n], useless[:n], truth[:n]) for n in (10, 100, 4000))
    assert abs(few - 0.5) < 0.15
    assert few < some < many
    assert many > 0.9
