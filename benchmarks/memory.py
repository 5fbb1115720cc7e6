"""Memory that the package estimates before a run, compared with the memory that the run takes.

    python benchmarks/memory.py                           # every case, single precision
    python benchmarks/memory.py --backbones windowed dense --out benchmarks/results

Every case runs in a process of its own on the CPU: a whole training (two epochs) or a prediction of one section, with
the defaults of the package. ``measured`` is the peak memory of the process beyond interpreter, libraries and the
section itself. The estimate includes the copy of the features that enters the network.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from scaling import N_DOMAINS, N_FEATURES, make_network, make_section

from strecur.engine import Augmentation, fit, make_fabric, predict
from strecur.engine.cost import Workload, memory
from strecur.models.fitting import TRAINING_DEFAULTS
from strecur.models.network import resolve_architecture, resolve_backbone
from strecur.options import Inference, Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from strecur.engine import Section
    from strecur.nn import SpotNetwork

SPOTS = {"windowed": (4_000, 16_000), "dense": (2_000, 4_000), "hierarchical": (4_000, 12_000)}
SPOTS_PREDICTED = {"windowed": (16_000, 64_000), "dense": (4_000, 8_000), "hierarchical": (16_000, 64_000)}
GENES = {"training": (4_000, 2_000), "prediction": (16_000, 2_000)}
TOLERANCE = 0.3


def resident() -> int:
    """Memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


class Watch(threading.Thread):
    """Polls the memory of the process and records its peak; unlike that of the kernel, this one can be reset."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = resident()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, resident())
            time.sleep(0.002)


def run_case(backbone: str, n_spots: int, n_genes: int | None, phase: str) -> dict[str, float]:
    """Train or predict once, and return estimate and peak in bytes."""
    fabric, recursion = make_fabric("cpu", 1, "32-true"), resolve_architecture("trm")
    warm_up(fabric)
    section = make_section(n_spots, n_genes)
    watch = Watch()
    watch.start()
    network = make_network(backbone, n_genes)
    if phase == "training":
        train(network, section, fabric, max_epochs=2, n_steps=recursion.n_steps)
    else:
        inference = Inference(depth=2, symmetric=False)
        predict(network, [section], inference, keep_steps=False, fabric=fabric, progress=False)
    shape = (recursion, resolve_backbone(backbone, "hex"), N_FEATURES, n_genes or N_DOMAINS, "hex")
    return {
        "estimate": memory(Workload(*shape, training=phase == "training", on_cpu=True), n_spots),
        "measured": watch.peak - watch.before,
    }


def train(network: SpotNetwork, section: Section, fabric: Fabric, *, max_epochs: int, n_steps: int) -> None:
    """Train a network on one section, with the defaults of the package."""
    training = Training(max_epochs=max_epochs, **TRAINING_DEFAULTS)
    arguments = {"augment": Augmentation(), "fabric": fabric, "seed": 0, "progress": False}
    fit(network, [section], training, n_steps=n_steps, **arguments)


def warm_up(fabric: Fabric) -> None:
    """Load what is loaded at the first use."""
    train(make_network("dense", None), make_section(50, None), fabric, max_epochs=1, n_steps=1)


def cases(backbones: list[str]) -> list[dict[str, object]]:
    """Return the sizes to run by backbone and phase, and one case with many genes."""
    found = []
    for phase, sizes in (("training", SPOTS), ("prediction", SPOTS_PREDICTED)):
        found += [{"backbone": b, "n_spots": n, "n_genes": None, "phase": phase} for b in backbones for n in sizes[b]]
        if "windowed" in backbones:
            n_spots, n_genes = GENES[phase]
            found.append({"backbone": "windowed", "n_spots": n_spots, "n_genes": n_genes, "phase": phase})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=list(SPOTS), choices=list(SPOTS))
    parser.add_argument("--out", type=Path, help="folder of memory.csv; by default the table is only printed")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(**json.loads(options.case))))
        return
    rows = []
    for case in cases(options.backbones):
        done = subprocess.run(
            [sys.executable, __file__, "--case", json.dumps(case)], stdout=subprocess.PIPE, text=True, check=True
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
        rows.append({**case, **found, "ratio": found["estimate"] / found["measured"]})
        row = rows[-1]
        print(
            f"{row['phase']:10} {row['backbone']:12} {row['n_spots']:6,} spots, {row['n_genes'] or 0:5} genes: "
            f"estimate {row['estimate'] / 1e6:7.0f} MB, measured {row['measured'] / 1e6:7.0f} MB, "
            f"ratio {row['ratio']:.2f}",
            flush=True,
        )
    table = pd.DataFrame(rows)
    off = table[(table["ratio"] - 1).abs() > TOLERANCE]
    print(f"{len(table) - len(off)} of {len(table)} cases within {TOLERANCE:.0%}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out / "memory.csv", index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
