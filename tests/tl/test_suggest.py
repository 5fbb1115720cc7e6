"""Places to annotate next."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import strecur as st

CERTAIN = 0.98


def with_results(adata, model, certain, novelty=None):
    """Write results of the model: certain of the true domain where ``certain``, else not at all."""
    codes = pd.Index(model.labels).get_indexer(adata.obs["domain"].astype(object))
    truth = np.eye(len(model.labels))[np.maximum(codes, 0)]
    proba = np.where(np.asarray(certain)[:, None], CERTAIN * truth + (1 - CERTAIN) / len(model.labels), 1 / 3)
    adata.obs["trm_domains"] = pd.Categorical.from_codes(proba.argmax(axis=1), model.labels)
    adata.obsm["trm_domains_proba"] = proba.astype(np.float32)
    adata.uns["trm_domains"] = {"model": model.id, "params": {"library_key": "section"}}
    if novelty is not None:
        adata.obs["trm_domains_novelty"] = novelty
    return adata


def suggested(adata, key="suggestions"):
    return adata.obs[key].notna().to_numpy()


@pytest.mark.parametrize("domain", ["L1", "L2", "L3"])
def test_a_domain_the_model_is_not_certain_of_is_suggested(sections, trained, domain):
    is_domain = (sections.obs["domain"] == domain).to_numpy()
    st.tl.suggest_annotation(with_results(sections, trained, ~is_domain), trained, n=6)
    # by chance a third; places at the border of a thin layer reach into others
    assert is_domain[suggested(sections)].mean() > 0.65
    places = sections.uns["suggestions"]["places"]
    assert is_domain[sections.obs_names.get_indexer(places["spot"])].sum() >= 5


def test_a_novel_domain_is_suggested_however_certain_its_label(sections, trained):
    is_novel = (sections.obs["domain"] == "L3").to_numpy()
    usual = np.random.default_rng(0).uniform(0, 0.95, sections.n_obs)
    everywhere = np.ones(sections.n_obs, dtype=bool)
    with_results(sections, trained, everywhere, novelty=np.where(is_novel, 1.0, usual))
    st.tl.suggest_annotation(sections, trained, n=6)
    assert is_novel[suggested(sections)].mean() > 0.8
    assert sections.obs["suggestions_weight"].to_numpy()[is_novel].min() == 1
    # missing novelty tells nothing
    sections.obs["trm_domains_novelty"] = np.nan
    st.tl.suggest_annotation(sections, trained, n=6)
    assert sections.obs["suggestions_weight"].max() < 0.2


def test_places_differ_from_one_another(sections, trained):
    nowhere = np.zeros(sections.n_obs, dtype=bool)
    st.tl.suggest_annotation(with_results(sections, trained, nowhere), trained, n=9, n_spots=5)
    found = sections.obs["suggestions"]
    # no spot belongs to two
    assert found.value_counts().to_dict() == dict.fromkeys(range(1, 10), 5)
    places = sections.uns["suggestions"]["places"]
    truth = sections.obs.loc[places["spot"], "domain"].value_counts()
    assert (truth > 0).all()
    assert len(truth) == 3
    # each is in one piece
    for rank, place in places.iterrows():
        rows = sections.obs_names[found == rank]
        assert set(sections.obs.loc[rows, "section"]) == {place["section"]}
        row, col = sections[rows].obsm["grid"].T
        centre = sections[[place["spot"]]].obsm["grid"][0]
        assert np.hypot((row - centre[0]) * np.sqrt(3), col - centre[1]).max() <= 2 * np.sqrt(3)


def test_annotated_spots_are_not_suggested(sections, trained):
    nowhere = np.zeros(sections.n_obs, dtype=bool)
    with_results(sections, trained, nowhere)
    annotated = (sections.obs["section"] != "S3").to_numpy() | (sections.obsm["grid"][:, 0] < 6)
    sections.obs["mine"] = sections.obs["domain"].astype(object).where(annotated)
    st.tl.suggest_annotation(sections, trained, n=4, label_key="mine")
    assert suggested(sections).any()
    labelled = sections.obs["mine"].notna().to_numpy()
    assert not (suggested(sections) & labelled).any()
    np.testing.assert_array_equal(sections.obs["suggestions_weight"].isna(), labelled)
    record = sections.uns["suggestions"]
    assert record["places"]["n_spots"].sum() == suggested(sections).sum()
    table = record["sections"]
    np.testing.assert_array_equal(
        table["n_annotated"], [labelled[sections.obs["section"] == name].sum() for name in table.index]
    )
    sections.obs["mine"] = "L1"
    with pytest.raises(ValueError, match=r"all spots are annotated in adata.obs\['mine'\]"):
        st.tl.suggest_annotation(sections, trained, label_key="mine")


def test_sections_and_places_are_in_order_of_need(sections, trained):
    of_second = (sections.obs["section"] == "S2").to_numpy()
    with_results(sections, trained, ~(of_second & (np.arange(sections.n_obs) % 2 == 0)))
    st.tl.suggest_annotation(sections, trained, n=6)
    record = sections.uns["suggestions"]
    assert record["sections"].index[0] == "S2"
    assert record["sections"]["n_places"].sum() == 6
    assert record["sections"].loc["S2", "n_places"] >= 5
    assert record["places"]["share"].is_monotonic_decreasing
    assert record["places"]["share"].sum() == pytest.approx(1, abs=1e-6)


def test_the_seed_decides_and_not_the_order_of_spots(sections, trained):
    with_results(sections, trained, (sections.obs["domain"] == "L1").to_numpy())
    found = [st.tl.suggest_annotation(sections, trained, n=5, rng=seed, copy=True) for seed in (0, 0)]
    pd.testing.assert_series_equal(found[0].obs["suggestions"], found[1].obs["suggestions"])
    assert "suggestions" not in sections.obs
    order = np.random.default_rng(0).permutation(sections.n_obs)
    moved = sections[order].copy()
    st.tl.suggest_annotation(moved, trained, n=5)
    np.testing.assert_array_equal(moved.obs["suggestions"], found[0].obs["suggestions"].to_numpy()[order])


def test_few_spots_give_as_many_places_as_there_are(sections, trained, caplog):
    nowhere = np.zeros(sections.n_obs, dtype=bool)
    with_results(sections, trained, nowhere)
    sections.obs["mine"] = np.where(np.isin(np.arange(sections.n_obs), [50, 51, 52]), None, "L1")
    st.tl.suggest_annotation(sections, trained, n=10, n_spots=7, label_key="mine")
    assert 1 <= suggested(sections).sum() <= 3
    assert "only 1 places" in caplog.text or "only 2 places" in caplog.text


def test_spots_outside_the_tissue_are_left_out(sections, trained):
    nowhere = np.zeros(sections.n_obs, dtype=bool)
    with_results(sections, trained, nowhere)
    outside = np.arange(sections.n_obs) % 5 == 0
    sections.obs["in_tissue"] = (~outside).astype(int)
    sections.obsm["trm_domains_proba"][outside] = np.nan
    st.tl.suggest_annotation(sections, trained, n=5)
    assert suggested(sections).sum() == 35
    assert not (suggested(sections) & outside).any()
    np.testing.assert_array_equal(sections.obs["suggestions_weight"].isna(), outside)


def test_results_must_be_those_of_the_model(sections, trained):
    with pytest.raises(KeyError, match="Run strecur.tl.trm_domains"):
        st.tl.suggest_annotation(sections, trained)
    with_results(sections, trained, np.ones(sections.n_obs, dtype=bool))
    sections.uns["trm_domains"]["model"] = "another"
    with pytest.raises(ValueError, match="were made with another model"):
        st.tl.suggest_annotation(sections, trained)
