"""Fitted models: features, network and configuration, saved and loaded as a folder."""

from __future__ import annotations

from pathlib import Path

from strecur.models import _storage
from strecur.models._storage import ModelFolderError
from strecur.models.domain import DomainModel
from strecur.models.expression import ExpressionModel

__all__ = ["DomainModel", "ExpressionModel", "ModelFolderError", "load_model"]

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
    ModelFolderError
        If the folder is damaged, incomplete, of another format, or no model. It is a ``ValueError``, and a
        ``FileNotFoundError`` too if a file is missing.

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
    if not isinstance(path, str | Path):
        msg = f"path={path!r}: pass the path of a model folder"
        raise TypeError(msg)
    kind = _storage.read_config(_storage.find_folder(path))["kind"]
    return KINDS[kind].load(path)
