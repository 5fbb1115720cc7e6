"""Scores of several methods on held-out sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from strecur.pl._colors import PALETTE
from strecur.pl._figure import LINE, finish, make_panel
from strecur.pl._results import LOWER_IS_BETTER, check_table

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
    """Plot the scores of methods on held-out groups, one row per method, one dot per group and seed.

    The best method is on top. The black line and the number on the right are its mean over groups (of means over
    seeds). The dashed line is the mean of the linear baseline, which a network should exceed.

    Parameters
    ----------
    table
        Result of :func:`strecur.tl.cross_validate`. Rows of other methods may be added; the columns ``group``,
        ``method`` and the score are required.
    score
        Column to plot. If ``None`` (default), ``"ari"`` for domains and ``"pcc_300"`` for expression.
    ax
        Axes to plot on. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.

    Returns
    -------
    The axes; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a column is missing.
    ValueError
        If the table has no rows, or ``ax`` holds several axes.
    TypeError
        If it is not a data frame.

    Examples
    --------
    >>> import pandas as pd
    >>> import strecur as st
    >>> rows = [("S1", "trm", 0.7), ("S1", "linear", 0.6), ("S2", "trm", 0.5), ("S2", "linear", 0.55)]
    >>> ax = st.pl.benchmark(pd.DataFrame(rows, columns=["group", "method", "ari"]))
    """
    score = score or next((name for name in SCORES if name in table), SCORES[0])
    check_table(table, ["group", "method", score], made_with="strecur.tl.cross_validate(adata, label_key)")
    means = _mean_scores(table, score)
    panel = make_panel(ax, "methods by score", (6.5, 1.2 + 2.2 * LINE * max(len(means), 3)))
    groups = sorted(table["group"].unique())
    for height, method in enumerate(means.index):
        _draw_method(panel, table[table["method"] == method], groups, height, score)
        panel.vlines(means[method], height - 0.35, height + 0.35, color="black", linewidth=2, zorder=3)
        mean = "–" if np.isnan(means[method]) else f"{means[method]:.3f}"
        panel.text(1.02, height, mean, transform=panel.get_yaxis_transform(), va="center")
    if BASELINE in means and not np.isnan(means[BASELINE]):
        panel.axvline(means[BASELINE], color="0.5", linestyle="--", linewidth=1, zorder=0)
    panel.set_yticks(range(len(means)), means.index)
    panel.set(ylim=(len(means) - 0.5, -0.5), xlabel=_score_caption(score))
    panel.text(1.02, -0.6, "mean", transform=panel.get_yaxis_transform(), va="bottom")
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)
    if 1 < len(groups) <= MANY_GROUPS:
        panel.legend(title="held out", frameon=False, loc="center left", bbox_to_anchor=(1.16, 0.5), handletextpad=0.2)
    if "shared_donor" in table and table["shared_donor"].fillna(value=False).any():
        panel.set_title("sections of the same donors were in training", fontsize="small", loc="left", color="0.3")
    return finish(panel, show=show)


def _draw_method(ax: Axes, scores: pd.DataFrame, groups: list[str], height: int, score: str) -> None:
    """Draw a dot per group and seed in one row; the first row makes the legend."""
    for k, group in enumerate(groups):
        values = scores.loc[scores["group"] == group, score]
        place = np.full(len(values), height + _offset(k, len(groups)))
        color = PALETTE[k % len(PALETTE)] if len(groups) <= MANY_GROUPS else PALETTE[0]
        ax.scatter(values, place, s=22, color=color, alpha=0.8, linewidths=0, label="_" if height else group)


def _mean_scores(table: pd.DataFrame, score: str) -> pd.Series:
    """Return the mean over groups of means over seeds by method, best first."""
    by_group = table.groupby(["method", "group"], observed=True)[score].mean()
    means = by_group.groupby("method", observed=True).mean()
    return means.sort_values(ascending=score in LOWER_IS_BETTER, kind="stable")


def _offset(k: int, n: int) -> float:
    """Return the height of the dots of one group within a row."""
    return 0.0 if n == 1 else 0.5 * (k / (n - 1) - 0.5)


def _score_caption(score: str) -> str:
    name = CAPTIONS.get(score) or score.replace("pcc_", "PCC-").replace("_", " ").replace("rvd", "RVD")
    return f"{name} (less is better)" if score in LOWER_IS_BETTER else name
