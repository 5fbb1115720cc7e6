"""Adaptive computation on puzzles: outer steps until the halt head stops a puzzle, and what that costs in accuracy.

    python benchmarks/adaptive.py --seeds 0 1 2

The network is that of ``benchmarks/puzzles.py``, trained with a halt head. ``solved`` is the recipe of TRM and
Equilibrium Reasoners: the halt logit predicts whether every cell is right. ``loss_proxy`` is that of the package: it
predicts the cross-entropy of held-out cells. In prediction, puzzles take turns in the slots of ``Inference``: one that
stops makes room for the next, so that fewer steps are less time.

Rows of the table: ``fixed`` runs all steps; ``halting`` stops at a threshold of the halt probability; ``settled`` and
``solved`` are oracles for comparison, which stop as soon as the answer no longer changes, and as soon as it is right.
Seconds are processor time of the prediction of all test puzzles. Rows that are in the table are not computed again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from puzzle_networks import PRESETS
from puzzles import is_done, make_puzzles
from torch.nn import functional as F

from strecur.engine import fit, make_fabric, predict
from strecur.nn import SpotNetwork
from strecur.nn.halting import halt_probability
from strecur.nn.network import HALT_WEIGHT
from strecur.options import Inference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric
    from puzzle_networks import Preset
    from torch import Tensor

    from strecur.engine import Answer, Section
    from strecur.nn import Batch, Carry

RECIPES = {"solved": (0.5, 0.8, 0.9, 0.95, 0.99), "loss_proxy": (0.7, 0.85, 0.9, 0.92, 0.93, 0.94)}
"""Thresholds of the halt probability for each recipe; that of ``loss_proxy`` is at most 0.943, at no loss."""

DEPTHS = (8, 16, 32)
SLOTS = 64


class SolvedNetwork(SpotNetwork):
    """A network whose halt logit learns whether every cell is right, from all cells, as in TRM."""

    def training_step(self, batch: Batch, carry: Carry, generator: torch.Generator) -> tuple[Tensor, Carry]:
        assert batch.target_N is not None
        output, halt_SL, carry = self.step(batch, carry)
        assert halt_SL is not None
        right_N = output.argmax(dim=1) == batch.target_N
        solved_S = torch.stack([right.all() for right in batch.lattice.split(right_N)]).float()
        halt_loss = F.binary_cross_entropy_with_logits(halt_SL[:, 0], solved_S)
        loss = self.mean_loss(output, self.head.labelled(batch.target_N), batch) + HALT_WEIGHT * halt_loss
        state = tuple(part.detach() for part in carry.state)
        return loss, replace(carry, state=state, halt_S=halt_probability(halt_SL.detach()))


def make_network(preset: Preset, recipe: str, seed: int) -> SpotNetwork:
    """Create TRM with a halt head, which is the same for both recipes."""
    kind = SolvedNetwork if recipe == "solved" else SpotNetwork
    return preset.make_network("trm", seed, kind=kind, halting="loss_proxy")


def right_by_step(found: Sequence[Answer], sections: Sequence[Section]) -> np.ndarray:
    """Whether every cell is right after each outer step, (depth, puzzles)."""
    columns = [
        (answer.restarts[0].output_DN.argmax(axis=-1) == section.target_N.numpy()).all(axis=1)
        for answer, section in zip(found, sections, strict=True)
    ]
    return np.stack(columns, axis=1)


def settling_steps(found: Sequence[Answer], depth: int) -> np.ndarray:
    """First outer step (from 1) after which no cell changes until ``depth``, for every puzzle."""
    steps = []
    for answer in found:
        label_DN = answer.restarts[0].output_DN[:depth].argmax(axis=-1)
        changed = np.flatnonzero((label_DN != label_DN[-1]).any(axis=1))
        steps.append(1 if len(changed) == 0 else changed[-1] + 2)
    return np.array(steps)


def first_right(right_DP: np.ndarray) -> np.ndarray:
    """First outer step (from 1) after which a puzzle is right, or the last one."""
    return np.where(right_DP.any(axis=0), right_DP.argmax(axis=0) + 1, len(right_DP))


def after(right_DP: np.ndarray, steps_P: np.ndarray) -> dict[str, float]:
    """Return accuracy and mean steps of puzzles that stop after these steps."""
    return {"exact": right_DP[steps_P - 1, np.arange(len(steps_P))].mean(), "steps": steps_P.mean()}


def timed(
    network: SpotNetwork, sections: Sequence[Section], inference: Inference, fabric: Fabric
) -> tuple[list[Answer], float]:
    """Predict, and return the seconds of the processor too."""
    start = time.process_time()
    found = predict(network, sections, inference, fabric=fabric, progress=False)
    return found, time.process_time() - start


def evaluate(
    network: SpotNetwork,
    sections: Sequence[Section],
    fabric: Fabric,
    *,
    thresholds: Sequence[float],
    depths: Sequence[int] = DEPTHS,
) -> list[dict]:
    """Score all steps, halting at each threshold, and the two oracles."""
    rows = []
    for depth in depths:
        plain = Inference(depth=depth, symmetric=False, slots=SLOTS)
        found, seconds = timed(network, sections, plain, fabric)
        right_DP = right_by_step(found, sections)
        everything = np.full(len(sections), depth)
        rows.append({"depth": depth, "stop": "fixed"} | after(right_DP, everything) | {"seconds": seconds})
        for stop, steps_P in (("settled", settling_steps(found, depth)), ("solved", first_right(right_DP))):
            rows.append({"depth": depth, "stop": stop} | after(right_DP, steps_P))
        for threshold in thresholds:
            halting = replace(plain, stop_early=True, halt_threshold=threshold)
            found, seconds = timed(network, sections, halting, fabric)
            steps_P = np.array([answer.restarts[0].n_steps for answer in found])
            stopped = after(right_by_step(found, sections), steps_P)
            rows.append({"depth": depth, "stop": "halting", "threshold": threshold} | stopped | {"seconds": seconds})
    return rows


def logits_by_step(network: SpotNetwork, sections: Sequence[Section], depth: int, fabric: Fabric) -> pd.DataFrame:
    """Return the median halt probability after each step of puzzles that are right then, and of the others."""
    found, _ = timed(network, sections, Inference(depth=depth, symmetric=False, slots=SLOTS), fabric)
    right_DP = right_by_step(found, sections)
    halt_DP = np.stack([answer.restarts[0].halt_probability_D for answer in found], axis=1)
    rows = []
    for step, (right_P, halt_P) in enumerate(zip(right_DP, halt_DP, strict=True), 1):
        for right in (True, False):
            if (own := halt_P[right_P == right]).size:
                rows.append({"step": step, "right": right, "halt_probability": np.median(own), "n": own.size})
    return pd.DataFrame(rows)


def run(preset: Preset, recipe: str, parts: Sequence[Sequence[Section]], seed: int, fabric: Fabric) -> pd.DataFrame:
    """Train and evaluate one network."""
    network, (train, test) = make_network(preset, recipe, seed), parts
    fit(
        network,
        train,
        preset.training_of("trm"),
        n_steps=preset.n_steps,
        augment=preset.puzzles.augment,
        fabric=fabric,
        seed=seed,
        progress=False,
    )
    print(logits_by_step(network, test, max(DEPTHS), fabric).round(3).to_string(index=False), flush=True)
    return pd.DataFrame(evaluate(network, test, fabric, thresholds=RECIPES[recipe]))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, and add how many times fewer steps than at the full depth."""
    setting = ["puzzle", "recipe", "depth", "stop", "threshold"]
    means = table.groupby(setting, sort=False, dropna=False)[["exact", "steps", "seconds"]].mean()
    return means.assign(fewer=means.index.get_level_values("depth") / means["steps"]).round(3)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot accuracy against outer steps: all of them, halting, and the oracles."""
    recipes = list(table["recipe"].unique())
    size = (4.5 * len(recipes), 3.6)
    figure, axes = plt.subplots(1, len(recipes), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, recipe in zip(axes[0], recipes, strict=True):
        own = table[table["recipe"] == recipe].groupby(["depth", "stop", "threshold"], dropna=False)
        means = own[["exact", "steps"]].mean().reset_index()
        fixed = means[means["stop"] == "fixed"]
        ax.plot(fixed["steps"], fixed["exact"], "o-", color="black", label="all steps")
        for depth, rows in means[means["stop"] == "halting"].groupby("depth"):
            ax.plot(rows["steps"], rows["exact"], "s-", ms=4, label=f"halting, at most {depth}")
        ideal = means[means["stop"] == "settled"]
        ax.plot(ideal["steps"], ideal["exact"], "*", color="grey", ms=9, label="once settled (oracle)")
        ax.set(title=f"halt logit: {recipe}", xlabel="mean outer steps", ylabel="puzzles solved", xscale="log")
        ax.set_xticks([4, 8, 16, 32], labels=["4", "8", "16", "32"])
        ax.minorticks_off()
        ax.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--puzzles", nargs="+", choices=PRESETS["small"], default=["sudoku"])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--test-puzzles", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adaptive.csv"))
    options = parser.parse_args()

    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    fabric = make_fabric("auto", 1, "32-true")
    for puzzle in options.puzzles:
        preset = replace(PRESETS["small"][puzzle], n_test=options.test_puzzles)
        kept = options.out.parent / f"adaptive_{puzzle.replace(' ', '_')}_{options.test_puzzles}.npz"
        parts = make_puzzles(preset, None, kept)
        for seed, recipe in product(options.seeds, options.recipes):
            wanted = {"puzzle": puzzle, "recipe": recipe, "seed": seed}
            if is_done(done, wanted):
                continue
            rows = run(preset, recipe, parts, seed, fabric).assign(**wanted)
            done = pd.concat([done, rows], ignore_index=True)
            done.to_csv(options.out, index=False)
            print(summarise(rows).to_string(), flush=True)
    print(summarise(done).to_string())
    draw(done[done["puzzle"] == options.puzzles[0]], options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
