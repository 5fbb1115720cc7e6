"""Attention within windows by the fused kernel, which GPUs use, against the one that is written out for CPUs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from strecur.nn import Backbone, HierarchicalConfig, HistConfig, Lattice, WindowedConfig, attention, devices, windowed
from strecur.nn.attention import Groups, attend_fused
from strecur.nn.lattice import Windows

CONFIGS = {
    "windowed": WindowedConfig(width=32, n_heads=2, window=4, n_global=2),
    "windowed, no global tokens": WindowedConfig(width=32, n_heads=2, window=4, n_global=0),
    "windowed, odd": WindowedConfig(width=32, n_heads=2, window=5, n_global=1, n_layers=3),
    "hierarchical": HierarchicalConfig(width=32, n_heads=2, window=4, n_levels=3, n_global=2),
    "hist": HistConfig(width=32, n_heads=2, dropout=0.0, encoder_depths=(1, 1), decoder_depths=(1,)),
    "hist, finer": HistConfig(
        width=32, n_heads=2, dropout=0.0, encoder_depths=(1, 1), decoder_depths=(1,), cells_per_pitch=1.5
    ),
}


def scattered(seed: int, n_spots: int = 60, extent: int = 14) -> Lattice:
    """Spots on a third of the cells, below and above zero, and one so far away that windows between have no spot."""
    generator = torch.Generator().manual_seed(seed)
    cell = torch.randperm(extent**2, generator=generator)[:n_spots]
    row, col = cell // extent - 5, cell % extent - 3
    row[0] += 1000
    return Lattice(row, col, (n_spots,), "square")


LATTICE = Lattice.concatenate([scattered(0), scattered(1, 31)])


def build(config) -> Backbone:
    torch.manual_seed(0)
    body = config.build()
    for name, parameter in body.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return body


def compute(body: Backbone, dtype: torch.dtype) -> list[Tensor]:
    """Return the output of a backbone, and the gradients of the input and of all parameters."""
    generator = torch.Generator().manual_seed(1)
    n_tokens = body.n_context * LATTICE.n_sections + len(LATTICE.row_N)
    h_TD, wanted_TD = torch.randn(2, n_tokens, body.width, generator=generator)
    h_TD.requires_grad_()
    body.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        found_TD = body(h_TD, LATTICE)
    (found_TD.float() * wanted_TD).sum().backward()
    return [found_TD.detach().float(), h_TD.grad, *(parameter.grad for parameter in body.parameters())]


def error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square error, relative to what is wanted."""
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-6))


def forbidden(*_: object) -> None:
    raise AssertionError("this is not for GPUs")


@pytest.fixture
def as_on_gpu(monkeypatch):
    """Compute like a GPU, on the CPU."""

    def use(chunk: int = devices.CHUNK_ON_GPU) -> None:
        monkeypatch.setattr(devices, "CHUNK_ON_GPU", chunk)
        monkeypatch.setattr(Windows, "map", forbidden)
        for module in (attention, devices, windowed):
            monkeypatch.setattr(module, "is_on_cpu", lambda _: False)

    return use


@pytest.mark.parametrize("name", CONFIGS)
def test_both_kernels_give_the_same_output_and_gradients(name, as_on_gpu):
    body = build(CONFIGS[name])
    expected = compute(body, torch.float32)
    in_bf16 = compute(body, torch.bfloat16)
    as_on_gpu()
    assert max(map(error, compute(body, torch.float32), expected)) < 1e-5
    # rounding to bf16 takes as much from both
    fused, written_out = (list(map(error, found, expected)) for found in (compute(body, torch.bfloat16), in_bf16))
    assert sum(fused) < 1.2 * sum(written_out)
    assert max(fused) < 0.1


@pytest.mark.parametrize("name", ["windowed", "hierarchical"])
def test_the_fused_kernel_sees_the_bias_and_the_other_window(name, as_on_gpu):
    """The comparison above would be empty if neither mattered."""
    as_on_gpu()
    body = build(CONFIGS[name])
    before = compute(body, torch.float32)[0]
    layer = body.layers[1] if name == "windowed" else body.descent[0].attention
    torch.nn.init.zeros_(layer.bias)
    assert (compute(body, torch.float32)[0] - before).abs().max() > 0.01


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_of_windows_change_nothing(name, as_on_gpu):
    body = build(CONFIGS[name])
    h_TD = torch.randn(body.n_context * 2 + len(LATTICE.row_N), 32, generator=torch.Generator().manual_seed(1))
    as_on_gpu()
    with torch.no_grad():
        whole = body(h_TD, LATTICE)
        as_on_gpu(chunk=40)  # a few windows at a time, and less than one of the largest
        torch.testing.assert_close(body(h_TD, LATTICE), whole, atol=1e-6, rtol=1e-5)


def test_what_is_prepared_is_all_that_is_built(as_on_gpu):
    as_on_gpu()
    for config in CONFIGS.values():
        lattice, body = Lattice.concatenate([scattered(0)]), build(config)
        body.prepare(lattice)
        moved = lattice.to("cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Lattice, "_assign_windows", forbidden)
            patch.setattr(Lattice, "_assign_quarters", forbidden)
            h_TD = torch.randn(body.n_context + len(lattice.row_N), 32)
            assert torch.equal(body(h_TD, moved), body(h_TD, lattice))


def test_a_slot_that_is_empty_is_never_seen():
    qkv_T = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    token_WK = torch.tensor([[0, 1], [2, 2], [3, 4]])
    occupied_WK = torch.tensor([[True, True], [True, False], [True, True]])
    bias = torch.zeros(1, 2, 2, 2)
    found = attend_fused(qkv_T, Groups(token_WK, token_WK, occupied_WK), bias, n_heads=2)
    # a spot that is alone attends to itself
    torch.testing.assert_close(found[2], qkv_T[2, 8:])
    changed = attend_fused(qkv_T, Groups(token_WK, token_WK, torch.ones_like(occupied_WK)), bias, n_heads=2)
    torch.testing.assert_close(found, changed)  # the empty slot holds the same spot
    other = attend_fused(qkv_T, Groups(token_WK, torch.tensor([[0, 1], [2, 4], [3, 4]]), occupied_WK), bias, n_heads=2)
    torch.testing.assert_close(found, other)
