from __future__ import annotations

import pytest
import torch

from strecur import Training
from strecur.engine.training import make_optimizer
from strecur.models.network import BACKBONES, architecture_from_json, build_network, resolve_architecture, to_json
from strecur.nn import (
    Batch,
    DomainHead,
    FeedforwardConfig,
    GenARConfig,
    Lattice,
    TRMConfig,
    UniversalConfig,
    WindowedConfig,
)
from strecur.nn.layers import BranchEnd

OPTIONS = Training(learning_rate=1e-3, weight_decay=0.5)
RECURSIVE = ["dense", "hierarchical", "windowed"]


def build(architecture, backbone="windowed"):
    return build_network(6, architecture, BACKBONES[backbone](), DomainHead, 3, halting=None, seed=0)


def branch_ends(network) -> list[BranchEnd]:
    return [module for module in network.modules() if isinstance(module, BranchEnd)]


@pytest.mark.parametrize("backbone", RECURSIVE)
def test_the_branches_of_a_recursion_begin_small_and_all_else_as_drawn(backbone):
    plain, small = build(TRMConfig(branch_gain=1.0), backbone), build(TRMConfig(branch_gain=0.25), backbone)
    ends = {id(end.weight) for network in (plain, small) for end in branch_ends(network)}
    assert len(ends) >= 2 * 4
    for (name, a), b in zip(plain.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(b, a * (0.25 if id(a) in ends else 1), msg=name)


@pytest.mark.parametrize("backbone", RECURSIVE)
def test_without_branches_an_update_is_the_identity_up_to_scale(backbone):
    network = build(TRMConfig(branch_gain=0.0), backbone)
    body, lattice = network.recursion.backbone, Lattice(torch.arange(5), torch.arange(5) % 3, (5,), "square")
    h_TD = torch.nn.functional.rms_norm(torch.randn(5 + body.n_context, body.width), (body.width,), eps=1e-5)
    # coarser levels add to a spot only through branches too
    torch.testing.assert_close(body(h_TD, lattice)[body.n_context :], h_TD[body.n_context :], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", RECURSIVE)
def test_the_first_updates_are_small_whatever_the_backbone(backbone):
    """A hierarchy goes through more layers; with branches as large as the others' its recursion stayed at the mean."""
    torch.manual_seed(0)
    body = build(TRMConfig(), backbone).recursion.backbone
    row_N, col_N = (axis.flatten() for axis in torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij"))
    h_TD = torch.nn.functional.rms_norm(torch.randn(144 + body.n_context, body.width), (body.width,), eps=1e-5)
    with torch.no_grad():
        change_TD = body(h_TD, Lattice(row_N, col_N, (144,), "square")) - h_TD
    assert 0 < change_TD[body.n_context :].norm() / h_TD[body.n_context :].norm() < 0.1


def test_only_recursions_begin_close_to_the_identity_and_all_branches_decay():
    assert 0 < TRMConfig().branch_gain < 1
    assert 0 < UniversalConfig().branch_gain < 1
    assert FeedforwardConfig().branch_gain == 1
    network = build(resolve_architecture("trm"))
    decayed, _ = make_optimizer(network, OPTIONS).param_groups
    assert {id(end.weight) for end in branch_ends(network)} <= {id(p) for p in decayed["params"]}


def test_models_of_counts_that_do_not_say_so_are_those_of_the_paper():
    """Saved before there was a choice: no linear model, the released labels, the most probable count."""
    config = GenARConfig().fitted(20, 50)
    values = to_json(config)
    assert architecture_from_json(dict(values)) == config
    earlier = {name: v for name, v in values.items() if name not in {"softness", "decision", "linear_start"}}
    loaded, paper = architecture_from_json(earlier), GenARConfig.paper()
    assert (loaded.softness, loaded.decision, loaded.linear_start) == (paper.softness, "most_probable", False)
    assert loaded.scales == config.scales


def test_before_training_a_linear_start_is_the_answer_and_it_is_never_trained():
    network = build_network(
        6, TRMConfig(), WindowedConfig(width=16, n_heads=2), DomainHead, 3, halting=None, seed=0, linear_start=True
    )
    weight_FO, bias_O = torch.randn(6, 3), torch.randn(3)
    network.start_from(weight_FO, bias_O)
    batch = Batch(torch.randn(9, 6), Lattice(torch.arange(9) // 3, torch.arange(9) % 3, (9,), "square"))
    output, _, _ = network.step(batch, network.start(batch))
    torch.testing.assert_close(output, batch.features_NF @ weight_FO + bias_O)
    output.sum().backward()
    assert network.head.linear.weight.grad.abs().sum() > 0
    assert not {"linear_start.weight_FO", "linear_start.bias_O"} & {name for name, _ in network.named_parameters()}


def test_without_a_linear_start_the_network_is_that_of_the_papers():
    """The same weights and names as before there was one, so that saved models stay what they are."""
    options = {"halting": None, "seed": 0}
    settings = (6, TRMConfig(), WindowedConfig(width=16, n_heads=2), DomainHead, 3)
    plain, other = (build_network(*settings, **options, linear_start=on) for on in (False, True))
    assert plain.linear_start is None
    assert set(other.state_dict()) - set(plain.state_dict()) == {"linear_start.weight_FO", "linear_start.bias_O"}
    for (name, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
