from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from strecur.engine import Section, fit, make_fabric, predict
from strecur.nn import (
    Batch,
    CountHead,
    CountNetwork,
    GenARConfig,
    Lattice,
    PatchBackbone,
    PatchConfig,
    TRMConfig,
    WindowedConfig,
)
from strecur.nn.layers import shrink_branches
from strecur.nn.patch import unit_positions
from strecur.options import Inference, Training

N_GENES = 6
CONFIG = GenARConfig(width=16, n_heads=2, n_layers=1, condition_width=16, spots_per_step=8).fitted(N_GENES, 20)
TRM = replace(CONFIG, recursion=TRMConfig())
BACKBONES = {CONFIG: PatchConfig(16), TRM: WindowedConfig(width=16, n_heads=2, window=4, n_global=1)}
both = pytest.mark.parametrize("config", [CONFIG, TRM], ids=["patch", "trm"])
FABRIC = make_fabric("cpu", 1, "32-true")


def network(config: GenARConfig):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = BACKBONES.get(config, PatchConfig(16)).build()
        shrink_branches(backbone, config.body.branch_gain)
        return CountNetwork(5, config.body.build(backbone), CountHead(backbone.width, config))


def section(name: str = "S", *, n_rows: int = 4, n_cols: int = 6, seed: int = 0) -> Section:
    draws = torch.Generator().manual_seed(seed)
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(n_rows), torch.arange(n_cols), indexing="ij"))
    counts = torch.randint(21, (len(row), N_GENES), generator=draws).float()
    return Section(name, torch.randn(len(row), 5, generator=draws), Lattice(row, col, (len(row),), "square"), counts)


def moved(lattice: Lattice, *, transpose: bool = False, flip_row: bool = False) -> Lattice:
    return lattice.moved(transpose=transpose, flip_row=flip_row, flip_col=False, shift=(5, 9))


def conditions(net, given: Section, **options) -> np.ndarray:
    inference = Inference(net.head.genar.config.n_steps, **options)
    return predict(net, [given], inference, fabric=FABRIC)[0].best.output_DN[-1]


def batch_of(given: Section) -> Batch:
    return Batch(given.features_NF, given.lattice, given.target_N)


def test_places_run_from_0_to_1_within_each_section():
    lattice = Lattice.concatenate([section().lattice, moved(section(n_rows=1, n_cols=3).lattice)])
    place = unit_positions(lattice)
    assert place[:24].amin(dim=0).tolist() == [0, 0]
    assert place[:24].amax(dim=0).tolist() == [1, 1]
    assert place[24:, 0].tolist() == [0, 0, 0]
    assert place[24:, 1].tolist() == [0, 0.5, 1]


def test_the_patch_alone_sees_neither_other_spots_nor_the_context():
    backbone = PatchBackbone(PatchConfig(8, dropout=0.0))
    lattice = section().lattice
    h = torch.randn(25, 8, generator=torch.Generator().manual_seed(1))
    changed = h.clone()
    changed[[0, 3]] += 1
    differs = (backbone(h, lattice) != backbone(changed, lattice)).any(dim=1)
    assert differs.nonzero().flatten().tolist() == [0, 3]


def test_only_with_a_recursion_counts_see_the_section():
    given = section()
    moved = replace(given, features_NF=given.features_NF.clone())
    moved.features_NF[0] += 3
    for config, sees_others in ((CONFIG, False), (TRM, True)):
        net = network(config)
        before, after = (conditions(net, x, symmetric=False) for x in (given, moved))
        assert (np.abs(after[1:] - before[1:]).max() > 1e-4) == sees_others


@both
def test_a_step_learns_from_a_few_spots_that_were_measured(config):
    net, given = network(config), section()
    given.target_N[::2] = torch.nan
    seen = []
    net.head.loss = lambda condition, counts: seen.append(counts) or condition.sum() * 0
    generator = torch.Generator().manual_seed(0)
    carry = net.training_start(batch_of(given), 1, generator)
    for _ in range(20):
        net.training_step(batch_of(given), carry, generator)
    assert {len(counts) for counts in seen} == {config.spots_per_step}
    assert not torch.cat(seen).isnan().any()
    assert len(torch.cat(seen).unique(dim=0)) == 12, "all measured spots come up"


