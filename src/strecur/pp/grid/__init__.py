"""Integer lattice of spots, from array coordinates, from spot coordinates, or for irregular cells."""

from __future__ import annotations
