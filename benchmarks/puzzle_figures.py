"""Figures of the benchmark of puzzles: layer passes, restarts, and variants of TRM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from puzzle_variants import starts_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pandas as pd

SELECTIONS = ("mean", "vote", "converged")


def is_variant(method: str) -> bool:
    """Whether a method is TRM with a part replaced or in another size."""
    return method.startswith("trm, ") and method not in {"trm, random", "trm, run"}


def draw(table: pd.DataFrame, trained_passes: Mapping[str, int], path: Path) -> None:
    """Plot the puzzles that single runs solve against layer passes; bars are the range over seeds."""
    table = table[(table["selection"] == "-") & ~table["method"].map(is_variant)]
    puzzles = list(table["puzzle"].unique())
    size = (4.4 * len(puzzles), 3.6)
    figure, axes = plt.subplots(1, len(puzzles), figsize=size, sharey=True, squeeze=False, layout="constrained")
    colors = dict(zip(table["method"].unique(), plt.cm.tab10.colors, strict=False))
    for ax, puzzle in zip(axes[0], puzzles, strict=True):
        own = table[table["puzzle"] == puzzle]
        for method, rows in own.groupby("method", sort=False):
            color = colors[method]
            exact = rows.groupby("layer_passes")["exact"]
            mean = exact.mean()
            ax.fill_between(mean.index, exact.min(), exact.max(), color=color, alpha=0.2, lw=0)
            ax.plot(mean.index, mean, "o-", ms=4, color=color, label=method)
        ax.axvline(trained_passes[puzzle], color="grey", lw=1, ls=":")
        ax.set(title=puzzle, xlabel="layer passes (dotted: in training)", ylabel="puzzles solved", xscale="log")
        ax.set(ylim=(-0.03, 1.03))
        passes = sorted(own["layer_passes"].unique())
        ax.set_xticks(passes, labels=[f"{n:.0f}" for n in passes])
        ax.minorticks_off()
        ax.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_breadth(table: pd.DataFrame, path: Path) -> None:
    """Map the puzzles solved by the most converged restart over outer steps and restarts from random starts."""
    table = table[table["selection"].isin(["one", "converged"])]
    panels = list(table.groupby(["puzzle", "method"], sort=False))
    if not panels:
        return
    size = (3.4 * len(panels), 2.4)
    figure, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for ax, ((puzzle, method), rows) in zip(axes[0], panels, strict=True):
        grid = rows.pivot_table(index="breadth", columns="depth", values="exact", aggfunc="mean")
        image = ax.imshow(grid, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto")
        for (row, col), value in np.ndenumerate(grid.to_numpy()):
            ax.text(col, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color="k" if value > 0.5 else "w")
        ax.set_xticks(range(grid.shape[1]), labels=[f"{depth}" for depth in grid.columns])
        ax.set_yticks(range(grid.shape[0]), labels=[f"{breadth}" for breadth in grid.index])
        ax.set(title=f"{puzzle}: {method}", xlabel="outer steps", ylabel="random starts")
    figure.colorbar(image, ax=axes, label="puzzles solved")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_variants(table: pd.DataFrame, trained_steps: Mapping[str, int], path: Path) -> None:
    """Plot the puzzles that variants of TRM solve after the outer steps of their training; dots are seeds."""
    table = table[(table["selection"] == "-") & table["method"].map(starts_of).isna()]
    table = table[table["method"].map(is_variant) | (table["method"] == "trm")]
    puzzles = [puzzle for puzzle, own in table.groupby("puzzle", sort=False) if own["method"].map(is_variant).any()]
    if not puzzles:
        return
    figure, axes = plt.subplots(1, len(puzzles), figsize=(5.5 * len(puzzles), 3.6), squeeze=False, layout="constrained")
    for ax, puzzle in zip(axes[0], puzzles, strict=True):
        own = table[(table["puzzle"] == puzzle) & (table["depth"] == trained_steps[puzzle])]
        means = own.groupby("method")["exact"].mean().sort_values()
        for y, method in enumerate(means.index):
            seeds = own.loc[own["method"] == method, "exact"]
            ax.plot(seeds, [y] * len(seeds), "o", ms=4, color="tab:orange" if method == "trm" else "tab:blue")
            ax.plot(means[method], y, "|", ms=14, color="black")
        ax.set_yticks(range(len(means)), labels=means.index)
        ax.set(title=puzzle, xlabel=f"puzzles solved after {trained_steps[puzzle]} outer steps", xlim=(-0.03, 1.03))
    figure.savefig(path, dpi=110)
    plt.close(figure)
