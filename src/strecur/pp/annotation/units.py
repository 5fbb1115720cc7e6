"""Units of annotation: pixels of an image, or micrometres."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from strecur._arguments import check_positive
from strecur.pp.image.sources import find_library, read_mpp

if TYPE_CHECKING:
    import numpy as np
    from anndata import AnnData

UNITS = ("um", "hires", "lowres")


def check_scale(scale: object) -> None:
    """Raise unless the scale is a positive number, one of the units, or a mapping of these."""
    for value in scale.values() if isinstance(scale, Mapping) else [scale]:
        if not isinstance(value, str):
            check_positive("scale", value)
        elif value not in UNITS:
            msg = f"scale={value!r}; pass a number or one of {list(UNITS)}"
            raise ValueError(msg)


def known_scales(table: AnnData, name: str, rows: np.ndarray, xy: np.ndarray, *, alone: bool) -> dict[str, float]:
    """Return how many units of the coordinates each unit is, for those that ``uns["spatial"]`` tells."""
    factors = find_library(table, name, alone=alone)[1].get("scalefactors", {})
    known = {
        size: 1 / float(factors[f"tissue_{size}_scalef"]) for size in UNITS[1:] if f"tissue_{size}_scalef" in factors
    }
    mpp = read_mpp(table, name, rows, xy, alone=alone)
    return known if mpp is None else {"um": 1 / mpp, **known}


def scale_of(scale: float | str | Mapping[str, float | str], name: str, known: Mapping[str, float]) -> float:
    """Return the units of the coordinates per unit of the annotation of a section."""
    if isinstance(scale, Mapping):
        if name not in scale:
            msg = f"scale has no entry for section {name!r}; there are {list(scale)}"
            raise KeyError(msg)
        scale = scale[name]
    if not isinstance(scale, str):
        return float(scale)
    if scale not in known:
        msg = (
            f"scale={scale!r}: adata.uns['spatial'] does not tell it for section {name!r}, only {list(known)}; pass "
            "the units of the spot coordinates per unit of the annotation as a number"
        )
        raise ValueError(msg)
    return known[scale]
