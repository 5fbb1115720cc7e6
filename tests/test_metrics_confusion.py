"""Confusion of domains, and scores of each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from strecur import metrics

TRUTH = ["L1", "L1", "L1", "L2", "L2", "WM", None, "L1"]
PREDICTED = ["L1", "L2", "L1", "L2", "L1", "L2", "L1", np.nan]


def test_rows_are_annotated_domains_and_columns_predicted_ones():
    table = metrics.confusion_table(TRUTH, PREDICTED)
    # not symmetric, so that exchanged axes fail
    assert table.to_dict("index") == {
        "L1": {"L1": 2, "L2": 1},
        "L2": {"L1": 1, "L2": 1},
        "WM": {"L1": 0, "L2": 1},
    }
    assert (table.index.name, table.columns.name) == ("truth", "predicted")
    shares = metrics.confusion_table(TRUTH, PREDICTED, shares=True)
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3], [0.5, 0.5], [0, 1]])


def test_domains_the_model_knows_have_a_column_even_if_never_predicted():
    table = metrics.confusion_table(TRUTH, PREDICTED, labels=["L2", "L1", "L3"])
    assert list(table.columns) == ["L2", "L1", "L3"]
    assert list(table.index) == ["L2", "L1", "L3", "WM"]
    assert table["L3"].sum() == 0
    shares = metrics.confusion_table(TRUTH, PREDICTED, labels=["L2", "L1", "L3"], shares=True)
    # without spots there is no share
    assert shares.loc["L3"].isna().all()
    assert metrics.confusion_table(TRUTH, PREDICTED).to_numpy().sum() == 6


def test_order_is_that_of_the_categories():
    layers = ["L10", "L2", "L1"]
    predicted = pd.Categorical(["L1", "L10"], categories=layers)
    truth = pd.Categorical(["L1", "tumour"], categories=["tumour", "L1", "unused"])
    table = metrics.confusion_table(truth, predicted)
    assert list(table.columns) == layers
    assert list(table.index) == [*layers, "tumour"]
    assert list(metrics.confusion_table([2, 10], [10, 10.0]).index) == ["10", "2"]
    assert metrics.confusion_table([2, 10], [10, 10.0]).loc["10", "10"] == 1


def test_scores_by_domain_are_those_of_the_confusion_table():
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice(list("abcd"), 400), rng.choice(list("abc"), 400, p=[0.6, 0.3, 0.1])
    table, scores = metrics.confusion_table(truth, predicted), metrics.scores_by_domain(truth, predicted)
    hits = pd.Series({name: table.loc[name, name] for name in "abc"})
    assert list(scores.index) == list("abcd")
    np.testing.assert_allclose(scores.loc[list("abc"), "recall"], hits / table.sum(axis=1)[list("abc")])
    np.testing.assert_allclose(scores.loc[list("abc"), "precision"], hits / table.sum(axis=0))
    np.testing.assert_array_equal(scores["n_spots"], table.sum(axis=1))
    assert scores["n_predicted"].to_list() == [*table.sum(axis=0), 0]
    macro = metrics.domain_scores(truth, predicted)["macro_f1"]
    assert scores["f1"].mean() == pytest.approx(macro)


def test_undefined_scores_are_missing_not_zero():
    scores = metrics.scores_by_domain(TRUTH, PREDICTED, labels=["L1", "L2", "L3"])
    assert np.isnan(scores.loc["WM", "precision"])
    assert scores.loc["WM", ["recall", "f1"]].to_list() == [0, 0]
    assert scores.loc["L3", ["precision", "recall", "f1"]].isna().all()
    assert scores["n_spots"].to_dict() == {"L1": 3, "L2": 2, "L3": 0, "WM": 1}
    nothing = metrics.scores_by_domain([None, "a"], ["a", None])
    assert nothing["n_spots"].sum() == 0
    assert nothing[["precision", "recall", "f1"]].isna().all(axis=None)
    assert metrics.confusion_table([None, "a"], ["a", None]).to_numpy().sum() == 0


def test_labels_must_hold_what_is_predicted():
    for call in (metrics.confusion_table, metrics.scores_by_domain):
        with pytest.raises(ValueError, match=r"lacks the predicted domains \['L2'\]"):
            call(TRUTH, PREDICTED, labels=["L1"])
        with pytest.raises(ValueError, match="twice"):
            call(TRUTH, PREDICTED, labels=["L1", "L2", "L1"])
        with pytest.raises(ValueError, match="must match"):
            call(TRUTH, PREDICTED[1:])
