"""Recursion on puzzles, for which TRM was introduced: the effect of weight sharing, depth and breadth.

    python benchmarks/puzzles.py                      # generated 6x6 Sudokus and mazes, on a CPU
    python benchmarks/puzzles.py --preset paper --data ../shared/data/sudoku/sudoku17.csv.gz   # as published, on a GPU
    python benchmarks/puzzles.py --preset paper --dry-run   # only count the parameters
    python benchmarks/puzzles.py --seeds 1 2 --single   # without restarts, in half the time
    python benchmarks/puzzles.py --puzzles sudoku --methods trm "trm, single z" "trm, no EMA"   # table 1 of TRM
    python benchmarks/puzzles.py --puzzles sudoku --grid 1x1 1x2 2x2 3x2   # deep cycles × latent updates
    python benchmarks/puzzles.py --puzzles sudoku --starts 0.5x0.01 1x0.1   # random starts × noise

Network, training and prediction are those of the package; a puzzle is a section whose cells are spots. A puzzle is
solved if every cell is right. All methods but the plain feedforward network see the same puzzles for the same number of
layer passes in training. Rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from puzzle_figures import SELECTIONS, draw, draw_breadth, draw_variants
from puzzle_networks import METHODS, PRESETS
from puzzle_sections import as_section

from strecur.engine import Answer, fit, make_fabric, predict
from strecur.nn import TRM
from strecur.options import Inference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric
    from puzzle_networks import Preset

    from strecur.engine import Section
    from strecur.nn import SpotNetwork


def make_puzzles(preset: Preset, data: Path | None, kept: Path) -> tuple[list[Section], list[Section]]:
    """Draw training and test puzzles from a table, or generate them (half a minute) and store them in a file."""
    rng, n, kind = np.random.default_rng(0), preset.n_train + preset.n_test, preset.puzzles
    if data is not None:
        sections = kind.read(data, n, rng)
    elif kept.exists():
        pairs = zip(*(np.load(kept)[name] for name in ("symbols", "answers")), strict=True)
        sections = [as_section(f"puzzle {i}", *pair, kind.n_symbols) for i, pair in enumerate(pairs)]
    else:
        sections = [kind.draw(rng, f"puzzle {i}") for i in range(n)]
        kept.parent.mkdir(parents=True, exist_ok=True)
        shape = (n, kind.side, kind.side)
        symbols = torch.stack([section.features_NF.argmax(dim=1) for section in sections]).numpy().reshape(shape)
        answers = torch.stack([section.target_N for section in sections]).numpy().reshape(shape)
        np.savez_compressed(kept, symbols=symbols, answers=answers)
    return sections[: preset.n_train], sections[preset.n_train :]


def truncated(answer: Answer, depth: int) -> Answer:
    """Return the last answer of a run of ``depth`` outer steps, from that of a longer run."""
    return replace(
        answer,
        restarts=tuple(
            replace(run, output_DN=run.output_DN[depth - 1 : depth], residual_D=run.residual_D[:depth], n_steps=depth)
            for run in answer
        ),
    )


def first(answer: Answer, breadth: int) -> Answer:
    """Return the first restarts of an answer."""
    return replace(answer, restarts=answer.restarts[:breadth])


def right_cells(answer: Answer, section: Section, selection: str) -> np.ndarray:
    """Whether the last answer is right, for every cell."""
    return answer.combined(selection)[-1].argmax(axis=-1) == section.target_N.numpy()


def score(found: Sequence[Answer], sections: Sequence[Section], depth: int, selection: str) -> dict:
    """Return the share of cells and of whole puzzles that are right."""
    right = [
        right_cells(truncated(answer, depth), section, selection)
        for answer, section in zip(found, sections, strict=True)
    ]
    return {"cells": np.mean([r.mean() for r in right]), "exact": np.mean([r.all() for r in right])}


def path_dependence(found: Sequence[Answer], sections: Sequence[Section], depth: int) -> dict:
    """Return how far the result depends on the start, as in Equilibrium Reasoners.

    ``delta_pi`` is the mean difference between one restart solving a puzzle (0 or 1) and the share of all that do.
    """
    share = np.array(
        [
            np.mean([right_cells(replace(short, restarts=(run,)), section, "mean").all() for run in short])
            for short, section in zip((truncated(answer, depth) for answer in found), sections, strict=True)
        ]
    )
    # averaged over the choice of that one restart
    return {"exact": share.mean(), "delta_pi": (2 * share * (1 - share)).mean(), "solved_once": (share > 0).mean()}


def evaluate(
    network: SpotNetwork, sections: Sequence[Section], depths: Sequence[int], breadths: Sequence[int], fabric: Fabric
) -> list[dict]:
    """Score a network by depth, and one with two states also by breadth and selection.

    Selection ``"-"`` is a run as the network was trained, ``"one"`` the average over single random starts.
    """
    plain = Inference(depth=max(depths), symmetric=False, slots=256)
    found = predict(network, sections, plain, fabric=fabric, progress=False)
    rows = [{"depth": d, "breadth": 1, "selection": "-"} | score(found, sections, d, "mean") for d in depths]
    if not breadths or not isinstance(network.recursion, TRM):
        return rows
    found = predict(network, sections, replace(plain, breadth=max(breadths)), fabric=fabric, progress=False)
    for depth in depths:
        rows.append({"depth": depth, "breadth": 1, "selection": "one"} | path_dependence(found, sections, depth))
        for breadth, selection in product(breadths, SELECTIONS):
            some = [first(answer, breadth) for answer in found]
            setting = {"depth": depth, "breadth": breadth, "selection": selection}
            rows.append(setting | score(some, sections, depth, selection))
    return rows


def run(
    method: str, preset: Preset, train: Sequence[Section], test: Sequence[Section], *, seed: int, fabric: Fabric
) -> pd.DataFrame:
    """Train and evaluate one method."""
    network = preset.make_network(method, seed)
    start = time.process_time()
    history = fit(
        network,
        train,
        preset.training_of(method),
        n_steps=preset.steps_of(method),
        augment=preset.puzzles.augment,
        fabric=fabric,
        seed=seed,
        progress=False,
    )
    trained = time.process_time()
    rows = pd.DataFrame(evaluate(network, test, preset.depths_of(method), preset.breadths, fabric))
    return rows.assign(
        layer_passes=rows["depth"] * preset.n_layer_passes(method),
        train_loss=history[-1]["train_loss"],
        train_seconds=trained - start,
        predict_seconds=time.process_time() - trained,
    )


def is_done(table: pd.DataFrame, wanted: dict) -> bool:
    """Whether the table has rows of this setting."""
    return len(table) > 0 and (table[list(wanted)].astype(str) == pd.Series(wanted).astype(str)).all(axis=1).any()


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate exact accuracy by method, breadth and selection (rows) and layer passes (columns)."""
    setting = ["puzzle", "method", "breadth", "selection"]
    found = table.pivot_table(index=setting, columns="layer_passes", values="exact", aggfunc="mean", sort=False)
    return found.sort_index(axis=1).round(3)


