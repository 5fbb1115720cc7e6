"""Where the spots of a SpatialData object lie, by its own elements and transformations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData


def region_of(sdata: SpatialData, table: AnnData, rows: np.ndarray) -> str:
    """Return the name of the element that some rows of a table annotate."""
    attributes = table.uns.get("spatialdata_attrs")
    if attributes is None:
        msg = (
            "the table annotates no element, so the place of its spots is unknown; link it to one with "
            "spatialdata.models.TableModel.parse(table, region=..., region_key=..., instance_key=...)"
        )
        raise ValueError(msg)
    regions = list(table.obs[attributes["region_key"]].iloc[rows].astype(str).unique())
    if len(regions) > 1:
        msg = f"the spots belong to several elements, {regions}; name the column of sections with library_key"
        raise ValueError(msg)
    if regions[0] not in sdata.shapes and regions[0] not in sdata.labels:
        msg = f"the table annotates {regions[0]!r}, but there are the shapes {list(sdata.shapes)} and the labels " + (
            f"{list(sdata.labels)}"
        )
        raise KeyError(msg)
    return regions[0]


def transformations_of(element: Any) -> dict[str, Any]:
    """Return the transformation of an element to each of its coordinate systems."""
    from spatialdata.transformations import get_transformation

    return dict(get_transformation(element, get_all=True))


def centroids(sdata: SpatialData, table: AnnData, rows: np.ndarray, *, system: str) -> np.ndarray:
    """Return the centroids (x, y) of the elements of some rows in a coordinate system; NaN for rows without element."""
    import spatialdata as sd

    points = sd.get_centroids(sdata[region_of(sdata, table, rows)], coordinate_system=system).compute()
    instances = table.obs[table.uns["spatialdata_attrs"]["instance_key"]].to_numpy()[rows]
    position = points.index.get_indexer(instances)
    xy = np.full((len(rows), 2), np.nan)
    xy[position >= 0] = points[["x", "y"]].to_numpy()[position[position >= 0]]
    return xy
