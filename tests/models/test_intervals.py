from __future__ import annotations

import numpy as np
import pytest

from strecur.models.calibration import fit_errors


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of two genes, the first of which is off the more the higher it is."""
    rng = np.random.default_rng(seed)
    predicted_NG = rng.uniform(0, 4, size=(n, 2))
    spread_NG = np.column_stack([predicted_NG[:, 0], np.ones(n)])
    return predicted_NG, predicted_NG + spread_NG * rng.normal(size=(n, 2))


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_the_wanted_share_of_new_spots_lies_in_the_interval(coverage):
    errors = fit_errors(*draw(4000, 0))
    predicted_NG, truth_NG = draw(4000, 1)
    width_NG = errors.half_width(predicted_NG, coverage)
    inside_NG = np.abs(truth_NG - predicted_NG) <= width_NG
    assert inside_NG.mean(axis=0) == pytest.approx(coverage, abs=0.02)
    # also among the lowest and the highest alone, which intervals of one width for all would miss
    for part in (predicted_NG[:, 0] < 1, predicted_NG[:, 0] > 3):
        assert inside_NG[part, 0].mean() == pytest.approx(coverage, abs=0.04)
    low, high = width_NG[predicted_NG[:, 0].argmin(), 0], width_NG[predicted_NG[:, 0].argmax(), 0]
    assert high > 3 * low


def test_few_spots_give_wider_intervals_than_their_quantile():
    predicted_NG, truth_NG = np.zeros((9, 1)), np.arange(1.0, 10)[:, None]
    width = fit_errors(predicted_NG, truth_NG).half_width(np.zeros((1, 1)), 0.8)
    # the ⌈(9 + 1) · 0.8⌉ = 8th of 9 errors, up to interpolation; the plain quantile of 80 % is 7.4
    assert 7.4 < width[0, 0] <= 9
    assert fit_errors(predicted_NG, truth_NG).half_width(np.zeros((1, 1)), 0.99)[0, 0] == 9


def test_values_never_predicted_before_get_the_errors_of_all():
    errors = fit_errors(np.zeros((50, 1)), np.full((50, 1), 2.0))
    assert errors.half_width(np.array([[0.0], [5.0], [-5.0]]), 0.9) == pytest.approx(2)
