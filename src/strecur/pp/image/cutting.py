"""Positions of patches on the image of a section, and cutting them out."""

from __future__ import annotations

import logging
import zlib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from strecur import _anndata
from strecur._arguments import check_positive
from strecur.pp.image.sources import ImageSource, for_section
from strecur.pp.image.stain import tissue_mask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur.pp.image.options import Patches
    from strecur.pp.image.section_image import SectionImage

logger = logging.getLogger("strecur")

USUAL_MPP = "about 0.5 for scans at 20x, 0.25 at 40x"

SAME_PIXELS = 1.1
"""Ratio of pixel sizes up to which two sources agree: nominal and measured sizes differ by some per cent."""

MAX_OUTSIDE = 0.2
"""Above this share of spots outside the image of their section, coordinates and image do not belong together."""

MIN_PATCH_PX = 16
"""A nucleus is about 16 pixels wide at 0.5 µm per pixel; smaller patches show nothing."""

MIN_PATCH_UM = 8.0
"""The same in micrometres."""


SMALL_TURN = 0.1
"""Up to this deviation from the axes of the coordinates, patches are cut along the axes of the image, unblurred."""


@dataclass(frozen=True)
class PatchPlan:
    """Patches of one section: squares of ``side`` pixels around the pixels ``centres`` (x, y) of its image.

    Spots that are not ``inside`` have no patch; the centre of a spot without coordinates is NaN.
    """

    name: str
    rows: np.ndarray
    source: ImageSource
    centres: np.ndarray
    inside: np.ndarray
    side: int
    patch_px: float
    mpp: float | None
    fingerprint: str

    @property
    def n_missing(self) -> int:
        """Number of spots without coordinates."""
        return int(np.isnan(self.centres).any(axis=1).sum())

    @property
    def n_outside(self) -> int:
        """Number of spots beyond the border of the image."""
        return int((~self.inside).sum()) - self.n_missing


def read_coordinates(data: AnnData | SpatialData, table: AnnData, spatial_key: str) -> np.ndarray:
    """Read spot coordinates (x, y); missing ones are NaN."""
    coordinates = _anndata.find_coordinates(data, table, spatial_key)
    _anndata.warn_of_rounding(table, spatial_key)
    if coordinates is None:
        _anndata.require(table.obsm, spatial_key, where="obsm", hint="spatial_key names the spot coordinates")
    assert coordinates is not None
    if coordinates.ndim != 2 or coordinates.shape[1] < 2:
        msg = f"adata.obsm[{spatial_key!r}] has shape {coordinates.shape}; expected spots × 2"
        raise ValueError(msg)
    return coordinates[:, :2]


def mpp_of(mpp: float | Mapping[str, float] | None, name: str) -> float | None:
    """Return the micrometres per pixel that the caller gave for a section."""
    if mpp is None:
        return None
    own = for_section(mpp, name, argument="mpp")
    check_positive(f"section {name!r}: mpp", own)
    return float(own)


def find_mpp(given: float | None, source: ImageSource, known: float | None, name: str) -> float | None:
    """Return the micrometres per unit of the coordinates: as given, else as known, else as the file of the image says.

    Parameters
    ----------
    given
        From the caller, for this section.
    source
        Image of the section.
    known
        From ``uns["spatial"]``.
    name
        Section, for messages.
    """
    told = None
    if isinstance(source.source, str | Path):
        with closing(source.open()) as opened:
            told = None if opened.mpp is None else opened.mpp * source.scale
    used = known if given is None else given
    if used is None:
        return told
    warn_of_pixel_size(used, told, f"section {name!r}: {source.label}")
    return used


def warn_of_pixel_size(used: float, told: float | None, label: str) -> None:
    """Warn if a file tells another pixel size than the one that is used."""
    if told is not None and not 1 / SAME_PIXELS <= used / told <= SAME_PIXELS:
        logger.warning(
            "%s tells %.4g µm per unit of the coordinates, but mpp=%.4g is used: if the file is right, patches and "
            "distances are %.2g times as long as they should be",
            *(label, told, used, told / used),
        )


