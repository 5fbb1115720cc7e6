"""Spots of unseen tissue are strange, and the scale of the novelty means what it says."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from strecur.models.novelty import (
    LEVELS,
    SpotNovelty,
    blocks,
    compared_columns,
    fit_novelty,
    novelty_from_arrays,
    novelty_to_arrays,
    rate_section,
)

SIDE, WIDTH = 36, 4
CENTRES = np.array([[-4.0, 0, 1, 0], [0, 0, -1, 0], [4, 0, 0, 1]])


def section(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, positions and domains of a section of three layers, the middle one between the others."""
    rng = np.random.default_rng(seed)
    row, col = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    domain = row * 3 // SIDE
    return CENTRES[domain] + rng.normal(size=(len(row), WIDTH)), np.column_stack([row, col]).astype(float), domain


def fit(left_out: int | None, *, with_domains: bool = True) -> tuple[SpotNovelty, LogisticRegression]:
    parts = [section(seed) for seed in (0, 1)]
    kept = [domain != left_out for _, _, domain in parts]
    features, positions = ([part[i][k] for part, k in zip(parts, kept, strict=True)] for i in (0, 1))
    groups = [np.unique(part[2][k], return_inverse=True)[1] for part, k in zip(parts, kept, strict=True)]
    joined, group_N = np.concatenate(features), np.concatenate(groups)
    model = LogisticRegression().fit(joined, group_N)

    def fit_logits(taught_N: np.ndarray, judged_N: np.ndarray) -> np.ndarray:
        return logits(LogisticRegression().fit(joined[taught_N], group_N[taught_N]))(joined[judged_N])

    if not with_domains:
        groups = [np.zeros(len(group), dtype=int) for group in groups]
    found = fit_novelty(np.arange(WIDTH), features, positions, groups, fit_logits if with_domains else None)
    assert found is not None
    return found, model


def logits(model: LogisticRegression):
    def of(features: np.ndarray) -> np.ndarray:
        found = model.decision_function(features)
        return found if found.ndim == 2 else np.column_stack([-found / 2, found / 2])

    return of


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_an_unseen_domain_is_strange(left_out):
    novelty, model = fit(left_out)
    features, positions, domain = section(2)
    found = novelty.rate(features, logits(model)(features), positions)
    assert found.dtype == np.float32
    inner = ~np.isin(positions[:, 0], [11, 12, 23, 24, 10, 13, 22, 25])  # smoothing mixes the spots at a border
    assert np.median(found[(domain == left_out) & inner]) > 0.99
    assert (found[(domain != left_out) & inner] > 0.95).mean() < 0.1


def test_levels_are_shares_of_spots_of_a_known_section():
    novelty, model = fit(None)
    features, positions, _ = section(3)
    found = novelty.rate(features, logits(model)(features), positions)
    for level, least, most in ((0.5, 0.3, 0.7), (0.9, 0.04, 0.2), (0.95, 0.02, 0.1)):
        assert least < (found > level).mean() < most
    assert 0 <= found.min() <= found.max() < 1


def test_without_domains_the_distance_decides():
    novelty, _ = fit(None, with_domains=False)
    features, positions, domain = section(4)
    features[domain == 1] += [0, 0, 0, 8]
    found = rate_section(novelty, features, None, positions)
    assert found[domain == 1].min() > found[(domain == 0) & (positions[:, 0] < 8)].max()


def test_a_spot_without_values_is_not_rated():
    novelty, model = fit(None)
    features, positions, _ = section(3)
    assert np.isnan(rate_section(None, features, None, positions)).all()
    of_model = logits(model)(features)
    features[:] = np.nan
    assert np.isnan(novelty.rate(features, of_model, positions)).all()


def test_blocks_are_a_third_each_and_spread_over_the_section():
    _, positions, domain = section(0)
    number = blocks(positions)
    assert (np.bincount(number) == len(positions) / 3).all()
    for layer in range(3):
        assert set(number[domain == layer]) == {0, 1, 2}


def test_a_domain_in_one_block_alone_is_no_reference():
    features, positions, domain = section(0)
    only = blocks(positions) == 1
    corner = only & (positions[:, 0] < 12)
    domain[corner] = 3
    features[corner] += [0, 0, 0, 30]
    found = fit_novelty(np.arange(WIDTH), [features], [positions], [domain], None)
    plain = fit_novelty(np.arange(WIDTH), [features[~corner]], [positions[~corner]], [domain[~corner]], None)
    # a ninth of the spots is 30 standard deviations from what was left
    for level in (0.5, 0.9):
        a, b = (np.interp(level, LEVELS, f.quantiles_L) * f.spread_K[0] + f.centre_K[0] for f in (found, plain))
        assert a == pytest.approx(b, abs=0.6)


def no_logits(taught_N: np.ndarray, judged_N: np.ndarray) -> np.ndarray:
    return np.zeros((judged_N.sum(), 2))


def test_two_domains_are_needed_outside_a_block():
    features, positions, domain = section(0)
    domain[:] = 0
    domain[blocks(positions) == 1] = 1
    assert fit_novelty(np.arange(WIDTH), [features], [positions], [domain], no_logits) is None


def test_neighbourhoods_are_compared_as_far_as_the_training_holds_enough_of_them():
    first, second, third = np.arange(20), 50 + np.arange(20), 100 + np.arange(20)
    np.testing.assert_array_equal(compared_columns(50, (19, 91, 301), 7000), np.concatenate([second, third]))
    np.testing.assert_array_equal(compared_columns(50, (19, 91, 301), 2000), second)
    np.testing.assert_array_equal(compared_columns(50, (19, 91, 301), 300), second[:7])
    np.testing.assert_array_equal(compared_columns(50, (), 7000), first)
    np.testing.assert_array_equal(compared_columns(3, (91, 19), 200), 6 + np.arange(3))


def test_novelty_survives_arrays():
    novelty, model = fit(1)
    features, positions, _ = section(5)
    again = novelty_from_arrays(novelty_to_arrays(novelty))
    of_model = logits(model)(features)
    np.testing.assert_array_equal(
        rate_section(again, features, of_model, positions), novelty.rate(features, of_model, positions)
    )
    assert novelty_from_arrays({}) is None


def test_the_strangest_hundredth_of_few_spots_is_not_known():
    features, positions, domain = section(0)
    for share, is_known in ((0.5, True), (0.07, False)):
        few = np.where(np.random.default_rng(0).random(len(domain)) < share, domain, -1)
        assert (fit_novelty(np.arange(WIDTH), [features], [positions], [few], None) is not None) == is_known
