"""Measured and predicted expression: both on one scale, and their correlation by gene."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import rcParams

from strecur._anndata import find_genes, open_table, read_matrix, require, require_counts
from strecur._arguments import as_names, check_number, check_whole
from strecur._settings import settings
from strecur.pl._colors import BLUE, MUTED, RED
from strecur.pl._figure import finish, make_panel, open_frame
from strecur.pl._results import choose_sections, made_by

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

LABELS_AT = 1.04  # of the width of the axes
LINE_SPACING = 1.25


@dataclass(frozen=True)
class ExpressionPair:
    """Measured and predicted values, spots × genes, on the scale of the prediction.

    ``measured`` holds the genes of the object, ``predicted`` those of the model.
    """

    measured: pd.DataFrame
    predicted: pd.DataFrame
    unit: str

    def scores(self, rows: np.ndarray) -> pd.Series:
        """Return the Pearson correlation over some spots for every gene that is measured and predicted."""
        from strecur.metrics import pcc_per_gene

        genes = self.predicted.columns.intersection(self.measured.columns, sort=False)
        measured, predicted = (values[genes].to_numpy()[rows] for values in (self.measured, self.predicted))
        return pd.Series(pcc_per_gene(measured, predicted), index=genes)

    def describe_predicted(self) -> str:
        """List the first predicted genes for a message."""
        names = ", ".join(self.predicted.columns[:10])
        n_genes = self.predicted.shape[1]
        return names if n_genes <= 10 else f"{names} … ({n_genes} in all)"


@dataclass(frozen=True)
class Reliability:
    """Correlation of each gene that was estimated in training, and what to call it.

    Where no section was held out from the network, it is that of the linear baseline, and the name says so.
    """

    name: str
    pcc: pd.Series

    @classmethod
    def read(cls, table: AnnData, key: str) -> Reliability:
        """Read the reliability of the answer ``key``; empty if it is not known."""
        found = table.uns[key].get("reliability")
        if found is None:
            return cls("", pd.Series(dtype=float))
        linear_alone = "pcc_network" in found and bool(found["pcc_network"].isna().all())
        has_network = f"{key}_network" in table.obsm
        return cls("reliability of linear" if linear_alone and has_network else "reliability", found["pcc"])

    def is_low(self, genes: Sequence[str]) -> np.ndarray:
        """Return which genes are below ``settings.min_reliability``; a gene of unknown reliability is not."""
        if settings.min_reliability is None:
            return np.zeros(len(genes), dtype=bool)
        limit = check_number("settings.min_reliability", settings.min_reliability)
        return (self.pcc.reindex(genes) < limit).to_numpy()


def read_expression(table: AnnData, key: str, *, layer: str | None, also: Sequence[str] = ()) -> ExpressionPair:
    """Read the prediction ``key``, and the measured values of its genes and of those in ``also``."""
    predicted = read_predicted(table, key, key)
    counts = _read_counts(table, list(dict.fromkeys([*predicted.columns, *also])), layer)
    target = str(table.uns[key].get("target", "log2"))
    if target == "counts":
        has_mean = f"{key}_log2" in table.obsm
        predicted = read_predicted(table, key, f"{key}_log2") if has_mean else np.log2(predicted + 1)
    if target in {"log2", "counts"}:
        return ExpressionPair(np.log2(counts + 1), predicted, "log2(count + 1)")
    # sections with H&E only have no library size
    measured = np.log2(counts.mul(_scale_factors(table, key, layer), axis=0) + 1) if counts.shape[1] else counts
    return ExpressionPair(measured, predicted, "log2(normalised count + 1)")


def _scale_factors(table: AnnData, key: str, layer: str | None) -> np.ndarray:
    """Return the factor that normalises the counts of every spot as in training; NaN for spots without counts."""
    record = table.uns[key]
    require(record, "target_sum", where=f"uns[{key!r}]", hint=made_by(key, "predict_expression"))
    if "size_factor_key" in record:
        column = str(record["size_factor_key"])
        require(table.obs, column, where="obs", hint="It held the library sizes of the spots in training.")
        sizes = table.obs[column].to_numpy(dtype=float)
    else:
        sizes = np.asarray(read_matrix(table, layer).sum(axis=1), dtype=float).ravel()
    return float(record["target_sum"]) / np.where(sizes > 0, sizes, np.nan)


def read_predicted(table: AnnData, key: str, slot: str) -> pd.DataFrame:
    """Read predicted values with the names of their genes."""
    hint = made_by(key, "predict_expression")
    require(table.obsm, slot, where="obsm", hint=hint)
    require(table.uns, key, where="uns", hint=hint)
    require(table.uns[key], "var_names", where=f"uns[{key!r}]", hint=hint)
    values, genes = np.asarray(table.obsm[slot]), [str(name) for name in table.uns[key]["var_names"]]
    if values.ndim != 2 or values.shape[1] != len(genes):
        msg = f"obsm[{slot!r}] has shape {values.shape}, but uns[{key!r}]['var_names'] has {len(genes)} genes. {hint}"
        raise ValueError(msg)
    return pd.DataFrame(values, columns=genes)


def _read_counts(table: AnnData, genes: list[str], layer: str | None) -> pd.DataFrame:
    """Read the counts of the genes that are measured in this object."""
    projection, _ = find_genes(table, genes)
    found = np.flatnonzero(projection.getnnz(axis=0))
    if not found.size:
        # with H&E only, X may be missing
        return pd.DataFrame(index=range(table.n_obs))
    counts = read_matrix(table, layer) @ projection[:, found]
    require_counts(counts, table)
    counts = counts.toarray() if hasattr(counts, "toarray") else counts
    return pd.DataFrame(counts, columns=[genes[i] for i in found])


def gene_scores(
    adata: AnnData | SpatialData,
    key: str = "trm_expression",
    *,
    genes: Sequence[str] | None = None,
    n_label: int = 10,
    by_section: bool = False,
    layer: str | None = None,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | None:
    """Plot the Pearson correlation of predicted and measured expression of every gene, best genes first.

    The dotted line is the median over genes. Genes whose reliability in training is below
    ``settings.min_reliability`` have grey dots, and grey names. If there are predictions of the linear baseline in
    ``obsm[f"{key}_linear"]``, a second curve shows their correlation, with genes in its own order. Genes without a
    correlation, because they are constant or were not measured, are left out; their number is written below the axis.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.predict_expression`.
    key
        The ``key_added`` of that call. ``obsm[key]`` and ``uns[key]`` are plotted.
    genes
        Genes to label. If ``None`` (default), the best ones.
    n_label
        Number of best genes to label if ``genes`` is ``None``.
    by_section
        Compute correlations within sections: a thin line for each section, and a thick one for their mean gene by gene.
        If ``False`` (default), the spots of all sections are pooled, so that differences between sections count too.
    layer
        Layer with raw counts. If ``None`` (default), ``X``. They are compared as log2(count + 1), after normalising
        them as in training if the model predicts normalised values.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to compare. If ``None`` (default), all.
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
        If the prediction or a section is missing, or some ``genes`` are not predicted.
    ValueError
        If no predicted gene was measured, or ``layer`` holds no counts.

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
    >>> ax = st.pl.gene_scores(adata)
    """
    check_whole("n_label", n_label, least=0)
    genes = None if genes is None else as_names("genes", genes)
    table = open_table(adata, table_key=table_key, read_only=True)
    expression = read_expression(table, key, layer=layer)
    _require_comparable(expression, key, genes or ())
    chosen = choose_sections(table, key, library_key=library_key, library_id=library_id)
    rows = chosen.rows
    parts = rows if by_section else {"": np.concatenate([*rows.values()])}
    panel = make_panel(ax, "one curve of all genes", (7, 4.5))
    ranked = _draw_model(panel, expression, parts, name="prediction", color=BLUE)
    if f"{key}_linear" in table.obsm:
        linear = replace(expression, predicted=read_predicted(table, key, f"{key}_linear"))
        _draw_model(panel, linear, parts, name="linear baseline", color=RED)
    pooling = "mean of {} sections (thin: each)" if by_section else "{} sections pooled"
    ylabel = ["PCC of measured and predicted", *([pooling.format(len(rows))] if len(rows) > 1 else [])]
    panel.set(xlabel=_gene_axis_label(expression, ranked, genes or ()), ylabel="\n".join(ylabel))
    panel.set_title(chosen.titles[chosen.names[0]] if len(rows) == 1 else "", fontsize="medium")
    panel.set(xlim=(0, len(ranked) + 1), ylim=(None, 1))
    open_frame(panel)
    low = _draw_unreliable(panel, ranked, Reliability.read(table, key))
    panel.legend(loc="lower left", frameon=False)
    named = ranked.index[:n_label] if genes is None else ranked.index[ranked.index.isin(genes)]
    _name_genes(panel, ranked, named, low)
    return finish(panel, show=show)


def _require_comparable(expression: ExpressionPair, key: str, genes: Sequence[str]) -> None:
    unknown = [gene for gene in genes if gene not in expression.predicted]
    if unknown:
        msg = f"genes {unknown} are not predicted; uns[{key!r}]['var_names'] has {expression.describe_predicted()}"
        raise KeyError(msg)
    if expression.measured.columns.empty:
        msg = (
            f"none of the {expression.predicted.shape[1]} predicted genes was measured in this object, so there is "
            f"nothing to compare with; uns[{key!r}]['reliability'] has the scores of the genes in training"
        )
        raise ValueError(msg)


def _draw_model(
    ax: Axes, expression: ExpressionPair, parts: Mapping[str, np.ndarray], *, name: str, color: str
) -> pd.Series:
    """Draw the correlations of one model, by part and their mean; return the mean, best gene first."""
    scores = pd.DataFrame({part: expression.scores(rows) for part, rows in parts.items()})
    mean = scores.mean(axis=1)
    if len(parts) > 1:
        for part in parts:
            ax.plot(*_curve(scores[part]), color=color, linewidth=0.8, alpha=0.4, label=f"_{part}")
    ax.axhline(mean.median(), color=color, linewidth=1, linestyle=":")
    ax.plot(*_curve(mean), color=color, linewidth=2.2, label=f"{name}, median {mean.median():.2f}")
    return mean.dropna().sort_values(ascending=False)


def _curve(scores: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    ranked = np.sort(scores.dropna())[::-1]
    return np.arange(1, len(ranked) + 1), ranked


def _gene_axis_label(expression: ExpressionPair, ranked: pd.Series, named: Sequence[str]) -> str:
    """Return the label of the axis, with the number of genes that are not on it and the reasons."""
    n_measured = int(expression.predicted.columns.isin(expression.measured.columns).sum())
    reasons = {
        "undefined (constant)": n_measured - len(ranked),
        "not measured": expression.predicted.shape[1] - n_measured,
    }
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
    absent = [gene for gene in named if gene not in ranked]
    among = f", among them {', '.join(absent)}" if absent else ""
    return "genes, best first" + (f"\nnot shown: {left_out}{among}" if left_out else "")


def _draw_unreliable(ax: Axes, ranked: pd.Series, reliability: Reliability) -> pd.Index:
    """Draw a grey dot on the curve for every gene of low reliability; return these genes."""
    is_low = reliability.is_low(ranked.index)
    if is_low.any():
        n_low = is_low.sum()
        label = f"{reliability.name} below {settings.min_reliability:g}, {n_low} gene{'' if n_low == 1 else 's'}"
        ax.scatter(np.flatnonzero(is_low) + 1, ranked[is_low], s=16, color=MUTED, zorder=3, label=label)
    return ranked.index[is_low]


def _name_genes(ax: Axes, ranked: pd.Series, names: pd.Index, low: pd.Index) -> None:
    """Write names in a column right of the axes, each with a line to its gene on the curve."""
    position = ranked.index.get_indexer(names)
    is_known = ~names.isin(low)
    ax.plot(position[is_known] + 1, ranked.iloc[position[is_known]], "o", color=BLUE, markersize=4)
    height = ax.get_window_extent().height / ax.figure.dpi * 72  # points
    size = min(0.9 * rcParams["font.size"], height / max(len(names), 1) / LINE_SPACING)
    bottom, top = ax.get_ylim()
    gap = LINE_SPACING * size / height * (top - bottom)
    for rank, y in zip(position, spread_out(ranked.iloc[position].to_numpy(), gap, top), strict=True):
        ax.annotate(
            ranked.index[rank],
            (rank + 1, ranked.iloc[rank]),
            xytext=(LABELS_AT, y),
            textcoords=ax.get_yaxis_transform(),
            va="center",
            fontsize=size,
            color=MUTED if ranked.index[rank] in low else rcParams["text.color"],
            arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "relpos": (0, 0.5), "shrinkB": 3},
        )


def spread_out(heights: np.ndarray, gap: float, top: float) -> np.ndarray:
    """Move heights, sorted from high to low, upwards until they are ``gap`` apart, but not above ``top``.

    Lines from a falling curve to labels above it do not cross the curve.
    """
    steps = gap * np.arange(len(heights))
    raised = np.maximum.accumulate((heights + steps)[::-1])[::-1] - steps
    return np.minimum(raised, top - steps)
