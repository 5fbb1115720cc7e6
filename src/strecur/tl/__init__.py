"""Tools: train models on annotated sections and apply them to new ones."""

from __future__ import annotations

from strecur.tl._calibrate_expression import calibrate_expression
from strecur.tl._cluster import cluster_latent
from strecur.tl._domains import trm_domains
from strecur.tl._evaluate import cross_validate
from strecur.tl._expression import predict_expression
from strecur.tl._sweep import landscape, recursion_sweep
from strecur.tl._train_domains import train_domains
from strecur.tl._train_expression import train_expression
from strecur.tl._uncertainty import calibrate, calibrate_halting

__all__ = [
    "calibrate",
    "calibrate_expression",
    "calibrate_halting",
    "cluster_latent",
    "cross_validate",
    "landscape",
    "predict_expression",
    "recursion_sweep",
    "train_domains",
    "train_expression",
    "trm_domains",
]
