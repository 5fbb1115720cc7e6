"""Scale bars of maps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from strecur.pl._spots import SectionMap

LARGEST = 1 / 3  # of the width of the map
STEPS = (1, 2, 5)


def add_scale_bar(ax: Axes, section: SectionMap) -> None:
    """Draw a scale bar below the left edge of a map whose scale is known; it has a round length in µm or mm."""
    if section.um is None or not np.isfinite(section.um) or section.um <= 0:
        return
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    left, right, top, bottom = section.limits
    length = round_length(LARGEST * (right - left) * section.um)
    bar = AnchoredSizeBar(
        ax.transData,
        length / section.um,
        describe(length),
        loc="upper left",
        pad=0,
        borderpad=0.2,
        sep=3,
        frameon=False,
        size_vertical=0.008 * (bottom - top),
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes,
        prop={"size": "small"},
    )
    ax.add_artist(bar)


def round_length(largest: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20, … that is not above ``largest``."""
    power = 10.0 ** np.floor(np.log10(largest))
    return float(max(step * power for step in STEPS if step * power <= largest * (1 + 1e-9)))


def describe(um: float) -> str:
    """Return a length as text."""
    return f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
