"""Scores and residuals with more or less recursion than in training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize

from strecur.pl._figure import add_color_bar, add_step_bar, finish, make_panels, one_or_all, open_frame, whole_ticks
from strecur.pl._results import SCORE_NAMES, choose_table_sections, find_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Colormap

CAPTIONS = SCORE_NAMES | {
    "n_blocks": "blocks (outer steps × deep cycles)",
    "layer_evaluations": "layer evaluations",
    "residual": "residual",
}
SWEPT = ("section", "n_steps", "n_deep", "n_latent", "n_blocks", "layer_evaluations", "residual")
EXPLORED = ("section", "restart", "step", "residual", "converged", "pc1", "pc2")


def recursion_sweep(
    table: pd.DataFrame,
    *,
    score: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
) -> Axes | list[Axes] | None:
    """Plot score and residual against the number of blocks, one line per number of latent steps.

    The panels are the score against blocks, the score against layer evaluations (the cost), and the residual against
    blocks. Lines are means over sections, bands reach from the lowest to the highest section. See Figs. 1 and 7 of the
    spatial TRM :cite:p:`spatialtrm`.

    Parameters
    ----------
    table
        Result of :func:`strecur.tl.recursion_sweep`.
    score
        Column to plot. If ``None`` (default), the first score of the table; without any, only the residual is plotted.
    ax
        Axes to plot on: score by blocks, score by layer evaluations, residual. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.

    Returns
    -------
    The axes, as a list if there are several panels; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> table = st.tl.recursion_sweep(adata, model, depths=(1, 2), n_latent=(1,), n_deep=(1,))
    >>> ax = st.pl.recursion_sweep(table)
    """
    score = find_score(table, score, SWEPT, made_with="strecur.tl.recursion_sweep(adata, model, label_key=...)")
    panels = [("n_blocks", score), ("layer_evaluations", score)] if score else []
    panels.append(("n_blocks", "residual"))
    contents = "score by blocks, score by layer evaluations, residual by blocks"
    axes = make_panels(ax, [0.8] * len(panels), len(panels), contents=contents)
    # configurations with the same number of blocks have the same result
    runs = table.drop_duplicates(["section", "n_latent", "n_blocks"])
    numbers = sorted(runs["n_latent"].unique())
    colors = colormaps["viridis_r"](np.linspace(0.15, 1, len(numbers)))
    for panel, (x, y) in zip(axes, panels, strict=True):
        for number, color in zip(numbers, colors, strict=True):
            spread = runs[runs["n_latent"] == number].groupby(x)[y].agg(["mean", "min", "max"])
            panel.fill_between(spread.index, spread["min"], spread["max"], color=color, alpha=0.15, linewidth=0)
            panel.plot(spread.index, spread["mean"], "o-", color=color, markersize=4, label=str(number))
        panel.set_xscale("log", base=2)
        _plain_ticks(panel, runs[x])
        panel.set(xlabel=CAPTIONS[x], ylabel=CAPTIONS.get(y, y))
        open_frame(panel)
    axes[-1].set_yscale("log")
    axes[-1].legend(title="latent steps", frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return finish(one_or_all(axes), show=show)


def _plain_ticks(ax: Axes, values: pd.Series) -> None:
    """Write powers of two in full, at most eight of them."""
    low, high = (int(np.floor(np.log2(v))) for v in (values.min(), values.max()))
    ticks = 2 ** np.arange(low, high + 1, -(-(high + 1 - low) // 8))
    ax.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    ax.minorticks_off()


def landscape(
    table: pd.DataFrame,
    *,
    score: str | None = None,
    library_id: str | Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Plot the paths of restarts and the score by depth and breadth, one row per section.

    The panels are the paths of the latent in the plane of its first two principal components, coloured by outer step,
    and the residual of every restart by step. If there is a score, two more panels show the paths coloured by it, and
    the score of the most converged restart for each depth and breadth. Circles mark the ends of paths. See Fig. 3 of
    Equilibrium Reasoners :cite:p:`eqr`.

    Parameters
    ----------
    table
        Result of :func:`strecur.tl.landscape`.
    score
        Column to plot. If ``None`` (default), the first score of the table.
    library_id
        Section or sections to plot, in this order. If ``None`` (default), all.
    ax
        Axes to plot on, one per panel in reading order. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.

    Returns
    -------
    The axes, two or four per section; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a column or a section is missing.
    ValueError
        If ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> table = st.tl.landscape(adata, model, depth=2, breadth=2, n_spots=16)
    >>> axes = st.pl.landscape(table)
    """
    score = find_score(table, score, EXPLORED, made_with="strecur.tl.landscape(adata, model, label_key=...)")
    table, names = choose_table_sections(table, library_id)
    n = 4 if score else 2
    axes = make_panels(ax, [0.85] * (n * len(names)), n, contents=f"{len(names)} sections × {n} panels", margin=0.8 * n)
    depth = table["step"].max()
    # from light to dark, since early steps differ more than late ones
    step_colors = ListedColormap(colormaps["viridis_r"](np.linspace(0, 1, depth)))
    step_norm = BoundaryNorm(np.arange(0.5, depth + 1), depth)
    positive = table.loc[table["residual"] > 0, "residual"]
    residual_norm = LogNorm(positive.min(), positive.max()) if len(positive) else None
    for i, name in enumerate(names):
        part = table[table["section"] == name]
        paths_by_step, residuals, *scored = axes[i * n : (i + 1) * n]
        add_step_bar(
            paths_by_step, _draw_paths(paths_by_step, part, "step", step_colors, step_norm), depth, label="outer step"
        )
        paths_by_step.set_title(f"{name}\npaths of the restarts", fontsize="medium")
        by_step = part.pivot(index="restart", columns="step", values="residual")
        _draw_heat(residuals, by_step, "restart", cmap=colormaps["magma"], norm=residual_norm)
        residuals.set_title("residual", fontsize="medium")
        if score:
            norm = Normalize(table[score].min(), table[score].max())
            _draw_scores_by_depth(scored, part, score, norm)
    return finish(axes, show=show)


