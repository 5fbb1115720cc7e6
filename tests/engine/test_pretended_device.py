"""Training and prediction on a device that is not there; see tests/nn/test_pretended_device.py."""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from pretend_device import Autocast, OnDevice, pretended_device, recorded_waits

from strecur.engine import (
    Answer,
    Augmentation,
    Checkpoint,
    HistAugmentation,
    Section,
    collate,
    fit,
    make_fabric,
    predict,
    prediction,
    slots,
)
from strecur.engine.prediction import Batches
from strecur.engine.tiles import cut_section
from strecur.engine.training import Trainer
from strecur.nn import (
    BackboneConfig,
    DenseConfig,
    DomainHead,
    HierarchicalConfig,
    HistConfig,
    Lattice,
    SpotNetwork,
    Streams,
    TRMConfig,
    WindowedConfig,
)
from strecur.options import Inference, Training

if TYPE_CHECKING:
    from collections.abc import Sequence

TRAINING = Training(
    slots=2, max_epochs=2, learning_rate=1e-3, warmup=1, schedule="linear", weight_decay=0.5, ema=0.9, early_exit=True
)
SHIFTED = Augmentation(max_shift=2, max_spots=20)
ARCHITECTURE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
"""The places that wait, in words."""


def section(name: str, size: int) -> Section:
    generator = torch.Generator().manual_seed(size)
    row, col = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(1)
    target = torch.where(col == 0, -1, (row >= size // 2).long())
    return Section(name, torch.randn(size**2, 4, generator=generator), Lattice(row, col, (size**2,), "square"), target)


SECTIONS = [section("a", 6), section("b", 5)]
TILES = [tile for part in SECTIONS for tile in cut_section(part, 3, 2)]
WINDOWED = WindowedConfig(width=16, n_heads=2, window=4, n_global=1)
WITHOUT_GLOBAL = replace(WINDOWED, n_global=0)
HIST = HistConfig(width=16, n_heads=2, window=4, encoder_depths=(1, 1), decoder_depths=(1,), dropout=0.0)


def make_network(
    backbone: BackboneConfig = WINDOWED, *, halting: str | None = "loss_proxy", **options: object
) -> SpotNetwork:
    torch.manual_seed(0)
    halting = halting if backbone.n_context else None
    recursion = TRMConfig(n_latent=1, **options).build(backbone.build())
    return SpotNetwork(4, recursion, DomainHead(16, 2), halting=halting)


def fabric_on(device: torch.device | None = None) -> Fabric:
    fabric = make_fabric("cpu", 1, "32-true")
    if device is not None:
        fabric.strategy._root_device = device
        fabric._accelerator.setup_device = lambda _device: None
    return fabric


def train(
    fabric: Fabric,
    backbone: BackboneConfig = WINDOWED,
    sections: Sequence[Section] = SECTIONS,
    *,
    augment: object = SHIFTED,
    n_steps: int = 2,
    folder: str | None = None,
    network: SpotNetwork | None = None,
    **options: object,
) -> SpotNetwork:
    network = network or make_network(backbone, sigma=(1.0, 1.0), noise=0.1)
    fit(
        network,
        sections,
        replace(TRAINING, **options),
        n_steps=n_steps,
        augment=augment,
        fabric=fabric,
        seed=0,
        validate=lambda net: {"score": net.head.linear.weight.sum().item()},
        progress=False,
        checkpoint=None if folder is None else Checkpoint(folder, {}),
    )
    return network


@pytest.fixture
def same_draws(monkeypatch):
    """Let streams go on where they are on the CPU; a real device draws other numbers."""

    def continued_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
        own = torch.Generator(device)
        own.set_state(generator.get_state())
        return own

    monkeypatch.setattr(slots, "continued_on", continued_on)


def test_a_stream_on_a_device_is_one_of_its_own():
    """Otherwise a device that draws like a CPU would give the augmentation and the network the same numbers."""
    generator = torch.Generator().manual_seed(5)
    assert slots.continued_on(torch.device("cpu"), generator) is generator
    with pretended_device() as device:
        own = slots.continued_on(device, generator)
        assert own.device == device
        assert own.initial_seed() not in {5, 5 + 2**32}
        again = slots.continued_on(device, torch.Generator().manual_seed(5))
        draws = [torch.rand(3, generator=each, device=device).cpu() for each in (own, again)]
    assert torch.equal(*draws)


CASES = {
    "windowed": {},
    "hist": {"backbone": HIST, "augment": HistAugmentation(), "early_exit": False},
    "tiles": {"backbone": WITHOUT_GLOBAL, "sections": TILES, "augment": Augmentation()},
    "several sections in a batch": {"batch_sections": 2, "slots": 1},
}


@pytest.mark.parametrize("case", CASES)
def test_training_gives_the_weights_of_the_cpu(case, same_draws):
    expected = train(fabric_on(), **CASES[case]).state_dict()
    with pretended_device() as device:
        require_same(train(fabric_on(device), **CASES[case]), expected)


def test_a_training_resumes_on_the_device(tmp_path, same_draws):
    expected = train(fabric_on()).state_dict()
    with pretended_device() as device:
        # the second one finds the checkpoint of a finished training
        for _ in range(2):
            require_same(train(fabric_on(device), folder=str(tmp_path)), expected)


def require_same(network: SpotNetwork, expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    weights = network.state_dict()
    assert all(isinstance(value, OnDevice) for value in weights.values())
    for name, value in expected.items():
        # keys with a bias have the same weights as without it: its gradient is rounding, which Adam scales up
        if not name.endswith("qkv.bias"):
            torch.testing.assert_close(weights[name].cpu(), value, atol=tolerance, rtol=1e-4, msg=name)


def test_training_in_mixed_precision_is_close_to_that_of_the_cpu(same_draws):
    expected = train(make_fabric("cpu", 1, "bf16-mixed")).state_dict()
    with pretended_device() as device:
        fabric = fabric_on(device)
        fabric._precision.forward_context = Autocast
        found = train(fabric)
        require_same(found, expected, tolerance=5e-3)
        assert all(value.dtype is torch.float32 for value in found.state_dict().values() if value.is_floating_point())


# Waiting for the device


def places_of_training(monkeypatch, **options: object) -> tuple[list[str], set[str]]:
    """Return where optimizer steps wait that open no visit, and where the whole training waits."""
    in_steps, advance, opened = [], Trainer.advance, []
    original = slots.Visits.open
    monkeypatch.setattr(slots.Visits, "open", lambda *arguments: opened.append(1) or original(*arguments))

    def watched(self: Trainer, *arguments: object) -> None:
        before, n_opened = len(waits), len(opened)
        advance(self, *arguments)
        if len(opened) == n_opened:
            in_steps.extend(waits[before:])

    monkeypatch.setattr(Trainer, "advance", watched)
    with pretended_device() as device, recorded_waits() as waits:
        train(fabric_on(device), **options)
        return in_steps, set(waits)


MOVES_OF_A_VISIT = {"Lattice.to", "Windows.to", "collate"}
"""A batch and its index tensors go to the device once."""


def test_an_optimizer_step_of_domains_waits_nowhere(monkeypatch):
    in_steps, places = places_of_training(monkeypatch, early_exit=False)
    assert in_steps == []
    # the loss is read once per epoch, together with the checks
    assert places - MOVES_OF_A_VISIT == {"Losses.require_finite", "Trainer.train_epoch", "BestWeights.judge", "fit"}
    assert all(f"`{place}`" in ARCHITECTURE for place in places)


def test_early_exit_waits_once_per_step(monkeypatch):
    in_steps, _ = places_of_training(monkeypatch, early_exit=True, n_steps=4)
    assert set(in_steps) == {"Slot.is_over"}
    assert "`Slot.is_over`" in ARCHITECTURE


@pytest.mark.parametrize("options", [{}, {"breadth": 2, "noise": 0.1}, {"stop_early": True, "halt_threshold": 1e-6}])
def test_a_step_of_prediction_waits_only_for_its_records(options, monkeypatch):
    without_inference_mode(monkeypatch)
    in_steps, run_step = [], prediction.run_step

    def watched(*arguments: object) -> object:
        before = len(waits)
        found = run_step(*arguments)
        in_steps.extend(waits[before:])
        return found

    monkeypatch.setattr(prediction, "run_step", watched)
    with pretended_device() as device:
        network = make_network().to(device)
        with recorded_waits() as waits:
            run(network, replace(Inference(depth=3, symmetric=False), **options), fabric_on(device), keep_latents=0)
    assert in_steps == []
    places = set(waits) - MOVES_OF_A_VISIT
    assert places == {"Job.add"}
    assert "`Job.add`" in ARCHITECTURE


def test_tiles_of_a_prediction_wait_where_it_is_written(monkeypatch):
    without_inference_mode(monkeypatch)
    with pretended_device() as device:
        network = make_network(WITHOUT_GLOBAL).to(device)
        with recorded_waits() as waits:
            run(network, Inference(depth=1, symmetric=False, tile=3, halo=11), fabric_on(device), keep_latents=0)
    places = set(waits)
    assert places >= {"cut_lattice", "step_in_tiles"}
    assert {place for place in places if f"`{place}`" not in ARCHITECTURE} == set()


def run(network: SpotNetwork, inference: Inference, fabric: Fabric, keep_latents: int = 3) -> list[Answer]:
    return predict(network, SECTIONS, inference, keep_latents=keep_latents, fabric=fabric, progress=False)


def without_inference_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of inference mode skip the checks of the pretended device."""
    monkeypatch.setattr(prediction, "advance", torch.no_grad()(prediction.advance.__wrapped__))


RESTARTS = {"breadth": 2, "noise": 0.1, "slots": 2}
STOPPING = {"stop_early": True, "halt_threshold": 1e-6, "min_steps": 1, "symmetric": True, "slots": 2}


@pytest.mark.parametrize(
    ("backbone", "options", "precision"),
    [
        (WINDOWED, {**RESTARTS, "selection": "converged"}, "32-true"),
        (WINDOWED, {**RESTARTS, "selection": "mean"}, "bf16-mixed"),
        (WINDOWED, {**RESTARTS, "selection": "vote", "breadth": 3, "noise": 0.0}, "32-true"),
        (WINDOWED, STOPPING, "32-true"),
        (HIST, {"symmetric": True}, "32-true"),
        (HIST, {}, "bf16-mixed"),
        (WITHOUT_GLOBAL, {"tile": 3, "halo": 11}, "32-true"),
    ],
)
def test_predictions_are_those_of_the_cpu(backbone, options, precision, monkeypatch):
    without_inference_mode(monkeypatch)
    inference = replace(Inference(depth=2, symmetric=False), **options)
    network, selection = make_network(backbone), inference.selection or "mean"
    expected = run(network, inference, make_fabric("cpu", 1, precision))
    with pretended_device() as device:
        fabric = fabric_on(device)
        fabric._precision.forward_context = Autocast if precision == "bf16-mixed" else nullcontext
        found = run(network, inference, fabric)
    tolerance = 1e-5 if precision == "32-true" else 0.05
    for answer, other in zip(found, expected, strict=True):
        for restart, wanted in zip(answer, other, strict=True):
            for name in ("output_DN", "latent_ND", "halt_probability_D", "residual_D", "latents_DNE"):
                assert error(getattr(restart, name), getattr(wanted, name)) < tolerance, name
        if precision == "32-true" or selection == "mean":  # otherwise, another restart may be chosen
            assert error(answer.combined(selection), other.combined(selection)) < tolerance


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square error, relative to what is wanted; NaN has to be at the same places."""
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted))
    return float(np.linalg.norm(np.nan_to_num(found - wanted)) / max(np.linalg.norm(np.nan_to_num(wanted)), 1e-6))


def test_a_batch_left_on_the_cpu_is_found(monkeypatch):
    original = Batches.__init__
    monkeypatch.setattr(
        Batches, "__init__", lambda self, _device, backbone: original(self, torch.device("cpu"), backbone)
    )
    with pretended_device() as device, pytest.raises(RuntimeError, match="same device"):
        run(make_network(), Inference(depth=1, symmetric=False), fabric_on(device))


# Where there is a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
LARGER = [section("a", 30), section("b", 21)]
BACKBONES = {
    "windowed": WINDOWED,
    "dense": DenseConfig(width=16, n_heads=2),
    "hierarchical": HierarchicalConfig(width=16, n_heads=2, window=4, n_levels=2),
    "hist": HIST,
}
TOLERANCE = {"32-true": 1e-3, "bf16-mixed": 3e-2}


def train_without_draws(fabric: Fabric, backbone: BackboneConfig) -> dict[str, torch.Tensor]:
    """Train without what a GPU draws by itself: starts, noise and held-out spots."""
    network = make_network(backbone, halting=None)
    train(fabric, sections=LARGER, network=network, augment=Augmentation(max_shift=2), early_exit=False)
    return {name: value.cpu() for name, value in network.state_dict().items()}


@pytest.fixture
def ddp_of_one():
    """Make the Fabric of one process that exchanges its gradients, and remove what it leaves behind."""
    before = dict(os.environ)

    def make(accelerator: str) -> Fabric:
        fabric = Fabric(accelerator=accelerator, devices=1, strategy="ddp", precision="32-true")
        fabric.launch()
        return fabric

    yield make
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
def test_one_process_that_exchanges_gradients_trains_like_one_that_does_not(accelerator, ddp_of_one):
    expected = train_without_draws(fabric_on(), WINDOWED)
    found = train_without_draws(ddp_of_one(accelerator), WINDOWED)
    require_close(found, expected, tolerance=1e-6 if accelerator == "cpu" else TOLERANCE["32-true"])


def require_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith("qkv.bias"):  # as above
            torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance, msg=name)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_gpu_gives_the_weights_of_the_cpu(backbone, precision):
    expected = train_without_draws(fabric_on(), BACKBONES[backbone])
    found = train_without_draws(make_fabric("cuda", 1, precision), BACKBONES[backbone])
    require_close(found, expected, TOLERANCE[precision])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_gpu_predicts_what_the_cpu_predicts(backbone, precision):
    network, inference = make_network(BACKBONES[backbone]), Inference(depth=2)
    expected = predict(network, LARGER, inference, fabric=fabric_on(), progress=False)
    found = predict(network, LARGER, inference, fabric=make_fabric("cuda", 1, precision), progress=False)
    for answer, other in zip(found, expected, strict=True):
        assert error(answer.best.output_DN, other.best.output_DN) < TOLERANCE[precision]