def read_size(text: str) -> str:
    """Return the method of a point of the grid, written as ``3x6``."""
    n_deep, n_latent = map(int, text.split("x"))
    if min(n_deep, n_latent) < 1:
        raise ValueError(text)
    return f"trm, T={n_deep}, n={n_latent}"


def read_starts(text: str) -> str:
    """Return the method with random starts and noise of these standard deviations, written as ``1x0.01``."""
    sigma, beta = map(float, text.split("x"))
    if sigma <= 0 or beta < 0:
        raise ValueError(text)
    return f"trm, sigma={sigma:g}, beta={beta:g}"


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--puzzles", nargs="+", help="by default all of the preset")
    parser.add_argument("--data", type=Path, help="table of 9x9 Sudokus, for the preset 'paper'")
    parser.add_argument("--backbone", choices=("dense", "mixer"), help="by default that of the preset")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="by default all of the preset")
    parser.add_argument("--grid", nargs="+", type=read_size, metavar="TxN", help="deep cycles × latent updates of TRM")
    parser.add_argument("--starts", nargs="+", type=read_starts, metavar="SxB", help="random starts × noise of TRM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--single", action="store_true", help="evaluate without restarts from random starts")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--dry-run", action="store_true", help="build the networks and count their parameters only")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/puzzles.csv"))
    options = parser.parse_args()
    if not options.dry_run and (options.preset == "paper") != (options.data is not None):
        parser.error("--preset paper needs --data, a table of 9x9 Sudokus; the other presets generate puzzles")
    return options


def main() -> None:
    options = parse_options()
    presets = {name: PRESETS[options.preset][name] for name in options.puzzles or PRESETS[options.preset]}
    if options.backbone:
        presets = {name: replace(preset, backbone=options.backbone) for name, preset in presets.items()}
    if options.single:
        presets = {name: replace(preset, breadths=()) for name, preset in presets.items()}
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    fabric = make_fabric("auto", 1, options.precision)
    for puzzle, preset in presets.items():
        kept = options.out.parent / f"{options.preset}_{puzzle.replace(' ', '_')}.npz"
        train, test = ([], []) if options.dry_run else make_puzzles(preset, options.data, kept)
        swept = [*(options.grid or ()), *(options.starts or ())]
        chosen = [*(options.methods or (() if swept else preset.methods)), *swept]
        for seed, method in product(options.seeds, chosen):
            setting = {"preset": options.preset, "puzzle": puzzle, "backbone": preset.backbone}
            wanted = setting | {"method": method, "seed": seed}
            n_parameters = sum(p.numel() for p in preset.make_network(method, seed).parameters())
            print(*wanted.values(), f"{n_parameters:,} parameters", sep=", ", flush=True)
            if options.dry_run or is_done(done, wanted):
                continue
            rows = run(method, preset, train, test, seed=seed, fabric=fabric).assign(
                **wanted, n_parameters=n_parameters
            )
            done = pd.concat([done, rows], ignore_index=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            done.to_csv(options.out, index=False)
            print(summarise(rows).to_string(), flush=True)
    if not options.dry_run:
        own = done[(done["preset"] == options.preset) & done["puzzle"].isin(presets)]
        print(summarise(own).to_string())
        trained = {puzzle: preset.n_layer_passes("trm") * preset.n_steps for puzzle, preset in presets.items()}
        draw(own, trained, options.out.with_suffix(".png"))
        draw_breadth(own, options.out.with_name(f"{options.out.stem}_breadth.png"))
        steps = {puzzle: preset.n_steps for puzzle, preset in presets.items()}
        draw_variants(own, steps, options.out.with_name(f"{options.out.stem}_variants.png"))


if __name__ == "__main__":
    main()