def _draw_scores_by_depth(axes: Sequence[Axes], part: pd.DataFrame, score: str, norm: Normalize) -> None:
    """Draw the paths of one section coloured by score, and the score by depth and breadth."""
    caption, cmap = CAPTIONS.get(score, score), colormaps["cividis"]
    add_color_bar(axes[0], _draw_paths(axes[0], part, score, cmap, norm), caption)
    axes[0].set_title(f"{caption} on the way", fontsize="medium")
    _draw_heat(axes[1], _selected_scores(part, score), "breadth", cmap=cmap, norm=norm)
    axes[1].set_title(f"{caption} of the most converged", fontsize="medium")


def _draw_paths(ax: Axes, part: pd.DataFrame, by: str, cmap: Colormap, norm: Normalize) -> ScalarMappable:
    """Draw one path per restart, each segment with the colour of its end point, and mark the end of the path."""
    segments, values = [], []
    for _, path in part.sort_values("step").groupby("restart"):
        places = path[["pc1", "pc2"]].to_numpy()
        segments += [places[k : k + 2] for k in range(len(places) - 1)]
        values += list(path[by].iloc[1:])
    lines = ax.add_collection(LineCollection(segments, array=np.array(values), cmap=cmap, norm=norm, linewidths=1.2))
    last = part[part["step"] == part["step"].max()]
    style: dict[str, Any] = {"edgecolors": "black", "linewidths": 0.7, "s": 36, "zorder": 3}
    ax.scatter(last["pc1"], last["pc2"], c=last[by], cmap=cmap, norm=norm, **style)
    ax.autoscale_view()
    ax.set(xlabel="PC 1", ylabel="PC 2", xticks=[], yticks=[])
    open_frame(ax)
    return lines


def _selected_scores(part: pd.DataFrame, score: str) -> pd.DataFrame:
    """Return the score of the most converged restart by breadth (rows) and depth (columns)."""
    by_restart = part.set_index(["restart", "step"])[score]
    chosen = pd.MultiIndex.from_arrays([part["converged"], part["step"]])
    return part.assign(selected=by_restart.reindex(chosen).to_numpy()).pivot(
        index="restart", columns="step", values="selected"
    )


def _draw_heat(ax: Axes, values: pd.DataFrame, rows: str, **colors: Any) -> None:
    """Draw a matrix of restarts (or breadths) by outer step (or depth), both counted from 1 at the lower left."""
    n_rows, n_columns = values.shape
    extent = (0.5, n_columns + 0.5, 0.5, n_rows + 0.5)
    image = ax.imshow(values, aspect="auto", origin="lower", extent=extent, interpolation="nearest", **colors)
    ax.set(xlabel="depth" if rows == "breadth" else "outer step", ylabel=rows)
    ax.set_xticks(whole_ticks(n_columns))
    ax.set_yticks(whole_ticks(n_rows))
    ax.spines[:].set_visible(False)
    add_color_bar(ax, image)
