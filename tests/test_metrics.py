from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn import metrics as sk

from strecur import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def expression(rng):
    """log2(counts + 1) of 80 spots × 12 genes and a noisy prediction, float64."""
    counts = rng.poisson(rng.gamma(2, 4, size=12), size=(80, 12))
    truth = np.log2(counts + 1)
    return truth, truth + rng.normal(0, 0.7, truth.shape)


# Domains


def test_domain_scores_agree_with_scikit_learn(rng):
    truth, predicted = rng.choice(list("abcd"), 200), rng.choice(list("abcd"), 200)
    predicted[:120] = truth[:120]
    scores = metrics.domain_scores(truth, predicted)
    assert scores["ari"] == pytest.approx(sk.adjusted_rand_score(truth, predicted))
    assert scores["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, predicted))
    assert scores["accuracy"] == pytest.approx((truth == predicted).mean())
    assert scores["macro_f1"] == pytest.approx(sk.f1_score(truth, predicted, average="macro"))
    assert scores["n_spots"] == 200


@pytest.mark.parametrize("missing", [np.nan, None, "nan", "NA", "", pd.NA])
def test_unlabelled_spots_are_not_a_class(missing):
    truth = ["a", "a", "b", "b", missing, missing]
    predicted = ["a", "a", "b", "b", "a", "b"]
    scores = metrics.domain_scores(truth, predicted)
    assert scores["ari"] == 1.0
    assert scores["accuracy"] == 1.0
    assert scores["n_spots"] == 4
    # the trap: as a class of its own the missing label costs ARI
    assert sk.adjusted_rand_score([str(t) for t in truth], predicted) < 0.9


def test_ari_with_missing_labels_equals_ari_on_the_subset(rng):
    truth = pd.Series(rng.choice(["a", "b", "c", None], 300), dtype="category")
    predicted = pd.Categorical(rng.choice(["a", "b", "c"], 300))
    known = truth.notna().to_numpy()
    expected = sk.adjusted_rand_score(truth[known].astype(str), predicted[known])
    assert metrics.domain_scores(truth, predicted)["ari"] == pytest.approx(expected)


def test_ari_ignores_label_names_accuracy_does_not(rng):
    truth = rng.choice(list("abc"), 100)
    renamed = pd.Series(truth).map({"a": "b", "b": "c", "c": "a"})
    scores = metrics.domain_scores(truth, renamed)
    assert (scores["ari"], scores["nmi"]) == (pytest.approx(1), pytest.approx(1))
    assert scores["accuracy"] == 0


def test_constant_labels():
    assert metrics.domain_scores(["a", "b", "a", "b"], ["a"] * 4)["ari"] == 0.0
    assert metrics.domain_scores(["a"] * 4, ["a"] * 4)["ari"] == 1.0


def test_missing_predictions_are_counted_and_nothing_scored_is_nan():
    scores = metrics.domain_scores(["a", "b", "b", None], ["a", None, "b", "b"])
    assert (scores["n_spots"], scores["n_missing"]) == (2, 1)
    empty = metrics.domain_scores([None, np.nan], ["a", "b"])
    assert np.isnan([empty[k] for k in ("ari", "nmi", "accuracy", "macro_f1")]).all()
    assert empty["n_spots"] == 0


def test_series_in_another_order_raise():
    truth = pd.Series(["a", "b"], index=["s1", "s2"])
    with pytest.raises(ValueError, match="index"):
        metrics.domain_scores(truth, truth[::-1])
    with pytest.raises(ValueError, match="shape"):
        metrics.domain_scores(truth, ["a"])


# Calibration


def test_calibrated_probabilities_have_no_calibration_error(rng):
    confidence = rng.uniform(0.5, 1, 40_000)
    truth = np.where(rng.random(40_000) < confidence, "a", "b")
    proba = np.column_stack([confidence, 1 - confidence])
    assert metrics.expected_calibration_error(truth, proba, ["a", "b"]) < 0.015
    overconfident = np.column_stack([np.ones(40_000), np.zeros(40_000)])
    expected = 1 - (truth == "a").mean()
    assert metrics.expected_calibration_error(truth, overconfident, ["a", "b"]) == pytest.approx(expected)


def test_calibration_error_by_hand():
    proba = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.3, 0.7]])
    # bins [.8, 1] and [.6, .8): accuracies 1/2 and 1/2 against confidences .9 and .65
    error = metrics.expected_calibration_error(["a", "b", "b", "a"], proba, ["a", "b"], n_bins=5)
    assert error == pytest.approx(0.5 * 0.4 + 0.5 * 0.15)


