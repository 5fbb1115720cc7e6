from __future__ import annotations

import numpy as np
import pytest
import torch

from strecur.engine import Section
from strecur.engine.data import symmetries, view
from strecur.models.smoothing import choose_smoothing, smooth
from strecur.nn import Lattice

N_ROWS, N_COLS = 14, 12


def hexagonal(domain_of_row: np.ndarray | None = None) -> Section:
    """Hexagonal section whose rows are domains."""
    row, half = (axis.ravel() for axis in np.mgrid[:N_ROWS, :N_COLS])
    lattice = Lattice(torch.tensor(row), torch.tensor(2 * half + row % 2), (len(row),), "hex")
    target = None if domain_of_row is None else torch.tensor(domain_of_row[row])
    return Section("S", torch.zeros(len(row), 1), lattice, target)


def sure_of(domain_N: np.ndarray, share: float = 0.9) -> np.ndarray:
    """Probabilities of two domains."""
    proba_N = np.where(domain_N == 1, share, 1 - share)
    return np.stack([1 - proba_N, proba_N], axis=1).astype(np.float32)


def test_neighbours_outvote_a_lone_spot_but_not_a_border():
    section = hexagonal(np.repeat([0, 1], N_ROWS // 2))
    domain_N = section.target_N.numpy()
    wrong_N = domain_N.copy()
    wrong_N[3 * N_COLS + 5] = 1
    assert (smooth(sure_of(wrong_N), section, 7).argmax(axis=1) == domain_N).all()


def test_means_are_of_logarithms_over_the_ring():
    section = hexagonal()
    proba_NC = np.random.default_rng(0).dirichlet(np.ones(3), size=N_ROWS * N_COLS).astype(np.float32)
    inner = 5 * N_COLS + 6
    distance_N = (section.lattice.position_N2 - section.lattice.position_N2[inner]).norm(dim=1)
    ring = (distance_N < 1.01).numpy()
    assert ring.sum() == 7
    expected_C = np.exp(np.log(proba_NC[ring] + 1e-4).mean(axis=0))
    np.testing.assert_allclose(smooth(proba_NC, section, 7)[inner], expected_C / expected_C.sum(), rtol=1e-4)


def test_one_spot_is_no_smoothing_and_steps_are_smoothed_apart():
    section = hexagonal()
    proba_DNC = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, N_ROWS * N_COLS)).astype(np.float32)
    np.testing.assert_array_equal(smooth(proba_DNC, section, 1), proba_DNC)
    smoothed = smooth(proba_DNC, section, 7)
    assert smoothed.shape == proba_DNC.shape
    for step in range(2):
        np.testing.assert_allclose(smoothed[step], smooth(proba_DNC[step], section, 7), rtol=1e-5)


def test_a_mirrored_section_is_smoothed_alike():
    section = hexagonal()
    proba_NC = np.random.default_rng(0).dirichlet(np.ones(3), size=N_ROWS * N_COLS).astype(np.float32)
    for element in symmetries("hex"):
        np.testing.assert_allclose(smooth(proba_NC, view(section, element), 7), smooth(proba_NC, section, 7), rtol=1e-5)


@pytest.mark.parametrize(("width", "size"), [(7, 7), (2, 7), (1, 1)])
def test_only_domains_wide_enough_are_smoothed(width, size):
    rows = np.arange(N_ROWS) // width % 2
    assert choose_smoothing([hexagonal(rows)], 2) == size


def test_spots_without_annotation_neither_vote_nor_count():
    section = hexagonal(np.repeat([0, 1], N_ROWS // 2))
    lone = torch.full_like(section.target_N, -1)
    lone[::9] = section.target_N[::9]  # hardly any neighbour is annotated
    assert choose_smoothing([Section("S", section.features_NF, section.lattice, lone)], 2) == 7


def annotated_in_part(section: Section, known_N: np.ndarray) -> Section:
    target_N = torch.where(torch.from_numpy(known_N), section.target_N, -1)
    return Section("S", section.features_NF, section.lattice, target_N)


def test_few_annotated_neighbours_do_not_outvote_by_a_tie():
    # pairs of annotated spots across a border, far from other pairs
    row, col = (axis.ravel() for axis in np.mgrid[:N_ROWS, :N_COLS])
    pairs_N = np.isin(row, [6, 7]) & (col % 4 == 1)
    for domains in ([0, 1], [1, 0]):
        section = hexagonal(np.repeat(domains, N_ROWS // 2))
        assert choose_smoothing([annotated_in_part(section, pairs_N)], 2) == 7


def test_thin_domains_are_found_in_a_part_of_the_annotation():
    known_N = np.random.default_rng(0).random(N_ROWS * N_COLS) < 0.6
    assert choose_smoothing([annotated_in_part(hexagonal(np.arange(N_ROWS) % 2), known_N)], 2) == 1
    assert choose_smoothing([annotated_in_part(hexagonal(np.arange(N_ROWS) // 7 % 2), known_N)], 2) == 7
