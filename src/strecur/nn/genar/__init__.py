"""GenAR: counts of all genes of a spot, generated from coarse gene groups to single genes.

Shape suffixes in this package, in addition to those of ``strecur.nn``: ``P`` gene groups of one scale, ``L`` positions
of a sequence, ``V`` count tokens. ``C`` is the width of the condition.
"""

from __future__ import annotations

from strecur.nn.genar.config import GenARConfig
from strecur.nn.genar.network import CountHead, CountNetwork

__all__ = ["CountHead", "CountNetwork", "GenARConfig"]
