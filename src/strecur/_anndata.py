"""The only reader and writer of AnnData and SpatialData objects."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")

LEGAL_KEY = re.compile(r"(?!__)[A-Za-z0-9_.-]+")
ENSEMBL_VERSION = re.compile(r"^(ENS[A-Z]*\d+)\.\d+$")


def open_table(
    adata: AnnData | SpatialData, *, table_key: str | None, copy: bool = False, read_only: bool = False
) -> AnnData:
    """Return the AnnData to work on: the object itself, the table of a SpatialData, or a copy of either.

    A view becomes an independent object because results are added to it, unless ``read_only``.
    """
    table = adata
    if hasattr(adata, "tables"):
        names = list(adata.tables)
        if table_key is None and len(names) == 1:
            table_key = names[0]
        if table_key not in names:
            msg = f"table_key={table_key!r} is not a table of this SpatialData object; there are {names}"
            raise KeyError(msg)
        table = adata.tables[table_key]
    elif not (hasattr(adata, "obsm") and hasattr(adata, "var_names")):
        msg = f"expected an AnnData or SpatialData object, got {type(adata).__name__}"
        raise TypeError(msg)
    elif table_key is not None:
        msg = "table_key is for SpatialData objects; leave it out for an AnnData"
        raise ValueError(msg)
    if table.n_obs == 0:
        msg = "the object has no spots (n_obs is 0)"
        raise ValueError(msg)
    if copy:
        return table.to_memory() if table.isbacked else table.copy()
    if table.is_view and not read_only:
        logger.warning("the AnnData is a view of another one; it becomes an independent copy before results are added")
        table._init_as_actual(table.copy())
    return table


def find_coordinates(data: AnnData | SpatialData, table: AnnData, spatial_key: str) -> np.ndarray | None:
    """Return the coordinates of the spots: ``obsm[spatial_key]``, else the centroids of the shapes the table annotates.

    Centroids are in the units of the shapes, as the tables of SpatialData's readers are; a spot without shape has NaN.
    ``None`` if there is neither.
    """
    if spatial_key in table.obsm:
        return np.asarray(table.obsm[spatial_key], dtype=float)
    attributes = table.uns.get("spatialdata_attrs")
    if attributes is None or not hasattr(data, "shapes"):
        return None
    regions = table.obs[attributes["region_key"]].astype(str).to_numpy()
    if not set(regions) <= set(data.shapes):
        return None
    instances = table.obs[attributes["instance_key"]].to_numpy()
    xy = np.full((table.n_obs, 2), np.nan)
    for region in dict.fromkeys(regions):
        rows, shapes = np.flatnonzero(regions == region), data.shapes[region]
        position = shapes.index.get_indexer(instances[rows])
        centroids = shapes.geometry.centroid
        centres = np.column_stack([centroids.x, centroids.y])
        xy[rows[position >= 0]] = centres[position[position >= 0]]
    logger.info("coordinates are the centroids of the shapes %s", list(dict.fromkeys(regions)))
    return xy


def check_key(key: str) -> str:
    """Refuse a ``key_added`` that SpatialData or h5ad could not store."""
    if not isinstance(key, str) or not LEGAL_KEY.fullmatch(key):
        msg = f"key_added={key!r} is not a legal key: use letters, digits, '_', '-' and '.', not starting with '__'"
        raise ValueError(msg)
    return key


def require(mapping: Mapping | pd.DataFrame, key: str, *, where: str, hint: str = "") -> None:
    """Raise a KeyError that lists what exists when ``key`` is missing."""
    if key not in mapping:
        msg = f"{key!r} is not in adata.{where}; there are {list(mapping.keys())}"
        raise KeyError(f"{msg}. {hint}" if hint else msg)


@dataclass(frozen=True)
class Sections:
    """Which section each spot belongs to: ``names[codes[i]]``."""

    codes: np.ndarray
    names: list[str]

    def rows(self, name: str) -> np.ndarray:
        """Return the positions of one section's spots, in the order of the AnnData."""
        return np.flatnonzero(self.codes == self.names.index(name))


