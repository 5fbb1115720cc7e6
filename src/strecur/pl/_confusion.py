"""Which domains are taken for which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.ticker import PercentFormatter

from strecur._anndata import read_labels
from strecur._labels import read_categories
from strecur.pl._colors import RED
from strecur.pl._figure import MAX_WIDTH, add_color_bar, finish, make_panels, one_or_all
from strecur.pl._results import choose_sections, open_result, read_answer_labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

CELL = 0.46  # inches, for two lines of text
MAX_IN_ROW = 3  # panels
FAINT = 0.005  # shares below this are left without text
WHITE_FROM = 0.55  # shares from here on have white text


def confusion(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    truth: str,
    by_section: bool = False,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot which annotated domains are predicted as which.

    Each row is an annotated domain and each column a predicted one. The colour and the percentage of a cell are its
    share of the row, so that rows sum to 100 % and the diagonal is the recall of each domain; the number of spots is
    below, except in cells with less than 0.5 %. Annotated domains that the model does not know are additional rows with
    orange names, and domains that are never predicted have grey names. Spots without annotation or without prediction
    are left out.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.trm_domains`.
    key
        Column of ``obs`` with the predicted domains: ``key_added`` of that call, or another prediction such as
        ``"trm_domains_linear"``.
    truth
        Column of ``obs`` with annotated domains.
    by_section
        Plot a panel for each section. If ``False`` (default), the spots of all sections are counted together.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to count. If ``None`` (default), all.
    ax
        Axes to plot on, one per panel. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, as a list if there are several panels; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a column or a section is missing.
    ValueError
        If a panel has no spot with annotation and prediction, or ``ax`` does not hold one axes per panel.

    See Also
    --------
    strecur.metrics.confusion_table, strecur.metrics.scores_by_domain

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> ax = st.pl.confusion(adata, truth="domain")
    """
    table = open_result(adata, key, table_key=table_key, obs=[key])
    chosen = choose_sections(table, key, library_key=library_key, library_id=library_id)
    pooled = chosen.titles[chosen.names[0]] if len(chosen.names) == 1 else f"{len(chosen.names)} sections"
    parts = chosen.rows if by_section else {pooled: np.concatenate([*chosen.rows.values()])}
    counts = _count(table, key, truth, parts)
    n_rows, n_columns = np.max([part.shape for part in counts.values()], axis=0)
    in_row = min(len(counts), MAX_IN_ROW, max(int(MAX_WIDTH / (CELL * n_columns + 1)), 1))
    heights = [n_rows / n_columns] * len(counts)
    axes = make_panels(ax, heights, in_row, contents="one per section", margin=0.8, largest=CELL * n_columns + 1)
    for panel, (title, part) in zip(axes, counts.items(), strict=True):
        _draw_counts(panel, part, key, truth)
        panel.set_title(title if chosen.titles[chosen.names[0]] else "", fontsize="medium")
    bar = add_color_bar(axes[min(len(axes), in_row) - 1], axes[0].images[0], "share of the annotated domain")
    bar.yaxis.set_major_formatter(PercentFormatter(1))
    return finish(one_or_all(axes), show=show)


def _count(table: AnnData, key: str, truth: str, parts: dict[str, np.ndarray]) -> dict[str, pd.DataFrame]:
    """Return the confusion table of each part; raise if one is empty."""
    from strecur.metrics import confusion_table

    columns = [read_labels(table, name) for name in (truth, key)]
    labels = read_answer_labels(table, key)
    # the annotation keeps the order of its categories
    order = pd.CategoricalDtype(read_categories(table.obs[truth]))
    counts = {}
    for name, rows in parts.items():
        true, pred = (column.iloc[rows] for column in columns)
        counts[name] = confusion_table(true.astype(order), pred, labels=labels)
        if not counts[name].to_numpy().sum():
            msg = f"no spot of {name or 'the section'} is annotated in adata.obs[{truth!r}] and has a label in {key!r}"
            raise ValueError(msg)
    return counts


def _draw_counts(ax: Axes, counts: pd.DataFrame, key: str, truth: str) -> None:
    """Draw one confusion table."""
    total = counts.sum(axis=1)
    shares = counts.div(total.replace(0, np.nan), axis=0)
    n_rows, n_columns = counts.shape
    # rows without spots stay grey
    ax.imshow(shares, cmap=colormaps["Blues"].with_extremes(bad="0.92"), vmin=0, vmax=1, aspect="equal")
    ax.set_xticks(range(n_columns), counts.columns, rotation=90 if _is_long(counts.columns) else 0)
    ax.set_yticks(range(n_rows), [f"{name} ({n:,})" for name, n in total.items()])
    ax.set_xticks(np.arange(n_columns - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(n_rows - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    never = [name for name in counts if not counts[name].any()]
    unknown = [name for name in counts.index if name not in counts.columns]
    for text, name in zip(ax.get_xticklabels(), counts.columns, strict=True):
        text.set_color("0.6" if name in never else "black")
    for text, name in zip(ax.get_yticklabels(), counts.index, strict=True):
        text.set_color(RED if name in unknown else "black")
    ax.set_xlabel(key + ("\n(grey: never predicted)" if never else ""))
    ax.set_ylabel(f"{truth} (number of spots)" + ("\n(orange: unknown to the model)" if unknown else ""))
    _write_cells(ax, counts.to_numpy(), shares.to_numpy())


def _is_long(names: pd.Index) -> bool:
    return max(map(len, names)) > 4


def _write_cells(ax: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    """Write share and number of spots into the cells, at a size that fits them."""
    box = ax.get_window_extent()
    cell = min(box.height / len(counts), box.width / counts.shape[1]) / ax.figure.dpi * 72  # points
    size = float(np.clip(0.28 * cell, 4, 9))
    for i, j in np.argwhere(shares >= FAINT):
        style: dict[str, Any] = {"ha": "center", "color": "white" if shares[i, j] >= WHITE_FROM else "0.15"}
        ax.text(j, i, f"{100 * shares[i, j]:.0f}%", va="bottom", fontsize=size, **style)
        ax.text(j, i + 0.06, f"{counts[i, j]:,}", va="top", fontsize=0.78 * size, **style)
