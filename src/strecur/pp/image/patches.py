"""Embed the H&E patch around every spot."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur import _anndata
from strecur._geometry import transform_patch
from strecur._settings import settings
from strecur.pp.image.cutting import (
    PatchPlan,
    cut,
    find_mpp,
    mpp_of,
    patch_side,
    place,
    read_coordinates,
    tissue_fraction,
)
from strecur.pp.image.encoders import Encoder, as_encoder, probe
from strecur.pp.image.options import Patches, as_patches
from strecur.pp.image.sources import check_visium, find_images, read_mpp
from strecur.pp.image.stain import StainNormalizer, read_stain_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    mpp: float | Mapping[str, float] | None = None,
    views: int = 1,
    patches: Patches | Mapping[str, object] | None = None,
    spatial_key: str | None = None,
    key_added: str = "X_patch",
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Embed the H&E patch around every spot.

    A square patch is cut around each spot, resized to the input of the encoder and encoded. Of a pyramidal TIFF, it is
    read from the level that is just fine enough. Pixels beyond the border of the image are white. A spot
    without coordinates, or with its centre outside the image, has NaN. If called again with the same settings, only
    spots with NaN are computed, so that sections can be added one by one and an interrupted run continues where it
    stopped. Embeddings from other software do not need this function: store them in ``obsm`` and pass their key as
    ``use_rep``. Device and progress bar are those of :data:`strecur.settings`.

    Parameters
    ----------
    adata
        Spots of one or several sections.
    image
        Image of each section: a mapping from section to image, or one image if there is one section. An image is a
        path (TIFF, pyramidal or not, is read by region; JPEG and PNG are decoded whole), an array rows × columns ×
        channels (of numpy, dask or zarr), a DataArray, an ``ImageContainer`` of squidpy, or the name of an image
        element of the SpatialData object, whose transformation may turn, flip and stretch it. Sections that are not in
        the mapping are not changed. If ``None`` (default), the images of ``uns["spatial"][section]``: the file
        ``metadata["source_image_path"]`` if it exists and has the full resolution, else the largest of ``images``.
    encoder
        Name of an encoder (see :func:`~strecur.pp.load_encoder`), an :class:`~strecur.pp.Encoder`, or a function from
        patches (patches × 224 × 224 × 3, uint8) to features. ``"texture"`` (default) and ``"efficientnet-lite0"`` need
        no download; weights from a file are loaded with ``load_encoder(name, checkpoint_path=...)``.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`; without either, all spots are one section.
    mpp
        Micrometres per unit of ``obsm[spatial_key]``: one number, or a mapping from section to number. If ``None``
        (default), from ``uns["spatial"]``: ``microns_per_pixel``, or for Visium the 100 µm between neighbouring spots;
        else what the file of the image says. A file that says otherwise gives a warning.
    views
        1, or 8 to also encode all reflections and quarter turns of each patch.
    patches
        Size and staining of the patches: a :class:`~strecur.pp.Patches`, or a mapping of its options, such as
        ``{"um": 224}``. By default as large as the encoder expects (112 µm for most), without stain normalisation.
    spatial_key
        Key of ``obsm`` with the spot coordinates (x, y). If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`, else ``"spatial"``.
    key_added
        Name of all results.
    copy
        Return a changed copy instead of changing ``adata``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``, or the copy. Writes, with ``k = key_added``:

    - ``obsm[k]``: float32, spots × features;
    - ``obsm[f"{k}_d4"]`` if ``views=8``: float32, spots × 8 × features, in the order of ``strecur._geometry.NAMES``;
      view 0 is the patch itself;
    - ``obs[f"{k}_tissue_fraction"]``: float32, share of tissue in the patch (Otsu on saturation);
    - ``uns[k]``: ``encoder``, ``width``, ``views``, ``stain_reference`` (if given), ``feature_names`` (of
      ``"texture"``), ``probe`` (features of a test pattern, which identify the encoder beyond its name) and
      ``sections``, a table with the image, the number of spots, of spots outside the image and of spots without
      coordinates, the side of a patch (``patch_px``, ``patch_um``), ``mpp``, image pixels per coordinate unit
      (``scale``), micrometres per pixel that the encoder saw (``pixel_um``; not below those of the image) and a
      ``fingerprint`` of image and positions.

    Raises
    ------
    KeyError
        If a key, a section or an image is missing.
    FileNotFoundError, OSError
        If an image does not exist or is damaged.
    TypeError
        If ``encoder`` or ``patches`` is of another type, or ``patches`` has an unknown option.
    ValueError
        If the scale is unknown, an image has channels that are not colours, or another resolution than the scale
        factors in ``uns["spatial"]`` tell, more than 20 % of the spots of a section lie outside its image, or the
        encoder returns NaN. An error leaves ``adata`` unchanged.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):  # any function of patches is an encoder
    ...     return patches.mean(axis=(1, 2))
    >>> with st.settings.override(progress=False):
    ...     st.pp.embed_patches(adata, encoder=colour, library_key="section", mpp=1.0)
    >>> adata.obsm["X_patch"].shape[1]
    3
    """
    if views not in (1, 8):
        msg = f"views={views!r} must be 1 or 8"
        raise ValueError(msg)
    options = as_patches(patches)
    table = _anndata.open_table(adata, table_key=table_key, copy=copy)
    key = _anndata.check_key(key_added)
    _anndata.check_free(table, key, default="X_patch")
    sections = _anndata.read_sections(table, _anndata.find_library_key(table, library_key))
    spatial_key = _anndata.find_spatial_key(table, spatial_key)
    coordinates = read_coordinates(adata, table, spatial_key)
    sources = find_images(adata, table, image, sections, image_scale=options.image_scale, spatial_key=spatial_key)
    model = as_encoder(encoder)
    jobs = []
    for name, source in sources.items():
        rows = sections.rows(name)
        check_visium(table, name, rows, coordinates[rows], alone=len(sections.names) == 1)
        known = read_mpp(table, name, rows, coordinates[rows], alone=len(sections.names) == 1)
        unit = find_mpp(mpp_of(mpp, name), source, known, name)
        side = patch_side(options, model.um, unit, name)
        jobs.append(place(name, rows, source, coordinates[rows], patch_px=side, mpp=unit))

    reference = None if options.stain_reference is None else read_stain_reference(options.stain_reference)
    record = _record(model, views, reference)
    result, earlier = _resume(table, key, record, sections, jobs)
    if missing := sorted(set(sections.names) - set(sources) - set(earlier.index)):
        logger.warning("sections without image have NaN in obsm[%r]: %s", key, missing)
    try:
        _run(jobs, result, model, reference=reference, batch_size=options.batch_size)
    except KeyboardInterrupt:
        logger.warning("interrupted; the finished patches are kept in obsm[%r]; run again to continue", key)
        _write(table, key, result, record, _section_table(jobs, earlier, model.size))
        raise
    _write(table, key, result, record, _section_table(jobs, earlier, model.size))
    return table if copy else None


