"""Fitted models: features, network and configuration, saved and loaded as a folder."""

from __future__ import annotations

from strecur.models.domain import DomainModel
from strecur.models.expression import ExpressionModel, LinearExpressionModel
from strecur.models.io.folders import ModelFolderError
from strecur.models.loading import load_model

__all__ = ["DomainModel", "ExpressionModel", "LinearExpressionModel", "ModelFolderError", "load_model"]


def __dir__() -> list[str]:
    return __all__
