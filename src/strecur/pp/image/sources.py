"""Images of sections, and the map from spot coordinates to their pixels."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strecur.pp.image.decoding import SectionImage, open_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from strecur._anndata import Sections

VISIUM_PITCH_UM = 100.0
"""Distance between the centres of neighbouring Visium spots."""

CHECKSUM_BYTES = 65_536

FEW = 500
"""Number of spots from which the units of the coordinates are determined."""

VISIUM_SPOT_UM = 65.0
"""Length of Space Ranger's ``spot_diameter_fullres`` (not the 55 µm of the printed spot)."""


@dataclass(frozen=True)
class ImageSource:
    """An image that is not open yet; its pixels are ``scale * obsm["spatial"] + offset``, in the order (x, y)."""

    label: str
    source: object
    scale: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)

    def open(self) -> SectionImage:
        """Open the image."""
        return open_image(self.source, label=self.label)

    def pixels(self, coordinates: np.ndarray) -> np.ndarray:
        """Convert spot coordinates (x, y) to pixels (x, y)."""
        return coordinates * self.scale + np.asarray(self.offset)

    def checksum(self) -> int:
        """Return a checksum that identifies the image: of both ends of a file, or of a thumbnail."""
        if not isinstance(self.source, str | Path):
            with closing(self.open()) as image:
                return zlib.crc32(image.thumbnail(256).tobytes())
        with Path(self.source).open("rb") as file:
            head = file.read(CHECKSUM_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - CHECKSUM_BYTES))
            return zlib.crc32(head + file.read(), size)


def for_section(values: float | Mapping[str, float], name: str, *, argument: str) -> float:
    """Return the number of one section, given one number for all or one per section."""
    if not isinstance(values, Mapping):
        return values
    if name not in values:
        msg = f"{argument} has no entry for section {name!r}; there are {list(values)}"
        raise KeyError(msg)
    return values[name]


def find_images(
    data: AnnData | SpatialData,
    table: AnnData,
    image: Any,
    sections: Sections,
    *,
    image_scale: float | Mapping[str, float],
) -> dict[str, ImageSource]:
    """Return the image of each section that has one.

    Parameters
    ----------
    data
        The object as the user passed it; a SpatialData may hold the images.
    table
        Its table.
    image
        ``None`` (look in ``uns["spatial"]``), one image, or a mapping from section to image. An image is a path, an
        array or the name of an image element.
    sections
        Section of each spot.
    image_scale
        Image pixels per unit of the spot coordinates for paths and arrays, one number or one per section.
    """
    elements = getattr(data, "images", {})
    if image is None:
        alone = len(sections.names) == 1
        return {name: _from_uns(table, name, alone=alone, elements=list(elements)) for name in sections.names}
    if not isinstance(image, Mapping):
        if len(sections.names) > 1:
            msg = (
                f"one image for {len(sections.names)} sections; pass a mapping {{section: image}} for {sections.names}"
            )
            raise ValueError(msg)
        image = {sections.names[0]: image}
    unknown = sorted({str(name) for name in image} - set(sections.names))
    if unknown:
        msg = f"image names {unknown}, which are not sections; there are {sections.names}"
        raise KeyError(msg)
    found = {}
    for name, source in ((str(name), source) for name, source in image.items()):
        if isinstance(source, str) and source in elements:
            found[name] = _from_element(data, table, source, sections.rows(name))
            continue
        scale = float(for_section(image_scale, name, argument="image_scale"))
        if not isinstance(source, str | Path):
            found[name] = ImageSource(f"array {np.shape(source)}", source, scale)
        elif elements and not Path(source).is_file():
            msg = f"image {str(source)!r} is neither a file nor an image element; there are {list(elements)}"
            raise KeyError(msg)
        else:
            found[name] = ImageSource(Path(source).name, source, scale)
    return found


def _library(table: AnnData, name: str, *, alone: bool) -> tuple[str, Mapping]:
    """Return name and entry of a section in ``uns["spatial"]``; a single entry fits a single section of any name."""
    libraries = table.uns.get("spatial", {})
    if name not in libraries and alone and len(libraries) == 1:
        name = next(iter(libraries))
    return name, libraries.get(name, {})


def _from_uns(table: AnnData, name: str, *, alone: bool, elements: list[str]) -> ImageSource:
    """Find the image in ``uns["spatial"]``: the full-resolution file if it exists, else the largest one."""
    name, library = _library(table, name, alone=alone)
    if not library:
        there = f"there are {list(table.uns.get('spatial', {}))}" + (
            f" and the image elements {elements}" * bool(elements)
        )
        msg = f"no image: adata.uns['spatial'] has no {name!r}; {there}. Pass image=..."
        raise KeyError(msg)
    path = library.get("metadata", {}).get("source_image_path")
    if path is not None and Path(str(path)).is_file():
        return ImageSource(Path(str(path)).name, str(path))
    factors, images = library.get("scalefactors", {}), library.get("images", {})
    scales = {k: float(factors[f"tissue_{k}_scalef"]) for k in images if f"tissue_{k}_scalef" in factors}
    if not scales:
        msg = (
            f"adata.uns['spatial'][{name!r}] has no image with a scale factor; there are the images {list(images)} "
            f"and the scale factors {list(factors)}"
            + (f", and the image elements {elements}" * bool(elements))
            + ". Pass image=..."
        )
        raise KeyError(msg)
    best = max(scales, key=scales.__getitem__)
    return ImageSource(f"uns['spatial'][{name!r}]['images'][{best!r}]", images[best], scales[best])


