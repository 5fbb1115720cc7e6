"""Small SpatialData objects with the elements, keys and transformations that the readers of spatialdata-io give."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from shapely.geometry import Polygon
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale

import strecur as st

PIXEL_UM = 0.2125
"""Width of a pixel of a Xenium image."""


def gradient(width: int, height: int) -> np.ndarray:
    """Draw an image (c, y, x) whose red grows with x and green with y, so that a patch tells where it was cut."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return np.stack([red, green, np.full((height, width), 90)]).astype(np.uint8)


def visium(name: str, *, scale: float = 0.25) -> SpatialData:
    """One section as ``spatialdata_io.visium`` reads it; what is known of its spots is that of synthetic sections."""
    drawn = st.datasets.synthetic_sections(n_sections=3, n_rows=14, n_cols=14, n_genes=60, n_domains=3)
    own = drawn[drawn.obs["section"] == name].copy()
    table = ad.AnnData(own.X.copy(), obs=own.obs[["array_row", "array_col", "domain"]].copy(), var=own.var[[]].copy())
    table.obs.insert(0, "in_tissue", 1)
    table.obs_names = [spot.removeprefix(f"{name}_") for spot in own.obs_names]  # barcodes repeat between sections
    table.obsm["spatial"] = own.obsm["spatial"]
    table.obs["spot_id"] = np.arange(table.n_obs)
    table.uns["spatial"] = {name: {"metadata": {"chemistry_description": "Spatial 3' v1"}}}
    hires = Scale(np.array([scale, scale]), axes=("y", "x"))
    lowres = Scale(np.array([scale / 4, scale / 4]), axes=("y", "x"))
    circles = ShapesModel.parse(
        table.obsm["spatial"],
        geometry=0,
        radius=27.5,
        index=table.obs["spot_id"].copy(),
        transformations={name: Identity(), f"{name}_downscaled_hires": hires, f"{name}_downscaled_lowres": lowres},
    )
    table.obs["region"] = pd.Categorical([name] * table.n_obs)
    table = TableModel.parse(table, region=name, region_key="region", instance_key="spot_id")
    width, height = (np.ceil(table.obsm["spatial"].max(axis=0) + 100)).astype(int)
    images = {
        f"{name}_full_image": Image2DModel.parse(
            gradient(width, height),
            dims=("c", "y", "x"),
            scale_factors=[2, 2],
            transformations={name: Identity()},
            rgb=None,
        )
    }
    for size, factor, transformation in (("hires", scale, hires), ("lowres", scale / 4, lowres)):
        images[f"{name}_{size}_image"] = Image2DModel.parse(
            gradient(int(width * factor), int(height * factor)),
            dims=("c", "y", "x"),
            transformations={f"{name}_downscaled_{size}": Identity(), name: transformation.inverse()},
            rgb=None,
        )
    return SpatialData(images=images, shapes={name: circles}, tables={"table": table})


