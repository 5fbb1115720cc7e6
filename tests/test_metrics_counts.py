from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from strecur import metrics


@pytest.fixture
def counts():
    """120 spots × 3 genes: overdispersed, less dispersed than Poisson, and silent."""
    rng = np.random.default_rng(0)
    return np.column_stack([rng.negative_binomial(2, 0.25, 120), rng.binomial(9, 0.8, 120), np.zeros(120)])


@pytest.fixture
def predicted(counts):
    return np.random.default_rng(1).gamma(3, 2, counts.shape)


def test_likelihood_agrees_with_scipy(counts, predicted):
    got = metrics.negative_binomial_log_likelihood(counts, predicted, dispersion=[0.5, 0, 2])
    # SciPy's parameters: size 1/φ and success probability size / (size + mean), whose variance is mean + φ·mean²
    expected = [
        stats.nbinom.logpmf(counts[:, 0], 2, 2 / (2 + predicted[:, 0])).mean(),
        stats.poisson.logpmf(counts[:, 1], predicted[:, 1]).mean(),
        stats.nbinom.logpmf(counts[:, 2], 0.5, 0.5 / (0.5 + predicted[:, 2])).mean(),
    ]
    np.testing.assert_allclose(got, expected)
    assert stats.nbinom.var(2, 2 / (2 + 3.0)) == pytest.approx(3 + 0.5 * 9)


def test_likelihood_becomes_poisson_as_the_dispersion_vanishes(counts, predicted):
    poisson = metrics.negative_binomial_log_likelihood(counts, predicted, dispersion=0)
    np.testing.assert_allclose(
        metrics.negative_binomial_log_likelihood(counts, predicted, dispersion=1e-7), poisson, atol=1e-4
    )


def test_likelihood_is_highest_for_the_true_mean():
    mean = np.random.default_rng(0).uniform(1, 20, size=(4000, 1))
    counts = np.random.default_rng(1).negative_binomial(4, 4 / (4 + mean))
    score = {
        s: metrics.negative_binomial_log_likelihood(counts, s * mean, dispersion=0.25)[0] for s in (0.8, 1.0, 1.25)
    }
    assert max(score, key=score.get) == 1.0


def test_a_predicted_zero_is_not_infinitely_wrong(counts):
    for min_mean in (0.01, 0.5):
        got = metrics.negative_binomial_log_likelihood(counts, np.zeros(counts.shape), dispersion=0, min_mean=min_mean)
        np.testing.assert_allclose(got, stats.poisson.logpmf(counts, min_mean).mean(axis=0))


def test_moment_dispersion(counts):
    got = metrics.moment_dispersion(counts)
    first = counts[:, 0]
    assert got[0] == pytest.approx((first.var(ddof=1) - first.mean()) / first.mean() ** 2)
    assert (got[1], got[2]) == (0, 0)
    many = np.random.default_rng(0).negative_binomial(2, 0.25, (200_000, 1))
    assert metrics.moment_dispersion(many)[0] == pytest.approx(0.5, rel=0.02)


def test_dispersion_of_the_truth_is_the_default(counts, predicted):
    np.testing.assert_array_equal(
        metrics.negative_binomial_log_likelihood(counts, predicted),
        metrics.negative_binomial_log_likelihood(counts, predicted, dispersion=metrics.moment_dispersion(counts)),
    )


def test_zero_scores_by_hand():
    scores = metrics.zero_scores([[0, 0, 0, 3], [1, 5, 0, 0]], [[0, 0.4, 2, 0.49], [0.6, 5, 0, 7]])
    assert scores == {"zero_precision": pytest.approx(3 / 4), "zero_recall": pytest.approx(3 / 5)}


def test_zero_scores_are_undefined_without_zeros(recwarn):
    assert np.isnan(metrics.zero_scores([[1, 2]], [[0, 2]])["zero_recall"])
    assert np.isnan(metrics.zero_scores([[0, 2]], [[1, 2]])["zero_precision"])
    assert not recwarn.list


def test_library_size_correlation(counts, predicted):
    expected = stats.pearsonr(counts.sum(axis=1), predicted.sum(axis=1)).statistic
    assert metrics.library_size_correlation(counts, predicted) == pytest.approx(expected)
    shuffled = counts[:, [1, 2, 0]]  # wrong for every gene, right for every total
    assert metrics.library_size_correlation(counts, shuffled) == pytest.approx(1)
    assert np.isnan(metrics.library_size_correlation(counts, np.ones(counts.shape)))


def test_missing_spots_are_left_out_and_containers_do_not_matter(counts, predicted):
    frame = pd.DataFrame(predicted)
    with_gap, gap = np.vstack([predicted, np.full(3, np.nan)]), np.vstack([counts, np.ones(3)])
    for score in (
        metrics.negative_binomial_log_likelihood,
        metrics.zero_scores,
        metrics.library_size_correlation,
    ):
        assert np.all(score(counts, predicted) == score(gap, with_gap))
        assert np.all(score(counts, predicted) == score(sparse.csr_matrix(counts), frame))


def test_no_spots_give_nan(recwarn):
    nothing = np.full((2, 2), np.nan)
    assert np.isnan(metrics.negative_binomial_log_likelihood(np.ones((2, 2)), nothing)).all()
    assert np.isnan(list(metrics.zero_scores(np.ones((2, 2)), nothing).values())).all()
    assert np.isnan(metrics.library_size_correlation(np.ones((2, 2)), nothing))
    assert not recwarn.list


@pytest.mark.parametrize("wrong", [0.5, -1])
def test_logarithms_are_not_counts(counts, predicted, wrong):
    counts[3, 1] = wrong
    for score in (metrics.negative_binomial_log_likelihood, metrics.zero_scores, metrics.library_size_correlation):
        with pytest.raises(ValueError, match="whole numbers"):
            score(counts, predicted)
