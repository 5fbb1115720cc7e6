from __future__ import annotations

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from strecur import pl


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "seconds": [1.0, 2.0, 3.0, 4.0],
            "train_loss": [4.0, 3.0, 2.0, 1.0],
            "learning_rate": [1e-3, 2e-3, 1e-3, 0.0],
            "validation_ari": [0.1, np.nan, 0.6, 0.3],
            "validation_mse": [0.9, 0.2, 0.5, 0.4],
        },
        index=[10, 11, 12, 13],
    )


def test_curves_and_best_epochs(history):
    loss, ari, mse = pl.training(SimpleNamespace(history=history))
    assert list(loss.lines[0].get_ydata()) == [4, 3, 2, 1]
    assert ari.get_title() == "best 0.6 at epoch 3"
    assert ari.get_ylabel() == "validation ARI"
    # of an error less is better
    assert mse.get_title() == "best 0.2 at epoch 2"


def test_line_joins_the_epochs_that_were_validated(history):
    ari = pl.training(history)[1]
    assert list(ari.lines[0].get_xdata()) == [1, 3, 4]
    assert list(ari.lines[0].get_ydata()) == [0.1, 0.6, 0.3]


def test_names_and_whole_epochs(history):
    history = history.rename(columns={"validation_mse": "validation_pcc_50"})
    axes = pl.training(history)
    assert axes[2].get_ylabel() == "validation PCC 50"
    axes[0].figure.canvas.draw()
    assert all(tick == int(tick) for ax in axes for tick in ax.get_xticks())


def test_blocks_are_told_from_sections(history):
    names = {"validation_ari": "blocks_log_likelihood", "validation_mse": "blocks_mse"}
    _, likelihood, mse = pl.training(history.rename(columns=names))
    assert likelihood.get_ylabel() == "held-out blocks: log likelihood"
    assert likelihood.get_title() == "best 0.6 at epoch 3"
    assert mse.get_title() == "best 0.2 at epoch 2"


def test_without_validation_and_with_own_axes(history):
    _, ax = plt.subplots()
    assert pl.training(history[["epoch", "train_loss"]], ax=ax) == [ax]
    with pytest.raises(ValueError, match="3 panels"):
        pl.training(history, ax=ax)


def test_history_is_checked(history):
    with pytest.raises(TypeError, match="got dict without one"):
        pl.training({})
    with pytest.raises(KeyError, match=r"\['train_loss'\]; there are"):
        pl.training(history.drop(columns="train_loss"))
    with pytest.raises(ValueError, match="no epochs"):
        pl.training(history.iloc[:0])


def test_unfinished_validation(history):
    history["validation_ari"] = np.nan
    assert pl.training(history)[1].get_title() == ""
