from __future__ import annotations

import inspect
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from strecur._arguments import check_whole, meant
from strecur._labels import as_text, clean_labels
from strecur._settings import settings
from strecur._stores import (
    SOURCE,
    column_names,
    list_sections,
    name_results,
    only_results,
    read_columns,
    read_result_record,
    read_section,
    write_results,
)
from strecur.models import DomainModel, ExpressionModel, LinearExpressionModel
from strecur.models.loading import fingerprint
from strecur.pp.grid.to_grid import to_grid
from strecur.tl._domains import check_domains_call, trm_domains
from strecur.tl._expression import check_expression_call, predict_expression
from strecur.tl._inputs import require_model
from strecur.tl._results import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anndata import AnnData

    from strecur._stores import StoredSection
    from strecur.options import Inference

logger = logging.getLogger("strecur")

SECTION = "section"
"""Column of sections of a sample whose files have none."""

SHARD = re.compile(r"(\d+)/(\d+)")
COLUMNS = ["file", "section", "n_spots", "result", "error"]

FAILURES = (KeyError, OSError, ValueError)
"""Errors of one section that do not keep the others from being predicted."""


def sample_cohort(
    paths: str | Path | Sequence[str | Path],
    n_sections: int | None,
    *,
    label_key: str | None = None,
    library_key: str | None = None,
    group_key: str | None = None,
    rng: int = 0,
    table_key: str | None = None,
) -> AnnData:
    """Read some sections of a cohort that does not fit into memory, to train on.

    The sections are drawn at random; with ``group_key``, in an order in which no group has a second one before every
    group has one. With ``label_key``, only annotated sections are drawn, and first those that add domains, so that the
    sample has all domains of the cohort if ``n_sections`` suffice.

    Parameters
    ----------
    paths
        Files of sections, or folders that hold them: ``.h5ad``, and ``.zarr`` of an AnnData or SpatialData. A file has
        one section or several.
    n_sections
        Number of sections to read; all if there are fewer, or ``None``.
    label_key
        Column of ``obs`` with the annotated domains.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid` before the file was written; a file without one is one section.
    group_key
        Column of ``obs`` with what sections have in common, such as the donor.
    rng
        Seed of the choice.
    table_key
        Table to use in files of SpatialData with several.

    Returns
    -------
    The sections as one AnnData with the genes that all of them have, and with a lattice; of files without one, that of
    :func:`strecur.pp.to_grid`. ``obs[library_key]`` (``"section"`` where there is none) has the name of the section,
    preceded by that of its file where several files have a section of that name. Images are left out.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    KeyError
        If no file has ``label_key``, or one lacks another key.
    ValueError
        If a folder holds no sections, none is annotated, or their lattices have different layouts.

    Examples
    --------
    >>> import strecur as st
    >>> from pathlib import Path
    >>> adata = st.datasets.synthetic_sections(n_sections=3, n_rows=12, n_cols=12, n_domains=2)
    >>> Path("cohort").mkdir()
    >>> for name in ("S1", "S2", "S3"):
    ...     adata[adata.obs["section"] == name].write_h5ad(f"cohort/{name}.h5ad")
    >>> sample = st.tl.sample_cohort("cohort", 2, label_key="domain")
    >>> sample.obs["section"].nunique()
    2
    """
    if n_sections is not None:
        check_whole("n_sections", n_sections)
    check_whole("rng", rng, least=0)
    stored = list_sections(paths, library_key, table_key=table_key)
    chosen = choose_sections(stored, n_sections, label_key, group_key, rng)
    logger.info("reading %d of %d sections: %s", len(chosen), len(stored), [section.label for section in chosen])
    return join_sections(chosen)


