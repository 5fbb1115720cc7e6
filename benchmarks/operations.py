"""Where the time of a training step and of a prediction goes: shares of kinds of operations and of stages.

    python benchmarks/operations.py                     # a section of 3,600 spots, one thread
    python benchmarks/operations.py --spots 16000 --threads 2
    python benchmarks/operations.py --whole-call        # tl.trm_domains by stage, and its seconds by outer steps
    python benchmarks/operations.py --parts 8 --spots 8000  # eight sections beside one with as many spots

Shares are of the processor time of one run. Seconds depend on what else the machine does, shares hardly.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import math
import pstats
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from scaling import make_network, make_section, training_call
from torch.profiler import ProfilerActivity, profile

import strecur as st
from strecur.engine import make_fabric, predict
from strecur.options import Inference

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
DEPTHS, REPEATS = (2, 4, 8), 4


def training_step(n_spots: int) -> Callable[[], None]:
    """Return a call of one outer step with gradient and update."""
    return training_call(make_network("windowed", None), make_section(n_spots, None), make_fabric("cpu", 1, None))


def prediction(n_spots: int, n_sections: int = 1) -> Callable[[], None]:
    """Return a call of two outer steps over all views of one section, or of several with as many spots in all."""
    network, fabric = make_network("windowed", None), make_fabric("cpu", 1, None)
    part = make_section(n_spots // n_sections, None)
    sections = [replace(part, name=f"section {i}") for i in range(n_sections)]

    def call() -> None:
        predict(network, sections, Inference(depth=2), keep_steps=False, fabric=fabric, progress=False)

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


def seconds_of(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several calls."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def stages(n_spots: int) -> pd.Series:
    """Return the share of a whole call of ``tl.trm_domains`` by stage, and its seconds by the number of outer steps."""
    side = max(math.isqrt(n_spots), 20)
    adata = st.datasets.synthetic_sections(n_sections=1, n_rows=side, n_cols=side)
    st.pp.to_grid(adata)
    model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    run = cProfile.Profile()
    st.tl.trm_domains(adata, model)
    run.runcall(st.tl.trm_domains, adata, model)
    spent = {(Path(file).name, name): spent for (file, _, name), (*_, spent, _) in pstats.Stats(run).stats.items()}
    total = spent["_domains.py", "trm_domains"]
    found = {stage: spent[key] / total for stage, key in STAGES.items()}
    found |= {"all others": 1 - sum(found.values()), "spots": adata.n_obs}
    for depth in DEPTHS:
        inference = {"depth": depth}
        found[f"seconds, {depth} outer steps"] = seconds_of(
            lambda i=inference: st.tl.trm_domains(adata, model, inference=i)
        )
    return pd.Series(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, default=3600)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--whole-call", action="store_true")
    parser.add_argument("--parts", type=int, help="time a prediction of this many sections with as many spots in all")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("strecur").setLevel("ERROR")
    if options.whole_call:
        print(stages(options.spots).round(2).to_string())
        return
    if options.parts:
        ratio = seconds_of(prediction(options.spots, options.parts)) / seconds_of(prediction(options.spots))
        print(f"{options.parts} sections take {ratio:.2f} times as long as one of {options.spots:,} spots")
        return
    calls = {"training step": training_step, "prediction": prediction}
    print(pd.DataFrame({name: shares(make(options.spots)) for name, make in calls.items()}).round(2).to_string())


if __name__ == "__main__":
    with st.settings.override(progress=False):
        main()
