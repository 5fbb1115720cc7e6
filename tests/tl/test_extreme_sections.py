"""Sections of unusual shape and size, from their array coordinates to their domains."""

from __future__ import annotations

import anndata as ad
import calls
import numpy as np
import pandas as pd
import pytest
import torch

import strecur as st
from strecur import Inference as Steps
from strecur.engine import Section, fit, make_fabric, predict
from strecur.nn import DenseConfig, HierarchicalConfig, Lattice, WindowedConfig

from .conftest import QUICK

BACKBONES = {
    "windowed": WindowedConfig(width=32, n_heads=2, window=4, n_global=1),
    "hierarchical": HierarchicalConfig(width=32, n_heads=2, window=4, n_levels=2, n_global=1),
    "dense": DenseConfig(width=32, n_heads=2),
}
FAR = 10**6
SHAPES = {
    "one spot": ([5], [7]),
    "two spots far apart": ([0, FAR], [0, FAR]),
    "one row": ([3] * 40, range(40)),
    "beyond int16": (np.arange(40) // 8 + 40_000, np.arange(40) % 8 + 70_000),
    "negative": (np.arange(40) // 8 - 40_000, np.arange(40) % 8 - 5),
    "large": (np.arange(240) // 20, np.arange(240) % 20),
}


def make(name: str, row: object, col: object) -> ad.AnnData:
    """Section in whose features the domains are: bands of rows and columns."""
    row, col = np.array(row), np.array(col)
    rng = np.random.default_rng(len(row))
    domain = (row // 3 + col // 3) % 2
    features = rng.normal(size=(len(row), 4)).astype(np.float32)
    features[:, 0] += 4 * domain
    obs = {"section": name, "array_row": row, "array_col": col, "domain": np.array(["even", "odd"])[domain]}
    return ad.AnnData(obs=pd.DataFrame(obs, index=[f"{name} {i}" for i in range(len(row))]), obsm={"X_own": features})


def join(*parts: ad.AnnData) -> ad.AnnData:
    adata = ad.concat(parts)
    adata.obs["section"] = adata.obs["section"].astype("category")
    st.pp.to_grid(adata, library_key="section")
    return adata


def train(adata: ad.AnnData, backbone: object, **options: object) -> st.models.DomainModel:
    settings = QUICK | {
        "neighbours": (),
        "standardise": False,
        "validation": None,
        "max_epochs": 2,
        "learning_rate": 2e-3,
    }
    return calls.train_domains(
        adata, "domain", library_key="section", use_rep="X_own", backbone=backbone, **settings | options
    )


def apply(adata: ad.AnnData, model: object) -> ad.AnnData:
    options = {"library_key": "section"}
    return calls.trm_domains(adata, model, copy=True, **options)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_shape_is_trained_on_and_labelled(backbone):
    """In one object of sections of 1 to 240 spots, none of which changes what another gets."""
    adata = join(*(make(name, *shape) for name, shape in SHAPES.items()))
    model = train(adata, BACKBONES[backbone])
    found = apply(adata, model)
    assert np.isfinite(found.obsm["trm_domains_proba"]).all()
    assert (found.obs["trm_domains"] == found.obs["domain"]).mean() > 0.8
    for name in SHAPES:
        alone = apply(adata[adata.obs["section"] == name].copy(), model)
        together = found[found.obs["section"] == name]
        np.testing.assert_allclose(alone.obsm["trm_domains_proba"], together.obsm["trm_domains_proba"], atol=1e-4)


@pytest.mark.parametrize("backbone", ["windowed", "hierarchical"])
def test_the_origin_of_a_lattice_does_not_matter_by_whole_windows(backbone):
    rows, cols = np.arange(40) // 8, np.arange(40) % 8
    near, far = (join(make("a", rows + shift, cols + shift)) for shift in (0, 8 * 9_000))
    model = train(near, BACKBONES[backbone], max_epochs=2)
    near.obsm["X_own"] = far.obsm["X_own"]
    assert np.array_equal(*(apply(part, model).obsm["trm_domains_proba"] for part in (near, far)))


def test_two_far_spots_need_no_more_than_two_near_ones():
    """A lattice of a million times a million cells."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, _types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            for tensor in found if isinstance(found, (tuple, list)) else [found]:
                self.size = max(self.size, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
            return found

    far = join(make("a", [0, FAR], [0, FAR]), make("b", [0, 3], [0, 0]))
    for backbone in BACKBONES.values():
        model = train(far, backbone, max_epochs=1)
        sizes = []
        for name in ("a", "b"):
            with Largest() as largest:
                apply(far[far.obs["section"] == name].copy(), model)
            sizes.append(largest.size)
        # two windows instead of one
        assert sizes[0] <= 2 * max(sizes[1], 2**16)


def test_shared_sites_are_refused():
    part = make("a", [0, 0, 1], [1, 1, 0])
    with pytest.raises(ValueError, match="share"):
        join(part)


def test_unused_categories_are_no_sections():
    adata = join(make("a", *SHAPES["one row"]), make("b", *SHAPES["one spot"]))
    adata.obs["section"] = adata.obs["section"].cat.add_categories(["empty"])
    model = train(adata, BACKBONES["windowed"], max_epochs=1)
    assert list(apply(adata, model).uns["trm_domains"]["sections"].index) == ["a", "b"]


def test_sections_without_spots_are_named():
    adata = join(make("a", *SHAPES["one row"]))
    network = train(adata, BACKBONES["windowed"], max_epochs=1).network
    lattice = Lattice(torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), (0,), "square")
    empty = Section("nothing", torch.zeros(0, 4), lattice, torch.zeros(0, dtype=torch.long))
    options = {"fabric": make_fabric("cpu", 1, "32-true"), "progress": False}
    with pytest.raises(ValueError, match=r"\['nothing'\] have no spots"):
        predict(network, [empty], Steps(depth=1), **options)
    with pytest.raises(ValueError, match=r"\['nothing'\] have no spots"):
        fit(network, [empty], st.Training(), n_steps=1, augment=lambda part, _: part, seed=0, **options)
