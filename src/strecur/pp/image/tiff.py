"""TIFF files, read by region, with their colours as the file describes them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from strecur.pp.image.colours import (
    colour_channels,
    from_inverted,
    from_mode,
    from_palette,
    from_premultiplied,
    to_rgb,
    white_of,
)
from strecur.pp.image.pixel_size import read_pixel_size
from strecur.pp.image.section_image import MAX_DECODED_PIXELS, SectionImage, from_levels, sample

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tifffile import TiffFile, TiffPage, TiffPageSeries

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF and a BigTIFF, whatever the name of the file."""

MAX_SLIDE_PIXELS = 40_000_000_000
"""No scanner makes larger slides, but a file may claim any size."""

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
"""Photometric interpretations of TIFF 6.0."""

GREY = (WHITE_IS_ZERO, BLACK_IS_ZERO)

JPEG = {6, 7, 33007, 34892}
"""Compressions whose YCbCr is RGB after decompression."""

APERIO_YCBCR = 33003
"""JPEG 2000 of Aperio that holds YCbCr, whatever the photometric interpretation says."""

UNSPECIFIED, PREMULTIPLIED = 0, 1
"""Kinds of extra samples: neither colour nor alpha, and alpha by which the colours are multiplied."""

SAVE_AS_RGB = "pass the right ones as an array rows × columns × 3, or save the file as RGB"


def is_tiff(path: Path) -> bool:
    """Tell whether a file is a TIFF by its first bytes."""
    with path.open("rb") as file:
        return file.read(4) in SIGNATURES


def open_tiff(path: Path) -> SectionImage:
    """Open the largest image of a TIFF without reading its pixels.

    Raises
    ------
    OSError
        If the file is damaged.
    ValueError
        If it is too large, holds several images or channels that are not colours, is stored turned, or has a colour
        space that cannot be decoded.
    """
    import tifffile
    import zarr

    try:
        file = tifffile.TiffFile(path)
        series = max(file.series, key=lambda s: s.size)
        levels = tuple(zarr.open(series.aszarr(level=i), mode="r") for i in range(len(series.levels)))
    except (tifffile.TiffFileError, ValueError, IndexError) as error:
        msg = f"{path.name} cannot be read as TIFF: {error}"
        raise OSError(msg) from error
    try:
        image = _describe(path, file, series, levels)
    except ValueError:
        file.close()
        raise
    mpp = read_pixel_size(file, series.keyframe, _ome_pixels(file, file.series.index(series)))
    return replace(image, file=file, mpp=mpp)


def _describe(path: Path, file: TiffFile, series: TiffPageSeries, levels: tuple) -> SectionImage:
    """Find out how the pixels of a TIFF are to be read, or raise."""
    axes = series.axes.replace("S", "C")
    if axes not in {"YX", "YXC", "CYX"}:
        msg = f"{path.name} has axes {series.axes} of shape {series.shape}; expected rows, columns and channels"
        raise ValueError(msg)
    _require_single(path, file, series)
    _require_readable(path, levels, series.axes)
    page = series.keyframe
    _require_upright(path, page)
    channel_axis = axes.find("C") if "C" in axes else None
    white = _white(path, file, series, levels)
    if "C" in series.axes and page.photometric in GREY:
        names = _channel_names(file, file.series.index(series), series.shape[axes.find("C")])
        channels = colour_channels(names, len(names), label=path.name, hint=SAVE_AS_RGB)
        plain = partial(to_rgb, white=white)
        return from_levels(path.name, levels, channel_axis=channel_axis, colours=plain, channels=channels)
    n_samples = levels[0].shape[channel_axis] if channel_axis is not None else 1
    alpha = page.extrasamples[0] if "S" in series.axes and len(page.extrasamples) == 1 else UNSPECIFIED
    if alpha != UNSPECIFIED and page.photometric in (BLACK_IS_ZERO, RGB):
        blend = from_premultiplied if alpha == PREMULTIPLIED else to_rgb
        return from_levels(path.name, levels, channel_axis=channel_axis, colours=partial(blend, white=white))
    # Baseline readers skip samples that are neither colour nor alpha.
    n_colours = n_samples if page.photometric in GREY else n_samples - len(page.extrasamples)
    colours, channels = _colours(path, page, n_colours, white), list(range(n_colours))
    if channel_axis is None:
        return from_levels(path.name, levels, channel_axis=None, colours=colours)
    return from_levels(path.name, levels, channel_axis=channel_axis, colours=colours, channels=channels)


