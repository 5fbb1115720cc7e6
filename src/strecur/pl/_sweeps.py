"""Figures of what more or less recursion does to a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm, Normalize

from strecur._anndata import open_table, require
from strecur.pl._figure import MAX_COLUMNS, add_color_bar, finish, given_axes, panel_axes
from strecur.pl._maps import made_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from spatialdata import SpatialData

CHOSEN, OTHER = "#0072B2", "0.75"
CAPTIONS = {
    "ari": "ARI",
    "macro_f1": "macro F1",
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
    """Draw how the answer depends on the number of blocks and of latent steps (TRM paper, Figs. 1 and 7).

    The score against blocks and against the work they take, and the residual against blocks; one line per number of
    latent steps, the mean over sections, in a band from the lowest to the highest section.

    Parameters
    ----------
    table
        Result of :func:`strecur.tl.recursion_sweep`.
    score
        Column to draw; by default the first score there is. Without any, only the residual is drawn.
    ax
        Axes to draw on: score by blocks, score by layer evaluations, residual; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.

    Returns
    -------
    The axes, a list if there are several panels; ``None`` with ``show=True``.

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
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> table = st.tl.recursion_sweep(
    ...     adata, model, library_key="section", depths=(1, 2), n_latent=(1,), n_deep=(1,), progress=False
    ... )
    >>> ax = st.pl.recursion_sweep(table)
    """
    score = _find_score(table, score, SWEPT, "strecur.tl.recursion_sweep(adata, model, label_key=...)")
    panels = [("n_blocks", score), ("layer_evaluations", score)] if score else []
    panels.append(("n_blocks", "residual"))
    if ax is None:
        axes = panel_axes([0.8] * len(panels), len(panels))
    else:
        axes = given_axes(ax, len(panels), "score by blocks, score by layer evaluations, residual by blocks")
    # block-equivalent configurations have the same result
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
        panel.spines[["top", "right"]].set_visible(False)
    axes[-1].set_yscale("log")
    axes[-1].legend(title="latent steps", frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return finish(axes, show=show)


def _find_score(table: pd.DataFrame, score: str | None, known: Sequence[str], made_with: str) -> str | None:
    """Choose the column of scores: the named one, or the first that is not a column every such table has."""
    if not isinstance(table, pd.DataFrame):
        msg = f"expected a table from {made_with}, got {type(table).__name__}"
        raise TypeError(msg)
    if table.empty:
        msg = f"the table has no rows; make it with {made_with}"
        raise ValueError(msg)
    for name in (*known, *([score] if score else [])):
        if name not in table:
            msg = f"the table has no column {name!r}; there are {list(table.columns)}. It is made with {made_with}"
            raise KeyError(msg)
    return score or next((name for name in table if name not in known), None)


def _plain_ticks(ax: Axes, values: pd.Series) -> None:
    """Powers of two as they are written, at most eight of them."""
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
) -> Axes | list[Axes] | None:
    """Draw where restarts go and what depth and breadth are worth (Equilibrium Reasoners, Fig. 3), a row per section.

    The paths of the latent in the plane of its first two principal components, coloured by outer step; the residual of
    every restart by step; and, where there is a score, the paths coloured by it, and the score of a run of so much
    depth and breadth, which takes the most converged of its restarts. Circles mark where paths end.

    Parameters
    ----------
    table
        Result of :func:`strecur.tl.landscape`.
    score
        Column to draw; by default the first score there is.
    library_id
        Section or sections to draw, in this order; by default all.
    ax
        Axes to draw on, one per panel in reading order; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.

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
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> table = st.tl.landscape(adata, model, library_key="section", depth=2, breadth=2, n_spots=16, progress=False)
    >>> axes = st.pl.landscape(table)
    """
    score = _find_score(table, score, EXPLORED, "strecur.tl.landscape(adata, model, label_key=...)")
    names = _chosen_sections(table, library_id)
    n_columns = 4 if score else 2
    if ax is None:
        axes = panel_axes([0.85] * (n_columns * len(names)), n_columns, margin=0.8 * n_columns)
    else:
        axes = given_axes(ax, n_columns * len(names), f"{len(names)} sections × {n_columns}")
    table = table[table["section"].isin(names)]
    steps = np.arange(1, table["step"].max() + 1)
    # an early step more or less matters, a late one hardly
    step_colors = ListedColormap(colormaps["viridis_r"](np.linspace(0, 1, len(steps))))
    step_norm = BoundaryNorm(np.arange(0.5, len(steps) + 1), len(steps))
    positive = table.loc[table["residual"] > 0, "residual"]
    residual_norm = LogNorm(positive.min(), positive.max()) if len(positive) else None
    for i, name in enumerate(names):
        part = table[table["section"] == name]
        row = axes[i * n_columns : (i + 1) * n_columns]
        paths = _draw_paths(row[0], part, "step", step_colors, step_norm)
        _mark_steps(add_color_bar(row[0], paths, "outer step"), len(steps))
        residuals = part.pivot(index="restart", columns="step", values="residual")
        _draw_heat(row[1], residuals, "restart", cmap=colormaps["magma"], norm=residual_norm)
        titles = [f"{name}\npaths of the restarts", "residual"]
        if score:
            caption = CAPTIONS.get(score, score)
            score_norm = Normalize(table[score].min(), table[score].max())
            paths = _draw_paths(row[2], part, score, colormaps["cividis"], score_norm)
            add_color_bar(row[2], paths, caption)
            selected = _selected_scores(part, score)
            _draw_heat(row[3], selected, "breadth", cmap=colormaps["cividis"], norm=score_norm)
            titles += [f"{caption} on the way", f"{caption} of the most converged"]
        for panel, title in zip(row, titles, strict=True):
            panel.set_title(title, fontsize="medium")
    return finish(axes, show=show)


def _chosen_sections(table: pd.DataFrame, library_id: str | Sequence[str] | None) -> list[str]:
    present = list(table["section"].unique())
    wanted = [library_id] if isinstance(library_id, str) else list(present if library_id is None else library_id)
    unknown = [name for name in wanted if name not in present]
    if unknown:
        msg = f"library_id={unknown} are not sections of the table; there are {present}"
        raise KeyError(msg)
    return wanted


def _draw_paths(ax: Axes, part: pd.DataFrame, by: str, cmap: ListedColormap, norm: Normalize) -> ScalarMappable:
    """Draw one path per restart, each piece in the colour of the step it leads to, and mark where it ends."""
    pieces, values = [], []
    for _, path in part.sort_values("step").groupby("restart"):
        places = path[["pc1", "pc2"]].to_numpy()
        pieces += [places[k : k + 2] for k in range(len(places) - 1)]
        values += list(path[by].iloc[1:])
    lines = ax.add_collection(LineCollection(pieces, array=np.array(values), cmap=cmap, norm=norm, linewidths=1.2))
    last = part[part["step"] == part["step"].max()]
    style = {"cmap": cmap, "norm": norm, "edgecolors": "black", "linewidths": 0.7, "s": 36, "zorder": 3}
    ax.scatter(last["pc1"], last["pc2"], c=last[by], **style)
    ax.autoscale_view()
    ax.set(xlabel="PC 1", ylabel="PC 2", xticks=[], yticks=[])
    ax.spines[["top", "right"]].set_visible(False)
    return lines


def _mark_steps(bar: Axes, depth: int) -> None:
    bar.set_yticks(np.arange(1, depth + 1, -(-depth // 8)))
    bar.tick_params(which="both", length=0)


def _selected_scores(part: pd.DataFrame, score: str) -> pd.DataFrame:
    """Score, by breadth and depth, of the restart that is the most converged at this depth among so many."""
    by_restart = part.set_index(["restart", "step"])[score]
    chosen = pd.MultiIndex.from_arrays([part["converged"], part["step"]])
    return part.assign(selected=by_restart.reindex(chosen).to_numpy()).pivot(
        index="restart", columns="step", values="selected"
    )


def _draw_heat(ax: Axes, values: pd.DataFrame, rows: str, **colors: object) -> None:
    """Draw a matrix of restarts (or breadths) and outer steps, both counted from 1 from the lower left corner."""
    n_rows, n_columns = values.shape
    extent = (0.5, n_columns + 0.5, 0.5, n_rows + 0.5)
    image = ax.imshow(values, aspect="auto", origin="lower", extent=extent, interpolation="nearest", **colors)
    ax.set(xlabel="depth" if rows == "breadth" else "outer step", ylabel=rows)
    ax.set_xticks(np.arange(1, n_columns + 1, -(-n_columns // 8)))
    ax.set_yticks(np.arange(1, n_rows + 1, -(-n_rows // 8)))
    ax.spines[:].set_visible(False)
    add_color_bar(ax, image)


def convergence(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_id: str | Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Draw how much the states still change in each outer step, one panel per section and one line per restart.

    The restart whose last three steps changed least, which ``selection="converged"`` takes, is drawn in colour.

    Parameters
    ----------
    adata
        Spots of one or several sections. They hold the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``uns[key]["residuals"]`` is drawn.
    library_id
        Section or sections to draw, in this order; by default all.
    ax
        Axes to draw on, one per section; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, a list if there are several sections; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If the result or a section is missing.
    ValueError
        If ``ax`` does not hold one axes per section.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> st.tl.trm_domains(adata, model, library_key="section", progress=False)
    >>> axes = st.pl.convergence(adata)
    """
    adata = open_table(adata, table_key=table_key, read_only=True)
    require(adata.uns, key, where="uns", hint=made_by(key))
    require(adata.uns[key], "residuals", where=f"uns[{key!r}]", hint=made_by(key))
    table = adata.uns[key]["residuals"]
    names = _chosen_sections(table, library_id)
    if ax is None:
        axes = panel_axes([0.8] * len(names), min(len(names), MAX_COLUMNS))
    else:
        axes = given_axes(ax, len(names), "one per section")
    table = table[table["section"].isin(names)]
    for panel, name in zip(axes, names, strict=True):
        traces = table[table["section"] == name].pivot(index="step", columns="restart", values="residual")
        chosen = traces.apply(lambda trace: trace.dropna().tail(3).mean()).idxmin()
        for restart in [*traces.columns.drop(chosen), chosen]:
            color = CHOSEN if restart == chosen else OTHER
            panel.plot(traces.index, traces[restart], "o-", color=color, markersize=3, linewidth=1.2)
        panel.set_yscale("log")
        panel.set(xlabel="outer step", ylabel="residual", ylim=_limits(table["residual"]))
        panel.set_xticks(np.arange(1, len(traces) + 1, -(-len(traces) // 8)))
        panel.set_title(name if len(names) > 1 or "library_key" in adata.uns[key].get("params", {}) else "")
        panel.spines[["top", "right"]].set_visible(False)
    return finish(axes, show=show)


def _limits(residuals: pd.Series) -> tuple[float, float] | None:
    """Limits that all sections share, so that they compare."""
    positive = residuals[residuals > 0]
    return (0.8 * positive.min(), 1.25 * positive.max()) if len(positive) else None
