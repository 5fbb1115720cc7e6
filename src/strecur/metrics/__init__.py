"""Scores of predicted domains and predicted expression, all computed in float64.

Expression matrices are spots × genes in ``log2(counts + 1)``, or raw counts where a parameter is called ``counts``.
Truth and prediction are matched by position; two pandas objects must also have the same index (and columns). A spot
whose whole row is NaN is missing: it is left out and counted, never scored as zero. An undefined score is NaN.
"""

from __future__ import annotations

from strecur.metrics._confusion import confusion_table, scores_by_domain
from strecur.metrics._counts import (
    library_size_correlation,
    moment_dispersion,
    negative_binomial_log_likelihood,
    zero_scores,
)
from strecur.metrics._domains import domain_scores, expected_calibration_error
from strecur.metrics._expression import (
    depth_normalised,
    expression_scores,
    pcc_per_gene,
    pcc_top,
    pooled_scores,
    rvd,
    rvd_std,
)
from strecur.metrics._restarts import path_dependence
from strecur.metrics._structure import gene_structure, lattice_graph, moran_structure

__all__ = [
    "confusion_table",
    "depth_normalised",
    "domain_scores",
    "expected_calibration_error",
    "expression_scores",
    "gene_structure",
    "lattice_graph",
    "library_size_correlation",
    "moment_dispersion",
    "moran_structure",
    "negative_binomial_log_likelihood",
    "path_dependence",
    "pcc_per_gene",
    "pcc_top",
    "pooled_scores",
    "rvd",
    "rvd_std",
    "scores_by_domain",
    "zero_scores",
]


def __dir__() -> list[str]:
    return __all__
