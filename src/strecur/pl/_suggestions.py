"""Places to annotate next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from strecur._anndata import open_table, require
from strecur.pl._colors import RED
from strecur.pl._figure import MAX_COLUMNS, add_color_bar, finish, one_or_all
from strecur.pl._maps import MapFigure
from strecur.pl._spots import draw_spots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from strecur.pl._spots import SectionMap


def suggestions(
    adata: AnnData | SpatialData,
    key: str = "suggestions",
    *,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    spatial_key: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot the places that are suggested for annotation, on a map of the uncertainty of each section.

    Circles are the suggested places, numbered by rank. Annotated spots are grey.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.suggest_annotation`.
    key
        The ``key_added`` of that call. ``obs[key]`` and ``obs[f"{key}_weight"]`` are plotted.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the suggestions, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to plot, in this order. If ``None`` (default), all.
    img
        Plot the tissue image behind the spots, if there is one.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots, used for images and irregular layouts. If
        ``None`` (default), the one given to :func:`strecur.pp.to_grid`, else ``"spatial"``.
    ax
        Axes to plot on, one per section. If ``None`` (default), a new figure.
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
        If a result, a section or the lattice is missing.
    ValueError
        If ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> st.tl.suggest_annotation(adata, model, n=3)
    >>> axes = st.pl.suggestions(adata)
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    for name in (key, f"{key}_weight"):
        hint = f"Run strecur.tl.suggest_annotation(adata, model, key_added={key!r}) first."
        require(table.obs, name, where="obs", hint=hint)
    maps = MapFigure.read(table, key, library_key=library_key, library_id=library_id, img=img, spatial_key=spatial_key)
    weights, ranks = (table.obs[name].to_numpy(dtype=float, na_value=np.nan) for name in (f"{key}_weight", key))
    largest = np.nanmax([*weights[maps.rows], 0.01])

    axes = maps.panels(ax, 1, "maps", margin=0.8)
    for section, (panel,) in maps.with_panels(axes):
        shown = weights[section.rows]
        mappable = draw_spots(panel, section, shown, cmap=colormaps["YlGnBu"], norm=Normalize(0, largest))
        _draw_places(panel, section, ranks[section.rows])
        n_places = len(np.unique(ranks[section.rows][np.isfinite(ranks[section.rows])]))
        caption = f"{n_places} place{'' if n_places == 1 else 's'} to annotate"
        panel.set_title(section.caption(caption), fontsize="medium")
    add_color_bar(axes[min(len(axes), MAX_COLUMNS) - 1], mappable, "uncertainty or novelty")
    return finish(one_or_all(axes), show=show)


def _draw_places(ax: Axes, section: SectionMap, ranks: np.ndarray) -> None:
    """Draw a circle around each place, with its rank beside it."""
    for rank in np.unique(ranks[np.isfinite(ranks)]):
        own = ranks == rank
        x, y = section.x[own].mean(), section.y[own].mean()
        radius = np.hypot(section.x[own] - x, section.y[own] - y).max() + 0.6 * section.width
        ax.add_patch(Circle((x, y), radius, fill=False, edgecolor=RED, linewidth=1.6))
        text = ax.annotate(f"{rank:.0f}", (x + 0.7 * radius, y - 0.7 * radius), color=RED, fontsize=9, weight="bold")
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