def predict_cohort(
    paths: str | Path | Sequence[str | Path],
    model: DomainModel | LinearExpressionModel,
    folder: str | Path,
    *,
    library_key: str | None = None,
    predict: Mapping[str, Any] | None = None,
    shard: str | None = None,
    overwrite: bool = False,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Predict all sections of a cohort, one at a time, and write a file of results for each.

    Every section gets the same results as from :func:`trm_domains` or :func:`predict_expression`, bit for bit, but only
    one is in memory. The files of the cohort are not changed. An interrupted run, even one that was killed, resumes
    with the same call: sections whose results are there are not predicted again, unless their file has changed.

    Parameters
    ----------
    paths
        Files of sections, or folders that hold them: ``.h5ad``, and ``.zarr`` of an AnnData or SpatialData. A file has
        one section or several. A section without a lattice gets that of :func:`strecur.pp.to_grid`.
    model
        From :func:`train_domains`, :func:`train_expression` or :func:`strecur.load_model`.
    folder
        Folder of the results: ``<name of the file>.h5ad`` or, of a file with several sections,
        ``<name of the file>/<name of the section>.h5ad``.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid` before the file was written; a file without one is one section.
    predict
        Further arguments of :func:`trm_domains` or :func:`predict_expression` (``inference``, ``coverage``,
        ``abstain``, ``novelty``, ``rng``, ``key_added``), by name.
    shard
        Part of the sections to predict, such as ``"3/16"``: the third of 16 parts. The parts can be predicted at the
        same time, by processes or jobs with the same folder. If ``None`` (default), all.
    overwrite
        Replace results of another model or of other options.
    table_key
        Table to use in files of SpatialData with several.

    Returns
    -------
    One row per section: ``file``, ``section``, ``n_spots``, ``result`` (the file), ``error`` (message if it could not
    be predicted, otherwise empty), and the columns of ``uns[key]["sections"]``, such as ``mean_confidence`` and
    ``novelty``. A file of results has no expression. It is an AnnData with:

    ``obs``, ``obsm``, ``uns[key]``
        ``obs`` of the section, its coordinates and lattice, and everything that :func:`trm_domains` or
        :func:`predict_expression` writes.
    ``uns["cohort"]``
        ``file`` and ``section``, and digests of ``model``, ``options`` and ``state`` of the file, by which results
        that are still valid are recognised.

    Raises
    ------
    FileExistsError
        If the folder holds results of another model or other options and ``overwrite`` is false, or other files of
        these names.
    FileNotFoundError
        If a path does not exist.
    KeyError
        If ``library_key`` or ``table_key`` does not exist.
    ValueError
        If a folder holds no sections, an option does not fit the model, or no section could be predicted. Single
        sections that cannot be predicted are logged, and the others are predicted.
    OSError
        If results cannot be written.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> adata.write_h5ad("cohort.h5ad")
    >>> table = st.tl.predict_cohort("cohort.h5ad", model, "results")
    >>> table["result"].to_list()
    ['results/cohort/S1.h5ad', 'results/cohort/S2.h5ad']
    """
    run = plan_run(model, dict(predict or {}), library_key)
    place, total = read_shard(shard)
    stored = list_sections(paths, library_key, table_key=table_key)
    paths_of = name_results(stored, Path(folder))
    part = stored[place - 1 :: total]
    todo = [section for section in part if not run.is_done(section, paths_of[section.label], overwrite=overwrite)]
    errors: dict[str, str] = {}
    done = len(part) - len(todo)
    with tqdm(total=len(part), initial=done, disable=not settings.progress, desc="predicting", unit="section") as bar:
        for section in todo:
            try:
                results = run.predict(section)
            except FAILURES as error:
                logger.warning("%s could not be predicted: %s", section, message_of(error))
                errors[section.label] = message_of(error)
            else:
                write_results(paths_of[section.label], results)
            bar.update()
    if errors and len(errors) == len(part):
        msg = f"none of the {len(part)} sections could be predicted; {part[0]}: {errors[part[0].label]}"
        raise ValueError(msg)
    return run.summarise(part, paths_of, errors)


# Prediction


@dataclass(frozen=True)
class Run:
    """One prediction of a cohort: what every section gets.

    Attributes
    ----------
    verb, model, arguments
        Function that predicts, and what it is called with.
    key
        Name of the results.
    made_with
        Digests of model and options, as they stand beside the results.
    """

    verb: Callable[..., object]
    model: DomainModel | LinearExpressionModel
    arguments: Mapping[str, Any]
    key: str
    made_with: Mapping[str, str]

    def predict(self, section: StoredSection) -> AnnData:
        """Read and predict a section, and return its results."""
        adata = with_lattice(read_section(section), section.library_key)
        with settings.override(progress=False), messages_name(section):
            self.verb(adata, self.model, library_key=section.library_key, **self.arguments)
        return only_results(adata, self.key, self.source_of(section))

    def source_of(self, section: StoredSection) -> dict[str, str]:
        """Return what is written beside the results of a section."""
        return {"file": section.file.name, "section": section.name, "state": section.state, **self.made_with}

    def is_done(self, section: StoredSection, path: Path, *, overwrite: bool) -> bool:
        """Return whether the results of a section are there; raise if there are others that are not to be replaced."""
        if not path.exists():
            return False
        found, wanted = read_result_record(path, SOURCE), self.source_of(section)
        if found == wanted:
            return True
        other = [name for name in ("file", "section", "model", "options") if found.get(name) != wanted[name]]
        if other and not overwrite:
            msg = (
                f"{path} holds results of other {' and '.join(other)}; choose another folder, or pass overwrite=True "
                "to replace them"
            )
            raise FileExistsError(msg)
        logger.info("%s has changed since it was predicted, or is to be replaced; it is predicted again", section)
        return False

    def summarise(
        self, part: Sequence[StoredSection], paths: Mapping[str, Path], errors: Mapping[str, str]
    ) -> pd.DataFrame:
        """Return the table of sections, with what is recorded beside the results of each."""
        own, recorded = [], []
        for section in part:
            path, error = paths[section.label], errors.get(section.label, "")
            own.append((str(section.file), section.name, section.n_spots, "" if error else str(path), error))
            recorded.append({} if error else read_result_record(path, f"{self.key}/sections").iloc[0].to_dict())
        others = pd.DataFrame(recorded, index=range(len(own))).drop(columns="n_spots", errors="ignore")
        return pd.DataFrame(own, columns=COLUMNS).join(others)


@contextmanager
def messages_name(section: StoredSection) -> Iterator[None]:
    """Let messages begin with the file: sections of several files may have the same name, or none."""

    def prefix(record: logging.LogRecord) -> bool:
        record.msg, record.args = f"{section}: {record.getMessage()}", None
        return True

    logger.addFilter(prefix)
    try:
        yield
    finally:
        logger.removeFilter(prefix)


def plan_run(model: Any, options: dict[str, Any], library_key: str | None) -> Run:
    """Check the options of the prediction, before any section is read."""
    require_model(model, DomainModel, ExpressionModel, LinearExpressionModel)
    verb: Callable[..., object] = trm_domains
    check: Callable[..., Inference] = check_domains_call
    if isinstance(model, LinearExpressionModel):
        verb, check = predict_expression, check_expression_call
    allowed = {name: p.default for name, p in inspect.signature(check).parameters.items() if name != "model"}
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        msg = f"predict cannot hold {unknown}{meant(unknown[0], allowed)}; for this model it takes {sorted(allowed)}"
        raise ValueError(msg)
    values = allowed | options
    values["inference"] = check(model, **values)
    made_with = {"model": fingerprint(model), "options": digest(verb.__name__, library_key, sorted(values.items()))}
    return Run(verb, model, values, values["key_added"], made_with)


def read_shard(shard: str | None) -> tuple[int, int]:
    """Return which part of how many is to be predicted."""
    if shard is None:
        return 1, 1
    found = SHARD.fullmatch(shard) if isinstance(shard, str) else None
    place, total = map(int, found.groups()) if found else (0, 0)
    if not 1 <= place <= total:
        msg = f"shard={shard!r}: pass which part of how many, from '1/16' to '16/16'"
        raise ValueError(msg)
    return place, total


def message_of(error: Exception) -> str:
    """Return the message of an error; that of a KeyError without quotation marks."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def with_lattice(adata: AnnData, library_key: str | None) -> AnnData:
    """Return a section with a lattice: its own, or that of :func:`strecur.pp.to_grid`."""
    if "grid" not in adata.obsm or "grid" not in adata.uns:
        to_grid(adata, library_key=library_key)
    return adata


# Sample


def choose_sections(
    stored: Sequence[StoredSection], n: int | None, label_key: str | None, group_key: str | None, rng: int
) -> list[StoredSection]:
    """Choose sections at random: first those that together have all labels, and groups in turn."""
    keys = [key for key in (label_key, group_key) if key is not None]
    columns = read_columns(stored, keys)
    labels = [set(clean_labels(found[label_key]).dropna()) if label_key in found else set() for found in columns]
    if label_key is not None and not any(label_key in found for found in columns):
        msg = f"{label_key!r} is not a column of obs in any file; {stored[0]} has {column_names(stored[0])}"
        raise KeyError(msg)
    candidates = [i for i in range(len(stored)) if label_key is None or labels[i]]
    if not candidates:
        msg = f"no section has a label in obs[{label_key!r}]"
        raise ValueError(msg)
    order = np.random.default_rng(rng).permutation(candidates)
    if group_key is not None:
        groups = pd.Series([group_of(stored[i], columns[i], group_key) for i in order])
        order = order[np.argsort(groups.groupby(groups).cumcount().to_numpy(), kind="stable")]
    chosen: list[int] = []
    left, missing = order.tolist(), set().union(*labels)
    while left and (n is None or len(chosen) < n):
        best = max(left, key=lambda i: len(labels[i] & missing))  # the first of the best
        chosen.append(best)
        left.remove(best)
        missing -= labels[best]
    if missing:
        logger.warning(
            "the sample of %d sections lacks the domains %s; draw more sections", len(chosen), sorted(missing)
        )
    return [stored[i] for i in sorted(chosen)]


def group_of(section: StoredSection, columns: Mapping[str, np.ndarray], group_key: str) -> str:
    """Return the group of a section; raise if it has none or several."""
    if group_key not in columns:
        msg = f"{group_key!r} is not a column of obs of {section}; there are {column_names(section)}"
        raise KeyError(msg)
    names = sorted(set(map(as_text, columns[group_key])))
    if len(names) > 1:
        msg = f"{section} has several values in obs[{group_key!r}], {names[:5]}; every section belongs to one group"
        raise ValueError(msg)
    return names[0]


def join_sections(chosen: Sequence[StoredSection]) -> AnnData:
    """Read sections into one object, with one column of sections and one lattice."""
    import anndata as ad

    parts = {section.label: with_lattice(read_section(section), section.library_key) for section in chosen}
    layouts = {label: str(part.uns["grid"]["layout"]) for label, part in parts.items()}
    if len(set(layouts.values())) > 1:
        msg = f"the lattices of the sections have different layouts, {layouts}; train on sections of one kind"
        raise ValueError(msg)
    column = next((section.library_key for section in chosen if section.library_key is not None), SECTION)
    spacing: dict[str, float] = {}
    scales: dict[str, Any] = {}
    for section in chosen:
        part, own = parts[section.label], section.name if section.library_key is not None else SECTION
        part.obs[column] = section.label
        spacing[section.label] = float(part.uns["grid"].get("spacing", {}).get(own, np.nan))
        if "spatial" in part.uns:
            scales[section.label] = part.uns["spatial"][section.name]
    n_genes = max(part.n_vars for part in parts.values())
    joined = ad.concat(parts, index_unique="-", merge="same") if len(parts) > 1 else next(iter(parts.values()))
    if joined.n_vars < n_genes:
        logger.warning("genes that not all sections have are left out; %d of %d are kept", joined.n_vars, n_genes)
    joined.obs[column] = joined.obs[column].astype("category")
    params = {"library_key": column}
    joined.uns = {"grid": {"params": params, "layout": next(iter(layouts.values())), "spacing": spacing}}
    joined.uns |= {"spatial": scales} if scales else {}
    return joined
