"""Results as objects of their own, and as files for other programs."""

from __future__ import annotations

from strecur.get._annotation import annotation, outlines, write_annotation
from strecur.get._expression import expression
from strecur.get._slides import spatialdata, write_expression

__all__ = ["annotation", "expression", "outlines", "spatialdata", "write_annotation", "write_expression"]


def __dir__() -> list[str]:
    return __all__
