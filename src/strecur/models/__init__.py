"""Fitted models: features, network and configuration, saved and loaded as a folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strecur.models import _storage
from strecur.models.domain import DomainModel
from strecur.models.expression import ExpressionModel

if TYPE_CHECKING:
    from pathlib import Path

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

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", library_key="section", max_epochs=1, progress=False)
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/my_tissue"
    >>> model.save(folder)
    >>> st.load_model(folder).labels
    ['L1', 'L2', 'L3']
    """
    config, _ = _storage.load_folder(path)
    if config.get("kind") not in KINDS:
        msg = f"{path} holds a model of unknown kind {config.get('kind')!r}; this version knows {sorted(KINDS)}"
        raise ValueError(msg)
    return KINDS[config["kind"]].load(path)
