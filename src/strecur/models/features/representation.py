"""Features of a representation in ``obsm``, such as embeddings of H&E patches."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._anndata import find_spatial_key, read_representation, read_xy, require
from strecur._geometry import COMPOSE, ELEMENTS, KEEP_ROWS
from strecur.models.features.components import fit_components

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from strecur._anndata import Grid, Sections

logger = logging.getLogger("strecur")

EMBED = "Run strecur.pp.embed_patches(adata, ..., encoder=...) first, or name another representation with use_rep."
PROBE_TOLERANCE = 0.01
SIZES = (("patch_um", 1.25, "patches of"), ("pixel_um", 1.5, "images whose pixels, as the encoder sees them, are"))
"""Sizes of patches and of their pixels that should be those of the training: key, tolerated ratio, words."""


@dataclass(frozen=True)
class RepresentationFeatures:
    """Principal components of a representation in ``obsm``, fitted on the training sections.

    Attributes
    ----------
    use_rep
        Key in ``obsm``.
    mean_F, scale_F
        Mean and standard deviation of each column over the training spots, float32.
    components_FP
        Principal axes, columns × components, float32; the largest loading of each is positive.
    has_views
        Whether ``obsm[f"{use_rep}_d4"]`` held the representation under all symmetries of the square. They are then
        wanted of every section.
    record
        What ``uns[use_rep]`` told about the encoder in training; empty for a representation made elsewhere.
    names
        Names of the columns in training; empty if they had none.
    """

    use_rep: str
    mean_F: np.ndarray
    scale_F: np.ndarray
    components_FP: np.ndarray
    has_views: bool
    record: Mapping[str, object] = field(default_factory=dict)
    names: Sequence[str] = field(default_factory=list)

    def transform(self, adata: AnnData) -> np.ndarray:
        """Project every spot, spots × components float32."""
        return self.project(self.read(adata))

    def usual(self, adata: AnnData) -> np.ndarray:
        """Project every spot, by the mean over all views where there are any."""
        return self.project(read_views(adata, self.use_rep).mean(axis=1)) if self.has_views else self.transform(adata)

    def views(self, adata: AnnData, sections: Sections, grid: Grid) -> dict[int, np.ndarray]:
        """Project every spot under each symmetry of the lattice, by element.

        Where the lattice is turned or mirrored against the image, the patches are turned to lie as the lattice does,
        so that patches and lattice go together in every section.
        """
        values_NVF = read_views(adata, self.use_rep)
        turned_N = np.array([orientation(adata, grid, sections.rows(name)) for name in sections.names])[sections.codes]
        spots, compose = np.arange(len(values_NVF)), np.array(COMPOSE)
        elements = KEEP_ROWS if grid.layout == "hex" else range(len(ELEMENTS))
        return {g: self.project(values_NVF[spots, compose[turned_N, g]]) for g in elements}

    def project(self, values_NF: np.ndarray) -> np.ndarray:
        return ((values_NF - self.mean_F) / self.scale_F) @ self.components_FP

    def read(self, adata: AnnData) -> np.ndarray:
        """Read the representation; raise if it is of another encoder or width."""
        require(adata.obsm, self.use_rep, where="obsm", hint=EMBED)
        here = read_record(adata, self.use_rep)
        known, now = self.record.get("encoder"), here.get("encoder")
        if known is not None and now is not None and known != now:
            msg = f"adata.obsm[{self.use_rep!r}] was made by the encoder {now!r}; the model was trained on {known!r}. "
            raise ValueError(msg + how_to_embed(str(known)))
        if (known is None) != (now is None):
            logger.warning(
                "the encoder of adata.obsm[%r] is %s, and that of the training %s: whether they are the same cannot be "
                "checked; adata.uns[%r]['encoder'] names it",
                *(self.use_rep, named(now), named(known), self.use_rep),
            )
        values = read_columns(adata, self.use_rep, self.names)
        if values.shape[1] != len(self.mean_F):
            msg = (
                f"adata.obsm[{self.use_rep!r}] has {values.shape[1]} columns; the model was trained on "
                f"{len(self.mean_F)} of the encoder {known or 'it was given'!r}"
            )
            raise ValueError(msg)
        if not same_probe(self.record, here):
            msg = (
                f"the encoder {now!r} of adata.obsm[{self.use_rep!r}] answers a test pattern otherwise than that of "
                "the training; embed these sections with the same weights"
            )
            raise ValueError(msg)
        for difference in differences(self.record, here):
            logger.warning("adata.obsm[%r] was made %s", self.use_rep, difference)
        return values


def how_to_embed(encoder: str) -> str:
    """Return how to get embeddings of the encoder of the training."""
    if encoder.startswith("lazyslide:"):
        name = encoder.removeprefix("lazyslide:")
        return f"Run lazyslide.tl.feature_extraction(wsi, {name!r}) and strecur.pp.read_wsidata(wsi, {name!r})."
    return f"Run strecur.pp.embed_patches(adata, ..., encoder={encoder!r}) for these sections."


def named(encoder: object) -> str:
    """Return an encoder for a message."""
    return "not named" if encoder is None else repr(encoder)


def fit_representation(
    adata: AnnData, rows: np.ndarray, use_rep: str, *, n_components: int, rng: int
) -> RepresentationFeatures:
    """Fit on the training spots (``rows``) alone, on the mean of all views where there are any."""
    values = read_representation(adata, use_rep)[rows]
    has_views = f"{use_rep}_d4" in adata.obsm
    if has_views:
        values = read_views(adata, use_rep)[rows].mean(axis=1)
    scale = values.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1.0).astype(np.float32)
    mean, components = fit_components(values / scale, n_components, rng)
    record, names = read_record(adata, use_rep), column_names(adata, use_rep)
    return RepresentationFeatures(use_rep, mean * scale, scale, components, has_views, record, names)


def column_names(adata: AnnData, use_rep: str) -> list[str]:
    """Return the names of the columns of a table in ``obsm``; none for an array, or for columns that are numbers."""
    table = adata.obsm[use_rep]
    if not isinstance(table, pd.DataFrame) or all(str(name).isdigit() for name in table.columns):
        return []
    return [str(name) for name in table.columns]


def read_columns(adata: AnnData, use_rep: str, names: Sequence[str]) -> np.ndarray:
    """Read a representation with its columns in the order of the training, if they are named.

    Parameters
    ----------
    adata
        Object with the representation in ``obsm``.
    use_rep
        Its key.
    names
        Names of the columns in training, from :func:`column_names`.
    """
    values, here = read_representation(adata, use_rep), column_names(adata, use_rep)
    if not names or not here or list(names) == here:
        return values
    if sorted(names) != sorted(here):
        unlike = sorted(set(names).symmetric_difference(here))
        msg = f"adata.obsm[{use_rep!r}] has other columns than in training; in one of both alone: {unlike[:5]}"
        raise ValueError(msg)
    return values[:, [here.index(name) for name in names]]


def read_views(adata: AnnData, use_rep: str) -> np.ndarray:
    """Read the representation under the eight symmetries, spots × 8 × columns."""
    key = f"{use_rep}_d4"
    hint = f"The model was trained on all views: run strecur.pp.embed_patches(adata, ..., views={len(ELEMENTS)})."
    require(adata.obsm, key, where="obsm", hint=hint)
    values = np.asarray(adata.obsm[key], dtype=np.float32)
    width = adata.obsm[use_rep].shape[1]
    if values.shape[1:] != (len(ELEMENTS), width):
        msg = f"adata.obsm[{key!r}] has shape {values.shape}; expected spots × {len(ELEMENTS)} × {width}"
        raise ValueError(msg)
    if not np.isfinite(values).all():
        msg = f"adata.obsm[{key!r}] holds NaN or infinite values where adata.obsm[{use_rep!r}] does not. {EMBED}"
        raise ValueError(msg)
    return values


def orientation(adata: AnnData, grid: Grid, rows: np.ndarray) -> int:
    """Return the symmetry that maps the image of a section onto its lattice; the identity without coordinates."""
    spatial_key = find_spatial_key(adata, None)
    if spatial_key not in adata.obsm:
        return 0
    xy = read_xy(adata, spatial_key)[rows, :2]
    known = np.isfinite(xy).all(axis=1)
    if known.sum() < 2:
        return 0
    sites = np.column_stack([grid.row[rows], grid.col[rows]])[known].astype(np.float64)
    xy = xy[known]
    down, right = np.linalg.lstsq(sites - sites.mean(axis=0), xy - xy.mean(axis=0), rcond=None)[0]
    transpose = abs(down[0]) + abs(right[1]) > abs(down[1]) + abs(right[0])
    flip_row, flip_col = (down[0] < 0, right[1] < 0) if transpose else (down[1] < 0, right[0] < 0)
    return ELEMENTS.index((bool(transpose), bool(flip_row), bool(flip_col)))


def read_record(adata: AnnData, use_rep: str) -> dict[str, object]:
    """Read the record of :func:`strecur.pp.embed_patches` as JSON values."""
    found = adata.uns.get(use_rep, {})
    record = {name: plain(found[name]) for name in ("encoder", "width", "stain_reference", "probe") if name in found}
    sections = found.get("sections", {})
    sizes = ("patch_px", "patch_um", "pixel_um")
    patches = {name: plain(sections[name].dropna().unique()) for name in sizes if name in sections}
    return record | patches


def plain(value: object) -> object:
    """Turn arrays into lists and numpy numbers into numbers."""
    if hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    return value.tolist() if hasattr(value, "tolist") else value


def same_probe(known: Mapping[str, object], here: Mapping[str, object]) -> bool:
    """Return whether both encoders give the same embedding of a test pattern, as far as it is recorded."""
    if "probe" not in known or "probe" not in here:
        return True
    a, b = np.asarray(known["probe"]), np.asarray(here["probe"])
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=PROBE_TOLERANCE * np.abs(a).max()))


def differences(known: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """List how size and stain of the patches differ from training."""
    found = []
    if here and known.get("stain_reference") != here.get("stain_reference"):
        found.append("with another stain_reference than in training")
    for name, tolerance, what in SIZES:
        a, b = (np.asarray(record.get(name) or [], dtype=float) for record in (known, here))
        if a.size and b.size and (b.max() > tolerance * a.max() or tolerance * b.min() < a.min()):
            found.append(f"from {what} {b.round(2).tolist()} µm; in training {a.round(2).tolist()} µm")
    return found
