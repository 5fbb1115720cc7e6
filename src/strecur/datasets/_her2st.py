"""Thirty-six ST sections of HER2-positive breast tumours (Andersson et al. 2021)."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pandas as pd

from strecur.datasets._download import fetch, remote_files
from strecur.datasets._sections import Collection, array_section, full_resolution_image, load

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

PATIENTS = {"A": 6, "B": 6, "C": 6, "D": 6, "E": 3, "F": 3, "G": 3, "H": 3}


def her2st(sections: Sequence[str] | str | None = None, *, images: bool = False) -> AnnData:
    """Load thirty-six ST sections of HER2-positive breast tumours of eight patients, with H&E images.

    Sections are read from ``<folder>/her2st/<section>.h5ad``, where the folder is ``settings.dataset_dir`` or the
    environment variable ``STRECUR_DATA``. Missing sections are downloaded, verified and stored there.

    Parameters
    ----------
    sections
        Names of sections. If ``None`` (default), all: ``"A1"`` to ``"A6"``, likewise for B, C and D, and ``"E1"`` to
        ``"E3"``, likewise for F, G and H.
    images
        Download the full-resolution image (JPEG, about 9,000 pixels wide) of every section without an image in
        ``<folder>/her2st/images``.

    Returns
    -------
    AnnData with ``X`` raw counts (CSR float32, spots × genes) and

    ``obs``
        ``section``, ``patient``, ``domain`` (the pathologist's label, in A1, B1, C1, D1, E1, F1, G2 and H1; missing
        in the other sections and where undetermined), ``array_row`` and ``array_col`` (square).
    ``var``
        Gene symbols; ``n_sections`` (int; number of sections that list the gene; counts are 0 in the others).
    ``obsm["spatial"]``
        (x, y) in pixels of the full-resolution image.
    ``uns["spatial"][section]``
        ``scalefactors`` with ``microns_per_pixel`` (from the 200 µm between spots); if there is an image,
        ``metadata["source_image_path"]``, which :func:`strecur.pp.embed_patches` uses.
    ``uns["source"][section]``
        Origin of the data.

    Raises
    ------
    ValueError
        If a name is not one of the 36.
    ConnectionError
        If a section is in neither folder and cannot be downloaded, or the download is wrong.

    Notes
    -----
    Andersson et al., *Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
    interactions*, Nature Communications 2021. All files are those of the almaan/her2st repository, verified by their
    git blob ids.
    """
    return load(HER2ST, sections, images=images)


def build_her2st(name: str, folder: Path) -> AnnData:
    """Build one section from the files of the authors: counts of the spots under tissue."""
    raw = folder / "raw"
    counts, spots = (
        fetch("her2st", path, raw / PurePosixPath(path).name)
        for path in (f"data/ST-cnts/{name}.tsv.gz", f"data/ST-spotfiles/{name}_selection.tsv")
    )
    table = pd.read_csv(counts, sep="\t", index_col=0)
    place = pd.read_csv(spots, sep="\t")
    place.index = [f"{x}x{y}" for x, y in zip(place["x"], place["y"], strict=True)]
    place = place[place["selected"] == 1]
    both = table.index.intersection(place.index)
    place = place.loc[both]
    source = {
        "dataset": "HER2ST (Andersson et al. 2021)",
        "repo": "github:almaan/her2st",
        "X": "raw counts of spots with selected == 1",
    }
    array, xy = place[["y", "x"]].to_numpy(), place[["pixel_x", "pixel_y"]].to_numpy(dtype=float)
    return array_section(table.loc[both], array, xy, labels=read_pathology_labels(name, raw, place), source=source)


def read_pathology_labels(name: str, raw: Path, place: pd.DataFrame) -> pd.Series:
    """Return the pathologist's label of every spot, or missing."""
    path = f"data/ST-pat/lbl/{name}_labeled_coordinates.tsv"
    if not remote_files("her2st", below=path):
        return pd.Series(None, index=place.index, dtype=object)
    labels = pd.read_csv(fetch("her2st", path, raw / PurePosixPath(path).name), sep="\t").dropna(subset=["x", "y"])
    # Labels have the adjusted positions of the array.
    key = [f"{x:.3f}x{y:.3f}" for x, y in zip(labels["x"], labels["y"], strict=True)]
    by_position = pd.Series(labels["label"].to_numpy(), index=key)
    wanted = [f"{x:.3f}x{y:.3f}" for x, y in zip(place["new_x"], place["new_y"], strict=True)]
    return pd.Series(by_position[~by_position.index.duplicated()].reindex(wanted).to_numpy(), index=place.index)


def add_her2st_image(entry: dict, name: str, folder: Path, *, wanted: bool) -> None:
    """Record the full-resolution image; if wanted, download it if there is none."""
    path = full_resolution_image(folder, name)
    if path is None and wanted:
        (remote,) = remote_files("her2st", below=f"data/ST-imgs/{name[0]}/{name}/")
        path = fetch("her2st", remote.path, folder / "images" / f"{name}.jpg")
    if path is not None:
        entry["metadata"]["source_image_path"] = str(path)


SECTIONS = tuple(f"{patient}{i + 1}" for patient, n in PATIENTS.items() for i in range(n))

HER2ST = Collection(
    name="her2st",
    sections=SECTIONS,
    group=("patient", {section: section[0] for section in SECTIONS}),
    domains=(
        "invasive cancer",
        "cancer in situ",
        "immune infiltrate",
        "breast glands",
        "connective tissue",
        "adipose tissue",
    ),
    build=build_her2st,
    add_image=add_her2st_image,
)
