"""Read and write AnnData and SpatialData objects; nothing else in the package does."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from strecur._arguments import meant
from strecur._genes import clean_genes, name_columns
from strecur._labels import as_text, clean_labels
from strecur._tissue import find_background, warn_of_background

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")

LAYOUTS = ("hex", "square", "irregular")
LEGAL_KEY = re.compile(r"(?!__)[A-Za-z0-9_.-]+")
NO_SECTION = ("", "nan", "none", "<na>")
AXES = {"x": {"x", "col", "column", "imagecol", "centerx"}, "y": {"y", "row", "imagerow", "centery"}}
# What the record of every result in uns holds.
RECORDED = {"params", "encoder"}


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
        hint = "; strecur.tl.predict_cohort takes paths" if isinstance(adata, str | PathLike) else ""
        msg = f"expected an AnnData or SpatialData object, got {type(adata).__name__}{hint}"
        raise TypeError(msg)
    elif table_key is not None:
        msg = "table_key is for SpatialData objects; leave it out for an AnnData"
        raise ValueError(msg)
    if table.n_obs == 0:
        msg = "the object has no spots (n_obs is 0)"
        raise ValueError(msg)
    if not isinstance(table.obs, pd.DataFrame):
        return _load(table, copy=copy or read_only)
    if copy:
        return table.to_memory() if table.isbacked else table.copy()
    if table.is_view and not read_only:
        logger.warning("the AnnData is a view of another one; it becomes an independent copy before results are added")
        table._init_as_actual(table.copy())
    return table


def _load(table: AnnData, *, copy: bool) -> AnnData:
    """Read an object of ``anndata.experimental.read_lazy`` into memory, in place unless a copy is wanted."""
    loaded = table.to_memory()
    if copy:
        return loaded
    logger.warning("the AnnData was read lazily; it is read into memory before results are added")
    table._init_as_actual(loaded)
    return table


def find_coordinates(data: AnnData | SpatialData, table: AnnData, spatial_key: str) -> np.ndarray | None:
    """Return the coordinates of the spots: ``obsm[spatial_key]``, else the centroids of the shapes the table annotates.

    Centroids are in the units of the shapes, as the tables of SpatialData's readers are; a spot without shape has NaN.
    ``None`` if there is neither.
    """
    if spatial_key in table.obsm:
        return read_xy(table, spatial_key)
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
        position = _find_ids(shapes.index, instances[rows])
        centroids = shapes.geometry.centroid
        centres = np.column_stack([centroids.x, centroids.y])
        xy[rows[position >= 0]] = centres[position[position >= 0]]
    logger.info("coordinates are the centroids of the shapes %s", list(dict.fromkeys(regions)))
    return xy


def _find_ids(index: pd.Index, wanted: np.ndarray) -> np.ndarray:
    """Return the position of each id, -1 if it is missing; ids match as text if they are of two types."""
    found = index.get_indexer(wanted)
    return found if (found >= 0).any() else pd.Index(map(as_text, index)).get_indexer([as_text(i) for i in wanted])


def check_key(key: str, argument: str = "key_added") -> str:
    """Raise unless SpatialData and h5ad can store a ``key_added``; return it."""
    if not isinstance(key, str) or not LEGAL_KEY.fullmatch(key):
        msg = f"{argument}={key!r} is not a legal key: use letters, digits, '_', '-' and '.', not starting with '__'"
        raise ValueError(msg)
    return key


def check_free(adata: AnnData, key: str, *, default: str) -> None:
    """Raise if a ``key_added`` other than the default names something that is not an earlier result."""
    record = adata.uns.get(key)
    if key == default or (isinstance(record, Mapping) and RECORDED & record.keys()):
        return
    taken = [slot for slot in ("obs", "obsm", "uns") if key in getattr(adata, slot)]
    if taken:
        msg = (
            f"key_added={key!r} would replace adata.{taken[0]}[{key!r}], which is not a result of this package; choose "
            "another key_added, or delete it first"
        )
        raise ValueError(msg)


def require(mapping: Mapping | pd.DataFrame, key: str, *, where: str, hint: str = "") -> None:
    """Raise a KeyError that lists what exists when ``key`` is missing."""
    if not isinstance(key, str):
        msg = f"{key!r} is not a name in adata.{where}; there are {list(mapping.keys())}"
        raise TypeError(f"{msg}. {hint}" if hint else msg)
    if key not in mapping:
        names = list(mapping.keys())
        msg = f"{key!r} is not in adata.{where}{meant(key, names)}; there are {names}"
        raise KeyError(f"{msg}. {hint}" if hint else msg)


def find_library_key(
    adata: AnnData, library_key: str | None, *, key: str | None = None, grid_key: str = "grid"
) -> str | None:
    """Return the column of sections: as given, else that of the result ``key``, else that of the lattice.

    What was stored counts only if the column is still there.
    """
    if library_key is not None:
        return library_key
    names = [name for name in (key, grid_key) if name is not None]
    return next((k for k in _stored(adata, names, "library_key") if k in adata.obs), None)


def find_spatial_key(adata: AnnData, spatial_key: str | None, *, grid_key: str = "grid") -> str:
    """Return the key of the coordinates: as given, else that of the lattice if it is still there, else "spatial"."""
    if spatial_key is not None:
        return spatial_key
    return next((k for k in _stored(adata, [grid_key], "spatial_key") if k in adata.obsm), "spatial")


def _stored(adata: AnnData, names: Sequence[str], argument: str) -> list[str]:
    """Return an argument as the records of some results store it."""
    records = [adata.uns.get(name) for name in names]
    params = [record.get("params") for record in records if isinstance(record, Mapping)]
    values = [found.get(argument) for found in params if isinstance(found, Mapping)]
    return [str(value) for value in values if isinstance(value, str)]


@dataclass(frozen=True)
class Sections:
    """Section of each spot: ``names[codes[i]]``."""

    codes: np.ndarray
    names: list[str]

    def rows(self, name: str) -> np.ndarray:
        """Return the positions of one section's spots, in the order of the AnnData."""
        return np.flatnonzero(self.codes == self.names.index(name))

    def choose(self, library_id: str | None) -> str:
        """Return the name of a section, which may be left out if there is one."""
        if library_id is None and len(self.names) > 1:
            msg = f"there are {len(self.names)} sections; choose one with library_id: {self.names}"
            raise ValueError(msg)
        name = self.names[0] if library_id is None else library_id
        if name not in self.names:
            msg = f"library_id={name!r} is not a section; there are {self.names}"
            raise KeyError(msg)
        return name