def test_calibration_drops_missing_and_counts_unknown_labels_as_wrong():
    proba = np.array([[1.0, 0], [1.0, 0], [np.nan, np.nan], [1.0, 0]], dtype=np.float32)
    labels = ["a", "b"]
    assert metrics.expected_calibration_error(["a", None, "a", "a"], proba, labels) == 0
    assert metrics.expected_calibration_error(["a", "new", "a", "new"], proba, labels) == pytest.approx(2 / 3)
    assert np.isnan(metrics.expected_calibration_error([None] * 4, proba, labels))


def test_calibration_raises_on_logits_and_wrong_shapes():
    with pytest.raises(ValueError, match="probabilities"):
        metrics.expected_calibration_error(["a"], [[3.0, -1.0]], ["a", "b"])
    with pytest.raises(ValueError, match="3 labels"):
        metrics.expected_calibration_error(["a"], [[0.5, 0.5]], ["a", "b", "c"])


# Correlation per gene


def test_pcc_agrees_with_scipy(expression):
    truth, predicted = expression
    pcc = metrics.pcc_per_gene(truth.astype(np.float32), sparse.csr_matrix(predicted))
    expected = [stats.pearsonr(truth[:, g].astype(np.float32), predicted[:, g]).statistic for g in range(12)]
    np.testing.assert_allclose(pcc, expected, rtol=1e-6)
    assert pcc.dtype == np.float64


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3, 1e-9])
def test_a_gene_constant_up_to_rounding_is_undefined(expression, constant):
    truth, predicted = expression
    predicted[:, 3] = constant
    predicted[::2, 3] *= 1 + 1e-15
    pcc = metrics.pcc_per_gene(truth, predicted)
    assert np.flatnonzero(np.isnan(pcc)).tolist() == [3]
    assert np.isnan(metrics.pcc_per_gene(predicted, truth)[3])


def test_tiny_values_that_vary_are_defined(expression):
    truth, predicted = expression
    np.testing.assert_allclose(
        metrics.pcc_per_gene(truth, predicted * 1e-15), metrics.pcc_per_gene(truth, predicted), rtol=1e-9
    )


def test_all_constant_gives_nan_without_warning(recwarn):
    truth, predicted = np.ones((5, 3)), np.zeros((5, 3))
    assert np.isnan(metrics.pcc_per_gene(truth, predicted)).all()
    scores = metrics.expression_scores(truth, predicted)
    assert np.isnan(scores["pcc_all"])
    assert (scores["n_undefined"], scores["n_constant"]) == (3, 3)
    assert not recwarn.list


def test_pcc_top_is_not_fooled_by_nan():
    pcc = np.array([0.1, np.nan, 0.9, 0.5, np.nan, -0.3])
    assert metrics.pcc_top(pcc, 2) == pytest.approx(0.7)
    assert metrics.pcc_top(pcc, 300) == metrics.pcc_top(pcc) == pytest.approx(0.3)
    assert np.isnan(metrics.pcc_top([np.nan, np.nan], 10))
    # the trap: NaN leaves a list unsorted
    assert sorted(pcc, reverse=True)[:2] != [0.9, 0.5]


def test_pcc_is_invariant_to_affine_maps_per_gene_and_mse_is_not(expression, rng):
    truth, predicted = expression
    mapped = predicted * rng.uniform(0.1, 5, 12) + rng.normal(size=12)
    before, after = (metrics.expression_scores(truth, values) for values in (predicted, mapped))
    for name in ("pcc_10", "pcc_300", "pcc_all", "gene_structure"):
        assert after[name] == pytest.approx(before[name])
    assert after["mse"] != pytest.approx(before["mse"], rel=0.1)


# Variance


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_rvd_of_scaled_predictions(expression, scale):
    truth, _ = expression
    assert metrics.rvd(truth, scale * truth) == pytest.approx((scale**2 - 1) ** 2)
    assert metrics.rvd_std(truth, scale * truth) == pytest.approx((scale - 1) ** 2)


