"""Maps of marker genes, measured beside predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.ticker import MaxNLocator

from strecur._anndata import open_table
from strecur._arguments import as_names, check_whole
from strecur.pl._expression import read_expression, some_of
from strecur.pl._figure import add_color_bar, finish, given_axes, panel_axes
from strecur.pl._maps import draw_spots, draw_tissue, pitch, read_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from strecur.pl._expression import Expression
    from strecur.pl._maps import SectionMap

MAX_GENES_PER_ROW = 4
SLIDE = 16 / 9  # width ÷ height
TITLE = 0.25  # height of a panel's title ÷ its width
COLOR_BAR, ROW_NAME = 0.6, 0.4  # inches
KINDS = ("measured", "predicted")
PERCENTILES = (1, 99)  # of the colour scale, so that single spots do not set it


@dataclass(frozen=True)
class Marker:
    """One gene in one section: its values by kind of map, and how well it is predicted."""

    gene: str
    maps: dict[str, np.ndarray]
    caption: str


def marker_panel(
    adata: AnnData | SpatialData,
    genes: str | Sequence[str] | Mapping[str, Sequence[str]],
    key: str = "trm_expression",
    *,
    genes_per_row: int | None = None,
    layer: str | None = None,
    library_key: str | None = None,
    library_id: str | None = None,
    img: bool = True,
    spatial_key: str = "spatial",
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Draw maps of marker genes in one section, measured beside predicted (TRM paper, Fig. 13).

    Both maps of a gene have one colour scale, from the 1st to the 99th percentile of all their values. Above the
    predicted map stands its Pearson correlation with the measured one over the spots; where nothing was measured (a
    section of H&E alone), the reliability of the gene instead, as estimated in training. A gene that is only measured
    or only predicted has one map; measured values are brought to the scale of the prediction.

    Parameters
    ----------
    adata
        Spots of one or several sections. They hold the results of ``strecur.tl.predict_expression``.
    genes
        Genes to draw, or a dictionary of them by biological axis, such as ``{"proliferation": ["MKI67", "TOP2A"]}``;
        every axis starts a row and is named left of it.
    key
        The ``key_added`` of that call. ``obsm[key]`` and ``uns[key]`` are drawn.
    genes_per_row
        Genes side by side; by default as many, up to four, as bring the figure closest to the shape of a slide.
    layer
        Layer with raw counts; by default ``X``. They are drawn as log2(count + 1), or after normalising the depth of
        every spot as in training if that is what the model predicts.
    library_key
        Column of ``obs`` that tells sections apart; by default the one the prediction was made with.
    library_id
        Section to draw; not needed if there is only one.
    img
        Draw the tissue image at the left of every row where there is one. If the lattice is turned against it, spots
        are circles at their places on the image.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts.
    ax
        Axes to draw on, one per panel in reading order; by default a new figure is made.
    show
        ``True`` shows the figure and returns nothing.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, a list if there are several panels; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If the prediction, a section or the lattice is missing, or genes are neither measured nor predicted.
    ValueError
        If there is no gene, or no choice of a section, ``layer`` holds no counts, spots lie outside their image, or
        ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, library_key="section", mpp=1.0, progress=False)
    >>> model = st.tl.train_expression(adata, library_key="section", genes=5, max_epochs=1, progress=False)
    >>> st.tl.predict_expression(adata, model, library_key="section", progress=False)
    >>> axes = st.pl.marker_panel(adata, model.genes[:2], library_id="S1")
    """
    if genes_per_row is not None:
        check_whole("genes_per_row", genes_per_row)
    table = open_table(adata, table_key=table_key, read_only=True)
    groups = _gene_groups(genes)
    wanted = list(dict.fromkeys(gene for group in groups.values() for gene in group))
    expression = read_expression(table, key, layer=layer, also=wanted)
    choice = {"library_key": library_key, "library_id": library_id, "spatial_key": spatial_key}
    section = _read_section(table, key, img=img, **choice)
    place = section if section.image is None else _beside_image(table, key, section, **choice)
    markers = _read_markers(expression, wanted, section.rows, table.uns[key].get("reliability"))
    kinds = [kind for kind in KINDS if any(kind in marker.maps for marker in markers.values())]
    sizes = [len(group) for group in groups.values()]
    has_image = section.image is not None
    per_row = genes_per_row or _genes_per_row(sizes, len(kinds), section.height, has_image=has_image)
    lines = [
        (name, [markers[gene] for gene in group[start : start + per_row]])
        for name, group in groups.items()
        for start in range(0, len(group), per_row)
    ]
    used = [[*[True] * has_image, *(kind in marker.maps for marker in part for kind in kinds)] for _, part in lines]
    if ax is None:
        axes = _new_axes(used, section, per_row)
    else:
        axes = given_axes(ax, sum(map(sum, used)), f"{len(lines)} rows of up to {per_row} genes")
    panels = iter(axes)
    for (name, part), row in zip(lines, used, strict=True):
        line = [next(panels) for _ in range(sum(row))]
        line[0].set_ylabel(name, fontsize="large")
        if has_image:
            draw_tissue(line[0], section)
            line[0].set_title("H&E", fontsize="medium")
        _draw_markers(line[has_image:], part, place, expression.unit)
    return finish(axes, show=show)