def read_sections(adata: AnnData, library_key: str | None) -> Sections:
    """Read the section of every spot; without ``library_key`` all spots are one section."""
    if library_key is None:
        return Sections(np.zeros(adata.n_obs, dtype=np.int64), ["section"])
    hint = "library_key names the column that tells sections apart; leave it out for a single section"
    require(adata.obs, library_key, where="obs", hint=hint)
    values = pd.Series(adata.obs[library_key].to_numpy(dtype=object))
    text = {value: as_text(value) for value in values.dropna().unique()}
    missing = values.isna() | values.isin([value for value in text if text[value].strip().lower() in NO_SECTION])
    if missing.any():
        msg = f"adata.obs[{library_key!r}] is missing for {int(missing.sum())} spots; every spot needs a section"
        raise ValueError(msg)
    names = sorted(set(text.values()))
    if len(text) > len(names):
        msg = (
            f"adata.obs[{library_key!r}] has sections of different type but the same name, such as 1 and '1'; "
            "convert the column with .astype(str)"
        )
        raise ValueError(msg)
    plain = pd.Series(names, dtype=object).groupby([" ".join(name.split()) for name in names]).agg(list)
    if len(plain) < len(names):
        alike = plain[plain.map(len) > 1].iloc[0]
        msg = (
            f"adata.obs[{library_key!r}] has the sections {alike}, which differ in blanks alone; correct them, such as "
            "with .str.strip()"
        )
        raise ValueError(msg)
    codes = pd.Index(names).get_indexer([text[value] for value in values])
    return Sections(codes.astype(np.int64), names)


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
    grid, record = read_array(adata, grid_key), adata.uns[grid_key]
    if not isinstance(record, Mapping) or record.get("layout") not in LAYOUTS:
        msg = f"adata.uns[{grid_key!r}] names none of the layouts {list(LAYOUTS)}. {hint}"
        raise ValueError(msg)
    if grid.shape != (adata.n_obs, 2) or not np.array_equal(grid, np.rint(grid)):
        msg = f"adata.obsm[{grid_key!r}] is not a lattice of whole numbers, spots × 2 (row, column). {hint}"
        raise ValueError(msg)
    duplicated = pd.DataFrame({"section": sections.codes, "row": grid[:, 0], "col": grid[:, 1]}).duplicated()
    if duplicated.any():
        msg = (
            f"{int(duplicated.sum())} spots share a lattice site with another spot of their section. "
            "Several sections need library_key; after joining objects run strecur.pp.to_grid again."
        )
        raise ValueError(msg)
    return Grid(grid[:, 0].astype(np.int64), grid[:, 1].astype(np.int64), str(record["layout"]))


