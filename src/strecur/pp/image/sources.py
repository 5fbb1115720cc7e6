"""Images of sections, and the map from spot coordinates to their pixels."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from strecur._anndata import read_xy
from strecur.pp.image.decoding import container_image, is_container, open_image, scales_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from strecur._anndata import Sections
    from strecur.pp.image.section_image import SectionImage

logger = logging.getLogger("strecur")

VISIUM_PITCH_UM = 100.0
"""Distance between the centres of neighbouring Visium spots."""

BLOCK_BYTES = 1 << 20

SIZE_TOLERANCE = 0.01
"""Images are of the same size up to this share: downscaled ones are rounded to whole pixels."""

MAX_DISAGREEMENT_PX = 2.0
"""Coordinate systems that place the spots further apart than this contradict each other."""

FEW = 500
"""Number of spots from which the units of the coordinates are determined."""

SURELY_SMALLER, SAME_PITCH = 0.6, 0.3
"""Scale below which pixels of an image cannot be taken for those of the full-resolution one, and the logarithm of the
ratio of distances that are taken for the same."""

VISIUM_SPOT_UM = 65.0
"""Length of Space Ranger's ``spot_diameter_fullres`` (not the 55 µm of the printed spot)."""


@dataclass(frozen=True)
class FullSize:
    """Size of a full-resolution image as far as it is known from a downscaled one.

    Attributes
    ----------
    rows, cols
        Size in pixels.
    pixel
        Size of a pixel of the downscaled image, up to which it is rounded.
    """

    rows: float
    cols: float
    pixel: float

    def times(self, scale: float) -> FullSize:
        """Return the size of the image at another scale."""
        return FullSize(self.rows * scale, self.cols * scale, self.pixel * scale)

    def fits(self, shape: tuple[int, int]) -> bool:
        """Tell whether an image of this shape (rows, columns) can be the one."""
        return bool(np.allclose(shape, (self.rows, self.cols), rtol=SIZE_TOLERANCE, atol=2 * self.pixel))


@dataclass(frozen=True, eq=False)
class ImageSource:
    """An image that is not open yet, and the place of the spots on it.

    Attributes
    ----------
    label
        Name of the image in messages.
    source
        What :func:`~strecur.pp.image.decoding.open_image` opens.
    to_pixels
        Affine map (3 × 3) from spot coordinates (x, y) to pixels (x, y) of the image.
    full_size
        Size of the image according to ``uns["spatial"]``; ``None`` if unknown.
    """

    label: str
    source: object
    to_pixels: np.ndarray
    full_size: FullSize | None = None

    @property
    def scale(self) -> float:
        """Image pixels per unit of the spot coordinates: the geometric mean over both directions."""
        return float(np.sqrt(abs(np.linalg.det(self.to_pixels[:2, :2]))))

    @property
    def turn(self) -> np.ndarray:
        """The linear part (2 × 2) of the map without its scale: rotation, reflection and stretching."""
        return self.to_pixels[:2, :2] / self.scale

    def open(self) -> SectionImage:
        """Open the image."""
        return open_image(self.source, label=self.label)

    def pixels(self, coordinates: np.ndarray) -> np.ndarray:
        """Convert spot coordinates (x, y) to pixels (x, y)."""
        return coordinates @ self.to_pixels[:2, :2].T + self.to_pixels[:2, 2]

    def checksum(self) -> int:
        """Return a checksum of all of the file, or of all pixels of an image in memory, and of the place of spots."""
        place = zlib.crc32(self.to_pixels.tobytes())
        if not isinstance(self.source, str | Path):
            with closing(self.open()) as image:
                return zlib.crc32(str(image.checksum()).encode(), place)
        with Path(self.source).open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                place = zlib.crc32(block, place)
        return place


def scaled(scale: float) -> np.ndarray:
    """Return the affine map (3 × 3) that multiplies x and y."""
    return np.diag([scale, scale, 1.0])


