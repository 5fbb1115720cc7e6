"""Objects with the keys that the tools write, holding synthetic predictions."""

from __future__ import annotations

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

matplotlib.use("Agg")

DEPTH = 6


def add_grid(adata, row, col, layout, library_key=None):
    adata.obsm["grid"] = np.column_stack([row, col]).astype(np.int32)
    params = {"layout": layout} | ({} if library_key is None else {"library_key": library_key})
    adata.uns["grid"] = {"params": params, "layout": layout}


def smooth(codes, neighbours, n_labels):
    """Replace every label by the most frequent one among the spot's neighbours."""
    return np.eye(n_labels)[codes][neighbours].sum(1).argmax(1)


def add_results(adata, truth, *, library_key=None, key="trm_domains", noise=0.5, depth=DEPTH, seed=0):
    """Write the keys of ``tl.trm_domains``: noisy labels that a majority vote cleans a little more in every step."""
    rng = np.random.default_rng(seed)
    names = sorted(adata.obs[truth].dropna().astype(str).unique())
    codes = pd.Categorical(adata.obs[truth].astype(object), categories=names).codes.copy()
    guess = rng.integers(len(names), size=adata.n_obs)
    start = np.where((rng.random(adata.n_obs) < noise) | (codes < 0), guess, codes)
    library = np.zeros(adata.n_obs) if library_key is None else adata.obs[library_key].to_numpy()
    row, col = adata.obsm["grid"].T.astype(float)
    hexagonal = adata.uns["grid"]["layout"] == "hex"
    steps = np.zeros((adata.n_obs, depth), dtype=np.int16)
    linear = start.copy()
    sections = []
    for name in pd.unique(library):
        rows = np.flatnonzero(library == name)
        place = np.column_stack([row * np.sqrt(3) if hexagonal else row, col])[rows]
        neighbours = cKDTree(place).query(place, k=min(7, len(rows)))[1].reshape(len(rows), -1)
        answer = start[rows]
        linear[rows] = smooth(answer, neighbours, len(names))
        for k in range(depth):
            steps[rows, k] = answer
            answer = smooth(answer, neighbours, len(names))
        halt = int(rng.integers(2, depth + 1))
        sections.append((str(name) if library_key else "section", len(rows), halt, 0.8, 0.6))
    changed = steps[:, 1:] != steps[:, :-1]
    settling = np.where(changed.any(1), depth - np.argmax(changed[:, ::-1], axis=1), 1)
    adata.obs[key] = pd.Categorical.from_codes(steps[:, -1], categories=names)
    adata.obs[f"{key}_linear"] = pd.Categorical.from_codes(linear, categories=names)
    adata.obs[f"{key}_settling_step"] = settling
    wrong = (steps[:, -1] != codes) & (codes >= 0)
    adata.obs[f"{key}_confidence"] = np.clip(rng.beta(8, 2, adata.n_obs) - 0.25 * wrong, 0, 1).astype(np.float32)
    adata.obsm[f"{key}_proba"] = np.eye(len(names), dtype=np.float32)[steps[:, -1]]
    adata.obsm[f"{key}_steps"] = steps
    columns = ["section", "n_spots", "halt_step", "halt_probability", "mean_confidence"]
    table = pd.DataFrame(sections, columns=columns).set_index("section")
    params = {} if library_key is None else {"library_key": library_key}
    adata.uns[key] = {"params": params, "sections": table, "model": "abc"}
    return adata


def synthetic(layout="hex", *, sections=("a", "b"), size=8, n_labels=4, missing=3, library_key="sample"):
    """Sections of ``size`` × ``size`` spots in horizontal layers; the first ``missing`` spots are not annotated."""
    row, col = (x.ravel() for x in np.mgrid[:size, :size])
    n = row.size
    if layout == "hex":
        col = 2 * col + row % 2
    obs = pd.DataFrame({"layer": [f"L{1 + r * n_labels // size}" for r in row]})
    obs.loc[: missing - 1, "layer"] = None
    adata = ad.AnnData(np.zeros((n * len(sections), 2), dtype=np.float32))
    adata.obs["layer"] = pd.Categorical(np.tile(obs["layer"], len(sections)))
    if library_key is not None:
        adata.obs[library_key] = np.repeat(sections, n)
    jitter = np.random.default_rng(0).normal(0, 0.2, (adata.n_obs, 2))
    adata.obsm["spatial"] = 100 * (np.tile(np.column_stack([col, row]), (len(sections), 1)) + jitter + 2)
    add_grid(adata, np.tile(row, len(sections)), np.tile(col, len(sections)), layout, library_key)
    return add_results(adata, "layer", library_key=library_key)


def add_image(adata, name, *, scale=0.1, diameter=60.0):
    """Add a tissue image that covers all spots of a section."""
    width, height = (adata.obsm["spatial"].max(0) * scale + 20).astype(int)
    image = np.random.default_rng(0).integers(180, 255, (height, width, 3), dtype=np.uint8)
    factors = {"tissue_hires_scalef": scale, "spot_diameter_fullres": diameter}
    adata.uns.setdefault("spatial", {})[name] = {"images": {"hires": image}, "scalefactors": factors}
    return adata


def add_expression(adata, *, n_genes=6, key="trm_expression", depth=None, seed=0):
    """Return an object with counts and the keys of ``tl.predict_expression``: predictions from good to bad.

    Gene ``G0`` rises along the section, ``G1`` and the following in waves; the further, the noisier the prediction.
    """
    rng = np.random.default_rng(seed)
    place = adata.obsm["grid"][:, 0] / adata.obsm["grid"][:, 0].max()
    wave = np.column_stack([place, *(np.sin((k + 1) * np.pi * place) for k in range(1, n_genes))])
    rate = np.exp2(2 + 2 * wave) * (1 if depth is None else np.asarray(depth)[:, None])
    genes = [f"G{k}" for k in range(n_genes)]
    full = ad.AnnData(
        rng.poisson(rate).astype(np.float32),
        obs=adata.obs,
        var=pd.DataFrame(index=genes),
        obsm=dict(adata.obsm),
        uns=dict(adata.uns),
    )
    for slot, noise in ((key, 0.3), (f"{key}_linear", 0.6)):
        error = rng.normal(0, noise * np.arange(1, n_genes + 1), rate.shape)
        full.obsm[slot] = (np.log2(rate + 1) + error).astype(np.float32)
    params = adata.uns.get("trm_domains", {}).get("params", {})
    reliability = pd.DataFrame({"pcc": np.linspace(0.9, 0.1, n_genes)}, index=genes)
    full.uns[key] = {"params": params, "var_names": genes, "target": "log2", "reliability": reliability}
    return full


@pytest.fixture
def hex_sections():
    return synthetic("hex")


@pytest.fixture
def make():
    return synthetic


@pytest.fixture
def express():
    return add_expression


@pytest.fixture
def with_image():
    return add_image


@pytest.fixture(autouse=True)
def _close_figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")