def read_sections(adata: AnnData, library_key: str | None) -> Sections:
    """Read the section of every spot; without ``library_key`` all spots are one section."""
    if library_key is None:
        return Sections(np.zeros(adata.n_obs, dtype=np.int64), ["section"])
    require(adata.obs, library_key, where="obs", hint="library_key names the column that tells sections apart")
    column = adata.obs[library_key]
    if column.isna().any():
        msg = f"adata.obs[{library_key!r}] is missing for {int(column.isna().sum())} spots; every spot needs a section"
        raise ValueError(msg)
    values = column.astype(str)
    names = sorted(values.unique())
    return Sections(pd.Index(names).get_indexer(values).astype(np.int64), names)


@dataclass(frozen=True)
class Grid:
    """Integer lattice of every spot, as written by :func:`strecur.pp.to_grid`."""

    row: np.ndarray
    col: np.ndarray
    layout: str


def read_grid(adata: AnnData, sections: Sections, *, grid_key: str = "grid") -> Grid:
    """Read ``obsm[grid_key]`` and check that no two spots of a section share a site."""
    hint = "Run strecur.pp.to_grid(adata, library_key=...) first."
    require(adata.obsm, grid_key, where="obsm", hint=hint)
    require(adata.uns, grid_key, where="uns", hint=hint)
    grid = np.asarray(adata.obsm[grid_key])
    duplicated = pd.DataFrame({"section": sections.codes, "row": grid[:, 0], "col": grid[:, 1]}).duplicated()
    if duplicated.any():
        msg = (
            f"{int(duplicated.sum())} spots share a lattice site with another spot of their section. "
            "Several sections need library_key; after joining objects run strecur.pp.to_grid again."
        )
        raise ValueError(msg)
    return Grid(grid[:, 0].astype(np.int64), grid[:, 1].astype(np.int64), str(adata.uns[grid_key]["layout"]))


def clean_labels(values: pd.Series | Sequence[object]) -> pd.Series:
    """Return labels as strings, with missing ones (NaN, "", "nan", "NA") as ``None``."""
    labels = pd.Series(values).astype(object)
    labels = labels.where(labels.notna(), None)
    return labels.map(lambda v: None if v is None or str(v).lower() in {"", "nan", "na"} else str(v))


def read_labels(adata: AnnData, label_key: str) -> pd.Series:
    """Read labels as strings, with missing ones (NaN, "", "nan", "NA") as ``None``."""
    require(adata.obs, label_key, where="obs", hint="label_key names the column of annotated domains")
    column = adata.obs[label_key]
    if pd.api.types.is_float_dtype(column) and column.nunique() > 100:
        msg = f"adata.obs[{label_key!r}] holds {column.nunique()} different numbers; domains are categories"
        raise ValueError(msg)
    return clean_labels(column)


def read_matrix(adata: AnnData, layer: str | None = None) -> np.ndarray | sparse.csr_matrix:
    """Read ``X`` or a layer into memory, dense or CSR."""
    if layer is not None:
        require(adata.layers, layer, where="layers")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = "adata.X is empty; name a layer or a representation (use_rep)"
        raise ValueError(msg)
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    elif not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    matrix = sparse.csr_matrix(matrix) if sparse.issparse(matrix) else matrix
    values = matrix.data if sparse.issparse(matrix) else matrix
    if not np.isfinite(values).all():
        msg = f"adata.{'X' if layer is None else f'layers[{layer!r}]'} holds NaN or infinite values"
        raise ValueError(msg)
    return matrix


