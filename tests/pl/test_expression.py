from __future__ import annotations

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr

from strecur import pl, settings
from strecur.pl._expression import spread_out


@pytest.fixture
def one(make, express):
    return express(make("hex", sections=("a",), size=16))


@pytest.fixture
def two(make, express):
    return express(make("hex", size=16))


def values(ax):
    (spots,) = ax.collections
    return np.ma.filled(spots.get_array(), np.nan)


def titles(axes):
    return [ax.get_title() for ax in np.ravel(axes)]


def rows_of(adata, section):
    return (adata.obs["sample"] == section).to_numpy()


def measured(adata, rows=slice(None)):
    return np.log2(adata.X[rows] + 1)


def pcc(adata, rows=slice(None), key="trm_expression"):
    pairs = zip(measured(adata, rows).T, adata.obsm[key][rows].T, strict=True)
    return np.array([pearsonr(*pair).statistic for pair in pairs])


def test_measured_and_predicted_maps_of_the_chosen_section(two):
    axes = pl.marker_panel(two, ["G2", "G0"], library_id="b")
    rows = rows_of(two, "b")
    for k, gene in enumerate((2, 0)):
        assert values(axes[2 * k]) == pytest.approx(measured(two, rows)[:, gene])
        assert values(axes[2 * k + 1]) == pytest.approx(two.obsm["trm_expression"][rows][:, gene])
    scores = pcc(two, rows)
    assert titles(axes) == [
        *("G2\nmeasured", f"G2\npredicted, PCC {scores[2]:.2f}"),
        *("G0\nmeasured", f"G0\npredicted, PCC {scores[0]:.2f}"),
    ]
    assert axes[0].figure.get_suptitle() == "b"


def test_one_scale_per_gene_that_single_spots_do_not_set(one):
    one.X[7, 0] = 10_000
    axes = pl.marker_panel(one, ["G0", "G1"])
    scales = [ax.collections[0].get_clim() for ax in axes]
    assert scales[0] == scales[1]
    assert scales[2] == scales[3]
    assert scales[0] != scales[2]
    both = np.concatenate([measured(one)[:, 0], one.obsm["trm_expression"][:, 0]])
    assert scales[0] == pytest.approx(tuple(np.percentile(both, [1, 99])))
    # one bar per gene, right of its last map and as high as it
    assert [len(ax.child_axes) for ax in axes] == [0, 1, 0, 1]
    axes[0].figure.canvas.draw()
    bar, box = axes[1].child_axes[0].get_window_extent(), axes[1].get_window_extent()
    assert (bar.y0, bar.y1) == pytest.approx((box.y0, box.y1))
    assert bar.x0 > box.x1


def test_gene_without_counts_has_a_scale(one):
    one.X[:, 0] = 0
    one.obsm["trm_expression"][:, 0] = 0
    axes = pl.marker_panel(one, "G0")
    low, high = axes[0].collections[0].get_clim()
    assert low == 0
    assert high > low
    assert axes[1].get_title() == "G0\npredicted, PCC undefined"


def test_every_axis_of_biology_starts_a_row_with_its_name(one):
    axes = pl.marker_panel(one, {"waves": ["G1", "G2", "G3"], "slope": ["G0"], "none": []}, genes_per_row=2)
    assert [ax.get_ylabel() for ax in axes] == ["waves", "", "", "", "waves", "", "slope", ""]
    axes[0].figure.canvas.draw()
    top = [round(ax.get_window_extent().y1) for ax in axes]
    left = [round(ax.get_window_extent().x0) for ax in axes]
    assert top[:4] == [top[0]] * 4
    assert top[0] > top[4] == top[5] > top[6] == top[7]
    assert left[4:6] == left[6:] == left[:2]


@pytest.mark.parametrize("n_genes", [2, 4, 12, 24])
def test_long_lists_are_wrapped_to_the_shape_of_a_slide(make, express, n_genes):
    adata = express(make("hex", sections=("a",), size=16), n_genes=n_genes)
    width, height = pl.marker_panel(adata, list(adata.var_names))[0].figure.get_size_inches()
    assert 1 < width / height < 4


def test_tissue_stands_beside_the_first_row(one, with_image):
    with_image(one, "a")
    tissue, *maps = pl.marker_panel(one, {"x": ["G0"], "y": ["G1"]})
    assert tissue.get_title() == "H&E"
    assert len(tissue.images) == 1
    assert not tissue.collections
    assert len(maps) == 4
    assert [ax.get_subplotspec().colspan.start for ax in maps] == [1, 2, 1, 2]
    for ax in maps:
        assert not ax.images
        x, _ = np.asarray(ax.collections[0].get_offsets()).T
        assert np.array_equal(x, one.obsm["grid"][:, 1])
        assert ax.yaxis_inverted()
    plain = pl.marker_panel(one, {"x": ["G0"], "y": ["G1"]}, img=False)
    assert len(plain) == 4
    assert not any(ax.images for ax in plain)


