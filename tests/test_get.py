from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import strecur as st

GENES = ["b", "a/1", "c"]


def predicted() -> ad.AnnData:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(5, 3)).astype(np.float32)
    values[4] = np.nan
    adata = ad.AnnData(
        np.ones((5, 2), dtype=np.float32),
        obs=pd.DataFrame({"section": pd.Categorical(list("xxyyy"))}, index=list("12345")),
        obsm={
            "spatial": rng.normal(size=(5, 2)),
            "grid": np.arange(10).reshape(5, 2),
            "k": values,
            "k_linear": 2 * values,
        },
        uns={"spatial": {"x": {}}, "grid": {"layout": "square"}, "section_colors": ["#000000", "#ffffff"]},
    )
    reliability = pd.DataFrame({"pcc": [0.1, np.nan, 0.3]}, index=pd.Index(GENES, name="gene"))
    adata.uns["k"] = {"var_names": np.array(GENES), "reliability": reliability, "target": "log2"}
    return adata


def test_predictions_become_an_object_of_their_own():
    adata = predicted()
    found = st.get.expression(adata, "k")
    np.testing.assert_array_equal(found.X, adata.obsm["k"])
    assert found.X.dtype == np.float32
    assert list(found.var_names) == GENES
    assert found.var["pcc"].tolist() == pytest.approx([0.1, np.nan, 0.3], nan_ok=True)
    pd.testing.assert_frame_equal(found.obs, adata.obs)
    np.testing.assert_array_equal(found.obsm["spatial"], adata.obsm["spatial"])
    np.testing.assert_array_equal(found.obsm["grid"], adata.obsm["grid"])
    assert found.uns["spatial"] == {"x": {}}
    assert found.uns["section_colors"] == ["#000000", "#ffffff"]


def test_it_is_a_copy():
    adata = predicted()
    found = st.get.expression(adata, "k")
    found.X[:] = 0
    found.obsm["spatial"][:] = 0
    found.obs["section"] = "z"
    assert np.array_equal(adata.obsm["k"], predicted().obsm["k"], equal_nan=True)
    assert np.array_equal(adata.obsm["spatial"], predicted().obsm["spatial"])
    assert adata.obs["section"].tolist() == list("xxyyy")


def test_the_linear_baseline_is_available():
    adata = predicted()
    np.testing.assert_array_equal(st.get.expression(adata, "k_linear").X, adata.obsm["k_linear"])


def test_scanpy_draws_it():
    import matplotlib as mpl
    import scanpy as sc

    mpl.use("Agg")
    found = st.get.expression(predicted(), "k")
    axes = sc.pl.embedding(found, basis="spatial", color=["a/1", "section"], show=False)
    assert [ax.get_title() for ax in axes] == ["a/1", "section"]


def test_missing_results_raise():
    adata = predicted()
    with pytest.raises(KeyError, match="predict_expression"):
        st.get.expression(adata, "trm_expression")
    with pytest.raises(KeyError, match=r"'var_names' is not in adata.uns"):
        st.get.expression(adata, "grid")


def test_files_keep_it(tmp_path):
    st.get.expression(predicted(), "k").write_h5ad(tmp_path / "k.h5ad")
    assert list(ad.read_h5ad(tmp_path / "k.h5ad").var_names) == GENES