def patch_side(patches: Patches, default_um: float, mpp: float | None, name: str) -> float:
    """Return the side of a patch in units of the spot coordinates."""
    if patches.px is not None:
        return float(patches.px)
    if mpp is None:
        msg = (
            f"the scale of section {name!r} is unknown: give mpp (micrometres per pixel: {USUAL_MPP}; for Visium 100 "
            'divided by the distance of neighbouring spots in pixels, for legacy ST 200), or patches={"px": ...}'
        )
        raise ValueError(msg)
    return float((patches.um or default_um) / mpp)


def place(
    name: str, rows: np.ndarray, source: ImageSource, coordinates: np.ndarray, *, patch_px: float, mpp: float | None
) -> PatchPlan:
    """Place the patches of a section on its image, and raise or warn if they do not fit."""
    with closing(source.open()) as opened:
        shape = opened.shape
    centres = source.pixels(coordinates)
    inside = np.all((centres >= 0) & (centres < shape[::-1]), axis=1)
    side = max(1, round(patch_px * source.scale))
    fingerprint = f"{zlib.crc32(centres.tobytes(), source.checksum()):08x}-{side}"
    plan = PatchPlan(name, rows, source, centres, inside, side, patch_px, mpp, fingerprint)
    _check_full_size(plan, shape)
    _check_position(plan, shape)
    _check_scale(plan, shape)
    return plan


def _check_full_size(plan: PatchPlan, shape: tuple[int, int]) -> None:
    """Raise or warn if the image has another size than ``uns["spatial"]`` tells."""
    size = plan.source.full_size
    if size is None or size.fits(shape):
        return
    enlargement = np.array(shape) / (size.rows, size.cols)
    has = (
        f"section {plan.name!r}: the image {plan.source.label} has {shape[1]} × {shape[0]} pixels (columns × rows); "
        f"according to the scale factors of adata.uns['spatial'] it would have {size.cols:.0f} × {size.rows:.0f}"
    )
    if np.isclose(enlargement[0], enlargement[1], rtol=0.01):
        suggested = plan.source.scale * enlargement.mean()
        msg = (
            f"{has}. If it is the same image at another resolution, pass patches={{'image_scale': {suggested:.4g}}}; "
            "if the coordinates are its pixels, correct the scale factors"
        )
        raise ValueError(msg)
    logger.warning("%s; check that it is the image to which the coordinates belong", has)


def _check_position(plan: PatchPlan, shape: tuple[int, int]) -> None:
    """Raise or warn if spots lie outside the image or have no coordinates."""
    n_located = len(plan.rows) - plan.n_missing
    if n_located == 0:
        msg = f"section {plan.name!r}: none of its {len(plan.rows)} spots has coordinates"
        raise ValueError(msg)
    if plan.n_outside > MAX_OUTSIDE * n_located:
        x, y = (f"{np.nanmin(c):.0f} to {np.nanmax(c):.0f}" for c in plan.centres.T)
        msg = (
            f"section {plan.name!r}: {plan.n_outside} of {n_located} spots lie outside the image {plan.source.label} "
            f"of {shape[1]} × {shape[0]} pixels (columns × rows): x is {x}, y is {y}, with {plan.source.scale:g} image "
            "pixels per coordinate unit. Is it the image of this section, are x and y swapped, or is image_scale wrong?"
        )
        raise ValueError(msg)
    for n, where in ((plan.n_outside, "outside the image"), (plan.n_missing, "without coordinates")):
        if n:
            logger.warning("section %r: %d spots %s have no embedding (NaN)", plan.name, n, where)


def _check_scale(plan: PatchPlan, shape: tuple[int, int]) -> None:
    """Raise or warn if patches are absurdly large or small."""
    size = f"{plan.side} pixels" + (f" ({plan.patch_px * plan.mpp:.3g} µm)" if plan.mpp else "")
    if plan.side > 2 * max(shape):
        msg = (
            f"section {plan.name!r}: a patch of {size} for an image of {shape[1]} × {shape[0]} pixels; check patch "
            "size, mpp and image_scale"
        )
        raise ValueError(msg)
    if plan.side < MIN_PATCH_PX or (plan.mpp and plan.patch_px * plan.mpp < MIN_PATCH_UM):
        logger.warning(
            "section %r: a patch of %s of the image %s is smaller than a nucleus at full resolution (%d pixels, %g µm);"
            " use a larger image, or check patch size, mpp and image_scale",
            *(plan.name, size, plan.source.label, MIN_PATCH_PX, MIN_PATCH_UM),
        )
    extent = np.ptp(plan.centres[plan.inside], axis=0).max()
    if plan.side > extent > 0 or plan.side > min(shape):
        logger.warning(
            "section %r: a patch of %s is larger than the tissue (the spots span %.0f pixels) or the image (%d × %d); "
            "check patch size, mpp and image_scale",
            *(plan.name, size, extent, shape[1], shape[0]),
        )


