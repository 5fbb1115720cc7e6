"""Load a model folder, of whatever kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strecur.models.domain import DomainModel, domains_from_saved
from strecur.models.expression import ExpressionModel, LinearExpressionModel, expression_from_saved
from strecur.models.io.folders import checksum, load_folder
from strecur.models.network import BACKBONES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from strecur.nn import BackboneConfig

FROM_SAVED: dict[str, Callable[..., Any]] = {"domains": domains_from_saved, "expression": expression_from_saved}


def load_model(
    path: str | Path, *, backbones: Sequence[type[BackboneConfig]] = ()
) -> DomainModel | ExpressionModel | LinearExpressionModel:
    """Load a model folder of any kind.

    Parameters
    ----------
    path
        Folder written by ``model.save(path)``.
    backbones
        Configurations of backbones that are not part of strecur, if the model has one.

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
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> import tempfile
    >>> folder = tempfile.mkdtemp() + "/my_tissue"
    >>> model.save(folder)
    >>> st.load_model(folder).labels
    ['L1', 'L2', 'L3']
    """
    if not isinstance(path, str | Path):
        msg = f"path={path!r}: pass the path of a model folder"
        raise TypeError(msg)
    known = BACKBONES | {config.name: config for config in backbones}
    config, arrays = load_folder(path, known)
    return FROM_SAVED[config["kind"]](config, arrays, known)


def fingerprint(model: DomainModel | LinearExpressionModel) -> str:
    """Digest of all that a model consists of: the same before it is saved and after it is loaded."""
    config, arrays = model._saved()
    return checksum(json.loads(json.dumps({**config, "strecur": None})), arrays)[:16]