def _colours(path: Path, page: TiffPage, n_colours: int, white: float) -> Callable[[np.ndarray], np.ndarray]:
    """Return the conversion to RGB for the photometric interpretation of a TIFF."""
    photometric = YCBCR if page.compression == APERIO_YCBCR else int(page.photometric)
    plain = partial(to_rgb, white=white)
    conversions = {
        (WHITE_IS_ZERO, 1): partial(from_inverted, white=white),
        (BLACK_IS_ZERO, 1): plain,
        (RGB, 3): plain,
        (PALETTE, 1): partial(from_palette, palette=_palette(page.colormap)),
        (CMYK, 4): partial(from_mode, mode="CMYK", white=white),
        (YCBCR, 3): plain if page.compression in JPEG else partial(from_mode, mode="YCbCr"),
        (CIELAB, 3): partial(from_mode, mode="LAB"),
    }
    is_wide = np.dtype(page.dtype).itemsize > 1 and photometric in (YCBCR, CIELAB) and page.compression not in JPEG
    is_other_ink = photometric == CMYK and page.tags.valueof("InkSet", 1) != 1
    if (photometric, n_colours) not in conversions or is_wide or is_other_ink:
        kind = getattr(page.photometric, "name", photometric)
        msg = (
            f"{path.name} has the colour space {kind} with {n_colours} channels of {page.dtype}, which cannot be "
            f"converted to RGB: {SAVE_AS_RGB}"
        )
        raise ValueError(msg)
    return conversions[photometric, n_colours]


def _palette(colormap: np.ndarray | None) -> np.ndarray:
    """Return the palette of a TIFF, 3 × colours of 16 bits, as colours × 3 uint8; some files hold 8 bits there."""
    if colormap is None:
        return np.empty((0, 3), dtype=np.uint8)
    return (colormap >> 8 if colormap.max() > 255 else colormap).astype(np.uint8).T


def _white(path: Path, file: TiffFile, series: TiffPageSeries, levels: tuple) -> float:
    """Return the value of white: of the number of bits, where the file tells it, else of the range."""
    page = series.keyframe
    bits = _significant_bits(file, file.series.index(series)) or page.bitspersample
    dtype = np.dtype(page.dtype)
    if dtype.kind in "bu" and (
        bits < 8 * dtype.itemsize or dtype.kind == "b" or page.photometric in (WHITE_IS_ZERO, CMYK)
    ):
        return float(2**bits - 1)
    return white_of(sample(levels), label=path.name)


def _ome_pixels(file: TiffFile, index: int) -> dict:
    """Return what OME-TIFF says of the pixels of an image, if it is one."""
    import tifffile

    if not file.ome_metadata:
        return {}
    images = tifffile.xml2dict(file.ome_metadata).get("OME", {}).get("Image", [])
    images = images if isinstance(images, list) else [images]
    return images[index].get("Pixels", {}) if index < len(images) else {}


def _channel_names(file: TiffFile, index: int, n_channels: int) -> list[str]:
    """Return the names of separate channels; unnamed ones are not colours, as the file says grey."""
    channels = _ome_pixels(file, index).get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    names = [str(channel.get("Name", "unnamed")) for channel in channels]
    return names if len(names) == n_channels else ["unnamed"] * n_channels


def _significant_bits(file: TiffFile, index: int) -> int | None:
    bits = _ome_pixels(file, index).get("SignificantBits")
    return None if bits is None else int(bits)


def _require_single(path: Path, file: TiffFile, series: TiffPageSeries) -> None:
    """Raise if a TIFF has several images of about the same size; labels and overviews are much smaller."""
    large = [other.shape for other in file.series if 2 * other.size >= series.size]
    if len(large) > 1:
        msg = f"{path.name} holds {len(large)} images, of shapes {large}; save the one of the section as its own file"
        raise ValueError(msg)


def _require_upright(path: Path, page: TiffPage) -> None:
    orientation = int(page.tags.valueof("Orientation", 1))
    if orientation != 1:
        msg = (
            f"{path.name} is stored turned or flipped (orientation {orientation}), and viewers show it upright; save "
            f"it so: vips autorot {path.name} {path.stem}_upright.tif[tile,pyramid,compression=jpeg]"
        )
        raise ValueError(msg)


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
