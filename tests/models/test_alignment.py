"""Sections that hold a part of the tissue are centred and scaled as their domains were in training."""

from __future__ import annotations

import numpy as np
import pytest

from strecur.models.features.alignment import fit_moments
from strecur.models.features.neighbourhood import moments

SIDE, WIDTH = 36, 4
CENTRES = np.array([[-3.0, 0, 1, 0], [0, 2, -1, 0], [3, -1, 0, 1]])


def section(seed: int, *, shift: float = 0.0, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values, positions and domains of a section of three layers."""
    rng = np.random.default_rng(seed)
    row, col = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    domain = row * 3 // SIDE
    values = CENTRES[domain] + rng.normal(size=(len(row), WIDTH))
    return (scale * values + shift).astype(np.float32), np.column_stack([row, col]).astype(float), domain


@pytest.fixture(scope="module")
def fitted():
    parts = [section(seed) for seed in (0, 1)]
    values, positions, domain = (np.concatenate(column) for column in zip(*parts, strict=True))
    rows = np.arange(len(values))
    found = fit_moments(values, positions, domain, [rows[: len(rows) // 2], rows[len(rows) // 2 :]])
    assert found is not None
    return found


def test_a_whole_section_keeps_its_own_moments(fitted):
    values, positions, _ = section(2, shift=0.4, scale=1.1)
    for found, own in zip(fitted.of_section(values, positions), moments(values), strict=True):
        np.testing.assert_array_equal(found, own)


@pytest.mark.parametrize("kept", [(0,), (1,), (0, 1), (1, 2)])
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.4, 1.2)])
def test_a_part_is_standardised_as_the_whole(fitted, kept, shift, scale):
    values, positions, domain = section(3, shift=shift, scale=scale)
    inside = np.isin(domain, kept)
    wanted_centre, wanted_scale = moments(values)
    centre, found_scale = fitted.of_section(values[inside], positions[inside])
    own_centre, _ = moments(values[inside])
    error, own_error = (np.abs((c - wanted_centre) / wanted_scale).max() for c in (centre, own_centre))
    assert error < 0.2
    assert own_error > 0.5
    np.testing.assert_allclose(found_scale, wanted_scale, rtol=0.2)


def test_spots_of_an_unseen_domain_do_not_count(fitted):
    values, _, domain = section(4)
    wanted, _ = moments(values)
    strange = values.copy()
    strange[domain == 1] += np.array([0, 12, 12, -12]) - CENTRES[1]
    matched, _ = fitted.match(strange, strange)
    own, _ = moments(strange)
    assert np.abs(matched - wanted).max() < 1
    assert np.abs(own - wanted).max() > 3


def test_a_section_without_a_known_domain_keeps_its_own_moments(fitted):
    values, positions, _ = section(5)
    for found, own in zip(fitted.of_section(values + 50, positions), moments(values + 50), strict=True):
        np.testing.assert_array_equal(found, own)


def test_few_training_spots_have_no_domains():
    values, positions, domain = section(0)
    rows = np.arange(0, len(values), 12)
    assert fit_moments(values, positions, domain, [rows]) is None
    unlabelled = np.where(np.isin(np.arange(len(values)), rows), domain, -1)
    assert fit_moments(values, positions, unlabelled, [np.arange(len(values))]) is None
