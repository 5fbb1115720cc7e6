from __future__ import annotations

import numpy as np

from strecur.models.linear import (
    LinearExpression,
    choose_penalty,
    fit_linear_domains,
    fit_linear_expression,
    fit_shrinkage,
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


def correlated(seed: int = 0, *, n: int = 180, n_genes: int = 40) -> tuple[np.ndarray, ...]:
    """Return features, genes that all follow the first two of them, what they would be without noise, and groups."""
    rng = np.random.default_rng(seed)
    features, loadings = rng.normal(size=(n, 30)), rng.normal(size=(2, n_genes))
    expected = features[:, :2] @ loadings + 3
    target = expected + 3 * rng.normal(size=expected.shape)
    return *(part.astype(np.float32) for part in (features, target, expected)), np.repeat([0, 1, 2], n // 3)


def test_axes_of_which_the_features_tell_nothing_are_shrunk():
    features, target, expected, groups = correlated(n=360)
    new_features, truth = features[groups == 2], expected[groups == 2]
    features, target, groups = (part[groups != 2] for part in (features, target, groups))
    model, held_out = fit(features, target, groups)
    shrinkage, shrunk = fit_shrinkage(held_out, target, groups)
    assert (shrinkage.share_K[:2] > 0.7).all()
    assert shrinkage.share_K[4:].mean() < 0.3
    before, after = (np.square(m.predict(new_features) - truth).mean() for m in (model, shrinkage.of(model)))
    assert after < 0.7 * before
    assert np.square(shrunk - target).mean() < np.square(held_out - target).mean()


def test_the_shrunk_regression_predicts_the_shrunk_predictions():
    features, target, _, groups = correlated()
    model, held_out = fit(features, target, groups)
    shrinkage, _ = fit_shrinkage(held_out, target, groups)
    expected = shrinkage.apply(model.predict(features))
    np.testing.assert_allclose(shrinkage.of(model).predict(features), expected, rtol=1e-4, atol=1e-4)


def test_right_predictions_are_kept_and_differences_between_groups_do_not_count():
    _, _, expected, groups = correlated()
    shrinkage, shrunk = fit_shrinkage(expected, expected, groups)
    np.testing.assert_allclose(shrunk, expected, rtol=1e-3, atol=1e-3)
    shifted, _ = fit_shrinkage(expected + 5 * groups[:, None].astype(np.float32), expected, groups)
    np.testing.assert_allclose(shifted.share_K[:2], shrinkage.share_K[:2], atol=1e-3)  # the others are empty


def test_the_share_of_a_held_out_group_is_found_without_it():
    _, target, expected, groups = correlated()
    wrong = expected.copy()
    wrong[groups == 0] = 6 - wrong[groups == 0]  # the reverse of what was measured
    _, shrunk = fit_shrinkage(wrong, target, groups)
    spread = [shrunk[groups == g].std() / wrong[groups == g].std() for g in (0, 1)]
    assert spread[0] > 0.8 > spread[1]


def test_one_gene_is_shrunk_too():
    features, target, groups, _ = data(noise=3)
    _, held_out = fit(features, target[:, :1], groups)
    shrinkage, shrunk = fit_shrinkage(held_out, target[:, :1], groups)
    assert shrunk.shape == (120, 1)
    assert 0 < shrinkage.rest <= 1
