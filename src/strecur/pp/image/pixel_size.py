"""Micrometres per pixel of a slide, from what its file says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tifffile import TiffFile, TiffPage

SMALLEST, LARGEST = 0.05, 20.0
"""Pixel sizes of microscopes in µm; 72 or 300 dots per inch (353 and 85 µm) are defaults of programs, not sizes."""

MAX_STRETCH = 1.02
"""Above this ratio of width and height, pixels are not square and have no single size."""

DESCRIBED = (
    re.compile(r"\bMPP\s*=\s*(\d+(?:\.\d+)?)"),  # Aperio
    re.compile(r"openslide\.mpp-x\s*(?:</name>\s*<value[^>]*>|[=:])\s*(\d+(?:\.\d+)?)"),  # copies by libvips
)

MICROMETRES = {"m": 1e6, "cm": 1e4, "mm": 1e3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "nm": 1e-3}
"""Units of OME and ImageJ; both signs for micro are in use."""

INCH, CENTIMETRE = 2, 3
"""Values of the tag ResolutionUnit, of which the second tag tells the pixels."""


def read_pixel_size(file: TiffFile, page: TiffPage, ome_pixels: Mapping) -> float | None:
    """Return the micrometres per pixel of a TIFF; ``None`` if it does not tell, or tells nothing plausible.

    Parameters
    ----------
    file
        Open file.
    page
        First page of the image.
    ome_pixels
        What OME-TIFF says of the pixels of the image; empty for other files.
    """
    for size in (_of_ome(ome_pixels), _of_description(page), _of_imagej(file, page), _of_resolution(page)):
        if size is not None and SMALLEST <= size <= LARGEST:
            return size
    return None


def _of_ome(pixels: Mapping) -> float | None:
    """Return the size in the metadata of OME, whose unit is the micrometre if it has none."""
    units = [MICROMETRES.get(str(pixels.get(f"PhysicalSize{axis}Unit", "µm"))) for axis in "XY"]
    sizes = [pixels.get(f"PhysicalSize{axis}") for axis in "XY"]
    known = [float(size) * unit for size, unit in zip(sizes, units, strict=True) if size is not None and unit]
    return _square(*known) if len(known) == len(sizes) else None


def _of_description(page: TiffPage) -> float | None:
    found = (pattern.search(page.description or "") for pattern in DESCRIBED)
    return next((float(match[1]) for match in found if match), None)


def _of_imagej(file: TiffFile, page: TiffPage) -> float | None:
    unit = str((file.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
    return _per_unit(page, MICROMETRES.get(unit))


def _of_resolution(page: TiffPage) -> float | None:
    return _per_unit(page, {INCH: 25_400.0, CENTIMETRE: 10_000.0}.get(page.tags.valueof("ResolutionUnit", INCH)))


def _per_unit(page: TiffPage, unit_um: float | None) -> float | None:
    """Return the size of pixels of which there are XResolution and YResolution per unit."""
    fractions = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if unit_um is None or None in fractions or 0 in sum(fractions, ()):
        return None
    return _square(*(unit_um * denominator / numerator for numerator, denominator in fractions))


def _square(width: float, height: float) -> float | None:
    """Return the side of pixels that are square."""
    return width if max(width, height) <= MAX_STRETCH * min(width, height) else None
