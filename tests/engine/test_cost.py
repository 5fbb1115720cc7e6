from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from strecur.engine import Augmentation, Section, fit, make_fabric, predict
from strecur.engine.cost import Workload, available_memory, memory, operations, seconds
from strecur.nn import (
    DenseConfig,
    DomainHead,
    ExpressionHead,
    FeedforwardConfig,
    HierarchicalConfig,
    HistConfig,
    Lattice,
    SpotNetwork,
    TRMConfig,
    UniversalConfig,
    WindowedConfig,
)
from strecur.options import Inference, Training

N_FEATURES = 50
TRM, UNIVERSAL, ONCE = TRMConfig(), UniversalConfig(n_repeats=3), FeedforwardConfig()
CASES = {
    "windowed": (TRM, WindowedConfig(), 7),
    "windowed, once": (ONCE, WindowedConfig(), 7),
    "windowed, wide": (UNIVERSAL, WindowedConfig(width=256, n_layers=3, n_heads=8, window=12), 7),
    "windowed, genes": (TRM, WindowedConfig(), 2000),
    "dense": (TRM, DenseConfig(), 7),
    "hierarchical": (TRM, HierarchicalConfig(), 7),
    "hist": (ONCE, HistConfig(width=256), 7),
}


def section(side: int, n_outputs: int) -> Section:
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"))
    target = torch.arange(side**2) % 7 if n_outputs == 7 else torch.randn(side**2, n_outputs)
    lattice = Lattice(row, 2 * col + row % 2, (side**2,), "hex")
    return Section("a", torch.randn(side**2, N_FEATURES), lattice, target)


def build_network(load: Workload, head: type) -> SpotNetwork:
    torch.manual_seed(0)
    backbone = load.backbone.build()
    return SpotNetwork(N_FEATURES, load.recursion.build(backbone), head(backbone.width, load.n_outputs), halting=None)


@cache
def measured(load: Workload, side: int) -> int:
    """Largest number of bytes that torch holds at once in a short training or a prediction."""
    head = DomainHead if load.n_outputs == 7 else ExpressionHead
    part = section(side, load.n_outputs)
    fabric = make_fabric("cpu", 1, "bf16-mixed" if load.mixed else "32-true")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        network = build_network(load, head)
        network.recursion.recompute = load.recompute
        if load.training:
            # the second step has all moments from its beginning; no further one holds more
            training = Training(
                max_epochs=1, learning_rate=1e-3, warmup=30, schedule="linear", weight_decay=0.5, ema=0.98
            )
            options = {"n_steps": 2, "augment": Augmentation(), "seed": 0, "progress": False}
            fit(network, [part], training, fabric=fabric, **options)
        else:
            inference = Inference(2, symmetric=False)
            predict(network, [part], inference, keep_steps=False, fabric=fabric, progress=False)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    return int(held.cumsum(dim=0).max())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_memory_is_known_within_30_percent(case, training):
    recursion, backbone, n_outputs = CASES[case]
    load = Workload(recursion, backbone, N_FEATURES, n_outputs, "hex", training=training)
    assert memory(load, 24**2) == pytest.approx(measured(load, 24), rel=0.3)


@pytest.mark.parametrize("training", [True, False])
def test_memory_of_larger_sections_and_of_mixed_precision(training):
    narrow = WindowedConfig(width=64, n_heads=2)  # where bf16 is not computed in hardware it is slow
    for mixed, backbone, side in ((False, WindowedConfig(), 40), (True, narrow, 24)):
        load = Workload(TRM, backbone, N_FEATURES, 7, "hex", training=training, mixed=mixed)
        assert memory(load, side**2) == pytest.approx(measured(load, side), rel=0.3)


@pytest.mark.parametrize("backbone", [WindowedConfig(), HierarchicalConfig(), DenseConfig()])
def test_memory_of_training_that_repeats_calls(backbone):
    load = Workload(TRM, backbone, N_FEATURES, 7, "hex", training=True, recompute=True)
    found = measured(load, 24)
    assert memory(load, 24**2) == pytest.approx(found, rel=0.3)
    assert found < 0.6 * measured(replace(load, recompute=False), 24)


def test_on_the_processor_the_system_counts_more():
    for training in (True, False):
        load = Workload(TRM, WindowedConfig(), N_FEATURES, 7, "hex", training=training)
        on_cpu = replace(load, on_cpu=True)
        assert memory(load, 1000) < memory(on_cpu, 1000) < 1.3 * memory(load, 1000) + 50e6


def test_what_costs_more_is_said_to_cost_more():
    load = Workload(TRM, WindowedConfig(), N_FEATURES, 7, "hex", training=True)
    large = 10**6
    assert memory(load, 2 * large) == pytest.approx(2 * memory(load, large), rel=0.01)
    assert operations(load, 2 * large) == pytest.approx(2 * operations(load, large))
    dense = Workload(TRM, DenseConfig(), N_FEATURES, 7, "hex", training=False)
    assert operations(dense, 2 * large) > 3.9 * operations(dense, large)
    deeper = Workload(TRMConfig(n_deep=3), WindowedConfig(), N_FEATURES, 7, "hex", training=True)
    # further blocks without gradient take time and no memory
    assert memory(deeper, large) == memory(load, large)
    assert operations(deeper, large) > 1.5 * operations(load, large)
    predicting = Workload(TRM, WindowedConfig(), N_FEATURES, 7, "hex", training=False)
    assert memory(predicting, large) < memory(load, large) / 8
    assert memory(predicting, large, n_views=4) > 1.3 * memory(predicting, large)


def test_operations_are_those_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for recursion, backbone in (
        (TRM, WindowedConfig()),
        (UNIVERSAL, HierarchicalConfig()),
        (ONCE, HistConfig(width=256)),
    ):
        load = Workload(recursion, backbone, N_FEATURES, 7, "hex", training=False)
        network = build_network(load, DomainHead)
        with FlopCounterMode(display=False) as counter:
            inference = Inference(1, symmetric=False)
            fabric = make_fabric("cpu", 1, "32-true")
            predict(network, [section(48, 7)], inference, fabric=fabric, progress=False)
        assert operations(load, 48**2) == pytest.approx(counter.get_total_flops(), rel=0.3)


def test_the_machine_is_asked():
    cpu = torch.device("cpu")
    assert 1e8 < available_memory(cpu) < 1e14
    load = Workload(TRM, WindowedConfig(), N_FEATURES, 7, "hex", training=False)
    assert 0 < seconds(load, 1e9, cpu) < 100
