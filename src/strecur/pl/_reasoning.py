"""Figures of how a recursive model arrives at its answer and how sure it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

from strecur._anndata import open_table, read_labels, require, write
from strecur._arguments import check_share
from strecur.pl._colors import category_colors, missing_colors, read_categories
from strecur.pl._figure import (
    MAX_COLUMNS,
    add_color_bar,
    add_legend,
    finish,
    given_axes,
    map_and_chart_axes,
    panel_axes,
)
from strecur.pl._maps import draw_categories, draw_spots, made_by, panel_title, read_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

    from strecur.pl._maps import SectionMap

RIGHT, WRONG = "#0072B2", "#D55E00"


def refinement(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    alpha: float = 1.0,
    spatial_key: str = "spatial",
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Draw the map of domains after each outer step, one row per section (TRM paper, Fig. 2).

    Below each map stands the share of spots whose label changed since the step before. The last step is the result; if
    ``obs[key]`` differs from it (because answers were combined afterwards), it follows as a panel of its own.

    Parameters
    ----------
    adata
        Spots of one or several sections. They hold the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obsm[f"{key}_steps"]`` is drawn.
    library_key
        Column of ``obs`` that tells sections apart; by default the one the prediction was made with.
    library_id
        Section or sections to draw, in this order; by default all.
    img
        Draw the tissue image behind the spots where there is one.
    alpha
        Opacity of the spots, between 0 and 1.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts.
    ax
        Axes to draw on, one per panel in reading order; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, a list if there are several panels; ``None`` with ``show=True``.

    Adds ``uns[f"{key}_colors"]`` (list of hex colours in the order of the categories) if it is absent.

    Raises
    ------
    KeyError
        If a result, a section or the lattice is missing.
    ValueError
        If ``ax`` does not hold one axes per panel, or categories were dropped since the steps were written.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> st.tl.trm_domains(adata, model, library_key="section", progress=False)
    >>> axes = st.pl.refinement(adata, library_id="S1")
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    check_share("alpha", alpha)
    require(table.obs, key, where="obs", hint=made_by(key))
    require(table.obsm, f"{key}_steps", where="obsm", hint=made_by(key))
    maps = read_maps(table, key, library_key=library_key, library_id=library_id, img=img, spatial_key=spatial_key)
    names = _step_names(table, key)
    steps = np.asarray(table.obsm[f"{key}_steps"])
    lookup = np.array([*names, None], dtype=object)
    # code -1 (no answer) takes the None at the end
    answers = [lookup[steps[:, k]] for k in range(steps.shape[1])]
    titles = [f"step {k + 1}" for k in range(len(answers))]
    final = read_labels(table, key).to_numpy()
    drawn = np.concatenate([section.rows for section in maps])
    if np.array_equal(final[drawn], answers[-1][drawn]):
        titles[-1] += " (final)"
    else:
        answers, titles = [*answers, final], [*titles, "final"]
    colors = category_colors(table, key, names)
    unlabelled = any(None in answer[drawn] for answer in answers)

    heights = [section.height for section in maps for _ in answers]
    if ax is None:
        axes = panel_axes(heights, len(answers), legend=[*names, *(["unlabelled"] if unlabelled else [])])
    else:
        axes = given_axes(ax, len(heights), f"{len(maps)} sections × {len(answers)} steps")
    panels = iter(axes)
    for section in maps:
        for k, answer in enumerate(answers):
            panel = next(panels)
            if k == 0 and section.title:
                # one line above the step, free to be as long as the row
                panel.set_title(f"{section.title}\n", loc="left", fontsize="medium")
            draw_categories(panel, section, answer[section.rows], colors, alpha=alpha)
            panel.set_title(titles[k], fontsize="medium")
            if k > 0:
                share = np.mean(answer[section.rows] != answers[k - 1][section.rows])
                panel.set_xlabel(f"{share:.1%} changed")
    add_legend(axes, colors, unlabelled=unlabelled, own_figure=ax is None)
    write(table, uns=missing_colors(table, key, colors))
    return finish(axes, show=show)


def _step_names(table: AnnData, key: str) -> list[str]:
    """Return the labels that the codes in ``obsm[f"{key}_steps"]`` stand for."""
    record = table.uns.get(key, {})
    names = [str(name) for name in record.get("categories", read_categories(table.obs[key]))]
    proba = table.obsm.get(f"{key}_proba")
    n_labels = int(np.max(table.obsm[f"{key}_steps"])) + 1 if proba is None else proba.shape[1]
    if n_labels > len(names):
        # AnnData drops unused categories when it is subset
        msg = (
            f"obsm[{f'{key}_steps'!r}] refers to {n_labels} labels but obs[{key!r}] has {len(names)} categories, as "
            "after taking a subset; use the whole object and choose sections with library_id"
        )
        raise ValueError(msg)
    return names


def halt_steps(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    spatial_key: str = "spatial",
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> list[Axes] | None:
    """Draw when spots settled on their answer and when sections halted.

    A map of settling steps per section (the outer step after which a spot's label no longer changes), their histogram
    over all sections drawn, and the halt step of each section.

    Parameters
    ----------
    adata
        Spots of one or several sections. They hold the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obs[f"{key}_settling_step"]`` and ``uns[key]["sections"]`` are drawn.
    library_key
        Column of ``obs`` that tells sections apart; by default the one the prediction was made with.
    library_id
        Section or sections to draw, in this order; by default all.
    img
        Draw the tissue image behind the spots where there is one.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts.
    ax
        Axes to draw on: one per section, one for the histogram, one for the halt steps; by default a new figure is
        made.
    show
        ``True`` shows the figure and returns nothing.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes: the maps, the histogram, the halt steps; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a result, a section or the lattice is missing.
    ValueError
        If ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> st.tl.trm_domains(adata, model, library_key="section", progress=False)
    >>> axes = st.pl.halt_steps(adata)
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    column = f"{key}_settling_step"
    require(table.obs, column, where="obs", hint=made_by(key))
    maps = read_maps(table, key, library_key=library_key, library_id=library_id, img=img, spatial_key=spatial_key)
    halted = _halt_steps(table, key, maps)
    settled = pd.to_numeric(table.obs[column]).to_numpy(dtype=float, na_value=np.nan)
    # steps count from 1; anything below means that the spot has none
    settled = np.where(settled >= 1, settled, np.nan)
    drawn = np.concatenate([settled[section.rows] for section in maps])
    steps = table.obsm.get(f"{key}_steps")
    depth = int(np.nanmax([1 if steps is None else steps.shape[1], *drawn, *halted]))
    cmap = _step_colors(depth)
    norm = BoundaryNorm(np.arange(0.5, depth + 1), depth)

    if ax is None:
        axes = map_and_chart_axes([section.height for section in maps], list(halted.index))
    else:
        axes = given_axes(ax, len(maps) + 2, f"{len(maps)} maps, a histogram, the halt steps")
    for panel, section in zip(axes, maps, strict=False):
        mappable = draw_spots(panel, section, settled[section.rows], cmap=cmap, norm=norm)
        panel.set_title(panel_title(section, "settling step"), fontsize="medium")
    bar = add_color_bar(axes[min(len(maps), MAX_COLUMNS) - 1], mappable)
    bar.set_yticks(np.arange(1, depth + 1, -(-depth // 12)))
    bar.tick_params(which="both", length=0)
    _draw_histogram(axes[-2], drawn, cmap)
    _draw_halt_steps(axes[-1], halted, depth)
    return finish(axes, show=show)


def _halt_steps(table: AnnData, key: str, maps: Sequence[SectionMap]) -> pd.Series:
    require(table.uns, key, where="uns", hint=made_by(key))
    require(table.uns[key], "sections", where=f"uns[{key!r}]", hint=made_by(key))
    sections = table.uns[key]["sections"]
    require(sections, "halt_step", where=f"uns[{key!r}]['sections']", hint=made_by(key))
    halted = sections["halt_step"].rename(index=str).astype(float)
    if not maps[0].title:
        return halted
    unknown = [section.title for section in maps if section.title not in halted.index]
    if unknown:
        msg = f"sections {unknown} are not in adata.uns[{key!r}]['sections']; there are {list(halted.index)}. "
        raise KeyError(msg + made_by(key))
    return halted[[section.title for section in maps]]


def _step_colors(depth: int) -> Colormap:
    """One colour per step: early steps light, late ones dark, so that the last spots to settle stand out."""
    return ListedColormap(colormaps["viridis_r"](np.linspace(0, 1, max(depth, 2)))[:depth])


def _draw_histogram(ax: Axes, settled: np.ndarray, cmap: Colormap) -> None:
    steps = np.arange(1, cmap.N + 1)
    known = settled[~np.isnan(settled)]
    share = [np.mean(known == step) if known.size else 0.0 for step in steps]
    ax.bar(steps, share, width=0.85, color=cmap(steps - 1), edgecolor="0.3", linewidth=0.5)
    ax.yaxis.set_major_formatter(_percent)
    ax.set(xlabel="settling step", ylabel="share of spots", xlim=(0.4, cmap.N + 0.6))
    _finish_step_chart(ax, cmap.N)


def _draw_halt_steps(ax: Axes, halted: pd.Series, depth: int) -> None:
    position = np.arange(len(halted))
    ax.hlines(position, 0, halted, color="0.75", linewidth=1.5)
    ax.plot(halted, position, "o", color=RIGHT, clip_on=False)
    ax.set(xlabel="halt step", xlim=(0, depth + 0.6), ylim=(len(halted) - 0.4, -0.6))
    ax.set_yticks(position, halted.index)
    _finish_step_chart(ax, depth)


def _percent(share: float, _position: int) -> str:
    return f"{100 * share:.3g}%"


def _finish_step_chart(ax: Axes, depth: int) -> None:
    ax.set_xticks(np.arange(1, depth + 1, -(-depth // 8)))
    ax.spines[["top", "right"]].set_visible(False)


def confidence(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    truth: str | None = None,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    spatial_key: str = "spatial",
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Draw the confidence of every spot, one row per section, and whether it tells right from wrong.

    Parameters
    ----------
    adata
        Spots of one or several sections. They hold the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obs[f"{key}_confidence"]`` is drawn, on a scale from 0 to 1.
    truth
        Column of ``obs`` with annotated domains. If given, the distributions of confidence in right and in wrong spots
        are drawn beside each map; spots without annotation are left out of them.
    library_key
        Column of ``obs`` that tells sections apart; by default the one the prediction was made with.
    library_id
        Section or sections to draw, in this order; by default all.
    img
        Draw the tissue image behind the spots where there is one.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts.
    ax
        Axes to draw on, one per panel in reading order; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, a list if there are several panels; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a result, a section or the lattice is missing.
    ValueError
        If ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> st.tl.trm_domains(adata, model, library_key="section", progress=False)
    >>> axes = st.pl.confidence(adata, truth="domain")
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    column = f"{key}_confidence"
    require(table.obs, column, where="obs", hint=made_by(key))
    maps = read_maps(table, key, library_key=library_key, library_id=library_id, img=img, spatial_key=spatial_key)
    values = table.obs[column].to_numpy(dtype=float, na_value=np.nan)
    if truth is not None:
        require(table.obs, key, where="obs", hint=made_by(key))
        truths, answers = read_labels(table, truth).to_numpy(), read_labels(table, key).to_numpy()

    per_section = 1 if truth is None else 2
    heights = [section.height for section in maps for _ in range(per_section)]
    if ax is None:
        axes = panel_axes(heights, per_section if per_section > 1 else min(len(maps), MAX_COLUMNS), margin=0.8)
    else:
        axes = given_axes(ax, len(heights), f"{len(maps)} sections × {per_section}")
    map_axes = axes[::per_section]
    for i, section in enumerate(maps):
        mappable = draw_spots(
            map_axes[i], section, values[section.rows], cmap=colormaps["viridis"], norm=Normalize(0, 1)
        )
        map_axes[i].set_title(panel_title(section, "confidence"), fontsize="medium")
        if truth is not None:
            rows = section.rows
            _draw_distributions(axes[2 * i + 1], values[rows], truths[rows], answers[rows])
    # one scale for all: beside the first row of maps, or between every map and its chart
    for panel in [map_axes[min(len(maps), MAX_COLUMNS) - 1]] if truth is None else map_axes:
        # a chart beside it needs the room of the label, which the title gives too
        add_color_bar(panel, mappable, "confidence" if truth is None else "")
    return finish(axes, show=show)


def _draw_distributions(ax: Axes, values: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> None:
    compared = ~(pd.isna(truth) | pd.isna(answer) | np.isnan(values))
    for name, color, spots in (
        ("right", RIGHT, compared & (truth == answer)),
        ("wrong", WRONG, compared & (truth != answer)),
    ):
        n = int(spots.sum())
        weights = np.full(n, 1 / max(n, 1))
        bins = np.linspace(0, 1, 26)
        style = {"histtype": "stepfilled", "facecolor": (color, 0.35), "edgecolor": color, "linewidth": 1.2}
        ax.hist(values[spots], bins=bins, weights=weights, label=f"{name} ({n:,} spots)", **style)
    ax.yaxis.set_major_formatter(_percent)
    ax.set(xlabel="confidence", ylabel="share of spots", xlim=(0, 1))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize="small")
