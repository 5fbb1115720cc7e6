"""Learning curve of a small network on 9x9 Sudokus: loss, right cells and solved puzzles by optimizer step.

    python benchmarks/puzzle_curve.py --data ../shared/data/sudoku/sudoku17.csv.gz --clues 17 34 --epochs 40

The puzzles are those of the table; with more than 17 clues, random cells of their answers are given too, which makes
them easier. The test puzzles are not in the training. Cells are scored without those that are given. The full size of
the paper is a preset of ``benchmarks/puzzles.py`` and needs a GPU. Curves that are in the table are not computed again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from puzzle_networks import SMALL, Sudokus
from puzzles import is_done

from strecur.engine import fit, make_fabric, predict
from strecur.options import Inference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric
    from puzzle_networks import Preset

    from strecur.engine import Section
    from strecur.nn import SpotNetwork

METHODS = ("feedforward, step", "universal, step", "trm")


def preset_of(clues: int, options: argparse.Namespace) -> Preset:
    """Return the small network for these puzzles, trained for a number of passes over 1,000 of them."""
    training = replace(SMALL.training, max_epochs=options.epochs, batch_sections=32, validate_every=1, patience=10**6)
    return replace(
        SMALL,
        puzzles=Sudokus(box=(3, 3), n_clues=clues),
        width=options.width,
        hidden=options.hidden,
        n_latent=options.latent,
        training=replace(training, learning_rate=options.learning_rate),
        n_train=1000,
        n_test=options.test_puzzles,
    )


def share_of_empty(section: Section, right_N: np.ndarray) -> float:
    """Share of right cells among those that are not given."""
    empty_N = section.features_NF[:, 0].numpy() == 1
    return right_N[empty_N].mean()


def score(network: SpotNetwork, sections: Sequence[Section], depth: int, fabric: Fabric) -> dict[str, float]:
    """Return the share of right cells that were empty and of solved puzzles."""
    inference = Inference(depth=depth, symmetric=False, slots=256)
    found = predict(network, sections, inference, keep_steps=False, fabric=fabric, progress=False)
    right = [
        answer.restarts[0].output_DN[-1].argmax(axis=-1) == section.target_N.numpy()
        for answer, section in zip(found, sections, strict=True)
    ]
    cells = [share_of_empty(section, right_N) for section, right_N in zip(sections, right, strict=True)]
    return {"cells": float(np.mean(cells)), "exact": float(np.mean([right_N.all() for right_N in right]))}


def learn(method: str, preset: Preset, data: Path, seed: int, fabric: Fabric) -> pd.DataFrame:
    """Train one network, and score it on the test puzzles after every pass."""
    sections = preset.puzzles.read(data, preset.n_train + preset.n_test, np.random.default_rng(0))
    train, test = sections[: preset.n_train], sections[preset.n_train :]
    network, n_steps = preset.make_network(method, seed), preset.steps_of(method)
    training, start = preset.training_of(method), time.process_time()
    if n_steps == 1:  # score as often, measured in optimizer steps
        training = replace(training, validate_every=preset.n_steps)

    def validate(network: Any) -> dict[str, float]:
        return score(network, test, n_steps, fabric) | {"cpu_seconds": time.process_time() - start}

    history = fit(
        network,
        train,
        training,
        n_steps=n_steps,
        augment=preset.puzzles.augment,
        fabric=fabric,
        seed=seed,
        validate=validate,
        progress=False,
    )
    n_batches = -(-preset.n_train // training.batch_sections)
    curve = pd.DataFrame(history).dropna(subset=["exact"])
    n_parameters = sum(p.numel() for p in network.parameters())
    return curve.assign(optimizer_steps=curve["epoch"] * n_batches * n_steps, n_parameters=n_parameters)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot loss, right cells and solved puzzles against optimizer steps."""
    panels = {"train_loss": "training loss", "cells": "right empty cells", "exact": "solved puzzles"}
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 3.2), layout="constrained")
    for color, (method, own) in zip(plt.cm.tab10.colors, table.groupby("method", sort=False), strict=False):
        for style, (clues, rows) in zip(("-", "--", ":"), own.groupby("clues", sort=False), strict=False):
            for ax, column in zip(axes, panels, strict=True):
                mean = rows.groupby("optimizer_steps")[column].mean()
                ax.plot(mean.index, mean, style, color=color, label=f"{method}, {clues} clues")
    for ax, label in zip(axes, panels.values(), strict=True):
        ax.set(xlabel="optimizer steps", ylabel=label)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="table of 9x9 Sudokus")
    parser.add_argument("--clues", nargs="+", type=int, default=[17])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["trm"])
    parser.add_argument("--epochs", type=int, default=20, help="passes over 1,000 puzzles")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--latent", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--test-puzzles", type=int, default=128)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/puzzle_curve.csv"))
    options = parser.parse_args()

    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    fabric = make_fabric("auto", 1, "32-true")
    sizes = {name: vars(options)[name] for name in ("epochs", "width", "hidden", "latent", "learning_rate")}
    for clues, method, seed in product(options.clues, options.methods, options.seeds):
        wanted = {"clues": clues, "method": method, "seed": seed} | sizes
        if is_done(done, wanted):
            continue
        rows = learn(method, preset_of(clues, options), options.data, seed, fabric).assign(**wanted)
        done = pd.concat([done, rows], ignore_index=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        done.to_csv(options.out, index=False)
        columns = ["clues", "method", "optimizer_steps", "train_loss", "cells", "exact", "cpu_seconds"]
        print(rows[columns].iloc[:: max(len(rows) // 10, 1)].round(3).to_string(index=False), flush=True)
    own = done[(done[list(sizes)].astype(str) == pd.Series(sizes, dtype=object).astype(str)).all(axis=1)]
    print(own.groupby(["clues", "method", "seed"]).tail(1).round(3).to_string(index=False))
    draw(own, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
