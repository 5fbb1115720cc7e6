"""Maps of measured and predicted marker genes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.colors import ListedColormap, Normalize, to_rgb
from matplotlib.ticker import MaxNLocator

from strecur._anndata import open_table
from strecur._arguments import as_names, check_whole
from strecur.pl._colors import MUTED
from strecur.pl._expression import Reliability, read_expression
from strecur.pl._figure import add_color_bar, check_axes, finish, make_panels, one_or_all
from strecur.pl._maps import MapFigure
from strecur.pl._scale import add_scale_bar
from strecur.pl._spots import draw_spots, draw_tissue

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from strecur.pl._expression import ExpressionPair
    from strecur.pl._spots import SectionMap

MAX_GENES_PER_ROW = 4
SLIDE = 16 / 9  # width ÷ height
TITLE = 0.25  # height of a panel's title ÷ its width
COLOR_BAR, ROW_NAME = 0.6, 0.4  # inches
KINDS = ("measured", "predicted")
MUTING = 0.7  # share of grey in the colours of genes of low reliability
PERCENTILES = (1, 99)  # ends of the colour scale, robust to extreme spots


@dataclass(frozen=True)
class Marker:
    """One gene in one section.

    Attributes
    ----------
    gene
        Its name.
    maps
        Values by kind of map.
    caption
        Its score, as the end of the title of the predicted map.
    note
        Its reliability, behind its name, if that is low and not the score already.
    is_low
        Whether it is too unreliable for the predicted map to be shown like others.
    """

    gene: str
    maps: dict[str, np.ndarray]
    caption: str
    note: str
    is_low: bool


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
    spatial_key: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot maps of measured and predicted expression of marker genes in one section.

    Both maps of a gene share a colour scale, from the 1st to the 99th percentile of their values. Measured values are
    on the scale of the prediction. The title of the predicted map has the Pearson correlation with the measured one
    or, without measurements (a section with H&E only), the reliability of the gene as estimated in training. If it was
    estimated for the linear baseline alone, the title says so. Predicted maps of genes whose reliability is below
    ``settings.min_reliability`` are pale and have grey titles that state it. A gene that is only measured or only
    predicted has one map. See Fig. 13 of the spatial TRM :cite:p:`spatialtrm`.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.predict_expression`.
    genes
        Genes to plot, or a dictionary of gene lists by biological axis, such as
        ``{"proliferation": ["MKI67", "TOP2A"]}``. Every axis starts a row, with its name on the left.
    key
        The ``key_added`` of that call. ``obsm[key]`` and ``uns[key]`` are plotted.
    genes_per_row
        Number of genes side by side. If ``None`` (default), up to four, to bring the figure closest to the shape of a
        slide.
    layer
        Layer with raw counts. If ``None`` (default), ``X``. They are plotted as log2(count + 1), after normalising
        them as in training if the model predicts normalised values.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section to plot; required if there are several.
    img
        Plot the tissue image on the left of the first row, if there is one. If the lattice is rotated or mirrored
        relative to the image, spots are circles at their coordinates.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts. If
        ``None`` (default), the one given to :func:`strecur.pp.to_grid`, else ``"spatial"``.
    ax
        Axes to plot on, one per panel in reading order. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, as a list if there are several panels; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If the prediction, a section or the lattice is missing, or genes are neither measured nor predicted.
    ValueError
        If ``genes`` is empty, there are several sections and no ``library_id``, ``layer`` does not hold counts, spots
        lie outside their image, or ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, mpp=1.0)
    >>> model = st.tl.train_expression(adata, genes=5, training={"max_epochs": 1})
    >>> st.tl.predict_expression(adata, model)
    >>> axes = st.pl.marker_panel(adata, model.genes[:2], library_id="S1")
    """
    if genes_per_row is not None:
        check_whole("genes_per_row", genes_per_row)
    table = open_table(adata, table_key=table_key, read_only=True)
    groups = _gene_groups(genes)
    wanted = list(dict.fromkeys(gene for group in groups.values() for gene in group))
    expression = read_expression(table, key, layer=layer, also=wanted)
    place: dict[str, Any] = {"library_key": library_key, "library_id": library_id, "spatial_key": spatial_key}
    section = _only_section(MapFigure.read(table, key, **place, img=img, beside=True))
    markers = _read_markers(expression, wanted, section.rows, Reliability.read(table, key))
    kinds = [kind for kind in KINDS if any(kind in marker.maps for marker in markers.values())]
    sizes = [len(group) for group in groups.values()]
    has_image = section.tissue is not None
    per_row = genes_per_row or _genes_per_row(sizes, len(kinds), section.height, has_image=has_image)
    lines = [
        (name, [markers[gene] for gene in group[start : start + per_row]])
        for name, group in groups.items()
        for start in range(0, len(group), per_row)
    ]
    used = [
        [*[k == 0] * has_image, *(kind in marker.maps for marker in part for kind in kinds)]
        for k, (_, part) in enumerate(lines)
    ]
    if ax is None:
        axes = _make_rows(used, section, per_row)
    else:
        axes = check_axes(ax, sum(map(sum, used)), f"{len(lines)} rows of up to {per_row} genes")
    panels = iter(axes)
    for (name, part), row in zip(lines, used, strict=True):
        line = [next(panels) for _ in range(sum(row))]
        tissue = line.pop(0) if has_image and row[0] else None
        if tissue is not None and section.tissue is not None:
            draw_tissue(tissue, section.tissue)
            tissue.set_title("H&E", fontsize="medium")
        line[0].set_ylabel(name, fontsize="large")
        _draw_markers(line, part, section, expression.unit)
    add_scale_bar(axes[0], section.tissue or section)
    return finish(one_or_all(axes), show=show)


