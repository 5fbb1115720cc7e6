"""Positions of patches on the image of a section, and cutting them out."""

from __future__ import annotations

import logging
import zlib
from contextlib import closing
from dataclasses import dataclass
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

    from strecur.pp.image.decoding import SectionImage
    from strecur.pp.image.options import Patches

logger = logging.getLogger("strecur")

DEFAULT_PATCH_UM = 112.0
"""224 pixels of 0.5 µm, on which pathology models were trained."""

MAX_OUTSIDE = 0.2
"""Above this share of spots outside the image of their section, coordinates and image do not belong together."""

MIN_PATCH_PX = 16
"""A nucleus is about 16 pixels wide at 0.5 µm per pixel; smaller patches show nothing."""

MIN_PATCH_UM = 8.0
"""The same in micrometres."""


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


def patch_side(patches: Patches, mpp: float | None, name: str) -> float:
    """Return the side of a patch in units of the spot coordinates."""
    if patches.px is not None:
        return float(patches.px)
    if mpp is None:
        msg = (
            f"the scale of section {name!r} is unknown: give mpp (micrometres per pixel: for Visium 100 divided by the "
            'distance of neighbouring spots in pixels, for legacy ST 200), or patches={"px": ...}'
        )
        raise ValueError(msg)
    return float((patches.um or DEFAULT_PATCH_UM) / mpp)


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
    _check_position(plan, shape)
    _check_scale(plan, shape)
    return plan


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


def cut(image: SectionImage, centres: np.ndarray, side: int, size: int) -> Iterator[np.ndarray]:
    """Cut squares of ``side`` pixels around ``centres`` (x, y) and resize them to ``size``."""
    from PIL import Image

    for x, y in np.floor(centres - side / 2 + 0.5).astype(int):
        patch = image.region(y, x, side, side)
        if side != size:
            patch = np.asarray(Image.fromarray(patch).resize((size, size), Image.Resampling.LANCZOS))
        yield patch


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
