"""Model folders: ``config.json`` and ``weights.safetensors``, data only."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strecur._files import sync_folder, write_through
from strecur.models.io.arrays import check_arrays
from strecur.models.io.schema import KINDS, MAX_DEPTH, SchemaError, check_values, depth_of, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from strecur.models.network import Backbones

logger = logging.getLogger("strecur")

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
MAX_CONFIG_BYTES = 32 * 2**20
MAX_WEIGHT_BYTES = 8 * 2**30
MAX_TENSORS = 10_000
DTYPES = {"F64": 8, "F32": 4, "I64": 8, "I32": 4}
"""Kinds of numbers that a model holds, and their bytes."""


class ModelFolderError(ValueError):
    """A model folder that is damaged, incomplete, of an unknown format, or no model at all.

    Parameters
    ----------
    message
        What is wrong, and with which folder.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)


class IncompleteModelError(ModelFolderError, FileNotFoundError):
    """A model folder that is not there, or lacks a file."""


def save_folder(
    path: str | Path,
    config: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    backbones: Backbones,
    *,
    overwrite: bool,
) -> None:
    """Write a model folder in one step: it is complete or not there, and one that is replaced is never lost."""
    from safetensors.numpy import save

    path = Path(path)
    old = kept_aside(path)
    if path.exists() and not overwrite:
        msg = f"{path} exists; pass overwrite=True to replace it"
        raise FileExistsError(msg)
    if path.exists() and not (path / CONFIG).is_file():
        msg = f"{path} exists and is not a model folder; it is not replaced"
        raise FileExistsError(msg)
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    config = {"format": FORMAT, **config}
    config["checksum"] = checksum(config, arrays)
    text = json.dumps(config, indent=1)
    # what could not be loaded again is not written
    check_values(json.loads(text), backbones)
    check_arrays(json.loads(text), {name: value.shape for name, value in arrays.items()}, backbones)
    require_numbers(arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir()
            write_through(fresh / CONFIG, text.encode())
            write_through(fresh / WEIGHTS, save(arrays))
            sync_folder(fresh)
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)  # left by a save that was killed at its very end
                path.replace(old)
            fresh.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        if old.exists() and not path.exists():
            old.replace(path)
        kept = "; the model that was there is kept" * path.exists()
        msg = f"the model cannot be written to {path}: {error}{kept}"
        raise OSError(error.errno, msg) from error
    shutil.rmtree(old, ignore_errors=True)


def kept_aside(path: Path) -> Path:
    """Where the old model is while a new one takes its place."""
    return path.with_name(f".{path.name}.old")


def load_folder(path: str | Path, backbones: Backbones) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a model folder after checking all of it.

    Raises
    ------
    ModelFolderError
        If this version cannot read it; the message says what is wrong.
    """
    from safetensors import SafetensorError, safe_open

    path = find_folder(path)
    config = read_config(path)
    try:
        check_values(config, backbones)
        with safe_open(path / WEIGHTS, "numpy") as file:
            names = list(file.keys())
            require_few(names)
            headers = {name: file.get_slice(name) for name in names}
            shapes = {name: (header.get_dtype(), tuple(header.get_shape())) for name, header in headers.items()}
            require_small(shapes)
            check_arrays(config, {name: shape for name, (_, shape) in shapes.items()}, backbones)
            arrays = {name: file.get_tensor(name) for name in names}
            require_numbers(arrays)
    except SchemaError as error:
        msg = f"{path} is not a usable model: {error}"
        raise ModelFolderError(msg) from error
    except (SafetensorError, OSError) as error:
        msg = f"{path / WEIGHTS} is damaged or no file of weights: {error}"
        raise ModelFolderError(msg) from error
    if checksum(config, arrays) != config["checksum"]:
        msg = f"{path} was changed after it was saved, or its two files are of different models; take the original"
        raise ModelFolderError(msg)
    return config, arrays


def find_folder(path: str | Path) -> Path:
    """Return the folder that holds the model, also if a save was killed between two renamings."""
    path = Path(path)
    if not path.exists() and kept_aside(path).is_dir():
        logger.warning("%s was being replaced when the program ended; the model before that is loaded", path)
        path = kept_aside(path)
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if missing:
        msg = f"{path} is not a complete model folder: {missing} missing. model.save(path) writes a folder with both."
        raise IncompleteModelError(msg)
    return path


def read_config(path: Path) -> dict[str, Any]:
    """Read ``config.json`` and tell whether this version knows what it describes."""
    with (path / CONFIG).open("rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        msg = f"{path / CONFIG} has more than {MAX_CONFIG_BYTES:,} bytes, which no model needs"
        raise ModelFolderError(msg)
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:  # of which the errors of JSON and Unicode are
        msg = f"{path / CONFIG} is damaged: {shown(str(error))}"
        raise ModelFolderError(msg) from error
    if not isinstance(config, dict) or depth_of(config) >= MAX_DEPTH:
        msg = f"{path / CONFIG} is not the description of a model"
        raise ModelFolderError(msg)
    if config.get("format") != FORMAT or isinstance(config["format"], bool):
        msg = (
            f"{path} has model format {shown(config.get('format'))}, written by strecur "
            f"{shown(config.get('strecur', 'unknown'))}; this version of strecur reads format {FORMAT}. "
            "Load it with the version that wrote it, or a later one"
        )
        raise ModelFolderError(msg)
    if not isinstance(config.get("kind"), str) or config["kind"] not in KINDS:
        msg = f"{path} holds a model of unknown kind {shown(config.get('kind'))}; this version knows {sorted(KINDS)}"
        raise ModelFolderError(msg)
    return config


def require_few(names: list[str]) -> None:
    """Raise if there are more tensors than any network has."""
    if len(names) > MAX_TENSORS:
        msg = f"it has {len(names):,} tensors; no model has more than {MAX_TENSORS:,}"
        raise SchemaError(msg)


def require_small(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise if there are kinds of numbers that no model has, or more than fit into memory."""
    total = 0
    for name, (dtype, shape) in shapes.items():
        if dtype not in DTYPES:
            msg = f"{shown(name)} holds numbers of kind {dtype}; expected one of {sorted(DTYPES)}"
            raise SchemaError(msg)
        total += DTYPES[dtype] * int(np.prod(shape, dtype=object))
    if total > MAX_WEIGHT_BYTES:
        msg = f"its weights take {total:,} bytes; at most {MAX_WEIGHT_BYTES:,} are read"
        raise SchemaError(msg)


def require_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Raise if weights are NaN or infinite."""
    for name, value in arrays.items():
        if not np.isfinite(value).all() and not name.startswith("errors."):
            msg = f"weights: {name} holds NaN or infinite values"
            raise SchemaError(msg)


def checksum(config: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of everything a model consists of, however its files are laid out."""
    described = json.dumps({name: value for name, value in config.items() if name != "checksum"}, sort_keys=True)
    total = hashlib.sha256(described.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {array.dtype.str} {array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()
