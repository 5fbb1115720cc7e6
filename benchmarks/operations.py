"""Where the time of a training step and of a prediction goes: shares of kinds of operations and of stages.

    python benchmarks/operations.py                     # a section of 3,600 spots, one thread
    python benchmarks/operations.py --spots 16000 --threads 2
    python benchmarks/operations.py --whole-call        # tl.trm_domains by stage: features, linear baseline, network

Shares are of the processor time of one run. Seconds depend on what else the machine does, shares hardly.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import pstats
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from scaling import make_network, make_section
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile

import strecur as st
from strecur.engine import collate, make_fabric, predict
from strecur.engine.training import make_optimizer
from strecur.models.fitting import TRAINING_DEFAULTS
from strecur.options import Inference, Training

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.autograd.profiler_util import FunctionEventAvg

KINDS = {
    "matrix products of all spots": ("mm", "addmm"),
    "matrix products within windows": ("bmm", "baddbmm", "baddbmm_"),
    "softmax": ("_softmax", "_softmax_backward_data"),
    "gathering and scattering of windows": ("index_select", "index_copy_", "index_add_", "index", "index_put_", "cat"),
    "copies between precisions and layouts": ("copy_", "clone", "contiguous"),
    "optimizer and clipping": ("_fused_adamw_", "_foreach_norm", "linalg_vector_norm"),
}
"""Operations of ATen by kind; all others are elementwise operations and sums."""
OTHERS = "elementwise operations and sums"
STAGES = {
    "features of the spots": ("spots.py", "inputs"),
    "linear baseline": ("domain.py", "predict_linear"),
    "network": ("domain.py", "predict"),
    "novelty": ("domain.py", "rate_novelty"),
}
"""File and function of each stage of a prediction."""


def training_step(n_spots: int) -> Callable[[], None]:
    """Return a call of one outer step with gradient and update."""
    network, batch = make_network("windowed", None), collate([make_section(n_spots, None)])
    training, fabric = Training(**TRAINING_DEFAULTS), make_fabric("cpu", 1, None)
    optimizer, generator = make_optimizer(network, training), torch.Generator().manual_seed(0)

    def call() -> None:
        carry = network.training_start(batch, 2, generator)
        with fabric.autocast():
            loss, _ = network.training_step(batch, carry, generator)
        loss.backward()
        clip_grad_norm_(network.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad()

    return call


def prediction(n_spots: int) -> Callable[[], None]:
    """Return a call of two outer steps over all views."""
    network, section = make_network("windowed", None), make_section(n_spots, None)
    fabric = make_fabric("cpu", 1, None)

    def call() -> None:
        predict(network, [section], Inference(depth=2), keep_steps=False, fabric=fabric, progress=False)

    return call


def kind_of(event: FunctionEventAvg) -> str:
    """Return the kind of an operation."""
    name = event.key.removeprefix("aten::").removeprefix("Optimizer.step#").split("#")[0]
    return next((kind for kind, names in KINDS.items() if name in names), OTHERS)


def shares(call: Callable[[], None]) -> pd.Series:
    """Run a call, and return the share of its processor time by kind of operation, and all its seconds."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as run:
        call()
    events = pd.DataFrame([{"kind": kind_of(e), "us": e.self_cpu_time_total} for e in run.key_averages()])
    total = events["us"].sum()
    found = (events.groupby("kind")["us"].sum() / total).reindex([*KINDS, OTHERS], fill_value=0.0)
    return pd.concat([found, pd.Series({"seconds": total / 1e6})])


def stages(n_spots: int) -> pd.Series:
    """Return the share of a whole call of ``tl.trm_domains`` by stage, and its seconds."""
    side = max(int(n_spots**0.5), 20)
    adata = st.datasets.synthetic_sections(n_sections=1, n_rows=side, n_cols=2 * side)
    st.pp.to_grid(adata)
    model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    st.tl.trm_domains(adata, model)
    run = cProfile.Profile()
    run.runcall(st.tl.trm_domains, adata, model)
    seconds = {(Path(file).name, name): spent for (file, _, name), (*_, spent, _) in pstats.Stats(run).stats.items()}
    total = seconds["_domains.py", "trm_domains"]
    found = {stage: seconds[key] / total for stage, key in STAGES.items()}
    return pd.Series(found | {"all others": 1 - sum(found.values()), "seconds": total})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=3600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole-call", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("strecur").setLevel("ERROR")
    if options.whole_call:
        print(stages(options.spots).round(2).to_string())
        return
    calls = {"training step": training_step, "prediction": prediction}
    print(pd.DataFrame({name: shares(make(options.spots)) for name, make in calls.items()}).round(2).to_string())


if __name__ == "__main__":
    with st.settings.override(progress=False):
        main()
