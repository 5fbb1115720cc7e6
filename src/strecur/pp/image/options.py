"""Options of image patches: one frozen dataclass that documents and checks them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from strecur._arguments import check_positive, check_whole
from strecur.options import as_options

FLAT = {"image", "encoder", "library_key", "mpp", "views", "spatial_key", "key_added", "copy", "table_key"}
"""Names that :func:`strecur.pp.embed_patches` takes itself."""


@dataclass(frozen=True)
class Patches:
    """Size and staining of the patch around every spot, and how the patches are computed.

    :func:`strecur.pp.embed_patches` also takes a mapping of the same names, such as ``patches={"um": 224}``.

    Attributes
    ----------
    um
        Side of a patch in micrometres; needs the scale of the image (``mpp``). If neither ``um`` nor ``px`` is given
        (default), that of the encoder: 112 µm (224 pixels of 0.5 µm) for most.
    px
        Side of a patch in units of the spot coordinates, that is, pixels of the full-resolution image. Replaces ``um``.
    image_scale
        Image pixels per unit of the spot coordinates, for images given as path or array: one number, or a mapping from
        section to number. Below 1 for a downscaled image.
    stain_reference
        Stain colours to which all sections are normalised: the result of :func:`strecur.pp.fit_stain_reference`, or a
        JSON file of it. If ``None`` (default), stains are not normalised.
    batch_size
        Number of patches to encode at a time. It does not change results beyond rounding.

    Examples
    --------
    >>> import strecur as st
    >>> st.pp.Patches(um=224).um
    224
    """

    um: float | None = None
    px: float | None = None
    image_scale: float | Mapping[str, float] = 1.0
    stain_reference: Mapping | str | Path | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.um is not None and self.px is not None:
            msg = f"um={self.um!r} and px={self.px!r}: give one of them, not both"
            raise ValueError(msg)
        for name in ("um", "px"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        scales = self.image_scale if isinstance(self.image_scale, Mapping) else {None: self.image_scale}
        for section, scale in scales.items():
            check_positive("image_scale" if section is None else f"section {section!r}: image_scale", scale)
        if not isinstance(self.stain_reference, Mapping | str | Path | None):
            msg = f"stain_reference={self.stain_reference!r}: pass the result of strecur.pp.fit_stain_reference"
            raise TypeError(msg)
        check_whole("batch_size", self.batch_size)


def as_patches(given: Patches | Mapping[str, object] | None) -> Patches:
    """Return options of patches given as an object, as a mapping of their names, or not at all."""
    return as_options(Patches, "patches", given, place="strecur.pp", flat=FLAT)
