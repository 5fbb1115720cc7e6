"""Read the annotation of spots."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from strecur._anndata import check_free, check_key, find_library_key, find_spatial_key, open_table, read_sections, write
from strecur._arguments import check_not_negative
from strecur._labels import sorted_labels
from strecur.pp.annotation.consensus import majority, pairwise_agreement, single_votes
from strecur.pp.annotation.locate import near_other_labels
from strecur.pp.annotation.sources import Found, Keys, describe, read_section, split_by_section
from strecur.pp.annotation.units import check_scale
from strecur.pp.image.cutting import read_coordinates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import Sections

logger = logging.getLogger("strecur")


def read_annotation(
    adata: AnnData | SpatialData,
    source: Any,
    *,
    label_key: str | None = None,
    annotator_key: str | None = None,
    scale: float | str | Mapping[str, float | str] = 1.0,
    border: float = 0.0,
    library_key: str | None = None,
    spatial_key: str | None = None,
    key_added: str = "annotation",
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Read the annotation of spots from Loupe Browser, QuPath, napari, SpatialData shapes or a table.

    The result is a column of ``obs`` for :func:`strecur.tl.train_domains`. Spots that the annotation does not name, and
    those outside of all polygons, are missing there.

    Parameters
    ----------
    adata
        Spots of one or several sections.
    source
        One annotation, or a mapping from section to annotation. An annotation is one of the following, a list of these,
        or a mapping from annotator to these:

        - path of the CSV of Loupe Browser (``Barcode`` and a column of labels), or of another table (``.csv``,
          ``.tsv``, ``.txt``) with a header, or a DataFrame. Spots are in the column named ``barcode``, ``spot_id`` or
          ``cell_id``, else in the index of a DataFrame, else in the first column. They are compared with
          ``obs_names`` and the columns of ``obs``, or by barcode, whatever comes before or after it. A column named
          like ``library_key`` tells sections apart, so that one table can be given for all of them;
        - path of the GeoJSON of QuPath: annotations that are polygons and have a class;
        - a napari shapes layer, the tuple of its data (``layer.as_layer_data_tuple()``), or path of its CSV. napari
          does not save features with it: without a column of labels, the name of the file or layer is the label;
        - name of a shapes element of a SpatialData, in a coordinate system that it shares with the spots, with a column
          of labels of its own or of a table that annotates it; or a GeoDataFrame.

        Polygons belong to one section. Spots are in a polygon if their centre is. Where polygons overlap, the smallest
        one counts, so a region inside of another one may be drawn on top of it.
    label_key
        Column or property of the annotation with the labels. If ``None`` (default), the class of QuPath objects, and
        otherwise the column ``"label"`` or ``"class"``, or the only one.
    annotator_key
        Column or property with the annotator. A spot gets the label that more than half of its annotators give, and
        none otherwise.
    scale
        Units of the spot coordinates per unit of the polygons; one value or one per section. 1 (default) is for
        polygons in the unit of the coordinates: pixels of the full-resolution image for Visium. ``"um"`` is for
        polygons in µm, ``"hires"`` and ``"lowres"`` for those drawn on the downscaled images; ``uns["spatial"]`` has to
        tell their scale. Not for shapes elements, which have transformations of their own.
    border
        Leave out spots that have a spot of another label within this distance, in distances of neighbouring spots. 1
        leaves out one row on each side of a border between two domains, 0 (default) none.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`; without either, all spots are one section.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots; for polygons and ``border``. If ``None`` (default),
        the one given to :func:`strecur.pp.to_grid`, else ``"spatial"``.
    key_added
        Name of the results.
    copy
        Return a changed copy instead of changing ``adata``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``, or with ``copy=True`` the AnnData. Writes, with ``key`` for ``key_added``, in place of the results of
    an earlier call:

    ``obs[key]``
        Label of each spot (categorical), missing where there is none.
    ``obs[f"{key}_agreement"]``
        With several annotators: share of those of the spot who give its most frequent label (float32).
    ``uns[key]``
        ``params``; ``sections``, a table with one row per section: ``n_spots``, ``n_labelled``, ``n_disputed`` (without
        majority), ``n_border`` (left out) and ``n_overlapping`` (in polygons of different labels); ``unmatched``, a
        table of ``section``, ``entry`` and ``reason`` for rows, shapes and polygons without a spot; and, with several
        annotators, ``annotators``, a table of ``annotator``, ``other``, ``n_spots``, ``agreement`` (share of equal
        labels) and ``kappa`` (Cohen) over the spots that both label.
    ``uns[f"{key}_colors"]``
        Colours of the categories, if the annotation has one for each.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    KeyError
        If a column, a property, a section or the coordinates are missing.
    TypeError
        If the source is nothing of the above.
    ValueError
        If a file is empty or of another form, no spot is matched, polygons are given for several sections at once, the
        scale is unknown, or a spot has two labels of one annotator.

    Examples
    --------
    >>> import pandas as pd
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=1, n_rows=12, n_cols=12, n_domains=3)
    >>> labels = pd.DataFrame({"barcode": adata.obs_names[:40], "label": ["tumour"] * 30 + ["stroma"] * 10})
    >>> st.pp.read_annotation(adata, labels)
    >>> adata.obs["annotation"].value_counts().to_dict()
    {'tumour': 30, 'stroma': 10}
    """
    check_key(key_added)
    check_scale(scale)
    check_not_negative("border", border)
    table = open_table(adata, table_key=table_key, copy=copy)
    # A column of this name is likely to be the user's own, so the default is checked too.
    check_free(table, key_added, default="")
    library_key, spatial_key = find_library_key(table, library_key), find_spatial_key(table, spatial_key)
    sections = read_sections(table, library_key)
    keys = Keys(label_key, annotator_key, library_key, spatial_key)
    parts = {
        name: read_section(adata, table, sections, name, value, keys=keys, scale=scale)
        for name, value in split_by_section(source, sections).items()
    }
    votes = single_votes(pd.concat([vote for part in parts.values() for vote in part.votes]), names=table.obs_names)
    labels, agreement = majority(votes, table.n_obs)
    disputed = ~np.isnan(agreement) & pd.isna(labels)
    near = np.zeros(table.n_obs, dtype=bool)
    if border > 0:
        xy = read_coordinates(adata, table, spatial_key)
        for rows in map(sections.rows, sections.names):
            near[rows] = near_other_labels(xy[rows], labels[rows], border)
    labels[near] = None
    names = _categories(labels, border=border)
    several = votes["annotator"].nunique() > 1
    record = {
        "params": _params(keys, source=source, scale=scale, border=border),
        "sections": _section_table(sections, parts, labels=labels, disputed=disputed, near=near),
        "unmatched": _unmatched_table(parts),
    } | ({"annotators": pairwise_agreement(votes)} if several else {})
    _report(record, n_spots=table.n_obs)
    colors = {label: color for part in parts.values() for label, color in part.colors.items()}
    _forget(table, key_added)
    write(
        table,
        obs={key_added: pd.Categorical(labels, categories=names)}
        | ({f"{key_added}_agreement": agreement} if several else {}),
        uns={key_added: record}
        | ({f"{key_added}_colors": [colors[name] for name in names]} if set(names) <= colors.keys() else {}),
    )
    return table if copy else None


