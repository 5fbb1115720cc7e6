from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from strecur import metrics, pl


def names(axis_labels):
    return [text.get_text() for text in axis_labels]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_cells_show_the_shares_and_counts_of_the_metrics(hex_sections):
    ax = pl.confusion(hex_sections, truth="layer")
    counts = metrics.confusion_table(hex_sections.obs["layer"], hex_sections.obs["trm_domains"])
    shares = counts.div(counts.sum(axis=1), axis=0).to_numpy()
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    shown = shares >= 0.005
    assert texts(ax)[1::2] == [str(n) for n in counts.to_numpy()[shown]]
    assert texts(ax)[::2] == [f"{100 * share:.0f}%" for share in shares[shown]]
    assert names(ax.get_xticklabels()) == ["L1", "L2", "L3", "L4"]
    assert names(ax.get_yticklabels()) == [f"{name} ({n})" for name, n in counts.sum(axis=1).items()]
    assert ax.get_title() == "2 sections"


def test_sections_are_counted_apart(hex_sections):
    first, second = pl.confusion(hex_sections, truth="layer", by_section=True)
    assert [first.get_title(), second.get_title()] == ["a", "b"]
    of_a = pl.confusion(hex_sections, truth="layer", library_id="a")
    assert texts(of_a) == texts(first) != texts(second)
    with pytest.raises(ValueError, match="2 panels"):
        pl.confusion(hex_sections, truth="layer", by_section=True, ax=plt.subplots()[1])


def test_unknown_and_never_predicted_domains_are_marked(hex_sections):
    adata = hex_sections
    truth = adata.obs["layer"].cat.add_categories("tumour")
    truth[adata.obs["layer"] == "L1"] = "tumour"
    adata.obs["layer"] = truth
    adata.uns["trm_domains"]["categories"] = ["L1", "L2", "L3", "L4", "L5"]
    ax = pl.confusion(adata, truth="layer")
    rows = {text.get_text().split(" (")[0]: text.get_color() for text in ax.get_yticklabels()}
    columns = {text.get_text(): text.get_color() for text in ax.get_xticklabels()}
    assert list(rows) == ["L1", "L2", "L3", "L4", "L5", "tumour"]
    assert [name for name, color in rows.items() if color != "black"] == ["tumour"]
    assert [name for name, color in columns.items() if color != "black"] == ["L5"]
    assert "unknown to the model" in ax.get_ylabel()
    assert "never predicted" in ax.get_xlabel()
    # a domain that is not annotated has no shares
    assert np.ma.getmaskarray(ax.images[0].get_array())[0].all()


@pytest.mark.parametrize("n_domains", [7, 12])
def test_text_fits_its_cell(make, n_domains):
    adata = make("hex", size=2 * n_domains, n_labels=n_domains)
    ax = pl.confusion(adata, truth="layer")
    ax.figure.canvas.draw()
    cell = ax.get_window_extent().height / n_domains
    for share, count in zip(ax.texts[::2], ax.texts[1::2], strict=True):
        boxes = [text.get_window_extent() for text in (share, count)]
        assert max(box.width for box in boxes) < cell
        assert boxes[0].y1 - boxes[1].y0 < cell
        assert share.get_fontsize() >= 5
    for axis in (ax.get_xticklabels(), ax.get_yticklabels()):
        boxes = [text.get_window_extent() for text in axis if text.get_text()]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_other_columns_and_missing_ones(hex_sections):
    baseline = pl.confusion(hex_sections, "trm_domains_linear", truth="layer")
    assert baseline.get_xlabel() == "trm_domains_linear"
    assert texts(baseline) != texts(pl.confusion(hex_sections, truth="layer"))
    hex_sections.obs["none"] = pd.Series(None, index=hex_sections.obs_names, dtype=object)
    with pytest.raises(ValueError, match="is annotated"):
        pl.confusion(hex_sections, truth="none")
