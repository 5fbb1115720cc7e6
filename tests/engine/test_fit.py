from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from strecur.engine import Augmentation, FitConfig, Section, collate, fit
from strecur.engine.data import symmetries, view
from strecur.engine.fit import BestWeights, Clock, MovingAverage, learning_rate, make_fabric, make_optimizer
from strecur.nn import TRM, DomainHead, Lattice, SpotNetwork, TRMConfig, WindowedBackbone, WindowedConfig

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


def train(net: SpotNetwork, sections: list[Section], *, seed: int = 0, augment=STILL, validate=None, **config):
    settings = {"n_steps": 2, "max_epochs": 2, "warmup": 1} | config
    fabric = make_fabric("cpu", 1, "32-true")
    rest = {"fabric": fabric, "augment": augment, "seed": seed, "validate": validate, "progress": False}
    return fit(net, sections, FitConfig(**settings), **rest)


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
    train(network(), [section("a"), section("b", seed=1)], n_steps=3, max_epochs=2)
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
    config = FitConfig(n_steps=1, learning_rate=1.0, warmup=10)
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[0] == pytest.approx(1 / 10)
    assert rates[9] == pytest.approx(1)
    assert max(rates) == rates[9]
    assert 0 < rates[-1] < 0.02
    assert all(learning_rate(1, total, config) > 0 for total in (1, 2, 3))


def test_only_linear_maps_decay():
    decayed, others = make_optimizer(network(), FitConfig(n_steps=1, weight_decay=0.5)).param_groups
    assert decayed["weight_decay"] == 0.5
    assert others["weight_decay"] == 0
    net = network()
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, others = (
        {names[id(p)] for p in group["params"]} for group in make_optimizer(net, FitConfig(n_steps=1)).param_groups
    )
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


def test_interruption_keeps_what_was_learned(monkeypatch):
    net, calls = network(), []
    start = weights(net)

    def interrupted(part: Section, generator: torch.Generator) -> Section:
        calls.append(part)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return part

    history = train(net, [section()], augment=interrupted, max_epochs=10, ema=0.5)
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


@pytest.mark.parametrize("layout", ["hex", "square", "irregular"])
def test_augmentation_moves_features_labels_and_lattice_together(layout):
    part = section()
    if layout == "hex":
        row, col = part.lattice.row_N, part.lattice.col_N
        part = replace(part, lattice=Lattice(row, 2 * col + row % 2, part.lattice.length_S, layout))
    else:
        part = replace(part, lattice=replace(part.lattice, layout=layout))
    identity = torch.arange(64.0)[:, None].expand(64, 4)
    part = replace(part, features_NF=identity, target_N=torch.arange(64))
    augment = Augmentation(noise=0, drop=0, hide=0, max_shift=3)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        changed = augment(part, generator)
        assert torch.equal(changed.features_NF[:, 0].long(), changed.target_N)
        cells = torch.stack([changed.lattice.row_N, changed.lattice.col_N], dim=1)
        assert len(torch.unique(cells, dim=0)) == 64
        if layout == "hex":
            assert len(torch.unique((changed.lattice.row_N + changed.lattice.col_N) % 2)) == 1
        seen.add(tuple((cells - cells[0]).flatten().tolist()))
    assert len(seen) == (4 if layout == "hex" else 8)


def test_symmetries_keep_distances():
    part = section()
    for element in symmetries("square"):
        moved = view(part, element, (2, 5)).lattice
        before, after = (torch.stack([x.row_N, x.col_N], dim=1).double() for x in (part.lattice, moved))
        torch.testing.assert_close(torch.cdist(before, before), torch.cdist(after, after), atol=1e-4, rtol=0)
    assert len(symmetries("square")) == 8
    assert len(symmetries("hex")) == 4