def _gene_groups(genes: str | Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return genes by the name of their axis, which is empty if they have none."""
    groups = genes if isinstance(genes, Mapping) else {"": genes}
    groups = {str(name): as_names("genes", group) for name, group in groups.items()}
    groups = {name: group for name, group in groups.items() if group}
    if not groups:
        msg = "there are no genes to draw; pass a list of names, or a dictionary of lists"
        raise ValueError(msg)
    return groups


def _read_section(table: AnnData, key: str, **choice: object) -> SectionMap:
    maps = read_maps(table, key, **choice)
    if len(maps) > 1:
        msg = f"marker_panel draws one section; choose it with library_id out of {[section.title for section in maps]}"
        raise ValueError(msg)
    return maps[0]


def _beside_image(table: AnnData, key: str, section: SectionMap, **choice: object) -> SectionMap:
    """Return the map to draw beside the image of a section: its lattice if that lies as the tissue does."""
    if "grid" in table.obsm:
        lattice = _read_section(table, key, img=False, **choice)
        if _parallel(lattice.x, section.x) and _parallel(lattice.y, section.y):
            return lattice
    return replace(section, image=None, width=1.15 * pitch(np.column_stack([section.x, section.y])))


def _parallel(a: np.ndarray, b: np.ndarray) -> bool:
    """Tell whether coordinates run in the same direction, up to what a slightly uneven lattice makes of them."""
    return bool(np.ptp(a) > 0 and np.ptp(b) > 0 and np.corrcoef(a, b)[0, 1] > 0.98)


def _read_markers(
    expression: Expression, genes: list[str], rows: np.ndarray, reliability: pd.DataFrame | None
) -> dict[str, Marker]:
    """Gather what is known of every gene in one section."""
    unknown = [gene for gene in genes if gene not in expression.measured and gene not in expression.predicted]
    if unknown:
        msg = (
            f"genes {unknown} are neither predicted nor measured (as {expression.unit}); "
            f"predicted are {some_of(expression.predicted)}"
        )
        raise KeyError(msg)
    scores = expression.scores(rows)
    expected = pd.Series(dtype=float) if reliability is None else reliability["pcc"]
    markers = {}
    for gene in genes:
        both = {"measured": expression.measured, "predicted": expression.predicted}
        maps = {kind: values[gene].to_numpy(dtype=float)[rows] for kind, values in both.items() if gene in values}
        markers[gene] = Marker(gene, maps, _caption(gene, scores, expected))
    return markers


def _caption(gene: str, scores: pd.Series, expected: pd.Series) -> str:
    """Tell how well a gene is predicted: here, or else in training."""
    name, score = ("PCC", scores[gene]) if gene in scores else ("reliability", expected.get(gene))
    if score is None:
        return ""
    return f", {name} undefined" if np.isnan(score) else f", {name} {score:.2f}"


def _genes_per_row(sizes: list[int], n_kinds: int, height: float, *, has_image: bool) -> int:
    """Choose how many genes stand side by side so that the figure comes close to the shape of a slide."""

    def misfit(per_row: int) -> float:
        n_rows = sum(-(-size // per_row) for size in sizes)
        shape = (n_kinds * per_row + has_image) / (n_rows * (height + TITLE))
        return abs(np.log(shape / SLIDE))

    return min(range(1, min(max(sizes), MAX_GENES_PER_ROW) + 1), key=misfit)


def _new_axes(used: list[list[bool]], section: SectionMap, per_row: int) -> list[Axes]:
    """Make a figure with a panel wherever ``used`` is true, row by row."""
    n_columns = max(map(len, used))
    slots = [slot for row in used for slot in [*row, *[False] * (n_columns - len(row))]]
    axes = panel_axes([section.height] * len(slots), n_columns, margin=COLOR_BAR * per_row + ROW_NAME)
    for panel, slot in zip(axes, slots, strict=True):
        if not slot:
            panel.remove()
    drawn = [panel for panel, slot in zip(axes, slots, strict=True) if slot]
    drawn[0].figure.suptitle(section.title)
    return drawn


def _draw_markers(axes: Sequence[Axes], markers: Sequence[Marker], section: SectionMap, unit: str) -> None:
    """Draw one row of markers, one colour bar each."""
    panels = iter(axes)
    for marker in markers:
        norm = _robust_scale(np.concatenate([*marker.maps.values()]))
        for kind, values in marker.maps.items():
            panel = next(panels)
            mappable = draw_spots(panel, section, values, cmap=colormaps["viridis"], norm=norm)
            caption = kind + (marker.caption if kind == "predicted" else "")
            panel.set_title(f"{marker.gene}\n{caption}", fontsize="medium")
        bar = add_color_bar(panel, mappable, unit if marker is markers[-1] else "")
        bar.yaxis.set_major_locator(MaxNLocator(4))


def _robust_scale(values: np.ndarray) -> Normalize:
    """Colour scale that single extreme spots do not set."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Normalize(0, 1)
    low, high = np.percentile(known, PERCENTILES)
    if low == high:
        low, high = known.min(), known.max()
    return Normalize(low, high if high > low else low + 1)
