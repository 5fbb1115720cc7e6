"""Sections in files: list them, read one at a time, and write one file of results for each.

Nothing here holds more than one section, however many a file or a folder has.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from strecur._anndata import find_library_key, read_sections, require
from strecur._files import replace_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

logger = logging.getLogger("strecur")

H5AD, ZARR = ".h5ad", ".zarr"
ZARR_FILES = ("zarr.json", ".zgroup")
SOURCE = "cohort"
"""Entry of ``uns`` of a file of results that says which section it is of, and how it was made."""


@dataclass(frozen=True)
class StoredSection:
    """One section of a file.

    Attributes
    ----------
    file
        ``.h5ad`` file, or ``.zarr`` folder of an AnnData or SpatialData.
    table
        Where the AnnData is in it: ``""``, or the table of a SpatialData.
    library_key
        Column of ``obs`` with the section of each spot; ``None``: the file is one section.
    name
        Name of the section in the file.
    rows
        Spots of the section in the file; ``None``: all.
    n_spots
        Number of spots.
    state
        Digest of size and time of change of the file.
    label
        Name of the section in the cohort: unique, even if several files have a section of one name.
    """

    file: Path
    table: str
    library_key: str | None
    name: str
    rows: slice | np.ndarray | None
    n_spots: int
    state: str
    label: str = ""

    @property
    def where(self) -> slice | np.ndarray:
        """Rows of the section in the file."""
        return slice(None) if self.rows is None else self.rows

    def __str__(self) -> str:
        return str(self.file) if self.rows is None else f"{self.file}, section {self.name!r}"


def find_files(paths: Any) -> list[Path]:
    """Return the files of a cohort: one path or several, of files or of folders that hold files.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If a folder holds no file, a path is of another kind, or the same file is given twice.
    """
    if isinstance(paths, str | Path):
        paths = [paths]
    elif not hasattr(paths, "__iter__") or not all(isinstance(path, str | Path) for path in paths):
        msg = f"paths={paths!r}: pass the path of a file or folder, or a list of them"
        raise TypeError(msg)
    files = [file for path in paths for file in _files_of(Path(path))]
    if not files:
        msg = "paths is empty; pass the path of a file or folder, or a list of them"
        raise ValueError(msg)
    twice = [str(file) for file, n in Counter(file.resolve() for file in files).items() if n > 1]
    if twice:
        msg = f"paths has {twice} more than once"
        raise ValueError(msg)
    return files


def _files_of(path: Path) -> list[Path]:
    if not path.exists():
        msg = f"{path} does not exist"
        raise FileNotFoundError(msg)
    if _is_store(path):
        return [path]
    if not path.is_dir():
        msg = f"{path} is neither an {H5AD} file nor a {ZARR} store"
        raise ValueError(msg)
    files = sorted(file for file in path.iterdir() if not file.name.startswith(".") and _is_store(file))
    if not files:
        msg = f"the folder {path} holds no {H5AD} files and no {ZARR} stores"
        raise ValueError(msg)
    return files


def _is_store(path: Path) -> bool:
    if path.is_dir():
        return path.suffix == ZARR or any((path / name).is_file() for name in ZARR_FILES)
    return path.suffix == H5AD


def list_sections(paths: Any, library_key: str | None, *, table_key: str | None) -> list[StoredSection]:
    """List the sections of a cohort, file by file; of each file only the column of sections is read."""
    found = [section for file in find_files(paths) for section in _sections_of(file, library_key, table_key)]
    n_named = Counter(section.name for section in found)
    labels = [s.name if n_named[s.name] == 1 else f"{s.file.stem} {s.name}" for s in found]
    twice = sorted(label for label, n in Counter(labels).items() if n > 1)
    if twice:
        msg = f"several files have the same name and sections of the same name, {twice}; rename the files"
        raise ValueError(msg)
    return [replace(section, label=label) for section, label in zip(found, labels, strict=True)]


def _sections_of(file: Path, library_key: str | None, table_key: str | None) -> list[StoredSection]:
    with _opened(file) as store:
        table = _find_table(file, store, table_key)
        group = store[table] if table else store
        outline = _outline(group)
        key = find_library_key(outline, library_key)
        if key is not None:
            require(outline.obs, key, where="obs", hint=f"The file is {file}")
            outline.obs[key] = _column(group, key)
        sections = read_sections(outline, key)
    if outline.n_obs == 0:
        msg = f"{file} has no spots"
        raise ValueError(msg)
    common: dict[str, Any] = {"file": file, "table": table, "library_key": key, "state": _state_of(file)}
    if len(sections.names) == 1:
        name = file.stem if key is None else sections.names[0]
        return [StoredSection(name=name, rows=None, n_spots=outline.n_obs, **common)]
    all_rows = [(name, sections.rows(name)) for name in sections.names]
    return [StoredSection(name=name, rows=_as_slice(rows), n_spots=len(rows), **common) for name, rows in all_rows]


@contextmanager
def _opened(file: Path, table: str = "") -> Iterator[Any]:
    """Open a file, or a table inside of it, to read it."""
    if file.is_dir():
        import zarr

        store = zarr.open_group(file, mode="r")
        yield store[table] if table else store
        return
    import h5py

    try:
        handle = h5py.File(file, "r")
    except OSError as error:
        msg = f"{file} is damaged or no {H5AD} file: {error}"
        raise ValueError(msg) from error
    with handle:
        yield handle[table] if table else handle


def _find_table(file: Path, store: Any, table_key: str | None) -> str:
    """Return where the AnnData of a store is: ``""``, or the table of a SpatialData."""
    if "obs" in store:
        if table_key is not None:
            msg = f"table_key is for SpatialData stores, and {file} is an AnnData; leave it out"
            raise ValueError(msg)
        return ""
    names = sorted(store["tables"]) if "tables" in store else []
    if table_key is None and len(names) == 1:
        table_key = names[0]
    if table_key not in names:
        msg = f"table_key={table_key!r} is not a table of {file}; there are {names}"
        raise KeyError(msg)
    return f"tables/{table_key}"


def _outline(group: Any) -> AnnData:
    """Return an object with as many spots and the same columns, which are empty, and the record of the lattice."""
    import anndata as ad

    index = group["obs"][group["obs"].attrs["_index"]]
    n_spots = (index["values"] if hasattr(index, "keys") else index).shape[0]
    uns = {"grid": {"params": ad.io.read_elem(group["uns/grid/params"])}} if "uns/grid/params" in group else {}
    obs = pd.DataFrame(index=pd.RangeIndex(n_spots).astype(str), columns=list(group["obs"].attrs["column-order"]))
    return ad.AnnData(obs=obs, uns=uns)


def _column(group: Any, key: str) -> np.ndarray:
    import anndata as ad

    return np.asarray(ad.io.read_elem(group["obs"][key]), dtype=object)


def _as_slice(rows: np.ndarray) -> slice | np.ndarray:
    """Return rows that follow one another as a slice, which is faster to read and takes no memory."""
    whole = len(rows) and rows[-1] - rows[0] + 1 == len(rows)
    return slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows


def _state_of(file: Path) -> str:
    files = sorted(file.rglob("*")) if file.is_dir() else [file]
    stats = [path.stat() for path in files]
    digest = sha256(repr([(stat.st_size, stat.st_mtime_ns) for stat in stats]).encode())
    return digest.hexdigest()[:16]


def read_columns(sections: Sequence[StoredSection], keys: Sequence[str]) -> list[dict[str, np.ndarray]]:
    """Read columns of ``obs`` of sections, those that their file has; every file is read once."""
    found: list[dict[str, np.ndarray]] = []
    for (file, table), own in groupby(sections, lambda section: (section.file, section.table)):
        columns = {}
        if keys:
            with _opened(file, table) as group:
                columns = {key: _column(group, key) for key in keys if key in group["obs"]}
        found += [{key: values[section.where] for key, values in columns.items()} for section in own]
    return found


def column_names(section: StoredSection) -> list[str]:
    """Return the names of the columns of ``obs`` of a section."""
    with _opened(section.file, section.table) as group:
        return [str(name) for name in group["obs"].attrs["column-order"]]


def read_section(section: StoredSection) -> AnnData:
    """Read one section into memory, without images and graphs."""
    import anndata as ad

    with _opened(section.file, section.table) as group:
        if section.rows is None:
            slots = ("X", "obs", "var", "obsm", "layers")
            found = {slot: ad.io.read_elem(group[slot]) for slot in slots if slot in group}
            adata = ad.AnnData(**found)
        else:
            lazy = _lazy(ad, group)
            lazy.uns, lazy.raw = {}, None
            for name in [*lazy.obsp]:
                del lazy.obsp[name]
            adata = lazy[section.rows].to_memory()
        if "uns/grid" in group:
            adata.uns["grid"] = ad.io.read_elem(group["uns/grid"])
        scale = f"uns/spatial/{section.name}/scalefactors"
        if scale in group:  # by which lattices are compared with those of the training
            adata.uns["spatial"] = {section.name: {"scalefactors": ad.io.read_elem(group[scale])}}
    return adata


def _lazy(ad: Any, group: Any) -> AnnData:
    if not hasattr(ad.experimental, "read_lazy"):
        msg = "files of several sections need anndata 0.12 or later; update it, or write a file for each section"
        raise ImportError(msg)
    return ad.experimental.read_lazy(group)


# Results


def name_results(sections: Sequence[StoredSection], folder: Path) -> dict[str, Path]:
    """Return the file of results of each section, by its label.

    It has the name of the file of the section; sections of one file are in a folder of that name.
    """
    found = {}
    for section in sections:
        place = folder if section.rows is None else folder / section.file.stem
        name = section.file.stem if section.rows is None else quote(section.name, safe=" ")
        found[section.label] = place / f"{name}{H5AD}"
    twice = sorted(str(path) for path, n in Counter(found.values()).items() if n > 1)
    if twice:
        msg = f"several files of the cohort have the same name, so that their results would be {twice}; rename them"
        raise ValueError(msg)
    return found


def only_results(adata: AnnData, key: str, source: dict[str, str]) -> AnnData:
    """Return the results of a section with ``obs``, coordinates and lattice, and without its expression."""
    import anndata as ad

    places = {name: np.asarray(adata.obsm[name]) for name in ("spatial", "grid") if name in adata.obsm}
    results = {name: value for name, value in adata.obsm.items() if name == key or name.startswith(f"{key}_")}
    uns = {name: adata.uns[name] for name in ("grid", key)}
    return ad.AnnData(obs=adata.obs, obsm=places | results, uns=uns | {SOURCE: source})


def write_results(path: Path, results: AnnData) -> None:
    """Write a file of results in one step: it is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_by(path, results.write_h5ad)


def read_result_record(path: Path, name: str) -> Any:
    """Read an entry of ``uns`` of a file of results.

    Raises
    ------
    FileExistsError
        If there is a file that is not one of results.
    """
    import anndata as ad

    if path.is_file():
        with _opened(path) as store:
            if f"uns/{SOURCE}" in store:
                return ad.io.read_elem(store[f"uns/{name}"])
    msg = f"{path} exists and is not a result of strecur.tl.predict_cohort; choose another folder"
    raise FileExistsError(msg)
