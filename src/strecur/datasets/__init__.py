"""Data to try things on, made up rather than downloaded."""

from __future__ import annotations

from strecur.datasets._synthetic import synthetic_sections

__all__ = ["synthetic_sections"]
