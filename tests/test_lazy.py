"""Objects whose arrays are not in memory: dask, backed files and lazily read ones."""

from __future__ import annotations

from functools import cache

import anndata as ad
import h5py
import numpy as np
import pytest
import small_world as world
from scipy import sparse

import strecur as st

dask_array = pytest.importorskip("dask.array")


def dense(adata, _folder):
    adata.X = dask_array.from_array(adata.X.toarray(), chunks=(30, -1))
    return adata


def chunks_of(make):
    def change(adata, _folder):
        adata.X = dask_array.from_array(adata.X.toarray(), chunks=(30, -1)).map_blocks(make)
        return adata

    return change


def stored_x(adata, folder):
    adata.write_h5ad(folder / "a.h5ad")
    adata.X = ad.experimental.read_elem_lazy(h5py.File(folder / "a.h5ad")["X"])
    return adata


def lazy_h5ad(adata, folder):
    adata.write_h5ad(folder / "a.h5ad")
    return ad.experimental.read_lazy(folder / "a.h5ad")


def lazy_zarr(adata, folder):
    adata.write_zarr(folder / "a.zarr")
    return ad.experimental.read_lazy(folder / "a.zarr")


def backed(adata, folder):
    adata.write_h5ad(folder / "a.h5ad")
    return ad.read_h5ad(folder / "a.h5ad", backed="r")


FORMS = {
    "dask of arrays": dense,
    "dask of csr_matrix": chunks_of(sparse.csr_matrix),
    "dask of csr_array": chunks_of(sparse.csr_array),
    "X of a file": stored_x,
    "read_lazy of h5ad": lazy_h5ad,
    "read_lazy of zarr": lazy_zarr,
    "backed": backed,
}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("copy", [False, True])
def test_domains_are_those_of_the_object_in_memory(form, copy, tmp_path):
    given, expected = world.sections(), world.labelled()
    given.uns.pop("spatial")
    given = FORMS[form](given, tmp_path)
    found = st.tl.trm_domains(given, world.calibrated(), inference={"breadth": 2}, copy=copy)
    found = found if copy else given
    np.testing.assert_allclose(found.obsm["trm_domains_proba"], expected.obsm["trm_domains_proba"], atol=1e-5)
    assert copy == ("trm_domains" not in given.obs)


def learned(adata):
    """Return the panel, the lattice and the model of an object."""
    panel = st.pp.high_mean_high_variance_genes(adata, 10, library_key="section")
    st.pp.to_grid(adata, library_key="section")
    brief, features = {"max_epochs": 1, "validation": None}, {"n_genes": 20, "n_components": 4, "neighbours": (7,)}
    options = {"architecture": "feedforward", "backbone": world.NETWORK["backbone"]}
    return panel, adata.obsm["grid"], st.tl.train_domains(adata, "domain", **options, training=brief, features=features)


@cache
def expected():
    """The same of the object in memory."""
    plain = world.raw()
    plain.uns.pop("spatial")
    return learned(plain)


@pytest.mark.parametrize("form", FORMS)
def test_lattice_panel_training_and_plot_take_it(form, tmp_path):
    given = world.raw()
    given.uns.pop("spatial")
    given = FORMS[form](given, tmp_path)
    (panel, grid, model), (wanted_panel, wanted_grid, wanted) = learned(given), expected()
    assert panel == wanted_panel
    np.testing.assert_array_equal(grid, wanted_grid)
    assert model.features.source.genes == wanted.features.source.genes
    st.pl.domains(given, "domain")
