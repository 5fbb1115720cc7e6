from __future__ import annotations

import numpy as np


def fit_components(values: np.ndarray, n_components: int, rng: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit principal components.

    Parameters
    ----------
    values
        Spots × variables.
    n_components
        Number of components; there are fewer of them than spots and than variables.
    rng
        Seed of the randomised solver.

    Returns
    -------
    Mean of each variable, and axes (variables × components) of which the largest loading is positive; both float32.
    """
    from sklearn.decomposition import PCA

    n_components = min(n_components, *(np.array(values.shape) - 1))
    if n_components < 1:
        msg = f"too little data for principal components: {values.shape[0]} spots × {values.shape[1]} variables"
        raise ValueError(msg)
    pca = PCA(n_components, svd_solver="randomized", n_oversamples=20, iterated_power=7, random_state=rng).fit(values)
    axes = pca.components_.T
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    # in the order of a saved model: products of other orders differ in the last bit
    return pca.mean_.astype(np.float32), np.ascontiguousarray(axes * signs, dtype=np.float32)
