"""Training and prediction on a device that is not there; see tests/nn/test_pretended_device.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from pretend_device import OnDevice, pretended_device

from strecur.engine import Answer, Augmentation, Checkpoint, Section, fit, make_fabric, predict, prediction
from strecur.engine.prediction import Batches
from strecur.nn import DomainHead, Lattice, SpotNetwork, TRMConfig, WindowedConfig
from strecur.options import Inference, Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric

TRAINING = Training(
    slots=2, max_epochs=2, learning_rate=1e-3, warmup=1, schedule="linear", weight_decay=0.5, ema=0.9, early_exit=True
)


def section(name: str, size: int) -> Section:
    generator = torch.Generator().manual_seed(size)
    row, col = torch.cartesian_prod(torch.arange(size), torch.arange(size)).unbind(1)
    target = torch.where(col == 0, -1, (row >= size // 2).long())
    return Section(name, torch.randn(size**2, 4, generator=generator), Lattice(row, col, (size**2,), "square"), target)


SECTIONS = [section("a", 6), section("b", 5)]


def make_network(n_global: int = 1, **options: object) -> SpotNetwork:
    torch.manual_seed(0)
    body = WindowedConfig(width=16, n_heads=2, window=4, n_global=n_global).build()
    halting = "loss_proxy" if n_global else None
    return SpotNetwork(4, TRMConfig(n_latent=1, **options).build(body), DomainHead(16, 2), halting=halting)


def fabric_on(device: torch.device | None = None) -> Fabric:
    fabric = make_fabric("cpu", 1, "32-true")
    if device is not None:
        fabric.strategy._root_device = device
        fabric._accelerator.setup_device = lambda _device: None
    return fabric


def train(fabric: Fabric, folder: str | None = None) -> SpotNetwork:
    network = make_network(sigma=(1.0, 1.0), noise=0.1)
    fit(
        network,
        SECTIONS,
        TRAINING,
        n_steps=2,
        augment=Augmentation(max_shift=2, max_spots=20),
        fabric=fabric,
        seed=0,
        validate=lambda net: {"score": net.head.linear.weight.sum().item()},
        progress=False,
        checkpoint=None if folder is None else Checkpoint(folder, {}),
    )
    return network


def test_training_gives_the_weights_of_the_cpu_and_resumes(tmp_path):
    expected = train(fabric_on()).state_dict()
    with pretended_device() as device:
        # the second one finds the checkpoint of a finished training
        for network in (train(fabric_on(device), str(tmp_path)), train(fabric_on(device), str(tmp_path))):
            weights = network.state_dict()
            assert all(isinstance(value, OnDevice) for value in weights.values())
            for name, value in expected.items():
                torch.testing.assert_close(weights[name].cpu(), value, msg=name)


def run(network: SpotNetwork, inference: Inference, fabric: Fabric, keep_latents: int = 3) -> list[Answer]:
    return predict(network, SECTIONS, inference, keep_latents=keep_latents, fabric=fabric, progress=False)


@pytest.mark.parametrize(
    ("n_global", "options"),
    [
        (1, {"breadth": 2, "noise": 0.1, "slots": 2}),
        (1, {"stop_early": True, "halt_threshold": 1e-6, "min_steps": 1, "symmetric": True, "slots": 2}),
    ],
)
def test_predictions_are_those_of_the_cpu(n_global, options, monkeypatch):
    # tensors of inference mode skip the checks of the pretended device
    monkeypatch.setattr(prediction, "advance", torch.no_grad()(prediction.advance.__wrapped__))
    inference = replace(Inference(depth=2, symmetric=False), **options)
    network = make_network(n_global)
    expected = run(network, inference, fabric_on())
    with pretended_device() as device:
        found = run(network, inference, fabric_on(device))
    for answer, other in zip(found, expected, strict=True):
        for name in ("output_DN", "latent_ND", "halt_probability_D", "residual_D", "latents_DNE"):
            a, b = (torch.from_numpy(getattr(each.best, name)) for each in (answer, other))
            torch.testing.assert_close(a, b, equal_nan=True, msg=name)


def test_a_batch_left_on_the_cpu_is_found(monkeypatch):
    original = Batches.__init__
    monkeypatch.setattr(Batches, "__init__", lambda self, _device: original(self, torch.device("cpu")))
    with pretended_device() as device, pytest.raises(RuntimeError, match="same device"):
        run(make_network(), Inference(depth=1, symmetric=False), fabric_on(device))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-3), ("bf16-mixed", 3e-2)])
def test_a_gpu_gives_the_weights_of_the_cpu(precision, tolerance):
    expected = train(fabric_on()).state_dict()
    for name, value in train(make_fabric("cuda", 1, precision)).state_dict().items():
        torch.testing.assert_close(value.cpu(), expected[name], atol=tolerance, rtol=tolerance, msg=name)
