"""Figures of what :mod:`strecur.tl` wrote."""

from __future__ import annotations

from strecur.pl._benchmark import benchmark
from strecur.pl._domains import domains
from strecur.pl._expression import gene_scores
from strecur.pl._markers import marker_panel
from strecur.pl._reasoning import confidence, halt_steps, refinement
from strecur.pl._sweeps import convergence, landscape, recursion_sweep
from strecur.pl._training import training
from strecur.pl._uncertainty import halt_summary, reliability

__all__ = [
    "benchmark",
    "confidence",
    "convergence",
    "domains",
    "gene_scores",
    "halt_steps",
    "halt_summary",
    "landscape",
    "marker_panel",
    "recursion_sweep",
    "refinement",
    "reliability",
    "training",
]
