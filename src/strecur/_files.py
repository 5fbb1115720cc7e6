"""Writing files so that a crash or power failure leaves either the old or the new version."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file atomically."""
    _replace(path, lambda fresh: write_through(fresh, data))


def replace_by(path: Path, write: Callable[[Path], object]) -> None:
    """Replace a file atomically by what a function writes to the path it is given."""

    def write_and_flush(fresh: Path) -> None:
        write(fresh)
        with fresh.open("rb+") as file:
            os.fsync(file.fileno())

    _replace(path, write_and_flush)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    fresh = path.with_name(f".{path.name}.new")
    try:
        write(fresh)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_through(path: Path, data: bytes) -> None:
    """Write a file and flush it to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the entries of a folder to disk, where the system supports it."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