def visium_hd(name: str = "hd") -> SpatialData:
    """Bins of 8 and 16 µm and segmented cells, as ``spatialdata_io.visium_hd`` reads them, two pixels per µm."""
    rng = np.random.default_rng(0)
    systems = {
        name: Identity(),
        f"{name}_downscaled_hires": Scale(np.array([0.5, 0.5]), axes=("x", "y")),
        f"{name}_downscaled_lowres": Scale(np.array([0.1, 0.1]), axes=("x", "y")),
    }
    shapes, tables = {}, {}
    for size in (8, 16):
        row, col = (axis.ravel() for axis in np.indices((160 // size, 160 // size)))
        kept = rng.random(len(row)) < 0.9
        row, col = row[kept], col[kept]
        obs = pd.DataFrame({"in_tissue": 1, "array_row": row, "array_col": col, "location_id": np.arange(len(row))})
        obs.index = [f"s_{size:03}um_{r:05}_{c:05}-1" for r, c in zip(row, col, strict=True)]
        table = counts_of(obs, rng)
        table.obsm["spatial"] = np.column_stack([col + 0.5, row + 0.5]) * size * 2.0
        region = f"{name}_square_{size:03}um"
        points = ShapesModel.parse(
            table.obsm["spatial"], geometry=0, radius=float(size), index=obs["location_id"].copy()
        )
        squares = points.buffer(size, cap_style=3).to_frame("geometry")
        shapes[region] = ShapesModel.parse(squares, transformations=dict(systems))
        table.obs["region"] = pd.Categorical([region] * table.n_obs)
        tables[f"square_{size:03}um"] = TableModel.parse(
            table, region=region, region_key="region", instance_key="location_id"
        )
    cells = outlines(rng.permutation(60)[:40], [f"cellid_{i:09}-1" for i in range(40)], 32.0)
    shapes[f"{name}_cell_segmentations"] = ShapesModel.parse(cells, transformations=dict(systems))
    obs = pd.DataFrame({"cell_id": cells.index}, index=cells.index)[::-1]  # shapes and table in different orders
    table = counts_of(obs, rng)
    table.obs["region"] = pd.Categorical([f"{name}_cell_segmentations"] * table.n_obs)
    tables["cell_segmentations"] = TableModel.parse(
        table, region=f"{name}_cell_segmentations", region_key="region", instance_key="cell_id"
    )
    hires = Image2DModel.parse(
        gradient(160, 160),
        dims=("c", "y", "x"),
        transformations={f"{name}_downscaled_hires": Identity(), name: systems[f"{name}_downscaled_hires"].inverse()},
    )
    return SpatialData(images={f"{name}_hires_image": hires}, shapes=shapes, tables=tables)


def xenium() -> SpatialData:
    """Cells as ``spatialdata_io.xenium`` reads them: they annotate labels in pixels, their coordinates are in µm."""
    rng = np.random.default_rng(0)
    names = [f"{''.join(rng.choice(list('abcdefgh'), 8))}-1" for _ in range(50)]
    cells = outlines(rng.permutation(64)[:50], names, 12.0)
    cells.index.name = "cell_id"
    obs = pd.DataFrame({"cell_id": names, "transcript_counts": 1, "cell_labels": np.arange(1, 51)}, index=names)
    table = counts_of(obs, rng)
    table.obsm["spatial"] = np.column_stack([cells.centroid.x, cells.centroid.y]) + rng.normal(0, 0.2, (50, 2))
    table.obs["region"] = pd.Categorical(["cell_labels"] * 50)
    table = TableModel.parse(table, region="cell_labels", region_key="region", instance_key="cell_labels")
    size = int(110 / PIXEL_UM)
    scale = Scale([1 / PIXEL_UM, 1 / PIXEL_UM], axes=("x", "y"))
    labels = np.zeros((size, size), dtype=np.int32)
    for i, (x, y) in enumerate(table.obsm["spatial"] / PIXEL_UM):
        labels[int(y) - 8 : int(y) + 8, int(x) - 8 : int(x) + 8] = i + 1
    raster = {"dims": ("c", "y", "x"), "scale_factors": [2, 2], "rgb": None}
    stain = rng.integers(0, 4000, (1, size, size)).astype(np.uint16)
    return SpatialData(
        images={
            "morphology_focus": Image2DModel.parse(stain, transformations={"global": Identity()}, **raster),
            "he_image": Image2DModel.parse(  # half as fine as the others
                gradient(size // 2, size // 2),
                transformations={"global": Scale([2.0, 2.0], axes=("x", "y"))},
                **raster,
            ),
        },
        labels={
            "cell_labels": Labels2DModel.parse(
                labels, dims=("y", "x"), scale_factors=[2, 2], transformations={"global": Identity()}
            )
        },
        shapes={"cell_boundaries": ShapesModel.parse(cells, transformations={"global": scale})},
        tables={"table": table},
    )


def counts_of(obs: pd.DataFrame, rng: np.random.Generator) -> ad.AnnData:
    """Make a table of made-up counts."""
    counts = sparse.csr_matrix(rng.poisson(2.0, (len(obs), 12)).astype(np.float32))
    return ad.AnnData(counts, obs=obs.copy(), var=pd.DataFrame(index=[f"g{i}" for i in range(12)]))


def outlines(sites: np.ndarray, names: list[str], pitch: float):
    """Draw cells of random outline, each near the site of a square of eight columns."""
    from geopandas import GeoDataFrame

    rng = np.random.default_rng(1)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    centres = (np.column_stack([sites % 8, sites // 8]) + 1.0 + rng.uniform(-0.6, 0.6, (len(sites), 2))) * pitch
    radii = pitch * rng.uniform(0.15, 0.3, (len(sites), 8))
    rings = centres[:, None] + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return GeoDataFrame({"geometry": [Polygon(ring) for ring in rings]}, index=names)
