"""Settling steps of spots and halt steps of sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.ticker import MaxNLocator

from strecur._anndata import read_labels, require
from strecur.pl._colors import BLUE, category_colors
from strecur.pl._figure import (
    MAX_COLUMNS,
    add_legend,
    add_step_bar,
    check_axes,
    finish,
    make_maps_and_charts,
    make_panels,
    open_frame,
    percent,
    whole_ticks,
)
from strecur.pl._maps import MapFigure
from strecur.pl._results import SCORE_NAMES, choose_sections, made_by, open_result, value_by_section
from strecur.pl._scale import add_scale_bar
from strecur.pl._spots import draw_spots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

    from strecur.pl._results import ChosenSections
    from strecur.pl._spots import SectionMap

MARKERS = "os^Dv<>pP*"
FROM_TRUTH = ("ari", "accuracy", "macro_f1")


def halt_steps(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    spatial_key: str | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> list[Axes] | None:
    """Plot the settling step of every spot and the halt step of every section.

    The figure has a map of settling steps per section (the outer step after which the label of a spot no longer
    changes), their histogram over all plotted sections, and the halt step of each section.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obs[f"{key}_settling_step"]`` and ``uns[key]["sections"]`` are plotted.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to plot, in this order. If ``None`` (default), all.
    img
        Plot the tissue image behind the spots, if there is one.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts. If
        ``None`` (default), the one given to :func:`strecur.pp.to_grid`, else ``"spatial"``.
    ax
        Axes to plot on: one per section, one for the histogram, one for the halt steps. If ``None`` (default), a new
        figure.
    show
        If ``True``, show the figure and return ``None``.
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
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> axes = st.pl.halt_steps(adata)
    """
    column = f"{key}_settling_step"
    table = open_result(adata, key, table_key=table_key, obs=[column])
    maps = MapFigure.read(table, key, library_key=library_key, library_id=library_id, img=img, spatial_key=spatial_key)
    halted = _halt_steps_of_maps(table, key, maps.sections)
    settled = pd.to_numeric(table.obs[column]).to_numpy(dtype=float, na_value=np.nan)
    # steps count from 1; smaller values stand for spots without one
    settled = np.where(settled >= 1, settled, np.nan)
    steps = table.obsm.get(f"{key}_steps")
    depth = int(np.nanmax([1 if steps is None else steps.shape[1], *settled[maps.rows], *halted]))
    cmap, norm = _step_colors(depth), BoundaryNorm(np.arange(0.5, depth + 1), depth)

    n = len(maps.sections)
    if ax is None:
        axes = make_maps_and_charts([section.height for section in maps.sections], list(halted.index))
    else:
        axes = check_axes(ax, n + 2, f"{n} maps, a histogram, the halt steps")
    for panel, section in zip(axes, maps.sections, strict=False):
        mappable = draw_spots(panel, section, settled[section.rows], cmap=cmap, norm=norm)
        panel.set_title(section.caption("settling step"), fontsize="medium")
        add_scale_bar(panel, section)
    add_step_bar(axes[min(n, MAX_COLUMNS) - 1], mappable, depth, n_ticks=12)
    _draw_settling_histogram(axes[-2], settled[maps.rows], cmap)
    _draw_halt_steps(axes[-1], halted, depth)
    return finish(axes, show=show)


def _read_halt_steps(table: AnnData, key: str) -> pd.DataFrame:
    """Return the record of the sections, with their names as text, after checking that it has halt steps."""
    require(table.uns[key], "sections", where=f"uns[{key!r}]", hint=made_by(key))
    record = table.uns[key]["sections"].rename(index=str)
    require(record, "halt_step", where=f"uns[{key!r}]['sections']", hint=made_by(key))
    return record


def _halt_steps_of_maps(table: AnnData, key: str, maps: Sequence[SectionMap]) -> pd.Series:
    require(table.uns, key, where="uns", hint=made_by(key))
    halted = _read_halt_steps(table, key)["halt_step"].astype(float)
    if not maps[0].title:
        return halted
    unknown = [section.title for section in maps if section.title not in halted.index]
    if unknown:
        msg = f"sections {unknown} are not in adata.uns[{key!r}]['sections']; there are {list(halted.index)}. "
        raise KeyError(msg + made_by(key))
    return halted[[section.title for section in maps]]


def _step_colors(depth: int) -> Colormap:
    """Return one colour per step, from light to dark, so that the last spots to settle stand out."""
    return ListedColormap(colormaps["viridis_r"](np.linspace(0, 1, max(depth, 2)))[:depth])


def _draw_settling_histogram(ax: Axes, settled: np.ndarray, cmap: Colormap) -> None:
    steps = np.arange(1, cmap.N + 1)
    known = settled[~np.isnan(settled)]
    share = [np.mean(known == step) if known.size else 0.0 for step in steps]
    ax.bar(steps, share, width=0.85, color=cmap(steps - 1), edgecolor="0.3", linewidth=0.5)
    ax.yaxis.set_major_formatter(percent)
    ax.set(xlabel="settling step", ylabel="share of spots", xlim=(0.4, cmap.N + 0.6))
    ax.set_xticks(whole_ticks(cmap.N))
    open_frame(ax)


def _draw_halt_steps(ax: Axes, halted: pd.Series, depth: int) -> None:
    position = np.arange(len(halted))
    ax.hlines(position, 0, halted, color="0.75", linewidth=1.5)
    ax.plot(halted, position, "o", color=BLUE, clip_on=False)
    ax.set(xlabel="halt step", xlim=(0, depth + 0.6), ylim=(len(halted) - 0.4, -0.6))
    ax.set_yticks(position, halted.index)
    ax.set_xticks(whole_ticks(depth))
    open_frame(ax)


def halt_summary(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    score: str = "mean_confidence",
    truth: str | None = None,
    color: str | None = None,
    split: str | None = None,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> list[Axes] | None:
    """Plot the distribution of halt steps over sections, and a score of each section against its halt step.

    The title of the second panel is their rank correlation. See Figs. 4, 11 and 12 of the spatial TRM
    :cite:p:`spatialtrm`.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``uns[key]["sections"]`` is plotted.
    score
        Column of ``uns[key]["sections"]``; or ``"ari"``, ``"accuracy"`` or ``"macro_f1"`` of the prediction against
        ``truth``.
    truth
        Column of ``obs`` with annotated domains.
    color
        Column of ``obs`` that is constant in each section, such as the patient, for the colours of sections.
    split
        Column of ``obs`` that is constant in each section, such as ``"training"`` or ``"test"``, for their markers.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to plot. If ``None`` (default), all.
    ax
        Axes to plot on: halt steps, score. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes: halt steps, score; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a result, a column or a section is missing.
    ValueError
        If a column is not constant in each section, the model cannot halt, or ``ax`` does not hold two axes.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> axes = st.pl.halt_summary(adata, score="ari", truth="domain")
    """
    table = open_result(adata, key, table_key=table_key, uns=[key])
    chosen = choose_sections(table, key, library_key=library_key, library_id=library_id)
    record = _read_halt_steps(table, key)
    halted = record["halt_step"].reindex(chosen.names).astype(float)
    if halted.isna().all():
        msg = f"no halt step in adata.uns[{key!r}]['sections']; the model was trained without halting"
        raise ValueError(msg)
    if score in FROM_TRUTH and score not in record:
        values = _score_sections(table, key, chosen, truth, score)
    else:
        require(record, score, where=f"uns[{key!r}]['sections']", hint=f"{list(FROM_TRUTH)} need truth=...")
        values = record[score].reindex(chosen.names).astype(float)
    groups, marks = value_by_section(table, chosen, color), value_by_section(table, chosen, split)
    colors = {"": BLUE} if color is None else category_colors(table, color, sorted(groups.unique()))

    legend = [*colors, *(marks.unique() if split else [])] if color or split else []
    axes = make_panels(ax, [0.85, 0.85], 2, contents="halt steps, score", legend=legend)
    _draw_halt_histogram(axes[0], halted, groups, colors)
    sections = pd.DataFrame({"halted": halted, "score": values, "mark": marks, "color": groups.map(colors)})
    _draw_scores(axes[1], sections)
    axes[1].set_ylabel(SCORE_NAMES.get(score, score.replace("_", " ")))
    if color:
        add_legend(axes, colors, own_figure=ax is None)
    return finish(axes, show=show)


def _score_sections(table: AnnData, key: str, chosen: ChosenSections, truth: str | None, score: str) -> pd.Series:
    """Return a score of the prediction against the annotation for each section."""
    from strecur.metrics import domain_scores

    if truth is None:
        msg = f"score={score!r} compares with an annotation; name its column of obs with truth=..."
        raise ValueError(msg)
    require(table.obs, key, where="obs", hint=made_by(key))
    truths, answers = read_labels(table, truth).to_numpy(), read_labels(table, key).to_numpy()
    return pd.Series({name: domain_scores(truths[r], answers[r])[score] for name, r in chosen.rows.items()})


def _draw_halt_histogram(ax: Axes, halted: pd.Series, groups: pd.Series, colors: dict[str, str]) -> None:
    steps = np.arange(1, int(halted.max()) + 1)
    below = np.zeros(len(steps))
    for group, color in colors.items():
        count = np.array([np.sum(halted[groups == group] == step) for step in steps])
        ax.bar(steps, count, bottom=below, width=0.85, color=color)
        below += count
    ax.set(xlabel="halt step", ylabel="sections", xlim=(0.4, steps[-1] + 0.6))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    open_frame(ax)


def _draw_scores(ax: Axes, sections: pd.DataFrame) -> None:
    """Draw a point per section, with columns ``halted``, ``score``, ``mark`` and ``color``."""
    for i, mark in enumerate(sorted(sections["mark"].unique())):
        part = sections[sections["mark"] == mark]
        marker = MARKERS[i % len(MARKERS)]
        style: dict[str, Any] = {"marker": marker, "edgecolors": "white", "linewidths": 0.5, "s": 45}
        ax.scatter(part["halted"], part["score"], c=list(part["color"]), **style)
        # for the legend, in grey, since the colours of the sections differ
        ax.scatter([], [], color="0.4", label=mark, **style)
    if sections["mark"].any():
        ax.legend(frameon=False, fontsize="small")
    if sections["halted"].nunique() > 1 and sections["score"].nunique() > 1:
        correlation = sections["halted"].corr(sections["score"], method="spearman")
        ax.set_title(f"rank correlation {correlation:.2f}", fontsize="medium")
    ax.set(xlabel="halt step", xlim=(0.4, sections["halted"].max() + 0.6))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    open_frame(ax)
