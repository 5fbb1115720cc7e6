"""Open histology images of sections: files, arrays, xarray, containers of squidpy and elements of SpatialData."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strecur.pp.image.colours import colour_channels, to_rgb, white_of
from strecur.pp.image.section_image import MAX_DECODED_PIXELS, SectionImage, from_levels
from strecur.pp.image.tiff import is_tiff, open_tiff

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

ORIENTATION = 0x0112
"""Tag of EXIF: how a stored picture is to be turned."""

NAME_CHANNELS = (
    "choose three with .sel, or name them: sdata.set_channel_names(element, ['r', 'g', 'b']), or .assign_coords(c=...)"
)


def open_image(source: object, *, label: str) -> SectionImage:
    """Open an image without reading its pixels.

    Parameters
    ----------
    source
        A path (JPEG, PNG and other formats of Pillow; TIFF, pyramidal or not, which is read by region), an array rows ×
        columns × channels, an image of Pillow, a DataArray with the dimensions y, x and a channel in any order, a
        container of squidpy with one image, or an image element of SpatialData, with or without scales.
    label
        Name of the image in messages.

    Raises
    ------
    FileNotFoundError, OSError
        If the file does not exist or is damaged.
    ValueError
        If the image cannot be shown as RGB: for its channels, its range of values or its size.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            msg = f"the image {label} does not exist: {path}"
            raise FileNotFoundError(msg)
        return open_tiff(path) if is_tiff(path) else _open_pillow(path)
    if hasattr(source, "getexif"):
        source = _decode(source, label)  # type: ignore[arg-type]
    if is_container(source):
        source = container_image(source, label=label)
    if hasattr(source, "dims") or hasattr(source, "children"):
        return _open_xarray(source, label)
    array: Any = source if hasattr(source, "shape") else np.asarray(source)
    if len(array.shape) == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] > 4:
        msg = f"the image {label} has shape {tuple(array.shape)}; channels come last: np.moveaxis(image, 0, -1)"
        raise ValueError(msg)
    return from_levels(label, (array,), channel_axis=None if len(array.shape) == 2 else 2)


def is_container(source: object) -> bool:
    """Tell whether an image is an ``ImageContainer`` of squidpy."""
    return hasattr(source, "crop_corner") and hasattr(source, "library_ids")


def container_image(container: Any, *, label: str, section: str | None = None) -> Any:
    """Return the image of a section in an ``ImageContainer`` of squidpy: its only layer that is not a segmentation.

    Raises
    ------
    ValueError
        If there are several layers, or several images in the layer, none of which has the name of the section.
    """
    layers = {name: layer for name, layer in container.data.items() if not layer.attrs.get("segmentation", False)}
    if len(layers) != 1:
        msg = f"the image {label} is a container of the layers {list(layers)}; pass one of them: container[layer]"
        raise ValueError(msg)
    (layer,) = layers.values()
    names = [str(name) for name in layer["z"].values]
    if len(names) == 1 or section in names:
        return layer.isel(z=names.index(section) if section in names else 0)
    msg = f"the image {label} is a container of the images {names}, none of which is the section {section!r}"
    raise ValueError(msg)


def _open_xarray(element: Any, label: str) -> SectionImage:
    levels = [_flat(level, label) for level in scales_of(element)]
    (channel,) = set(levels[0].dims) - {"y", "x"} or {None}
    if channel is None:
        return from_levels(label, tuple(level.transpose("y", "x").data for level in levels), channel_axis=None)
    names = levels[0].coords[channel].values if channel in levels[0].coords else None
    channels = colour_channels(names, levels[0].sizes[channel], label=label, hint=NAME_CHANNELS)
    arrays = tuple(level.transpose(channel, "y", "x").data for level in levels)
    return from_levels(label, arrays, channel_axis=0, channels=channels)


def scales_of(element: Any) -> list:
    """Return the scales of an image element, the finest first, in whatever order they are stored."""
    if not getattr(element, "children", None):
        return [element]
    scales = [next(iter(node.data_vars.values())) for node in element.children.values()]
    return sorted(scales, key=lambda scale: -scale.size)