def test_rvd_leaves_out_genes_constant_in_the_truth(expression):
    truth, predicted = expression
    expected = metrics.rvd(truth[:, 1:], predicted[:, 1:])
    truth[:, 0] = 0.1
    assert metrics.rvd(truth, predicted) == pytest.approx(expected)
    assert metrics.expression_scores(truth, predicted)["n_constant"] == 1
    assert np.isnan(metrics.rvd(np.ones((4, 2)), np.ones((4, 2))))


# Structure


def test_gene_structure_sees_the_dependence_between_genes(rng):
    programs = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 20))
    truth = programs + 0.3 * rng.normal(size=(400, 20))
    shuffled = np.column_stack([rng.permutation(column) for column in truth.T])
    assert metrics.gene_structure(truth, programs) > 0.95
    assert abs(metrics.gene_structure(truth, shuffled)) < 0.3
    upper = np.triu_indices(20, 1)
    expected = stats.pearsonr(np.corrcoef(truth.T)[upper], np.corrcoef(shuffled.T)[upper]).statistic
    assert metrics.gene_structure(truth, shuffled) == pytest.approx(expected)
    assert np.isnan(metrics.gene_structure(truth[:, :2], programs[:, :2]))


@pytest.mark.parametrize(("layout", "neighbours"), [("hex", 6), ("square", 4), ("irregular", 12)])
def test_lattice_graph_connects_the_sites_around(layout, neighbours):
    row, col = (axis.ravel() for axis in np.indices((9, 18)))
    keep = (row + col) % 2 == 0 if layout == "hex" else col < 9
    grid = np.column_stack([row, col])[keep]
    graph = metrics.lattice_graph(grid, layout=layout)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    centre = np.flatnonzero((grid[:, 0] == 4) & (grid[:, 1] == 4))
    assert degree[centre] == degree.max() == neighbours
    assert abs(graph - graph.T).nnz == 0
    assert graph.diagonal().sum() == 0


def test_lattice_graph_keeps_sections_apart():
    grid = np.array([[0, 0], [0, 1], [0, 0], [0, 1]])
    graph = metrics.lattice_graph(grid, layout="square", sections=np.array(["x", "x", "y", "y"])).toarray()
    assert graph.tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]
    with pytest.raises(ValueError, match="'hex', 'square', 'irregular'"):
        metrics.lattice_graph(grid, layout="visium")


def test_moran_structure_is_the_correlation_of_morans_i(rng):
    row, col = (axis.ravel() for axis in np.indices((15, 15)))
    graph = metrics.lattice_graph(np.column_stack([row, col]), layout="square")
    smooth = np.sin(row / 3)[:, None] + np.cos(col / 4)[:, None]
    noise = rng.normal(size=(225, 10))
    truth = np.linspace(0, 2, 10) * smooth + noise
    predicted = np.linspace(0, 2, 10) * smooth + rng.normal(size=(225, 10))
    z = truth - truth.mean(axis=0)
    moran = [225 / graph.sum() * (v @ (graph @ v)) / (v @ v) for v in z.T]
    w = predicted - predicted.mean(axis=0)
    moran_predicted = [225 / graph.sum() * (v @ (graph @ v)) / (v @ v) for v in w.T]
    expected = stats.pearsonr(moran, moran_predicted).statistic
    assert metrics.moran_structure(truth, predicted, graph.tocoo()) == pytest.approx(expected)
    assert expected > 0.9
    reversed_patterns = predicted[:, ::-1]
    assert metrics.moran_structure(truth, reversed_patterns, graph) < -0.9
    with pytest.raises(ValueError, match="225 × 225"):
        metrics.moran_structure(truth, predicted, graph[:5])


# Counts


def test_pooled_scores_reward_gene_means_alone(rng):
    counts = rng.poisson(np.geomspace(1, 500, 30), size=(100, 30))
    truth = np.log2(counts + 1)
    predicted = np.tile(np.log2(counts.mean(axis=0) + 1), (100, 1))
    scores = metrics.expression_scores(truth, predicted)
    assert scores["pcc_pooled"] > 0.95
    assert scores["r2_pooled"] > 0.95
    assert scores["n_undefined"] == 30
    assert np.isnan(scores["pcc_all"])


def test_pooled_scores_are_in_counts_with_negative_ones_as_zero(expression):
    truth, predicted = expression
    true, pred = 2**truth - 1, np.clip(2**predicted - 1, 0, None)
    scores = metrics.pooled_scores(truth, predicted)
    assert scores["r2_pooled"] == pytest.approx(sk.r2_score(true.ravel(), pred.ravel()))
    assert scores["pcc_pooled"] == pytest.approx(stats.pearsonr(true.ravel(), pred.ravel()).statistic)