@pytest.mark.gpu
@needs_gpu
def test_a_gpu_draws_the_same_again_and_trains_with_all_options():
    first, second = (train(make_fabric("cuda", 1, "32-true"), sections=LARGER).state_dict() for _ in range(2))
    require_close(second, first, TOLERANCE["32-true"])
    network = make_network(sigma=(1.0, 1.0)).to("cuda")
    inference = Inference(depth=2, breadth=2, noise=0.1, stop_early=True, halt_threshold=0.5, slots=2)
    first, second = (run(network, inference, make_fabric("cuda", 1, "32-true"))[0] for _ in range(2))
    assert error(second.combined("mean"), first.combined("mean")) < TOLERANCE["32-true"]
    assert error(first.restarts[1].output_DN, first.restarts[0].output_DN) > 1e-4


@pytest.mark.gpu
@needs_gpu
def test_a_step_on_a_gpu_does_not_wait():
    """PyTorch itself raises where it waits."""
    network, fabric = make_network(sigma=(1.0, 1.0), noise=0.1).cuda(), make_fabric("cuda", 1, "bf16-mixed")
    batch = collate([replace(LARGER[0], target_N=None)], fabric.device, network.recursion.backbone)
    streams = Streams([torch.Generator(fabric.device).manual_seed(0)], noise=0.1)
    with torch.no_grad(), fabric.autocast():
        carry = network.start(batch, streams, random=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            network.step(batch, carry)
        finally:
            torch.cuda.set_sync_debug_mode("default")
