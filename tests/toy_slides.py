"""Whole slides: pyramidal TIFFs of drawn tissue, and a slide of LazySlide as far as strecur reads it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import shapely

if TYPE_CHECKING:
    from pathlib import Path


def tissue(side: int = 512, *, glass: bool = True) -> np.ndarray:
    """Pink tissue on glass: two discs whose colour varies smoothly, so that it survives a change of scale."""
    rng = np.random.default_rng(0)
    row, col = np.indices((side, side)) / side
    inside = (row - 0.5) ** 2 + (col - 0.3) ** 2 < 0.05
    inside |= (row - 0.45) ** 2 + (col - 0.75) ** 2 < 0.03
    waves = [np.sin(2 * np.pi * (a * row + b * col + c)) for a, b, c in rng.uniform(1, 3, (3, 3))]
    colours = np.stack([190 + 30 * waves[0], 90 + 40 * waves[1], 160 + 30 * waves[2]], axis=-1)
    return np.where(inside[..., None] | (not glass), colours, 245).round().astype(np.uint8)


def shrunk(pixels: np.ndarray, factor: int) -> np.ndarray:
    """Average squares of pixels."""
    n_rows, n_cols = (n // factor for n in pixels.shape[:2])
    squares = pixels[: n_rows * factor, : n_cols * factor].reshape(n_rows, factor, n_cols, factor, 3)
    return squares.mean(axis=(1, 3)).round().astype(np.uint8)


def write_slide(path: Path, pixels: np.ndarray, *, mpp: float | None, n_levels: int = 3) -> Path:
    """Write a tiled pyramid whose resolution tags tell the micrometres per pixel."""
    import tifffile

    options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    resolution = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, subifds=n_levels - 1, **resolution, **options)
        for level in range(1, n_levels):
            file.write(shrunk(pixels, 2**level), subfiletype=1, **options)
    return path


def lazy_slide(path: Path, *, mpp: float | None = 0.5, px: int = 32, downsample: float = 2.0) -> SimpleNamespace:
    """Two pieces of tissue, whose lattices of tiles start at odd places, with features of three columns."""
    step = int(px * downsample)
    pieces = {0: (7, 11, 4, 5), 1: (420, 30, 3, 4)}
    corners, tissues = [], []
    for piece, (x, y, n_rows, n_cols) in pieces.items():
        places = [(x + i * step, y + j * step) for i in range(n_cols) for j in range(n_rows)]
        corners += places
        tissues += [piece] * len(places)
    boxes = [shapely.box(x, y, x + step, y + step) for x, y in corners]
    ids = np.arange(len(boxes))
    tiles = gpd.GeoDataFrame({"tile_id": ids, "tissue_id": tissues}, geometry=boxes)
    features = np.random.default_rng(0).normal(size=(len(boxes), 3)).astype(np.float32)
    obs = pd.DataFrame({"tile_id": ids, "library_id": pd.Categorical(["tiles"] * len(ids))}, index=ids.astype(str))
    shuffled = np.random.default_rng(1).permutation(len(ids))
    spec = {"width": px, "height": px, "stride_width": px, "stride_height": px, "base_downsample": downsample}
    return SimpleNamespace(
        shapes={"tiles": tiles},
        tables={"toy_tiles": ad.AnnData(features, obs=obs)[shuffled].copy()},
        attrs={"tile_spec": {"tiles": spec}, "slide_properties": {"mpp": mpp}},
        reader=SimpleNamespace(file=str(path)),
        properties=SimpleNamespace(shape=(512, 768)),
        get_thumbnail=lambda size, as_array: np.full((128, 192, 3), 200, dtype=np.uint8),
    )
