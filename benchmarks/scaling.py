"""Time and memory of every backbone by the size of a section, and of the expression head by the number of genes.

    python benchmarks/scaling.py --out benchmarks/results          # table scaling.csv and figure scaling.png
    python benchmarks/scaling.py --max-spots 16000                 # small sections only
    python benchmarks/scaling.py --half-a-million                  # 500,000 cells from coordinates to domains

Every case runs in a process of its own, in which its peak memory is measured. Seconds are processor time; set
OMP_NUM_THREADS=1, so that they equal the time on an idle machine. ``canvas`` is the padded lattice of the spatial TRM:
all cells of the bounding box are tokens, and those without a spot are masked as keys.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import torch
from packing import canvas_forward
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import strecur as st
from strecur.engine import Augmentation, Section, collate, make_fabric, predict
from strecur.engine.cost import Workload, memory
from strecur.engine.devices import fast_bf16
from strecur.engine.training import make_optimizer
from strecur.models.fitting import TRAINING_DEFAULTS
from strecur.models.network import build_network, resolve_architecture, resolve_backbone
from strecur.nn import DenseBackbone, DomainHead, ExpressionHead, Lattice, SpotNetwork
from strecur.options import Inference, Training

mpl.use("Agg")

from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

SPOTS = (1_000, 4_000, 16_000, 64_000, 250_000, 500_000)
GENES = (100, 300, 1_000, 3_000, 10_000, 20_000)
BACKBONES = ("canvas", "dense", "windowed", "hierarchical")
QUADRATIC = ("canvas", "dense")
PHASES = ("inference", "training step")
SPARING = "training step, calls repeated"  # gradient checkpointing, which the package uses where memory is short
N_FEATURES, N_DOMAINS, GENE_SPOTS = 50, 7, 4_000
N_TRAINING_CELLS = 2_500  # as wide as seven bands, so that it has every domain
CROP = 1_000


def peak_gb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def gemm_rate(dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    times = []
    for _ in range(5):
        start = time.process_time()
        a @ b
        times.append(time.process_time() - start)
    return 2 * 2048**3 / min(times)


def make_network(backbone: str, n_genes: int | None) -> SpotNetwork:
    """Build the default network of the package; for ``canvas`` the dense one, on the canvas."""
    head, n_outputs = (DomainHead, N_DOMAINS) if n_genes is None else (ExpressionHead, n_genes)
    name = "dense" if backbone == "canvas" else backbone
    config = resolve_backbone(name, "hex")
    network = build_network(N_FEATURES, resolve_architecture("trm"), config, head, n_outputs, halting=None, seed=0)
    if backbone == "canvas":
        network.recursion.backbone.forward = on_canvas(network.recursion.backbone)
    return network


def on_canvas(body: DenseBackbone) -> Callable[[torch.Tensor, Lattice], torch.Tensor]:
    """Return a forward pass of the dense backbone over all cells of the canvas of one section."""

    def forward(h_TD: torch.Tensor, lattice: Lattice) -> torch.Tensor:
        n_cols = int(lattice.col_N.max()) + 1
        cell = 1 + lattice.row_N * n_cols + lattice.col_N
        canvas = h_TD.new_zeros(1 + (int(lattice.row_N.max()) + 1) * n_cols, h_TD.shape[1])
        token = torch.cat([torch.zeros_like(cell[:1]), cell])
        canvas = canvas.index_copy(0, token, h_TD)
        valid = torch.zeros(len(canvas), dtype=torch.bool).index_fill(0, token, value=True)
        return canvas_forward(body, canvas, valid)[token]

    return forward


def make_section(n_spots: int, n_genes: int | None) -> Section:
    """Make a section on a full hexagonal lattice with about as many rows as columns."""
    generator = torch.Generator().manual_seed(0)
    site = torch.arange(n_spots)
    n_cols = math.isqrt(n_spots)
    row, col = site // n_cols, site % n_cols
    lattice = Lattice(row, 2 * col + row % 2, (n_spots,), "hex")
    target = torch.randint(N_DOMAINS, (n_spots,), generator=generator)
    if n_genes is not None:
        target = torch.randn(n_spots, n_genes, generator=generator)
    return Section("section", torch.randn(n_spots, N_FEATURES, generator=generator), lattice, target)


def training_call(network: SpotNetwork, section: Section, fabric: Fabric, n_steps: int = 2) -> Callable[[], None]:
    """Return a call of one training step: an outer step with gradient and update."""
    training = Training(**TRAINING_DEFAULTS)
    batch = collate([section], fabric.device, network.recursion.backbone)
    generator = torch.Generator(fabric.device).manual_seed(0)
    optimizer = make_optimizer(network, training)

    def call() -> None:
        carry = network.training_start(batch, n_steps, generator)
        with fabric.autocast():
            loss, _ = network.training_step(batch, carry, generator)
        loss.backward()
        clip_grad_norm_(network.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad()

    return call


def run_case(backbone: str, n_spots: int, n_genes: int | None, phase: str) -> dict[str, float]:
    """Time one training step (an outer step with gradient and update), or one prediction of all outer steps."""
    torch.manual_seed(0)
    fabric = make_fabric("cpu", 1, None)
    dtype = torch.bfloat16 if "bf16" in str(fabric._precision.precision) else torch.float32
    rate, before = gemm_rate(dtype), peak_gb()
    network, section = make_network(backbone, n_genes), make_section(n_spots, n_genes)
    network.recursion.recompute = phase == SPARING
    if phase != "inference":
        call = training_call(network, section, fabric)
    else:
        inference = Inference(depth=2, symmetric=False)

        def call() -> None:
            predict(network, [section], inference, keep_steps=False, fabric=fabric, progress=False)

    times = []
    while len(times) < 6 and sum(times) < 10:  # of a long call one is enough
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    peak = peak_gb() - before  # beyond interpreter and libraries
    with FlopCounterMode(display=False) as counter:  # which keeps memory allocated
        call()
    return {
        "seconds": min(times),
        "peak_gb": peak,
        "share_of_gemm": counter.get_total_flops() / min(times) / rate,
        "gemm_gflops": rate / 1e9,
        "precision": str(dtype).removeprefix("torch."),
    }


def expected_gb(backbone: str, n_spots: int, n_genes: int | None, phase: str) -> float:
    """Return the estimate of the package before a run."""
    config = resolve_backbone("dense" if backbone == "canvas" else backbone, "hex")
    load = Workload(
        resolve_architecture("trm"),
        config,
        N_FEATURES,
        n_genes or N_DOMAINS,
        "hex",
        training=phase != "inference",
        mixed=fast_bf16(torch.device("cpu")),
        recompute=phase == SPARING,
    )
    return memory(load, 2 * n_spots if backbone == "canvas" else n_spots) / 1e9


def in_own_process(arguments: list[str]) -> str:
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else ""


def sweep(max_spots: int, max_gb: float, max_seconds: float, path: Path) -> pd.DataFrame:
    """Run every case within the limits, by increasing size; a method stops at the first that exceeds them."""
    rows = []
    plan = [(b, p, [(n, None) for n in SPOTS if n <= max_spots]) for b in BACKBONES for p in PHASES]
    plan += [(b, SPARING, [(n, None) for n in SPOTS if n <= max_spots]) for b in BACKBONES if b not in QUADRATIC]
    plan += [("windowed", p, [(min(GENE_SPOTS, max_spots), g) for g in GENES]) for p in PHASES]
    for backbone, phase, cases in plan:
        last = None
        for n_spots, n_genes in cases:
            gb = expected_gb(backbone, n_spots, n_genes, phase)
            growth = 1 if last is None else (n_spots / last[0]) ** (2 if backbone in QUADRATIC else 1)
            if gb > max_gb or (last is not None and growth * last[1] > max_seconds):
                print(f"{backbone}, {phase}: stops before {n_spots:,} spots, {n_genes} genes ({gb:.1f} GB expected)")
                break
            case = {"backbone": backbone, "n_spots": n_spots, "n_genes": n_genes, "phase": phase}
            found = in_own_process(["--case", json.dumps(case)])
            if not found:
                break
            rows.append({**case, **json.loads(found), "expected_gb": gb})
            print(rows[-1], flush=True)
            last = (n_spots, rows[-1]["seconds"])
            pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g")
    return pd.DataFrame(rows)


def slope(x: pd.Series, y: pd.Series) -> float:
    """Fit a power law to all sizes from 4,000 on, where overheads are negligible, and return its exponent."""
    large = x >= min(4_000, x.max() / 2)
    return float(np.polyfit(np.log(x[large]), np.log(y[large]), 1)[0]) if large.sum() > 1 else np.nan


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot seconds and memory against spots, and against genes."""
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.8), layout="constrained")
    by_spots = table[table["n_genes"].isna()]
    panels = [("inference", "seconds"), ("training step", "seconds"), ("inference", "peak_gb")]
    for ax, (phase, column) in zip(axes, panels, strict=False):
        for i, backbone in enumerate(BACKBONES):
            part = by_spots[(by_spots["backbone"] == backbone) & (by_spots["phase"] == phase)]
            if len(part):
                power = slope(part["n_spots"], part[column])
                label = backbone if np.isnan(power) else f"{backbone}, slope {power:.2f}"
                ax.loglog(part["n_spots"], part[column], marker="o", color=f"C{i}", label=label)
        ax.set(xlabel="spots of the section", title=phase if column == "seconds" else f"{phase}, memory")
        ax.set_ylabel("seconds (one thread)" if column == "seconds" else "GB beyond the libraries")
        ax.legend(fontsize=8)
    by_genes = table[table["n_genes"].notna()]
    for i, phase in enumerate(PHASES):
        part = by_genes[by_genes["phase"] == phase]
        axes[3].loglog(part["n_genes"], part["seconds"], marker="o", color=f"C{i}", label=f"{phase}, seconds")
        axes[3].loglog(part["n_genes"], part["peak_gb"], marker="s", ls=":", color=f"C{i}", label=f"{phase}, GB")
    n_spots = f"{int(by_genes['n_spots'].max()):,}" if len(by_genes) else "no"
    axes[3].set(xlabel="genes", title=f"expression, windowed, {n_spots} spots", ylabel="seconds or GB")
    axes[3].legend(fontsize=8)
    for ax in axes:
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def half_a_million(backbone: str, n_cells: int, *, all_views: bool) -> None:
    """Predict domains of one large section from coordinates on; print time and peak memory after every step."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    st.settings.progress = False
    rng = np.random.default_rng(0)
    start = time.process_time()

    def report(step: str) -> None:
        seconds = time.process_time() - start
        print(f"{backbone}: {step} after {seconds:.0f} s of one thread, peak {peak_gb():.2f} GB", flush=True)

    def cells(n: int) -> ad.AnnData:
        """Place cells at random with a minimal distance; their features contain bands of domains."""
        side = math.isqrt(n)
        site = np.stack(np.divmod(np.arange(side**2), side), axis=1)
        position = (site + rng.uniform(-0.35, 0.35, site.shape)) * 10.0
        domain = (position[:, 0] // 70).astype(int) % N_DOMAINS
        features = rng.normal(size=(len(site), N_FEATURES)).astype(np.float32)
        features[:, :N_DOMAINS] += 2 * np.eye(N_DOMAINS, dtype=np.float32)[domain]
        obs = pd.DataFrame({"domain": [f"domain {d}" for d in domain]}, index=np.arange(len(site)).astype(str))
        return ad.AnnData(obs=obs, obsm={"spatial": position, "X_pca": features})

    small, large = cells(N_TRAINING_CELLS), cells(n_cells)
    report(f"{large.n_obs:,} cells made")
    for adata in (small, large):
        st.pp.to_grid(adata)
    report("pp.to_grid")
    crops = Augmentation(noise=0, drop=0, hide=0, max_spots=CROP)
    training = {"augmentation": crops, "max_epochs": 40}
    model = st.tl.train_domains(small, "domain", use_rep="X_pca", backbone=backbone, training=training)
    report(f"tl.train_domains on {small.n_obs:,} cells")
    st.tl.trm_domains(large, model, inference={"symmetric": False})
    report("tl.trm_domains, one view")
    for key, name in (("trm_domains", "network"), ("trm_domains_linear", "linear model")):
        agrees = (large.obs[key].astype(str) == large.obs["domain"]).mean()
        print(f"{backbone}: {agrees:.1%} of the cells get the domain they were made of by the {name}")
    if all_views:
        st.tl.trm_domains(large, model)
        report("tl.trm_domains, all views")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="folder of the table and the figure"
    )
    parser.add_argument("--max-spots", type=int, default=SPOTS[-1], help="largest section")
    parser.add_argument("--max-gb", type=float, default=8.0, help="leave out cases that need more")
    parser.add_argument("--max-seconds", type=float, default=300.0, help="leave out cases that take longer")
    parser.add_argument("--half-a-million", action="store_true", help="label one section of --max-spots cells")
    parser.add_argument("--backbones", nargs="+", default=["windowed", "hierarchical"], help="of --half-a-million")
    parser.add_argument(
        "--all-views", action="store_true", help="also run --half-a-million with all views of the lattice"
    )
    parser.add_argument("--draw", action="store_true", help="draw the existing table only")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_case(**json.loads(options.case))))
        return
    if options.half_a_million and len(options.backbones) == 1:
        half_a_million(options.backbones[0], options.max_spots, all_views=options.all_views)
        return
    if options.half_a_million:
        for backbone in options.backbones:
            arguments = ["--half-a-million", "--max-spots", str(options.max_spots), "--backbones", backbone]
            arguments += ["--all-views"] if options.all_views else []
            subprocess.run([sys.executable, __file__, *arguments], check=True)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "scaling.csv"
    limits = (options.max_spots, options.max_gb, options.max_seconds)
    table = pd.read_csv(path) if options.draw else sweep(*limits, path)
    draw(table, options.out / "scaling.png")


if __name__ == "__main__":
    main()
