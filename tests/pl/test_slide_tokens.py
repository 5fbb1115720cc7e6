from __future__ import annotations

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import strecur as st

SECTIONS = ["a1", "a2", "b1", "b2"]


@pytest.fixture
def patients():
    """Two patients whose sections differ in one direction, and a little in others."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((12, 1), dtype=np.float32))
    adata.obs["section"] = pd.Categorical(np.repeat(SECTIONS, 3))
    adata.obs["patient"] = pd.Categorical(np.repeat(["A", "B"], 6))
    adata.uns["grid"] = {"params": {"library_key": "section"}, "layout": "square"}
    tokens = rng.normal(size=(4, 2, 8))
    tokens[2:] += 3 * rng.normal(size=(2, 8))
    table = pd.DataFrame({"n_spots": 3}, index=pd.Index(SECTIONS, name="section"))
    adata.uns["trm_expression"] = {"slide_tokens": tokens.astype(np.float32), "sections": table, "params": {}}
    yield adata
    plt.close("all")


def places(ax) -> pd.DataFrame:
    (dots,) = ax.collections
    return pd.DataFrame(dots.get_offsets().data, index=[text.get_text() for text in ax.texts])


def test_sections_of_a_patient_lie_together(patients):
    ax = st.pl.slide_tokens(patients, color="patient")
    found = places(ax)
    assert list(found.index) == SECTIONS
    between = abs(found.loc["a1", 0] - found.loc["b1", 0])
    assert between > 3 * abs(found.loc["a1", 0] - found.loc["a2", 0])
    assert ax.get_xlabel().startswith("component 1 (")
    # distances are those of the tokens, as far as two components go
    tokens = patients.uns["trm_expression"]["slide_tokens"].reshape(4, -1)
    assert between == pytest.approx(np.linalg.norm(tokens[0] - tokens[2]), rel=0.1)
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["A", "B"]
    colors = ax.collections[0].get_facecolors()
    assert np.array_equal(colors[0], colors[1])
    assert not np.array_equal(colors[1], colors[2])


def test_sections_are_found_by_name_whatever_their_order_in_the_object(patients):
    expected = places(st.pl.slide_tokens(patients))
    mixed = patients[np.random.default_rng(1).permutation(12)].copy()
    pd.testing.assert_frame_equal(places(st.pl.slide_tokens(mixed)), expected)
    some = places(st.pl.slide_tokens(patients, library_id=["b2", "a1"]))
    assert list(some.index) == ["b2", "a1"]


def test_a_section_that_was_not_predicted_is_left_out(patients):
    patients.uns["trm_expression"]["slide_tokens"][1] = np.nan
    assert list(places(st.pl.slide_tokens(patients)).index) == ["a1", "b1", "b2"]


def test_equal_tokens_are_drawn_in_one_place(patients):
    patients.uns["trm_expression"]["slide_tokens"][:] = 1
    assert (places(st.pl.slide_tokens(patients)) == 0).all(axis=None)