def test_large_sections_are_shown_in_parts_around_known_spots():
    spot = torch.arange(400)
    lattice = Lattice(spot // 20, spot % 20, (400,), "square")
    target = torch.where((spot // 20 < 2) & (spot % 20 < 2), 1, -1)  # a corner is annotated
    views = {1: spot[:, None] + 0.5}
    part = Section("a", spot[:, None].float(), lattice, target, views)
    augment = Augmentation(noise=0, drop=0, hide=0, symmetric=False, max_spots=50)
    generator = torch.Generator().manual_seed(0)
    shown = [augment(part, generator) for _ in range(20)]
    for some in shown:
        chosen = some.features_NF[:, 0].long()
        assert len(chosen.unique()) == 50
        # everything belongs to the same spots, which stay in their cells
        assert torch.equal(some.target_N, target[chosen])
        assert torch.equal(some.lattice.row_N * 20 + some.lattice.col_N, chosen)
        assert some.lattice.length_S == (50,)
        # a quarter of a disc around a spot of the corner
        assert (some.target_N >= 0).any()
        assert (some.lattice.row_N**2 + some.lattice.col_N**2).max() <= (1.5 + 9) ** 2
    assert len({tuple(some.features_NF[:, 0].tolist()) for some in shown}) > 1
    turned = Augmentation(noise=0, drop=0, hide=0, max_spots=50)
    parts = [turned(part, generator) for _ in range(30)]
    assert any((some.features_NF % 1 == 0.5).all() for some in parts)
    assert all(len(some.features_NF) == 50 for some in parts)
    # a section that is small enough is shown whole
    whole = replace(augment, max_spots=400)(part, generator)
    assert torch.equal(whole.features_NF, part.features_NF)


def test_parts_of_measured_sections_have_a_measured_spot():
    spot = torch.arange(100)
    target = torch.full((100, 3), torch.nan)
    target[97] = 1.0
    part = Section("a", torch.zeros(100, 1), Lattice(spot // 10, spot % 10, (100,), "square"), target)
    for _ in range(5):
        some = Augmentation(max_spots=4)(part, torch.Generator().manual_seed(0))
        assert (~some.target_N.isnan()).any()


def test_noise_and_dropped_columns():
    part = replace(section(), features_NF=torch.ones(64, 1000))
    generator = torch.Generator().manual_seed(0)
    dropped = Augmentation(noise=0, drop=0.25, hide=0, symmetric=False)(part, generator).features_NF
    # whole columns vanish, and the rest makes up for them
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[0]).all()
    assert (dropped[0] == 0).float().mean() == pytest.approx(0.25, abs=0.05)
    noisy = Augmentation(noise=0.5, drop=0, hide=0, symmetric=False)(part, generator).features_NF
    assert noisy.std() == pytest.approx(0.5, rel=0.05)


def test_hidden_spots_have_no_features_but_stay():
    part = section(size=40)
    hidden = Augmentation(noise=0, drop=0, hide=0.25, symmetric=False)(part, torch.Generator().manual_seed(0))
    gone = (hidden.features_NF == 0).all(dim=1)
    assert gone.float().mean() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(hidden.features_NF[~gone], part.features_NF[~gone])
    assert torch.equal(hidden.target_N, part.target_N)
    assert len(hidden.lattice.row_N) == 1600


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_training_computes_in_the_wanted_precision(precision, dtype, monkeypatch):
    seen, original = set(), DomainHead.forward

    def recorded(self, y_ND):
        seen.add(self.linear(y_ND).dtype)
        return original(self, y_ND)

    monkeypatch.setattr(DomainHead, "forward", recorded)
    net = network()
    options = {"fabric": make_fabric("cpu", 1, precision), "augment": STILL, "seed": 0, "progress": False}
    fit(net, [section()], FitConfig(n_steps=1, max_epochs=1), **options)
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
    config = FitConfig(n_steps=1, learning_rate=1.0, warmup=0, schedule="cosine")
    rates = [learning_rate(step, 100, config) for step in range(1, 101)]
    assert rates[0] == 1
    assert rates[50] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.001
    assert rates == sorted(rates, reverse=True)


def test_more_devices_in_a_notebook_are_refused():
    with pytest.raises(ValueError, match="torchrun"):
        make_fabric("cpu", 2, None)