@pytest.mark.parametrize("turn", ["quarter", "mirror"])
def test_maps_are_turned_as_the_tissue_is(one, with_image, turn):
    xy = one.obsm["spatial"]
    one.obsm["spatial"] = (
        xy[:, ::-1] if turn == "quarter" else np.column_stack([xy[:, 0].max() + 300 - xy[:, 0], xy[:, 1]])
    )
    with_image(one, "a")
    _, measured_map, predicted_map = pl.marker_panel(one, "G0")
    for ax in (measured_map, predicted_map):
        assert not ax.images
        assert np.allclose(ax.collections[0].get_offsets(), one.obsm["spatial"] * 0.1)
    del one.obsm["grid"]
    assert len(pl.marker_panel(one, "G0")) == 3


def test_section_of_tissue_alone_has_predicted_maps_and_their_reliability(one, with_image):
    plain = with_image(one[:, :0].copy(), "a")
    del plain.X
    axes = pl.marker_panel(plain, ["G0", "G5"], genes_per_row=2)
    assert titles(axes) == ["H&E", "G0\npredicted, reliability 0.90", "G5\npredicted, reliability 0.10"]
    assert values(axes[2]) == pytest.approx(one.obsm["trm_expression"][:, 5])
    table = plain.uns["trm_expression"]["reliability"]
    table["pcc_network"], table["pcc_linear"] = np.nan, table["pcc"]
    plain.obsm["trm_expression_network"] = plain.obsm["trm_expression"]
    assert titles(pl.marker_panel(plain, "G0", img=False)) == ["G0\npredicted, reliability of linear 0.90"]
    table.loc["G0", ["pcc", "pcc_network"]] = 0.7
    assert titles(pl.marker_panel(plain, "G0", img=False)) == ["G0\npredicted, reliability 0.70"]
    del plain.uns["trm_expression"]["reliability"]
    assert titles(pl.marker_panel(plain, "G0", img=False)) == ["G0\npredicted"]
    with pytest.raises(ValueError, match=r"none of the 6 predicted genes was measured.*'reliability'"):
        pl.gene_scores(plain)


def test_genes_of_one_side_have_one_map_and_unknown_ones_are_listed(one):
    one.uns["trm_expression"]["var_names"] = ["G0", "G1", "G2", "G3", "G4", "MKI67"]
    axes = pl.marker_panel(one, ["G5", "G0", "MKI67"])
    assert [title.partition(",")[0] for title in titles(axes)] == [
        *("G5\nmeasured", "G0\nmeasured", "G0\npredicted", "MKI67\npredicted")
    ]
    assert values(axes[0]) == pytest.approx(measured(one)[:, 5])
    with pytest.raises(KeyError, match=r"\['ERBB2', 'GRB7'\] are neither .* predicted are G0, G1, .*, MKI67"):
        pl.marker_panel(one, {"HER2": ["ERBB2", "GRB7"], "slope": ["G0"]})
    with pytest.raises(ValueError, match="no genes"):
        pl.marker_panel(one, {"HER2": []})


def test_genes_are_matched_by_symbol(one):
    one.var["symbol"] = one.var_names
    one.var_names = [f"ENSG0000000000{k}.3" for k in range(one.n_vars)]
    order = [3, 0, 5, 1, 4, 2]
    shuffled = one[:, order].copy()
    assert values(pl.marker_panel(shuffled, "G1")[0]) == pytest.approx(measured(one)[:, 1])
    assert pl.gene_scores(shuffled).lines[1].get_ydata() == pytest.approx(np.sort(pcc(one))[::-1])


def test_several_sections_need_a_choice(two):
    with pytest.raises(ValueError, match=r"choose it with library_id out of \['a', 'b'\]"):
        pl.marker_panel(two, "G0")
    with pytest.raises(KeyError, match=r"\['c'\].*there are \['a', 'b'\]"):
        pl.marker_panel(two, "G0", library_id="c")


