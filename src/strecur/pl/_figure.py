"""Figures of several panels: axes, legends, showing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from strecur.pl._colors import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.cm import ScalarMappable

MAX_COLUMNS = 4  # of maps that need not stand in one row
MAX_PANEL = 3.6  # inches
MIN_PANEL = 1.5
MAX_WIDTH = 13.0  # of all panels together: what a slide shows at the size of its text
MAX_HEIGHT = 30.0
LINE = 0.21  # inches, one row of a legend at font size 10


def given_axes(ax: Axes | Sequence[Axes], n_panels: int, contents: str) -> list[Axes]:
    """Return the caller's axes as a list and check that there is one per panel."""
    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    others = sorted({type(given).__name__ for given in axes if not isinstance(given, Axes)})
    if others:
        msg = f"ax holds {others}; pass matplotlib axes, such as those of plt.subplots()"
        raise TypeError(msg)
    if len(axes) != n_panels:
        msg = f"this plot has {n_panels} panels ({contents}), but ax holds {len(axes)}; pass one axes per panel"
        raise ValueError(msg)
    return axes


def panel_axes(
    heights: Sequence[float], n_columns: int, *, legend: Sequence[str] = (), margin: float = 0.0
) -> list[Axes]:
    """Make a figure with one panel per entry of ``heights`` (height ÷ width of what it will show), row by row.

    On the right, room is left for a legend of the names in ``legend`` and a margin in inches.
    """
    import matplotlib.pyplot as plt

    n_rows = -(-len(heights) // n_columns)
    tallest = [float(np.clip(max(heights[r * n_columns : (r + 1) * n_columns]), 0.4, 1.6)) for r in range(n_rows)]
    width = max(min(MAX_PANEL, MAX_WIDTH / n_columns, MAX_HEIGHT / n_rows), MIN_PANEL)
    height = sum(h * width + 0.6 for h in tallest)
    figure, axes = plt.subplots(
        n_rows,
        n_columns,
        figsize=(n_columns * width + legend_width(legend, height) + margin, height),
        height_ratios=tallest,
        layout="compressed",
        squeeze=False,
    )
    axes = list(axes.ravel())
    for unused in axes[len(heights) :]:
        figure.delaxes(unused)
    return axes[: len(heights)]


def map_and_chart_axes(heights: Sequence[float], labels: Sequence[str]) -> list[Axes]:
    """Make a figure with maps in up to four columns and two charts, one above the other, right of them.

    The charts leave room for the tick labels ``labels``.
    """
    import matplotlib.pyplot as plt

    n_columns = min(len(heights), MAX_COLUMNS)
    n_rows = -(-len(heights) // n_columns)
    tallest = float(np.clip(max(heights), 0.4, 1.6))
    width = min(MAX_PANEL, 12 / n_columns)
    left, right = n_columns * width + 0.8, 3.0 + _text_width(labels)
    height = max(n_rows * (tallest * width + 0.6), 4.2)
    figure = plt.figure(figsize=(left + right, height), layout="constrained")
    outer = figure.add_gridspec(1, 2, width_ratios=(left, right))
    grid, charts = outer[0].subgridspec(n_rows, n_columns), outer[1].subgridspec(2, 1)
    maps = [figure.add_subplot(grid[divmod(i, n_columns)]) for i in range(len(heights))]
    return [*maps, figure.add_subplot(charts[0]), figure.add_subplot(charts[1])]


def legend_columns(names: Sequence[str], height: float) -> int:
    """Return how many columns a legend needs to fit into a figure of this height in inches."""
    rows = max(int((height - 0.4) / (LINE * rcParams["font.size"] / 10)), 1)
    return -(-len(names) // rows)


def legend_width(names: Sequence[str], height: float) -> float:
    """Estimate the width of a legend in inches."""
    if not names:
        return 0.0
    return legend_columns(names, height) * (0.7 + _text_width(names))


def _text_width(names: Sequence[str]) -> float:
    """Estimate the width of the longest name in inches."""
    return 0.08 * max(map(len, names)) * rcParams["font.size"] / 10


def add_legend(axes: Sequence[Axes], colors: Mapping[str, str], *, unlabelled: bool, own_figure: bool) -> None:
    """Draw one legend: right of all panels in our own figure, right of the last panel in the caller's axes."""
    entries = dict(colors) | ({"unlabelled": UNLABELLED} if unlabelled else {})
    handles = [Patch(facecolor=color, label=name) for name, color in entries.items()]
    style = {"handles": handles, "handlelength": 1.0, "handleheight": 1.0, "frameon": False}
    if own_figure:
        figure = axes[0].figure
        columns = legend_columns(list(entries), figure.get_figheight())
        figure.legend(loc="outside right center", ncols=columns, **style)
    else:
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), **style)


def add_color_bar(ax: Axes, mappable: ScalarMappable, label: str = "") -> Axes:
    """Draw a colour bar along the right edge of a map, as high as the map is at any figure size."""
    place = ax.inset_axes([1.03, 0, 0.05, 1])
    ax.figure.colorbar(mappable, cax=place, label=label)
    place.spines[:].set_visible(False)
    return place


def finish(axes: Sequence[Axes], *, show: bool | None) -> Axes | list[Axes] | None:
    """Show the figure if asked to; otherwise return its axes: one, or a list of several."""
    if show:
        import matplotlib.pyplot as plt

        plt.show()
        return None
    return axes[0] if len(axes) == 1 else list(axes)
