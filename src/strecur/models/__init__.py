"""Fitted models: features, network and configuration, saved and loaded as a folder."""

from __future__ import annotations

from pathlib import Path

from strecur.models import _storage
from strecur.models.domain import DomainModel
from strecur.models.expression import ExpressionModel

__all__ = ["DomainModel", "ExpressionModel", "load_model"]

KINDS = {"domains": DomainModel, "expression": ExpressionModel}


def load_model(path: str | Path) -> DomainModel | ExpressionModel:
    """Load a model folder of any kind.

    Parameters
    ----------
    path
        Folder written by ``model.save(path)``.

    Returns
    -------
    The model, on the CPU.

    Raises
    ------
    FileNotFoundError
        If a file of the folder is missing.
    ValueError
        If the folder was written by a version with another format.
    """
    if not isinstance(path, str | Path):
        msg = f"path={path!r}: pass the path of a model folder"
        raise TypeError(msg)
    config, _ = _storage.load_folder(path)
    if config.get("kind") not in KINDS:
        msg = f"{path} holds a model of unknown kind {config.get('kind')!r}; this version knows {sorted(KINDS)}"
        raise ValueError(msg)
    return KINDS[config["kind"]].load(path)
