from __future__ import annotations

import logging
from bisect import bisect_left
from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

from strecur.pp import high_mean_high_variance_genes, panels

N_SPOTS, N_GENES = 60, 400


def make_counts(seed: int = 0) -> ad.AnnData:
    """Return two sections of counts, whose genes differ in mean and in overdispersion."""
    rng = np.random.default_rng(seed)
    mean, shape = rng.lognormal(0, 1.5, N_GENES), rng.uniform(0.3, 5, N_GENES)
    counts = rng.poisson(mean * rng.gamma(shape, 1 / shape, (2 * N_SPOTS, N_GENES)))
    names = rng.permutation([f"GENE{i}" for i in range(N_GENES)])
    obs = pd.DataFrame({"section": np.repeat(["A", "B"], N_SPOTS)}, index=[f"s{i}" for i in range(2 * N_SPOTS)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names))


def reference_panel(adata: ad.AnnData, cutoff: int, n_top_genes: int, library_key: str = "section") -> list[str]:
    """Follow the published protocol word by word, with tables instead of ranks."""
    variable = set()
    for _, rows in adata.obs.groupby(library_key, observed=True):
        section = adata[rows.index].copy()
        sc.pp.filter_cells(section, min_counts=1)
        sc.pp.filter_genes(section, min_counts=1)
        sc.pp.normalize_total(section)
        sc.pp.log1p(section)
        sc.pp.highly_variable_genes(section, n_top_genes=n_top_genes)
        variable |= set(section.var_names[section.var["highly_variable"]])
    variable = sorted(g for g in variable if not g.startswith(("MT", "mt", "RPS", "RPL")))
    pooled = adata[:, variable].to_df()
    top = [values.sort_values(ascending=False).index[:cutoff] for values in (pooled.mean(), pooled.std())]
    return sorted(set(top[0]) & set(top[1]))


@pytest.fixture(scope="module")
def counts() -> ad.AnnData:
    return make_counts()


def panel(adata: ad.AnnData, n_genes: int = 300, **options) -> list[str]:
    return high_mean_high_variance_genes(adata, n_genes, **{"library_key": "section", "n_top_genes": 150, **options})


@pytest.mark.parametrize("cutoff", [10, 40, 80])
def test_panel_of_a_cutoff_follows_the_protocol(counts, cutoff):
    expected = reference_panel(counts, cutoff, 150)
    assert 0 < len(expected) < cutoff  # the two lists are not the same
    assert panel(counts, cutoff=cutoff) == expected


def test_sections_choose_their_variable_genes_separately(counts):
    """A gene that varies in one section alone is a candidate."""
    adata = counts.copy()
    rng = np.random.default_rng(1)
    column = np.where(adata.obs["section"] == "A", rng.choice([0, 500], len(adata)), 250)
    dense = adata.X.toarray()
    dense[:, 7] = column
    adata.X = sparse.csr_matrix(dense)
    assert adata.var_names[7] in panel(adata, 30)


def test_library_key_of_the_lattice_is_used(counts):
    stored = counts.copy()
    stored.uns["grid"] = {"params": {"library_key": "section"}}
    assert panel(stored, 30, library_key=None) == panel(counts, 30)
    assert panel(counts, 30, library_key=None) != panel(counts, 30)


def test_panel_grows_with_the_cutoff(counts):
    panels = [set(panel(counts, cutoff=cutoff)) for cutoff in range(20, 100, 16)]
    assert all(small <= large for small, large in pairwise(panels))
    assert len(panels[0]) < len(panels[-1])


@pytest.mark.parametrize("n_genes", [1, 17, 50, 120])
def test_number_of_genes_is_exact_and_the_cutoff_the_smallest(counts, n_genes):
    genes = panel(counts, n_genes)
    assert len(genes) == n_genes
    assert genes == sorted(genes)
    smallest = 1 + bisect_left(range(1, 400), n_genes, key=lambda cutoff: len(panel(counts, cutoff=cutoff)))
    before, reached = (set(panel(counts, cutoff=cutoff) if cutoff else ()) for cutoff in (smallest - 1, smallest))
    assert len(before) < n_genes <= len(reached)
    assert before <= set(genes) <= reached


def test_order_of_spots_and_genes_does_not_matter(counts):
    rng = np.random.default_rng(2)
    shuffled = counts[rng.permutation(counts.n_obs), rng.permutation(counts.n_vars)].copy()
    assert panel(shuffled, 50) == panel(counts, 50)


def test_excluded_and_extra_genes(counts):
    adata = counts.copy()
    best = panel(adata, 4)
    names = dict(zip(best, ["MT-CO1", "mt-Nd1", "RPS3", "RPL5"], strict=True))
    adata.var_names = [names.get(name, name) for name in adata.var_names]
    assert not set(panel(adata, 50)) & set(names.values())
    rare = adata.var_names[int(np.asarray(adata.X.mean(axis=0)).argmin())]
    with_extra = panel(adata, 50, extra_genes=["RPS3", rare])
    assert with_extra == sorted({*panel(adata, 50), "RPS3", rare})


def test_symbols_in_a_column_are_used_to_exclude(counts):
    adata = counts.copy()
    first = panel(adata, 1)[0]
    adata.var["symbol"] = np.where(adata.var_names == first, "MT-CO1", adata.var_names)
    assert first not in panel(adata, 50, gene_symbols="symbol")


def test_nothing_is_changed(counts):
    before = counts.copy()
    panel(counts, 50)
    assert (counts.X != before.X).nnz == 0
    assert list(counts.obs) == list(before.obs)
    assert list(counts.var) == list(before.var)
    assert not counts.uns


