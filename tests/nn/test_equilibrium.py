from __future__ import annotations

import pytest
import torch
from torch import nn

from strecur.nn import TRM, DenseBackbone, DenseConfig, Lattice, Streams, TRMConfig


def line(*lengths: int) -> Lattice:
    n = sum(lengths)
    return Lattice(torch.arange(n), torch.zeros(n, dtype=torch.long), lengths, "square")


def streams(*seeds: int, noise: float = 0.0) -> Streams:
    return Streams([torch.Generator().manual_seed(seed) for seed in seeds], noise=noise)


def trm(**config: object) -> TRM:
    torch.manual_seed(0)
    return TRM(DenseBackbone(DenseConfig(width=32, n_heads=2)), TRMConfig(n_latent=2, n_deep=2, **config))


def test_without_damping_and_noise_it_is_the_plain_trm_to_the_bit():
    x, grid = torch.randn(21, 32), line(20)
    plain, equal = trm(), trm(damping=0.0, noise=0.0)
    for state in (plain.start(x), tuple(torch.randn(2, 21, 32))):
        expected = plain.step(state, x, grid)
        found = equal.step(state, x, grid, streams(0))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_damping_keeps_its_share_of_the_old_state():
    class Constant(nn.Module):
        width = 4

        def forward(self, h_TD: torch.Tensor, lattice: Lattice) -> torch.Tensor:
            return torch.full_like(h_TD, 10.0)

    recursion = TRM(Constant(), TRMConfig(n_latent=1, damping=0.05))
    y, z = recursion.step((torch.zeros(3, 4), torch.zeros(3, 4)), torch.zeros(3, 4), line(3))
    assert torch.allclose(z, torch.tensor(9.5))
    assert torch.allclose(y, torch.tensor(9.5))


def test_noise_enters_every_update():
    class Zero(nn.Module):
        width = 64

        def forward(self, h_TD: torch.Tensor, lattice: Lattice) -> torch.Tensor:
            return torch.zeros_like(h_TD)

    recursion = TRM(Zero(), TRMConfig(n_latent=2))
    start = (torch.zeros(500, 64), torch.zeros(500, 64))
    y, z = recursion.step(start, torch.zeros(500, 64), line(500), streams(0, noise=0.3))
    assert y.std() == pytest.approx(0.3, rel=0.02)
    assert z.std() == pytest.approx(0.3, rel=0.02)
    assert torch.corrcoef(torch.stack([y.flatten(), z.flatten()]))[0, 1].abs() < 0.02


@pytest.mark.parametrize("sigma", [1.0, 8.0])
def test_random_starts_have_their_standard_deviation_and_differ_everywhere(sigma):
    recursion = trm(sigma=(sigma, 1.0))
    x = torch.zeros(2001, 32)
    y, z = recursion.random_start(x, line(2000), streams(0))
    assert y.std() == pytest.approx(sigma, rel=0.02)
    assert z.std() == pytest.approx(1, rel=0.02)
    assert y.abs().max() <= 2.28 * sigma
    assert len(torch.unique(y)) > 0.9 * y.numel()
    other, _ = recursion.random_start(x, line(2000), streams(1))
    assert not torch.equal(y, other)


def test_what_a_section_draws_does_not_depend_on_its_neighbours_in_the_batch():
    recursion = trm(sigma=(1.0, 1.0))
    together, _ = recursion.random_start(torch.zeros(2 + 50, 32), line(20, 30), streams(7, 8))
    alone, _ = recursion.random_start(torch.zeros(1 + 30, 32), line(30), streams(8))
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[2 + 20 :], alone[1:])


def test_a_contraction_converges_to_one_answer_from_every_start():
    class Halving(nn.Module):
        width = 8

        def forward(self, h_TD: torch.Tensor, lattice: Lattice) -> torch.Tensor:
            return 0.25 * h_TD + 1

    recursion, x = TRM(Halving(), TRMConfig(n_latent=1)), torch.zeros(6, 8)
    answers = []
    for seed in range(3):
        state = recursion.random_start(x, line(5), streams(seed))
        for _ in range(40):
            state = recursion.step(state, x, line(5))
        answers.append(torch.stack(state))
    # z = 1 + (y + z) / 4 and y = 1 + (y + z) / 4 meet at 2
    for answer in answers:
        assert torch.allclose(answer, torch.tensor(2.0), atol=1e-5)
