"""Figures of one or several panels: axes, legends, colour bars, ticks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from strecur.pl._colors import MARK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.artist import Artist
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

Drawn = TypeVar("Drawn")

MAX_COLUMNS = 4  # of maps, unless they belong in one row
MAX_PANEL = 3.6  # inches
MIN_PANEL = 1.5
MAX_WIDTH = 13.0  # of all panels together, so that text keeps a readable size on a slide
MAX_HEIGHT = 30.0
LINE = 0.21  # inches, one row of a legend at font size 10


def check_axes(ax: Axes | Sequence[Axes], n_panels: int, contents: str) -> list[Axes]:
    """Return the axes of the caller as a list after checking that there is one per panel."""
    axes = list(np.ravel(np.asarray(ax, dtype=object)))
    others = sorted({type(given).__name__ for given in axes if not isinstance(given, Axes)})
    if others:
        msg = f"ax holds {others}; pass matplotlib axes, such as those of plt.subplots()"
        raise TypeError(msg)
    if len(axes) != n_panels:
        msg = f"this plot has {n_panels} panels ({contents}), but ax holds {len(axes)}; pass one axes per panel"
        raise ValueError(msg)
    return axes


def make_panels(
    ax: Axes | Sequence[Axes] | None,
    heights: Sequence[float],
    n_columns: int,
    *,
    contents: str,
    legend: Sequence[str] = (),
    margin: float = 0.0,
    largest: float = MAX_PANEL,
) -> list[Axes]:
    """Return the axes of the caller, or those of a new figure with one panel per entry of ``heights``, row by row.

    ``heights`` are height ÷ width of the contents. On the right, there is room for a legend of the names in ``legend``
    and a margin in inches. ``largest`` is the greatest width of a panel.
    """
    if ax is not None:
        return check_axes(ax, len(heights), contents)
    import matplotlib.pyplot as plt

    n_rows = -(-len(heights) // n_columns)
    tallest = [float(np.clip(max(heights[r * n_columns : (r + 1) * n_columns]), 0.4, 1.6)) for r in range(n_rows)]
    width = max(min(largest, MAX_WIDTH / n_columns, MAX_HEIGHT / n_rows), MIN_PANEL)
    height = sum(h * width + 0.6 for h in tallest)
    figure, grid = plt.subplots(
        n_rows,
        n_columns,
        figsize=(n_columns * width + _legend_width(legend, height) + margin, height),
        height_ratios=tallest,
        layout="compressed",
        squeeze=False,
    )
    axes: list[Axes] = list(grid.ravel())
    for unused in axes[len(heights) :]:
        figure.delaxes(unused)
    return axes[: len(heights)]


def make_panel(ax: Axes | None, contents: str, figsize: tuple[float, float]) -> Axes:
    """Return the axes of the caller, or that of a new figure with a single panel."""
    if ax is not None:
        return check_axes(ax, 1, contents)[0]
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def make_maps_and_charts(heights: Sequence[float], labels: Sequence[str]) -> list[Axes]:
    """Make a figure with maps in up to four columns and, right of them, two charts one above the other.

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


def _legend_columns(names: Sequence[str], height: float) -> int:
    """Return the number of columns a legend needs in a figure of this height in inches."""
    rows = max(int((height - 0.4) / (LINE * rcParams["font.size"] / 10)), 1)
    return -(-len(names) // rows)


def _legend_width(names: Sequence[str], height: float) -> float:
    """Estimate the width of a legend in inches."""
    return _legend_columns(names, height) * (0.7 + _text_width(names)) if names else 0.0


def _text_width(names: Sequence[str]) -> float:
    """Estimate the width of the longest name in inches."""
    return 0.08 * max(map(len, names)) * rcParams["font.size"] / 10


def add_legend(axes: Sequence[Axes], colors: Mapping[str, str], *, own_figure: bool, ring: str = "") -> None:
    """Draw one legend: right of all panels in our own figure, right of the last panel on axes of the caller.

    ``ring`` is the meaning of rings around spots.
    """
    handles: list[Artist] = [Patch(facecolor=color, label=name) for name, color in colors.items()]
    if ring:
        handles.append(Line2D([], [], color=MARK, marker="o", markerfacecolor="none", linestyle="", label=ring))
    style: dict[str, Any] = {"handles": handles, "handlelength": 1.0, "handleheight": 1.0, "frameon": False}
    if own_figure:
        figure = cast("Figure", axes[0].figure)
        columns = _legend_columns([str(handle.get_label()) for handle in handles], figure.get_figheight())
        figure.legend(loc="outside right center", ncols=columns, **style)
    else:
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), **style)


def add_color_bar(ax: Axes, mappable: ScalarMappable, label: str = "") -> Axes:
    """Draw a colour bar along the right edge of a map, with the height of the map at any figure size."""
    place = ax.inset_axes((1.03, 0, 0.05, 1))
    ax.figure.colorbar(mappable, cax=place, label=label)
    place.spines[:].set_visible(False)
    return place


def add_step_bar(ax: Axes, mappable: ScalarMappable, depth: int, *, label: str = "", n_ticks: int = 8) -> None:
    """Draw a colour bar of outer steps."""
    bar = add_color_bar(ax, mappable, label)
    bar.set_yticks(whole_ticks(depth, n_ticks))
    bar.tick_params(which="both", length=0)


def whole_ticks(last: int, n_ticks: int = 8) -> np.ndarray:
    """Return at most ``n_ticks`` whole numbers from 1 to ``last`` at equal distance."""
    return np.arange(1, last + 1, -(-last // n_ticks))


def open_frame(ax: Axes) -> None:
    """Remove the upper and right edge of a chart."""
    ax.spines[["top", "right"]].set_visible(False)


def one_or_all(axes: list[Axes]) -> Axes | list[Axes]:
    """Return the axes, without the list if there is only one."""
    return axes[0] if len(axes) == 1 else axes


class AxesList(list):
    """List of axes that a notebook shows as its figure alone."""

    def _ipython_display_(self) -> None:
        """Print nothing beside the figure."""


def _print_nothing() -> None:
    """Print nothing beside the figure."""


def finish(drawn: Drawn, *, show: bool | None) -> Drawn | None:
    """Show the figure if ``show``; otherwise return ``drawn``, which a notebook does not print beside the figure."""
    if not show:
        if isinstance(drawn, list):
            return cast("Drawn", AxesList(drawn))
        cast("Any", drawn)._ipython_display_ = _print_nothing
        return drawn
    import matplotlib.pyplot as plt

    plt.show()
    return None


def percent(share: float, _position: float) -> str:
    """Format a share as a tick label."""
    return f"{100 * share:.3g}%"
