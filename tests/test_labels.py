"""Labels as they come from files and other packages, with every way to write that one is missing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import strecur
from strecur._anndata import read_labels, read_sections
from strecur._labels import MISSING_WORDS, clean_labels
from strecur._tissue import find_background

many = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
WORDS = ["None", "<NA>", "N/A", "nan", "NaN", "NA", "null", "NULL", "NaT", "Unknown", "unknown", "unassigned", "", "  "]


@pytest.fixture(params=[False, True], ids=["text as objects", "text type of pandas 3"])
def _text(request):
    with pd.option_context("future.infer_string", request.param):
        yield


@pytest.mark.usefixtures("_text")
@pytest.mark.parametrize("word", [*WORDS, None, np.nan, pd.NA, pd.NaT])
@pytest.mark.parametrize("kind", [object, "category", "string"])
def test_missing_labels_are_none_whatever_they_are_called(word, kind):
    labels = clean_labels(pd.Series(pd.array(["L1", word, "L2"], dtype=object)).astype(kind))
    assert labels.to_list() == ["L1", None, "L2"]
    assert labels.dtype == object


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1, 2, None]),
        pd.Series([1, 2, None], dtype="Int64"),
        pd.Series([1.0, 2.0, np.nan]).astype(str),
        pd.Series([1, 2, None], dtype="Int64").astype(str),
        pd.Series([1, 2, None]).astype("category"),
        pd.Series(["1.0", "2", " "]),
        pd.Series([1, 2, np.inf]),
        pd.Series([1, 2, -1]),
        pd.Series([1.0, 2.0, -1.0]),
        pd.Series(["1", "2", "-1"]),
        np.array([1, 2, -1], dtype=np.int8),
    ],
)
def test_codes_are_written_alike(column):
    assert clean_labels(column).to_list() == ["1", "2", None]


def test_minus_one_is_a_label_among_other_negative_numbers_alone():
    assert clean_labels([-1, -2, 3]).to_list() == ["-1", "-2", "3"]
    assert clean_labels(["-1", "L1"]).to_list() == [None, "L1"]
    assert clean_labels([-1, -1]).to_list() == ["-1", "-1"]


SPELLINGS = ["Not annotated", "not_annotated", "Not-Annotated", "NotAnnotated", "No label", "no_annotation", "unk"]
SPELLINGS += ["Not assigned", "not labelled", "Unlabeled", "Unclassified", "(none)", "[]", "*", "\u200b", "N / A"]


@pytest.mark.parametrize("word", [*SPELLINGS, "\u00a0"])
def test_words_for_missing_labels_in_any_spelling(word):
    assert clean_labels([word, "L1"]).to_list() == [None, "L1"]


@pytest.mark.parametrize("label", ["+", "NA+", "NA 2", "Unknown 3", "None of these", "Layer NA", "α", "层", "Excluded"])
def test_labels_that_resemble_words_for_missing_ones(label):
    assert clean_labels([label, "L1"]).to_list() == [label, "L1"]


def test_labels_in_bytes_are_text():
    assert clean_labels([b"L1", np.bytes_(b"L2"), b"nan"]).to_list() == ["L1", "L2", None]


def read(labels):
    names = [f"s{i}" for i in range(len(labels))]
    obs = pd.DataFrame({"domain": pd.Series(labels, index=names, dtype=object)})
    return read_labels(ad.AnnData(np.ones((len(labels), 1), np.float32), obs=obs), "domain")


def test_labels_that_differ_in_case_alone_are_reported(caplog):
    assert read(["Tumor", "tumor", "stroma"]).nunique() == 3
    assert "differ in case alone and are domains of their own: [['Tumor', 'tumor']]" in caplog.text
    caplog.clear()
    read(["Tumor", "stroma"])
    assert not caplog.records


def test_lists_are_no_labels():
    with pytest.raises(TypeError, match=r"obs\['domain'\] holds lists"):
        read([["a"], ["b"]])


@many
@given(st.sampled_from(sorted(MISSING_WORDS)), st.data())
def test_case_and_blanks_around_a_word_do_not_matter(word, data):
    letters = "".join(data.draw(st.sampled_from([letter.upper(), letter])) for letter in word)
    blanks = st.text(" \t\n", max_size=2)
    assert clean_labels([data.draw(blanks) + letters + data.draw(blanks), "L1"]).to_list() == [None, "L1"]


@many
@given(st.lists(st.sampled_from(["L1", "L10", "white matter", "0", "Na+", "Nanog", "none of these"]), min_size=1))
def test_words_inside_labels_are_no_missing_labels(labels):
    assert clean_labels(labels).to_list() == labels


def test_read_labels_says_which_words_count_as_missing(caplog):
    caplog.set_level("INFO", logger="strecur")
    adata = ad.AnnData(obs=pd.DataFrame({"domain": ["L1", "Unknown", "N/A", None]}, index=list("abcd")))
    assert read_labels(adata, "domain").to_list() == ["L1", None, None, None]
    assert "['N/A', 'Unknown'] count as missing" in caplog.text


def test_scores_match_codes_of_any_type_and_leave_missing_words_out():
    scores = strecur.metrics.domain_scores(["1.0", "2.0", "None", "<NA>"], [1, 2, 1, 2])
    assert (scores["accuracy"], scores["n_spots"]) == (1, 2)


@pytest.mark.usefixtures("_text")
@pytest.mark.parametrize("kind", [int, float, object, "category", "Int64"])
def test_sections_that_are_numbers_have_one_name(kind):
    adata = ad.AnnData(obs=pd.DataFrame({"slide": pd.Series([10, 9, 10]).astype(kind).to_numpy()}, index=list("abc")))
    sections = read_sections(adata, "slide")
    assert sections.names == ["10", "9"]
    assert sections.codes.tolist() == [0, 1, 0]


@pytest.mark.parametrize("word", ["nan", "None", "<NA>", "", " "])
def test_a_section_that_is_called_missing_is_missing(word):
    adata = ad.AnnData(obs=pd.DataFrame({"slide": ["a", word, "a"]}, index=list("abc")))
    with pytest.raises(ValueError, match="missing for 1 spots"):
        read_sections(adata, "slide")


@pytest.mark.parametrize("names", [["S1", "S1 "], ["a b", "a  b"]])
def test_sections_that_differ_in_blanks_alone_are_refused(names):
    adata = ad.AnnData(np.ones((2, 1), np.float32), obs=pd.DataFrame({"section": names}, index=["x", "y"]))
    with pytest.raises(ValueError, match="differ in blanks alone"):
        read_sections(adata, "section")


def in_tissue(values):
    obs = pd.DataFrame({"in_tissue": pd.Series(values, index=["x", "y"])})
    return find_background(ad.AnnData(np.ones((2, 1), np.float32), obs=obs)).tolist()


OUTSIDE = [[0, 1], [False, True], ["0", "1"], ["False", "True"], [0.0, 1.0], ["0.0", "1.0"], ["no", "yes"]]
OUTSIDE += [["out", "in"], pd.Categorical([0, 1]), [0, np.nan], pd.array([False, True], dtype="boolean")]


@pytest.mark.parametrize("values", OUTSIDE)
def test_spots_outside_the_tissue_in_any_type(values):
    assert in_tissue(np.asarray(values, dtype=object)) == [True, False]


def test_words_for_the_tissue_that_are_not_known_are_refused():
    with pytest.raises(ValueError, match=r"obs\['in_tissue'\] holds \['cortex', 'glass'\]; it is 1 for spots in"):
        in_tissue(["glass", "cortex"])
