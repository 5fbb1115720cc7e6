"""Colours of domains: stable by name, readable with colour-vision deficiency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.colors import to_hex
from natsort import natsorted

from strecur._anndata import logger
from strecur._labels import clean_labels

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
MUTED = "#8C8C8C"  # what should not be relied on
MARK = "#1A1A1A"  # rings around spots
# two things compared in a chart
BLUE, RED = PALETTE[0], PALETTE[5]


def category_colors(adata: AnnData, key: str, names: Sequence[str], *, like: str | None = None) -> dict[str, str]:
    """Choose one colour per name.

    Colours in ``uns[f"{key}_colors"]`` come first, then those of the column ``like``. Other names get the colour of the
    palette at their position, or the next unused one.
    """
    known: dict[str, str] = {}
    for column in (key, like):
        if column is not None and column in adata.obs and f"{column}_colors" in adata.uns:
            known = stored_colors(adata, column) | known
    used = {known[name] for name in names if name in known}
    palette = _palette(len(names) + len(used))
    for position, name in enumerate(names):
        if name not in known:
            free = palette[position] if palette[position] not in used else next(_unused(palette, used))
            known[name] = free
            used.add(free)
    return {name: known[name] for name in names}


def stored_colors(adata: AnnData, key: str) -> dict[str, str]:
    """Return the colours of ``uns[f"{key}_colors"]`` by label.

    A list has the colours of all categories in their order, also of those that stand for missing labels; one of another
    length belongs to other categories and is ignored. A mapping has its names beside the colours.
    """
    stored = adata.uns[f"{key}_colors"]
    if isinstance(stored, Mapping):
        pairs = [*stored.items()]
    else:
        categories = _all_categories(adata.obs[key])
        if len(stored) != len(categories):
            logger.warning(
                "uns[%r] has %d colours for the %d categories of obs[%r] and is not used",
                *(f"{key}_colors", len(stored), len(categories), key),
            )
            return {}
        pairs = list(zip(categories, stored, strict=False))
    labels = clean_labels([category for category, _ in pairs])
    return {
        label: as_hex(color, key)
        for label, (_, color) in zip(labels, pairs, strict=True)
        if label is not None  # a category such as "nan" has a place in the list
    }


def as_hex(color: Any, key: str) -> str:
    """Return a colour as upper-case hex; files may hold text as bytes."""
    color = color.decode() if isinstance(color, bytes) else color
    try:
        return to_hex(color).upper()
    except ValueError as error:
        msg = f"adata.uns[{f'{key}_colors'!r}] holds {color!r}, which is not a colour; correct or delete it"
        raise ValueError(msg) from error


def _all_categories(column: pd.Series) -> list[object]:
    """Return the categories of a column in their order; text gets those that anndata and scanpy would give it."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return list(column.cat.categories)
    return list(natsorted(column.dropna().unique(), key=str))


def legend_colors(colors: dict[str, str], *, unlabelled: bool) -> dict[str, str]:
    """Return the entries of a legend: the colours and, if needed, the one of unlabelled spots."""
    return colors | ({"unlabelled": UNLABELLED} if unlabelled else {})


def missing_colors(adata: AnnData, key: str, colors: dict[str, str]) -> dict[str, list[str]]:
    """Return the entry to add to ``uns`` if some categories of ``obs[key]`` have no colour there.

    It has a colour for every category, as scanpy expects, that of unlabelled spots for those that stand for missing
    labels. It is empty for a view, since writing to a view copies the whole object, and where colours are a mapping.
    """
    stored = adata.uns.get(f"{key}_colors", [])
    categories = _all_categories(adata.obs[key])
    if adata.is_view or isinstance(stored, Mapping) or len(stored) == len(categories):
        return {}
    return {f"{key}_colors": [colors.get(str(label), UNLABELLED) for label in clean_labels(categories)]}


def _palette(n: int) -> Sequence[str]:
    if n <= len(PALETTE):
        return PALETTE
    from scanpy.plotting.palettes import godsnot_102

    return [*PALETTE, *(color.upper() for color in godsnot_102)] * (n // 100 + 1)


def _unused(palette: Sequence[str], used: set[str]) -> Iterator[str]:
    yield from (color for color in palette if color not in used)
    # with more categories than colours, colours repeat
    yield from palette