def for_section(values: float | Mapping[str, float], name: str, *, argument: str) -> float:
    """Return the number of one section, given one number for all or one per section."""
    if not isinstance(values, Mapping):
        return values
    values = {str(key): value for key, value in values.items()}
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
    spatial_key: str = "spatial",
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
        array, a container of squidpy, or the name of an image element.
    sections
        Section of each spot.
    image_scale
        Image pixels per unit of the spot coordinates for paths and arrays, one number or one per section.
    spatial_key
        Key of ``obsm`` with the spot coordinates.
    """
    elements = getattr(data, "images", {})
    alone = len(sections.names) == 1
    if image is None:
        return {name: _from_uns(table, name, alone=alone, elements=list(elements)) for name in sections.names}
    found = {}
    for name, source in _by_section(image, sections).items():
        named = [k for k in elements if source is elements[k] or (isinstance(source, str) and k == source)]
        if named:
            found[name] = _from_element(data, table, named[0], sections.rows(name), spatial_key)
            continue
        if elements and isinstance(source, str | Path) and not Path(source).is_file():
            msg = f"image {str(source)!r} is neither a file nor an image element; there are {list(elements)}"
            raise KeyError(msg)
        scale = float(for_section(image_scale, name, argument="image_scale"))
        # The size is known of what lies below obsm["spatial"].
        library = find_library(table, name, alone=alone)[1] if spatial_key == "spatial" else {}
        found[name] = _given(source, name, scale, full_size(library))
    return found


def _by_section(image: Any, sections: Sections) -> dict[str, Any]:
    """Return the images by the names of their sections, which must exist."""
    if not isinstance(image, Mapping) or hasattr(image, "dims"):  # xarray has mappings that are images
        if len(sections.names) > 1:
            msg = (
                f"one image for {len(sections.names)} sections; pass a mapping {{section: image}} for {sections.names}"
            )
            raise ValueError(msg)
        return {sections.names[0]: image}
    unknown = sorted({str(name) for name in image} - set(sections.names))
    if unknown:
        msg = f"image names {unknown}, which are not sections; there are {sections.names}"
        raise KeyError(msg)
    return {str(name): source for name, source in image.items()}


def _given(source: Any, name: str, scale: float, size: FullSize | None) -> ImageSource:
    """Return an image that the caller passes: a path, an array, a container of squidpy or an element."""
    size = None if size is None else size.times(scale)
    if isinstance(source, str | Path):
        return ImageSource(Path(source).name, source, scaled(scale), size)
    if is_container(source):
        label = f"container of section {name!r}"
        layer = container_image(source, label=label, section=name)
        return ImageSource(label, layer, scaled(scale) @ _of_container(source))
    if "transform" in getattr(scales_of(source)[0], "attrs", {}):
        return ImageSource(
            "image element", source, scaled(scale) @ _to_pixels({"global": np.eye(3)}, source, "the given one")
        )
    label = f"array {tuple(source.shape)}" if hasattr(source, "shape") else type(source).__name__
    return ImageSource(label, source, scaled(scale), size)


def _of_container(container: Any) -> np.ndarray:
    """Return the map from spot coordinates to the pixels of a container of squidpy, which may be a scaled crop."""
    attributes = container.data.attrs
    matrix = scaled(float(attributes.get("scale", 1.0)))
    if attributes.get("coords") is not None:
        matrix[0, 2] -= attributes["coords"].x0 - attributes["padding"].x_pre
        matrix[1, 2] -= attributes["coords"].y0 - attributes["padding"].y_pre
    return matrix


def find_library(table: AnnData, name: str, *, alone: bool) -> tuple[str, Mapping]:
    """Return name and entry of a section in ``uns["spatial"]``; a single entry fits a single section of any name."""
    libraries = {str(key): library for key, library in table.uns.get("spatial", {}).items()}
    if name not in libraries and alone and len(libraries) == 1:
        name = next(iter(libraries))
    library = libraries.get(name, {})
    return name, library if isinstance(library, Mapping) else {}


def image_scales(library: Mapping) -> dict[str, float]:
    """Return pixels per unit of the spot coordinates of the images of a library that have a scale factor."""
    factors = library.get("scalefactors", {})
    return {
        k: float(factors[f"tissue_{k}_scalef"]) for k in library.get("images", {}) if f"tissue_{k}_scalef" in factors
    }


def full_size(library: Mapping) -> FullSize | None:
    """Return the size of the full-resolution image of a library; ``None`` if unknown."""
    scales = image_scales(library)
    if not scales:
        return None
    best = max(scales, key=scales.__getitem__)
    n_rows, n_cols = np.shape(library["images"][best])[:2]
    return FullSize(n_rows, n_cols, 1.0).times(1 / scales[best])


def _from_uns(table: AnnData, name: str, *, alone: bool, elements: list[str]) -> ImageSource:
    """Find the image in ``uns["spatial"]``: the full-resolution file if it exists, else the largest one."""
    name, library = find_library(table, name, alone=alone)
    if not library:
        there = f"there are {list(table.uns.get('spatial', {}))}" + (
            f" and the image elements {elements}" * bool(elements)
        )
        msg = f"no image: adata.uns['spatial'] has no {name!r}; {there}. Pass image=..."
        raise KeyError(msg)
    path = library.get("metadata", {}).get("source_image_path")
    if path is not None and Path(str(path)).is_file() and _is_full_image(Path(str(path)), library):
        return ImageSource(Path(str(path)).name, str(path), scaled(1.0))
    factors, images, scales = library.get("scalefactors", {}), library.get("images", {}), image_scales(library)
    if not scales:
        msg = (
            f"adata.uns['spatial'][{name!r}] has no image with a scale factor; there are the images {list(images)} "
            f"and the scale factors {list(factors)}"
            + (f", and the image elements {elements}" * bool(elements))
            + ". Pass image=..."
        )
        raise KeyError(msg)
    best = max(scales, key=scales.__getitem__)
    return ImageSource(f"uns['spatial'][{name!r}]['images'][{best!r}]", images[best], scaled(scales[best]))


def _is_full_image(path: Path, library: Mapping) -> bool:
    """Tell whether a file has the full resolution according to the downscaled image, and warn if not."""
    size = full_size(library)
    if size is None:
        return True
    with closing(open_image(path, label=path.name)) as image:
        shape = image.shape
    if not size.fits(shape):
        logger.warning(
            "%s has %d × %d pixels (columns × rows), but the full-resolution image has %.0f × %.0f according to the "
            "scale factors; the image in uns['spatial'] is used. Pass image and patches={'image_scale': ...} to use it",
            *(path.name, *shape[::-1], size.cols, size.rows),
        )
    return size.fits(shape)


def _from_element(sdata: SpatialData, table: AnnData, element: str, rows: np.ndarray, spatial_key: str) -> ImageSource:
    """Find an image element, and SpatialData's transformation from the spots to its pixels."""
    systems = _systems_of_coordinates(sdata, table, element, rows, spatial_key)
    return ImageSource(
        f"images[{element!r}]", sdata.images[element], _to_pixels(systems, sdata.images[element], element)
    )


