"""Labels of spots as a table, as outlines, and as files for Loupe Browser and QuPath."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from strecur import _anndata
from strecur._barcodes import original_barcodes
from strecur._elements import centroids, region_of, transformations_of
from strecur._labels import read_categories
from strecur.get._outlines import dissolve
from strecur.pl._colors import category_colors
from strecur.pp.annotation.units import check_scale, known_scales, scale_of
from strecur.pp.image.cutting import read_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")

HINT = "Run strecur.tl.trm_domains or strecur.pp.read_annotation first."
BESIDE = ("confidence", "agreement")


def annotation(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_key: str | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Return labels of spots as a table, with their confidence.

    Parameters
    ----------
    adata
        Spots of one or several sections; with labels.
    key
        Column of ``obs`` with the labels: the ``key_added`` of :func:`strecur.tl.trm_domains` or
        :func:`strecur.pp.read_annotation`, or any other column of labels.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`; without either, the table has no column of sections.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    One row per spot, with ``obs_names`` as index: the column ``library_key``, ``label`` (categorical), and
    ``confidence`` or ``agreement`` if ``obs`` has ``f"{key}_confidence"`` or ``f"{key}_agreement"``. As a file,
    :func:`strecur.pp.read_annotation` reads it.

    Raises
    ------
    KeyError
        If there are no such labels; the message lists what exists.
    ValueError
        If the column holds many different numbers.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=1, n_rows=12, n_cols=12, n_domains=3)
    >>> st.get.annotation(adata, "domain", library_key="section").columns.to_list()
    ['section', 'label']
    """
    table = _anndata.open_table(adata, table_key=table_key, read_only=True)
    labels, names = _read(table, key)
    library_key = _anndata.find_library_key(table, library_key, key=key)
    found = pd.DataFrame(index=table.obs_names.copy())
    if library_key is not None:
        sections = _anndata.read_sections(table, library_key)
        found[library_key] = pd.Categorical.from_codes(sections.codes, sections.names)
    found["label"] = pd.Categorical(labels, categories=names)
    for name in BESIDE:
        if f"{key}_{name}" in table.obs:
            found[name] = table.obs[f"{key}_{name}"].to_numpy()
    return found


def outlines(
    adata: AnnData | SpatialData,
    key: str = "trm_domains",
    *,
    library_id: str | None = None,
    library_key: str | None = None,
    spatial_key: str | None = None,
    table_key: str | None = None,
) -> GeoDataFrame:
    """Return the outlines of the labels of a section as a shapes element of SpatialData.

    Every spot has a cell, as large as one lattice site (hexagon or square), and an outline is the union of the cells of
    a label, whose area is proportional to the number of its spots. Irregular cells have Voronoi cells that reach as far
    as the typical distance between cells.

    Parameters
    ----------
    adata
        Spots of one or several sections; with labels and a lattice (:func:`strecur.pp.to_grid`).
    key
        Column of ``obs`` with the labels.
    library_id
        Section to outline. May be left out if there is one.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`, else ``"spatial"``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    One row per label that occurs, in the order of the categories: ``label``, ``n_spots``, ``confidence`` (mean over its
    spots) if there is one, ``color`` (hex) and ``geometry``. For an AnnData, it is in the units of
    ``obsm[spatial_key]``. For a SpatialData, it is in the coordinate systems of the spots, so that
    ``sdata["domains"] = outlines(sdata)`` adds it.

    Raises
    ------
    KeyError
        If labels, lattice, coordinates or section are missing.
    ValueError
        If there are several sections and no ``library_id``, or no spot of the section has a label.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=1, n_rows=12, n_cols=12, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.get.outlines(adata, "domain")["label"].to_list()
    ['L1', 'L2', 'L3']
    """
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity, Sequence

    table = _anndata.open_table(adata, table_key=table_key, read_only=True)
    section = _choose_section(table, key, library_key=library_key, library_id=library_id)
    if hasattr(adata, "shapes") and "spatialdata_attrs" in table.uns:
        systems = transformations_of(adata[region_of(adata, table, section.rows)])
        own = next(iter(systems))
        xy = centroids(adata, table, section.rows, system=own)
        back = systems[own].inverse()
        transformations: dict[str, Any] = {name: Sequence([back, there]) for name, there in systems.items()}
        transformations[own] = Identity()
    else:
        xy, transformations = _read_places(adata, table, section, spatial_key), {"global": Identity()}
    return ShapesModel.parse(_outline(table, key, section, xy), transformations=transformations)


