"""Twelve Visium sections of human cortex with layer labels (Maynard et al. 2021)."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur.datasets._download import DownloadError, fetch
from strecur.datasets._sections import Collection, load, local_image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData

DONORS = {
    "Br5292": ("151507", "151508", "151509", "151510"),
    "Br5595": ("151669", "151670", "151671", "151672"),
    "Br8100": ("151673", "151674", "151675", "151676"),
}
POSITIONS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


def dlpfc(sections: Sequence[str] | str | None = None, *, images: bool = False) -> AnnData:
    """Load twelve Visium sections of human dorsolateral prefrontal cortex with manually annotated layers.

    Sections are read from ``<folder>/dlpfc/<section>.h5ad``, where the folder is ``settings.dataset_dir`` or the
    environment variable ``STRECUR_DATA``. Missing sections are downloaded, verified and stored there.

    Parameters
    ----------
    sections
        Names of sections. If ``None`` (default), all: ``"151507"`` to ``"151510"``, ``"151669"`` to ``"151672"`` and
        ``"151673"`` to ``"151676"``.
    images
        Load the H&E image of every section (2,000 pixels wide, or 600 if the folder has only that one); missing images
        are downloaded.

    Returns
    -------
    AnnData with ``X`` raw counts (CSR float32, spots × genes) and

    ``obs``
        ``section``, ``donor``, ``domain`` (``L1`` to ``L6``, ``WM``; missing for unlabelled spots), ``array_row`` and
        ``array_col`` (hex), ``sum_umi`` (counts over all genes, for ``size_factor_key``).
    ``var``
        Ensembl ids with ``symbol``; ``n_sections`` (int; number of sections that list the gene; counts are 0 in the
        others).
    ``obsm["spatial"]``
        (x, y) in full-resolution pixels.
    ``uns["spatial"][section]``
        ``scalefactors``; with ``images``, ``images["hires"]`` (or ``"lowres"``); paths in ``metadata``.
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
    Maynard et al., *Transcriptome-scale spatial gene expression in the human dorsolateral prefrontal cortex*, Nature
    Neuroscience 2021. Labels, positions and images are those of the LieberInstitute/HumanPilot repository, verified by
    their git blob ids. The count matrices come from the authors' storage, which publishes no checksums; the numbers of
    spots and detected genes and the medians of counts and genes are compared with those in the repository.
    """
    return load(DLPFC, sections, images=images)


def build_dlpfc(name: str, folder: Path) -> AnnData:
    """Build one section from the files of the authors."""
    import scanpy as sc

    raw = folder / "raw" / name
    matrix = fetch("spatial-dlpfc", f"h5/{name}_filtered_feature_bc_matrix.h5", raw / "filtered_feature_bc_matrix.h5")
    stated, positions, scales = (
        fetch("humanpilot", f"10X/{name}/{file}", raw / file)
        for file in ("metrics_summary_csv.csv", "tissue_positions_list.txt", "scalefactors_json.json")
    )
    labels = fetch("humanpilot", "10X/barcode_level_layer_map.tsv", folder / "raw" / "barcode_level_layer_map.tsv")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Variable names are not unique")  # symbols, replaced by ids below
            adata = sc.read_10x_h5(matrix)
        check_summary(adata, pd.read_csv(stated, thousands=",").iloc[0])
    except (OSError, KeyError, ValueError) as error:
        matrix.unlink()
        msg = f"the counts of {name} are not those of the authors and were removed: {error}"
        raise DownloadError(msg) from error
    adata.var = pd.DataFrame({"symbol": adata.var_names.to_numpy()}, index=pd.Index(adata.var["gene_ids"], name=None))
    place = pd.read_csv(positions, names=list(POSITIONS), index_col=0).loc[adata.obs_names]
    adata.obs["array_row"], adata.obs["array_col"] = place["array_row"], place["array_col"]
    adata.obsm["spatial"] = place[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy(dtype=float)
    table = pd.read_csv(labels, sep="\t", names=["barcode", "section", "layer"], dtype=str)
    # The same barcodes occur in every section.
    layer = table[table["section"] == name].set_index("barcode")["layer"]
    adata.obs["domain"] = pd.Categorical(layer.reindex(adata.obs_names))
    adata.obs["sum_umi"] = np.asarray(adata.X.sum(axis=1)).ravel()
    adata.uns["scalefactors"] = json.loads(scales.read_text(encoding="utf-8"))
    adata.uns["source"] = {
        "dataset": "DLPFC Visium (Maynard et al. 2021)",
        "labels": "github:LieberInstitute/HumanPilot 10X/barcode_level_layer_map.tsv",
        "X": "raw counts of all genes, filtered_feature_bc_matrix.h5 of the authors' storage",
    }
    return adata


def check_summary(adata: AnnData, stated: pd.Series) -> None:
    """Compare a count matrix with its Space Ranger summary."""
    counts = np.asarray(adata.X.sum(axis=1)).ravel()
    genes = adata.X.getnnz(axis=1)
    found = {
        "Estimated Number of Spots": adata.n_obs,
        "Median UMI Counts per Spot": np.median(counts),
        "Median Genes per Spot": np.median(genes),
        "Total Genes Detected": int((adata.X.getnnz(axis=0) > 0).sum()),
    }
    # Medians of an even number of spots are stated without their fraction.
    differ = {key: (value, stated[key]) for key, value in found.items() if abs(value - float(stated[key])) >= 1}
    if differ:
        differing = (f"{key} is {value:g}, the authors report {expected}" for key, (value, expected) in differ.items())
        msg = "; ".join(differing)
        raise ValueError(msg)


def add_dlpfc_image(entry: dict, name: str, folder: Path, *, wanted: bool) -> None:
    """Record the images in the folder; if wanted, load the largest, downloading one if there is none."""
    names = {size: f"{name}_tissue_{size}_image.png" for size in ("hires", "lowres")}
    found = {size: path for size, file in names.items() if (path := local_image(folder, file))}
    if wanted and not found:
        target = folder / "images" / names["hires"]
        found["hires"] = fetch("humanpilot", f"10X/{name}/tissue_hires_image.png", target)
    entry["metadata"] |= {f"{size}_image_path": str(path) for size, path in found.items()}
    if wanted:
        from PIL import Image

        size, path = next(iter(found.items()))
        with Image.open(path) as image:
            entry["images"] = {size: np.asarray(image.convert("RGB"))}


DLPFC = Collection(
    name="dlpfc",
    sections=tuple(section for own in DONORS.values() for section in own),
    group=("donor", {section: donor for donor, own in DONORS.items() for section in own}),
    domains=("L1", "L2", "L3", "L4", "L5", "L6", "WM"),
    build=build_dlpfc,
    add_image=add_dlpfc_image,
)
