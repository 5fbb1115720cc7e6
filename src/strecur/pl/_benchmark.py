"""Figure of methods compared on sections that were held out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from strecur.pl._colors import PALETTE
from strecur.pl._figure import LINE, finish, given_axes
from strecur.pl._training import LOWER_IS_BETTER

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SCORES = ("ari", "pcc_300")
CAPTIONS = {"ari": "adjusted Rand index", "macro_f1": "macro-F1", "mse": "mean squared error", "nmi": "NMI"}
BASELINE = "linear"
MANY_GROUPS = 12


def benchmark(
    table: pd.DataFrame,
    *,
    score: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw how methods score on what was held out: a row per method, a dot per group and seed.

    The best method is on top. A black line marks its mean over the groups (of means over the seeds), which stands on
    the right, and a dashed line through all rows the mean of the linear baseline: only what is beyond it is worth a
    network.

    Parameters
    ----------
    table
        Result of :func:`strecur.tl.cross_validate`. Rows of other methods may be added; ``group``, ``method`` and the
        score are needed.
    score
        Column to draw; by default ``"ari"`` of domains and ``"pcc_300"`` of expression.
    ax
        Axes to draw on; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.

    Returns
    -------
    The axes; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the table has no rows, or ``ax`` holds several axes.

    Examples
    --------
    >>> import pandas as pd
    >>> import strecur as st
    >>> rows = [("S1", "trm", 0.7), ("S1", "linear", 0.6), ("S2", "trm", 0.5), ("S2", "linear", 0.55)]
    >>> ax = st.pl.benchmark(pd.DataFrame(rows, columns=["group", "method", "ari"]))
    """
    score = _find_score(table, score)
    means = _mean_scores(table, score)
    axes = [_new_axes(means)] if ax is None else given_axes(ax, 1, "methods by score")
    panel, groups = axes[0], sorted(table["group"].unique())
    for height, method in enumerate(means.index):
        part = table[table["method"] == method]
        for k, group in enumerate(groups):
            scores = part.loc[part["group"] == group, score]
            place = np.full(len(scores), height + _offset(k, len(groups)))
            color = PALETTE[k % len(PALETTE)] if len(groups) <= MANY_GROUPS else PALETTE[0]
            panel.scatter(scores, place, s=22, color=color, alpha=0.8, linewidths=0, label="_" if height else group)
        panel.vlines(means[method], height - 0.35, height + 0.35, color="black", linewidth=2, zorder=3)
        mean = "–" if np.isnan(means[method]) else f"{means[method]:.3f}"
        panel.text(1.02, height, mean, transform=panel.get_yaxis_transform(), va="center")
    if BASELINE in means and not np.isnan(means[BASELINE]):
        panel.axvline(means[BASELINE], color="0.5", linestyle="--", linewidth=1, zorder=0)
    panel.set_yticks(range(len(means)), means.index)
    panel.set(ylim=(len(means) - 0.5, -0.5), xlabel=_caption(score))
    panel.text(1.02, -0.6, "mean", transform=panel.get_yaxis_transform(), va="bottom")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    if 1 < len(groups) <= MANY_GROUPS:
        panel.legend(title="held out", frameon=False, loc="center left", bbox_to_anchor=(1.16, 0.5), handletextpad=0.2)
    if "shared_donor" in table and table["shared_donor"].fillna(value=False).any():
        panel.set_title("sections of the same donors were in training", fontsize="small", loc="left", color="0.3")
    return finish(axes, show=show)


def _find_score(table: pd.DataFrame, score: str | None) -> str:
    score = score or next((name for name in SCORES if name in table), SCORES[0])
    absent = [name for name in ("group", "method", score) if name not in table]
    if absent:
        msg = f"the table has no column {absent}; there are {list(table.columns)}. It is made by "
        raise KeyError(msg + "strecur.tl.cross_validate(adata, task, library_key=...)")
    if table.empty:
        msg = "the table has no rows"
        raise ValueError(msg)
    return score


def _mean_scores(table: pd.DataFrame, score: str) -> pd.Series:
    """Mean over the groups of means over the seeds, by method, the best first."""
    by_group = table.groupby(["method", "group"], observed=True)[score].mean()
    means = by_group.groupby("method", observed=True).mean()
    return means.sort_values(ascending=score in LOWER_IS_BETTER, kind="stable")


def _new_axes(means: pd.Series) -> Axes:
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(6.5, 1.2 + 2.2 * LINE * max(len(means), 3)), layout="constrained")
    return ax


def _offset(k: int, n: int) -> float:
    """Height of the dots of one group within a row."""
    return 0.0 if n == 1 else 0.5 * (k / (n - 1) - 0.5)


def _caption(score: str) -> str:
    name = CAPTIONS.get(score) or score.replace("pcc_", "PCC-").replace("_", " ").replace("rvd", "RVD")
    return f"{name} (less is better)" if score in LOWER_IS_BETTER else name