def cut(
    image: SectionImage, centres: np.ndarray, side: int, size: int, turn: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Cut squares of ``side`` pixels around ``centres`` (x, y) and resize them to ``size``.

    They are read from the coarsest level of the image that still has ``size`` pixels.

    Parameters
    ----------
    image
        Image to cut from.
    centres
        Patches × 2, (x, y) in pixels of the image.
    side
        Side of a patch in pixels of the image.
    size
        Side of the result in pixels.
    turn
        Linear map (2 × 2) from the axes of a patch to those of the image, without scale. If ``None`` (default), or if
        it is nearly the identity, patches are cut along the axes of the image; else they are resampled along their own.
    """
    from PIL import Image

    turn = np.eye(2) if turn is None else turn
    along = np.abs(turn - np.eye(2)).max() <= SMALL_TURN
    level = image.level(side / size)
    factor = image.downsample(level)
    exact = side / factor
    for centre in centres / factor:
        # whole pixels at full resolution, parts of pixels at a coarser one
        corner = centre - exact / 2 if level else np.floor(centre - exact / 2 + 0.5)
        if along:
            patch, box = _region_around(image, corner, exact, level)
        else:
            patch, box = _cut_turned(image, corner + exact / 2, round(exact), turn, level), None
        if patch.shape[:2] != (size, size) or level:
            patch = np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.LANCZOS, box=box))
        yield patch


def _region_around(
    image: SectionImage, corner: np.ndarray, side: float, level: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Read the pixels of a level that a square touches; return them and where it lies in them."""
    first = np.floor(corner).astype(int)
    width, height = np.ceil(corner + side).astype(int) - first
    left, top = corner - first
    pixels = image.region(first[1], first[0], height, width, level=level)
    return pixels, (left, top, left + side, top + side)


def _cut_turned(image: SectionImage, centre: np.ndarray, side: int, turn: np.ndarray, level: int) -> np.ndarray:
    """Resample a square of ``side`` pixels of a level around ``centre`` (x, y) along its own axes."""
    from scipy.ndimage import affine_transform

    reach = np.abs(turn).sum(axis=1) * side / 2
    corner = np.floor(centre - reach).astype(int) - 2
    width, height = np.ceil(centre + reach).astype(int) + 2 - corner
    around = image.region(corner[1], corner[0], height, width, level=level).astype(np.float32)
    # Rows come before columns here, and the middle of pixel i is at i + 0.5.
    matrix = turn[::-1, ::-1]
    origin = (centre - corner)[::-1] - matrix @ [(side - 1) / 2, (side - 1) / 2] - 0.5
    turned = [affine_transform(around[..., i], matrix, origin, (side, side), mode="nearest") for i in range(3)]
    return np.clip(np.rint(np.stack(turned, axis=-1)), 0, 255).astype(np.uint8)


def tissue_fraction(thumbnail: np.ndarray, shape: tuple[int, int], centres: np.ndarray, side: float) -> np.ndarray:
    """Return the share of each square that is tissue; the area beyond the border is not.

    Parameters
    ----------
    thumbnail
        The image, downscaled.
    shape
        Rows and columns of the image at full size.
    centres
        Centres (x, y) of the squares in full-size pixels.
    side
        Side of the squares in full-size pixels.
    """
    from scipy.ndimage import map_coordinates

    mask = tissue_mask(thumbnail)
    below = np.pad(mask.astype(float).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    scale = np.array(mask.shape) / shape
    low, high = ((centres[:, ::-1] + offset) * scale for offset in (-side / 2, side / 2))

    def area(rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        return map_coordinates(below, [rows, cols], order=1, mode="nearest")

    inside = area(high[:, 0], high[:, 1]) - area(low[:, 0], high[:, 1])
    inside += area(low[:, 0], low[:, 1]) - area(high[:, 0], low[:, 1])
    return np.clip(inside / (side**2 * scale.prod()), 0, 1).astype(np.float32)