def _systems_of_coordinates(
    sdata: SpatialData, table: AnnData, element: str, rows: np.ndarray, spatial_key: str
) -> dict[str, np.ndarray]:
    """Return the affine map (3 × 3, of x and y) from the spot coordinates to each coordinate system that is known.

    Spots are in the units of the element that they annotate, or in one of its coordinate systems, such as cells of
    several fields of view in the system of the slide, or in the units of other shapes. If the table annotates no
    element, the coordinates are global.
    """
    attributes = table.uns.get("spatialdata_attrs")
    if attributes is None:
        return {"global": np.eye(3)}
    regions = table.obs[attributes["region_key"]].iloc[rows].astype(str).to_numpy()
    first = sdata[regions[0]]
    if spatial_key not in table.obsm:
        _check_one_region(regions, element)
        return _systems_of(first)
    spots = {
        region: _few_spots(table, rows[regions == region], attributes["instance_key"], spatial_key)
        for region in dict.fromkeys(regions)
    }
    # Cells of Xenium annotate labels, in pixels, but their coordinates and outlines are in µm.
    if all(_lies_at(sdata, region, *few) for region, few in spots.items()):
        _check_one_region(regions, element)
        return _systems_of(first)
    for system in _systems_of(first):
        if all(_lies_in(sdata, region, *few, system) for region, few in spots.items()):
            return {system: np.eye(3)}
    _check_one_region(regions, element)
    few, (_, xy) = table.obs.iloc[_few(rows)], spots[regions[0]]
    for shapes in sdata.shapes.values():
        if any(_lie_at_shapes(shapes, names, xy) for names in (few.index, *(few[c].to_numpy() for c in few))):
            return _systems_of(shapes)
    msg = (
        f"the units of obsm[{spatial_key!r}] are unknown: the spots annotate the element {regions[0]!r}, but do not "
        f"lie on it, nor at the shapes {list(sdata.shapes)}; give the image as an array or path, with image_scale"
    )
    raise ValueError(msg)