def read_pitches(adata: AnnData, names: Sequence[str], *, grid_key: str = "grid") -> tuple[list[float], list[float]]:
    """Return the distances between neighbouring spots of some sections, as coordinates are given and in micrometres.

    Distances that are not known are left out.
    """
    spacing, slides = adata.uns.get(grid_key, {}).get("spacing", {}), adata.uns.get("spatial", {})
    pitches, pitches_um = [], []
    for name in names:
        pitch = float(spacing.get(name, np.nan))
        slide = slides.get(name) if isinstance(slides, Mapping) else None
        factors = slide.get("scalefactors", {}) if isinstance(slide, Mapping) else {}
        if np.isfinite(pitch):
            pitches.append(pitch)
            pitches_um += [pitch * float(factors["microns_per_pixel"])] if "microns_per_pixel" in factors else []
    return pitches, pitches_um


@dataclass(frozen=True)
class SectionData:
    """Sections of a table with their lattice: the spots that take part, and where they stand in the whole object.

    Attributes
    ----------
    table
        Spots that take part, with everything there is about them.
    sections, grid
        Section and lattice site of each of these spots.
    spot_N
        Position of each of these spots in the whole object.
    n_obs
        Number of spots of the whole object.
    """

    table: AnnData
    sections: Sections
    grid: Grid
    spot_N: np.ndarray
    n_obs: int

    @property
    def names(self) -> list[str]:
        """Names of the sections, sorted."""
        return self.sections.names

    def rows(self, name: str) -> np.ndarray:
        """Return the positions of one section's spots among those that take part."""
        return self.sections.rows(name)

    def within(self, names: Sequence[str]) -> np.ndarray:
        """Return which spots belong to some sections."""
        return np.isin(self.sections.codes, [self.names.index(name) for name in names])

    def only(self, names: Sequence[str]) -> SectionData:
        """Return some of the sections, as if the object held no others."""
        rows = np.flatnonzero(self.within(names))
        table = (self.table.to_memory() if self.table.isbacked else self.table)[rows]
        kept = [name for name in self.names if name in names]
        codes = pd.Index(kept).get_indexer(np.array(self.names)[self.sections.codes[rows]])
        grid = Grid(self.grid.row[rows], self.grid.col[rows], self.grid.layout)
        return SectionData(table, Sections(codes, kept), grid, np.arange(len(rows)), len(rows))

    def sizes(self, names: Sequence[str] | None = None) -> dict[str, int]:
        """Return the number of spots of each section, or of the named ones."""
        return {name: len(self.rows(name)) for name in (self.names if names is None else names)}

    def join(self, parts: Sequence[np.ndarray], *, axis: int = 0) -> np.ndarray:
        """Put results by section, in the order of the names, back into the order of the spots."""
        order = np.concatenate([self.rows(name) for name in self.names])
        return np.take(np.concatenate(parts, axis=axis), np.argsort(order), axis=axis).astype(np.float32)

    def spread(self, values: np.ndarray, *, missing: float = np.nan) -> np.ndarray:
        """Put values of the spots that take part in the order of the whole object; the others get ``missing``.

        Without ``missing`` they get NaN, and the values are float32.
        """
        dtype = np.float32 if np.isnan(missing) else values.dtype
        whole = np.full((self.n_obs, *values.shape[1:]), missing, dtype=dtype)
        whole[self.spot_N] = values
        return whole

    def means(self, values_N: np.ndarray) -> list[float]:
        """Return the mean over the spots of each section."""
        return [float(np.mean(values_N[self.rows(name)])) for name in self.names]


