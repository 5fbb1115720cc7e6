"""Global tokens of sections."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._anndata import open_table, require
from strecur.metrics._structure import principal_components
from strecur.pl._colors import BLUE, category_colors
from strecur.pl._figure import add_legend, finish, make_panel, open_frame
from strecur.pl._results import choose_sections, made_by, value_by_section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

TOKENS = "slide_tokens"


def slide_tokens(
    adata: AnnData | SpatialData,
    key: str = "trm_expression",
    *,
    color: str | None = None,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | None:
    """Plot the global tokens of sections, which networks use to compare spots with their whole section.

    Each dot is a section: its tokens after the last outer step, on the first two principal components of the sections
    shown, with the share of their variance. In HiST :cite:p:`hist` this is the calibration token (Fig. 4): sections of
    one patient, or of one laboratory, lie together if the network has learned to tell them apart.

    Parameters
    ----------
    adata
        Spots of one or several sections; at least two, with the results of :func:`strecur.tl.predict_expression` or
        :func:`strecur.tl.trm_domains` by a network with global tokens.
    key
        The ``key_added`` of that call. ``uns[key]["slide_tokens"]`` is plotted.
    color
        Column of ``obs`` that is constant in each section, such as the patient, for the colours of sections.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to plot. If ``None`` (default), all.
    ax
        Axes to plot on. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If the result, its tokens, a column or a section is missing.
    ValueError
        If there are tokens of fewer than two sections, or a column is not constant in each section.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> ax = st.pl.slide_tokens(adata, "trm_domains")
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    require(table.uns, key, where="uns", hint=made_by(key, "predict_expression"))
    chosen = choose_sections(table, key, library_key=library_key, library_id=library_id)
    tokens = _read_tokens(table, key, chosen.names)
    groups = value_by_section(table, chosen, color)
    place, share = principal_components(tokens.to_numpy())
    colors = {"": BLUE} if color is None else category_colors(table, color, sorted(groups.unique()))
    panel = make_panel(ax, "one of all sections", (6, 4.5))
    x, y = place.T
    panel.scatter(x, y, c=[colors[groups[name]] for name in tokens.index], s=45, edgecolors="white", linewidths=0.5)
    for name, xy in zip(tokens.index, place, strict=True):
        panel.annotate(name, xy, xytext=(4, 4), textcoords="offset points", fontsize="small")
    panel.set(**{f"{axis}label": f"component {i + 1} ({share[i]:.0%})" for i, axis in enumerate("xy")})
    panel.margins(0.12)
    open_frame(panel)
    if color:
        add_legend([panel], colors, own_figure=ax is None)
    return finish(panel, show=show)


def _read_tokens(table: AnnData, key: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the tokens of some sections, sections × values, without those that were not predicted."""
    tool = "trm_domains" if "categories" in table.uns[key] else "predict_expression"
    hint = f"{made_by(key, tool)} Only networks with global tokens (n_global of the backbone) write them."
    require(table.uns[key], TOKENS, where=f"uns[{key!r}]", hint=hint)
    values = np.asarray(table.uns[key][TOKENS], dtype=float)
    sections = table.uns[key]["sections"].index.astype(str)
    tokens = pd.DataFrame(values.reshape(len(values), -1), index=sections).reindex(names).dropna()
    if len(tokens) < 2:
        msg = f"there are tokens of {len(tokens)} of the sections {list(names)}; at least 2 are needed to compare them"
        raise ValueError(msg)
    return tokens
