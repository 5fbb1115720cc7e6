"""Colours of domains: stable by name, readable with colour-vision deficiency."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.colors import to_hex

from strecur._anndata import clean_labels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

# The first seven are those of Okabe and Ito. Each of the others is the sRGB colour farthest (CIEDE2000) from all before
# it, from white, black and the grey of unlabelled spots, for normal vision, deuteranopia and protanopia (Machado 2009)
# at once, so that the first n suit any n.
PALETTE = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#56B4E9", "#78004B", "#2D4B1E", "#0000C3"),
    *("#A5F0B4", "#695A78", "#964B4B", "#00F0FF", "#7878FF", "#FF4B69", "#4B8787", "#FFA578", "#E1A5A5", "#2D4B87"),
)
UNLABELLED = "#D9D9D9"
# two things compared in a chart
BLUE, RED = PALETTE[0], PALETTE[5]


def read_categories(column: pd.Series) -> list[str]:
    """Return the possible labels of a column as strings, in the order of its categories, otherwise sorted.

    Whole numbers come first, sorted by value.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(clean_labels(list(column.cat.categories)).dropna())
    names = clean_labels(column).dropna().unique()
    return sorted(names, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))


def category_colors(adata: AnnData, key: str, names: Sequence[str], *, like: str | None = None) -> dict[str, str]:
    """Choose one colour per name.

    Colours in ``uns[f"{key}_colors"]`` come first, then those of the column ``like``. Other names get the colour of the
    palette at their position, or the next unused one.
    """
    known: dict[str, str] = {}
    for column in (key, like):
        if column in adata.obs and f"{column}_colors" in adata.uns:
            stored = [to_hex(color).upper() for color in adata.uns[f"{column}_colors"]]
            # in the order of all categories; too short if categories were added since
            known = dict(zip(read_categories(adata.obs[column]), stored, strict=False)) | known
    used = {known[name] for name in names if name in known}
    palette = _palette(len(names) + len(used))
    for position, name in enumerate(names):
        if name not in known:
            free = palette[position] if palette[position] not in used else next(_unused(palette, used))
            known[name] = free
            used.add(free)
    return {name: known[name] for name in names}


def legend_colors(colors: dict[str, str], *, unlabelled: bool) -> dict[str, str]:
    """Return the entries of a legend: the colours and, if needed, the one of unlabelled spots."""
    return colors | ({"unlabelled": UNLABELLED} if unlabelled else {})


def missing_colors(adata: AnnData, key: str, colors: dict[str, str]) -> dict[str, list[str]]:
    """Return the entry to add to ``uns`` if some categories of ``obs[key]`` have no colour there.

    It is empty for a view, since writing to a view copies the whole object.
    """
    names = read_categories(adata.obs[key])
    if adata.is_view or len(adata.uns.get(f"{key}_colors", [])) >= len(names):
        return {}
    return {f"{key}_colors": [colors[name] for name in names]}


def _palette(n: int) -> Sequence[str]:
    if n <= len(PALETTE):
        return PALETTE
    from scanpy.plotting.palettes import godsnot_102

    return [*PALETTE, *(color.upper() for color in godsnot_102)] * (n // 100 + 1)


def _unused(palette: Sequence[str], used: set[str]) -> Iterator[str]:
    yield from (color for color in palette if color not in used)
    # with more categories than colours, colours repeat
    yield from palette
