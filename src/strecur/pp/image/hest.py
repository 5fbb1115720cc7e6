"""Sections and patches of HEST: a folder of ``st/*.h5ad`` and ``patches/*.h5``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from strecur._anndata import check_key, logger
from strecur._arguments import as_names, check_whole, meant
from strecur.pp.image.encoders import as_encoder, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from anndata import AnnData

    from strecur.pp.image.encoders import Encoder

MPP = 0.5
"""Micrometres per pixel of the patches of HEST, whatever the image they were cut from."""

IMAGES, BARCODES = ("img", "imgs"), ("barcode", "barcodes")
"""Names that the data sets of a file of patches have in different versions."""

OF_SPOTS = ("array_row", "array_col")
OF_SECTIONS = ("patient", "organ", "st_technology")


def read_hest(
    folder: str | Path,
    sections: str | Sequence[str] | None = None,
    *,
    encoder: str | Encoder | Callable | None = None,
    library_key: str = "section",
    use_rep: str = "X_patch",
    batch_size: int = 16,
) -> AnnData:
    """Read sections of HEST from a folder, as it is downloaded, and embed their patches.

    HEST has the counts of a section in ``st/<id>.h5ad`` and a patch of 112 µm (224 pixels) for each spot on tissue in
    ``patches/<id>.h5``, matched by barcode. Patches are read batch by batch. What else a folder may hold
    (``metadata/<id>.json``, ``wsis/<id>.tif``) is used if it is there.

    Parameters
    ----------
    folder
        Folder with ``st`` and, for an encoder, ``patches``.
    sections
        Ids of sections, such as ``["SPA148"]``. If ``None`` (default), all that are there.
    encoder
        Encoder of the patches, as in :func:`~strecur.pp.embed_patches`. If ``None`` (default), they are not read.
    library_key
        Column of ``obs`` to which the id of the section is written.
    use_rep
        Key of ``obsm`` for the features of the patches.
    batch_size
        Number of patches to encode at a time.

    Returns
    -------
    AnnData of the genes that all sections have, with

    - ``X``: the counts as they are;
    - ``obs``: ``library_key`` (categorical); ``array_row`` and ``array_col`` if the sections have them; of the
      metadata ``patient``, ``organ`` and ``st_technology`` (categorical);
    - ``obsm["spatial"]``: float64, centres (x, y) of the spots in pixels of the full-resolution image;
    - ``obsm[use_rep]``: float32, spots × features, NaN for spots without a patch;
    - ``uns[use_rep]``: the encoder and the size of the patches, which models compare with their training;
    - ``uns["spatial"][section]``: the downscaled image and the scale factors, as scanpy and squidpy know them.

    Continue with :func:`~strecur.pp.to_grid`.

    Raises
    ------
    FileNotFoundError
        If the folder, a section or its patches do not exist.
    OSError
        If a file is damaged.
    ValueError
        If sections share no gene, a file of patches has no images or barcodes, or barcodes are repeated or unknown.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.pp.read_hest("hest", ["SPA148", "SPA123"], encoder="efficientnet-lite0")  # doctest: +SKIP
    >>> st.pp.to_grid(adata, library_key="section")  # doctest: +SKIP
    >>> model = st.tl.train_expression(adata, architecture="hist")  # doctest: +SKIP
    """
    check_key(library_key, "library_key")
    check_key(use_rep, "use_rep")
    check_whole("batch_size", batch_size)
    folder = Path(folder)
    names = _find_sections(folder, sections)
    model = None if encoder is None else as_encoder(encoder)
    parts, spatial, tables = {}, {}, {}
    for name in names:
        part, about = _read_section(folder, name), _read_metadata(folder, name)
        parts[name] = _with_metadata(part, about)
        spatial[name] = _library(part, folder, name, about)
        if model is not None:
            features, table = _embed(folder / "patches" / f"{name}.h5", part.obs_names, model, batch_size)
            parts[name].obsm[use_rep], tables[name] = features, table
    adata = ad.concat(parts, label=library_key, index_unique="_", join="inner", merge="same")
    if adata.n_vars == 0:
        msg = f"the sections {names} of {folder} have no gene in common; read sections of one species and panel"
        raise ValueError(msg)
    _order_categories(adata, names, library_key)
    adata.uns["spatial"] = spatial
    if model is not None:
        record = {"encoder": model.name, "width": model.width, "views": 1, "probe": probe(model)}
        adata.uns[use_rep] = {**record, "sections": pd.DataFrame(list(tables.values()), index=list(tables))}
    return adata


def _find_sections(folder: Path, sections: str | Sequence[str] | None) -> list[str]:
    """Return the ids to read after checking that their counts exist."""
    there = sorted(path.stem for path in (folder / "st").glob("*.h5ad"))
    if not there:
        msg = f"there is no file st/*.h5ad in {folder}; pass the folder that holds 'st' and 'patches' of HEST"
        raise FileNotFoundError(msg)
    names = there if sections is None else as_names("sections", sections)
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        fault = f"{unknown} are not in {folder / 'st'}{meant(unknown[0], there)}" if unknown else "sections is empty"
        msg = f"{fault}; there are {there}"
        raise FileNotFoundError(msg)
    return names


def _read_section(folder: Path, name: str) -> AnnData:
    """Read counts, places and, if there are any, rows and columns of the spots of a section."""
    path = folder / "st" / f"{name}.h5ad"
    try:
        read = ad.read_h5ad(path)
    except OSError as error:
        msg = f"{path} is damaged ({error}); download it again"
        raise OSError(msg) from error
    if "spatial" not in read.obsm:
        msg = f"{path} has no obsm['spatial'], the centres of the spots; it is not a section of HEST"
        raise ValueError(msg)
    read.var_names_make_unique()
    obs = read.obs[[column for column in OF_SPOTS if column in read.obs]].copy()
    obs.index = obs.index.astype(str)
    places = np.asarray(read.obsm["spatial"], dtype=float)
    return ad.AnnData(read.X, obs=obs, var=read.var[[]], obsm={"spatial": places}, uns=dict(read.uns))


def _read_metadata(folder: Path, name: str) -> Mapping[str, Any]:
    """Return the metadata of a section; empty if there is no file."""
    path = folder / "metadata" / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _with_metadata(part: AnnData, about: Mapping[str, Any]) -> AnnData:
    """Return a section with what its metadata say in columns, and nothing in ``uns``."""
    part = ad.AnnData(part.X, obs=part.obs.copy(), var=part.var, obsm=dict(part.obsm))
    for column in OF_SECTIONS:
        if about.get(column) is not None:
            part.obs[column] = str(about[column])
    return part


def _order_categories(adata: AnnData, names: Sequence[str], library_key: str) -> None:
    """Make columns of text categorical, with the sections in the order in which they were read."""
    adata.obs[library_key] = pd.Categorical(adata.obs[library_key], names)
    for column in OF_SECTIONS:
        if column in adata.obs:
            adata.obs[column] = pd.Categorical(adata.obs[column])


def _library(part: AnnData, folder: Path, name: str, about: Mapping[str, Any]) -> dict[str, dict]:
    """Return the entry of ``uns["spatial"]``, with the names that scanpy gives to the image and its scale."""
    found: Mapping[str, Any] = next(iter(part.uns.get("spatial", {}).values()), {})
    numbers = {key: np.asarray(value) for key, value in found.get("scalefactors", {}).items()}
    factors = {key: float(value) for key, value in numbers.items() if value.ndim == 0 and value.dtype.kind in "fiu"}
    scale = factors.pop("tissue_downscaled_fullres_scalef", None)
    if scale is not None:
        factors["tissue_hires_scalef"] = scale
    if about.get("pixel_size_um_estimated") is not None:
        factors["microns_per_pixel"] = float(about["pixel_size_um_estimated"])
    image = found.get("images", {}).get("downscaled_fullres")
    slide = folder / "wsis" / f"{name}.tif"
    return {
        "images": {} if image is None else {"hires": np.asarray(image)},
        "scalefactors": factors,
        "metadata": {"source_image_path": str(slide.resolve())} if slide.is_file() else {},
    }


def _embed(path: Path, spots: pd.Index, model: Encoder, batch_size: int) -> tuple[np.ndarray, dict[str, object]]:
    """Return the features of the patch of every spot, and the row of the section in the record of the encoder."""
    import h5py

    if not path.is_file():
        msg = f"{path} does not exist; download the patches of the section, or read it with encoder=None"
        raise FileNotFoundError(msg)
    features = np.full((len(spots), model.width), np.nan, dtype=np.float32)
    with h5py.File(path) as file:
        images, barcodes = _data_set(file, IMAGES, path), _read_barcodes(_data_set(file, BARCODES, path), path)
        if len(images) != len(barcodes):
            msg = f"{path} has {len(images)} patches and {len(barcodes)} barcodes; download it again"
            raise ValueError(msg)
        spot_P = spots.get_indexer(barcodes)
        known = np.flatnonzero(spot_P >= 0)
        if not len(known):
            msg = f"no barcode of {path}, such as {barcodes[0]!r}, is a spot of the section, such as {spots[0]!r}"
            raise ValueError(msg)
        for rows, patches in _batches(images, known, model.size, batch_size):
            features[spot_P[rows]] = model(patches)
        side = int(images.shape[1])
    n_missing = int(np.isnan(features[:, 0]).sum())
    if n_missing:
        logger.info("%d of %d spots of %s have no patch", n_missing, len(spots), path.stem)
    sizes = {"patch_px": float(side), "patch_um": side * MPP, "mpp": MPP, "pixel_um": MPP * side / model.size}
    return features, {"image": str(path), "n_spots": len(spots), "n_missing": n_missing, **sizes}


def _data_set(file: Any, names: Sequence[str], path: Path) -> Any:
    """Return the data set that has one of these names."""
    found = next((name for name in names if name in file), None)
    if found is None:
        msg = f"{path} has none of {list(names)}, but {list(file)}; pass the patches of HEST"
        raise ValueError(msg)
    return file[found]


def _read_barcodes(data: Any, path: Path) -> list[str]:
    """Return barcodes as text, whether they are stored as bytes, as text, or in a column."""
    barcodes = [code.decode() if isinstance(code, bytes) else str(code) for code in np.ravel(data[:])]
    repeated = pd.Index(barcodes)[pd.Index(barcodes).duplicated()]
    if len(repeated):
        msg = f"{path} has several patches of the spots {list(repeated[:5])}; each spot needs one"
        raise ValueError(msg)
    return barcodes


def _batches(images: Any, rows: np.ndarray, size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the patches of rising rows, resized to the input of the encoder."""
    from PIL import Image

    for start in range(0, len(rows), batch_size):
        chunk = rows[start : start + batch_size]
        patches = np.asarray(images[chunk], dtype=np.uint8)
        if patches.shape[1:3] != (size, size):
            resized = (Image.fromarray(patch).resize((size, size), Image.Resampling.LANCZOS) for patch in patches)
            patches = np.stack([np.asarray(patch) for patch in resized])
        yield chunk, patches
