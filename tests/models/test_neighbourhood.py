from __future__ import annotations

import numpy as np
import pytest

from strecur._geometry import physical_positions
from strecur.models.features import neighbourhood
from strecur.models.features.neighbourhood import moments, neighbourhood_means


def grid(n: int) -> np.ndarray:
    return np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), axis=-1).reshape(-1, 2).astype(float)


def hexagons(n: int) -> np.ndarray:
    row, col = grid(n).T
    return physical_positions(row, 2 * col + row % 2, "hex")


def test_rings_of_a_hexagonal_lattice():
    xy = hexagons(15)
    distance = np.sort(np.linalg.norm(xy - xy[7 * 15 + 7], axis=1))
    # 1 + 6 + 12 spots lie within two pitches, whose unit here is two half columns
    np.testing.assert_allclose(distance[1:7], 2)
    assert (distance[:19] <= 4 + 1e-9).all()
    assert distance[19] > 4


@pytest.mark.parametrize("size", [1, 5, 9, 25])
def test_means_over_whole_rings_equal_plain_means(size):
    xy, rng = grid(11), np.random.default_rng(0)
    values = rng.normal(size=(121, 3)).astype(np.float32)
    centre = 60
    nearest = np.argsort(np.linalg.norm(xy - xy[centre], axis=1), kind="stable")[:size]
    found = neighbourhood_means(values, xy, [size])
    if size != 25:  # 25 cuts a ring of a square lattice
        np.testing.assert_allclose(found[centre], values[nearest].mean(axis=0), atol=1e-5)
    assert found.dtype == np.float32
    np.testing.assert_allclose(neighbourhood_means(np.ones((121, 1)), xy, [size]), 1, atol=1e-6)


def test_ties_share_the_last_place():
    xy = grid(5)
    values = np.zeros((25, 1), dtype=np.float32)
    values[12 + 1] = 1  # one of four equally near neighbours of the centre
    # of two places, one goes to the spot itself, and the other is shared by four
    assert neighbourhood_means(values, xy, [2])[12, 0] == pytest.approx(0.5 / 4)


def test_order_and_symmetry_do_not_matter():
    xy, rng = hexagons(12), np.random.default_rng(1)
    values, order = rng.normal(size=(144, 4)), rng.permutation(144)
    plain = neighbourhood_means(values, xy, [7, 20])
    np.testing.assert_allclose(neighbourhood_means(values[order], xy[order], [7, 20]), plain[order], atol=1e-5)
    np.testing.assert_allclose(neighbourhood_means(values, xy * [-1, 1] + 7.3, [7, 20]), plain, atol=1e-5)


def test_small_sections_average_all_of_it(monkeypatch):
    values = np.arange(6, dtype=np.float32)[:, None]
    xy = np.column_stack([np.arange(6.0), np.zeros(6)])
    np.testing.assert_allclose(neighbourhood_means(values, xy, [301]), 2.5)
    np.testing.assert_allclose(neighbourhood_means(values[:1], xy[:1], [19, 91]), [[0, 0]])
    whole = neighbourhood_means(values, xy, [3])
    monkeypatch.setattr(neighbourhood, "CHUNK", 4)
    np.testing.assert_allclose(neighbourhood_means(values, xy, [3]), whole)


def test_moments_follow_an_affine_section_effect():
    values = np.random.default_rng(0).normal(size=(50, 3))
    (mean, sd), (other_mean, other_sd) = moments(values), moments(values * [2, 5, 0.1] + [3, -1, 9])
    np.testing.assert_allclose(other_mean, mean * [2, 5, 0.1] + [3, -1, 9])
    np.testing.assert_allclose(other_sd, sd * [2, 5, 0.1])
    assert moments(np.full((50, 1), 7.0)) == (7, 1)