def _categories(labels: np.ndarray, *, border: float) -> list[str]:
    names = sorted_labels(set(labels[pd.notna(labels)]))
    if not names:
        why = f"border={border} leaves none" if border > 0 else "no spot of the annotation has a label by majority"
        msg = f"no spot would be labelled: {why}"
        raise ValueError(msg)
    return names


def _params(keys: Keys, *, source: Any, scale: Any, border: float) -> dict[str, Any]:
    named = {"label_key": keys.label, "annotator_key": keys.annotator, "library_key": keys.section}
    return {
        "source": describe(source),
        "scale": scale,
        "border": float(border),
        "spatial_key": keys.spatial,
        **{name: value for name, value in named.items() if value is not None},
    }


def _section_table(
    sections: Sections, parts: Mapping[str | None, Found], *, labels: np.ndarray, disputed: np.ndarray, near: np.ndarray
) -> pd.DataFrame:
    rows = []
    for name in sections.names:
        own = sections.rows(name)
        n_overlapping = parts[name].n_overlapping if name in parts else 0
        counts = (len(own), pd.notna(labels[own]).sum(), disputed[own].sum(), near[own].sum(), n_overlapping)
        rows.append((name, *map(int, counts)))
    columns = ["section", "n_spots", "n_labelled", "n_disputed", "n_border", "n_overlapping"]
    return pd.DataFrame(rows, columns=columns)


def _unmatched_table(parts: Mapping[str | None, Found]) -> pd.DataFrame:
    entries = [entry for part in parts.values() for entry in part.unmatched]
    return pd.DataFrame(entries, columns=["section", "entry", "reason"], dtype=object)


def _report(record: Mapping[str, Any], *, n_spots: int) -> None:
    """Log the number of labelled spots, and warn of what could not be matched or decided."""
    counts, unmatched = record["sections"].drop(columns="section").sum(), record["unmatched"]
    logger.info("%d of %d spots are labelled", counts["n_labelled"], n_spots)
    for reason, entries in unmatched.groupby("reason")["entry"]:
        logger.warning(
            "%d entries of the annotation are not used: each %s: %s", len(entries), reason, list(entries[:5])
        )
    if counts["n_overlapping"]:
        logger.warning(
            "%d spots lie in polygons of different labels; they get that of the smallest", counts["n_overlapping"]
        )
    if "annotators" in record:
        logger.info("agreement of annotators:\n%s", record["annotators"].to_string(index=False))
    if counts["n_disputed"]:
        logger.warning("%d spots have no label that most of their annotators give; it is missing", counts["n_disputed"])


def _forget(table: AnnData, key: str) -> None:
    """Remove what an earlier call wrote and this one may not replace."""
    if f"{key}_agreement" in table.obs and key in table.uns:
        del table.obs[f"{key}_agreement"]
    if key in table.uns:
        table.uns.pop(f"{key}_colors", None)
