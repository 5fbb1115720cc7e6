"""Sections of public data sets: read from the user's folders, or built from downloads and stored there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from strecur._anndata import logger, require
from strecur._labels import clean_labels
from strecur._settings import settings
from strecur.datasets._download import DownloadError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

COLUMNS = ("array_row", "array_col", "sum_umi")
"""Columns of ``obs`` that are kept besides section, donor or patient, and domain."""


@dataclass(frozen=True)
class Collection:
    """Description of a data set.

    Attributes
    ----------
    name
        Name of its folder.
    sections
        Names of its sections, in order.
    group
        Column of ``obs`` with the donor or patient, and its value by section; ``None`` if unknown.
    domains
        Labels in order.
    build
        Builds one section from public files, given its name and the folder of the data set.
    add_image
        Adds the image of a section to its entry of ``uns["spatial"]``, given the folder and whether images are wanted.
    """

    name: str
    sections: tuple[str, ...]
    group: tuple[str, Mapping[str, str]] | None
    domains: tuple[str, ...]
    build: Callable[[str, Path], AnnData]
    add_image: Callable[..., None]


def folders() -> list[Path]:
    """Return the folders of data sets: ``settings.dataset_dir``, then ``STRECUR_DATA``."""
    found = [Path(settings.dataset_dir)]
    if "STRECUR_DATA" in os.environ:
        found.append(Path(os.environ["STRECUR_DATA"]))
    return list(dict.fromkeys(found))


def load(collection: Collection, sections: Sequence[str] | str | None, *, images: bool) -> AnnData:
    """Return some sections of a data set as one AnnData."""
    names = _check_names(collection, sections)
    places = {name: path for name in names if (path := _find(collection, name))}
    missing = [name for name in names if name not in places]
    for name in missing:
        places[name] = _build(collection, name, missing)
    parts, spatial, sources = [], {}, {}
    for name in names:
        part = _read(collection, name, places[name])
        sources[name] = {str(k): str(v) for k, v in dict(part.uns.get("source", {})).items()}
        spatial[name] = {"scalefactors": _scalefactors(part), "metadata": {}}
        collection.add_image(spatial[name], name, places[name].parent, wanted=images)
        parts.append(ad.AnnData(part.X, obs=part.obs, var=part.var, obsm={"spatial": part.obsm["spatial"]}))
    adata = ad.concat(parts, join="outer", merge="first", fill_value=0)
    measured = pd.Series(0, index=adata.var_names)
    for part in parts:
        measured[part.var_names] += 1
    adata.var["n_sections"] = measured
    for column in ("section", *([collection.group[0]] if collection.group else [])):
        adata.obs[column] = pd.Categorical(adata.obs[column], list(dict.fromkeys(adata.obs[column])))
    present = set(adata.obs["domain"].dropna())
    order = [d for d in collection.domains if d in present] + sorted(present - set(collection.domains))
    adata.obs["domain"] = pd.Categorical(adata.obs["domain"], order)
    adata.uns |= {"spatial": spatial, "source": sources}
    return adata


def _check_names(collection: Collection, sections: Sequence[str] | str | None) -> list[str]:
    if sections is None:
        return list(collection.sections)
    names = [str(name) for name in ([sections] if isinstance(sections, str | int) else sections)]
    unknown = sorted(set(names) - set(collection.sections))
    if unknown or not names or len(set(names)) < len(names):
        fault = f"unknown {unknown}" if unknown else ("repeated" if names else "empty")
        msg = f"sections={names}: {fault}; {collection.name} has {list(collection.sections)}"
        raise ValueError(msg)
    return names


def _find(collection: Collection, name: str) -> Path | None:
    candidates = (folder / collection.name / f"{name}.h5ad" for folder in folders())
    return next((path for path in candidates if path.is_file()), None)


def _build(collection: Collection, name: str, missing: list[str]) -> Path:
    """Build a section from its public files and store it as h5ad, completely or not at all."""
    folder = Path(settings.dataset_dir) / collection.name
    target = folder / f"{name}.h5ad"
    try:
        built = collection.build(name, folder)
        draft = target.with_name(f"{name}.part.h5ad")
        built.write_h5ad(draft, compression="gzip")
        draft.replace(target)
    except DownloadError as error:
        there = [section for section in collection.sections if _find(collection, section)]
        msg = (
            f"{collection.name}: {_list(missing)} not in {[str(f) for f in folders()]} and could not be downloaded: "
            f"{error}. Without a network, put <section>.h5ad into {folder} (raw counts in X, obs['domain'], "
            "obs['array_row'], obs['array_col'], obsm['spatial']), or let settings.dataset_dir or the environment "
            f"variable STRECUR_DATA name a folder with {collection.name}/<section>.h5ad. "
            + (f"There are {there}: pass sections={there}" if there else "No section is there yet")
        )
        raise DownloadError(msg) from error
    logger.info("stored section %r as %s", name, target)
    return target


def _list(names: list[str]) -> str:
    return f"section {names[0]!r} is" if len(names) == 1 else f"sections {names} are"


def _read(collection: Collection, name: str, path: Path) -> AnnData:
    try:
        part = ad.read_h5ad(path)
    except OSError as error:
        msg = f"{path} is damaged ({error}); remove it to build it again, or replace it"
        raise OSError(msg) from error
    require(part.obsm, "spatial", where="obsm", hint=f"{path} is not in the common form of data sets")
    part.obs_names = [f"{name}_{spot}" for spot in part.obs_names]
    obs = part.obs[[column for column in COLUMNS if column in part.obs]].copy()
    obs.insert(0, "section", name)
    if collection.group:
        obs.insert(1, collection.group[0], collection.group[1][name])
    labels = part.obs["domain"] if "domain" in part.obs else pd.Series(None, index=part.obs_names, dtype=object)
    labels = clean_labels(labels)
    obs["domain"] = labels.where(labels != "undetermined", None)
    part.obs = obs
    return part


def _scalefactors(part: AnnData) -> dict[str, float]:
    """Return the stored scale factors, or those of a 200 µm array measured on its spots."""
    if "scalefactors" in part.uns:
        return {str(k): float(v) for k, v in part.uns["scalefactors"].items()}
    array = part.obs[["array_row", "array_col"]].to_numpy(dtype=float)
    steps = np.linalg.lstsq(np.column_stack([array, np.ones(len(array))]), part.obsm["spatial"], rcond=None)[0][:2]
    pitch = float(np.linalg.norm(steps, axis=1).mean())
    return {"spot_diameter_fullres": pitch / 2, "microns_per_pixel": 200 / pitch} if pitch > 0 else {}


def array_section(
    counts: pd.DataFrame, array: np.ndarray, xy: np.ndarray, *, labels: pd.Series, source: dict[str, str]
) -> AnnData:
    """Build a section of an ST array from counts (spots × genes), (row, column), (x, y) and labels of its spots."""
    names = counts.index.astype(str)
    adata = ad.AnnData(
        sparse.csr_matrix(counts.to_numpy(dtype="float32")),
        obs=pd.DataFrame({"array_row": array[:, 0], "array_col": array[:, 1]}, index=names),
        var=pd.DataFrame(index=counts.columns.astype(str)),
        obsm={"spatial": xy},
    )
    adata.obs["domain"] = pd.Categorical(labels)
    adata.uns["source"] = source
    return adata


def full_resolution_image(folder: Path, name: str) -> Path | None:
    """Return the JPEG or TIFF image of a section in the folder of a data set."""
    return local_image(folder, rf"{name}\.(jpe?g|tiff?)")


def local_image(folder: Path, pattern: str) -> Path | None:
    """Return the image in the folder of a data set whose name matches a regular expression."""
    names = sorted((folder / "images").glob("*"))
    return next((path for path in names if re.fullmatch(pattern, path.name)), None)
