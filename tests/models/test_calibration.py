from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import softmax

from strecur.models.calibration import (
    conformal_scores,
    fit_temperature,
    label_sets,
    negative_log_likelihood,
    temper,
)


def draw(n: int, *, sharpness: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities whose logits are ``sharpness`` times those the labels were drawn from, and the labels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 5))
    true = softmax(logits, axis=1)
    labels = (rng.random((n, 1)) > true.cumsum(axis=1)).sum(axis=1)
    return softmax(sharpness * logits, axis=1).astype(np.float32), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_probabilities_dishonest(sharpness):
    proba, labels = draw(4000, sharpness=sharpness)
    temperature = fit_temperature(proba, labels)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    new = temper(proba, temperature)
    assert np.array_equal(new.argmax(axis=1), proba.argmax(axis=1))
    np.testing.assert_allclose(new.sum(axis=1), 1, atol=1e-5)
    gain = negative_log_likelihood(proba, labels) - negative_log_likelihood(new, labels)
    assert gain > 0.01 or sharpness == 1
    assert gain >= -1e-6
    if sharpness > 1:
        assert new.max(axis=1).mean() < proba.max(axis=1).mean()


def test_certainties_that_are_wrong_stay_finite():
    proba, labels = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]], np.array([0, 1, 2, 1])
    temperature = fit_temperature(proba, labels)
    assert temperature == pytest.approx(20, rel=0.01)
    assert np.isfinite(temper(proba, temperature)).all()
    assert np.isfinite(negative_log_likelihood(proba, labels))


def coverage_of(sets: np.ndarray, labels: np.ndarray) -> float:
    return sets[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("coverage", [0.6, 0.9, 0.99])
def test_sets_cover_as_promised_however_dishonest_the_probabilities(coverage, sharpness):
    proba, labels = draw(6000, sharpness=sharpness)
    scores = conformal_scores(proba[:2000], labels[:2000])
    sets = label_sets(proba[2000:], scores, coverage)
    spread = np.sqrt(coverage * (1 - coverage) * (1 / 2000 + 1 / 4000))
    assert coverage_of(sets, labels[2000:]) > coverage - 3 * spread
    # where the best domain alone is not enough, a set is no larger than it must be
    if coverage == 0.99:
        assert coverage_of(sets, labels[2000:]) < coverage + 3 * spread


def test_sets_grow_with_coverage_and_are_never_empty():
    proba, labels = draw(1000)
    scores = conformal_scores(proba[:500], labels[:500])
    levels = [label_sets(proba[500:], scores, c) for c in (0.01, 0.9, 0.95, 0.99, 0.9999)]
    for smaller, larger in itertools.pairwise(levels):
        assert (smaller <= larger).all()
        assert smaller.sum() < larger.sum()
    assert np.array_equal(levels[0].argmax(axis=1), proba[500:].argmax(axis=1))
    assert (levels[0].sum(axis=1) == 1).all()
    # a promise that 500 spots cannot support needs every domain
    assert levels[-1].all()


def test_the_rank_is_that_of_split_conformal_prediction():
    # the k-th most expected of 99 spots has the probability 1 - k / 100
    expected = (1 - np.arange(1, 100) / 100).astype(np.float32)
    scores = conformal_scores(np.column_stack([expected, 1 - expected])[::-1], np.zeros(99, dtype=int))
    assert np.array_equal(scores, expected)
    proba = np.array([[0.55, 0.35, 0.1], [0.935, 0.035, 0.03]], dtype=np.float32)
    sizes = {c: label_sets(proba, scores, c).sum(axis=1).tolist() for c in (0.64, 0.66, 0.89, 0.91, 0.96, 0.98)}
    assert sizes == {0.64: [1, 1], 0.66: [2, 1], 0.89: [2, 1], 0.91: [3, 1], 0.96: [3, 1], 0.98: [3, 3]}
    # in floating point 100 · .07 is a little more than 7; the 7th has .93, the 8th .92
    assert label_sets(np.array([[0.95, 0.925]], dtype=np.float32), scores, 0.07).tolist() == [[True, False]]
