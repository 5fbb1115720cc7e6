"""The experiment on domains of the spatial TRM: a tiny recursive model against networks with as many layer passes.

    python benchmarks/paper_domains.py --data ../shared/data/dlpfc --size-factor-key sum_umi --steps 800
    python benchmarks/paper_domains.py --data ../shared/data/mob --backbones windowed --features neighbours

Every section of the folder is held out in turn. All networks have two layers of width 192 (0.9 million parameters) and
are trained with the optimisation of ``presets.paper_domains``:

- ``trm``: six updates of the latent, three blocks per outer step, eight outer steps in eight slots;
- ``universal``: 21 calls with shared weights, as many layer passes as one outer step;
- ``feedforward``: one call, as many parameters;
- ``feedforward, 42 layers``: one call of as many layers as one outer step passes.

All of them are trained for as many optimizer steps as the recursive model (``equal = "steps"``), and again for as many
seconds (``equal = "time"``). Features are the components of single spots that are not standardised, as in the paper
(``components``), or the default features of the package (``neighbours``). Scores are the adjusted Rand index of the
network alone, without smoothing and after smoothing over seven spots, and of the linear model on the same features.
There is no score for a network that learned nothing by half of its training. Rows that are already in the table are not
computed again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from depth import read_sections

import strecur as st
from strecur.engine.state import TrainingCollapseError
from strecur.nn import DenseConfig, FeedforwardConfig, UniversalConfig, WindowedConfig

if TYPE_CHECKING:
    import anndata as ad

PAPER = st.presets.paper_domains()
CALLS = PAPER.architecture.n_calls
FEATURES: dict[str, dict[str, Any]] = {"components": {"neighbours": (), "standardise": False}, "neighbours": {}}
BACKBONES = {"dense": DenseConfig, "windowed": WindowedConfig}
KEYS = ["data", "features", "backbone", "method", "equal", "steps", "test", "seed"]
MANY = 1_000_000
"""More optimizer steps than any time limit allows."""


def methods(backbone: DenseConfig | WindowedConfig) -> dict[str, st.presets.Preset]:
    """Return the systems to compare, with the optimisation of the paper."""
    shallow = replace(PAPER, backbone=backbone)
    deep = replace(backbone, n_layers=CALLS * backbone.n_layers)
    once = {**PAPER.training, "slots": 1}
    return {
        "trm": shallow,
        "universal": replace(shallow, architecture=UniversalConfig(n_repeats=CALLS), training=once),
        "feedforward": replace(shallow, architecture=FeedforwardConfig(), training=once),
        f"feedforward, {deep.n_layers} layers": replace(
            shallow, architecture=FeedforwardConfig(branch_gain=0.1), backbone=deep, training=once
        ),
    }


def measure(
    adata: ad.AnnData, test: str, seed: int, system: st.presets.Preset, options: dict[str, Any], limits: dict[str, Any]
) -> dict[str, float]:
    """Train a system without one section; return its scores there and the seconds of the training."""
    in_test = (adata.obs["section"] == test).to_numpy()
    held_out, truth = adata[in_test].copy(), adata.obs.loc[in_test, "domain"]
    start = time.perf_counter()
    try:
        model = st.tl.train_domains(
            adata[~in_test].copy(), "domain", architecture=system, training=limits, rng=seed, **options
        )
    except TrainingCollapseError:
        return {"seconds": time.perf_counter() - start, "ari": np.nan}
    row: dict[str, float] = {"seconds": time.perf_counter() - start, "epochs": len(model.history)}
    for name, spots in (("ari", 1), ("ari_smoothed", 7)):
        model.smoothing = spots
        st.tl.trm_domains(held_out, model, inference={"blend": 1.0})
        row[name] = st.metrics.domain_scores(truth, held_out.obs["trm_domains"])["ari"]
        row[f"{name}_linear"] = st.metrics.domain_scores(truth, held_out.obs["trm_domains_linear"])["ari"]
    return row


def compare(adata: ad.AnnData, table: pd.DataFrame, run: dict[str, Any], options: argparse.Namespace) -> pd.DataFrame:
    """Add the rows of one section, seed, backbone and kind of features to the table; the recursive model is first."""
    n_training = adata.obs["section"].nunique() - 1
    seconds = 0.0
    for method, system in methods(BACKBONES[run["backbone"]]()).items():
        for equal in options.equal if method != "trm" else ["steps"]:
            key = {**run, "method": method, "equal": equal, "steps": options.steps}
            row = find(table, key)
            if row is None:
                visits = (options.steps if equal == "steps" else MANY) / system.architecture.n_steps
                limits = {"max_epochs": max(round(visits / n_training), 1), "validation": None}
                limits |= {"max_minutes": seconds / 60} if equal == "time" else {}
                features = {**FEATURES[run["features"]], "size_factor_key": options.size_factor_key}
                row = key | measure(adata, run["test"], run["seed"], system, {"features": features}, limits)
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                table.to_csv(options.out, index=False)
                print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
            seconds = row["seconds"] if method == "trm" else seconds
    return table


def find(table: pd.DataFrame, key: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of the table with this key, if any."""
    same = (table[KEYS].astype(str) == pd.Series(key).astype(str)[KEYS]).all(axis=1)
    return table[same].iloc[0].to_dict() if same.any() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--features", nargs="+", default=list(FEATURES), choices=FEATURES)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--equal", nargs="+", default=["steps", "time"], choices=["steps", "time"])
    parser.add_argument("--steps", type=int, default=800, help="optimizer steps of the recursive model")
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/paper_domains.csv"))
    options = parser.parse_args()

    adata, _ = read_sections(options.data)
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=KEYS)
    for test in options.test or list(adata.obs["section"].unique()):
        for seed in options.seeds:
            for backbone in options.backbones:
                for features in options.features:
                    run = {"data": options.data.name, "test": test, "seed": seed}
                    table = compare(adata, table, {**run, "backbone": backbone, "features": features}, options)
    own = table[table["data"] == options.data.name]
    groups = own.groupby(["features", "backbone", "method", "equal", "steps"])
    print(groups[["ari", "ari_smoothed", "ari_linear", "ari_smoothed_linear", "seconds"]].mean().round(3).to_string())


if __name__ == "__main__":
    with st.settings.override(progress=False):
        main()