def _from_element(sdata: SpatialData, table: AnnData, element: str, rows: np.ndarray) -> ImageSource:
    """Find an image element, and SpatialData's transformation from the spots to its pixels."""
    matrix = _to_pixels(_element_of_coordinates(sdata, table, element, rows), sdata.images[element], element)
    scale = matrix[0, 0]
    if scale <= 0 or not np.allclose(matrix[:2, :2], scale * np.eye(2), rtol=0.01, atol=0.01 * abs(scale)):
        msg = (
            f"image {element!r} is rotated, flipped or stretched against the spots ({matrix[:2, :2].tolist()}); "
            "transform it to their coordinate system first"
        )
        raise ValueError(msg)
    return ImageSource(f"images[{element!r}]", sdata.images[element], float(scale), tuple(matrix[:2, 2]))


def _element_of_coordinates(sdata: SpatialData, table: AnnData, element: str, rows: np.ndarray) -> object:
    """Return the element in whose units the spot coordinates are; ``None`` if the table annotates no element."""
    attributes = table.uns.get("spatialdata_attrs")
    if attributes is None:
        return None
    regions = table.obs[attributes["region_key"]].iloc[rows].astype(str).unique()
    if len(regions) > 1:
        msg = f"the spots of image {element!r} belong to several regions, {list(regions)}; pass library_key"
        raise ValueError(msg)
    region = sdata[regions[0]]
    if regions[0] not in sdata.labels or "spatial" not in table.obsm:
        return region
    # Cells of Xenium annotate labels, in pixels, but their coordinates and outlines are in µm.
    rows = rows[:: max(1, len(rows) // FEW)]
    few, xy = table.obs.iloc[rows], np.asarray(table.obsm["spatial"], dtype=float)[rows, :2]
    if _lie_on_labels(region, few[attributes["instance_key"]].to_numpy(), xy):
        return region
    for shapes in sdata.shapes.values():
        if any(_lie_at_shapes(shapes, names, xy) for names in (few.index, *(few[c].to_numpy() for c in few))):
            return shapes
    msg = (
        f"the units of obsm['spatial'] are unknown: the spots annotate the labels {regions[0]!r}, but do not lie on "
        f"them, nor at the shapes {list(sdata.shapes)}; give the image as an array or path, with image_scale"
    )
    raise ValueError(msg)


def _lie_on_labels(labels: Any, instances: np.ndarray, xy: np.ndarray) -> bool:
    """Tell whether the labels at the spots have the numbers of the spots."""
    level = next(iter(labels["scale0"].data_vars.values())) if hasattr(labels, "children") else labels
    col, row = np.floor(xy).astype(int).T
    inside = (row >= 0) & (col >= 0) & (row < level.shape[0]) & (col < level.shape[1])
    if 2 * inside.sum() < len(xy):
        return False
    found = level.data.vindex[row[inside], col[inside]].compute()
    return bool(np.mean(found == instances[inside]) > 0.5)


def _lie_at_shapes(shapes: GeoDataFrame, names: Sequence, xy: np.ndarray) -> bool:
    """Tell whether shapes of these names lie at these coordinates."""
    position = shapes.index.get_indexer(names)
    known = np.flatnonzero(position >= 0)
    if 2 * len(known) < len(names):
        return False
    centroids = shapes.geometry.iloc[position[known]].centroid
    away = np.linalg.norm(np.column_stack([centroids.x, centroids.y]) - xy[known], axis=1)
    return bool(np.median(away) <= 0.05 * np.ptp(xy[known], axis=0).max())


def _to_pixels(frame: object, image: object, element: str) -> np.ndarray:
    """Return the affine map (3 × 3, of x and y) from the units of an element to the pixels of an image."""
    from spatialdata.transformations import Identity, get_transformation

    axes = ("x", "y"), ("x", "y")
    spots = {"global": Identity()} if frame is None else get_transformation(frame, get_all=True)
    pixels = get_transformation(image, get_all=True)
    # Readers put both into several systems, which agree.
    shared = next((system for system in pixels if system in spots), None)
    if shared is None:
        msg = f"image {element!r} is in the coordinate systems {list(pixels)}, the spots are in {list(spots)}"
        raise ValueError(msg)
    return np.linalg.inv(pixels[shared].to_affine_matrix(*axes)) @ spots[shared].to_affine_matrix(*axes)


def read_mpp(table: AnnData, name: str, rows: np.ndarray, coordinates: np.ndarray, *, alone: bool) -> float | None:
    """Return micrometres per unit of the spot coordinates from ``uns["spatial"]``, or ``None`` if unknown.

    ``microns_per_pixel`` is used as it is. Other Space Ranger output (with ``fiducial_diameter_fullres``) is measured
    on the 100 µm between neighbouring spots or, without array positions, on the spot diameter.
    """
    _, library = _library(table, name, alone=alone)
    factors = library.get("scalefactors", {})
    if "microns_per_pixel" in factors:
        return float(factors["microns_per_pixel"])
    if "fiducial_diameter_fullres" not in factors:
        return None
    if {"array_row", "array_col"} <= set(table.obs) and len(rows) >= 10:
        array = table.obs[["array_row", "array_col"]].iloc[rows].to_numpy(dtype=float)
        known = np.isfinite(array).all(axis=1) & np.isfinite(coordinates).all(axis=1)
        design = np.column_stack([array, np.ones(len(rows))])[known]
        row_step, col_step, _ = np.linalg.lstsq(design, coordinates[known], rcond=None)[0]
        # Neighbours of one row are two columns apart, neighbouring rows sqrt(3)/2 pitches.
        pitch = (2 * np.linalg.norm(col_step) + 2 / np.sqrt(3) * np.linalg.norm(row_step)) / 2
        if pitch > 0:
            return float(VISIUM_PITCH_UM / pitch)
    return float(VISIUM_SPOT_UM / float(factors["spot_diameter_fullres"]))
