"""Thirty-six ST sections of HER2-positive breast tumours (Andersson et al. 2021)."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import pandas as pd
from scipy import sparse

from strecur.datasets._download import fetch, remote_files
from strecur.datasets._sections import Collection, load, local_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

PATIENTS = {"A": 6, "B": 6, "C": 6, "D": 6, "E": 3, "F": 3, "G": 3, "H": 3}


def her2st(sections: Sequence[str] | str | None = None, *, images: bool = False) -> AnnData:
    """Thirty-six ST sections of HER2-positive breast tumours of eight patients, with H&E images.

    Sections are taken from ``<folder>/her2st/<section>.h5ad`` if they are there (``settings.dataset_dir``, then the
    environment variable ``STRECUR_DATA``). Those that are not are downloaded, checked and kept there. Nothing is
    downloaded unless this function is called.

    Parameters
    ----------
    sections
        Names of sections; ``None`` takes all: ``"A1"`` to ``"A6"``, the same of B, C and D, and ``"E1"`` to ``"E3"``,
        the same of F, G and H.
    images
        Download the full-resolution image (JPEG, about 9,000 pixels wide) of every section that has none in
        ``<folder>/her2st/images``.

    Returns
    -------
    AnnData with ``X`` raw counts (CSR float32, spots × genes) and

    ``obs``
        ``section``, ``patient``, ``domain`` (the pathologist's label, in A1, B1, C1, D1, E1, F1, G2 and H1; missing
        elsewhere and where it was undetermined), ``array_row`` and ``array_col`` (square).
    ``var``
        Gene symbols; ``n_sections`` (int; how many of the sections list the gene; 0 counts elsewhere, where none was
        found: genes common to all have ``n_sections`` equal to the number of sections).
    ``obsm["spatial"]``
        (x, y) in pixels of the full-resolution image.
    ``uns["spatial"][section]``
        ``scalefactors`` with ``microns_per_pixel`` (from the 200 µm between spots); ``metadata["source_image_path"]``,
        the image where there is one, which :func:`strecur.pp.embed_patches` finds.
    ``uns["source"][section]``
        Where it came from.

    Raises
    ------
    ValueError
        If a name is not one of the 36.
    ConnectionError
        If a section is in no folder and cannot be downloaded, or is not what it should be.

    Notes
    -----
    Andersson et al., *Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
    interactions*, Nature Communications 2021. All files are those of the almaan/her2st repository, checked by their ids
    in git.
    """
    return load(HER2ST, sections, images=images)


def build(name: str, folder: Path) -> AnnData:
    """Make one section from the files of the authors: the counts of the spots under tissue."""
    from anndata import AnnData

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
    adata = AnnData(
        sparse.csr_matrix(table.loc[both].to_numpy(dtype="float32")),
        obs=pd.DataFrame({"array_row": place["y"], "array_col": place["x"]}, index=both),
        var=pd.DataFrame(index=table.columns.astype(str)),
        obsm={"spatial": place[["pixel_x", "pixel_y"]].to_numpy(dtype=float)},
    )
    adata.obs["domain"] = pd.Categorical(read_labels(name, raw, place))
    adata.uns["source"] = {
        "dataset": "HER2ST (Andersson et al. 2021)",
        "repo": "github:almaan/her2st",
        "X": "raw counts of spots with selected == 1",
    }
    return adata


def read_labels(name: str, raw: Path, place: pd.DataFrame) -> pd.Series:
    """Return the pathologist's label of every spot, missing where there is none."""
    path = f"data/ST-pat/lbl/{name}_labeled_coordinates.tsv"
    if not remote_files("her2st", below=path):
        return pd.Series(None, index=place.index, dtype=object)
    labels = pd.read_csv(fetch("her2st", path, raw / PurePosixPath(path).name), sep="\t").dropna(subset=["x", "y"])
    # Labels stand at the adjusted positions of the array.
    key = [f"{x:.3f}x{y:.3f}" for x, y in zip(labels["x"], labels["y"], strict=True)]
    by_position = pd.Series(labels["label"].to_numpy(), index=key)
    wanted = [f"{x:.3f}x{y:.3f}" for x, y in zip(place["new_x"], place["new_y"], strict=True)]
    return pd.Series(by_position[~by_position.index.duplicated()].reindex(wanted).to_numpy(), index=place.index)


def add_image(entry: dict, name: str, folder: Path, wanted: bool) -> None:  # noqa: FBT001
    """Name the full-resolution image if it is there or wanted."""
    path = local_image(folder, rf"{name}\.(jpe?g|tiff?)")
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
    build=build,
    add_image=add_image,
)
