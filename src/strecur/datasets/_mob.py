"""Twelve ST sections of mouse olfactory bulb (Ståhl et al. 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from strecur.datasets._download import DownloadError, fetch
from strecur.datasets._sections import Collection, load, local_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

LAYERS = {
    "Olfactory nerve layer": "ONL",
    "Glomerular layer": "GL",
    "Outer Plexiform Layer": "OPL",
    "Mitral Cell Layer": "MCL",
    "Granular Cell Layer": "GCL",
}
N_COLUMNS, N_ROWS = 33, 35
"""The images are cut so that the array of 33 × 35 spots reaches from one edge to the other."""


def mob(sections: Sequence[str] | str | None = None) -> AnnData:
    """Twelve ST sections of mouse olfactory bulb, their layers labelled by hand, with H&E images.

    Sections are taken from ``<folder>/mob/<section>.h5ad`` if they are there (``settings.dataset_dir``, then the
    environment variable ``STRECUR_DATA``). Those that are not are downloaded, checked and kept there. Nothing is
    downloaded unless this function is called.

    Parameters
    ----------
    sections
        Names of sections; ``None`` takes all, ``"Rep1"`` to ``"Rep12"``.

    Returns
    -------
    AnnData with ``X`` raw counts (CSR float32, spots × genes) and

    ``obs``
        ``section``, ``domain`` (``ONL``, ``GL``, ``OPL``, ``MCL``, ``GCL`` from the surface down; missing for spots
        without label), ``array_row`` and ``array_col`` (square).
    ``var``
        Gene symbols; ``n_sections`` (int; how many of the sections list the gene; 0 counts elsewhere).
    ``obsm["spatial"]``
        (x, y) in pixels of the image, about 2,300 × 2,480.
    ``uns["spatial"][section]``
        ``scalefactors`` with ``microns_per_pixel`` (from the 200 µm between spots); ``metadata["source_image_path"]``,
        the image where there is one, which :func:`strecur.pp.embed_patches` finds.
    ``uns["source"][section]``
        Where it came from.

    Raises
    ------
    ValueError
        If a name is not one of the twelve.
    ConnectionError
        If a section is in no folder and cannot be downloaded, or is not what it should be.

    Notes
    -----
    Ståhl et al., *Visualization and analysis of gene expression in tissue sections by spatial transcriptomics*, Science
    2016; counts, images and labels as in the tare/Splotch repository (Äijö et al. 2019), checked by their ids in git.
    """
    return load(MOB, sections, images=False)


def build(name: str, folder: Path) -> AnnData:
    """Make one section from the tutorial files of Splotch: genes × spots, and layers × spots."""
    from anndata import AnnData
    from PIL import Image

    number, base = f"{int(name.removeprefix('Rep')):02d}", "tutorials/olfactory_bulb_st"
    counts, labels = (
        fetch("splotch", f"{base}/{kind}/{number}_01.tsv", folder / "raw" / kind / f"{number}_01.tsv")
        for kind in ("count_tables", "annotations")
    )
    picture = fetch("splotch", f"{base}/images/{number}.jpg", folder / "images" / f"{name}.jpg")
    table = pd.read_csv(counts, sep="\t", index_col=0).T
    try:
        xy = np.array([[float(part) for part in str(spot).split("_")] for spot in table.index]).reshape(-1, 2)
    except ValueError as error:
        msg = f"{counts} does not hold genes × spots named x_y, but {list(table.index[:3])}"
        raise DownloadError(msg) from error
    with Image.open(picture) as image:
        extent = np.array(image.size)
    array = np.rint(xy).astype(int)
    adata = AnnData(
        sparse.csr_matrix(table.to_numpy(dtype="float32")),
        obs=pd.DataFrame({"array_row": array[:, 1], "array_col": array[:, 0]}, index=table.index.astype(str)),
        var=pd.DataFrame(index=table.columns.astype(str)),
        obsm={"spatial": (xy - 1) / (N_COLUMNS - 1, N_ROWS - 1) * extent},
    )
    adata.obs["domain"] = pd.Categorical(read_labels(labels).reindex(adata.obs_names))
    adata.uns["source"] = {
        "dataset": "Mouse olfactory bulb ST (Ståhl et al. 2016)",
        "repo": "github:tare/Splotch",
        "X": "raw counts",
    }
    return adata


def read_labels(path: Path) -> pd.Series:
    """Return the layer of every labelled spot from a table of zeros and ones, layers × spots."""
    table = pd.read_csv(path, sep="\t", index_col=0)
    known = table.loc[:, table.sum(axis=0) == 1]
    return known.idxmax(axis=0).map(LAYERS)


def add_image(entry: dict, name: str, folder: Path, wanted: bool) -> None:  # noqa: FBT001
    """Name the image that came with the counts."""
    path = local_image(folder, rf"{name}\.(jpe?g|tiff?)")
    if path is not None:
        entry["metadata"]["source_image_path"] = str(path)


MOB = Collection(
    name="mob",
    sections=tuple(f"Rep{i + 1}" for i in range(12)),
    group=None,
    domains=tuple(LAYERS.values()),
    build=build,
    add_image=add_image,
)
