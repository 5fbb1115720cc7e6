from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection

from strecur import pl


@pytest.fixture
def table() -> pd.DataFrame:
    """Return scores of three methods on two donors with two seeds, of which one donor lacks the second."""
    rows = [
        ("D1", 0, "linear", 0.5, 2.0),
        ("D1", 0, "trm", 0.6, 1.0),
        ("D1", 1, "linear", 0.5, 2.0),
        ("D1", 1, "trm", 0.8, 1.2),
        ("D2", 0, "linear", 0.3, 3.0),
        ("D2", 0, "trm", 0.4, 2.9),
        ("D2", 0, "feedforward", 0.2, np.nan),
    ]
    return pd.DataFrame(rows, columns=["group", "seed", "method", "ari", "mse"])


def rows_of(ax) -> list[str]:
    """Return the methods from top to bottom."""
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    return [label.get_text() for label in ax.get_yticklabels()]


def dots_of(ax, row: int) -> list[float]:
    """Return the scores drawn in a row."""
    dots = np.concatenate([c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)])
    return sorted(dots[np.abs(dots[:, 1] - row) < 0.5, 0].round(6).tolist())


def test_every_fold_and_seed_is_a_dot_and_methods_are_ordered_by_their_mean(table):
    ax = pl.benchmark(table)
    assert rows_of(ax) == ["trm", "linear", "feedforward"]
    assert dots_of(ax, 0) == [0.4, 0.6, 0.8]
    assert dots_of(ax, 1) == [0.3, 0.5, 0.5]
    assert dots_of(ax, 2) == [0.2]
    # means of means: a group counts the same however many seeds it has
    assert {"0.550", "0.400", "0.200"} <= {text.get_text() for text in ax.texts}
    (baseline,) = [line for line in ax.lines if line.get_linestyle() == "--"]
    assert baseline.get_xdata()[0] == pytest.approx(0.4)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["D1", "D2"]


def test_of_errors_less_is_better(table):
    ax = pl.benchmark(table, score="mse")
    assert rows_of(ax) == ["trm", "linear", "feedforward"]  # without a score: last
    assert ax.get_xlabel() == "mean squared error (less is better)"
    assert "–" in {text.get_text() for text in ax.texts}


def test_expression_has_a_score_of_its_own(table):
    ax = pl.benchmark(table.rename(columns={"ari": "pcc_300"}))
    assert ax.get_xlabel() == "PCC-300"
    assert rows_of(ax)[0] == "trm"


def test_shared_donors_are_told(table):
    assert pl.benchmark(table).get_title(loc="left") == ""
    shared = table.assign(shared_donor=pd.array([True, pd.NA, False, False, False, False, False], dtype="boolean"))
    assert "same donors" in pl.benchmark(shared).get_title(loc="left")
    unknown = table.assign(shared_donor=pd.array([pd.NA] * 7, dtype="boolean"))
    assert pl.benchmark(unknown).get_title(loc="left") == ""


def test_many_groups_have_one_colour_and_no_legend(table):
    many = pd.concat([table.assign(group=f"P{k}") for k in range(13)])
    ax = pl.benchmark(many)
    assert ax.get_legend() is None
    assert len(dots_of(ax, 0)) == 39


def test_axes_of_the_caller(table):
    _, ax = plt.subplots()
    assert pl.benchmark(table, ax=ax) is ax
    with pytest.raises(ValueError, match="1 panels"):
        pl.benchmark(table, ax=[ax, ax])


def test_bad_tables_are_named(table):
    with pytest.raises(KeyError, match=r"no column.*nmi.*there are.*strecur.tl.cross_validate"):
        pl.benchmark(table, score="nmi")
    with pytest.raises(KeyError, match="method"):
        pl.benchmark(table.drop(columns="method"))
    with pytest.raises(ValueError, match="no rows"):
        pl.benchmark(table.iloc[:0])
