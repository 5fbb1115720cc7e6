"""Histology images of sections, read by region from files, arrays and SpatialData elements."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

TIFF_SUFFIXES = {".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn", ".qptiff"}
MAX_DECODED_PIXELS = 500_000_000
"""A JPEG or PNG is decoded whole (3 bytes per pixel); larger images have to be tiled TIFFs."""

MAX_SLIDE_PIXELS = 40_000_000_000
"""No scanner makes larger slides, but a file may claim any size."""


@dataclass(frozen=True)
class SectionImage:
    """One image of a section; pixel (row, column) covers [row, row + 1) × [column, column + 1)."""

    label: str
    levels: tuple
    channel_axis: int | None
    white: float
    file: Any = None

    def close(self) -> None:
        """Close the file of the image, if there is one."""
        if self.file is not None:
            self.file.close()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at full resolution."""
        return _plane(self.levels[0].shape, self.channel_axis)

    def region(self, row: int, col: int, height: int, width: int) -> np.ndarray:
        """Read a rectangle as RGB uint8; pixels beyond the border are white."""
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        n_rows, n_cols = self.shape
        top, bottom = max(row, 0), min(row + height, n_rows)
        left, right = max(col, 0), min(col + width, n_cols)
        if top < bottom and left < right:
            out[top - row : bottom - row, left - col : right - col] = self._read(0, top, bottom, left, right)
        return out

    def thumbnail(self, max_side: int = 2000) -> np.ndarray:
        """Return the whole image as RGB uint8, shrunk by area averaging to at most ``max_side`` pixels a side."""
        from PIL import Image

        level = max(
            i for i, a in enumerate(self.levels) if i == 0 or max(_plane(a.shape, self.channel_axis)) >= max_side
        )
        n_rows, n_cols = _plane(self.levels[level].shape, self.channel_axis)
        factor = -(-max(n_rows, n_cols) // max_side)
        band = factor * max(1, 512 // factor)
        bands = []
        for top in range(0, n_rows, band):
            pixels = self._read(level, top, min(top + band, n_rows), 0, n_cols)
            bands.append(np.asarray(Image.fromarray(pixels).reduce(factor)))
        return np.concatenate(bands)

    def _read(self, level: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        window = [slice(top, bottom), slice(left, right)]
        if self.channel_axis is not None:
            window.insert(self.channel_axis, slice(None))
        try:
            block = np.asarray(self.levels[level][tuple(window)])
        except (OSError, RuntimeError, SyntaxError, ValueError) as error:  # of Pillow, tifffile and imagecodecs
            msg = f"the image {self.label} is damaged or uses an unknown compression: {error}"
            raise OSError(msg) from error
        return to_rgb(np.moveaxis(block, 0, -1) if self.channel_axis == 0 else block, white=self.white)


def to_rgb(block: np.ndarray, *, white: float) -> np.ndarray:
    """Convert rows × columns (× 1, 3 or 4 channels) to RGB uint8, given the value of white; alpha is over white."""
    if block.ndim == 2:
        block = block[..., None]
    if block.dtype != np.uint8 or white != 255:
        block = np.clip(np.rint(np.asarray(block, dtype=np.float32) * (255 / white)), 0, 255).astype(np.uint8)
    if block.shape[-1] == 1:
        return np.repeat(block, 3, axis=-1)
    if block.shape[-1] == 4:
        alpha = block[..., 3:].astype(np.float32) / 255
        return np.rint(block[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return block


def open_image(source: object, *, label: str) -> SectionImage:
    """Open an image without reading its pixels.

    Parameters
    ----------
    source
        A path (JPEG, PNG and other formats of Pillow; TIFF, pyramidal or not, which is read by region), an array rows ×
        columns × channels, or an image element of SpatialData (channels × rows × columns, with or without scales).
    label
        Name of the image in messages.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            msg = f"the image {label} does not exist: {path}"
            raise FileNotFoundError(msg)
        return _open_tiff(path) if path.suffix.lower() in TIFF_SUFFIXES else _open_pillow(path)
    if hasattr(source, "dims") or hasattr(source, "children"):
        return _from_levels(label, _element_levels(source), channel_axis=0)
    array: Any = source if hasattr(source, "shape") else np.asarray(source)
    if len(array.shape) == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] > 4:
        msg = f"the image {label} has shape {tuple(array.shape)}; channels come last: np.moveaxis(image, 0, -1)"
        raise ValueError(msg)
    return _from_levels(label, (array,), channel_axis=None if len(array.shape) == 2 else 2)


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
    return _from_levels(path.name, (array,), channel_axis=2)


def _open_tiff(path: Path) -> SectionImage:
    import tifffile
    import zarr

    try:
        file = tifffile.TiffFile(path)
        series = max(file.series, key=lambda s: s.size)
        levels = tuple(zarr.open(series.aszarr(level=i), mode="r") for i in range(len(series.levels)))
    except (tifffile.TiffFileError, ValueError, IndexError) as error:
        msg = f"{path.name} cannot be read as TIFF: {error}"
        raise OSError(msg) from error
    axes = series.axes.replace("S", "C")
    if axes not in {"YX", "YXC", "CYX"}:
        msg = f"{path.name} has axes {series.axes} of shape {series.shape}; expected rows, columns and channels"
        raise ValueError(msg)
    try:
        _require_readable(path, levels, series.axes)
        image = _from_levels(path.name, levels, channel_axis=axes.find("C") if "C" in axes else None)
    except ValueError:
        file.close()
        raise
    return replace(image, file=file)


def _require_readable(path: Path, levels: tuple, axes: str) -> None:
    """Raise if a TIFF has more pixels than a slide, or parts that are too large to decode one by one."""
    for level in levels:
        sizes = dict(zip(axes, zip(level.shape, level.chunks, strict=True), strict=True))
        (n_rows, part_rows), (n_cols, part_cols) = sizes["Y"], sizes["X"]
        if n_rows * n_cols > MAX_SLIDE_PIXELS:
            msg = f"{path.name} claims {n_cols} × {n_rows} pixels; no slide is larger than {MAX_SLIDE_PIXELS:,}"
            raise ValueError(msg)
        if part_rows * part_cols > MAX_DECODED_PIXELS:
            msg = (
                f"{path.name} stores {part_cols} × {part_rows} pixels in one piece, which must be decoded whole, and "
                f"at most {MAX_DECODED_PIXELS:,} are. Cut it into tiles: "
                f"vips tiffsave {path.name} {path.stem}_tiled.tif --tile --pyramid --compression jpeg"
            )
            raise ValueError(msg)


def _element_levels(element: Any) -> tuple:
    if hasattr(element, "children") and element.children:
        element_levels = [next(iter(node.data_vars.values())) for node in element.children.values()]
    else:
        element_levels = [element]
    if any(tuple(level.dims) != ("c", "y", "x") for level in element_levels):
        msg = f"expected an image element with axes c, y, x, got {[tuple(level.dims) for level in element_levels]}"
        raise ValueError(msg)
    return tuple(level.data for level in element_levels)


def _from_levels(label: str, levels: tuple, *, channel_axis: int | None) -> SectionImage:
    shape = levels[0].shape
    n_channels = shape[channel_axis] if len(shape) == 3 and channel_axis is not None else 1
    if len(shape) not in (2, 3) or n_channels not in (1, 3, 4) or 0 in shape:
        msg = f"the image {label} has shape {tuple(shape)}; expected grey, RGB or RGBA"
        raise ValueError(msg)
    return SectionImage(label, levels, channel_axis, _white(levels, label))


def _white(levels: tuple, label: str) -> float:
    """Return the value of white: 255 for bytes, else the smallest usual one that no pixel exceeds."""
    dtype = np.dtype(levels[0].dtype)
    if dtype == np.uint8:
        return 255.0
    if dtype.kind not in "uif":
        msg = f"the image {label} holds {dtype}; expected numbers"
        raise ValueError(msg)
    # The coarsest level is the cheapest way to find the range.
    step = tuple(slice(None, None, max(1, n // 2000)) for n in levels[-1].shape)
    values = np.asarray(levels[-1][step])
    if not np.isfinite(values).all() or values.min() < 0:
        msg = f"the image {label} holds negative or non-finite values"
        raise ValueError(msg)
    candidates = (1.0, 255.0) if dtype.kind == "f" else (255.0, 4095.0, 65535.0)
    white = next((c for c in candidates if values.max() <= c), None)
    if white is None:
        msg = f"the image {label} has values up to {values.max():g}; convert it to 8 bits per channel"
        raise ValueError(msg)
    return white


def _plane(shape: tuple[int, ...], channel_axis: int | None) -> tuple[int, int]:
    rows, cols = (n for axis, n in enumerate(shape) if axis != channel_axis)
    return int(rows), int(cols)


class _PillowArray:
    """An image file read by Pillow, as an RGB array decoded on first use."""

    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path) -> None:
        self.path = path
        with _pillow(path) as image:
            self.shape = (image.height, image.width, 3)

    def __getitem__(self, window: tuple) -> np.ndarray:
        return self._pixels[window]

    @cached_property
    def _pixels(self) -> np.ndarray:
        with _pillow(self.path) as image:
            if image.mode.startswith(("I", "F")):
                values = np.asarray(image)
                return to_rgb(values, white=_white((values,), self.path.name))
            if image.has_transparency_data:
                return to_rgb(np.asarray(image.convert("RGBA")), white=255)
            return np.asarray(image.convert("RGB"))


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
