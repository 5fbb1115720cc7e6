from __future__ import annotations

import numpy as np
import pytest
import torch

from strecur.nn import TRM, Batch, DenseBackbone, DenseConfig, DomainHead, Lattice, SpotNetwork, TRMConfig
from strecur.nn.halting import (
    RECIPES,
    HaltHead,
    balanced_cross_entropy,
    cross_entropy,
    draw_halt_steps,
    gene_correlations,
    halt_probability,
    halt_steps,
    halting_target,
    hold_out,
    mean_correlation,
    random_target,
    squared_error,
    variance_distance,
)


def line(*lengths: int) -> Lattice:
    n = sum(lengths)
    return Lattice(torch.arange(n), torch.zeros(n, dtype=torch.long), lengths, "square")


@pytest.mark.parametrize(
    ("recipe", "measured", "target"),
    [("loss_proxy", 0.7, 0.5), ("pcc", 0.72, 0.8022), ("rvd", 0.354, 0.5459), ("mse", 0.7, 0.8808)],
)
def test_targets_of_the_paper(recipe, measured, target):
    chosen = RECIPES[recipe]
    found = halting_target(torch.tensor(measured), tau=chosen.tau, slope=chosen.slope)
    assert float(found) == pytest.approx(target, abs=5e-5)


def test_every_halt_head_starts_at_the_same_small_probability():
    logits = HaltHead(16, 5)(torch.randn(3, 16))
    np.testing.assert_allclose(halt_probability(logits).detach(), 0.0067, atol=1e-4)


def test_logits_are_averaged_before_the_probability():
    logits = torch.tensor([[-8.0, 1.0, 1.0]])
    assert logits.sigmoid().mean() > 0.4
    assert halt_probability(logits) == pytest.approx(float(torch.sigmoid(torch.tensor(-2.0))))


def test_held_out_spots_are_disjoint_from_the_others_and_redrawn():
    generator = torch.Generator().manual_seed(0)
    labelled = torch.rand(5000, generator=generator) < 0.7
    first, second = (hold_out(labelled, 0.2, generator) for _ in range(2))
    assert not (first & ~labelled).any()
    assert first.sum() / labelled.sum() == pytest.approx(0.2, abs=0.02)
    assert not torch.equal(first, second)


def test_random_steps_are_uniform_from_two_to_the_last():
    from scipy.stats import chisquare

    drawn = draw_halt_steps(7000, 8, torch.Generator().manual_seed(0)).numpy()
    assert (drawn.min(), drawn.max()) == (2, 8)
    assert chisquare(np.bincount(drawn)[2:]).pvalue > 0.01
    assert random_target(torch.tensor([2, 3, 3]), 3).squeeze(1).tolist() == [0, 1, 1]
    assert (draw_halt_steps(10, 1, torch.Generator()) == 1).all()


def test_decision_rule():
    high, low = torch.full((6, 1), 0.99), torch.full((6, 1), 0.01)
    rising = torch.tensor([0.9, 0.1, 0.2, 0.8, 0.9, 0.9])[:, None]
    probabilities = torch.cat([high, low, rising], dim=1)
    assert halt_steps(probabilities, threshold=0.7, min_steps=2).tolist() == [2, 6, 4]
    assert halt_steps(probabilities, threshold=0.7, min_steps=1).tolist() == [1, 6, 1]


def test_measures_of_domains():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    target, held_out = torch.tensor([0, 0, 0, 1, -1]), torch.tensor([True, True, True, True, False])
    each = torch.nn.functional.cross_entropy(logits[:4], target[:4], reduction="none")
    assert cross_entropy(logits, target, held_out, line(5))[0] == pytest.approx(float(each.mean()))
    balanced = (each[:3].mean() + each[3]) / 2
    assert balanced_cross_entropy(logits, target, held_out, line(5))[0] == pytest.approx(float(balanced))
    two = cross_entropy(logits, target, held_out & torch.tensor([1, 1, 1, 0, 0]).bool(), line(3, 2))
    assert two[0] == pytest.approx(float(each[:3].mean()))
    assert two[1].isnan()