def _run(jobs: list[PatchPlan], result: Result, model: Encoder, *, reference: Mapping | None, batch_size: int) -> None:
    from tqdm.auto import tqdm

    total = sum(len(_todo(job, result)) for job in jobs)
    with tqdm(total=total, desc="patches", disable=not settings.progress) as bar:
        for job in jobs:
            _embed_section(job, result, model, reference=reference, batch_size=batch_size, update=bar.update)


def _todo(job: PatchPlan, result: Result) -> np.ndarray:
    """Return the spots of the section that are inside the image and have no embedding yet."""
    return np.flatnonzero(job.inside & np.isnan(result.views[job.rows, 0]).any(axis=1))


def _embed_section(
    job: PatchPlan,
    result: Result,
    model: Encoder,
    *,
    reference: Mapping | None,
    batch_size: int,
    update: Callable[[int], object],
) -> None:
    todo = _todo(job, result)
    if not len(todo):
        return
    views = result.views.shape[1]
    to_encode = 1 if model.orientation_free else views
    with closing(job.source.open()) as opened:
        thumbnail, image = opened.thumbnail(), opened.loaded()
        normalize = None
        if reference is not None:
            normalize = StainNormalizer(thumbnail, reference, label=f"the image of section {job.name!r}")
        result.tissue[job.rows[todo]] = tissue_fraction(thumbnail, image.shape, job.centres[todo], job.side)
        if np.ptp(thumbnail, axis=-1).max() < 10:
            logger.warning("section %r: the image %s has no colour; is it H&E?", job.name, job.source.label)
        step = max(1, batch_size // to_encode)
        for chunk in (todo[i : i + step] for i in range(0, len(todo), step)):
            patches = np.stack(list(cut(image, job.centres[chunk], job.side, model.size, job.source.turn)))
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


def _section_table(jobs: list[PatchPlan], earlier: pd.DataFrame, size: int) -> pd.DataFrame:
    """Return a table of the sections of this call and of earlier ones, for patches of ``size`` pixels."""
    rows = pd.DataFrame([_section_row(job, size) for job in jobs], index=[job.name for job in jobs])
    return pd.concat([earlier.drop(index=rows.index, errors="ignore"), rows]).sort_index()


def _section_row(job: PatchPlan, size: int) -> dict[str, object]:
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
        "pixel_um": mpp * max(job.patch_px / size, 1 / job.source.scale),
        "fingerprint": job.fingerprint,
    }


def _resume(
    table: AnnData, key: str, record: Mapping, sections: _anndata.Sections, jobs: list[PatchPlan]
) -> tuple[Result, pd.DataFrame]:
    """Reuse embeddings of an earlier call with the same settings; return them and the table of their sections."""
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
    """Name the settings that differ; encoders of the same name may have other features of the test pattern."""
    names = sorted({*before, *now} - {"probe"})
    changed = [name for name in names if _plain(before.get(name)) != _plain(now.get(name))]
    old, new = np.asarray(before.get("probe", ())), now["probe"]
    if old.shape != new.shape or not np.allclose(old, new, rtol=0, atol=0.01 * np.abs(new).max()):
        changed.append("probe")
    return changed


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=lambda array: np.asarray(array).tolist())


def _write(table: AnnData, key: str, result: Result, record: Mapping, sections: pd.DataFrame) -> None:
    obsm = {key: np.ascontiguousarray(result.views[:, 0])}
    if result.views.shape[1] == 8:
        obsm[f"{key}_d4"] = result.views
    else:
        table.obsm.pop(f"{key}_d4", None)  # of an earlier call, with other settings
    obs = {f"{key}_tissue_fraction": result.tissue}
    _anndata.write(table, obs=obs, obsm=obsm, uns={key: {**record, "sections": sections}})
