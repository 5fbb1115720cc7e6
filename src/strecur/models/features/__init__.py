"""Features of spots, fitted on training sections and applied to any section."""

from __future__ import annotations
