"""Tiles and features of LazySlide, whose slides are SpatialData objects."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from strecur._anndata import check_key
from strecur._arguments import meant
from strecur.pp.grid.to_grid import to_grid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from geopandas import GeoDataFrame

TILE_SPECS, SLIDE = "tile_spec", "slide_properties"
"""Entries of the attributes of a WSIData."""

REGION, TILE, TISSUE = "library_id", "tile_id", "tissue_id"
"""Columns of the tables and shapes of LazySlide."""

ON_LATTICE = 0.05
"""Tiles of one piece of tissue lie on a lattice up to this share of the stride."""

GAP = 8
"""Rows between pieces of tissue that would share sites."""

THUMBNAIL_PX = 2000


def read_wsidata(
    wsi: Any,
    feature_key: str,
    *,
    tile_key: str = "tiles",
    section: str | None = None,
    library_key: str = "section",
    use_rep: str = "X_patch",
) -> AnnData:
    """Read tiles and their features from a slide of LazySlide (``WSIData``), to train on or to predict.

    The result has no genes. Continue with :func:`~strecur.tl.predict_expression`; the table of
    ``get.expression(result)`` annotates the tiles of the slide, so that it can be added to it.

    Parameters
    ----------
    wsi
        Slide, opened with ``wsidata.open_wsi``, with tiles (``lazyslide.pp.tile_tissues``) and features
        (``lazyslide.tl.feature_extraction``).
    feature_key
        Name of the features, such as ``"uni"``: the table ``f"{feature_key}_{tile_key}"``, or a table of this name.
    tile_key
        Name of the tiles.
    section
        Name of the section. If ``None`` (default), the name of the file.
    library_key
        Column of ``obs`` to which the name of the section is written.
    use_rep
        Key of ``obsm`` for the features, by which models find them.

    Returns
    -------
    AnnData of tiles × 0 genes with

    - ``obs``: ``library_key`` (categorical), ``tile_id``, ``tissue_id``, ``library_id``; for tiles on a lattice also
      ``array_row`` and ``array_col`` (int);
    - ``obsm[use_rep]``: float32, tiles × features;
    - ``obsm["spatial"]``: float64, centres (x, y) of the tiles in pixels of the slide at full resolution;
    - ``obsm["grid"]`` and ``uns["grid"]`` as :func:`~strecur.pp.to_grid` writes them; pieces of tissue whose tiles
      would share sites are moved apart;
    - ``uns[use_rep]``: the encoder, as ``f"lazyslide:{feature_key}"``, and the size of the tiles, which models
      compare with their training;
    - ``uns["spatial"][section]``: a thumbnail, ``scalefactors`` with ``microns_per_pixel``, and the path of the slide.

    Raises
    ------
    KeyError
        If there are no such tiles or features; the message lists those that exist.
    TypeError
        If ``wsi`` is not a WSIData.
    ValueError
        If the micrometres per pixel of the slide are unknown, or tiles lack features.

    Examples
    --------
    >>> import lazyslide as zs, wsidata  # doctest: +SKIP
    >>> wsi = wsidata.open_wsi("slide.svs")  # doctest: +SKIP
    >>> zs.pp.find_tissues(wsi)  # doctest: +SKIP
    >>> zs.pp.tile_tissues(wsi, 224, mpp=0.5)  # doctest: +SKIP
    >>> zs.tl.feature_extraction(wsi, "uni")  # doctest: +SKIP
    >>> slide = st.pp.read_wsidata(wsi, "uni")  # doctest: +SKIP
    >>> st.tl.predict_expression(slide, model)  # doctest: +SKIP
    >>> wsi.tables["trm_expression_tiles"] = st.get.expression(slide)  # doctest: +SKIP
    >>> zs.pl.tiles(wsi, feature_key="trm_expression", color=["ERBB2"])  # doctest: +SKIP
    """
    from anndata import AnnData

    if not all(hasattr(wsi, name) for name in ("shapes", "tables", "attrs", "reader")):
        msg = f"expected a WSIData of LazySlide, got {type(wsi).__name__}; open the slide with wsidata.open_wsi"
        raise TypeError(msg)
    check_key(use_rep, "use_rep")
    path = Path(wsi.reader.file)
    name = check_key(section or path.stem.replace(" ", "_"), "section")
    tiles, spec = _read_tiles(wsi, tile_key)
    mpp = wsi.attrs[SLIDE].get("mpp")
    if mpp is None:
        msg = (
            f"the micrometres per pixel of {path.name} are unknown; call wsi.set_mpp(...) (about 0.5 for scans at 20x)"
        )
        raise ValueError(msg)
    features = _read_features(wsi, feature_key, tile_key, tiles)
    box = tiles.geometry.bounds.to_numpy()
    obs = pd.DataFrame(
        {library_key: pd.Categorical([name] * len(tiles)), TILE: tiles[TILE].to_numpy()},
        index=[f"{name}_{tile}" for tile in tiles[TILE]],
    )
    tissues = tiles[TISSUE].to_numpy() if TISSUE in tiles else np.zeros(len(tiles), dtype=int)
    obs[REGION] = pd.Categorical([tile_key] * len(tiles))
    # in whole pixels of the full resolution, as LazySlide cuts them
    stride = np.floor(np.array([spec["stride_width"], spec["stride_height"]]) * spec["base_downsample"])
    sites = _sites(box[:, :2], stride, tissues)
    if sites is not None:
        obs["array_row"], obs["array_col"] = sites.T
    side = float(int(spec["width"] * spec["base_downsample"]))
    adata = AnnData(
        obs=obs,
        obsm={"spatial": (box[:, :2] + box[:, 2:]) / 2, use_rep: features},
        uns={
            "spatial": {name: _library(wsi, path, float(mpp), side)},
            "spatialdata_attrs": {"region": tile_key, "region_key": REGION, "instance_key": TILE},
            use_rep: _record(feature_key.removesuffix(f"_{tile_key}"), features, name, side, float(mpp)),
        },
    )
    to_grid(adata, library_key=library_key, layout="auto" if sites is None else "square")
    adata.obs[TISSUE] = tissues
    return adata


def _read_tiles(wsi: Any, tile_key: str) -> tuple[GeoDataFrame, Mapping]:
    """Return the tiles, and how they were cut."""
    specs = wsi.attrs.get(TILE_SPECS, {})
    if tile_key not in wsi.shapes or tile_key not in specs:
        msg = f"the slide has no tiles {tile_key!r}{meant(tile_key, specs)}; there are {list(specs)}. Run "
        raise KeyError(msg + "lazyslide.pp.tile_tissues first.")
    return wsi.shapes[tile_key], specs[tile_key]


def _read_features(wsi: Any, feature_key: str, tile_key: str, tiles: GeoDataFrame) -> np.ndarray:
    """Return the features of the tiles, in their order."""
    found = next((key for key in (f"{feature_key}_{tile_key}", feature_key) if key in wsi.tables), None)
    if found is None:
        msg = (
            f"the slide has no features {feature_key!r} of {tile_key!r}; there are the tables {list(wsi.tables)}. Run "
        )
        raise KeyError(msg + "lazyslide.tl.feature_extraction first.")
    table = wsi.tables[found]
    position = pd.Index(table.obs[TILE]).get_indexer(tiles[TILE])
    if (position < 0).any():
        msg = f"{int((position < 0).sum())} of {len(tiles)} tiles have no features in {found!r}; extract them again"
        raise ValueError(msg)
    values = table.X[position]
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=np.float32)


def _sites(corners: np.ndarray, stride: np.ndarray, tissues: np.ndarray) -> np.ndarray | None:
    """Return (row, column) of tiles; ``None`` if they are not on lattices of this stride.

    LazySlide starts a lattice at the corner of each piece of tissue. Pieces keep their places, up to half a stride,
    unless they would share sites.
    """
    steps = (corners - corners.min(axis=0)) / stride
    sites, taken = np.empty((len(steps), 2), dtype=np.int64), pd.MultiIndex.from_arrays([[], []])
    for tissue in pd.unique(tissues):
        own = np.flatnonzero(tissues == tissue)
        start = steps[own].min(axis=0)
        local = np.rint(steps[own] - start)
        if np.abs(steps[own] - start - local).max() > ON_LATTICE:
            return None
        here = (local + np.rint(start)).astype(np.int64)[:, ::-1]
        if pd.MultiIndex.from_arrays(here.T).isin(taken).any():
            here[:, 0] += taken.get_level_values(0).max() + GAP - here[:, 0].min()
        sites[own] = here
        taken = taken.append(pd.MultiIndex.from_arrays(here.T))
    return sites


def _library(wsi: Any, path: Path, mpp: float, side: float) -> dict[str, dict]:
    """Return the entry of ``uns["spatial"]``."""
    size = min(THUMBNAIL_PX, *wsi.properties.shape)
    thumbnail = np.asarray(wsi.get_thumbnail(size=size, as_array=True))[..., :3]
    scale = max(thumbnail.shape[:2]) / max(wsi.properties.shape)
    factors = {"tissue_hires_scalef": scale, "spot_diameter_fullres": side, "microns_per_pixel": mpp}
    metadata = {"source_image_path": str(path.resolve())}
    return {"images": {"hires": thumbnail}, "scalefactors": factors, "metadata": metadata}


def _record(encoder: str, features: np.ndarray, name: str, side: float, mpp: float) -> dict[str, object]:
    """Describe the features as :func:`strecur.pp.embed_patches` does, as far as LazySlide tells."""
    sections = {"n_spots": [len(features)], "patch_px": [side], "patch_um": [side * mpp], "mpp": [mpp]}
    return {
        "encoder": f"lazyslide:{encoder}",
        "width": features.shape[1],
        "views": 1,
        "sections": pd.DataFrame(sections, index=[name]),
    }
