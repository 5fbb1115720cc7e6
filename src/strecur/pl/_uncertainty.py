"""Figures of whether a model knows what it knows, and when it stops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator, PercentFormatter

from strecur._anndata import open_table, read_labels, require
from strecur._arguments import check_whole
from strecur.pl._colors import category_colors, read_categories
from strecur.pl._figure import add_legend, finish, given_axes, panel_axes
from strecur.pl._maps import choose_sections, made_by

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from strecur._anndata import Sections

POINT, WANTED = "#0072B2", "#D55E00"
MARKERS = "os^Dv<>pP*"
FROM_TRUTH = ("ari", "accuracy", "macro_f1")


def reliability(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    truth: str,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    n_bins: int = 15,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Draw whether probabilities and label sets can be taken at their word, over all annotated spots of some sections.

    The accuracy of spots of like confidence (points, of an area that grows with their number) lies on the diagonal if
    the confidence is honest; bars show how many spots are how sure. If label sets were written, the second panel shows
    how large they are and how many of each size hold the annotated domain.

    Parameters
    ----------
    adata
        Spots of one or several sections. They hold the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obsm[f"{key}_proba"]`` is drawn, and ``obsm[f"{key}_set"]`` if it is there.
    truth
        Column of ``obs`` with annotated domains.
    library_key
        Column of ``obs`` that tells sections apart; by default the one the prediction was made with.
    library_id
        Section or sections to take; by default all.
    n_bins
        Bins of confidence, of equal width.
    ax
        Axes to draw on: confidence and, if there are label sets, these; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, a list if there are two; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a result, a column or a section is missing.
    ValueError
        If no spot is annotated, or ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> st.tl.trm_domains(adata, model, library_key="section", progress=False)
    >>> ax = st.pl.reliability(adata, truth="domain")
    """
    check_whole("n_bins", n_bins)
    table = open_table(adata, table_key=table_key, read_only=True)
    require(table.obsm, f"{key}_proba", where="obsm", hint=made_by(key))
    require(table.uns, key, where="uns", hint=made_by(key))
    sections, wanted = choose_sections(table, key, library_key=library_key, library_id=library_id)
    truths = read_labels(table, truth)
    rows = np.concatenate([sections.rows(name) for name in wanted])
    rows = rows[truths.notna().to_numpy()[rows]]
    if not len(rows):
        msg = f"no spot of the sections {list(wanted)} is annotated in adata.obs[{truth!r}]"
        raise ValueError(msg)
    labels = [str(name) for name in table.uns[key].get("categories", read_categories(table.obs[key]))]
    right = truths.to_numpy()[rows][:, None] == np.array(labels, dtype=object)
    proba = np.asarray(table.obsm[f"{key}_proba"])[rows]
    sets = np.asarray(table.obsm[f"{key}_set"])[rows] if f"{key}_set" in table.obsm else None
    n_panels = 1 if sets is None else 2
    axes = panel_axes([0.9] * n_panels, n_panels) if ax is None else given_axes(ax, n_panels, "confidence, label sets")
    _draw_reliability(axes[0], proba, right, n_bins)
    if sets is not None:
        _draw_sets(axes[1], sets, right, table.uns[key].get("params", {}).get("coverage"))
    return finish(axes, show=show)


def _draw_reliability(ax: Axes, proba: np.ndarray, right: np.ndarray, n_bins: int) -> None:
    confidence = proba.max(axis=1)
    correct = right[np.arange(len(right)), proba.argmax(axis=1)]
    place = np.clip((confidence * n_bins).astype(int), 0, n_bins - 1)
    bins = pd.DataFrame({"confidence": confidence, "correct": correct}).groupby(place).agg(["mean", "size"])
    share = bins["confidence"]["size"] / len(proba)
    ax.bar((bins.index + 0.5) / n_bins, share, width=1 / n_bins, color="0.88", label="share of spots")
    ax.plot([0, 1], [0, 1], color="0.5", linestyle=":", linewidth=1)
    means, accuracies = bins["confidence"]["mean"], bins["correct"]["mean"]
    ax.plot(means, accuracies, color=POINT, linewidth=1)
    ax.scatter(means, accuracies, s=10 + 150 * share, color=POINT, zorder=3, label="accuracy")
    error = (share * (accuracies - means).abs()).sum()
    ax.set_title(f"calibration error {error:.3f}", fontsize="medium")
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left", fontsize="small")


