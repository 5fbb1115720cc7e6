"""Training curves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import MaxNLocator

from strecur.pl._colors import BLUE, RED
from strecur.pl._figure import finish, make_panels, open_frame
from strecur.pl._results import LOWER_IS_BETTER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

PLACES = {"validation_": "validation", "blocks_": "held-out blocks:"}

ACRONYMS = ("ari", "nmi", "pcc", "mse", "mae", "rvd", "r2")


def training(
    model: object,
    *,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Plot training loss and validation scores by epoch.

    Parameters
    ----------
    model
        Fitted model with a ``history``, or this data frame: one row per epoch, columns ``epoch``, ``train_loss`` and
        any number of ``validation_<metric>`` (on whole sections) and ``blocks_<metric>`` (in blocks of the training
        sections). The best epoch of each metric is marked.
    ax
        Axes to plot on: loss, and one per validation metric. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.

    Returns
    -------
    The axes: loss, one per validation metric; ``None`` with ``show=True``.

    Raises
    ------
    TypeError
        If there is no history.
    KeyError
        If the history lacks a column.
    ValueError
        If the history has no epochs, or ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> axes = st.pl.training(model)
    """
    history = getattr(model, "history", model)
    if not isinstance(history, pd.DataFrame):
        msg = f"expected a fitted model or its history (a DataFrame), got {type(model).__name__} without one"
        raise TypeError(msg)
    if history.empty:
        msg = "the history has no epochs; the training was interrupted before the end of the first one"
        raise ValueError(msg)
    absent = [name for name in ("epoch", "train_loss") if name not in history]
    if absent:
        msg = f"the history has no column {absent}; there are {list(history.columns)}"
        raise KeyError(msg)
    metrics = [name for name in history if str(name).startswith(tuple(PLACES))]
    n_panels = 1 + len(metrics)
    contents = "loss, validation metrics"
    axes = make_panels(ax, [0.75] * n_panels, min(n_panels, 3), contents=contents)
    for panel, name in zip(axes, ["train_loss", *metrics], strict=True):
        known = history[["epoch", name]].dropna()
        panel.plot(known["epoch"], known[name], color=BLUE, marker="o", markersize=3)
        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        panel.set(xlabel="epoch", ylabel="training loss" if name == "train_loss" else _metric_caption(name))
        open_frame(panel)
    for panel, name in zip(axes[1:], metrics, strict=True):
        _mark_best(panel, history, name)
    return finish(axes, show=show)


def _split_name(name: str) -> tuple[str, str]:
    """Return the metric, and where it was measured."""
    prefix = next(prefix for prefix in PLACES if name.startswith(prefix))
    return name.removeprefix(prefix), PLACES[prefix]


def _metric_caption(name: str) -> str:
    metric, place = _split_name(name)
    return " ".join([place, *(word.upper() if word in ACRONYMS else word for word in metric.split("_"))])


def _mark_best(ax: Axes, history: pd.DataFrame, name: str) -> None:
    scores = history[name].dropna()
    if scores.empty:
        return
    best = scores.idxmin() if _split_name(name)[0] in LOWER_IS_BETTER else scores.idxmax()
    epoch, score = history.loc[best, "epoch"], scores[best]
    ax.axvline(epoch, color="0.6", linestyle=":", linewidth=1)
    ax.plot(epoch, score, "o", color=RED, markersize=7)
    ax.set_title(f"best {score:.3g} at epoch {epoch:.0f}", fontsize="medium")
