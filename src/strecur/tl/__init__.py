"""Tools: train models on annotated sections and apply them to new ones."""

from __future__ import annotations

from strecur.tl._calibrate import calibrate, calibrate_expression, calibrate_halting
from strecur.tl._cluster import cluster_latent
from strecur.tl._cohort import predict_cohort, sample_cohort
from strecur.tl._cross_validation import cross_validate
from strecur.tl._domains import train_domains, trm_domains
from strecur.tl._expression import predict_expression, train_expression
from strecur.tl._recursion import landscape, recursion_sweep
from strecur.tl._suggest import suggest_annotation

__all__ = [
    "calibrate",
    "calibrate_expression",
    "calibrate_halting",
    "cluster_latent",
    "cross_validate",
    "landscape",
    "predict_cohort",
    "predict_expression",
    "recursion_sweep",
    "sample_cohort",
    "suggest_annotation",
    "train_domains",
    "train_expression",
    "trm_domains",
]


def __dir__() -> list[str]:
    return __all__
