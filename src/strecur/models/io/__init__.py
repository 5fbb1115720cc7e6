"""Model folders: data only, checked before any of it is used."""

from __future__ import annotations
