"""One image of a section, read by region as RGB."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from strecur.pp.image.colours import to_rgb, white_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAX_DECODED_PIXELS = 500_000_000
"""A JPEG or PNG is decoded whole (3 bytes per pixel); larger images have to be tiled TIFFs."""

MAX_LOADED_VALUES = 100_000_000
"""A level of chunks that has at most as many values is loaded before many windows are read from it."""

ROUNDED = 0.01
"""Levels of a pyramid are rounded to whole pixels."""

BAND_ROWS = 1024
"""Number of rows that are read at a time to go over a whole image."""


@dataclass(frozen=True)
class SectionImage:
    """One image of a section; pixel (row, column) covers [row, row + 1) × [column, column + 1).

    Attributes
    ----------
    label
        Name of the image in messages.
    levels
        Arrays from which windows can be read, the finest first.
    channel_axis
        Axis of the channels in ``levels``; ``None`` if there is none.
    colours
        Function from rows × columns (× channels), as stored, to rows × columns × 3, RGB uint8.
    file
        What is to be closed afterwards.
    mpp
        Micrometres per pixel at full resolution, if the file tells.
    """

    label: str
    levels: tuple
    channel_axis: int | None
    colours: Callable[[np.ndarray], np.ndarray]
    file: Any = None
    mpp: float | None = None

    def close(self) -> None:
        """Close the file of the image, if there is one."""
        if self.file is not None:
            self.file.close()

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns at full resolution."""
        return _plane(self.levels[0].shape, self.channel_axis)

    def downsample(self, level: int) -> float:
        """Return the pixels at full resolution per pixel of a level: the geometric mean over both directions."""
        own = _plane(self.levels[level].shape, self.channel_axis)
        return float(np.sqrt(np.prod(np.divide(self.shape, own))))

    def level(self, factor: float) -> int:
        """Return the coarsest level that has at least every ``factor``-th pixel, so that nothing is enlarged."""
        fine = (i for i in range(len(self.levels)) if self.downsample(i) <= factor * (1 + ROUNDED))
        return max(fine, key=self.downsample, default=0)

    def loaded(self) -> SectionImage:
        """Return the image with its small levels in memory; a window of an array of chunks costs a graph of tasks."""

        def load(level: Any) -> Any:
            is_small = hasattr(level, "compute") and level.size <= MAX_LOADED_VALUES
            return self._values(level) if is_small else level

        return replace(self, levels=tuple(map(load, self.levels)))

    def region(self, row: int, col: int, height: int, width: int, *, level: int = 0) -> np.ndarray:
        """Read a rectangle of a level as RGB uint8; pixels beyond the border are white."""
        out = np.full((height, width, 3), 255, dtype=np.uint8)
        n_rows, n_cols = _plane(self.levels[level].shape, self.channel_axis)
        top, bottom = max(row, 0), min(row + height, n_rows)
        left, right = max(col, 0), min(col + width, n_cols)
        if top < bottom and left < right:
            out[top - row : bottom - row, left - col : right - col] = self._read(level, top, bottom, left, right)
        return out

    def whole(self) -> np.ndarray:
        """Read the whole image at full resolution as RGB uint8."""
        return self._read(0, 0, self.shape[0], 0, self.shape[1])

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

    def checksum(self) -> int:
        """Return a checksum of all pixels at full resolution."""
        checksum = zlib.crc32(repr((self.shape, str(self.levels[0].dtype))).encode())
        for band in self._bands():
            checksum = zlib.crc32(np.ascontiguousarray(band).data, checksum)
        return checksum

    def _bands(self) -> Iterator[np.ndarray]:
        n_rows, n_cols = self.shape
        for top in range(0, n_rows, BAND_ROWS):
            yield self._stored(0, top, min(top + BAND_ROWS, n_rows), 0, n_cols)

    def _read(self, level: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        block = self._stored(level, top, bottom, left, right)
        if block.dtype.kind == "f" and not np.isfinite(block).all():
            msg = f"the image {self.label} holds non-finite values; replace NaN by the value of white"
            raise ValueError(msg)
        return self.colours(block)

    def _stored(self, level: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Read a window as it is stored, with channels last."""
        window = [slice(top, bottom), slice(left, right)]
        if self.channel_axis is not None:
            window.insert(self.channel_axis, slice(None))
        block = self._values(self.levels[level], tuple(window))
        return block if self.channel_axis is None else np.moveaxis(block, self.channel_axis, -1)

    def _values(self, level: Any, window: tuple[slice, ...] = ()) -> np.ndarray:
        try:
            return np.asarray(level[window])
        except (OSError, RuntimeError, SyntaxError, ValueError) as error:  # of Pillow, tifffile and imagecodecs
            msg = f"the image {self.label} is damaged or uses an unknown compression: {error}"
            raise OSError(msg) from error


def from_levels(
    label: str,
    levels: tuple,
    *,
    channel_axis: int | None,
    colours: Callable[[np.ndarray], np.ndarray] | None = None,
    channels: list[int] | None = None,
) -> SectionImage:
    """Make an image of arrays, the finest first.

    Parameters
    ----------
    label
        Name of the image in messages.
    levels
        Arrays of rows × columns, with channels along ``channel_axis``.
    channel_axis
        Axis of the channels; ``None`` if there is none.
    colours
        Conversion to RGB. If ``None`` (default), the image is grey or RGB, with or without alpha, of the usual range.
    channels
        Positions of the channels to use, in the order of RGBA. If ``None`` (default), all.
    """
    shape = levels[0].shape
    is_image = len(shape) == 2 + (channel_axis is not None) and 0 not in shape
    if is_image and channel_axis is not None and colours is None:
        is_image = (shape[channel_axis] if channels is None else len(channels)) in (1, 3, 4)
    if not is_image:
        msg = f"the image {label} has shape {tuple(shape)}; expected grey, RGB or RGBA"
        raise ValueError(msg)
    decode = colours or partial(to_rgb, white=white_of(sample(levels), label=label))
    if channels is not None:
        return SectionImage(label, levels, channel_axis, lambda block: decode(block[..., channels]))
    return SectionImage(label, levels, channel_axis, decode)


def sample(levels: tuple) -> np.ndarray:
    """Return values of the coarsest level, at most 2,000 along each axis; it is the cheapest way to find the range."""
    coarsest = levels[-1]
    if np.dtype(coarsest.dtype) == np.uint8:
        return np.empty(0, dtype=np.uint8)
    return np.asarray(coarsest[tuple(slice(None, None, max(1, n // 2000)) for n in coarsest.shape)])


def _plane(shape: tuple[int, ...], channel_axis: int | None) -> tuple[int, int]:
    rows, cols = (n for axis, n in enumerate(shape) if axis != channel_axis)
    return int(rows), int(cols)
