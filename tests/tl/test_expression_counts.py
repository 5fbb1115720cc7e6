"""Models of counts: how GenAR is trained, predicts, is saved, and refuses what it cannot use."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import anndata as ad
import calls
import numpy as np
import pytest
import toy_histology
from scipy import sparse
from toy_histology import GENES, N_GENES, RUN, apply, join, make_section

import strecur as st
from strecur.engine import Augmentation
from strecur.engine.state import History
from strecur.nn import GenARConfig, TRMConfig, WindowedConfig

if TYPE_CHECKING:
    from strecur.models import ExpressionModel

KEY = "trm_expression"
TINY = GenARConfig(width=24, n_heads=2, n_layers=1, condition_width=24, n_groups=2, spots_per_step=16)
TRM = replace(TINY, recursion=TRMConfig())
SMALL = {"n_components": 6, "neighbours": (9,)}


def train(adata: ad.AnnData, **options: object) -> ExpressionModel:
    defaults = {"architecture": TINY, "genes": GENES, "max_epochs": 2}
    return calls.train_expression(adata, **{**SMALL, **RUN, **defaults, **options})


@pytest.fixture(scope="module")
def model(_pair) -> ExpressionModel:
    return train(_pair)


def with_counts(adata: ad.AnnData, change) -> ad.AnnData:
    counts = adata.X.toarray()
    change(counts)
    adata.X = sparse.csr_matrix(counts)
    return adata


def follow_the_patch(adata: ad.AnnData) -> None:
    """Let half of the genes be abundant where the first column of the embedding is positive, the others elsewhere."""
    rng = np.random.default_rng(0)
    is_first = (adata.obsm["X_patch"][:, :1] > 0) == (np.arange(N_GENES) % 2 == 0)
    adata.X = sparse.csr_matrix(rng.poisson(np.where(is_first, 8, 1)).astype(np.float32))


def test_counts_that_follow_from_features_are_predicted_better_than_by_their_mean(pair, new):
    for adata in (pair, new):
        follow_the_patch(adata)
    config = replace(TINY, scales=(1, N_GENES), spots_per_step=32)
    calm = Augmentation(noise=0.1, drop=0, hide=0)
    learned = train(pair, architecture=config, max_epochs=120, augmentation=calm)
    truth, found = (np.log2(counts + 1) for counts in (new.X.toarray(), apply(new, learned).obsm[KEY]))
    mean = np.log2(pair.X.toarray() + 1).mean(axis=0)
    assert np.square(truth - found).mean() < 0.7 * np.square(truth - mean).mean()
    assert st.metrics.pcc_per_gene(truth, found).min() > 0.5
    assert learned.history["train_loss"].iloc[-1] < 0.6 * learned.history["train_loss"].iloc[0]


@pytest.mark.parametrize("config", [TINY, TRM], ids=["patch", "trm"])
def test_whole_numbers_are_written_beside_the_linear_baseline(config, pair, new):
    options = {"backbone": WindowedConfig(width=24, n_heads=2, window=4, n_global=1)} if config is TRM else {}
    model = train(pair, architecture=config, **options)
    assert calls.predict_expression(new, model, **RUN) is None
    assert new.obsm[KEY].shape == (100, N_GENES)
    assert new.obsm[KEY].dtype == np.int32
    assert new.obsm[KEY].min() >= 0
    assert new.uns[KEY]["target"] == "counts"
    assert set(new.obsm) >= {KEY, f"{KEY}_linear", f"{KEY}_log2"}
    assert f"{KEY}_sample" not in new.obsm
    linear = calls.train_expression(pair, **SMALL, **RUN, genes=GENES, architecture="linear")
    np.testing.assert_array_equal(new.obsm[f"{KEY}_linear"], apply(new, linear).obsm[KEY])
    np.testing.assert_array_equal(model.measure(new), new.X.toarray())


def test_maps_of_counts_are_on_one_scale(model, new):
    import matplotlib.pyplot as plt

    new = apply(new, model)
    measured, predicted = st.pl.marker_panel(new, "g1")
    for panel, expected in (
        (measured, np.log2(new.X.toarray()[:, 1] + 1)),
        (predicted, new.obsm[f"{KEY}_log2"][:, 1]),
    ):
        (spots,) = panel.collections
        np.testing.assert_allclose(np.sort(spots.get_array()), np.sort(expected), rtol=1e-5)
    assert measured.collections[0].get_clim() == predicted.collections[0].get_clim()
    plt.close("all")


def test_counts_come_back_as_an_object_for_count_based_tools(model, new):
    import scanpy as sc

    new = apply(new, model)
    counts = st.get.expression(new)
    assert counts.X.dtype == np.int32
    np.testing.assert_array_equal(counts.X, new.obsm[KEY])
    assert list(counts.var_names) == GENES
    assert counts.uns["target"] == "counts"
    counts.X[:, 0] += 1  # no empty spot
    sc.pp.normalize_total(counts, target_sum=100)
    np.testing.assert_allclose(counts.X.sum(axis=1), 100, rtol=1e-5)
    for beside in ("linear", "log2"):
        found = st.get.expression(new, f"{KEY}_{beside}")
        assert (found.X.dtype, found.uns["target"]) == (np.float32, "log2")
        np.testing.assert_array_equal(found.X, new.obsm[f"{KEY}_{beside}"])
    drawn = st.get.expression(apply(new, model, n_samples=2), f"{KEY}_sample")
    assert (drawn.X.dtype, drawn.uns["target"]) == (np.int32, "counts")


@pytest.mark.parametrize("slot", [f"{KEY}_log2", KEY])
def test_plots_compare_on_the_logarithm(slot, model, new):
    import matplotlib as mpl

    mpl.use("Agg")
    new = apply(new, model)
    predicted = new.obsm[f"{KEY}_log2"]
    if slot == KEY:  # results of earlier versions
        del new.obsm[f"{KEY}_log2"]
        predicted = np.log2(new.obsm[KEY] + 1.0)
    pcc = st.metrics.pcc_per_gene(np.log2(new.X.toarray() + 1), predicted)
    curve = st.pl.gene_scores(new).lines[1].get_ydata()
    np.testing.assert_allclose(curve, np.sort(pcc[~np.isnan(pcc)])[::-1])
    axes = st.pl.marker_panel(new, "g1")
    np.testing.assert_allclose(axes[1].collections[0].get_array(), predicted[:, 1])


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
def test_results_survive_files(store, model, new, tmp_path):
    new = apply(new, model, n_samples=2)
    assert new.uns[KEY]["params"]["n_samples"] == 2
    getattr(new, f"write_{store}")(tmp_path / "new")
    back = getattr(ad, f"read_{store}")(tmp_path / "new")
    for key in (KEY, f"{KEY}_spread", f"{KEY}_log2", f"{KEY}_sample"):
        np.testing.assert_array_equal(back.obsm[key], new.obsm[key])
        assert back.obsm[key].dtype == new.obsm[key].dtype
    assert st.get.expression(back).X.dtype == np.int32


@pytest.mark.parametrize("config", [TINY, TRM], ids=["patch", "trm"])
def test_a_loaded_model_is_the_same(config, pair, new, tmp_path):
    model = train(pair, architecture=config)
    model.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model")
    assert loaded.architecture == model.architecture
    assert loaded.architecture.vocabulary == pair.X.max() + 1
    assert (loaded.backbone, loaded.target, loaded.id) == (model.backbone, model.target, model.id)
    assert loaded.network.head.order_G.tolist() == model.network.head.order_G.tolist()
    assert sorted(loaded.network.head.order_G.tolist()) == list(range(N_GENES))
    first, second = (apply(new, m, n_samples=3) for m in (model, loaded))
    for key in (KEY, f"{KEY}_spread", f"{KEY}_log2", f"{KEY}_sample"):
        np.testing.assert_array_equal(first.obsm[key], second.obsm[key])
    assert f"{N_GENES} genes as counts" in repr(loaded)


def test_the_same_seed_gives_the_same_model_and_prediction(pair, new):
    first, second = (train(pair, rng=4) for _ in range(2))
    for name, value in first.network.state_dict().items():
        assert np.array_equal(value, second.network.state_dict()[name]), name
    np.testing.assert_array_equal(apply(new, first).obsm[KEY], apply(new, second, rng=7).obsm[KEY])


def test_samples_show_how_firm_counts_are_and_depend_on_the_seed_alone(model, new, pair, monkeypatch):
    spread = apply(new, model, n_samples=4, rng=1).obsm[f"{KEY}_spread"]
    assert spread.dtype == np.float32
    assert (spread >= 0).all()
    assert spread.mean() > 0.1
    assert not np.array_equal(spread, apply(new, model, n_samples=4, rng=2).obsm[f"{KEY}_spread"])
    np.testing.assert_array_equal(apply(new, model).obsm[KEY], apply(new, model, n_samples=4).obsm[KEY])
    together = apply(ad.concat([pair, new], uns_merge="first"), model, n_samples=4, rng=1)
    np.testing.assert_allclose(together.obsm[f"{KEY}_spread"][-100:], spread, atol=1e-6)
    sample = type(model.network.head.genar).sample
    small_batches = lambda *args, **options: sample(*args, **options, max_tokens=70)  # noqa: E731
    monkeypatch.setattr(type(model.network.head.genar), "sample", small_batches)
    np.testing.assert_allclose(apply(new, model, n_samples=4, rng=1).obsm[f"{KEY}_spread"], spread, atol=1e-6)


def test_samples_vary_as_counts_do_and_their_mean_is_what_is_written(model, new):
    """Draws scatter around the mean of log2(count + 1), further than the most probable counts, and less if cold."""
    new = apply(new, model, n_samples=2)
    logs = [np.log2(apply(new, model, n_samples=2, rng=seed).obsm[f"{KEY}_sample"] + 1.0) for seed in range(20)]
    error = np.mean(logs, axis=0) - new.obsm[f"{KEY}_log2"]
    tolerance = np.std(logs) / np.sqrt(len(logs) * new.n_obs)
    assert np.abs(error.mean(axis=0)).max() < 8 * tolerance
    assert np.var(logs[0], axis=0).mean() > np.log2(new.obsm[KEY] + 1.0).var(axis=0).mean()
    cold = apply(new, model, n_samples=2, temperature=0.2).obsm
    assert cold[f"{KEY}_spread"].mean() < 0.7 * new.obsm[f"{KEY}_spread"].mean()


def test_spots_without_embedding_are_missing_not_zero(model, new):
    for key in ("X_patch", "X_patch_d4"):
        new.obsm[key][[0, 50]] = np.nan
    new = apply(new, model, n_samples=2)
    for key in (KEY, f"{KEY}_spread", f"{KEY}_log2", f"{KEY}_sample"):
        assert np.flatnonzero(np.isnan(new.obsm[key]).all(axis=1)).tolist() == [0, 50]
    known = np.delete(new.obsm[KEY], [0, 50], axis=0)
    np.testing.assert_array_equal(known, np.round(known))
    assert np.isnan(st.get.expression(new).X).any(axis=1).sum() == 2


def test_validation_sections_are_scored_on_the_logarithm(pair, new):
    rated = train(join(pair, make_section("S3", 3)), validation="S3", max_epochs=10)
    assert rated.sections == ["S1", "S2"]
    found = apply(new, rated, coverage=0.8)
    pcc = st.metrics.pcc_per_gene(np.log2(new.X.toarray() + 1), found.obsm[f"{KEY}_log2"])
    np.testing.assert_allclose(rated.reliability["pcc_network"], pcc, atol=1e-5)
    assert list(rated.scores) == ["answer", "network", "linear"]
    assert rated.scores["answer"].equals(rated.scores["network"])
    inside = np.abs(found.obsm[KEY] - new.X.toarray()) <= found.obsm[f"{KEY}_interval"]
    assert inside.mean() == pytest.approx(0.8, abs=0.06)


def test_no_count_is_clipped_by_default(pair, caplog):
    model = train(with_counts(pair, lambda counts: counts.__setitem__((0, 0), 700)))
    assert model.architecture.vocabulary == 701
    assert "clipped" not in caplog.text


def test_clipped_counts_are_reported_and_measured_in_full(pair, caplog):
    counts = pair.X.toarray()
    model = train(pair, architecture=replace(TINY, vocabulary=40))
    assert f"{(counts > 39).sum()} counts of the genes" in caplog.text
    assert "are clipped to 39 in training (vocabulary=40)" in caplog.text
    assert f"the largest is {counts.max():.0f}" in caplog.text
    assert model.genes == GENES, "no gene is cut"
    assert apply(pair, model).obsm[KEY].max() <= 39
    np.testing.assert_array_equal(model.measure(pair), counts)


def test_genes_without_counts_are_kept(pair, new, caplog):
    model = train(with_counts(pair, lambda counts: counts.__setitem__((slice(None), [2, 5]), 0)), max_epochs=60)
    assert "genes ['g2', 'g5'] have no count" in caplog.text
    found = apply(new, model).obsm[KEY]
    assert found.shape[1] == N_GENES
    # the Gaussian around a count of zero leaves the zero most probable
    assert (found[:, [2, 5]] == 0).mean() > 0.9


def negative(adata: ad.AnnData) -> None:
    with_counts(adata, lambda counts: counts.__setitem__((0, 0), -1))


def with_logs(adata: ad.AnnData) -> None:
    adata.X = adata.X.log1p()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (with_logs, {}, "non-integer values"),
        (negative, {}, "negative values"),
        (None, {"genes": ["g1"]}, r"1 of 1 genes have counts, too few for n_groups=2"),
        (None, {"architecture": replace(TINY, n_groups=9)}, "8 of 8 genes have counts, too few for n_groups=9"),
        (None, {"architecture": replace(TINY, scales=(1, 4, 20))}, "end with 20 genes, but 8 are to be predicted"),
        (None, {"target": "log2_normalised"}, "predicts raw counts"),
        (None, {"halting": "mse"}, "halting='mse' does not go with"),
        (None, {"backbone": "dense"}, r"GenARConfig\(recursion="),
    ],
)
def test_training_refuses_what_it_cannot_use(change, options, message, pair):
    if change is not None:
        change(pair)
    with pytest.raises(ValueError, match=message):
        train(pair, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 1}, "must be 0 or at least 2"),
        ({"n_samples": -3}, "must be 0 or at least 2"),
        ({"n_samples": 2, "temperature": 0.0}, "temperature=0.0 must be positive"),
        ({"breadth": 2}, "architecture='trm'"),
        ({"stop_early": True}, "without halting"),
    ],
)
def test_prediction_refuses_what_does_not_fit(options, message, model, new):
    with pytest.raises(ValueError, match=message):
        apply(new, model, **options)


def test_only_counts_are_sampled(pair, new):
    logs = toy_histology.train(pair, max_epochs=1)
    with pytest.raises(ValueError, match="architecture='genar'"):
        apply(new, logs, n_samples=2)
    with pytest.raises(ValueError, match="a linear model has no recursion to run"):
        apply(new, toy_histology.train(pair, architecture="linear"), n_samples=2)


def test_sweeps_name_what_they_need(model, new):
    with pytest.raises(ValueError, match="architecture='trm'"):
        calls.recursion_sweep(new, model, library_key="section")


def test_calibration_gives_intervals_of_counts(model, new):
    table = calls.calibrate_expression(new, replace(model), **RUN)
    assert list(table.index) == GENES
    assert (table["width"] > 1).all()


def test_vim_is_not_lost_on_a_real_section(data_dir):
    """The last genes of the alphabet were cut off by the released code."""
    adata = ad.read_h5ad(data_dir / "her2st" / "C2.h5ad")
    rng = np.random.default_rng(0)
    adata.obsm["X_patch"] = rng.normal(size=(adata.n_obs, 8)).astype(np.float32)
    st.pp.to_grid(adata)
    model = calls.train_expression(
        adata,
        genes=208,
        extra_genes=["VIM"],
        architecture=TINY,
        n_components=4,
        neighbours=(),
        max_epochs=1,
    )
    assert "VIM" in model.genes
    assert sorted(model.network.head.order_G.tolist()) == list(range(len(model.genes)))
    calls.predict_expression(adata, model)
    counts = st.get.expression(adata)
    assert list(counts.var_names) == model.genes


@pytest.mark.parametrize(
    ("config", "given", "expected"),
    [
        (GenARConfig.paper(), {}, (1e-4, 1e-4, 0, 0.0, 50)),
        (GenARConfig.paper(spots_per_step=25), {}, (1e-4, 1e-4, 0, 0.0, 200)),  # 100 spots in four visits
        (GenARConfig.paper(), {"learning_rate": 1e-3, "max_epochs": 3}, (1e-3, 1e-4, 0, 0.0, 3)),
        (GenARConfig(), {}, (5e-3, 0.5, 30, 0.98, 60)),
    ],
)
def test_the_publication_is_trained_as_published(config, given, expected, pair, monkeypatch):
    seen = {}

    def recorded(network, parts, training, **options):
        seen.update(training=training, augment=options["augment"])
        return History([{"epoch": 1, "train_loss": 0.0}])

    monkeypatch.setattr("strecur.models.fitting.fit", recorded)
    small = replace(config, width=24, n_layers=1, n_heads=2, condition_width=24, n_groups=2)
    train(pair, architecture=small, **{"max_epochs": None, "validation": None, **given})
    used = seen["training"]
    assert (used.learning_rate, used.weight_decay, used.warmup, used.ema, used.max_epochs) == expected
    assert (seen["augment"].noise == 0) == config.as_published
    assert GenARConfig.paper().spots_per_step == 256


@pytest.mark.parametrize("order", ["panel", "random"])
def test_the_order_of_genes_is_chosen_and_saved(order, pair, new, tmp_path):
    model = train(pair, architecture=replace(TINY, gene_order=order, soft_labels=False, scales="three"))
    order_G = model.network.head.order_G.tolist()
    assert sorted(order_G) == list(range(N_GENES))
    assert (order_G == list(range(N_GENES))) == (order == "panel")
    expected = apply(new, model).obsm[KEY]
    model.save(tmp_path / "model")
    assert np.array_equal(apply(new, st.load_model(tmp_path / "model")).obsm[KEY], expected)
