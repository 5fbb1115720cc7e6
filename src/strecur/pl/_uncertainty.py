"""Confidence of spots, and whether probabilities and label sets are calibrated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import MaxNLocator, PercentFormatter

from strecur._anndata import read_labels
from strecur._arguments import check_whole
from strecur.pl._colors import BLUE, RED
from strecur.pl._figure import MAX_COLUMNS, add_color_bar, finish, make_panels, one_or_all, open_frame, percent
from strecur.pl._maps import MapFigure
from strecur.pl._results import choose_sections, open_result, read_answer_labels
from strecur.pl._spots import draw_spots

LEAST_SHARE = 1e-3
"""Share of stranger training spots that is told apart from zero."""

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

    from strecur.pl._spots import SectionMap


def confidence(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    truth: str | None = None,
    novelty: bool | None = None,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    img: bool = False,
    spatial_key: str | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot confidence and novelty of every spot, one row per section, and the confidence of right and wrong spots.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obs[f"{key}_confidence"]`` is plotted on a scale from 0 to 1.
    truth
        Column of ``obs`` with annotated domains. The distributions of confidence in correctly and in wrongly labelled
        spots are plotted beside each map; spots without annotation are left out. If ``None`` (default), only maps.
    novelty
        Plot ``obs[f"{key}_novelty"]`` too, as the share of training spots that were stranger than each spot, so that
        the spots of unseen tissue stand out. If ``None`` (default), where it is known and ``ax`` is ``None``.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to plot, in this order. If ``None`` (default), all.
    img
        Plot the tissue image behind the spots, if there is one.
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
    >>> axes = st.pl.confidence(adata, truth="domain")
    """
    needed = [f"{key}_confidence", *([] if truth is None else [key]), *([f"{key}_novelty"] if novelty else [])]
    table = open_result(adata, key, table_key=table_key, obs=needed)
    strange = _read_novelty(table, key) if novelty or (novelty is None and ax is None) else None
    maps = MapFigure.read(table, key, library_key=library_key, library_id=library_id, img=img, spatial_key=spatial_key)
    values = table.obs[needed[0]].to_numpy(dtype=float, na_value=np.nan)
    columns = [] if truth is None else [read_labels(table, name).to_numpy() for name in (truth, key)]

    n_maps = 1 if strange is None else 2
    axes = maps.panels(ax, n_maps + (truth is not None), margin=0.8)
    for section, panels in maps.with_panels(axes):
        shown = values[section.rows]
        mappable = draw_spots(panels[0], section, shown, cmap=colormaps["viridis"], norm=Normalize(0, 1))
        panels[0].set_title(section.caption("confidence"), fontsize="medium")
        if strange is not None:
            _draw_novelty(panels[1], section, strange[section.rows])
        if truth is not None:
            _draw_distributions(panels[-1], shown, *(labels[section.rows] for labels in columns))
        if len(panels) > 1:
            # without a label, whose room the panels beside it need; the title names the quantity
            add_color_bar(panels[0], mappable)
    if len(axes) == len(maps.sections):
        # one scale for all, beside the first row
        add_color_bar(axes[min(len(axes), MAX_COLUMNS) - 1], mappable, "confidence")
    return finish(one_or_all(axes), show=show)


def _read_novelty(table: AnnData, key: str) -> np.ndarray | None:
    """Return the novelty of all spots; ``None`` where the model did not know it."""
    column = f"{key}_novelty"
    if column not in table.obs:
        return None
    values = table.obs[column].to_numpy(dtype=float, na_value=np.nan)
    return None if np.isnan(values).all() else values


def _draw_novelty(ax: Axes, section: SectionMap, novelty: np.ndarray) -> None:
    """Draw the share of stranger training spots on a logarithmic scale, on which unseen tissue stands out."""
    stranger = np.maximum(1 - novelty, LEAST_SHARE)
    mappable = draw_spots(ax, section, stranger, cmap=colormaps["magma"], norm=LogNorm(LEAST_SHARE, 1))
    ax.set_title(section.caption("stranger training spots"), fontsize="medium")
    add_color_bar(ax, mappable).yaxis.set_major_formatter(percent)


def _draw_distributions(ax: Axes, values: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> None:
    compared = ~(pd.isna(truth) | pd.isna(answer) | np.isnan(values))
    for name, color, spots in (
        ("right", BLUE, compared & (truth == answer)),
        ("wrong", RED, compared & (truth != answer)),
    ):
        n = int(spots.sum())
        style: dict[str, Any] = {"histtype": "stepfilled", "facecolor": (color, 0.35), "edgecolor": color}
        ax.hist(
            values[spots],
            bins=np.linspace(0, 1, 26).tolist(),
            weights=np.full(n, 1 / max(n, 1)),
            label=f"{name} ({n:,} spots)",
            linewidth=1.2,
            **style,
        )
    ax.yaxis.set_major_formatter(percent)
    ax.set(xlabel="confidence", ylabel="share of spots", xlim=(0, 1))
    open_frame(ax)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False, fontsize="small")


