from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from strecur._anndata import align_genes, read_sections
from strecur.models.features.expression import fit_expression_features, highly_variable, log_normalised
from strecur.options import Features


def counts(n_spots: int = 80, n_genes: int = 40, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(n_spots, 3))
    rate = np.exp(0.5 * latent @ rng.normal(size=(3, n_genes)) + rng.normal(size=n_genes))
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    adata.var_names = [f"ENSG{g:05d}" for g in range(n_genes)]
    adata.var["symbol"] = [f"GENE{g}" for g in range(n_genes)]
    adata.obs["section"] = np.where(np.arange(n_spots) < n_spots // 2, "a", "b")
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() + 100
    return adata


def fit(adata: ad.AnnData, **options):
    rng = options.pop("rng", 0)
    return fit_expression_features(adata, read_sections(adata, "section"), Features(n_components=5, **options), rng)


def test_components_equal_those_of_scikit_learn_with_fixed_signs():
    from sklearn.decomposition import PCA

    adata = counts()
    features = fit(adata, normalise=False)
    values = np.log2(adata.X.toarray() + 1)
    expected = PCA(5, svd_solver="full").fit(values)
    found = features.transform(adata)
    np.testing.assert_allclose(np.abs(found), np.abs(expected.transform(values)), atol=1e-2)
    largest = np.abs(features.components_GP).argmax(axis=0)
    assert (features.components_GP[largest, np.arange(5)] > 0).all()


def test_library_size_is_taken_out():
    adata = counts()
    deeper = adata.copy()
    deeper.X = adata.X * 3
    deeper.obs["total"] = adata.obs["total"] * 3
    features = fit(adata, size_factor_key="total")
    np.testing.assert_allclose(features.transform(deeper), features.transform(adata), atol=1e-4)
    plain = fit(adata, normalise=False)
    assert np.abs(plain.transform(deeper) - plain.transform(adata)).max() > 1


def test_library_size_is_the_sum_of_the_row_unless_a_column_is_named(caplog):
    adata = counts()
    adata.obs["sum"] = np.asarray(adata.X.sum(axis=1)).ravel()
    caplog.set_level("INFO", logger="strecur")
    found, expected = fit(adata), fit(adata, size_factor_key="sum")
    assert caplog.text.count("normalised by their sum over the 40 genes") == 1
    np.testing.assert_allclose(found.transform(adata), expected.transform(adata), atol=1e-5)
    empty = adata.copy()
    empty.X = empty.X.multiply((np.arange(empty.n_obs) > 0)[:, None]).tocsr()
    assert np.isfinite(fit(empty).transform(empty)).all()


def test_variable_genes_are_scanpys_with_the_logarithm_of_base_two():
    import scanpy as sc

    adata = counts(200, 120)
    sections = read_sections(adata, "section")
    log_counts = log_normalised(
        adata, sparse.identity(120, format="csr"), layer=None, size_factor_key=None, row_sums=False
    )
    found = highly_variable(log_counts, sections, 30)
    natural = ad.AnnData(log_counts * np.log(2), obs=adata.obs.copy())
    sc.pp.highly_variable_genes(natural, n_top_genes=30, batch_key="section")
    assert found.sum() == 30
    assert np.array_equal(found, natural.var["highly_variable"])


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 30), min_size=1, max_size=4), st.floats(0, 1))
def test_small_and_empty_sections_choose_genes_or_leave_it_to_the_others(seed, sizes, density):
    rng = np.random.default_rng(seed)
    adata = counts(sum(sizes), 40, seed % 1000)
    adata.obs["section"] = np.repeat([f"s{i}" for i in range(len(sizes))], sizes)
    adata.X = adata.X.multiply(rng.random((adata.n_obs, 1)) < density).tocsr()
    log_counts = log_normalised(
        adata, sparse.identity(40, format="csr"), layer=None, size_factor_key=None, row_sums=False
    )
    sections = read_sections(adata, "section")
    counted = np.asarray(log_counts.sum(axis=1)).ravel() > 0
    if max(counted[sections.rows(name)].sum() for name in sections.names) < 2:
        with pytest.raises(ValueError, match="two spots with counts"):
            highly_variable(log_counts, sections, 10)
    else:
        assert highly_variable(log_counts, sections, 10).sum() >= 10


def test_genes_are_matched_by_name_in_any_order_and_naming():
    adata = counts()
    features = fit(adata)
    expected = features.transform(adata)
    order = np.random.default_rng(3).permutation(40)
    np.testing.assert_allclose(features.transform(adata[:, order].copy()), expected, atol=1e-4)
    symbols = adata.copy()
    symbols.var["gene_ids"] = [f"{name}.7" for name in symbols.var_names]
    symbols.var_names = symbols.var["symbol"].tolist()
    np.testing.assert_allclose(features.transform(symbols), expected, atol=1e-4)
    renamed = adata[:, order].copy()
    renamed.var_names = adata.var_names
    assert np.abs(features.transform(renamed[:, ::-1].copy()) - expected).max() > 0.1


def test_a_missing_gene_counts_zero_and_too_many_are_an_error(caplog):
    adata = counts()
    features = fit(adata)
    zero = adata.copy()
    zero.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(40) != 7))
    with caplog.at_level("WARNING"):
        np.testing.assert_allclose(
            features.transform(adata[:, np.arange(40) != 7].copy()), features.transform(zero), atol=1e-5
        )
    assert "1 of 40 genes are missing" in caplog.text
    with pytest.raises(ValueError, match="only 25% of the model's 40 genes"):
        features.transform(adata[:, :10].copy())


def test_columns_of_one_gene_are_summed():
    adata = counts(10, 4)
    doubled = ad.AnnData(np.hstack([adata.X.toarray(), adata.X.toarray()[:, :1]]))
    doubled.var_names = [*adata.var_names, f"{adata.var_names[0]}.2"]
    selection, missing = align_genes(doubled, list(adata.var_names), min_share=1)
    aligned = (sparse.csr_matrix(doubled.X) @ selection).toarray()
    assert missing == []
    np.testing.assert_allclose(aligned[:, 0], 2 * adata.X.toarray()[:, 0])
    np.testing.assert_allclose(aligned[:, 1:], adata.X.toarray()[:, 1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: setattr(a, "X", -a.X), "negative"),
        (lambda a: setattr(a, "X", np.log1p(a.X.toarray())), "non-integer.*use_rep"),
        (lambda a: setattr(a, "X", np.where(a.X.toarray() > 3, np.nan, 1)), "NaN"),
        (lambda a: a.obs.__setitem__("total", 0.0), "positive.*80 spots"),
        (lambda a: a.obs.drop(columns="total", inplace=True), "total.*section"),
    ],
)
def test_what_is_no_count_raises(change, message):
    adata = counts()
    change(adata)
    with pytest.raises((ValueError, KeyError), match=message):
        fit(adata, size_factor_key="total")


@pytest.mark.parametrize("kind", ["dense", "int", "csc", "float64"])
def test_every_kind_of_matrix_gives_the_same_features(kind):
    adata = counts()
    features = fit(adata)
    expected = features.transform(adata)
    matrix = {
        "dense": adata.X.toarray(),
        "int": adata.X.toarray().astype(np.int64),
        "csc": adata.X.tocsc(),
        "float64": adata.X.astype(np.float64),
    }[kind]
    other = ad.AnnData(matrix, obs=adata.obs.copy(), var=pd.DataFrame(index=adata.var_names))
    np.testing.assert_allclose(features.transform(other), expected, atol=1e-5)
