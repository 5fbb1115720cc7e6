"""Prepare sections: lattice, patches, expression."""

from __future__ import annotations

from strecur.pp._encoders import Encoder
from strecur.pp._grid import to_grid
from strecur.pp._panels import high_mean_high_variance_genes
from strecur.pp._patches import embed_patches
from strecur.pp._stain import fit_stain_reference
from strecur.pp._tiles import tile_image

__all__ = [
    "Encoder",
    "embed_patches",
    "fit_stain_reference",
    "high_mean_high_variance_genes",
    "tile_image",
    "to_grid",
]
