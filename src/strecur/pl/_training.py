"""Figures of how a model was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.ticker import MaxNLocator

from strecur.pl._figure import finish, given_axes, panel_axes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

LINE, BEST = "#0072B2", "#D55E00"
ACRONYMS = ("ari", "nmi", "pcc", "mse", "mae", "rvd")
# metrics of which less is better; of all others more is
LOWER_IS_BETTER = ("loss", "mse", "mae", "rvd", "rvd_std", "error")


def training(
    model: object,
    *,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
) -> list[Axes] | None:
    """Draw how a model was trained: loss, learning rate and validation scores by epoch.

    Parameters
    ----------
    model
        Fitted model with a ``history``, or that data frame itself: one row per epoch, columns ``epoch``,
        ``train_loss``, ``learning_rate`` and any number of ``validation_<metric>``. The best epoch of each metric is
        marked.
    ax
        Axes to draw on: loss, learning rate, and one per validation metric; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.

    Returns
    -------
    The axes: loss, learning rate, one per validation metric; ``None`` with ``show=True``.

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
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> axes = st.pl.training(model)
    """
    history = getattr(model, "history", model)
    if not isinstance(history, pd.DataFrame):
        msg = f"expected a fitted model or its history (a DataFrame), got {type(model).__name__} without one"
        raise TypeError(msg)
    if history.empty:
        msg = "the history has no epochs; the training was interrupted before the first one was over"
        raise ValueError(msg)
    absent = [name for name in ("epoch", "train_loss", "learning_rate") if name not in history]
    if absent:
        msg = f"the history has no column {absent}; there are {list(history.columns)}"
        raise KeyError(msg)
    metrics = [name for name in history if str(name).startswith("validation_")]
    n_panels = 2 + len(metrics)
    if ax is None:
        axes = panel_axes([0.75] * n_panels, min(n_panels, 3))
    else:
        axes = given_axes(ax, n_panels, "loss, learning rate, validation metrics")
    labels = {"train_loss": "training loss", "learning_rate": "learning rate"}
    for panel, name in zip(axes, [*labels, *metrics], strict=True):
        known = history[["epoch", name]].dropna()
        panel.plot(known["epoch"], known[name], color=LINE, marker="o", markersize=3)
        panel.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
        panel.set(xlabel="epoch", ylabel=labels.get(name) or _caption(name))
        panel.spines[["top", "right"]].set_visible(False)
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    for panel, name in zip(axes[2:], metrics, strict=True):
        _mark_best(panel, history, name)
    return finish(axes, show=show)


def _caption(name: str) -> str:
    words = name.removeprefix("validation_").split("_")
    return " ".join(["validation", *(word.upper() if word in ACRONYMS else word for word in words)])


def _mark_best(ax: Axes, history: pd.DataFrame, name: str) -> None:
    scores = history[name].dropna()
    if scores.empty:
        return
    best = scores.idxmin() if name.removeprefix("validation_") in LOWER_IS_BETTER else scores.idxmax()
    epoch, score = history.loc[best, "epoch"], scores[best]
    ax.axvline(epoch, color="0.6", linestyle=":", linewidth=1)
    ax.plot(epoch, score, "o", color=BEST, markersize=7)
    ax.set_title(f"best {score:.3g} at epoch {epoch:.0f}", fontsize="medium")