def _flat(level: Any, label: str) -> Any:
    """Drop dimensions of length 1 other than y, x and the channel."""
    dims = [str(dim) for dim in level.dims]
    if {"y", "x"} <= set(dims) and not hasattr(level, "data_vars"):
        others = [dim for dim in dims if dim not in ("y", "x")]
        alone = [dim for dim in others if level.sizes[dim] == 1]
        flat = level.isel(dict.fromkeys(alone[: max(0, len(others) - 1)], 0), drop=True)
        if flat.ndim <= 3:
            return flat
    msg = f"the image {label} has dimensions {dims}; expected a DataArray of y, x and channels"
    raise ValueError(msg)


def _open_pillow(path: Path) -> SectionImage:
    array = _PillowArray(path)
    n_rows, n_cols, _ = array.shape
    if n_rows * n_cols > MAX_DECODED_PIXELS:
        msg = (
            f"{path.name} has {n_cols} × {n_rows} pixels; a {path.suffix} file must be decoded whole and at most "
            f"{MAX_DECODED_PIXELS:,} pixels are. Convert it to a tiled TIFF, which is read by region: "
            f"vips tiffsave {path.name} {path.stem}.tif --tile --pyramid --compression jpeg"
        )
        raise ValueError(msg)
    return from_levels(path.name, (array,), channel_axis=2)


class _PillowArray:
    """An image file read by Pillow, as an RGB array decoded on first use, turned as its EXIF orientation says."""

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path) -> None:
        from PIL.Image import Image as PillowImage

        self.path = path
        with _pillow(path) as image:
            # The method of the base class: that of PNG would decode the image to look for a tag behind the pixels.
            is_lying = PillowImage.getexif(image).get(ORIENTATION, 1) in (5, 6, 7, 8)
            height, width = image.size if is_lying else image.size[::-1]
            self.shape = (height, width, 3)

    def __getitem__(self, window: tuple) -> np.ndarray:
        return self._pixels[window]

    @cached_property
    def _pixels(self) -> np.ndarray:
        with _pillow(self.path) as image:
            pixels = _decode(image, self.path.name)
        if pixels.shape != self.shape:
            msg = "its orientation is told behind its pixels; save it upright"
            raise ValueError(msg)
        return pixels


def _decode(stored: Image.Image, label: str) -> np.ndarray:
    """Decode an image of Pillow as RGB, upright."""
    from PIL import ImageOps

    # Pillow reads the upper 8 of 16 bits of colours.
    is_wide = any(";16" in str(tile[3]) for tile in getattr(stored, "tile", ()))
    stored.load()
    # most images are upright, and a large one is not copied for it
    image = stored if stored.getexif().get(ORIENTATION, 1) == 1 else ImageOps.exif_transpose(stored)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        return to_rgb(values, white=white_of(values, label=label))
    if image.has_transparency_data:
        return to_rgb(np.asarray(image.convert("RGBA")), white=255)
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if is_wide and pixels.max() < 64:
        msg = "of its 16 bits per channel only the lower ones are used, which are not read; save it as TIFF"
        raise ValueError(msg)
    return pixels


@contextmanager
def _pillow(path: Path) -> Iterator[Image.Image]:
    """Open a file with Pillow's size limit raised to ours; ``_open_pillow`` checks the size before any decoding.

    Pillow warns above its limit and raises above twice the limit; the check raises in both cases, so the warning is
    silenced.
    """
    from PIL import Image, UnidentifiedImageError

    before = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = MAX_DECODED_PIXELS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            yield image
    except UnidentifiedImageError as error:
        msg = f"{path.name} is not an image, or in a format that cannot be read"
        raise OSError(msg) from error
    except Image.DecompressionBombError as error:
        msg = f"{path.name} is too large to decode whole ({error}); convert it to a tiled TIFF"
        raise ValueError(msg) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before