def read_section_data(
    table: AnnData, library_key: str | None, *, use_rep: str | None = None, hint: str = ""
) -> SectionData:
    """Read the sections of a table with their lattice.

    Spots outside the tissue do not take part. With ``use_rep``, neither do those whose representation is NaN in every
    column, such as those outside the image; ``hint`` says how to get that representation.
    """
    outside = find_background(table)
    warn_of_background(table)
    missing = np.zeros(table.n_obs, dtype=bool)
    if use_rep is not None:
        require(table.obsm, use_rep, where="obsm", hint=hint)
        values = read_array(table, use_rep, dtype=np.float32).reshape(table.n_obs, -1)
        missing = np.isnan(values).all(axis=1)
        if missing.all():
            msg = f"adata.obsm[{use_rep!r}] is NaN for all {table.n_obs} spots. {hint}"
            raise ValueError(msg)
        if (missing & ~outside).any():
            n_missing = int((missing & ~outside).sum())
            logger.warning("%d of %d spots have no embedding and are left out", n_missing, table.n_obs)
    left_out = outside | missing
    if left_out.all():
        msg = f"none of the {table.n_obs} spots is inside the tissue (obs['in_tissue'] is 0) and has an embedding"
        raise ValueError(msg)
    spot_N, part = np.flatnonzero(~left_out), table
    if left_out.any():
        part = (table.to_memory() if table.isbacked else table)[spot_N]
    sections = read_sections(part, find_library_key(part, library_key))
    return SectionData(part, sections, read_grid(part, sections), spot_N, table.n_obs)


def read_labels(adata: AnnData, label_key: str) -> pd.Series:
    """Read labels as strings, with missing ones (see :func:`strecur._labels.clean_labels`) as ``None``."""
    require(adata.obs, label_key, where="obs", hint="label_key names the column of annotated domains")
    column = adata.obs[label_key]
    if pd.api.types.is_float_dtype(column) and column.nunique() > 100:
        msg = f"adata.obs[{label_key!r}] holds {column.nunique()} different numbers; domains are categories"
        raise ValueError(msg)
    if column.dtype == object and any(isinstance(label, list | dict | set | np.ndarray) for label in column):
        msg = f"adata.obs[{label_key!r}] holds lists or the like; every spot has one label, text or a number"
        raise TypeError(msg)
    labels = clean_labels(column)
    alike = pd.Series(sorted(labels.dropna().unique()), dtype=object)
    alike = alike.groupby(alike.str.lower()).agg(list)
    if (alike.map(len) > 1).any():
        logger.warning(
            "adata.obs[%r] has labels that differ in case alone and are domains of their own: %s",
            *(label_key, alike[alike.map(len) > 1].tolist()),
        )
    words = sorted(map(str, column[(labels.isna() & column.notna()).to_numpy()].unique()))
    if words:
        logger.info("adata.obs[%r]: %s count as missing labels", label_key, words)
    return labels


