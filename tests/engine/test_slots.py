"""Sections that are visited in turn, at different outer steps."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from strecur.engine import Augmentation, Checkpoint, checkpoint, collate, fit, make_fabric
from strecur.engine.state import CollapseWatch, MovingAverage, TrainingCollapseError
from strecur.nn import TRM, DomainHead, SpotNetwork, TRMConfig, WindowedBackbone, WindowedConfig

from .test_training import DEFAULTS, STILL, network, section, train, weights

SECTIONS = [section("a"), section("b", seed=1), section("c", size=6, seed=2)]


@pytest.fixture
def steps(monkeypatch) -> list[tuple[str, int, torch.Tensor]]:
    """Return a list to which every supervision step adds the size of its section, its step and its state before it."""
    seen = []
    original = SpotNetwork.training_step

    def recorded(self, batch, carry, generator):
        seen.append((float(batch.features_NF[0, 0]), carry.step, carry.state[0].clone()))
        return original(self, batch, carry, generator)

    monkeypatch.setattr(SpotNetwork, "training_step", recorded)
    return seen


def test_slots_take_turns_and_stand_at_different_steps(steps):
    train(network(), SECTIONS, n_steps=4, slots=2, max_epochs=4)
    # as many optimizer steps as with one slot
    assert len(steps) == 4 * 3 * 4
    first, second = steps[::2], steps[1::2]
    assert [step for _, step, _ in first] == [0, 1, 2, 3] * 6
    # the second slot is half a visit ahead
    assert [step for _, step, _ in second] == [0, 1, *[0, 1, 2, 3] * 5, 0, 1]


def test_by_default_there_is_a_slot_for_every_outer_step_but_not_for_every_visit(steps):
    found = network()
    train(found, SECTIONS, n_steps=3, max_epochs=4)
    assert [step for _, step, _ in steps[:9]] == [0, 0, 0, 1, 1, 0, 2, 0, 1]
    expected = network()
    train(expected, SECTIONS, n_steps=3, max_epochs=4, slots=3)
    assert all(torch.equal(p, weights(expected)[name]) for name, p in weights(found).items())
    steps.clear()
    train(network(), SECTIONS[:1], n_steps=4, max_epochs=2)  # two visits
    assert [step for _, step, _ in steps] == [0, 0, 1, 1, 2, 0, 3, 1]


def test_a_state_is_carried_on_within_a_visit_alone(steps):
    train(network(), SECTIONS, n_steps=3, slots=3, max_epochs=6)
    fresh = [state for _, step, state in steps if step == 0]
    assert len(fresh) > 6
    assert all(torch.equal(state[0], fresh[0][0]) for state in fresh)
    for turn in range(3):
        own = steps[turn::3]
        for (name, step, _), (later, next_step, _) in itertools.pairwise(own):
            assert next_step in {0, step + 1}
            assert next_step == 0 or name == later


def test_every_section_is_visited_equally_often(steps):
    train(network(), SECTIONS, n_steps=2, slots=3, max_epochs=10)
    begun = Counter(name for name, step, _ in steps if step == 0)
    assert max(begun.values()) - min(begun.values()) <= 1


def test_with_one_slot_visits_follow_each_other(steps):
    one, other = network(), network()
    train(one, SECTIONS, n_steps=3, max_epochs=2, slots=1)
    assert [step for _, step, _ in steps] == [0, 1, 2] * 6
    train(other, SECTIONS, n_steps=3, max_epochs=2, slots=2)
    assert not torch.equal(one.head.linear.weight, other.head.linear.weight)


def dropped(seed: int = 0) -> SpotNetwork:
    """Network that draws random starts, noise and dropout."""
    torch.manual_seed(seed)
    body = WindowedBackbone(WindowedConfig(width=16, n_layers=1, n_heads=2, window=4, n_global=1))
    recursion = TRM(body, TRMConfig(n_latent=1, sigma=(1.0, 1.0), noise=0.1))
    net = SpotNetwork(4, recursion, DomainHead(16, 2), halting="random_k")
    net.head = torch.nn.Sequential(torch.nn.Dropout(0.5), net.head)
    net.head.labelled, net.head.spot_loss = net.head[1].labelled, net.head[1].spot_loss
    return net


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_a_training_stopped_in_the_middle_of_visits_resumes_bit_for_bit(stop_after, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0)
    training = replace(DEFAULTS, max_epochs=6, warmup=1, slots=4, validate_every=2)
    options = {"n_steps": 5, "augment": Augmentation(max_shift=2), "seed": 3, "progress": False}
    options |= {"fabric": make_fabric("cpu", 1, "32-true")}

    def run(net: SpotNetwork, folder: Checkpoint | None, validate: object) -> list[dict[str, float]]:
        return fit(net, SECTIONS, training, checkpoint=folder, validate=validate, **options)

    whole, stopped, resumed = dropped(), dropped(), dropped()
    expected = run(whole, None, lambda net: {"score": float(net.context.detach().sum())})
    epochs = []

    def interrupted(_net: SpotNetwork) -> dict[str, float]:
        return {"score": float(_net.context.detach().sum())}

    original = Checkpoint.update

    def update(self, state, fabric):
        original(self, state, fabric)
        epochs.append(len(state.history))
        if len(state.history) == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "update", update)
        run(stopped, Checkpoint(tmp_path, {}), interrupted)
    assert epochs[-1] == stop_after
    found = run(resumed, Checkpoint(tmp_path, {}), interrupted)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(resumed).values(), strict=True))
    assert [record["train_loss"] for record in found] == [record["train_loss"] for record in expected]


def halting(bias: float) -> SpotNetwork:
    """Network whose halt probability is the same from the start."""
    net = network()
    torch.nn.init.constant_(net.halt_head.linear.bias, bias)
    for parameter in net.halt_head.parameters():
        parameter.requires_grad_(False)
    return net


def test_a_section_that_halts_is_replaced_except_for_exploration(steps):
    train(halting(5.0), SECTIONS, n_steps=8, slots=2, max_epochs=10, early_exit=True)
    # as many optimizer steps, of more visits
    assert len(steps) == 10 * 3 * 8
    lengths = [step for turn in (0, 1) for _, step, _ in steps[turn::2]]
    begun = lengths.count(0)
    assert begun > 0.6 * len(steps)
    # about one visit in ten goes on to a random step from 2 to 8
    longer = lengths.count(1) / begun
    assert 0.03 < longer < 0.2
    steps.clear()
    train(halting(-5.0), SECTIONS, n_steps=8, slots=2, max_epochs=2, early_exit=True)
    assert [step for _, step, _ in steps[::2]] == list(range(8)) * 3


def test_more_slots_than_visits_raise():
    with pytest.raises(ValueError, match=r"slots=7 is more than the 6 visits.*lower slots, or raise max_epochs"):
        train(network(), SECTIONS, slots=7, max_epochs=2)


@pytest.mark.parametrize("options", [{"slots": 2}, {"early_exit": True}])
def test_several_processes_cannot_store_visits_that_stand_open(options, tmp_path, monkeypatch):
    fabric = make_fabric("cpu", 1, "32-true")
    monkeypatch.setattr(type(fabric), "world_size", 2)
    training = replace(DEFAULTS, max_epochs=2, warmup=1, **options)
    folder = Checkpoint(tmp_path / "checkpoint", {})
    with pytest.raises(ValueError, match=r"checkpoint of 2 processes.*leave checkpoint out"):
        fit(network(), SECTIONS, training, n_steps=2, augment=STILL, fabric=fabric, seed=0, checkpoint=folder)
    assert not folder.folder.exists()


def test_an_adaptive_augmentation_sees_the_share_that_was_done_when_a_visit_began():
    class Recorded:
        def __init__(self) -> None:
            self.shares = []

        def at(self, share: float) -> object:
            self.shares.append(share)
            return STILL

    augment = Recorded()
    train(network(), SECTIONS, n_steps=2, slots=2, max_epochs=3, augment=augment)
    assert augment.shares[0] == 0
    assert augment.shares == sorted(augment.shares)
    assert augment.shares[-1] >= 0.8


def constant(net: SpotNetwork) -> bool:
    """Whether one domain is named everywhere."""
    batch = collate([SECTIONS[0]])
    with torch.no_grad():
        output, _, _ = net.step(batch, net.start(batch))
    return len(output.argmax(dim=1).unique()) == 1


def test_a_network_that_learns_nothing_stops_the_training():
    noise = [replace(part, features_NF=torch.zeros_like(part.features_NF)) for part in SECTIONS]
    options = {"n_steps": 2, "augment": STILL, "seed": 0, "progress": False, "fabric": make_fabric("cpu", 1, "32-true")}
    training = replace(DEFAULTS, max_epochs=24)
    with pytest.raises(TrainingCollapseError, match="learned nothing: after 50% of the training.*Lower learning_rate"):
        fit(network(), noise, training, has_collapsed=lambda _net: True, **options)
    history = fit(network(), SECTIONS, training, has_collapsed=constant, **options)
    assert len(history) == 24


def test_the_averaged_weights_are_judged_once_after_half_of_a_training_that_is_long_enough():
    net, seen = network(), []
    average = MovingAverage(net, 0.9)
    with torch.no_grad():
        net.context.add_(1)
    raw = net.context.detach().clone()

    def judged(network: SpotNetwork) -> bool:
        seen.append(network.context.detach().clone())
        return False

    watch = CollapseWatch(judged, least_steps=120)
    watch.judge(net, average, 0.4, 1000)
    watch.judge(net, average, 1.0, 100)
    assert seen == []
    watch.judge(net, average, 0.5, 1000)
    watch.judge(net, average, 0.6, 1000)
    assert len(seen) == 1
    assert torch.equal(seen[0], average.shadow["context"])
    assert torch.equal(net.context, raw)
    CollapseWatch(None, least_steps=1).judge(net, average, 1.0, 1000)
