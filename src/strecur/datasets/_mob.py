"""Twelve ST sections of mouse olfactory bulb (Ståhl et al. 2016)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur.datasets._download import DownloadError, fetch
from strecur.datasets._sections import Collection, array_section, full_resolution_image, load

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
"""The images are cropped to the array of 33 × 35 spots."""


def mob(sections: Sequence[str] | str | None = None) -> AnnData:
    """Load twelve ST sections of mouse olfactory bulb with manually annotated layers and H&E images.

    Sections are read from ``<folder>/mob/<section>.h5ad``, where the folder is ``settings.dataset_dir`` or the
    environment variable ``STRECUR_DATA``. Missing sections are downloaded, verified and stored there.

    Parameters
    ----------
    sections
        Names of sections. If ``None`` (default), all: ``"Rep1"`` to ``"Rep12"``.

    Returns
    -------
    AnnData with ``X`` raw counts (CSR float32, spots × genes) and

    ``obs``
        ``section``, ``domain`` (``ONL``, ``GL``, ``OPL``, ``MCL``, ``GCL`` from the surface down; missing for spots
        without label), ``array_row`` and ``array_col`` (square).
    ``var``
        Gene symbols; ``n_sections`` (int; number of sections that list the gene; counts are 0 in the others).
    ``obsm["spatial"]``
        (x, y) in pixels of the image, about 2,300 × 2,480.
    ``uns["spatial"][section]``
        ``scalefactors`` with ``microns_per_pixel`` (from the 200 µm between spots); if there is an image,
        ``metadata["source_image_path"]``, which :func:`strecur.pp.embed_patches` uses.
    ``uns["source"][section]``
        Origin of the data.

    Raises
    ------
    ValueError
        If a name is not one of the twelve.
    ConnectionError
        If a section is in neither folder and cannot be downloaded, or the download is wrong.

    Notes
    -----
    Ståhl et al., *Visualization and analysis of gene expression in tissue sections by spatial transcriptomics*, Science
    2016; counts, images and labels are those of the tare/Splotch repository (Äijö et al. 2019), verified by their git
    blob ids.
    """
    return load(MOB, sections, images=False)


def build_mob(name: str, folder: Path) -> AnnData:
    """Build one section from the tutorial files of Splotch: genes × spots, and layers × spots."""
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
    source = {
        "dataset": "Mouse olfactory bulb ST (Ståhl et al. 2016)",
        "repo": "github:tare/Splotch",
        "X": "raw counts",
    }
    array, position = np.rint(xy).astype(int)[:, ::-1], (xy - 1) / (N_COLUMNS - 1, N_ROWS - 1) * extent
    layer = read_layers(labels).reindex(table.index.astype(str))
    return array_section(table, array, position, labels=layer, source=source)


def read_layers(path: Path) -> pd.Series:
    """Return the layer of every labelled spot, from a table of zeros and ones, layers × spots."""
    table = pd.read_csv(path, sep="\t", index_col=0)
    known = table.loc[:, table.sum(axis=0) == 1]
    return known.idxmax(axis=0).map(LAYERS)


def add_mob_image(entry: dict, name: str, folder: Path, *, wanted: bool) -> None:
    """Record the image that was downloaded with the counts."""
    path = full_resolution_image(folder, name)
    if path is not None:
        entry["metadata"]["source_image_path"] = str(path)


MOB = Collection(
    name="mob",
    sections=tuple(f"Rep{i + 1}" for i in range(12)),
    group=None,
    domains=tuple(LAYERS.values()),
    build=build_mob,
    add_image=add_mob_image,
)