def test_depth_normalised_by_hand():
    counts = np.array([[1.0, 3.0], [10.0, 10.0], [0.0, 0.0]])
    values = metrics.depth_normalised(np.log2(counts + 1))
    # totals 4 and 20 have the median 12; the empty spot has no composition
    np.testing.assert_allclose(values[:2], np.log2(np.array([[3.0, 9.0], [6.0, 6.0]]) + 1))
    assert np.isnan(values[2]).all()
    np.testing.assert_allclose(
        metrics.depth_normalised(np.log2(counts[:2] + 1), target_sum=100), np.log2([[26, 76], [51, 51]])
    )


def test_depth_alone_scores_high_raw_and_nothing_normalised(rng):
    depth = rng.lognormal(6, 0.8, size=(300, 1))
    profile = rng.dirichlet(np.ones(40) * 5)
    truth = np.log2(rng.poisson(depth * profile) + 1)
    predicted = np.log2(depth * profile + 1).astype(np.float32)
    scores = metrics.expression_scores(truth, predicted)
    assert scores["pcc_all"] > 0.7
    assert not abs(scores["pcc_all_depth_normalised"]) > 0.1
    assert scores["n_spots_depth_normalised"] <= scores["n_spots"] == 300


def test_composition_survives_depth_normalisation(rng):
    depth = rng.lognormal(7, 0.8, size=(300, 1))
    profile = rng.dirichlet(np.ones(20), size=300)
    truth = np.log2(rng.poisson(depth * profile) + 1)
    at_constant_depth = np.log2(1000 * profile + 1)
    scores = metrics.expression_scores(truth, at_constant_depth)
    assert scores["pcc_all_depth_normalised"] > 0.9
    assert scores["pcc_all_depth_normalised"] > scores["pcc_all"] + 0.1


# Summary


def test_missing_spots_are_left_out_and_counted(expression):
    truth, predicted = expression
    row, col = (axis.ravel() for axis in np.indices((8, 10)))
    graph = metrics.lattice_graph(np.column_stack([row, col]), layout="square")
    keep = np.ones(80, dtype=bool)
    keep[[3, 50]] = False
    expected = metrics.expression_scores(truth[keep], predicted[keep], graph=graph[keep][:, keep])
    predicted[~keep] = np.nan
    scores = metrics.expression_scores(truth, predicted, graph=graph)
    assert scores.pop("n_missing") == 2
    assert expected.pop("n_missing") == 0
    assert scores == pytest.approx(expected)


def test_partly_missing_spots_and_infinite_values_raise(expression):
    truth, predicted = expression
    for bad in (np.nan, np.inf):
        broken = predicted.copy()
        broken[4, 7] = bad
        with pytest.raises(ValueError, match=r"columns \[7\]"):
            metrics.expression_scores(truth, broken)


def test_genes_in_another_order_raise(expression):
    truth, predicted = (pd.DataFrame(values, columns=list("abcdefghijkl")) for values in expression)
    with pytest.raises(ValueError, match="columns"):
        metrics.pcc_per_gene(truth, predicted[list("lkjihgfedcba")])
    with pytest.raises(ValueError, match="match"):
        metrics.pcc_per_gene(truth, predicted.to_numpy()[:, :5])


def test_summary_agrees_with_the_single_functions(expression):
    truth, predicted = expression
    scores = metrics.expression_scores(truth, predicted)
    assert scores["mse"] == pytest.approx(sk.mean_squared_error(truth, predicted))
    assert scores["mae"] == pytest.approx(sk.mean_absolute_error(truth, predicted))
    assert scores["pcc_10"] == metrics.pcc_top(metrics.pcc_per_gene(truth, predicted), 10)
    assert scores["pcc_300"] == scores["pcc_all"] < scores["pcc_10"]
    assert scores["rvd"] == metrics.rvd(truth, predicted)
    assert "moran_structure" not in scores


def test_no_spots_give_nan_not_an_exception(recwarn):
    scores = metrics.expression_scores(np.full((3, 2), np.nan), np.ones((3, 2)))
    assert scores["n_missing"] == 3
    assert np.isnan([scores[k] for k in ("mse", "mae", "rvd", "pcc_all", "r2_pooled", "gene_structure")]).all()
    assert not recwarn.list
