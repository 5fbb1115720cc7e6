"""Plots of the results of :mod:`strecur.tl`."""

from __future__ import annotations

from strecur.pl._benchmark import benchmark
from strecur.pl._confusion import confusion
from strecur.pl._domains import domains
from strecur.pl._expression import gene_scores
from strecur.pl._halting import halt_steps, halt_summary
from strecur.pl._markers import marker_panel
from strecur.pl._reasoning import convergence, refinement
from strecur.pl._recursion import landscape, recursion_sweep
from strecur.pl._suggestions import suggestions
from strecur.pl._tokens import slide_tokens
from strecur.pl._training import training
from strecur.pl._uncertainty import confidence, reliability

__all__ = [
    "benchmark",
    "confidence",
    "confusion",
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
    "slide_tokens",
    "suggestions",
    "training",
]


def __dir__() -> list[str]:
    return __all__
