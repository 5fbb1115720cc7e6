"""Annotation of other programs: tables, polygons, several annotators."""

from __future__ import annotations