def _check_one_region(regions: np.ndarray, element: str) -> None:
    if len(names := list(dict.fromkeys(regions))) > 1:
        msg = f"the spots of image {element!r} belong to several regions, {names}; pass library_key"
        raise ValueError(msg)


def _systems_of(element: Any) -> dict[str, np.ndarray]:
    """Return the affine map (3 × 3, of x and y) from the units of an element to each of its coordinate systems."""
    from spatialdata.transformations import get_transformation

    axes = ("x", "y"), ("x", "y")
    found = get_transformation(element, get_all=True)
    return {system: np.asarray(found[system].to_affine_matrix(*axes)) for system in found}


def _few(rows: np.ndarray) -> np.ndarray:
    return rows[:: max(1, len(rows) // FEW)]


def _few_spots(table: AnnData, rows: np.ndarray, instance_key: str, spatial_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the instances and coordinates of a few spots."""
    rows = _few(rows)
    return table.obs[instance_key].to_numpy()[rows], read_xy(table, spatial_key)[rows, :2]


def _lies_at(sdata: SpatialData, region: str, instances: np.ndarray, xy: np.ndarray) -> bool:
    """Tell whether instances of an element lie at these coordinates, in the units of the element."""
    lie = _lie_on_labels if region in sdata.labels else _lie_at_shapes
    return lie(sdata[region], instances, xy)


def _lies_in(sdata: SpatialData, region: str, instances: np.ndarray, xy: np.ndarray, system: str) -> bool:
    """Tell whether instances of an element lie at these coordinates of a coordinate system."""
    to_system = _systems_of(sdata[region]).get(system)
    if to_system is None:
        return False
    back = np.linalg.inv(to_system)
    return _lies_at(sdata, region, instances, xy @ back[:2, :2].T + back[:2, 2])


def _lie_on_labels(labels: Any, instances: np.ndarray, xy: np.ndarray) -> bool:
    """Tell whether the labels at the spots have the numbers of the spots."""
    level = next(iter(labels["scale0"].data_vars.values())) if hasattr(labels, "children") else labels
    col, row = np.floor(xy).astype(int).T
    inside = (row >= 0) & (col >= 0) & (row < level.shape[0]) & (col < level.shape[1])
    if 2 * inside.sum() < len(xy):
        return False
    found = level.data.vindex[row[inside], col[inside]].compute()
    return bool(np.mean(found == instances[inside]) > 0.5)


def _lie_at_shapes(shapes: GeoDataFrame, names: Sequence | np.ndarray, xy: np.ndarray) -> bool:
    """Tell whether shapes of these names lie at these coordinates."""
    position = shapes.index.get_indexer(names)
    known = np.flatnonzero(position >= 0)
    if 2 * len(known) < len(names):
        return False
    centroids = shapes.geometry.iloc[position[known]].centroid
    away = np.linalg.norm(np.column_stack([centroids.x, centroids.y]) - xy[known], axis=1)
    # A single spot has no extent but that of its shape.
    own = shapes["radius"] if "radius" in shapes else np.sqrt(shapes.geometry.area)
    tolerance = max(0.05 * np.ptp(xy[known], axis=0).max(), float(np.median(own.iloc[position[known]])))
    return bool(np.median(away) <= tolerance)


def _to_pixels(spots: dict[str, np.ndarray], image: Any, element: str) -> np.ndarray:
    """Return the affine map (3 × 3, of x and y) from spot coordinates to the pixels of an image.

    Readers put both into several coordinate systems, which have to agree.
    """
    pixels = _systems_of(image)
    maps = {system: np.linalg.inv(pixels[system]) @ spots[system] for system in pixels if system in spots}
    if not maps:
        msg = f"image {element!r} is in the coordinate systems {list(pixels)}, the spots are in {list(spots)}"
        raise ValueError(msg)
    first, *others = maps.values()
    width, height = (scales_of(image)[0].sizes[axis] for axis in ("x", "y"))
    corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]], dtype=float).T
    apart = max((np.abs((other @ np.linalg.inv(first) - np.eye(3)) @ corners).max() for other in others), default=0.0)
    if apart > MAX_DISAGREEMENT_PX:
        msg = (
            f"image {element!r} and the spots share the coordinate systems {list(maps)}, in which the spots lie up to "
            f"{apart:.0f} pixels apart; keep the right one: spatialdata.transformations.remove_transformation(sdata"
            f"[{element!r}], to_coordinate_system=...)"
        )
        raise ValueError(msg)
    return first


def read_mpp(table: AnnData, name: str, rows: np.ndarray, coordinates: np.ndarray, *, alone: bool) -> float | None:
    """Return micrometres per unit of the spot coordinates from ``uns["spatial"]``, or ``None`` if unknown.

    ``microns_per_pixel`` is used as it is. Other Space Ranger output (with ``fiducial_diameter_fullres``) is measured
    on the 100 µm between neighbouring spots or, without array positions, on the spot diameter.
    """
    _, library = find_library(table, name, alone=alone)
    factors = library.get("scalefactors", {})
    if "microns_per_pixel" in factors:
        return float(factors["microns_per_pixel"])
    if "fiducial_diameter_fullres" not in factors:
        return None
    pitch = _array_pitch(_array_steps(table, rows, coordinates))
    if pitch > 0:
        return float(VISIUM_PITCH_UM / pitch)
    return float(VISIUM_SPOT_UM / float(factors["spot_diameter_fullres"]))


def check_visium(table: AnnData, name: str, rows: np.ndarray, coordinates: np.ndarray, *, alone: bool) -> None:
    """Compare the coordinates of a Visium section with its array and with the diameter of its spots.

    Raise if they are pixels of a downscaled image, warn if they are the mirror image of the array.
    """
    steps = _array_steps(table, rows, coordinates)
    if not np.isfinite(steps).all() or not _is_visium(table, rows, steps):
        return
    if np.linalg.det(steps) > 0:  # (row, column) against (x, y)
        logger.warning(
            "section %r: its coordinates are the mirror image of array_row and array_col; unless the image is "
            "mirrored, x and y are exchanged",
            name,
        )
    _, library = find_library(table, name, alone=alone)
    diameter = float(library.get("scalefactors", {}).get("spot_diameter_fullres", np.nan))
    for key, scale in image_scales(library).items():
        pitch = diameter * scale * VISIUM_PITCH_UM / VISIUM_SPOT_UM
        if scale < SURELY_SMALLER and abs(np.log(_array_pitch(steps) / pitch)) < SAME_PITCH:
            msg = (
                f"section {name!r}: the coordinates are pixels of the image {key!r}, not of the full-resolution one: "
                f"spots are {_array_pitch(steps):.3g} apart and {diameter:.3g} wide (spot_diameter_fullres). Divide "
                f"them by tissue_{key}_scalef, {scale:.4g}"
            )
            raise ValueError(msg)


def _array_steps(table: AnnData, rows: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Return the steps (x, y) of one array row and of one array column; NaN if they are not known."""
    unknown = np.full((2, 2), np.nan)
    if not {"array_row", "array_col"} <= set(table.obs) or len(rows) < 10:
        return unknown
    columns = [table.obs[column].iloc[rows].astype(object) for column in ("array_row", "array_col")]
    array = np.column_stack([pd.to_numeric(column, errors="coerce") for column in columns]).astype(float)
    known = np.isfinite(array).all(axis=1) & np.isfinite(coordinates).all(axis=1)
    if known.sum() < 10:
        return unknown
    design = np.column_stack([array, np.ones(len(rows))])[known]
    return np.linalg.lstsq(design, coordinates[known], rcond=None)[0][:2]


def _array_pitch(steps: np.ndarray) -> float:
    """Return the distance of neighbouring spots of Visium, which is two columns, and 2 / sqrt(3) rows."""
    row_step, col_step = np.linalg.norm(steps, axis=1)
    return float((2 * col_step + 2 / np.sqrt(3) * row_step) / 2)


def _is_visium(table: AnnData, rows: np.ndarray, steps: np.ndarray) -> bool:
    """Tell whether an array is that of Visium: one parity, and rows sqrt(3) times as far apart as columns."""
    parity = table.obs[["array_row", "array_col"]].iloc[rows].astype(float).sum(axis=1) % 2
    row_step, col_step = np.linalg.norm(steps, axis=1)
    return bool(min(parity.mean(), 1 - parity.mean()) < 0.05 and 1.5 < row_step / max(col_step, 1e-12) < 2)
