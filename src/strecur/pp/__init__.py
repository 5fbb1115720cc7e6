"""Prepare sections: lattice, annotation, H&E patches, gene panels."""

from __future__ import annotations

from strecur.pp.annotation.read_annotation import read_annotation
from strecur.pp.grid.to_grid import to_grid
from strecur.pp.image.encoders import Encoder, load_encoder
from strecur.pp.image.hest import read_hest
from strecur.pp.image.options import Patches
from strecur.pp.image.patches import embed_patches
from strecur.pp.image.stain import fit_stain_reference
from strecur.pp.image.tiles import tile_image
from strecur.pp.image.wsidata import read_wsidata
from strecur.pp.panels import high_mean_high_variance_genes

__all__ = [
    "Encoder",
    "Patches",
    "embed_patches",
    "fit_stain_reference",
    "high_mean_high_variance_genes",
    "load_encoder",
    "read_annotation",
    "read_hest",
    "read_wsidata",
    "tile_image",
    "to_grid",
]


def __dir__() -> list[str]:
    return __all__
