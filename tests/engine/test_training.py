from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from strecur.engine import Augmentation, Section, collate, fit, make_fabric, training
from strecur.engine.slots import Visit
from strecur.engine.state import BestWeights, Clock, MovingAverage
from strecur.engine.training import Losses, learning_rate, make_optimizer
from strecur.nn import TRM, Carry, DomainHead, Lattice, SpotNetwork, TRMConfig, WindowedBackbone, WindowedConfig
from strecur.options import Training

DEFAULTS = Training(learning_rate=1e-3, warmup=30, schedule="linear", weight_decay=0.5, ema=0.98)
STILL = Augmentation(noise=0, drop=0, hide=0, symmetric=False)


def section(name: str = "a", size: int = 8, seed: int = 0) -> Section:
    generator = torch.Generator().manual_seed(seed)
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    target = (row >= size // 2).long()
    features = torch.randn(size**2, 4, generator=generator) + 2 * target[:, None]
    return Section(name, features, Lattice(row, col, (size**2,), "square"), target)


def network(seed: int = 0, **config: int) -> SpotNetwork:
    torch.manual_seed(seed)
    body = WindowedBackbone(WindowedConfig(width=16, n_heads=2, window=4, n_global=1))
    return SpotNetwork(4, TRM(body, TRMConfig(n_latent=1, **config)), DomainHead(16, 2), halting="loss_proxy")


def train(
    net: SpotNetwork,
    sections: list[Section],
    *,
    n_steps: int = 2,
    seed: int = 0,
    augment=STILL,
    validate=None,
    **config,
):
    options = replace(DEFAULTS, **{"max_epochs": 2, "warmup": 1} | config)
    fabric = make_fabric("cpu", 1, "32-true")
    rest = {"fabric": fabric, "augment": augment, "seed": seed, "validate": validate, "progress": False}
    return fit(net, sections, options, n_steps=n_steps, **rest)


def weights(net: SpotNetwork) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def test_one_optimizer_step_per_supervision_step(monkeypatch):
    steps, states = [], []
    original = SpotNetwork.training_step

    def recorded(self, batch, carry, generator):
        states.append(carry.state)
        steps.append(self.head.linear.weight.detach().clone())
        return original(self, batch, carry, generator)

    monkeypatch.setattr(SpotNetwork, "training_step", recorded)
    train(network(), [section("a"), section("b", seed=1)], n_steps=3, max_epochs=2, slots=1)
    assert len(steps) == 2 * 2 * 3
    # weights change between the supervision steps of one visit, and the carried state has no gradient
    assert not torch.equal(steps[0], steps[1])
    assert not any(part.requires_grad for state in states for part in state)
    assert torch.equal(states[0][0], states[3][0])
    assert not torch.equal(states[0][0], states[1][0])


def test_it_learns_what_can_be_learned():
    sections = [section(str(i), seed=i) for i in range(4)]
    net = network()
    history = train(net, sections, max_epochs=30, learning_rate=3e-3)
    assert [record["epoch"] for record in history] == list(range(1, 31))
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    batch = collate([section("new", seed=9)])
    output, _, _ = net.eval().step(batch, net.start(batch))
    assert (output.argmax(dim=1) == batch.target_N).float().mean() > 0.95


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    sections = [section("a"), section("b", seed=1), section("c", seed=2)]
    first, second, other = network(), network(), network()
    torch.set_rng_state(before)
    train(first, sections, augment=Augmentation())
    train(second, sections, augment=Augmentation())
    train(other, sections, augment=Augmentation(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))
    assert not torch.equal(first.head.linear.weight, other.head.linear.weight)


def test_moving_average_starts_as_a_copy_and_mixes():
    net = network()
    start = weights(net)
    average = MovingAverage(net, 0.9)
    assert all(torch.equal(average.shadow[name], value) for name, value in start.items())
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1)
    average.update(net)
    for name, value in start.items():
        torch.testing.assert_close(average.shadow[name], 0.9 * value + 0.1 * (value + 1))


def test_averaged_weights_are_kept():
    raw, averaged = network(), network()
    train(raw, [section()], ema=0.0)
    train(averaged, [section()], ema=0.999)
    start = weights(network())
    moved = {
        k: (weights(net)["head.linear.weight"] - start["head.linear.weight"]).norm()
        for k, net in {"raw": raw, "averaged": averaged}.items()
    }
    assert 0 < moved["averaged"] < 0.05 * moved["raw"]


def test_warm_up_starts_at_one_step_and_ends_at_the_peak():
    config = replace(DEFAULTS, learning_rate=1.0, warmup=10)
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1 / 10)
    assert rates[9] == pytest.approx(1)
    assert max(rates) == rates[9]
    assert 0 < rates[-1] < 0.02
    assert all(learning_rate(1, total, config) > 0 for total in (1, 2, 3))


def test_only_linear_maps_decay():
    decayed, others = make_optimizer(network(), DEFAULTS).param_groups
    assert decayed["weight_decay"] == 0.5
    assert others["weight_decay"] == 0
    net = network()
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in make_optimizer(net, DEFAULTS).param_groups)
    assert decayed | others == set(names.values())
    assert {"context", "recursion.backbone.layers.0.bias", "halt_head.linear.bias"} <= others


