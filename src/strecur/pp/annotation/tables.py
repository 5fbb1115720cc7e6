"""Annotation as a table: one row per spot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._arguments import meant
from strecur._barcodes import BARCODE, split_barcodes
from strecur._labels import clean_labels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

SPOT_COLUMNS = ("barcode", "barcodes", "spot_id", "spot", "cell_id", "cell")
LABEL_COLUMNS = ("label", "class")
DELIMITERS = (",", "\t", ";")


def read_table(path: Path) -> pd.DataFrame:
    """Read a text file with one header line, separated by commas, tabs or semicolons; all columns are text."""
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline().rstrip("\r\n")
    if not header.strip():
        msg = f"{path.name} is empty; a table has a header and one row per spot, such as 'Barcode,label'"
        raise ValueError(msg)
    delimiter = max(DELIMITERS, key=header.count)
    first = header.split(delimiter)[0].strip('" ')
    if pd.Series([first]).str.fullmatch(BARCODE).item():
        msg = f"{path.name} begins with the barcode {first!r}; its first line has to name the columns"
        raise ValueError(msg)
    frame = pd.read_csv(path, sep=delimiter, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    if frame.empty:
        msg = f"{path.name} has the columns {list(frame)}, but no rows"
        raise ValueError(msg)
    return frame.rename(columns=str.strip)


def choose_column(columns: Sequence[str], given: str | None, *, label: str) -> str:
    """Return the column of labels: the one that is named, else ``"label"`` or ``"class"``, else the only one."""
    if given is not None:
        require_column(columns, given, label=label, argument="label_key")
        return given
    usual = [name for name in LABEL_COLUMNS if name in columns]
    if not usual and len(columns) != 1:
        msg = f"{label} has the columns {list(columns)}; name the one with the labels: label_key=..."
        raise ValueError(msg)
    return (usual or list(columns))[0]


def require_column(columns: Sequence[str], given: str, *, label: str, argument: str) -> None:
    """Raise a KeyError that lists the columns unless ``given`` is one of them."""
    if given not in columns:
        msg = f"{argument}={given!r} is not in {label}{meant(given, columns)}; there are {list(columns)}"
        raise KeyError(msg)


def split_table(
    frame: pd.DataFrame,
    *,
    label_key: str | None,
    annotator_key: str | None,
    library_key: str | None,
    annotator: str,
    label: str,
) -> pd.DataFrame:
    """Return the columns ``spot``, ``label``, ``annotator`` and, if it is there, ``section``.

    The spots are in the column named like a barcode, else in the index of a DataFrame, else in the first column.
    """
    named = next((name for name in frame if str(name).lower() in SPOT_COLUMNS), None)
    if named is None:
        if not isinstance(frame.index, pd.RangeIndex):
            frame = frame.reset_index()
        named = frame.columns[0]
    others = [str(name) for name in frame.columns if name not in (named, annotator_key, library_key)]
    wanted = choose_column(others, label_key, label=label)
    if annotator_key is not None:
        require_column(list(map(str, frame.columns)), annotator_key, label=label, argument="annotator_key")
    found = pd.DataFrame({"spot": frame[named].astype(str).to_numpy(), "label": clean_labels(frame[wanted].to_numpy())})
    found["annotator"] = annotator if annotator_key is None else frame[annotator_key].astype(str).to_numpy()
    if library_key in frame:
        found["section"] = frame[library_key].astype(str).to_numpy()
    return found


def match_spots(names: pd.Series, table: AnnData, rows: np.ndarray, *, label: str) -> np.ndarray:
    """Return the row of each named spot, -1 where there is none.

    Names are looked up in ``obs_names`` and in the columns of ``obs``, then by barcode, without prefix and suffix;
    whichever matches most is used.
    """
    part = table.obs.iloc[rows]
    if not part.index.is_unique:
        msg = "adata.obs_names are not unique; call adata.obs_names_make_unique() or give library_key"
        raise ValueError(msg)
    known = [part.index.astype(str), *(pd.Index(part[key].astype(str)) for key in _name_columns(part))]
    positions = [index.get_indexer(names) for index in known]
    barcodes, wanted = split_barcodes(part.index)["barcode"], split_barcodes(names)["barcode"]
    repeated = wanted.map(pd.Series(names.to_numpy()).groupby(wanted.to_numpy()).nunique()).gt(1)
    several = wanted.isin(barcodes[barcodes.duplicated()]) | (repeated & wanted.isin(barcodes))
    once = barcodes[~barcodes.duplicated(keep=False)].dropna()
    by_barcode = pd.Series(once.index, index=once.to_numpy()).reindex(wanted).fillna(-1).to_numpy().astype(np.int64)
    positions.append(np.where(several, -1, by_barcode))
    best = max(positions, key=lambda position: (position >= 0).sum())
    by_name = max((position >= 0).sum() for position in positions[:-1])
    if several.any() and by_name <= (positions[-1] >= 0).sum():
        msg = (
            f"{label} names spots whose barcodes occur several times, such as {names[several.to_numpy()].iloc[0]!r}; "
            "give one annotation per section: {section: annotation}"
        )
        raise ValueError(msg)
    if not (best >= 0).any():
        msg = (
            f"none of the {names.nunique()} spots of {label} is in the object: it names {names.head(3).tolist()}, "
            f"adata.obs_names are {part.index[:3].tolist()}"
        )
        raise ValueError(msg)
    return np.where(best >= 0, rows[best], -1)


def _name_columns(obs: pd.DataFrame) -> list[str]:
    """Return the columns of names or numbers that tell all spots apart."""
    kinds = [
        key for key in obs if not pd.api.types.is_float_dtype(obs[key]) and not pd.api.types.is_bool_dtype(obs[key])
    ]
    return [key for key in kinds if obs[key].notna().all() and obs[key].astype(str).is_unique]