def _gene_groups(genes: str | Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return genes by the name of their axis, which is empty for a plain list."""
    given = genes if isinstance(genes, Mapping) else {"": genes}
    named = {str(name): as_names("genes", group) for name, group in given.items()}
    groups = {name: group for name, group in named.items() if group}
    if not groups:
        msg = "there are no genes to draw; pass a list of names, or a dictionary of lists"
        raise ValueError(msg)
    return groups


def _only_section(maps: MapFigure) -> SectionMap:
    if len(maps.sections) > 1:
        names = [section.title for section in maps.sections]
        msg = f"marker_panel plots one section; choose it with library_id out of {names}"
        raise ValueError(msg)
    return maps.sections[0]


def _read_markers(
    expression: ExpressionPair, genes: list[str], rows: np.ndarray, reliability: Reliability
) -> dict[str, Marker]:
    """Return values and scores of every gene in one section."""
    unknown = [gene for gene in genes if gene not in expression.measured and gene not in expression.predicted]
    if unknown:
        msg = (
            f"genes {unknown} are neither predicted nor measured (as {expression.unit}); "
            f"predicted are {expression.describe_predicted()}"
        )
        raise KeyError(msg)
    scores = expression.scores(rows)
    markers = {}
    for gene, is_low in zip(genes, reliability.is_low(genes), strict=True):
        both = {"measured": expression.measured, "predicted": expression.predicted}
        maps = {kind: values[gene].to_numpy(dtype=float)[rows] for kind, values in both.items() if gene in values}
        note = f" ({_describe(reliability.name, reliability.pcc[gene])})" if is_low and gene in scores else ""
        markers[gene] = Marker(gene, maps, _score_of_gene(gene, scores, reliability), note, bool(is_low))
    return markers


def _score_of_gene(gene: str, scores: pd.Series, reliability: Reliability) -> str:
    """Return the correlation of a gene in this section, else its reliability in training, as the end of a title."""
    if gene in scores:
        return f", {_describe('PCC', scores[gene])}"
    return f", {_describe(reliability.name, reliability.pcc[gene])}" if gene in reliability.pcc else ""


def _describe(name: str, score: float) -> str:
    return f"{name} undefined" if np.isnan(score) else f"{name} {score:.2f}"


def _genes_per_row(sizes: list[int], n_kinds: int, height: float, *, has_image: bool) -> int:
    """Return the number of genes side by side that brings the figure closest to the shape of a slide."""

    def misfit(per_row: int) -> float:
        n_rows = sum(-(-size // per_row) for size in sizes)
        shape = (n_kinds * per_row + has_image) / (n_rows * (height + TITLE))
        return abs(np.log(shape / SLIDE))

    return min(range(1, min(max(sizes), MAX_GENES_PER_ROW) + 1), key=misfit)


def _make_rows(used: list[list[bool]], section: SectionMap, per_row: int) -> list[Axes]:
    """Make a figure with a panel wherever ``used`` is true, row by row."""
    n_columns = max(map(len, used))
    slots = [slot for row in used for slot in [*row, *[False] * (n_columns - len(row))]]
    margin = COLOR_BAR * per_row + ROW_NAME
    axes = make_panels(None, [section.height] * len(slots), n_columns, contents="", margin=margin)
    for panel, slot in zip(axes, slots, strict=True):
        if not slot:
            panel.remove()
    drawn = [panel for panel, slot in zip(axes, slots, strict=True) if slot]
    drawn[0].figure.suptitle(section.title)
    return drawn


def _draw_markers(axes: Sequence[Axes], markers: Sequence[Marker], section: SectionMap, unit: str) -> None:
    """Draw one row of markers with a colour bar each."""
    panels = iter(axes)
    for marker in markers:
        norm = _robust_scale(np.concatenate([*marker.maps.values()]))
        for kind, values in marker.maps.items():
            panel = next(panels)
            if kind == "measured":
                drawn = draw_spots(panel, section, values, cmap=colormaps["viridis"], norm=norm)
                panel.set_title(f"{marker.gene}\n{kind}", fontsize="medium")
                mappable = drawn
                continue
            cmap, color = (_muted_colors(), MUTED) if marker.is_low else (colormaps["viridis"], rcParams["text.color"])
            drawn = draw_spots(panel, section, values, cmap=cmap, norm=norm)
            panel.set_title(f"{marker.gene}{marker.note}\n{kind}{marker.caption}", fontsize="medium", color=color)
            # the bar is that of the measured map, if there is one
            mappable = mappable if "measured" in marker.maps else drawn
        bar = add_color_bar(panel, mappable, unit if marker is markers[-1] else "")
        bar.yaxis.set_major_locator(MaxNLocator(4))


def _robust_scale(values: np.ndarray) -> Normalize:
    """Return a colour scale that is robust to extreme spots."""
    known = values[np.isfinite(values)]
    if not known.size:
        return Normalize(0, 1)
    low, high = np.percentile(known, PERCENTILES)
    if low == high:
        low, high = known.min(), known.max()
    return Normalize(low, high if high > low else low + 1)


def _muted_colors() -> ListedColormap:
    """Return pale viridis, for predictions that should not be relied on."""
    grey = np.array(to_rgb(MUTED))
    return ListedColormap(MUTING * (grey + 1) / 2 + (1 - MUTING) * colormaps["viridis"](np.linspace(0, 1, 256))[:, :3])