def test_counts_are_needed(one):
    one.layers["log"] = np.log1p(one.X)
    one.layers["counts"], one.X = one.X, one.layers["log"]
    for plot in (lambda **kw: pl.marker_panel(one, "G0", **kw), lambda **kw: pl.gene_scores(one, **kw)):
        with pytest.raises(ValueError, match=r"non-integer values.*layer="):
            plot()
        plot(layer="counts")
    with pytest.raises(KeyError, match=r"'raw' is not in adata.layers; there are"):
        pl.gene_scores(one, layer="raw")


def test_depth_does_not_show_where_the_model_predicts_normalised_values(one):
    deeper = one.copy()
    deeper.X[::2] *= 4
    for adata in (one, deeper):
        adata.uns["trm_expression"] |= {"target": "log2_normalised", "target_sum": 50.0}
    shallow, deep = (values(pl.marker_panel(adata, "G1")[0]) for adata in (one, deeper))
    np.testing.assert_allclose(shallow, deep, rtol=1e-5)
    counts = one.X.toarray() if hasattr(one.X, "toarray") else one.X
    np.testing.assert_allclose(shallow, np.log2(50 * counts[:, 1] / counts.sum(axis=1) + 1), rtol=1e-5)
    raw = measured(deeper)[:, 1]
    assert np.corrcoef(shallow, raw)[0, 1] < 0.9
    assert "normalised" in pl.marker_panel(one, "G1")[1].child_axes[0].get_ylabel()
    empty = one.copy()
    empty.X[3] = 0
    assert np.isnan(values(pl.marker_panel(empty, "G1")[0])[3])


def test_missing_spots_are_grey_and_not_scored(one):
    scores = pcc(one, slice(5, None))
    one.obsm["trm_expression"][:5] = np.nan
    axes = pl.marker_panel(one, "G0")
    assert np.isnan(values(axes[1])).sum() == 5
    assert axes[1].get_title().endswith(f"PCC {scores[0]:.2f}")


def test_curve_is_the_ranked_correlation(two):
    ax = pl.gene_scores(two)
    lines = {line.get_label().partition(",")[0]: line for line in ax.lines}
    for name, key in (("prediction", "trm_expression"), ("linear baseline", "trm_expression_linear")):
        expected = pcc(two, key=key)
        assert lines[name].get_ydata() == pytest.approx(np.sort(expected)[::-1])
        assert list(lines[name].get_xdata()) == [1, 2, 3, 4, 5, 6]
        assert lines[name].get_label().endswith(f"median {np.median(expected):.2f}")
        assert any(line.get_ydata() == pytest.approx([np.median(expected)] * 2) for line in ax.lines)
    assert ax.get_ylabel().endswith("2 sections pooled")
    assert ax.get_xlabel() == "genes, best first"


def test_one_line_per_section_and_their_mean(two):
    # section b is predicted worse, and one gene cannot be scored there
    rows = rows_of(two, "b")
    two.obsm["trm_expression"][rows] += np.random.default_rng(0).normal(0, 2, (rows.sum(), 6)).astype(np.float32)
    scores = np.array([pcc(two, rows_of(two, section)) for section in "ab"])
    two.X[np.ix_(rows, [4])] = 0
    scores[1, 4] = np.nan
    ax = pl.gene_scores(two, by_section=True)
    lines = {line.get_label().partition(",")[0]: line.get_ydata() for line in ax.lines[:4]}
    assert lines["_b"] == pytest.approx(np.sort(scores[1, [0, 1, 2, 3, 5]])[::-1])
    assert lines["prediction"] == pytest.approx(np.sort(np.nanmean(scores, axis=0))[::-1])
    assert "mean of 2 sections" in ax.get_ylabel()


def test_one_section_is_named(two):
    ax = pl.gene_scores(two, library_id="b")
    assert ax.get_title() == "b"
    assert ax.lines[1].get_ydata() == pytest.approx(np.sort(pcc(two, rows_of(two, "b")))[::-1])


def test_genes_left_out_are_counted(one):
    one.X[:, 2] = 3
    one.uns["trm_expression"]["var_names"] = ["G0", "G1", "G2", "G3", "G4", "MKI67"]
    ax = pl.gene_scores(one, genes=["G0", "MKI67"])
    assert len(ax.lines[1].get_ydata()) == 4
    note = "not shown: 1 undefined (constant), 1 not measured, among them MKI67"
    assert ax.get_xlabel() == f"genes, best first\n{note}"
    with pytest.raises(KeyError, match=r"genes \['ERBB2'\] are not predicted; .* has G0, G1"):
        pl.gene_scores(one, genes=["ERBB2", "G0"])


