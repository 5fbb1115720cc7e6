"""Synthetic and public data sets; nothing is downloaded unless requested."""

from __future__ import annotations

from strecur.datasets._dlpfc import dlpfc
from strecur.datasets._her2st import her2st
from strecur.datasets._mob import mob
from strecur.datasets._protocols import gene_panels, read_genes, read_split
from strecur.datasets._spleen import spleen_sample
from strecur.datasets._synthetic import synthetic_sections

__all__ = [
    "dlpfc",
    "gene_panels",
    "her2st",
    "mob",
    "read_genes",
    "read_split",
    "spleen_sample",
    "synthetic_sections",
]


def __dir__() -> list[str]:
    return __all__