def read_matrix(
    adata: AnnData, layer: str | None = None, *, instead: str = "pass raw counts"
) -> np.ndarray | sparse.csr_matrix:
    """Read ``X`` or a layer into memory, dense or CSR; ``instead`` says what to do about values that are missing."""
    if layer is not None:
        require(adata.layers, layer, where="layers")
    matrix = adata.X if layer is None else adata.layers[layer]
    if matrix is None:
        msg = "adata.X is empty; name a layer or a representation (use_rep)"
        raise ValueError(msg)
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    elif hasattr(matrix, "compute"):  # dask, whose chunks may be sparse
        matrix = matrix.compute()
        matrix = matrix if sparse.issparse(matrix) else np.asarray(matrix)
    elif not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    matrix = sparse.csr_matrix(matrix) if sparse.issparse(matrix) else matrix
    values = stored_values(matrix)
    if values.dtype.kind not in "biuf":
        msg = f"adata.{'X' if layer is None else f'layers[{layer!r}]'} holds {values.dtype}; numbers are needed"
        raise ValueError(msg)
    if not np.isfinite(values).all():
        msg = f"adata.{'X' if layer is None else f'layers[{layer!r}]'} holds NaN or infinite values; {instead}"
        raise ValueError(msg)
    return matrix


def stored_values(matrix: np.ndarray | sparse.csr_matrix) -> np.ndarray:
    """Return the values that a matrix stores."""
    return np.asarray(matrix.data if sparse.issparse(matrix) else matrix)


def require_counts(matrix: np.ndarray | sparse.csr_matrix, adata: AnnData, *, or_else: str = "") -> None:
    """Raise unless the matrix holds counts: non-negative integers.

    The message says where the object has some, and ends with what may be passed otherwise.
    """
    values = stored_values(matrix)
    if values.dtype == bool:
        msg = "true and false where counts are needed; pass raw counts (layer=...)"
        raise ValueError(f"{msg}. {or_else}" if or_else else msg)
    if _are_counts(values):
        return
    what = "negative values" if values.min() < 0 else "non-integer values"
    why = "" if values.min() < 0 else ", as if normalised or log-transformed already"
    msg = f"{what} where counts are needed{why}; pass raw counts (layer=...) or a representation (use_rep=...)"
    layers = [name for name, layer in adata.layers.items() if _are_counts(_few_values(layer))]
    if layers:
        msg += f". adata.layers[{layers[0]!r}] holds counts: pass layer={layers[0]!r}"
    elif adata.raw is not None and _are_counts(_few_values(adata.raw.X)):
        msg += (
            ". adata.raw holds counts: adata.layers['counts'] = adata.raw[:, adata.var_names].X, and pass "
            "layer='counts'"
        )
    raise ValueError(f"{msg}. {or_else}" if or_else else msg)


def _are_counts(values: np.ndarray) -> bool:
    return not values.size or (values.min() >= 0 and np.array_equal(values, np.round(values)))


def _few_values(matrix: Any) -> np.ndarray:
    """Return the values that the first spots of a matrix store."""
    few = matrix[:100]
    few = few.compute() if hasattr(few, "compute") else few
    return stored_values(few)


def sections_with_counts(matrix: sparse.csr_matrix, sections: Sections) -> list[str]:
    """Return the sections in which genes can vary: those of at least two spots with counts; raise if there are none."""
    counted = np.asarray(matrix.sum(axis=1)).ravel() > 0
    n_counted = {name: int(counted[sections.rows(name)].sum()) for name in sections.names}
    few = [name for name, n in n_counted.items() if n < 2]
    if len(few) == len(n_counted):
        msg = f"none of the sections {few} has two spots with counts, so no gene varies; check the counts (layer=...)"
        raise ValueError(msg)
    if few:
        logger.warning("sections %s have fewer than two spots with counts and choose no genes", few)
    return [name for name in n_counted if name not in few]


