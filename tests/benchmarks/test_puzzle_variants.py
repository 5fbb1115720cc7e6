"""Variants of TRM in the benchmark of puzzles."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from strecur.engine import collate
from strecur.options import Training

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
networks, puzzles, variants = map(importlib.import_module, ("puzzle_networks", "puzzles", "puzzle_variants"))
SMALL = networks.Sudokus(box=(2, 2), n_clues=6)
TRAINING = Training(max_epochs=1, batch_sections=4, learning_rate=1e-3, weight_decay=0.0, warmup=1, ema=0.9)


def preset(**sizes: int) -> networks.Preset:
    sizes = {"n_layers": 1, "n_latent": 3, "n_deep": 2, "n_steps": 4, "n_train": 4, "n_test": 4} | sizes
    return networks.Preset(SMALL, "mixer", width=32, training=TRAINING, **sizes)


@pytest.fixture(scope="module")
def batch():
    import numpy as np

    rng = np.random.default_rng(0)
    return collate([SMALL.draw(rng, f"puzzle {i}") for i in range(3)])


def after(network, batch, n: int = 2):
    """Output and states after some outer steps."""
    carry = network.start(batch)
    for _ in range(n):
        output, _, carry = network.step(batch, carry)
    return output, carry.state


def gradients(network, batch):
    output, _ = after(network, batch, 1)
    output.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in network.recursion.backbone.parameters()])


def test_a_one_step_gradient_changes_no_answer_but_its_gradient(batch):
    plain, variant = (preset().make_network(m, 0) for m in ("trm", "trm, one-step gradient"))
    assert torch.equal(after(plain, batch)[0], after(variant, batch)[0])
    assert not torch.allclose(gradients(plain, batch), gradients(variant, batch), rtol=0.05)
    # with a single update of the latent there is nothing to leave out
    plain, variant = (preset(n_latent=1).make_network(m, 0) for m in ("trm", "trm, one-step gradient"))
    assert torch.equal(gradients(plain, batch), gradients(variant, batch))


def test_two_networks_are_trm_if_they_are_equal(batch):
    plain, variant = (preset().make_network(m, 0) for m in ("trm", "trm, two networks"))
    size = sum(p.numel() for p in plain.recursion.backbone.parameters())
    assert sum(p.numel() for p in variant.parameters()) - sum(p.numel() for p in plain.parameters()) == size
    assert not torch.allclose(after(plain, batch)[0], after(variant, batch)[0], atol=1e-3)
    for network in (plain, variant):
        network.recursion.backbone.load_state_dict(plain.recursion.backbone.state_dict())
        network.load_state_dict(plain.state_dict(), strict=False)
    variant.recursion.second.load_state_dict(plain.recursion.backbone.state_dict())
    assert torch.equal(after(plain, batch)[0], after(variant, batch)[0])


def test_one_state_is_updated_from_the_input_and_then_by_itself(batch):
    network = preset(n_deep=1).make_network("trm, single z", 0)
    x = network.embed(batch.features_NF, batch.lattice)
    (z,) = network.recursion.start(x)
    for _ in range(3):
        z = network.recursion.backbone(z + x, batch.lattice)
    expected = network.recursion.backbone(z, batch.lattice)
    _, state = after(network, batch, 1)
    assert len(state) == 1
    assert torch.equal(state[0], expected)


def test_a_single_one_of_several_latents_is_that_of_trm(batch):
    plain, variant = (preset(n_latent=1).make_network(m, 0) for m in ("trm", "trm, several z"))
    assert torch.equal(after(plain, batch)[0], after(variant, batch)[0])
    _, state = after(preset().make_network("trm, several z", 0), batch)
    assert len(state) == 4
    assert all(not torch.equal(state[1], other) for other in state[2:])


def test_stablemax_is_linear_where_softmax_is_exponential():
    logits = torch.tensor([[2.0, 0.0, -1.0], [1e4, -1e4, 0.0]])
    share = variants.log_stablemax(logits).exp()
    torch.testing.assert_close(share[0], torch.tensor([3.0, 1.0, 0.5]).double() / 4.5)
    torch.testing.assert_close(share.sum(dim=1), torch.ones(2).double())
    head = variants.StablemaxHead(4, 3)
    loss = head.spot_loss(logits, torch.tensor([0, -1]))
    assert loss[0].item() == pytest.approx(torch.tensor(4.5 / 3).log().item())
    assert loss[1] == 0
    assert torch.isfinite(head.spot_loss(logits, torch.tensor([1, 1]))).all()
    assert (head.predict(logits).argmax(1) == logits.argmax(1)).all()


def test_sizes_of_the_grid_and_of_twice_the_layers():
    small = preset()
    assert small.updates("trm") == (2, 3)
    assert small.updates("trm, T=3, n=6") == (3, 6)
    assert small.updates("trm, twice the layers") == (2, 1)
    assert small.n_layer_passes("trm, T=3, n=6") == 21
    network = small.make_network("trm, T=3, n=6", 0)
    assert (network.recursion.n_deep, network.recursion.n_latent) == (3, 6)
    assert len(small.make_network("trm, twice the layers", 0).recursion.backbone.layers) == 2
    assert small.training_of("trm, no EMA").ema == 0
    assert small.training_of("trm, single z") == small.training
    assert not set(small.methods) & set(networks.VARIANTS)
    assert puzzles.read_size("3x6") == "trm, T=3, n=6"
    with pytest.raises(ValueError, match="0x2"):
        puzzles.read_size("0x2")


def test_random_starts_and_noise_of_a_sweep():
    assert puzzles.read_starts("0.5x0") == "trm, sigma=0.5, beta=0"
    for wrong in ("0x0.1", "1x-1"):
        with pytest.raises(ValueError, match=wrong):
            puzzles.read_starts(wrong)
    recursion = preset().make_network("trm, sigma=0.5, beta=0.1", 0).recursion
    assert (recursion.sigma, recursion.noise, recursion.damping) == ((0.5, 0.5), 0.1, 0.05)
    assert preset().make_network("trm, sigma=1, beta=0.01", 0).recursion.sigma == (1.0, 1.0)


def test_a_run_of_trm_is_its_outer_steps_with_one_gradient(batch):
    plain, run = (preset().make_network(m, 0) for m in ("trm", "trm, run"))
    assert preset().steps_of("trm, run") == 1
    assert torch.equal(after(plain, batch, 4)[0], after(run, batch, 1)[0])
    assert torch.equal(last_gradients(plain, batch, 4), last_gradients(run, batch, 1))


def last_gradients(network, batch, n: int) -> torch.Tensor:
    """Gradient through the last of some outer steps, whose start is detached as in training."""
    carry = network.start(batch)
    for i in range(n):
        with torch.set_grad_enabled(i == n - 1):
            output, _, carry = network.step(batch, carry)
    output.square().sum().backward()
    return torch.cat([p.grad.flatten() for p in network.recursion.backbone.parameters()])


@pytest.mark.parametrize("method", networks.VARIANTS)
def test_variants_are_trained_and_evaluated(method):
    import numpy as np

    fabric, rng = puzzles.make_fabric("cpu", 1, "32-true"), np.random.default_rng(0)
    sections = [SMALL.draw(rng, f"puzzle {i}") for i in range(8)]
    small = preset(n_latent=2, n_deep=1, n_steps=2)
    network = small.make_network(method, 0)
    plain = {"augment": lambda section, _: section, "fabric": fabric, "seed": 0, "progress": False}
    before = [p.detach().clone() for p in network.parameters()]
    puzzles.fit(network, sections[:4], small.training_of(method), n_steps=small.steps_of(method), **plain)
    assert all(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    rows = puzzles.evaluate(network, sections[4:], (1, 2), (2,), fabric)
    assert {row["depth"] for row in rows} == {1, 2}
    assert all(0 <= row["exact"] <= 1 for row in rows)
