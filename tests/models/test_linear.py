from __future__ import annotations

import numpy as np

from strecur.models.linear import (
    LinearExpression,
    choose_penalty,
    fit_linear_domains,
    fit_linear_expression,
    is_sparse,
)


def data(seed: int = 0, *, n: int = 120, noise: float = 0.1) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    features, weight = rng.normal(size=(n, 5)).astype(np.float32), rng.normal(size=(5, 3))
    target = features @ weight + 2 + noise * rng.normal(size=(n, 3))
    return features, target.astype(np.float32), np.repeat([0, 1, 2], n // 3), weight


def fit(features, target, groups) -> tuple[LinearExpression, np.ndarray]:
    """Fit with the chosen penalty; return the predictions of held-out groups too."""
    penalty, held_out = choose_penalty(features, target, groups)
    return fit_linear_expression(features, target, penalty), held_out


def test_ridge_finds_the_weights():
    features, target, groups, weight = data()
    model, _ = fit(features, target, groups)
    np.testing.assert_allclose(model.weight_FG, weight, atol=0.25)
    assert model.predict(features).dtype == np.float32
    np.testing.assert_allclose(model.predict(features), target, atol=1.5)


def test_predictions_of_a_held_out_section_do_not_know_it():
    features, target, groups, _ = data()
    _, first = fit(features, target, groups)
    changed = target.copy()
    changed[groups == 1] += 0.01 * np.arange(3)
    _, second = fit(features, changed, groups)
    np.testing.assert_array_equal(first[groups == 1], second[groups == 1])
    assert (first[groups != 1] != second[groups != 1]).any(axis=1).all()


def test_the_penalty_is_the_one_that_carries_over_to_other_sections():
    # a large effect within each section, of opposite sign from one section to the next
    features, target, groups, weight = data()
    _, held_out = fit(features, target, groups)
    assert np.square(held_out - target).mean() < 0.1 * target.var()
    misleading = np.where(groups == 1, -1, 1)[:, None] * (features @ weight)
    model, _ = fit(features, misleading.astype(np.float32), groups)
    honest, _ = fit(features, target, groups)
    assert np.abs(model.weight_FG).mean() < 0.1 * np.abs(honest.weight_FG).mean()


def test_many_sections_are_held_out_together():
    features, target, _, _ = data()
    groups = np.arange(120) % 40
    model, held_out = fit(features, target, groups)
    assert np.isfinite(held_out).all()
    assert np.isfinite(model.weight_FG).all()


def two_domains(n: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = np.repeat([0, 1], n)
    return (rng.normal(size=(len(target), 3)) + 0.6 * target[:, None]).astype(np.float32), target


def test_domains_weigh_alike_where_few_spots_are_annotated():
    """How often a domain is annotated by strokes does not say how large it is."""
    features, target = two_domains((400, 400))
    few = np.full(800, -1)
    few[:160], few[400:420] = 0, 1
    assert is_sparse(few)
    assert not is_sparse(target)
    by_spots, alike = (
        fit_linear_domains(features, few, 2, equal_weight=equal).predict_proba(features)[:, 1].mean()
        for equal in (False, True)
    )
    assert abs(alike - 0.5) < 0.1
    assert by_spots < 0.3