def _draw_sets(ax: Axes, sets: np.ndarray, right: np.ndarray, coverage: float | None) -> None:
    covered = (sets & right).any(axis=1)
    by_size = pd.Series(covered).groupby(sets.sum(axis=1)).agg(["sum", "size"]) / len(sets)
    hit, all_spots = by_size["sum"], by_size["size"]
    ax.bar(by_size.index, hit, color=POINT, label="annotated domain in the set")
    ax.bar(by_size.index, all_spots - hit, bottom=hit, color=WANTED, label="not in the set")
    wanted = "" if coverage is None else f" ({coverage:.0%} wanted)"
    ax.set_title(f"{covered.mean():.1%} covered{wanted}", fontsize="medium")
    ax.set_xlabel(f"domains in the set ({sets.sum(axis=1).mean():.1f} on average)")
    ax.set(ylabel="share of spots", ylim=(0, 1.25 * all_spots.max()))
    ax.set_xlim(0.4, sets.shape[1] + 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper right", fontsize="small")


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
    """Draw when sections halt, and whether those that think longer do better or worse (TRM paper, Figs. 4, 11 and 12).

    The number of sections by halt step, and a score of each section against its halt step, with their rank correlation.

    Parameters
    ----------
    adata
        Spots of one or several sections. They hold the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``uns[key]["sections"]`` is drawn.
    score
        Column of ``uns[key]["sections"]``; or ``"ari"``, ``"accuracy"`` or ``"macro_f1"`` of the prediction against
        ``truth``.
    truth
        Column of ``obs`` with annotated domains.
    color
        Column of ``obs`` that is constant in each section, such as its patient, to colour sections by.
    split
        Column of ``obs`` that is constant in each section, such as ``"training"`` or ``"test"``, to mark sections by.
    library_key
        Column of ``obs`` that tells sections apart; by default the one the prediction was made with.
    library_id
        Section or sections to draw; by default all.
    ax
        Axes to draw on: halt steps, score; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.
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
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> st.tl.trm_domains(adata, model, library_key="section", progress=False)
    >>> axes = st.pl.halt_summary(adata, score="ari", truth="domain")
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    require(table.uns, key, where="uns", hint=made_by(key))
    sections, wanted = choose_sections(table, key, library_key=library_key, library_id=library_id)
    record = table.uns[key]["sections"].rename(index=str)
    require(record, "halt_step", where=f"uns[{key!r}]['sections']", hint=made_by(key))
    halted = record["halt_step"].reindex(wanted).astype(float)
    if halted.isna().all():
        msg = f"no halt step in adata.uns[{key!r}]['sections']; the model was trained without halting"
        raise ValueError(msg)
    if score in FROM_TRUTH and score not in record:
        values = _scores(table, key, sections, list(wanted), truth, score)
    else:
        require(record, score, where=f"uns[{key!r}]['sections']", hint=f"{list(FROM_TRUTH)} need truth=...")
        values = record[score].reindex(wanted).astype(float)
    groups = _by_section(table, sections, list(wanted), color)
    marks = _by_section(table, sections, list(wanted), split)
    colors = {"": POINT} if color is None else category_colors(table, color, sorted(groups.unique()))

    legend = [*colors, *(marks.unique() if split else [])] if color or split else []
    axes = panel_axes([0.85, 0.85], 2, legend=legend) if ax is None else given_axes(ax, 2, "halt steps, score")
    _draw_halt_histogram(axes[0], halted, groups, colors)
    _draw_halt_scores(axes[1], halted, values, groups, marks, colors)
    axes[1].set_ylabel({"ari": "ARI", "macro_f1": "macro F1"}.get(score, score.replace("_", " ")))
    if color:
        add_legend(axes, colors, unlabelled=False, own_figure=ax is None)
    return finish(axes, show=show)


def _scores(
    table: AnnData, key: str, sections: Sections, names: Sequence[str], truth: str | None, score: str
) -> pd.Series:
    from strecur.metrics import domain_scores

    if truth is None:
        msg = f"score={score!r} compares with an annotation; name its column of obs with truth=..."
        raise ValueError(msg)
    require(table.obs, key, where="obs", hint=made_by(key))
    truths, answers = read_labels(table, truth).to_numpy(), read_labels(table, key).to_numpy()
    rows = {name: sections.rows(name) for name in names}
    return pd.Series({name: domain_scores(truths[r], answers[r])[score] for name, r in rows.items()})


def _by_section(table: AnnData, sections: Sections, names: Sequence[str], column: str | None) -> pd.Series:
    """Return what a column says of each section; "" without a column."""
    if column is None:
        return pd.Series("", index=names)
    require(table.obs, column, where="obs", hint="name a column that is constant in each section")
    found = {name: table.obs[column].iloc[sections.rows(name)].astype(str).unique() for name in names}
    several = [name for name, values in found.items() if len(values) > 1]
    if several:
        msg = f"adata.obs[{column!r}] differs within the sections {several}; it must be constant in each section"
        raise ValueError(msg)
    return pd.Series({name: values[0] for name, values in found.items()})


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
    ax.spines[["top", "right"]].set_visible(False)


def _draw_halt_scores(
    ax: Axes, halted: pd.Series, values: pd.Series, groups: pd.Series, marks: pd.Series, colors: dict[str, str]
) -> None:
    for i, mark in enumerate(sorted(marks.unique())):
        chosen = marks.index[marks == mark]
        style = {"marker": MARKERS[i % len(MARKERS)], "edgecolors": "white", "linewidths": 0.5, "s": 45}
        ax.scatter(halted[chosen], values[chosen], c=[colors[group] for group in groups[chosen]], **style)
        # the colours of a kind of section differ
        ax.scatter([], [], color="0.4", label=mark, **style)
    if marks.any():
        ax.legend(frameon=False, fontsize="small")
    if halted.nunique() > 1 and values.nunique() > 1:
        ax.set_title(f"rank correlation {halted.corr(values, method='spearman'):.2f}", fontsize="medium")
    ax.set(xlabel="halt step", xlim=(0.4, halted.max() + 0.6))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    ax.spines[["top", "right"]].set_visible(False)
