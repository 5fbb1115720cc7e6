"""Training and prediction on Lightning Fabric, without AnnData and biology."""

from __future__ import annotations

from strecur.engine.answers import Answer, Prediction
from strecur.engine.augmentation import Augmentation, HistAugmentation
from strecur.engine.checkpoint import Checkpoint
from strecur.engine.data import Section, collate
from strecur.engine.devices import make_fabric
from strecur.engine.prediction import predict
from strecur.engine.training import fit

__all__ = [
    "Answer",
    "Augmentation",
    "Checkpoint",
    "HistAugmentation",
    "Prediction",
    "Section",
    "collate",
    "fit",
    "make_fabric",
    "predict",
]