def test_dense_sparse_and_layers_agree(counts):
    dense, layered = counts.copy(), counts.copy()
    dense.X = dense.X.toarray()
    layered.layers["counts"], layered.X = layered.X.astype(np.int64), layered.X * 0.5
    assert panel(dense, 50) == panel(layered, 50, layer="counts") == panel(counts, 50)


def test_empty_spots_are_left_out_of_the_normalisation(counts):
    """Empty spots lower mean and deviation of all genes alike, and must not become NaN."""
    empty = ad.AnnData(
        sparse.csr_matrix((5, N_GENES), dtype=np.float32),
        obs=pd.DataFrame({"section": ["A"] * 5}, index=[f"empty{i}" for i in range(5)]),
        var=counts.var,
    )
    adata = ad.concat([counts, empty])
    assert panel(adata, cutoff=60) == reference_panel(adata, 60, 150)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_genes": 399}, ValueError, "n_genes=399, but [0-9]+ genes are"),
        ({"n_genes": 0}, ValueError, "n_genes=0"),
        ({"extra_genes": ["NOPE"]}, KeyError, r"\['NOPE'\] are not in adata\.var_names"),
        ({"library_key": "slide"}, KeyError, "'slide' is not in adata.obs"),
        ({"gene_symbols": "symbol"}, KeyError, "'symbol' is not in adata.var"),
        ({"layer": "raw"}, KeyError, "'raw' is not in adata.layers"),
    ],
)
def test_wrong_arguments(counts, options, error, message):
    with pytest.raises(error, match=message):
        panel(counts, **options)


def test_what_is_not_counts_raises(counts):
    adata = counts.copy()
    sc.pp.log1p(adata)
    with pytest.raises(ValueError, match="counts are needed"):
        panel(adata, 50)


@pytest.mark.parametrize("n_spots", [1, 20])
def test_sections_in_which_no_gene_varies_leave_the_panel_to_the_others(counts, n_spots, caplog):
    adata = counts[: N_SPOTS + n_spots].copy()
    if n_spots > 1:
        adata.X = adata.X.multiply((adata.obs["section"] == "A").to_numpy()[:, None]).tocsr()
    panel(adata, 50)
    assert "sections ['B'] have fewer than two spots with counts" in caplog.text
    with pytest.raises(ValueError, match="none of the sections \\['B'\\] has two spots with counts"):
        panel(adata[N_SPOTS : N_SPOTS + 1].copy(), 50)


def test_ensembl_ids_without_symbols_warn_that_no_gene_is_excluded(counts, caplog):
    adata = counts.copy()
    first = panel(adata, 1)[0]
    adata.var["symbol"] = [f"MT-CO{i}" if name == first else name for i, name in enumerate(adata.var_names)]
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    excluded = adata.var_names[adata.var["symbol"].str.startswith("MT-")][0]
    assert excluded not in panel(adata, 50)
    assert "no symbols" not in caplog.text
    del adata.var["symbol"]
    assert excluded in panel(adata, 50)
    assert "Ensembl ids and no symbols" in caplog.text


def test_gene_that_one_section_lacks_is_told(counts, caplog):
    adata = counts.copy()
    gene = panel(adata, 1)[0]
    dense = adata.X.toarray()
    dense[adata.obs["section"] == "B", adata.var_names.get_loc(gene)] = 0
    adata.X = sparse.csr_matrix(dense)
    with caplog.at_level(logging.WARNING, logger="strecur"):
        panel(adata, 50, extra_genes=[gene])
    assert f"section 'B' has no count of ['{gene}']" in caplog.text


# Real sections


@pytest.fixture(scope="module")
def her2st(data_dir) -> ad.AnnData:
    """Return the 28 sections of patients A to F that are here, of the 36 of the release, on their common genes."""
    parts = {path.stem: ad.read_h5ad(path) for path in sorted((data_dir / "her2st").glob("*.h5ad"))}
    assert len(parts) == 28
    return ad.concat(parts, join="inner", label="section", index_unique="-")


def test_panels_of_her2st(her2st, monkeypatch):
    """On all 36 sections the cut-offs 350 and 352 give 300 and 302 genes.

    Of these, B4, C6 and the six of patients G and H are missing here, which takes some variable genes out of the
    union and leaves 304 more genes common to all sections; other genes then stand among the first 350 of both lists.
    """
    assert her2st.shape == (10_062, 12_175)
    variable, remembered = panels._variable_genes, []

    def once(*arguments):
        """Which genes vary in a section does not depend on the cut-off, and takes nearly all of the time."""
        if not remembered:
            remembered.append(variable(*arguments))
        return remembered[0]

    monkeypatch.setattr(panels, "_variable_genes", once)
    found = {
        cutoff: high_mean_high_variance_genes(her2st, cutoff=cutoff, library_key="section")
        for cutoff in (347, 350, 352)
    }
    assert {cutoff: len(genes) for cutoff, genes in found.items()} == {347: 299, 350: 303, 352: 305}
    assert found[350] == sorted(found[350])
    assert set(found[347]) < set(found[350]) < set(found[352])
    # Markers of the tumours are there; those that the paper shows but no panel has are not.
    assert {"ERBB2", "GNAS", "FASN", "CD74", "COL1A1"} <= set(found[350])
    assert not {"MKI67", "ESR1", "GATA3", "FOXA1", "ATM", "PTEN"} & set(found[352])
    three_hundred = high_mean_high_variance_genes(her2st, 300, library_key="section")
    assert len(three_hundred) == 300
    assert set(found[347]) < set(three_hundred) < set(found[350])