def test_named_genes_sit_on_the_curve(one):
    ranked = pd.Series(pcc(one), index=one.var_names).sort_values(ascending=False)
    best = pl.gene_scores(one, n_label=3)
    assert [t.get_text() for t in best.texts] == list(ranked.index[:3])
    ax = pl.gene_scores(one, genes=["G5", "G1"])
    assert {t.get_text(): t.xy for t in ax.texts} == {
        gene: pytest.approx((ranked.index.get_loc(gene) + 1, ranked[gene])) for gene in ("G1", "G5")
    }
    assert not pl.gene_scores(one, n_label=0).texts


def test_heights_are_raised_just_enough():
    heights = np.array([0.9, 0.5, 0.49, 0.48, 0.1])
    spread = spread_out(heights, 0.1, 2.0)
    assert spread == pytest.approx([0.9, 0.68, 0.58, 0.48, 0.1])
    crowded = spread_out(np.linspace(0.9, 0.89, 10), 0.1, 1.0)
    assert crowded == pytest.approx(1 - 0.1 * np.arange(10))
    assert spread_out(np.array([]), 0.1, 1).size == 0


@pytest.mark.parametrize("n_label", [3, 40])
def test_names_of_genes_do_not_overlap(make, express, n_label):
    adata = express(make("hex", sections=("a",), size=8), n_genes=60)
    ax = pl.gene_scores(adata, n_label=n_label)
    ax.figure.canvas.draw()
    boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == n_label
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    axes_box = ax.get_window_extent()
    for box in boxes:
        assert box.x0 > axes_box.x1
        assert box.x1 <= ax.figure.bbox.x1 + 1
        assert box.y0 >= -1


@pytest.mark.parametrize("layout", ["hex", "square", "irregular"])
def test_nothing_is_cut_off_or_covered(make, express, with_image, layout):
    adata = express(make(layout, sections=("a_long_name_of_a_section",), size=12))
    with_image(adata, "a_long_name_of_a_section")
    groups = {"proliferation": ["G0", "G1", "G2"], "invasive front of it": ["G3"], "x": ["G4", "G5"]}
    for img in (True, False):
        axes = pl.marker_panel(adata, groups, img=img)
        figure = axes[0].figure
        figure.canvas.draw()
        boxes = [ax.get_tightbbox() for ax in axes]
        for box in boxes:
            assert box.x0 >= -1
            assert box.x1 <= figure.bbox.x1 + 1
            assert box.y0 >= -1
            assert box.y1 <= figure.bbox.y1 + 1
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert min(ax.get_window_extent().width for ax in axes) > 100


def test_given_axes(two):
    _, axes = plt.subplots(1, 4)
    assert pl.marker_panel(two, ["G0", "G1"], library_id="a", genes_per_row=2, ax=axes) == list(axes)
    with pytest.raises(ValueError, match=r"6 panels \(2 rows of up to 2 genes\), but ax holds 4"):
        pl.marker_panel(two, ["G0", "G1", "G2"], library_id="a", genes_per_row=2, ax=axes)
    _, single = plt.subplots()
    assert pl.gene_scores(two, ax=single) is single
    assert len(plt.get_fignums()) == 2


@pytest.mark.parametrize("plot", [lambda a: pl.marker_panel(a, "G0"), pl.gene_scores])
def test_missing_results_name_the_call_and_nothing_changes(one, plot):
    before, rc = one.copy(), dict(mpl.rcParams)
    plot(one[:100])
    plot(one)
    pd.testing.assert_frame_equal(one.obs, before.obs)
    assert set(one.uns) == set(before.uns)
    assert np.array_equal(one.X, before.X)
    assert dict(mpl.rcParams) == rc
    one.obsm["trm_expression"] = one.obsm["trm_expression"][:, :4]
    with pytest.raises(ValueError, match=r"shape \(256, 4\), but .* has 6 genes"):
        plot(one)
    del one.obsm["trm_expression"]
    with pytest.raises(KeyError, match=r"predict_expression\(adata, model, key_added='trm_expression'\)"):
        plot(one)


def test_results_read_back_from_disk_draw_the_same(one, tmp_path):
    one.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    before, after = (pl.marker_panel(adata, ["G0", "G1"]) for adata in (one, again))
    assert titles(before) == titles(after)
    assert np.array_equal(values(before[3]), values(after[3]))
    assert np.array_equal(pl.gene_scores(one).lines[1].get_ydata(), pl.gene_scores(again).lines[1].get_ydata())