def reliability(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    truth: str,
    library_key: str | None = None,
    library_id: str | Sequence[str] | None = None,
    n_bins: int = 15,
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    table_key: str | None = None,
) -> Axes | list[Axes] | None:
    """Plot a reliability diagram of the probabilities and the coverage of label sets, over all annotated spots.

    The accuracy of spots of similar confidence (points, whose area grows with the number of spots) lies on the diagonal
    for a calibrated model. Bars are the share of spots in each bin of confidence. If there are label sets, the second
    panel shows their sizes, and how many sets of each size hold the annotated domain.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.trm_domains`.
    key
        The ``key_added`` of that call. ``obsm[f"{key}_proba"]`` is plotted, and ``obsm[f"{key}_set"]`` if it exists.
    truth
        Column of ``obs`` with annotated domains.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one of the prediction, else the one
        given to :func:`strecur.pp.to_grid`.
    library_id
        Section or sections to use. If ``None`` (default), all.
    n_bins
        Number of bins of confidence, of equal width.
    ax
        Axes to plot on: confidence and, if there are any, label sets. If ``None`` (default), a new figure.
    show
        If ``True``, show the figure and return ``None``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    The axes, as a list if there are two; ``None`` with ``show=True``.

    Raises
    ------
    KeyError
        If a result, a column or a section is missing.
    ValueError
        If no spot is annotated, or ``ax`` does not hold one axes per panel.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> ax = st.pl.reliability(adata, truth="domain")
    """
    check_whole("n_bins", n_bins)
    table = open_result(adata, key, table_key=table_key, obsm=[f"{key}_proba"], uns=[key])
    chosen = choose_sections(table, key, library_key=library_key, library_id=library_id)
    truths = read_labels(table, truth)
    rows = np.concatenate([*chosen.rows.values()])
    rows = rows[truths.notna().to_numpy()[rows]]
    if not len(rows):
        msg = f"no spot of the sections {chosen.names} is annotated in adata.obs[{truth!r}]"
        raise ValueError(msg)
    right = truths.to_numpy()[rows][:, None] == np.array(read_answer_labels(table, key), dtype=object)
    proba = np.asarray(table.obsm[f"{key}_proba"])[rows]
    sets = np.asarray(table.obsm[f"{key}_set"])[rows] if f"{key}_set" in table.obsm else None
    n_panels = 1 if sets is None else 2
    axes = make_panels(ax, [0.9] * n_panels, n_panels, contents="confidence, label sets")
    _draw_reliability(axes[0], proba, right, n_bins)
    if sets is not None:
        _draw_sets(axes[1], sets, right, table.uns[key].get("params", {}).get("coverage"))
    return finish(one_or_all(axes), show=show)


def _draw_reliability(ax: Axes, proba: np.ndarray, right: np.ndarray, n_bins: int) -> None:
    confidence = proba.max(axis=1)
    correct = right[np.arange(len(right)), proba.argmax(axis=1)]
    place = np.clip((confidence * n_bins).astype(int), 0, n_bins - 1)
    bins = pd.DataFrame({"confidence": confidence, "correct": correct}).groupby(place).agg(["mean", "size"])
    share = bins["confidence"]["size"] / len(proba)
    ax.bar((bins.index + 0.5) / n_bins, share, width=1 / n_bins, color="0.88", label="share of spots")
    ax.plot([0, 1], [0, 1], color="0.5", linestyle=":", linewidth=1)
    means, accuracies = bins["confidence"]["mean"], bins["correct"]["mean"]
    ax.plot(means, accuracies, color=BLUE, linewidth=1)
    ax.scatter(means, accuracies, s=10 + 150 * share, color=BLUE, zorder=3, label="accuracy", clip_on=False)
    error = (share * (accuracies - means).abs()).sum()
    ax.set_title(f"calibration error {error:.3f}", fontsize="medium")
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    open_frame(ax)
    ax.legend(frameon=False, loc="upper left", fontsize="small")


def _draw_sets(ax: Axes, sets: np.ndarray, right: np.ndarray, coverage: float | None) -> None:
    covered = (sets & right).any(axis=1)
    by_size = pd.Series(covered).groupby(sets.sum(axis=1)).agg(["sum", "size"]) / len(sets)
    hit, all_spots = by_size["sum"], by_size["size"]
    ax.bar(by_size.index, hit, color=BLUE, label="annotated domain in the set")
    ax.bar(by_size.index, all_spots - hit, bottom=hit, color=RED, label="not in the set")
    wanted = "" if coverage is None else f" ({coverage:.0%} wanted)"
    ax.set_title(f"{covered.mean():.1%} covered{wanted}", fontsize="medium")
    ax.set_xlabel(f"domains in the set ({sets.sum(axis=1).mean():.1f} on average)")
    ax.set(ylabel="share of spots", ylim=(0, 1.25 * all_spots.max()))
    ax.set_xlim(0.4, sets.shape[1] + 0.6)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    open_frame(ax)
    ax.legend(frameon=False, loc="upper right", fontsize="small")
