"""Answers and residuals step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from strecur._anndata import read_labels, require, write
from strecur._arguments import check_share
from strecur.pl._colors import BLUE, category_colors, legend_colors, missing_colors
from strecur.pl._figure import MAX_COLUMNS, add_legend, finish, make_panels, one_or_all, open_frame, whole_ticks
from strecur.pl._maps import MapFigure
from strecur.pl._results import choose_table_sections, made_by, open_result, read_answer_labels
from strecur.pl._spots import draw_categories, mark_spots

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


CHANGED = "label changed"


def refinement(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    alpha: float = 1.0,
    spatial_key: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot the map of domains after each outer step, in a grid per section.

    A ring marks every spot whose label changed since the previous step, and their share is written below each map, as
    in Fig. 2 of the spatial TRM :cite:p:`spatialtrm`. The last step is usually the result. If ``obs[key]`` differs from
    it, because answers were combined afterwards, the result is an additional panel.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obsm[f"{key}_steps"]`` is plotted.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to plot, in this order. If ``None`` (default), all.
    img
        Plot the tissue image, if there is one, in a panel of its own before the steps of a section.
    alpha
        Opacity of the spots, between 0 and 1.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts. If
        ``None`` (default), the one given to :func:`strecur.pp.to_grid`, else ``"spatial"``.
    ax
        Axes to plot on, one per panel in reading order. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, as a list if there are several panels; ``None`` with ``show=True``.

    Adds ``uns[f"{key}_colors"]`` (hex colours in the order of the categories) if it is absent.

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
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> axes = st.pl.refinement(adata, library_id="S1")
    """
    check_share("alpha", alpha)
    table = open_result(adata, key, table_key=table_key, obs=[key], obsm=[f"{key}_steps"])
    place: dict[str, Any] = {"library_key": library_key, "library_id": library_id, "spatial_key": spatial_key}
    maps = MapFigure.read(table, key, **place, img=img, beside=True)
    names = _step_labels(table, key)
    answers = _answers(table, key, names, maps.rows)
    colors = category_colors(table, key, names)
    legend = legend_colors(colors, unlabelled=any(None in answer[maps.rows] for answer in answers.values()))
    axes = maps.panels(ax, len(answers), "steps", wrap=True, legend=[*legend, CHANGED])
    for section, panels in maps.with_panels(axes):
        if section.title and section.tissue is None:
            # in a line above the step, where it may be as long as the row
            panels[0].set_title(f"{section.title}\n", loc="left", fontsize="medium")
        before = None
        for panel, (title, answer) in zip(panels, answers.items(), strict=True):
            now = answer[section.rows]
            draw_categories(panel, section, now, colors, alpha=alpha)
            panel.set_title(title, fontsize="medium")
            if before is not None:
                changed = now != before
                mark_spots(panel, section, changed)
                panel.set_xlabel(f"{changed.mean():.1%} changed")
            before = now
    add_legend(axes, legend, ring=CHANGED, own_figure=ax is None)
    write(table, uns=missing_colors(table, key, colors))
    return finish(one_or_all(axes), show=show)


def _step_labels(table: AnnData, key: str) -> list[str]:
    """Return the labels of the codes in ``obsm[f"{key}_steps"]``."""
    names = read_answer_labels(table, key)
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


def _answers(table: AnnData, key: str, names: list[str], drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Return the label of every spot after each step, and the result if it differs in the spots ``drawn``."""
    steps = np.asarray(table.obsm[f"{key}_steps"])
    # code -1 (no answer) takes the None at the end
    lookup = np.array([*names, None], dtype=object)
    answers = {f"step {k + 1}": lookup[steps[:, k]] for k in range(steps.shape[1])}
    final = read_labels(table, key).to_numpy()
    name, last = answers.popitem()
    if np.array_equal(final[drawn], last[drawn]):
        return answers | {f"{name} (final)": last}
    return answers | {name: last, "final": final}


def convergence(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_id: str | Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot the residual (relative change of the states) by outer step, one panel per section, one line per restart.

    The restart with the smallest mean residual over its last three steps, which ``selection="converged"`` takes, is
    blue.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``uns[key]["residuals"]`` is plotted.
    library_id
        Section or sections to plot, in this order. If ``None`` (default), all.
    ax
        Axes to plot on, one per section. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, as a list if there are several sections; ``None`` with ``show=True``.

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
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> axes = st.pl.convergence(adata)
    """
    record = open_result(adata, key, table_key=table_key, uns=[key]).uns[key]
    require(record, "residuals", where=f"uns[{key!r}]", hint=made_by(key))
    table, names = choose_table_sections(record["residuals"], library_id)
    titled = len(names) > 1 or "library_key" in record.get("params", {})
    axes = make_panels(ax, [0.8] * len(names), min(len(names), MAX_COLUMNS), contents="one per section")
    for panel, name in zip(axes, names, strict=True):
        traces = table[table["section"] == name].pivot(index="step", columns="restart", values="residual")
        chosen = traces.apply(lambda trace: trace.dropna().tail(3).mean()).idxmin()
        for restart in [*traces.columns.drop(chosen), chosen]:
            color = BLUE if restart == chosen else "0.75"
            panel.plot(traces.index, traces[restart], "o-", color=color, markersize=3, linewidth=1.2)
        panel.set_yscale("log")
        panel.set(xlabel="outer step", ylabel="residual", ylim=_shared_limits(table["residual"]))
        panel.set_xticks(whole_ticks(len(traces)))
        panel.set_title(name if titled else "")
        open_frame(panel)
    return finish(one_or_all(axes), show=show)


def _shared_limits(residuals: pd.Series) -> tuple[float, float] | None:
    """Return limits that make the panels of all sections comparable."""
    positive = residuals[residuals > 0]
    return (0.8 * positive.min(), 1.25 * positive.max()) if len(positive) else None