def test_measures_of_expression():
    rng = np.random.default_rng(0)
    output, target = (torch.tensor(rng.normal(size=(30, 4)), dtype=torch.float32) for _ in range(2))
    target[:, 2] = 1.0
    held_out = torch.arange(30) % 2 == 0
    a, b = output[held_out].numpy(), target[held_out].numpy()
    found = gene_correlations(output, target, held_out, line(30))[0]
    expected = [np.corrcoef(a[:, g], b[:, g])[0, 1] for g in (0, 1, 3)]
    np.testing.assert_allclose(found[[0, 1, 3]], expected, atol=1e-5)
    assert found[2].isnan()
    assert mean_correlation(output, target, held_out, line(30))[0] == pytest.approx(np.mean(expected), abs=1e-5)
    assert squared_error(output, target, held_out, line(30))[0] == pytest.approx(((a - b) ** 2).mean(), abs=1e-5)
    variances = [(a[:, g].var() / b[:, g].var() - 1) ** 2 for g in (0, 1, 3)]
    assert variance_distance(output, target, held_out, line(30))[0] == pytest.approx(np.mean(variances), rel=1e-4)


def test_too_few_held_out_spots_and_constant_genes_give_no_target():
    output, target = torch.randn(6, 3), torch.randn(6, 3)
    two = torch.tensor([1, 1, 0, 0, 0, 0]).bool()
    assert gene_correlations(output, target, two, line(6)).isnan().all()
    assert variance_distance(output, target, two, line(6)).isnan().all()
    logits = torch.randn(1, 3, requires_grad=True)
    loss = RECIPES["gene_pcc"].loss(logits, output, target, two, line(6))
    assert loss == 0
    target[:, 1] = 5.0
    loss = RECIPES["gene_pcc"].loss(logits, output, target, torch.ones(6).bool(), line(6))
    loss.backward()
    assert logits.grad[0, 1] == 0
    assert (logits.grad[0, [0, 2]] != 0).all()
    assert loss.isfinite()


def test_no_gradient_comes_from_the_target():
    output = torch.randn(20, 3, requires_grad=True)
    logits = torch.zeros(1, 1, requires_grad=True)
    RECIPES["pcc"].loss(logits, output, torch.randn(20, 3), torch.ones(20).bool(), line(20)).backward()
    assert output.grad is None
    assert logits.grad is not None


def network(halting: str | None) -> SpotNetwork:
    torch.manual_seed(0)
    return SpotNetwork(
        5, TRM(DenseBackbone(DenseConfig(32, n_heads=2)), TRMConfig()), DomainHead(32, 3), halting=halting
    )


@pytest.mark.parametrize("recipe", ["loss_proxy", "weighted_bce", "random_k"])
def test_recipes_train_the_halt_head(recipe):
    net = network(recipe)
    batch = Batch(torch.randn(40, 5), line(25, 15), torch.randint(0, 3, (40,)))
    generator = torch.Generator().manual_seed(0)
    carry = net.training_start(batch, 3, generator)
    for _ in range(3):
        loss, carry = net.training_step(batch, carry, generator)
        loss.backward()
    assert net.halt_head.linear.weight.grad.abs().sum() > 0
    assert carry.step == 3


def test_held_out_spots_do_not_train_but_are_attended_to(monkeypatch):
    """The loss does not see the label of a held-out spot, while its features change the answer of others."""
    net = network("loss_proxy")
    features, target = torch.randn(30, 5), torch.randint(0, 3, (30,))
    held_out = torch.arange(30) < 6
    monkeypatch.setattr("strecur.nn.network.hold_out", lambda *_: held_out)
    monkeypatch.setattr("strecur.nn.network.HALT_WEIGHT", 0.0)

    def loss(features: torch.Tensor, target: torch.Tensor) -> float:
        batch = Batch(features, line(30), target)
        return net.training_step(batch, net.start(batch), torch.Generator())[0].item()

    other = target.clone()
    other[held_out] = (other[held_out] + 1) % 3
    assert loss(features, other) == pytest.approx(loss(features, target), abs=1e-6)
    changed = features.clone()
    changed[held_out] += 1
    assert loss(changed, target) != pytest.approx(loss(features, target), abs=1e-4)
