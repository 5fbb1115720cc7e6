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
CPU seconds (``equal = "time"``), by the seconds that the first training took for each step. Features are the components
of single spots that are not standardised, as in the paper (``components``), or the default features of the package
(``neighbours``). Scores are the adjusted Rand index of the network alone, without smoothing and after smoothing over
seven spots, and of the linear model on the same features. There is no score for a network that learned nothing by half
of its training. Rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
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
    import torch

    from strecur.engine import Augmentation, Section

PAPER = st.presets.paper_domains()
CALLS = PAPER.architecture.n_calls
FEATURES: dict[str, dict[str, Any]] = {"components": {"neighbours": (), "standardise": False}, "neighbours": {}}
BACKBONES = {"dense": DenseConfig, "windowed": WindowedConfig}
KEYS = ["data", "features", "backbone", "method", "equal", "steps", "test", "seed"]


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


@dataclass
class Timed:
    """An augmentation that remembers when a section was visited first, in CPU seconds of this process."""

    augmentation: Augmentation
    first: float | None = None

    def __call__(self, section: Section, generator: torch.Generator) -> Section:
        self.first = time.process_time() if self.first is None else self.first
        return self.augmentation(section, generator)


def measure(
    adata: ad.AnnData, run: dict[str, Any], system: st.presets.Preset, steps: int, size_factor_key: str | None
) -> dict[str, float]:
    """Train a system without one section; return its scores there, and the steps and seconds of the training."""
    in_test = (adata.obs["section"] == run["test"]).to_numpy()
    train, held_out, truth = adata[~in_test].copy(), adata[in_test].copy(), adata.obs.loc[in_test, "domain"]
    per_epoch = train.obs["section"].nunique() * system.architecture.n_steps
    augmentation = Timed(system.training["augmentation"])
    limits = {"max_epochs": max(round(steps / per_epoch), 1), "validation": None, "augmentation": augmentation}
    features = {**FEATURES[run["features"]], "size_factor_key": size_factor_key}
    row: dict[str, float] = {"trained": limits["max_epochs"] * per_epoch, "ari": np.nan}
    try:
        model = st.tl.train_domains(
            train, "domain", architecture=system, features=features, training=limits, rng=run["seed"]
        )
    except TrainingCollapseError:
        return row | {"trained": row["trained"] / 2, "seconds": time.process_time() - augmentation.first}
    row["seconds"] = time.process_time() - augmentation.first
    for name, spots in (("ari", 1), ("ari_smoothed", 7)):
        model.smoothing = spots
        st.tl.trm_domains(held_out, model, inference={"blend": 1.0})
        row[name] = st.metrics.domain_scores(truth, held_out.obs["trm_domains"])["ari"]
        row[f"{name}_linear"] = st.metrics.domain_scores(truth, held_out.obs["trm_domains_linear"])["ari"]
    return row


def compare(adata: ad.AnnData, table: pd.DataFrame, run: dict[str, Any], options: argparse.Namespace) -> pd.DataFrame:
    """Add the rows of one section, seed, backbone and kind of features to the table; the recursive model is first."""
    pace: dict[str, float] = {}  # CPU seconds of an optimizer step
    systems = methods(BACKBONES[run["backbone"]]())
    for method in options.methods:
        for equal in ["steps"] if options.steps_only or method == "trm" else ["steps", "time"]:
            key = {**run, "method": method, "equal": equal, "steps": options.steps}
            row = find(table, key)
            if row is None:
                steps = options.steps if equal == "steps" else round(options.steps * pace["trm"] / pace[method])
                row = key | measure(adata, run, systems[method], steps, options.size_factor_key)
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                table.to_csv(options.out, index=False)
                print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
            pace.setdefault(method, row["seconds"] / row["trained"])
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
    parser.add_argument("--methods", nargs="+", default=list(methods(DenseConfig())), help="the first has to be trm")
    parser.add_argument("--steps-only", action="store_true", help="leave out the trainings of equal time")
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