def test_real_breast_section(data_dir):
    from scipy.spatial import cKDTree

    adata = ad.read_h5ad(data_dir / "her2st" / "C2.h5ad")
    genes = ["ERBB2", "GRB7", "COL1A1", "MKI67"]
    truth = np.log2(adata[:, genes].X.toarray() + 1)
    place = adata.obs[["array_row", "array_col"]].to_numpy(dtype=np.int32)
    adata.obsm["grid"], adata.uns["grid"] = place, {"layout": "square"}
    adata.obsm["trm_expression"] = truth[cKDTree(place).query(place, k=9)[1]].mean(axis=1)
    adata.uns["trm_expression"] = {"params": {"library_key": "sample"}, "var_names": genes, "target": "log2"}
    axes = pl.marker_panel(adata, {"HER2": genes[:2], "stroma": genes[2:3]})
    assert values(axes[0]) == pytest.approx(truth[:, 0])
    scores = [np.corrcoef(truth[:, k], adata.obsm["trm_expression"][:, k])[0, 1] for k in range(4)]
    assert axes[1].get_title() == f"ERBB2\npredicted, PCC {scores[0]:.2f}"
    assert pl.gene_scores(adata).lines[1].get_ydata() == pytest.approx(sorted(scores, reverse=True))


def spot_colors(ax):
    (spots,) = ax.collections
    return spots.cmap(np.linspace(0, 1, 5))[:, :3]


def test_predicted_maps_of_unreliable_genes_are_muted(one):
    """The reliability in training decides, not the correlation in this section, which may be high by chance."""
    one.X[:, 5] = np.round(2 ** one.obsm["trm_expression"][:, 5] * 100)
    axes = pl.marker_panel(one, ["G0", "G5"], img=False)
    saturation = [np.ptp(spot_colors(ax), axis=1).max() for ax in axes]
    assert saturation[0] == saturation[1] == saturation[2] > 3 * saturation[3]
    first, second = axes[3].get_title().split("\n")
    assert first == "G5 (reliability 0.10)"
    assert float(second.removeprefix("predicted, PCC ")) > 0.9
    assert axes[2].get_title() == "G5\nmeasured"
    assert axes[3].title.get_color() != axes[1].title.get_color() == axes[2].title.get_color()
    assert axes[2].collections[0].get_clim() == axes[3].collections[0].get_clim()
    # the bar beside both has the colours of the measured map
    (bar,) = axes[3].child_axes
    (colors,) = [part for part in bar.collections if isinstance(part, mpl.collections.QuadMesh)]
    assert colors.cmap.name == "viridis"


def test_the_reliability_that_mutes_is_named_and_a_setting(one):
    table = one.uns["trm_expression"]["reliability"]
    table["pcc_network"], table["pcc_linear"] = np.nan, table["pcc"]
    one.obsm["trm_expression_network"] = one.obsm["trm_expression"]
    assert titles(pl.marker_panel(one, "G5", img=False))[1].startswith(
        "G5 (reliability of linear 0.10)\npredicted, PCC"
    )
    with settings.override(min_reliability=None):
        assert titles(pl.marker_panel(one, "G5", img=False))[1].startswith("G5\npredicted, PCC")
    with settings.override(min_reliability=0.95):
        assert titles(pl.marker_panel(one, "G0", img=False))[1].startswith("G0 (reliability of linear 0.90)")
    with settings.override(min_reliability="low"), pytest.raises(TypeError, match="settings.min_reliability='low'"):
        pl.marker_panel(one, "G0", img=False)
    # what is not known is not low
    table.loc["G5", "pcc"] = np.nan
    assert titles(pl.marker_panel(one, "G5", img=False))[1].startswith("G5\npredicted, PCC")
    del one.uns["trm_expression"]["reliability"]
    assert titles(pl.marker_panel(one, "G5", img=False))[1].startswith("G5\npredicted, PCC")


def test_unreliable_genes_are_grey_on_the_curve(one):
    ranked = pd.Series(pcc(one), index=one.var_names).sort_values(ascending=False)
    with settings.override(min_reliability=0.3):
        ax = pl.gene_scores(one, genes=["G0", "G4", "G5"])
    low = sorted(ranked.index.get_indexer(["G4", "G5"]) + 1)
    (dots,) = ax.collections
    assert np.asarray(dots.get_offsets())[:, 0] == pytest.approx(np.array(low))
    assert "reliability below 0.3, 2 genes" in [text.get_text() for text in ax.get_legend().get_texts()]
    colors = {text.get_text(): text.get_color() for text in ax.texts}
    assert colors["G4"] == colors["G5"] != colors["G0"]
    with settings.override(min_reliability=None):
        assert not pl.gene_scores(one).collections
