"""Square sections whose expression follows an embedding of pretended patches, and how models of them are trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import calls
import numpy as np
import pandas as pd
from scipy import sparse

import strecur as st
from strecur._geometry import ELEMENTS
from strecur.nn import WindowedConfig

if TYPE_CHECKING:
    from strecur.models import ExpressionModel

SIDE, WIDTH, N_GENES = 10, 12, 8
SMALL = {
    "backbone": WindowedConfig(width=32, n_heads=2, window=4, n_global=1),
    "n_components": 6,
    "neighbours": (9,),
    "n_networks": 1,
}
RUN = {"library_key": "section"}
GENES = [f"g{i}" for i in range(N_GENES)]


def make_section(name: str, seed: int, *, n_genes: int = N_GENES) -> ad.AnnData:
    """Square section whose expression follows the embedding of a spot and of its neighbours.

    Six columns of the embedding are the same for all views of a patch, six turn with it.
    """
    rng = np.random.default_rng(seed)
    row, col = (axis.ravel() for axis in np.indices((SIDE, SIDE)))
    fields = rng.normal(size=(3, SIDE, SIDE))
    around = np.mean([np.roll(fields, shift, (1, 2)) for shift in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))], axis=0)
    fixed = np.random.default_rng(0)  # the same biology in every section
    mixing, loading = fixed.normal(size=(3, 6)), fixed.normal(size=(6, n_genes))
    logits = np.vstack([fields, 2 * around]).reshape(6, -1).T @ loading
    depth = 30 * np.exp(0.3 * rng.normal(size=(len(row), 1)))
    counts = rng.poisson(depth * np.exp(0.4 * logits - 0.5)).astype(np.float32)
    same = fields.reshape(3, -1).T @ mixing
    arrow = rng.normal(size=(len(row), 3, 2))
    views = np.stack([np.hstack([same, turn_arrows(arrow, g).reshape(len(row), -1)]) for g in range(8)], axis=1)
    adata = ad.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame({"section": name}, index=[f"{name}_{i}" for i in range(len(row))]),
        var=pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]),
        obsm={
            "spatial": np.column_stack([col, row]) * 100.0,
            "X_patch": views[:, 0].astype(np.float32),
            "X_patch_d4": views.astype(np.float32),
        },
    )
    adata.obs["array_row"], adata.obs["array_col"] = row, col
    return adata


def turn_arrows(arrows: np.ndarray, g: int) -> np.ndarray:
    """Turn vectors (down, right) as the picture they lie in."""
    transpose, flip_row, flip_col = ELEMENTS[g]
    arrows = arrows[..., ::-1] if transpose else arrows
    return arrows * np.where([flip_row, flip_col], -1, 1)


def join(*parts: ad.AnnData) -> ad.AnnData:
    record = {"encoder": "toy", "width": WIDTH, "views": 8, "probe": np.arange(WIDTH, dtype=np.float32)}
    adata = ad.concat(parts, join="inner")
    adata.uns["X_patch"] = record
    adata.obs["section"] = adata.obs["section"].astype("category")
    st.pp.to_grid(adata, library_key="section")
    return adata


def train(adata: ad.AnnData, **options: object) -> ExpressionModel:
    return calls.train_expression(adata, **{**SMALL, **RUN, "genes": GENES, "max_epochs": 2, **options})


def apply(adata: ad.AnnData, model: ExpressionModel, **options: object) -> ad.AnnData:
    return calls.predict_expression(adata, model, **{**RUN, "copy": True, **options})
