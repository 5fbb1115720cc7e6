"""Training and prediction loops on Lightning Fabric; they know neither AnnData nor biology."""

from __future__ import annotations

from strecur.engine.checkpoint import Checkpoint
from strecur.engine.data import Augmentation, Section, collate
from strecur.engine.deform import HistAugmentation
from strecur.engine.fit import FitConfig, fit
from strecur.engine.predict import Inference, Prediction, predict
from strecur.engine.restarts import combine

__all__ = [
    "Augmentation",
    "Checkpoint",
    "FitConfig",
    "HistAugmentation",
    "Inference",
    "Prediction",
    "Section",
    "collate",
    "combine",
    "fit",
    "predict",
]
