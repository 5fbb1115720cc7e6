"""Files of public sources: resumable downloads with verified checksums."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import pandas as pd

from strecur._settings import settings

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("strecur")

SOURCES = {
    "her2st": "https://raw.githubusercontent.com/almaan/her2st/85df7411b987a7dec3feff9718b869a7a82091ec/",
    "humanpilot": (
        "https://raw.githubusercontent.com/LieberInstitute/HumanPilot/044446d6bd8fc154aa74f7be62ec67effb1ec376/"
    ),
    "spatial-dlpfc": "https://spatial-dlpfc.s3.us-east-2.amazonaws.com/",
    "splotch": "https://raw.githubusercontent.com/tare/Splotch/5792958513c67742a7bbe60f80959bf8ddd23dc1/",
}
"""Base URL of each source; those on GitHub are pinned to a commit, so that their content cannot change."""

TIMEOUT = 30
"""Seconds without an answer after which a server counts as unreachable."""


class DownloadError(ConnectionError):
    """A file could not be downloaded, or its content is wrong."""


@dataclass(frozen=True)
class RemoteFile:
    """One file of a source and its checksum (``None`` if the source publishes none)."""

    source: str
    path: str
    checksum: str | None

    @property
    def url(self) -> str:
        """Full URL."""
        return SOURCES[self.source] + self.path

    def is_intact(self, path: Path) -> bool:
        """Tell whether a local copy has the right checksum; without a checksum, whether it is not empty."""
        if self.checksum is None:
            return path.stat().st_size > 0
        return f"git:{git_blob_id(path)}" == self.checksum


def git_blob_id(path: Path) -> str:
    """Return the git blob id of a file: a SHA-1 of its length and its bytes."""
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@cache
def registry() -> dict[tuple[str, str], str | None]:
    """Return the checksum of every known file by source and path."""
    with (files("strecur.datasets") / "files" / "registry.tsv").open(encoding="utf-8") as text:
        table = pd.read_csv(text, sep="\t", comment="#", dtype=str)
    keys = zip(table["source"], table["path"], strict=True)
    checksums = (None if checksum == "-" else checksum for checksum in table["checksum"])
    return dict(zip(keys, checksums, strict=True))


def remote_files(source: str, *, below: str = "") -> list[RemoteFile]:
    """Return the known files of a source whose path contains ``below``."""
    return [RemoteFile(s, path, known) for (s, path), known in registry().items() if s == source and below in path]


def fetch(source: str, path: str, target: Path) -> Path:
    """Return a verified local copy of a file, downloading it if there is none.

    The part of an interrupted download is kept next to the target as ``*.part``, and the next call resumes it.

    Parameters
    ----------
    source
        One of ``SOURCES``.
    path
        Path below it, as in the registry.
    target
        Path of the copy.

    Raises
    ------
    DownloadError
        If the source cannot be reached, or the checksum of the file is wrong.
    """
    remote = RemoteFile(source, path, registry()[source, path])
    if target.is_file():
        if remote.is_intact(target):
            return target
        logger.warning("%s is not what %s holds (damaged or changed) and is downloaded again", target, remote.url)
    part = target.with_name(f"{target.name}.part")
    _make_folder(target.parent)
    resumed = part.is_file() and part.stat().st_size > 0
    intact = _continue(remote, part)
    if not intact and resumed:  # the earlier part may be of another file
        part.unlink(missing_ok=True)
        intact = _continue(remote, part)
    if not intact:
        size = part.stat().st_size
        part.unlink()
        msg = f"{remote.url} sent {size:,} bytes whose checksum is not {remote.checksum}; they were not kept"
        raise DownloadError(msg)
    part.replace(target)
    return target


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"cannot write to {folder} ({error}); set strecur.settings.dataset_dir to another folder"
        raise DownloadError(msg) from error


def _continue(remote: RemoteFile, part: Path) -> bool:
    """Append the missing bytes to ``part`` and tell whether the file is then intact."""
    import pooch

    start = part.stat().st_size if part.is_file() else 0
    if start and remote.checksum is not None and remote.is_intact(part):
        return True
    # A compressed response could not be resumed at a byte of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    get = pooch.HTTPDownloader(progressbar=settings.progress, chunk_size=1 << 16, headers=headers, timeout=TIMEOUT)
    logger.info("downloading %s to %s%s", remote.url, part.parent, f" from byte {start:,}" if start else "")
    try:
        with part.open("ab") as file:
            get(remote.url, file, None)
    except OSError as error:
        if getattr(getattr(error, "response", None), "status_code", None) == 416:  # there are no further bytes
            return remote.checksum is None
        kept = f"; {part.stat().st_size:,} bytes are kept and the next call continues" if part.is_file() else ""
        msg = f"cannot download {remote.url}: {error}{kept}"
        raise DownloadError(msg) from error
    return remote.is_intact(part)