def require_counts(matrix: np.ndarray | sparse.csr_matrix) -> None:
    """Raise unless the matrix holds counts: non-negative integers."""
    values = matrix.data if sparse.issparse(matrix) else matrix
    if values.size and values.min() < 0:
        msg = "negative values where counts are needed; pass raw counts (layer=...) or a representation (use_rep=...)"
        raise ValueError(msg)
    if values.size and not np.array_equal(values, np.round(values)):
        msg = (
            "non-integer values where counts are needed, as if normalised or log-transformed already; "
            "pass raw counts (layer=...) or a representation (use_rep=...)"
        )
        raise ValueError(msg)


def read_representation(adata: AnnData, use_rep: str) -> np.ndarray:
    """Read ``obsm[use_rep]`` as float32, spots × features."""
    require(adata.obsm, use_rep, where="obsm", hint="use_rep names a representation of the spots")
    values = np.asarray(adata.obsm[use_rep], dtype=np.float32)
    if values.ndim != 2:
        msg = f"adata.obsm[{use_rep!r}] has shape {values.shape}; expected spots × features"
        raise ValueError(msg)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        msg = f"adata.obsm[{use_rep!r}] holds NaN or infinite values in {bad} spots"
        raise ValueError(msg)
    return values


def clean_genes(names: Iterable[str]) -> list[str]:
    """Strip the version from Ensembl ids; other names stay."""
    return [ENSEMBL_VERSION.sub(r"\1", str(name)) for name in names]


def find_genes(adata: AnnData, genes: Sequence[str]) -> tuple[sparse.csr_matrix, list[str]]:
    """Match genes by name, as :func:`align_genes` does, however few there are."""
    text = [c for c in adata.var.columns if pd.api.types.is_string_dtype(adata.var[c].astype(object))]
    candidates = [clean_genes(adata.var_names), *(clean_genes(adata.var[c]) for c in text)]
    wanted = pd.Index(clean_genes(genes))
    names = max(candidates, key=lambda c: len(wanted.intersection(c)))
    position = wanted.get_indexer(names)
    found = np.flatnonzero(position >= 0)
    missing = [str(g) for g in wanted.difference(names, sort=False)]
    ones = np.ones(len(found), dtype=np.float32)
    return sparse.csr_matrix((ones, (found, position[found])), shape=(adata.n_vars, len(wanted))), missing


def align_genes(adata: AnnData, genes: Sequence[str], *, min_share: float) -> tuple[sparse.csr_matrix, list[str]]:
    """Match genes by name.

    Names are looked up in ``var_names`` and in the text columns of ``var`` (symbols, Ensembl ids);
    whichever matches most is used. Columns of one gene are summed, a missing gene is zero.

    Parameters
    ----------
    adata
        Object whose genes are to be matched.
    genes
        Wanted genes.
    min_share
        Raise if a smaller share of ``genes`` is found.

    Returns
    -------
    Sparse matrix ``P`` (genes of adata × wanted genes) such that ``X @ P`` is aligned, and the names not found.
    """
    projection, missing = find_genes(adata, genes)
    share = 1 - len(missing) / len(genes)
    if share < min_share:
        msg = (
            f"only {share:.0%} of the model's {len(genes)} genes are in this object; {min_share:.0%} are needed. "
            f"Missing: {missing[:5]}…; the object has {list(map(str, adata.var_names[:5]))}…"
        )
        raise ValueError(msg)
    if missing:
        logger.warning("%d of %d genes are missing and count as zero: %s …", len(missing), len(genes), missing[:5])
    return projection, missing


def write(
    adata: AnnData,
    *,
    obs: Mapping[str, object] | None = None,
    obsm: Mapping[str, np.ndarray] | None = None,
    uns: Mapping[str, object] | None = None,
) -> None:
    """Add finished results in one go and log a line per key; arguments are complete before anything is written."""
    for slot, values in (("obs", obs), ("obsm", obsm), ("uns", uns)):
        for key, value in (values or {}).items():
            getattr(adata, slot)[key] = value
            logger.info("added %r to adata.%s", key, slot)
