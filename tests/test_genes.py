"""Names of genes: found in any column, with some missing, and what they say of a gene."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strecur._anndata import find_genes, require_counts
from strecur._genes import are_all_ids, clean_genes, is_mitochondrial_or_ribosomal

many = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

MITOCHONDRIAL = ["MT-CO1", "MT-ND4L", "MT-RNR2", "MT-TL1", "mt-Co1", "mt-Nd4", "Mt-Atp6", "MT.CO1"]
RIBOSOMAL = ["RPS6", "RPS27A", "RPS4X", "RPS4Y1", "RPS27L", "RPSA", "RPL13", "RPL13A", "RPL36AL", "RPL7L1", "RPLP0"]
RIBOSOMAL += ["Rps6", "Rpl13a", "Rplp2", "Rpsa", "Rps4x", "RPL7P1", "RPL13AP5", "Rps6-ps1", "RPS6-1", "rps27.1"]
NEITHER = ["MTOR", "Mtor", "MTHFR", "MT1X", "MT2A", "Mt1", "MTRNR2L12", "MTCO1P12", "RPS6KA1", "RPS6KB1", "RPS6KL1"]
NEITHER += [
    "Rps6ka1",
    "RPS19BP1",
    "MRPL3",
    "MRPS6",
    "Mrpl3",
    "RPUSD1",
    "RPRD1A",
    "B2M",
    "ACTB",
    "SMT-1",
    "ENSG00000198804",
]


@pytest.mark.parametrize("gene", MITOCHONDRIAL + RIBOSOMAL)
@pytest.mark.parametrize("where", ["var_names", "symbol", "categorical"])
def test_mitochondrial_and_ribosomal_genes_are_told_by_any_name(gene, where):
    names = [gene, "ACTB"]
    var = pd.DataFrame(index=names if where == "var_names" else ["ENSG1", "ENSG2"])
    if where != "var_names":
        var["symbol"] = pd.Categorical(names) if where == "categorical" else names
    assert is_mitochondrial_or_ribosomal(var, None).tolist() == [True, False]
    assert not are_all_ids(var, None)


@pytest.mark.parametrize("gene", NEITHER)
def test_genes_that_begin_alike_are_others(gene):
    assert not is_mitochondrial_or_ribosomal(pd.DataFrame(index=[gene]), None).any()


def test_a_named_column_of_symbols_is_the_only_one_that_counts():
    var = pd.DataFrame({"symbol": ["ACTB", None], "old": ["MT-CO1", "RPS6"]}, index=["ENSG1", "ENSG2"])
    assert is_mitochondrial_or_ribosomal(var, None).tolist() == [True, True]
    assert is_mitochondrial_or_ribosomal(var, "symbol").tolist() == [False, False]
    assert are_all_ids(var.drop(columns=["symbol", "old"]), None)


MISSING = st.sampled_from([None, np.nan, pd.NA, "", " "])


@many
@given(st.lists(MISSING, max_size=5), st.sampled_from([object, "category", "string"]), st.booleans(), st.data())
def test_missing_symbols_do_not_hide_the_others(missing, kind, text_of_pandas_3, data):
    symbols = [f"GENE{i}" for i in range(6)]
    column = data.draw(st.permutations([*symbols, *missing]))
    with pd.option_context("future.infer_string", text_of_pandas_3):
        var = pd.DataFrame({"symbol": pd.Series(column, dtype=object).astype(kind)})
        var["length"], var["note"] = np.arange(len(var)), np.nan
        var.index = [f"ENSG{i:04d}" for i in range(len(var))]
        projection, absent = find_genes(ad.AnnData(np.zeros((1, len(var))), var=var), symbols)
    assert absent == []
    found, gene = projection.nonzero()
    assert [column[position] for position in found] == [symbols[g] for g in gene]


def test_blanks_and_versions_are_stripped_and_missing_names_are_empty():
    assert clean_genes([" TP53 ", "ENSG00000141510.18", "ENSMUSG00000059552.2", None, np.nan, pd.NA]) == [
        "TP53",
        "ENSG00000141510",
        "ENSMUSG00000059552",
        *[""] * 3,
    ]


@pytest.mark.parametrize("word", ["nan", "None", "<NA>"])
def test_words_for_a_missing_name_of_several_genes(word):
    assert clean_genes([word, "ACTB", word]) == ["", "ACTB", ""]
    assert clean_genes([word, "ACTB"]) == [word, "ACTB"]  # nan is a gene of Drosophila


def test_true_and_false_are_no_counts():
    adata = ad.AnnData(np.ones((2, 2), dtype=bool))
    with pytest.raises(ValueError, match="true and false where counts are needed"):
        require_counts(np.asarray(adata.X), adata)
