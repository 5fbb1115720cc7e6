"""Predicted expression as SpatialData, and as a file for QuPath."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from strecur import _anndata
from strecur._arguments import as_names, meant
from strecur.get._expression import expression
from strecur.get._outlines import spot_cells
from strecur.pp.annotation.units import check_scale, known_scales, scale_of
from strecur.pp.image.cutting import read_coordinates
from strecur.pp.image.sources import find_library, image_scales

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")

REGION, SPOT = "region", "spot"
"""Columns of the table of a SpatialData that name the shapes element of a spot, and its shape."""


def write_expression(
    adata: AnnData | SpatialData,
    path: str | Path,
    key: str = "trm_expression",
    *,
    genes: str | Sequence[str] | None = None,
    scale: float | str = 1.0,
    library_id: str | None = None,
    library_key: str | None = None,
    spatial_key: str | None = None,
    table_key: str | None = None,
) -> None:
    """Write the predicted expression of a section to a file for QuPath.

    Every spot becomes a tile, as large as one lattice site, with one measurement per gene. QuPath opens the file by
    dropping it on the image, and draws it with "Show measurement maps". For domains, see :func:`write_annotation`.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.predict_expression` and a lattice
        (:func:`strecur.pp.to_grid`).
    path
        File to write, with the suffix ``.geojson`` or ``.json``, which is replaced if it exists.
    key
        The ``key_added`` of that call, or another result that :func:`expression` accepts.
    genes
        Genes to write. If ``None`` (default), all that were predicted.
    scale
        Units of the spot coordinates per unit of the file, as in :func:`write_annotation`: 1 (default) for pixels of
        the full-resolution image, or ``"um"``, ``"hires"`` or ``"lowres"``.
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
    ``None``; ``adata`` is not changed. Spots without prediction are not in the file. A measurement ``"Novelty"`` is
    added if there is ``obs[f"{key}_novelty"]``.

    Raises
    ------
    KeyError
        If prediction, gene, lattice, coordinates or section are missing.
    ValueError
        If the suffix is none of these, there are several sections and no ``library_id``, no spot of the section has a
        prediction, or the scale is unknown.

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
    >>> st.get.write_expression(adata, "tiles.geojson", library_id="S1")
    """
    path = Path(path)
    if path.suffix.lower() not in {".geojson", ".json"}:
        msg = (
            f"{path.name}: the suffix has to be .geojson; strecur.get.expression(adata).to_df() makes a table, and "
            "strecur.get.spatialdata a SpatialData"
        )
        raise ValueError(msg)
    check_scale(scale)
    predicted = expression(adata, key, table_key=table_key)
    values = _choose_genes(predicted, genes)
    has_prediction = values.notna().any(axis=1).to_numpy()
    table = _anndata.open_table(adata, table_key=table_key, read_only=True)
    if (novelty := f"{key}_novelty") in table.obs:
        values["Novelty"] = table.obs[novelty].to_numpy()
    sections = _anndata.read_sections(table, _anndata.find_library_key(table, library_key))
    name = sections.choose(library_id)
    coordinates = read_coordinates(adata, table, _anndata.find_spatial_key(table, spatial_key))
    rows = np.intersect1d(sections.rows(name), np.flatnonzero(has_prediction))
    if not len(rows):
        msg = f"no spot of section {name!r} has a prediction in {key!r}"
        raise ValueError(msg)
    known = known_scales(table, name, rows, coordinates[rows], alone=len(sections.names) == 1)
    shapes = _shapes(table, sections, rows, coordinates / scale_of(scale, name, known))
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [\n')
        for i, feature in enumerate(_features(shapes, values)):
            file.write(",\n" * (i > 0) + feature)
        file.write("\n]}\n")
    logger.info("wrote %d tiles to %s", len(shapes), path)


def spatialdata(
    adata: AnnData | SpatialData,
    key: str = "trm_expression",
    *,
    library_key: str | None = None,
    spatial_key: str | None = None,
    table_key: str | None = None,
) -> SpatialData:
    """Return predicted expression as a SpatialData: a table, the spots as shapes, and the images of the sections.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.predict_expression` and a lattice
        (:func:`strecur.pp.to_grid`).
    key
        The ``key_added`` of that call, or another result that :func:`expression` accepts.
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
    A new SpatialData, in which every section is a coordinate system of its name, in the units of the coordinates:

    - ``tables["table"]``: the result of :func:`expression`;
    - ``shapes[section]``: the cell of every spot, as large as one lattice site;
    - ``images[f"{section}_hires_image"]``: the largest image of ``uns["spatial"][section]``, where there is one.

    Raises
    ------
    KeyError
        If prediction, lattice or coordinates are missing.
    ValueError
        If SpatialData cannot store the name of a section.

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
    >>> list(st.get.spatialdata(adata).shapes)
    ['S1', 'S2']
    """
    from spatialdata import SpatialData
    from spatialdata.models import ShapesModel, TableModel
    from spatialdata.transformations import Identity

    found = expression(adata, key, table_key=table_key)
    table = _anndata.open_table(adata, table_key=table_key, read_only=True)
    sections = _anndata.read_sections(table, _anndata.find_library_key(table, library_key))
    names = [_anndata.check_key(name, "section") for name in sections.names]
    coordinates = read_coordinates(adata, table, _anndata.find_spatial_key(table, spatial_key))
    shapes: dict[str, Any] = {}
    images: dict[str, Any] = {}
    for name in names:
        cells = _shapes(table, sections, sections.rows(name), coordinates)
        shapes[name] = ShapesModel.parse(cells, transformations={name: Identity()})
        images |= _image(table, name, alone=len(names) == 1)
    found.obs[REGION] = pd.Categorical.from_codes(sections.codes, names)
    found.obs[SPOT] = np.arange(found.n_obs)
    found.uns.pop("spatialdata_attrs", None)
    parsed = TableModel.parse(found, region=names, region_key=REGION, instance_key=SPOT)
    return SpatialData(images=images, shapes=shapes, tables={"table": parsed})


def _choose_genes(predicted: AnnData, genes: str | Sequence[str] | None) -> pd.DataFrame:
    """Return the values of the wanted genes, spots × genes."""
    wanted = list(predicted.var_names) if genes is None else as_names("genes", genes)
    for gene in wanted:
        if gene not in predicted.var_names:
            msg = (
                f"{gene!r} was not predicted{meant(gene, predicted.var_names)}; there are "
                f"{list(predicted.var_names[:10])} and others ({predicted.n_vars} in all)"
            )
            raise KeyError(msg)
    return predicted[:, wanted].to_df()


def _shapes(table: AnnData, sections: _anndata.Sections, rows: np.ndarray, coordinates: np.ndarray) -> GeoDataFrame:
    """Return the cells of some spots of a section, by their position in the table."""
    from geopandas import GeoDataFrame

    grid = _anndata.read_grid(table, sections)
    sites = np.column_stack([grid.row, grid.col])[rows]
    kept, cells, _ = spot_cells(coordinates[rows], sites, layout=grid.layout)
    return GeoDataFrame(geometry=cells, index=rows[kept])


def _features(shapes: GeoDataFrame, values: pd.DataFrame) -> Iterator[str]:
    """Return one GeoJSON feature for every spot, as text."""
    from shapely.geometry import mapping

    names, rounded = list(values.columns), values.to_numpy(dtype=float).round(4)
    for row, cell in shapes.geometry.items():
        measured = {
            name: value for name, value in zip(names, rounded[row].tolist(), strict=True) if math.isfinite(value)
        }
        properties = {"objectType": "tile", "measurements": measured}
        yield json.dumps({"type": "Feature", "geometry": mapping(cell), "properties": properties})


def _image(table: AnnData, name: str, *, alone: bool) -> dict[str, object]:
    """Return the largest image of a section in ``uns["spatial"]`` as an element, if there is one with a scale."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    library = find_library(table, name, alone=alone)[1]
    scales = image_scales(library)
    if not scales:
        return {}
    best = max(scales, key=scales.__getitem__)
    to_section = {name: Scale([1 / scales[best]] * 2, axes=("x", "y"))}
    pixels = np.asarray(library["images"][best])[..., :3]
    element = Image2DModel.parse(pixels, dims=("y", "x", "c"), c_coords=["r", "g", "b"], transformations=to_section)
    return {f"{name}_{best}_image": element}
