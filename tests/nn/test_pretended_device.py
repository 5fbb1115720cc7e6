"""Networks on a device that is not there: whatever stays behind on the CPU raises, and results are those of the CPU.

The places that wait for a device are listed in docs/architecture.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pretend_device import Autocast, OnDevice, pretended_device, recorded_waits
from torch import Tensor, nn

from strecur.nn import (
    TRM,
    Batch,
    CountHead,
    CountNetwork,
    DenseConfig,
    DomainHead,
    ExpressionHead,
    FeedforwardConfig,
    GenARConfig,
    HierarchicalConfig,
    HistConfig,
    Lattice,
    LinearStart,
    PatchConfig,
    SpotNetwork,
    Streams,
    TRMConfig,
    UniversalConfig,
    WindowedConfig,
    hierarchical,
)
from strecur.nn.halting import RECIPES
from strecur.nn.windowed import WindowedLayer

BACKBONES = {
    "windowed": WindowedConfig(width=16, n_heads=2, window=4, n_global=2),
    "dense": DenseConfig(width=16, n_heads=2),
    "hierarchical": HierarchicalConfig(width=16, n_heads=2, window=4, n_levels=2, n_global=1),
    "hist": HistConfig(
        width=16, n_heads=2, window=4, encoder_depths=(1, 1), decoder_depths=(1,), dropout=0.0, cells_per_pitch=1.5
    ),
    "patch": PatchConfig(width=16),
}
RECURSIONS = {
    "trm": TRMConfig(n_latent=1, n_deep=2),
    "eqr": TRMConfig(n_latent=1, n_deep=2, sigma=(1.0, 0.5), damping=0.2, noise=0.1),
    "universal": UniversalConfig(n_repeats=2),
    "feedforward": FeedforwardConfig(),
}
HEADS = ("domains", "expression", "counts")
N_FEATURES, N_OUTPUTS = 5, 4
SIZES = (5, 4)


def make_batch(head: str, sizes: tuple[int, ...] = SIZES) -> Batch:
    """Sections of a hexagonal lattice with their target, some spots without."""
    generator = torch.Generator().manual_seed(3)
    cells = [torch.cartesian_prod(torch.arange(n), torch.arange(n)).unbind(1) for n in sizes]
    lattice = Lattice.concatenate([Lattice(row, 2 * col + row % 2, (len(row),), "hex") for row, col in cells])
    n_spots = len(lattice.row_N)
    features = torch.randn(n_spots, N_FEATURES, generator=generator)
    target = torch.randint(-1, N_OUTPUTS, (n_spots,), generator=generator)
    if head != "domains":
        target = torch.randint(0, 7, (n_spots, N_OUTPUTS), generator=generator).float()
        target[::5] = torch.nan
    return Batch(features, lattice, target)


def make_network(backbone: str, recursion: str, head: str, halting: str | None = None) -> SpotNetwork:
    torch.manual_seed(0)
    body = RECURSIONS[recursion].build(BACKBONES[backbone].build())
    if head == "counts":
        config = GenARConfig(width=8, condition_width=8, n_layers=1, drop_path=0.3).fitted(N_OUTPUTS, 6)
        count_head = CountHead(16, config)
        count_head.fit(torch.tensor([2, 0, 3, 1]), make_batch("counts").target_N.nan_to_num())
        return CountNetwork(N_FEATURES, body, count_head)
    own = DomainHead(16, N_OUTPUTS) if head == "domains" else ExpressionHead(16, N_OUTPUTS)
    return SpotNetwork(N_FEATURES, body, own, halting=halting, linear_start=LinearStart(N_FEATURES, N_OUTPUTS))


def train(network: SpotNetwork, batch: Batch, n_steps: int = 2) -> dict[str, Tensor]:
    """Losses of the supervision steps of a visit, and the gradients of their sum."""
    torch.manual_seed(1)  # dropout
    generator = torch.Generator(batch.features_NF.device).manual_seed(2)
    carry, losses = network.training_start(batch, n_steps, generator), []
    for _ in range(n_steps):
        loss, carry = network.training_step(batch, carry, generator)
        losses.append(loss)
    torch.stack(losses).sum().backward()
    found = {"losses": torch.stack(losses).detach(), "state": carry.state[-1]}
    return found | {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def move(batch: Batch, device: torch.device) -> Batch:
    assert batch.target_N is not None
    return Batch(batch.features_NF.to(device), batch.lattice.to(device), batch.target_N.to(device))


def train_on_both(network: SpotNetwork, batch: Batch) -> None:
    """Train one visit on the CPU and on the pretended device, and compare losses, states and gradients."""
    expected = train(network, batch)
    network.zero_grad()
    with pretended_device() as device:
        found = train(network.to(device), move(batch, device))
        assert all(isinstance(value, OnDevice) for value in found.values())
        found = {name: value.cpu() for name, value in found.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # the fused attention of CPUs rounds in another order
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=f"{name} of the two devices")


@pytest.mark.parametrize(
    ("backbone", "recursion"),
    [
        ("windowed", "feedforward"),
        ("windowed", "universal"),
        ("windowed", "eqr"),
        *((name, "trm") for name in BACKBONES),
    ],
)
def test_every_backbone_and_recursion_trains_on_one_device(backbone, recursion):
    train_on_both(make_network(backbone, recursion, "domains"), make_batch("domains"))


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_on_one_device(head):
    train_on_both(make_network("windowed", "eqr", head), make_batch(head))


@pytest.mark.parametrize("halting", RECIPES)
def test_every_halting_recipe_trains_on_one_device(halting):
    head = "domains" if RECIPES[halting].task in {"domains", "any"} else "expression"
    train_on_both(make_network("windowed", "trm", head, halting), make_batch(head))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_mixed_precision_of_gpus_gives_the_losses_of_the_cpu(backbone):
    """Autocast of CUDA keeps more operations in single precision than that of CPUs."""
    network, batch = make_network(backbone, "eqr", "domains", "loss_proxy"), make_batch("domains")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = train(network, batch)
    network.zero_grad()
    with pretended_device() as device, Autocast():
        found = {name: value.cpu() for name, value in train(network.to(device), move(batch, device)).items()}
    assert {name: value.dtype for name, value in found.items()} == {k: v.dtype for k, v in expected.items()}
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=0.02, atol=0.01)
    torch.testing.assert_close(found["state"], expected["state"], rtol=0.1, atol=0.1)


def test_dropout_of_attention_is_drawn_on_the_device():
    torch.manual_seed(0)
    body = HistConfig(width=16, n_heads=2, window=4, encoder_depths=(1, 1), decoder_depths=(1,), dropout=0.5).build()
    network = SpotNetwork(N_FEATURES, FeedforwardConfig().build(body), DomainHead(16, 4), halting=None)
    batch = make_batch("domains")
    with pretended_device() as device:
        found = train(network.to(device), move(batch, device))["losses"].cpu()
        network.eval()
        without = train(network, move(batch, device))["losses"].cpu()
    assert found.isfinite().all()
    assert not torch.allclose(found, without)


# Waiting for the device

ARCHITECTURE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
"""The places that wait, in words."""

WAITING_TARGETS = {
    "weighted_bce": {"balanced_cross_entropy"},
    "pcc": {"gene_correlations"},
    "gene_pcc": {"gene_correlations"},
    "rvd": {"variance_distance"},
}


def count_waits(network: SpotNetwork, batch: Batch) -> tuple[list[str], list[str]]:
    """Train one visit after its batch was moved; return where it waits in all, and where inside the recursion."""
    inside, step = [], type(network.recursion).step

    def watched(*arguments: object) -> object:
        before = len(waits)
        state = step(*arguments)
        inside.extend(waits[before:])
        return state

    with pretended_device() as device, pytest.MonkeyPatch.context() as patch:
        network.to(device)
        network.recursion.backbone.prepare(batch.lattice)
        batch = move(batch, device)
        patch.setattr(type(network.recursion), "step", watched)
        with recorded_waits() as waits:
            train(network, batch)
    return waits, inside


@pytest.mark.parametrize(
    ("backbone", "recursion"),
    [*(("windowed", name) for name in RECURSIONS), *((name, "trm") for name in BACKBONES if name != "windowed")],
)
def test_a_training_step_of_domains_waits_nowhere(backbone, recursion):
    assert count_waits(make_network(backbone, recursion, "domains", "loss_proxy"), make_batch("domains")) == ([], [])


@pytest.mark.parametrize("halting", RECIPES)
def test_only_some_targets_of_halting_wait(halting):
    head = "domains" if RECIPES[halting].task in {"domains", "any"} else "expression"
    waits, inside = count_waits(make_network("windowed", "trm", head, halting), make_batch(head))
    assert inside == []
    assert set(waits) == WAITING_TARGETS.get(halting, set())
    assert all(f"`{place}`" in ARCHITECTURE for place in waits)


def test_counts_wait_outside_of_the_recursion():
    waits, inside = count_waits(make_network("patch", "feedforward", "counts"), make_batch("counts"))
    assert inside == []
    assert set(waits) == {"CountNetwork.mean_loss", "pool", "random_state_from"}
    assert all(f"`{place}`" in ARCHITECTURE for place in waits)


@pytest.mark.parametrize("backbone", ["windowed", "hierarchical", "hist"])
def test_index_tensors_that_were_not_prepared_are_found(backbone, monkeypatch):
    monkeypatch.setattr(type(BACKBONES[backbone].build()), "prepare", lambda *_: None)
    _, inside = count_waits(make_network(backbone, "trm", "domains"), make_batch("domains"))
    assert "number_distinct" in inside


def test_gradient_checkpointing_stays_on_one_device():
    network = make_network("windowed", "eqr", "domains")
    network.recursion.recompute = True
    train_on_both(network, make_batch("domains"))


def test_counts_are_generated_on_one_device():
    head = make_network("patch", "feedforward", "counts").head
    condition = torch.randn(7, 8, generator=torch.Generator().manual_seed(0))
    expected = head.decode(condition), head.sample(condition, torch.Generator().manual_seed(1))
    with pretended_device() as device:
        head, condition = head.to(device), condition.to(device)
        found = head.decode(condition), head.sample(condition, torch.Generator().manual_seed(1))
        pairs = [(a.counts_NG.cpu(), a.log2_NG.cpu(), b) for a, b in zip(found, expected, strict=True)]
    for counts_NG, log2_NG, other in pairs:
        assert torch.equal(counts_NG, other.counts_NG)
        torch.testing.assert_close(log2_NG, other.log2_NG)


def test_a_forgotten_index_tensor_on_the_cpu_is_found(monkeypatch):
    def spread(parents_P4D: Tensor, lattice: Lattice) -> Tensor:
        return parents_P4D.unflatten(1, (4, -1)).flatten(0, 1)[lattice.windows(2, 0).site_N.cpu()]

    monkeypatch.setattr(hierarchical, "spread_to_children", spread)
    with pytest.raises(RuntimeError, match="same device"):
        train_on_both(make_network("hierarchical", "trm", "domains"), make_batch("domains"))


def test_a_generator_of_the_cpu_is_found(monkeypatch):
    def normal(self: Streams, like_TD: Tensor, lattice: Lattice) -> Tensor:
        return torch.randn(like_TD.shape, generator=torch.Generator().manual_seed(0), device=like_TD.device)

    monkeypatch.setattr(Streams, "normal", normal)
    with pytest.raises(RuntimeError, match="generator"):
        train_on_both(make_network("windowed", "eqr", "domains"), make_batch("domains"))


@pytest.mark.parametrize(
    ("owner", "backbone", "head"),
    [
        (TRM, "windowed", "domains"),
        (WindowedLayer, "windowed", "domains"),
        (hierarchical.SlideAttention, "hierarchical", "domains"),
        (LinearStart, "windowed", "domains"),
        (ExpressionHead, "windowed", "expression"),
        (CountHead, "windowed", "counts"),
    ],
)
def test_a_forgotten_buffer_is_found(owner, backbone, head, monkeypatch):
    def forget(self: nn.Module, name: str, tensor: Tensor, persistent: bool = True) -> None:
        object.__setattr__(self, name, tensor)

    monkeypatch.setattr(owner, "register_buffer", forget)
    with pytest.raises(RuntimeError, match="same device"):
        train_on_both(make_network(backbone, "trm", head), make_batch(head))
