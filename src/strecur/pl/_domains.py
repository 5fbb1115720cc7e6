"""Maps of domains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from strecur._anndata import read_labels, write
from strecur._arguments import check_share
from strecur._labels import read_categories
from strecur.pl._colors import category_colors, legend_colors, missing_colors
from strecur.pl._figure import add_legend, finish, one_or_all
from strecur.pl._maps import MapFigure
from strecur.pl._results import open_result
from strecur.pl._spots import draw_categories

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def domains(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    truth: str | None = None,
    linear: bool = False,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = True,
    alpha: float = 1.0,
    spatial_key: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot maps of predicted domains, one row per section, beside the annotation and the linear baseline.

    Spots fill their lattice (hexagons for Visium, squares for square lattices). Cells without a lattice are circles at
    their coordinates. On the tissue image of ``uns["spatial"][section]["images"]``, spots are circles of their true
    size. A label has the same colour in all panels. With ``truth``, the adjusted Rand index is written below each
    prediction, and its accuracy on the annotated spots if the two have labels in common (clusters have none).

    The first panel of a section has a scale bar if its scale is known: spots of a hexagonal lattice are taken to be
    100 µm apart, as on Visium slides; for others, the scale factor ``microns_per_pixel`` of ``uns["spatial"][section]``
    is used (1 for coordinates in micrometres).

    Parameters
    ----------
    adata
        Spots of one or several sections.
    key
        Column of ``obs`` with the domains: ``key_added`` of :func:`strecur.tl.trm_domains`, or any other labels.
    truth
        Column of ``obs`` with annotated domains, plotted left of the prediction. Missing labels are light grey.
    linear
        Plot the linear baseline, ``obs[f"{key}_linear"]``, right of the prediction.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to plot, in this order. If ``None`` (default), all.
    img
        Plot the tissue image, if there is one: behind the spots or, with several maps per section, once in a panel of
        its own left of them.
    alpha
        Opacity of the spots, between 0 and 1.
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

    Adds ``uns[f"{key}_colors"]`` (hex colours in the order of the categories) if it is absent.

    Raises
    ------
    KeyError
        If a column, a section or the lattice is missing.
    ValueError
        If ``ax`` does not hold one axes per panel, or spots lie outside their image.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> axes = st.pl.domains(adata, "domain")
    >>> len(axes)
    2
    """
    check_share("alpha", alpha)
    baseline = {f"{key}_linear": "linear baseline"} if linear else {}
    table = open_result(adata, key, table_key=table_key, obs=[key, *baseline])
    captions = ({} if truth is None else {truth: "annotation"}) | {key: _caption(table, key)} | baseline
    labels = {column: read_labels(table, column).to_numpy() for column in captions}
    place: dict[str, Any] = {"library_key": library_key, "library_id": library_id, "spatial_key": spatial_key}
    maps = MapFigure.read(table, key, **place, img=img, beside=len(captions) > 1)
    drawn = {column: values[maps.rows] for column, values in labels.items()}
    colors = category_colors(table, key, _all_labels(table, key, drawn), like=truth)
    legend = legend_colors(colors, unlabelled=any(None in values for values in drawn.values()))
    axes = maps.panels(ax, len(captions), "maps", legend=list(legend))
    for section, panels in maps.with_panels(axes):
        for panel, (column, caption) in zip(panels, captions.items(), strict=True):
            values = labels[column][section.rows]
            draw_categories(panel, section, values, colors, alpha=alpha)
            panel.set_title(section.caption(caption), fontsize="medium")
            if truth is not None and column != truth:
                panel.set_xlabel(_describe_agreement(labels[truth][section.rows], values))
    add_legend(axes, legend, own_figure=ax is None)
    write(table, uns=missing_colors(table, key, colors))
    return finish(one_or_all(axes), show=show)


def _caption(table: AnnData, key: str) -> str:
    """Return the title of the maps of ``obs[key]``."""
    return "predicted domains" if f"{key}_proba" in table.obsm else key.replace("_", " ")


def _all_labels(table: AnnData, key: str, drawn: Mapping[str, np.ndarray]) -> list[str]:
    """Return the categories of ``key``, then the labels that other columns add to the maps."""
    names = read_categories(table.obs[key])
    for column, values in drawn.items():
        present = set(values)
        names += [name for name in read_categories(table.obs[column]) if name in present and name not in names]
    return names


def _describe_agreement(truth: np.ndarray, predicted: np.ndarray) -> str:
    """Return adjusted Rand index and accuracy as text, empty without annotated spots."""
    from strecur.metrics import domain_scores

    scores = domain_scores(truth, predicted)
    if not scores["n_spots"]:
        return ""
    # without common names, as for clusters, accuracy has no meaning
    comparable = {*truth} & {*predicted} - {None}
    return f"ARI {scores['ari']:.2f}" + (f", accuracy {scores['accuracy']:.0%}" if comparable else "")
