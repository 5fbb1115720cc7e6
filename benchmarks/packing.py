"""Packed spots compared with the masked dense canvas: equal output, and the speed-up. Prints ratios within one run.

    python benchmarks/packing.py

The canvas is that of the spatial TRM for Visium: 78 rows and 128 columns of cells as tokens, of which every second is a
site of the array. Here 3,600 of the sites are spots; the other cells are masked as keys.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from strecur.nn import DenseBackbone, DenseConfig, Lattice, WindowedBackbone, WindowedConfig
from strecur.nn.layers import rms_norm

if TYPE_CHECKING:
    from collections.abc import Callable

N_ROWS, N_COLS, N_SPOTS = 78, 128, 3600


def visium_section() -> Lattice:
    """Draw 3,600 of the sites of a Visium array."""
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(N_ROWS), torch.arange(N_COLS), indexing="ij"))
    site = torch.nonzero((row + col) % 2 == 0).squeeze(1)
    site = site[torch.randperm(len(site), generator=torch.Generator().manual_seed(0))[:N_SPOTS]].sort().values
    return Lattice(row[site], col[site], (N_SPOTS,), "hex")


def canvas_forward(body: DenseBackbone, canvas: Tensor, valid: Tensor) -> Tensor:
    """Run the layers of the dense backbone over all cells of the canvas, as one sequence with a key mask."""
    for layer in body.layers:
        q, k, v = layer.qkv(canvas).unflatten(-1, (3, layer.n_heads, -1)).permute(1, 2, 0, 3).unsqueeze(1)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=valid[None, None, None, :])
        canvas = rms_norm(canvas + layer.out(attended.squeeze(0).transpose(0, 1).flatten(1)))
        canvas = rms_norm(canvas + layer.mlp(canvas))
    return canvas


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """Return the time of the fastest of a few runs, after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def import_seconds() -> tuple[float, bool]:
    """Return the time of ``import strecur`` in a new interpreter, and whether it loads torch."""
    code = (
        "import sys, time; start = time.perf_counter(); import strecur;"
        "print(time.perf_counter() - start, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    return float(found[0]), found[1] == "True"


@torch.inference_mode()
def main() -> None:
    torch.manual_seed(0)
    section = visium_section()
    dense, windowed = DenseBackbone(DenseConfig()), WindowedBackbone(WindowedConfig())
    spots, context = torch.randn(N_SPOTS, 192), torch.randn(4, 192)
    site = 1 + section.row_N * N_COLS + section.col_N
    canvas = torch.zeros(1 + N_ROWS * N_COLS, 192)
    canvas[0], canvas[site] = context[0], spots
    valid = torch.zeros(len(canvas), dtype=torch.bool)
    valid[0] = valid[site] = True

    packed = torch.cat([context[:1], spots])
    difference = (canvas_forward(dense, canvas, valid)[site] - dense(packed, section)[1:]).abs().max()
    on_canvas = seconds(lambda: canvas_forward(dense, canvas, valid))
    print(f"largest difference, packed against canvas: {difference:.1e}")
    for name, body, tokens in (("dense, packed", dense, packed), ("windowed", windowed, torch.cat([context, spots]))):
        took = seconds(lambda body=body, tokens=tokens: body(tokens, section))
        print(f"{name:14} {took:.3f} s, {on_canvas / took:.1f} times faster than the canvas ({on_canvas:.3f} s)")
    took, torch_loaded = import_seconds()
    print(f"import strecur: {took:.2f} s, torch loaded: {torch_loaded}")


if __name__ == "__main__":
    main()
