"""Gene panels chosen by name."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy_histology import N_GENES, join, make_section, train

import strecur as st
from strecur._panels import count_named, name_genes
from strecur.models.genes import choose_genes

BREAST = st.datasets.read_genes("breast")
WANTED = {"ERBB2", "ESR1", "PGR", "MKI67", "KRT8", "CD3E", "CD8A", "EPCAM"}


def table_of(genes: list[str], **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, index=genes)


def logged(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_every_panel_has_a_source_and_distinct_genes():
    listed = st.datasets.gene_panels()
    assert (listed[["description", "source", "doi"]].map(len) > 0).all(axis=None)
    for name, n_genes in listed["n_genes"].items():
        genes = st.datasets.read_genes(name)
        assert len(genes) == len(set(genes)) == n_genes
        assert all(gene == gene.upper() == gene.strip() for gene in genes)
    assert {gene for name in listed.index for gene in st.datasets.read_genes(name)} >= WANTED
    assert set(st.datasets.read_genes("proliferation")) < set(BREAST)
    assert (listed.loc["breast", "n_genes"], listed.loc["immune", "n_genes"]) == (50, 60)


def test_reading_a_panel_gives_a_list_of_its_own():
    st.datasets.read_genes("breast").clear()
    assert len(st.datasets.read_genes("breast")) == 50
    with pytest.raises(KeyError, match="'proliferation'"):
        st.datasets.read_genes("prolif")


def test_members_come_in_the_order_given_and_once(caplog):
    names = name_genes("genes", ["TP53", "proliferation", "MKI67", "breast"], table_of(["TP53", *reversed(BREAST)]))
    first = st.datasets.read_genes("proliferation")
    assert names[0] == "TP53"
    # MKI67 is named by the user, and stands where they put it
    assert names[1:12] == [gene for gene in first if gene != "MKI67"] + ["MKI67"]
    assert sorted(names) == sorted({"TP53", *BREAST})
    assert logged(caplog) == []


def test_absent_members_are_left_out_in_one_line_with_the_nearest_name(caplog):
    there = [gene for gene in BREAST if gene not in {"KRT17", "ERBB2", "MYC"}]
    names = name_genes("genes", "breast", table_of([*there, "ERBB3", "XIST"]))
    assert names == there
    (line,) = logged(caplog)
    assert line == (
        "panel 'breast': 3 of 50 genes are not in the data and left out: ERBB2 (nearest: ERBB3), KRT17, MYC"
    )


def test_earlier_symbols_are_the_same_genes(caplog):
    earlier = {"NDC80": "KNTC2", "NUF2": "CDCA1", "ORC6": "ORC6L"}
    named = [earlier.get(gene, gene) for gene in BREAST]
    assert name_genes("genes", "breast", table_of(named)) == named
    # with both, the symbol of today
    assert "KNTC2" not in name_genes("genes", "breast", table_of([*named, "NDC80"]))
    assert logged(caplog) == []


def test_a_panel_without_any_gene_raises():
    with pytest.raises(
        KeyError, match=r"extra_genes: none of the 60 genes of the panel 'immune'.*\['g0', 'g1', 'MKI67'\]"
    ):
        name_genes("extra_genes", ["breast", "immune"], table_of(["g0", "g1", "MKI67"]))


def test_mouse_genes_are_matched_by_capitalised_symbols(caplog):
    caplog.set_level(logging.INFO, logger="strecur")
    mouse = [gene.capitalize() for gene in BREAST]
    assert name_genes("genes", "breast", table_of(["Actb", *mouse])) == mouse
    (line,) = logged(caplog)
    assert "ACTR3B: Actr3b" in line


@pytest.mark.parametrize("version", ["", ".12"])
def test_members_are_found_by_a_column_of_symbols(version):
    """Ids in var_names, symbols in a column: members have the names in which the other genes are given."""
    ids = [f"ENSG{i:011d}{version}" for i in range(len(BREAST) + 1)]
    var = table_of(ids, gene_name=pd.Categorical([*BREAST, "TP53"]))
    assert name_genes("genes", "breast", var) == BREAST
    assert name_genes("genes", ["TP53", "breast"], var) == ["TP53", *BREAST]
    assert name_genes("genes", "breast", var, by_index=True) == ids[:-1]
    own = ids[3]
    with_id = name_genes("genes", [own, "breast"], var)
    assert with_id[0] == own
    assert len(with_id) == 50
    assert all(name.startswith("ENSG") for name in with_id)


def test_all_columns_of_a_symbol_are_taken():
    var = table_of(["ENSG1", "ENSG2", "ENSG3"], symbol=["ERBB2", "ERBB2", "ESR1"])
    assert name_genes("genes", "breast", var, by_index=True) == ["ENSG1", "ENSG2", "ENSG3"]
    assert name_genes("genes", "breast", var) == ["ERBB2", "ESR1"]


def test_names_without_a_panel_are_not_touched():
    assert name_genes("genes", ["b", "a", "b"], table_of(["a"])) == ["b", "a", "b"]
    assert count_named(["a", "breast"]) == 51


# In the verbs


def counts_of(genes: list[str], **columns: list[str]) -> ad.AnnData:
    counts = np.random.default_rng(0).poisson(np.linspace(1, 20, len(genes)), (60, len(genes)))
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), var=table_of(genes, **columns))


def test_statistical_choice_and_a_panel_together():
    symbols = [*(f"GENE{i}" for i in range(80)), *BREAST]
    options = {"library_key": None, "layer": None}
    adata = counts_of(symbols)
    alone = choose_genes(adata, 10, (), **options)
    both = choose_genes(adata, 10, ["breast", "GENE0"], **options)
    assert set(both) == {*alone, *BREAST, "GENE0"}
    ids = counts_of([f"ENSG{i:011d}" for i in range(len(symbols))], symbol=symbols)
    chosen = choose_genes(ids, 10, "breast", **options)
    assert set(chosen) == {ids.var_names[symbols.index(gene)] for gene in both if gene != "GENE0"}


@pytest.mark.parametrize(
    ("genes", "extra", "message"),
    [
        (10, ["breast", "GNE1"], r"extra_genes \['GNE1'\] are not .*did you mean 'GENE1'"),
        (["breast", "GNE1"], (), r"genes \['GNE1'\] are not .*did you mean 'GENE1'"),
        ("brest", (), r"genes \['brest'\] are not .*did you mean 'breast'"),
        (10, "imune", r"extra_genes \['imune'\] are not .*did you mean 'immune'"),
        ("immune", (), "none of the 60 genes of the panel 'immune'"),
    ],
)
def test_genes_that_the_user_names_must_exist(genes, extra, message):
    adata = counts_of([*(f"GENE{i}" for i in range(80)), *BREAST])
    with pytest.raises(KeyError, match=message):
        choose_genes(adata, genes, extra, library_key=None, layer=None)


def test_training_takes_a_panel_and_predicts_its_genes(caplog):
    pair = join(make_section("S1", 1), make_section("S2", 2))
    pair.var_names = [*BREAST[: N_GENES - 1], "CD3E"]
    model = train(pair, genes="breast", extra_genes=["CD3E"], max_epochs=1)
    assert model.genes == list(pair.var_names)
    assert [line for line in logged(caplog) if "panel" in line] == [
        line for line in logged(caplog) if "43 of 50" in line
    ]
    st.tl.predict_expression(pair, model)
    assert pair.uns["trm_expression"]["var_names"] == list(pair.var_names)
    with pytest.raises(KeyError, match="'lymphoid_structures'"):
        train(pair, genes=["lymphoid_structures", "CD3E"])
