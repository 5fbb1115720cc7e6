"""Model folders: ``config.json`` and ``weights.safetensors``, data only."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"


def save_folder(
    path: str | Path, config: Mapping[str, object], arrays: Mapping[str, np.ndarray], *, overwrite: bool
) -> None:
    """Write a model folder in one step: it is complete or not there."""
    from safetensors.numpy import save_file

    path = Path(path)
    if path.exists() and not overwrite:
        msg = f"{path} exists; pass overwrite=True to replace it"
        raise FileExistsError(msg)
    if path.exists() and not (path / CONFIG).is_file():
        msg = f"{path} exists and is no model folder; it is not replaced"
        raise FileExistsError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
        fresh, old = Path(temporary) / "new", Path(temporary) / "old"
        fresh.mkdir()
        (fresh / CONFIG).write_text(json.dumps({"format": FORMAT, **config}, indent=1), encoding="utf-8")
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, fresh / WEIGHTS)
        if path.exists():
            path.replace(old)
        fresh.replace(path)
        shutil.rmtree(old, ignore_errors=True)


def load_folder(path: str | Path, kind: str | None = None) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Read a model folder of a kind (or of any), with an error that names what is missing or does not fit."""
    from safetensors.numpy import load_file

    path = Path(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        msg = f"{path} is no complete model folder: {missing} missing. A folder written by model.save(path) holds both."
        raise FileNotFoundError(msg)
    config = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    if config.get("format") != FORMAT:
        msg = f"{path} has model format {config.get('format')!r}; this version of strecur reads format {FORMAT}"
        raise ValueError(msg)
    if kind is not None and config.get("kind") != kind:
        msg = f"{path} holds a model of kind {config.get('kind')!r}, not {kind!r}; load it with strecur.load_model"
        raise ValueError(msg)
    return config, load_file(path / WEIGHTS)
