"""Training steps and predictions on a GPU, beside the CPU of the same machine.

    python benchmarks/gpu.py --out benchmarks/results     # 1,000 to 500,000 spots; table gpu.csv
    python benchmarks/gpu.py --spots 1000 4000            # small sections only
    python benchmarks/gpu.py --no-cpu                     # the GPU alone

``windowed`` and ``hierarchical`` are the defaults of the package, ``paper`` is the dense network of the spatial TRM
with its six latent updates, three blocks and eight outer steps. A training step is one outer step with gradient and
update, a prediction all outer steps of one view of a section, from the section in the memory of the host to the answer
there. Precision is that of the package: bf16 where the hardware has it. ``share`` is the part of the speed of a large
matrix product in that precision that a network reaches, with the operations that ``strecur.engine.cost`` counts.
Without a GPU, the columns of the CPU remain.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from scaling import N_DOMAINS, N_FEATURES, make_section, training_call

from strecur.engine import make_fabric, predict
from strecur.engine.cost import Workload, available_memory, matrix_rate, memory, operations
from strecur.engine.devices import fast_bf16
from strecur.models.network import build_network, resolve_backbone
from strecur.nn import DomainHead, TRMConfig
from strecur.options import Inference

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

    from strecur.engine import Section
    from strecur.nn import BackboneConfig

SPOTS = (1_000, 4_000, 16_000, 64_000, 250_000, 500_000)
METHODS = {
    "windowed": (TRMConfig(), "windowed"),
    "hierarchical": (TRMConfig(), "hierarchical"),
    "paper": (TRMConfig(n_latent=6, n_deep=3, n_steps=8), "dense"),
}
PHASES = ("training step", "prediction")
MATRIX = {"cpu": 2_048, "cuda": 8_192}
"""Size of the matrix product that measures the peak."""
ENOUGH_SECONDS, REPEATS = 10, 6


def describe_machine() -> list[str]:
    """Describe card, driver, processor and versions."""
    import lightning_fabric

    lines = [f"CPU: {processor()}, {torch.get_num_threads()} threads"]
    lines.append(
        f"Python {platform.python_version()}, PyTorch {torch.__version__}, Lightning {lightning_fabric.__version__}"
    )
    if not torch.cuda.is_available():
        return [*lines, "PyTorch finds no GPU: these are the columns of the CPU alone."]
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0] or "unknown"
    card = torch.cuda.get_device_properties(0)
    lines.append(f"GPU: {card.name}, {card.total_memory / 1e9:.0f} GB, driver {driver}, CUDA {torch.version.cuda}")
    return lines


def processor() -> str:
    """Return the name of the processor."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def workload(method: str, phase: str, device: torch.device) -> Workload:
    """Describe a case to the cost model."""
    recursion, backbone = METHODS[method]
    config: BackboneConfig = resolve_backbone(backbone, "hex")
    return Workload(
        recursion,
        config,
        N_FEATURES,
        N_DOMAINS,
        "hex",
        training=phase == "training step",
        mixed=fast_bf16(device),
        on_cpu=device.type == "cpu",
    )


def make_call(load: Workload, section: Section, fabric: Fabric) -> Callable[[], None]:
    """Return the training step or the prediction that is measured."""
    network = build_network(
        N_FEATURES, load.recursion, load.backbone, DomainHead, N_DOMAINS, halting="loss_proxy", seed=0
    ).to(fabric.device)
    network.recursion.recompute = load.recompute
    if not load.training:
        inference = Inference(depth=load.recursion.n_steps, symmetric=False)
        return lambda: predict(network, [section], inference, keep_steps=False, fabric=fabric, progress=False)
    return training_call(network, section, fabric, load.recursion.n_steps)


def seconds_of(call: Callable[[], None], device: torch.device) -> float:
    """Time the fastest of several calls, after one that loads what is loaded at the first use."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    times: list[float] = []
    while len(times) <= REPEATS and sum(times) < ENOUGH_SECONDS:
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return min(times[1:] or times)


def measure(method: str, phase: str, n_spots: int, fabric: Fabric, peak: float) -> dict[str, object] | None:
    """Measure one case; ``None`` if it does not fit into memory."""
    device, load = fabric.device, workload(method, phase, fabric.device)
    free = 0.9 * available_memory(device)
    if load.training and memory(load, n_spots) > free:
        load = replace(load, recompute=True)  # as the package does
    if memory(load, n_spots) > free or n_spots > (load.backbone.max_spots or n_spots):
        return None
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = seconds_of(make_call(load, make_section(n_spots, None), fabric), device)
    work = operations(load, n_spots) * (1 if load.training else load.recursion.n_steps)
    return {
        "method": method,
        "phase": phase,
        "n_spots": n_spots,
        "device": device.type,
        "precision": "bf16" if load.mixed else "float32",
        "recompute": load.recompute,
        "seconds": seconds,
        "tflops": work / seconds / 1e12,
        "share": work / seconds / peak,
        "expected_gb": memory(load, n_spots) / 1e9,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan"),
    }


def sweep(accelerator: str, spots: list[int], max_seconds: float) -> list[dict[str, object]]:
    """Measure all cases of a device by increasing size; a method stops where it does not fit or takes too long."""
    fabric = make_fabric(accelerator, 1, None)
    device = fabric.device
    peak = max(matrix_rate(device, mixed=fast_bf16(device), size=MATRIX[device.type]) for _ in range(3))
    print(f"{device.type}: peak of a matrix product {peak / 1e12:.2f} TFLOP/s", flush=True)
    rows: list[dict[str, object]] = []
    for method in METHODS:
        for phase in PHASES:
            for n_spots in sorted(spots):
                row = measure(method, phase, n_spots, fabric, peak)
                if row is None:
                    print(f"{device.type}, {method}, {phase}: {n_spots:,} spots do not fit")
                    break
                rows.append(row)
                print(
                    f"{device.type}, {method}, {phase}, {n_spots:,} spots: {row['seconds']:.3g} s, "
                    f"{row['tflops']:.3g} TFLOP/s, {row['share']:.0%} of the peak",
                    flush=True,
                )
                if float(str(row["seconds"])) > max_seconds:
                    break
    return rows


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Put the devices beside each other, with how many times faster the GPU is."""
    wide = table.pivot_table(
        index=["method", "phase", "n_spots"], columns="device", values=["seconds", "share"], sort=False
    )
    wide.columns = [f"{value} ({device})" for value, device in wide.columns]
    if {"seconds (cpu)", "seconds (cuda)"} <= set(wide.columns):
        wide["times faster"] = wide["seconds (cpu)"] / wide["seconds (cuda)"]
    return wide.reset_index()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=list(SPOTS), help="sizes of the section")
    parser.add_argument("--max-seconds", type=float, default=60.0, help="no larger section after a slower one")
    parser.add_argument("--no-cpu", action="store_true", help="leave out the CPU")
    parser.add_argument("--out", type=Path, help="folder of gpu.csv; by default the table is only printed")
    options = parser.parse_args(arguments)
    print("\n".join(describe_machine()), flush=True)
    devices = ["cuda"] * torch.cuda.is_available() + ["cpu"] * (not options.no_cpu)
    rows = [row for device in devices for row in sweep(device, options.spots, options.max_seconds)]
    if not rows:
        sys.exit("nothing was measured")
    table = pd.DataFrame(rows)
    print(side_by_side(table).to_string(index=False, float_format="{:.3g}".format))
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "gpu.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
