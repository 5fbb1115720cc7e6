"""Features of protein intensities, fitted on training sections and applied to any section."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strecur._anndata import align_genes, logger, read_matrix
from strecur._arguments import filled
from strecur._genes import clean_genes
from strecur.models.features.components import fit_components

if TYPE_CHECKING:
    from anndata import AnnData

    from strecur.options import Features, Transform

MIN_SHARED_MARKERS = 0.5
MANY_MARKERS = 1000
NOT_MEASURED = "leave out the markers or spots that were not measured"


@dataclass(frozen=True)
class IntensityFeatures:
    """Transformation, limits, scale and axes of markers, fitted on the training sections only.

    Attributes
    ----------
    markers
        Markers by name.
    cofactor_M
        Intensity up to which arcsinh is about linear; not used by ``"clr"``.
    low_M, high_M
        Limits to which transformed intensities are clipped.
    mean_M, scale_M
        Mean and standard deviation of the clipped values over the training spots.
    components_MP
        Principal axes, markers × components; the identity if there are no more markers than components. All float32.
    transformation
        ``"arcsinh"`` or ``"clr"``.
    layer
        Layer of the intensities; ``None`` is ``X``.
    """

    markers: list[str]
    cofactor_M: np.ndarray
    low_M: np.ndarray
    high_M: np.ndarray
    mean_M: np.ndarray
    scale_M: np.ndarray
    components_MP: np.ndarray
    transformation: Transform
    layer: str | None

    def transform(self, adata: AnnData) -> np.ndarray:
        """Return every spot as spots × components float32; markers are matched by name, a missing one has its mean."""
        values_NM, found_M = read_intensities(adata, self.markers, self.layer)
        found_NM = transformed(values_NM, self.cofactor_M[found_M], self.transformation)
        clipped_NM = np.clip(found_NM, self.low_M[found_M], self.high_M[found_M])
        scaled_NM = (clipped_NM - self.mean_M[found_M]) / self.scale_M[found_M]
        return np.asarray(scaled_NM @ self.components_MP[found_M], dtype=np.float32)


def fit_intensity_features(adata: AnnData, options: Features, rng: int) -> IntensityFeatures:
    """Fit on all spots of ``adata``, which must hold the training sections and nothing else."""
    markers = clean_genes(adata.var_names)
    if len(set(markers)) < len(markers):
        msg = "adata.var_names are not unique; every marker needs a name of its own"
        raise ValueError(msg)
    if len(markers) > MANY_MARKERS:
        logger.warning("all %d variables are used as markers; for genes, leave out kind='intensities'", len(markers))
    values_NM, _ = read_intensities(adata, markers, options.layer)
    cofactor_M = fit_cofactors(values_NM, options)
    values_NM = transformed(values_NM, cofactor_M, options.transform)
    low_M, high_M = limits(values_NM, options.winsorise)
    values_NM = np.clip(values_NM, low_M, high_M)
    mean_M, scale_M = values_NM.mean(axis=0), values_NM.std(axis=0)
    varies_M = scale_M > 1e-6
    if not varies_M.any():
        msg = "no marker varies between the spots of the training sections; check the intensities (layer=...)"
        raise ValueError(msg)
    scale_M = np.where(varies_M, scale_M, 1)
    n_components, components_MP = filled(options.n_components), np.eye(len(markers))
    if n_components < len(markers):
        components_MP = fit_components((values_NM - mean_M) / scale_M, n_components, rng)[1]
    logger.info(
        "features are the intensities of %d markers: %s, winsorised and scaled as in the training sections",
        *(len(markers), options.transform),
    )
    return IntensityFeatures(
        markers,
        cofactor_M.astype(np.float32),
        low_M.astype(np.float32),
        high_M.astype(np.float32),
        mean_M.astype(np.float32),
        scale_M.astype(np.float32),
        components_MP.astype(np.float32),
        options.transform,
        options.layer,
    )


def read_intensities(adata: AnnData, markers: list[str], layer: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Read the intensities of markers, spots × markers that are there (float64), and the positions of the latter."""
    matrix = read_matrix(adata, layer, instead=NOT_MEASURED)
    selection, missing = align_genes(adata, markers, min_share=MIN_SHARED_MARKERS, without="get their training mean")
    values_NM = matrix @ selection / np.maximum(np.asarray(selection.sum(axis=0)).ravel(), 1)  # mean of columns
    values_NM = values_NM.toarray() if hasattr(values_NM, "toarray") else np.asarray(values_NM)
    found_M = np.flatnonzero(~np.isin(markers, missing))
    return values_NM[:, found_M].astype(np.float64), found_M


def transformed(values_NM: np.ndarray, cofactor_M: np.ndarray, transformation: Transform) -> np.ndarray:
    """Return arcsinh of intensities, or their centred log-ratio within each spot."""
    if transformation == "arcsinh":
        return np.arcsinh(values_NM / cofactor_M)
    logs_NM = np.log1p(np.maximum(values_NM, 0))
    return logs_NM - logs_NM.mean(axis=1, keepdims=True)


def fit_cofactors(values_NM: np.ndarray, options: Features) -> np.ndarray:
    """Return the cofactor of each marker: as given, or the median of its positive values (1 if there are none)."""
    if options.transform == "clr" or options.cofactor is not None:
        return np.full(values_NM.shape[1], float(options.cofactor or 1))
    positive = [values_N[values_N > 0] for values_N in values_NM.T]
    return np.array([np.median(values) if values.size else 1.0 for values in positive])


def limits(values_NM: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of each marker outside which a share of the spots lies at either end, at least one spot.

    With a share of 0, there are no limits but those of float32.
    """
    if share == 0:
        largest_M = np.full(values_NM.shape[1], np.finfo(np.float32).max)
        return -largest_M, largest_M
    n_outside = min(int(np.ceil(share * len(values_NM))), (len(values_NM) - 1) // 2)
    ordered_NM = np.sort(values_NM, axis=0)
    return ordered_NM[n_outside], ordered_NM[len(values_NM) - 1 - n_outside]
