"""Baselines of the benchmarks of expression: smoothed predictions, and retrieval as in BLEEP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sklearn.neighbors import NearestNeighbors

from strecur._anndata import read_section_data
from strecur.models.features.neighbourhood import neighbourhood_means

if TYPE_CHECKING:
    import anndata as ad

    from strecur._anndata import SectionData
    from strecur.models import LinearExpressionModel


def read_features(adata: ad.AnnData, model: LinearExpressionModel) -> tuple[SectionData, np.ndarray]:
    """Read the sections of an object, and the features of every spot that the linear model sees."""
    data = read_section_data(adata, None, use_rep=model.features.use_rep)
    return data, model.features.inputs(data).averaged_NF


def smooth(predicted_NG: np.ndarray, positions_N2: np.ndarray, n_neighbors: int = 9) -> np.ndarray:
    """Average a prediction over the nearest spots of one section, the spot itself included."""
    return neighbourhood_means(predicted_NG, positions_N2, (n_neighbors,))


def retrieve(
    reference_NF: np.ndarray, target_NG: np.ndarray, features_MF: np.ndarray, n_neighbors: int = 50
) -> np.ndarray:
    """Average the expression of the reference spots with the most similar features (retrieval of BLEEP).

    Parameters
    ----------
    reference_NF
        Features of the reference spots.
    target_NG
        Their expression.
    features_MF
        Features of the spots to predict.
    n_neighbors
        Number of reference spots to average over.

    Returns
    -------
    Expression of the spots to predict, float32.
    """
    index = NearestNeighbors(n_neighbors=min(n_neighbors, len(reference_NF)), metric="cosine").fit(reference_NF)
    found_MK = index.kneighbors(features_MF, return_distance=False)
    return np.stack([target_NG[found_K].mean(axis=0) for found_K in found_MK]).astype(np.float32)