def test_a_section_without_counts_teaches_nothing():
    net, given = network(CONFIG), section()
    given.target_N[:] = torch.nan
    generator = torch.Generator().manual_seed(0)
    loss, _ = net.training_step(batch_of(given), net.training_start(batch_of(given), 1, generator), generator)
    loss.backward()
    assert loss.item() == 0


def test_the_linear_model_learns_from_all_spots_that_were_measured():
    seen = []
    for config in (CONFIG, replace(CONFIG, linear_start=False)):
        net, given = network(config), section()
        given.target_N[::2] = torch.nan
        net.head.genar.linear_loss = lambda condition, counts: seen.append(counts) or condition.sum() * 0
        generator = torch.Generator().manual_seed(0)
        net.training_step(batch_of(given), net.training_start(batch_of(given), 1, generator), generator)
    assert [len(counts) for counts in seen] == [12], "and there is none without linear_start"
    torch.testing.assert_close(seen[0], section().target_N[1::2])


@both
def test_recursion_and_generation_are_trained_together(config):
    net, given = network(config), section()
    generator = torch.Generator().manual_seed(0)
    loss, carry = net.training_step(batch_of(given), net.training_start(batch_of(given), 1, generator), generator)
    loss.backward()
    for part in (net.embedding, net.recursion.backbone, net.head.condition, net.head.genar):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert not any(state.requires_grad for state in carry.state)


@both
def test_training_is_reproducible_and_leaves_the_global_random_state(config):
    state = torch.random.get_rng_state()
    nets = [network(config) for _ in range(2)]
    training = Training(max_epochs=3, learning_rate=1e-3, warmup=30, schedule="linear", weight_decay=0.5, ema=0.98)
    options = {"n_steps": 1, "fabric": FABRIC, "augment": lambda s, _: s, "seed": 1, "progress": False}
    for net in nets:
        fit(net, [section()], training, **options)
    assert torch.equal(torch.random.get_rng_state(), state)
    for a, b in zip(*(net.state_dict().values() for net in nets), strict=True):
        assert torch.equal(a, b)


def test_dropout_comes_back_after_a_validation():
    net, given = network(CONFIG), section()
    conditions(net, given)
    assert not net.training
    net.training_start(batch_of(given), 1, torch.Generator())
    assert net.training


def test_genes_go_in_and_out_in_the_order_of_the_panel():
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    plain, ordered = network(CONFIG).eval(), network(CONFIG).eval()
    ordered.head.set_order(order)
    condition, counts = torch.randn(4, 16), section().target_N[:4]
    assert torch.equal(ordered.head.decode(condition).counts_NG[:, order], plain.head.decode(condition).counts_NG)
    assert torch.equal(ordered.head.loss(condition, counts), plain.head.loss(condition, counts[:, order]))


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 1, 2, 3, 4, 4], [0, 1, 2, 3, 4, 5, 6]])
def test_an_order_that_does_not_fit_the_panel_is_refused(order):
    with pytest.raises(ValueError, match="does not fit a panel of 6"):
        network(CONFIG).head.set_order(torch.tensor(order))


def test_conditions_of_views_are_averaged_before_counts_are_decided():
    net, given = network(CONFIG).eval(), section(n_cols=4)
    mean = conditions(net, given)
    turned = replace(given, lattice=moved(given.lattice, transpose=True, flip_row=True))
    np.testing.assert_allclose(conditions(net, turned), mean, atol=1e-5)
    scaled = torch.from_numpy(mean)
    assert torch.equal(net.head.decode(scaled).counts_NG, net.head.decode(0.5 * scaled).counts_NG)