def read_array(adata: AnnData, key: str, *, dtype: type = np.float64) -> np.ndarray:
    """Read an entry of ``obsm`` into memory as numbers: an array, a DataFrame or a sparse matrix."""
    values = adata.obsm[key]
    values = values.toarray() if sparse.issparse(values) else values
    try:
        return np.asarray(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        msg = f"adata.obsm[{key!r}] does not hold numbers alone ({error}); choose its numeric columns"
        raise ValueError(msg) from error


def read_xy(adata: AnnData, key: str) -> np.ndarray:
    """Read coordinates (x, y) from ``obsm``; columns of a DataFrame that are named row and column are exchanged."""
    values, xy = adata.obsm[key], read_array(adata, key)
    if isinstance(values, pd.DataFrame):
        words = [set(re.split(r"[^a-z]+", str(name).lower())) for name in values.columns[:2]]
        if len(words) == 2 and words[0] & AXES["y"] and words[1] & AXES["x"]:
            logger.info("adata.obsm[%r] has the columns %s: the second is x", key, list(values.columns[:2]))
            xy = np.column_stack([xy[:, 1], xy[:, 0], xy[:, 2:]])
    return xy


def warn_of_rounding(adata: AnnData, key: str) -> None:
    """Warn of coordinates in half precision, which are whole numbers from 1,024 and steps of 8 from 8,192."""
    values = adata.obsm.get(key)
    if getattr(values, "dtype", None) == np.float16 and (largest := np.nanmax(np.abs(np.asarray(values)))) > 1024:
        logger.warning(
            "adata.obsm[%r] has half precision (float16), which rounds coordinates to %g; read them again as float64",
            *(key, float(np.spacing(largest))),
        )


def read_representation(adata: AnnData, use_rep: str) -> np.ndarray:
    """Read ``obsm[use_rep]`` as float32, spots × features."""
    require(adata.obsm, use_rep, where="obsm", hint="use_rep names a representation of the spots")
    values = read_array(adata, use_rep, dtype=np.float32)
    if values.ndim != 2 or not values.shape[1]:
        msg = f"adata.obsm[{use_rep!r}] has shape {values.shape}; expected spots × features"
        raise ValueError(msg)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values).all(axis=1)).sum())
        msg = f"adata.obsm[{use_rep!r}] holds NaN or infinite values in {bad} spots; leave them out"
        raise ValueError(msg)
    return values


def find_genes(adata: AnnData, genes: Sequence[str]) -> tuple[sparse.csr_matrix, list[str]]:
    """Match genes by name like :func:`align_genes`, with any number of matches."""
    candidates = [clean_genes(adata.var_names), *(clean_genes(adata.var[c]) for c in name_columns(adata.var))]
    wanted = pd.Index(clean_genes(genes))
    names = max(candidates, key=lambda c: len(wanted.intersection(c)))
    position = wanted.get_indexer(names)
    found = np.flatnonzero(position >= 0)
    missing = [str(g) for g in wanted.difference(names, sort=False)]
    ones = np.ones(len(found), dtype=np.float32)
    return sparse.csr_matrix((ones, (found, position[found])), shape=(adata.n_vars, len(wanted))), missing


def align_genes(
    adata: AnnData, genes: Sequence[str], *, min_share: float, without: str = "count as zero"
) -> tuple[sparse.csr_matrix, list[str]]:
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
    without
        What happens to genes that are not found, for the warning.

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
        logger.warning("%d of %d genes are missing and %s: %s …", len(missing), len(genes), without, missing[:5])
    return projection, missing


def write(
    adata: AnnData,
    *,
    obs: Mapping[str, object] | None = None,
    obsm: Mapping[str, np.ndarray] | None = None,
    uns: Mapping[str, object] | None = None,
) -> None:
    """Add results and log a line per key; everything is computed before anything is written."""
    for slot, values in (("obs", obs), ("obsm", obsm), ("uns", uns)):
        for key, value in (values or {}).items():
            getattr(adata, slot)[key] = value
            logger.info("added %r to adata.%s", key, slot)