def write_annotation(
    adata: AnnData | SpatialData,
    path: str | Path,
    key: str = "trm_domains",
    *,
    scale: float | str = 1.0,
    library_id: str | None = None,
    library_key: str | None = None,
    spatial_key: str | None = None,
    table_key: str | None = None,
) -> None:
    """Write labels of a section to a file for Loupe Browser or QuPath.

    :func:`strecur.pp.read_annotation` reads both. For a SpatialData, :func:`outlines` makes shapes.

    Parameters
    ----------
    adata
        Spots of one or several sections; with labels.
    path
        File to write, which is replaced if it exists. ``.csv``: categories for Loupe Browser, with the columns
        ``Barcode`` (as Space Ranger writes it) and ``key``; spots without label are left out. ``.geojson`` or
        ``.json``: annotations for QuPath, one for each label, with its class, its colour and the measurements
        ``"Number of spots"`` and, if there is a confidence, ``"Mean confidence"``; needs the lattice from
        :func:`strecur.pp.to_grid`.
    key
        Column of ``obs`` with the labels.
    scale
        Units of the spot coordinates per unit of the file, as in :func:`strecur.pp.read_annotation`: 1 (default) for
        pixels of the full-resolution image of Visium, or ``"um"``, ``"hires"`` or ``"lowres"``. Not for tables.
    library_id
        Section to write. May be left out if there is one.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`, else ``"spatial"``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``; ``adata`` is not changed.

    Raises
    ------
    KeyError
        If labels, lattice, coordinates or section are missing.
    ValueError
        If the suffix is none of these, there are several sections and no ``library_id``, no spot of the section has a
        label, or the scale is unknown.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=1, n_rows=12, n_cols=12, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.get.write_annotation(adata, "domains.geojson", "domain")
    >>> st.pp.read_annotation(adata, "domains.geojson")
    >>> labelled = adata[adata.obs["domain"].notna()].obs
    >>> bool((labelled["annotation"] == labelled["domain"]).all())
    True
    """
    path = Path(path)
    if path.suffix.lower() not in {".csv", ".geojson", ".json"}:
        msg = (
            f"{path.name}: the suffix has to be .csv (Loupe Browser) or .geojson (QuPath); for a SpatialData use "
            "sdata[name] = strecur.get.outlines(sdata)"
        )
        raise ValueError(msg)
    check_scale(scale)
    table = _anndata.open_table(adata, table_key=table_key, read_only=True)
    section = _choose_section(table, key, library_key=library_key, library_id=library_id)
    if path.suffix.lower() == ".csv":
        _write_loupe(path, table, key, section)
    else:
        xy = _read_places(adata, table, section, spatial_key)
        known = known_scales(table, section.name, section.rows, xy, alone=section.alone)
        factor = scale_of(scale, section.name, known)
        _write_qupath(path, _outline(table, key, section, xy / factor))
    logger.info("wrote %s", path)


class Section(NamedTuple):
    """A section and its labels: name, position and labels of its spots, all labels, whether it is the only section."""

    name: str
    rows: np.ndarray
    labels: pd.Series
    names: list[str]
    alone: bool
    sections: _anndata.Sections


def _read(table: AnnData, key: str) -> tuple[pd.Series, list[str]]:
    """Return the label of every spot and the names of all labels."""
    _anndata.require(table.obs, key, where="obs", hint=HINT)
    labels = _anndata.read_labels(table, key)
    return labels, read_categories(table.obs[key])


def _choose_section(table: AnnData, key: str, *, library_key: str | None, library_id: str | None) -> Section:
    """Return the section to write, which has to be named if there are several."""
    labels, names = _read(table, key)
    sections = _anndata.read_sections(table, _anndata.find_library_key(table, library_key, key=key))
    name = sections.choose(library_id)
    rows = sections.rows(name)
    own = labels.iloc[rows].reset_index(drop=True)
    if own.isna().all():
        msg = f"adata.obs[{key!r}] is missing for all {len(rows)} spots of section {name!r}. {HINT}"
        raise ValueError(msg)
    return Section(name, rows, own, names, len(sections.names) == 1, sections)


def _read_places(adata: AnnData | SpatialData, table: AnnData, section: Section, spatial_key: str | None) -> np.ndarray:
    """Read the coordinates (x, y) of the spots of a section."""
    return read_coordinates(adata, table, _anndata.find_spatial_key(table, spatial_key))[section.rows]


def _outline(table: AnnData, key: str, section: Section, xy: np.ndarray) -> GeoDataFrame:
    """Return the outline of each label of a section, with what is known of it."""
    from geopandas import GeoDataFrame

    grid = _anndata.read_grid(table, section.sections)
    sites = np.column_stack([grid.row, grid.col])[section.rows]
    dissolved = dissolve(xy, sites, section.labels, layout=grid.layout)
    names = [name for name in section.names if name in dissolved]
    colors = category_colors(table, key, section.names)
    found = {"label": names, "n_spots": [int((section.labels == name).sum()) for name in names]}
    if f"{key}_confidence" in table.obs:
        confidence = table.obs[f"{key}_confidence"].iloc[section.rows].reset_index(drop=True)
        found["confidence"] = [float(confidence[section.labels == name].mean()) for name in names]
    found["color"] = [colors[name] for name in names]
    return GeoDataFrame(found, geometry=[dissolved[name] for name in names])


def _write_loupe(path: Path, table: AnnData, key: str, section: Section) -> None:
    barcodes = original_barcodes(table.obs_names[section.rows])
    frame = pd.DataFrame({"Barcode": barcodes, key: section.labels})
    frame.dropna().to_csv(path, index=False)


def _write_qupath(path: Path, shapes: GeoDataFrame) -> None:
    from shapely.geometry import mapping

    features = []
    for _, row in shapes.iterrows():
        measurements = {"Number of spots": row["n_spots"]}
        if np.isfinite(row.get("confidence", np.nan)):
            measurements["Mean confidence"] = round(row["confidence"], 4)
        rgb = [int(row["color"][i : i + 2], 16) for i in (1, 3, 5)]
        properties = {
            "objectType": "annotation",
            "name": row["label"],
            "classification": {"name": row["label"], "color": rgb},
            "isLocked": True,
            "measurements": measurements,
        }
        features.append({"type": "Feature", "geometry": mapping(row["geometry"]), "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