def test_the_best_validated_weights_are_kept_and_training_stops_early():
    seen = []

    def validate(net: SpotNetwork) -> dict[str, float]:
        seen.append(net.head.linear.weight.detach().clone())
        return {"validation_ari": {2: 0.9}.get(len(seen), 0.1)}

    net = network()
    history = train(net, [section()], validate=validate, max_epochs=50, validate_every=1, patience=3)
    assert len(seen) == 5
    assert torch.equal(net.head.linear.weight, seen[1])
    assert [record["validation_ari"] for record in history] == [0.1, 0.9, 0.1, 0.1, 0.1]


def test_validation_leaves_the_trained_weights_alone():
    net = network()
    average = MovingAverage(network(seed=5), 0.9)
    before = weights(net)
    BestWeights(patience=1).judge(net, average, lambda n: {"score": n.head.linear.weight.sum().item()})
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_a_loss_that_is_no_number_stops_with_the_place():
    broken = replace(section("bad"), features_NF=torch.full((64, 4), torch.inf))
    with pytest.raises(FloatingPointError, match=r"epoch 1.*\['bad'\].*learning_rate"):
        train(network(), [broken])


@pytest.mark.parametrize(
    ("loss", "norm", "message"),
    [
        (torch.nan, 1.0, "loss became nan"),
        (1.0, torch.inf, "gradient became inf"),
        (torch.inf, torch.nan, "loss became inf"),
    ],
)
def test_losses_are_read_together_and_the_first_that_is_no_number_is_named(loss, norm, message, monkeypatch):
    monkeypatch.setattr(training, "READ_TOGETHER", 4)
    losses, finite = Losses(), torch.tensor(1.0)

    def slot(name: str) -> SimpleNamespace:
        return SimpleNamespace(visit=Visit(3, (name,), 0.5, 2), carry=Carry((), step=2))

    for name in ("a", "b", "c", "d"):
        losses.add(finite, finite, slot(name))
    losses.add(finite, finite, slot("e"))
    losses.add(torch.tensor(loss), torch.tensor(norm), slot("f"))
    losses.add(torch.tensor(torch.nan), finite, slot("g"))
    with pytest.raises(FloatingPointError, match=rf"{message} in epoch 3, outer step 2, on section\(s\) \['f'\]"):
        losses.add(finite, finite, slot("h"))
    losses.require_finite()  # each is read once


def test_a_gradient_that_is_no_number_stops_the_training(monkeypatch):
    class Exploding(torch.autograd.Function):
        @staticmethod
        def forward(_, loss):
            return loss.clone()

        @staticmethod
        def backward(_, gradient):
            return gradient * torch.inf

    original = SpotNetwork.training_step

    def explode(self, *arguments):
        loss, carry = original(self, *arguments)
        return Exploding.apply(loss), carry

    monkeypatch.setattr(SpotNetwork, "training_step", explode)
    with pytest.raises(FloatingPointError, match="epoch 1, outer step 1"):
        train(network(), [section("a")])


def test_an_interrupted_training_does_not_hide_a_loss_that_is_no_number(monkeypatch):
    broken = replace(section("bad"), features_NF=torch.full((64, 4), torch.inf))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Clock, "tick", interrupted)
    with pytest.raises(FloatingPointError, match="epoch 1"):
        train(network(), [broken])


def test_interruption_keeps_what_was_learned(monkeypatch):
    net, calls = network(), []
    start = weights(net)

    def interrupted(part: Section, generator: torch.Generator) -> Section:
        calls.append(part)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return part

    history = train(net, [section()], augment=interrupted, max_epochs=10, ema=0.5, slots=1)
    assert len(history) == 3
    assert not torch.equal(net.head.linear.weight, start["head.linear.weight"])


def test_a_time_limit_shortens_the_plan():
    clock = Clock(planned=1000, minutes=1e9)
    for _ in range(10):
        clock.tick()
    assert clock.planned == 1000
    clock = Clock(planned=10**9, minutes=1e-6)
    clock.begin -= 1
    for _ in range(5):
        clock.tick()
    assert clock.planned == 5
    assert clock.finished


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_training_computes_in_the_wanted_precision(precision, dtype, monkeypatch):
    seen, original = set(), DomainHead.forward

    def recorded(self, y_ND):
        seen.add(self.linear(y_ND).dtype)
        return original(self, y_ND)

    monkeypatch.setattr(DomainHead, "forward", recorded)
    net = network()
    options = {"fabric": make_fabric("cpu", 1, precision), "augment": STILL, "seed": 0, "progress": False}
    fit(net, [section()], replace(DEFAULTS, max_epochs=1), n_steps=1, **options)
    assert seen == {dtype}
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_sections_count_alike_however_large_they_are():
    """The loss of a batch is the mean of what its sections would have alone, as on several devices."""
    net, parts = network(), [section("a", 8), section("b", 4, seed=1)]
    net.recipe = None

    def loss(chosen: list[Section]) -> float:
        batch = collate(chosen)
        return net.training_step(batch, net.start(batch), torch.Generator())[0].item()

    assert loss(parts) == pytest.approx((loss(parts[:1]) + loss(parts[1:])) / 2, rel=1e-5)
    unlabelled = replace(parts[1], target_N=torch.full((16,), -1))
    assert loss([parts[0], unlabelled]) == pytest.approx(loss(parts[:1]) / 2, rel=1e-5)


def test_a_cosine_ends_where_a_line_does():
    config = replace(DEFAULTS, learning_rate=1.0, warmup=0, schedule="cosine")
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert rates == sorted(rates, reverse=True)


def test_more_devices_in_a_notebook_are_refused():
    with pytest.raises(ValueError, match="torchrun"):
        make_fabric("cpu", 2, None)
