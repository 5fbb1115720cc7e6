"""Maps of domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from strecur._anndata import open_table, read_labels, require, write
from strecur._arguments import check_share
from strecur.pl._colors import category_colors, missing_colors, read_categories
from strecur.pl._figure import MAX_COLUMNS, add_legend, finish, given_axes, panel_axes
from strecur.pl._maps import draw_categories, made_by, panel_title, read_maps

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    spatial_key: str = "spatial",
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Draw maps of predicted domains, one row per section, beside the annotation and the linear baseline.

    Spots fill their lattice (hexagons for Visium, squares for square lattices); cells without a lattice are circles at
    their coordinates. Where ``uns["spatial"][section]["images"]`` holds the tissue image, spots are circles of their
    true size on it. A label has one colour in all panels. Below a prediction stand its adjusted Rand index and, unless
    it shares no label with ``truth`` (as clusters do), its accuracy on the annotated spots, if ``truth`` is given.

    Parameters
    ----------
    adata
        Spots of one or several sections.
    key
        Column of ``obs`` with the domains: ``key_added`` of :func:`strecur.tl.trm_domains`, or any other labels.
    truth
        Column of ``obs`` with annotated domains, drawn left of the prediction. Missing labels are light grey.
    linear
        Draw the linear baseline, ``obs[f"{key}_linear"]``, right of the prediction.
    library_key
        Column of ``obs`` that tells sections apart; by default the one the prediction was made with.
    library_id
        Section or sections to draw, in this order; by default all.
    img
        Draw the tissue image behind the spots where there is one.
    alpha
        Opacity of the spots, between 0 and 1.
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

    Adds ``uns[f"{key}_colors"]`` (list of hex colours in the order of the categories) if it is absent.

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
    >>> axes = st.pl.domains(adata, "domain", library_key="section")
    >>> len(axes)
    2
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    check_share("alpha", alpha)
    require(table.obs, key, where="obs", hint=made_by(key))
    columns = {} if truth is None else {truth: truth}
    columns[key] = key
    if linear:
        require(table.obs, f"{key}_linear", where="obs", hint=made_by(key))
        columns[f"{key}_linear"] = "linear baseline"
    labels = {column: read_labels(table, column).to_numpy() for column in columns}
    maps = read_maps(table, key, library_key=library_key, library_id=library_id, img=img, spatial_key=spatial_key)
    drawn = {column: np.concatenate([values[section.rows] for section in maps]) for column, values in labels.items()}
    names = read_categories(table.obs[key])
    for column in columns:
        present = set(drawn[column])
        names += [name for name in read_categories(table.obs[column]) if name in present and name not in names]
    colors = category_colors(table, key, names, like=truth)
    unlabelled = any(None in values for values in drawn.values())

    heights = [section.height for section in maps for _ in columns]
    if ax is None:
        legend = [*names, *(["unlabelled"] if unlabelled else [])]
        axes = panel_axes(heights, len(columns) if len(columns) > 1 else min(len(maps), MAX_COLUMNS), legend=legend)
    else:
        axes = given_axes(ax, len(heights), f"{len(maps)} sections × {len(columns)} maps")
    panels = iter(axes)
    for section in maps:
        for column, caption in columns.items():
            panel = next(panels)
            values = labels[column][section.rows]
            draw_categories(panel, section, values, colors, alpha=alpha)
            panel.set_title(panel_title(section, caption), fontsize="medium")
            if truth is not None and column != truth:
                panel.set_xlabel(_score(labels[truth][section.rows], values))
    add_legend(axes, colors, unlabelled=unlabelled, own_figure=ax is None)
    write(table, uns=missing_colors(table, key, colors))
    return finish(axes, show=show)


def _score(truth: np.ndarray, predicted: np.ndarray) -> str:
    """Adjusted Rand index and accuracy in words, empty without annotated spots."""
    from strecur.metrics import domain_scores

    scores = domain_scores(truth, predicted)
    if not scores["n_spots"]:
        return ""
    # clusters do not bear the names of domains: no label can be right
    comparable = {*truth} & {*predicted} - {None}
    return f"ARI {scores['ari']:.2f}" + (f", accuracy {scores['accuracy']:.0%}" if comparable else "")
