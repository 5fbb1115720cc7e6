from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import calls
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from toy_histology import GENES, N_GENES, RUN, SIDE, WIDTH, apply, join, make_section, train

import strecur as st
from strecur._geometry import COMPOSE, transform_coords
from strecur.engine import Augmentation
from strecur.models import LinearExpressionModel, fitting

if TYPE_CHECKING:
    from strecur.models import ExpressionModel


def fitted(model: ExpressionModel) -> dict[str, np.ndarray]:
    """Return everything fitted: features, scale, baseline, network."""
    source, baseline = model.features.source, model.baseline
    parts = {"mean": source.mean_F, "scale": source.scale_F, "components": source.components_FP}
    parts |= {"weight": baseline.weight_FG, "bias": baseline.bias_G, "reliability": model.reliability.to_numpy()}
    return parts | {name: value.numpy() for name, value in model.network.state_dict().items()}


def assert_same_fit(a: ExpressionModel, b: ExpressionModel) -> None:
    a_parts, b_parts = fitted(a), fitted(b)
    assert a_parts.keys() == b_parts.keys()
    different = [name for name in a_parts if not np.array_equal(a_parts[name], b_parts[name], equal_nan=True)]
    assert different == []


@pytest.fixture(scope="module")
def model(_pair) -> ExpressionModel:
    return train(_pair)


@pytest.fixture(scope="module")
def learned(_pair) -> ExpressionModel:
    calm = Augmentation(noise=0.1, drop=0, max_shift=4)
    return train(_pair, max_epochs=60, augmentation=calm, architecture="feedforward")


def test_what_follows_from_the_embedding_is_predicted(learned, new):
    found, truth = apply(new, learned), learned.measure(new)
    scores = st.metrics.expression_scores(truth, found.obsm["trm_expression"])
    assert scores["pcc_all"] > 0.6
    assert scores["mse"] < 0.7 * truth.var(axis=0).mean()
    linear = st.metrics.expression_scores(truth, found.obsm["trm_expression_linear"])
    assert linear["pcc_all"] > 0.6
    assert learned.history["train_loss"].iloc[-1] < 0.4 * learned.history["train_loss"].iloc[0]


def test_neighbours_matter_where_expression_depends_on_them(pair, new):
    pcc = {
        sizes: st.metrics.pcc_per_gene(
            (model := train(pair, architecture="linear", neighbours=sizes)).measure(new),
            apply(new, model).obsm["trm_expression"],
        ).mean()
        for sizes in ((), (5,))
    }
    assert pcc[5,] > pcc[()] + 0.1


def test_strange_patches_are_novel(model, new):
    usual = apply(new, model)
    strange = new.copy()
    row = new.obs["array_row"].to_numpy()
    upper, lower = row < 2, row >= 6
    for key in ("X_patch", "X_patch_d4"):
        strange.obsm[key][upper] = np.random.default_rng(0).permutation(strange.obsm[key][upper], axis=-1) * 2
    found = apply(strange, model)
    before, after = (result.obs["trm_expression_novelty"] for result in (usual, found))
    assert before.between(0, 1).all()
    assert before.median() < 0.9
    assert after[upper].median() > max(0.99, before[upper].max())
    assert after[lower].median() < 0.95
    table = found.uns["trm_expression"]["sections"]
    assert table["novel"].iloc[0] == pytest.approx((after > 0.99).mean())


def test_what_is_written(model, new):
    before = new.copy()
    assert calls.predict_expression(new, model, **RUN, key_added="k", depth=3) is None
    assert set(new.obsm) - set(before.obsm) == {"k", "k_network", "k_linear"}
    assert set(new.uns) - set(before.uns) == {"k"}
    assert list(new.obs) == [*before.obs, "k_novelty"]
    assert (new.X != before.X).nnz == 0
    for key in ("k", "k_network", "k_linear"):
        assert new.obsm[key].shape == (new.n_obs, N_GENES)
        assert new.obsm[key].dtype == np.float32
        assert np.isfinite(new.obsm[key]).all()
    record = new.uns["k"]
    assert record["var_names"] == GENES
    assert (record["target"], record["model"]) == ("log2", model.id)
    assert {"depth": 3, "breadth": 1, "symmetric": True, "library_key": "section"}.items() <= record["params"].items()
    assert list(record["residuals"]["step"]) == [1, 2, 3]
    assert list(record["reliability"].index) == GENES
    assert record["sections"].loc["S3", ["n_spots", "n_predicted", "n_steps"]].tolist() == [100, 100, 3]


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
def test_results_survive_files(store, model, new, tmp_path):
    calls.predict_expression(new, model, **RUN)
    path = tmp_path / f"new.{store}"
    getattr(new, f"write_{store}")(path)
    back = getattr(ad, f"read_{store}")(path)
    np.testing.assert_array_equal(back.obsm["trm_expression"], new.obsm["trm_expression"])
    assert list(back.uns["trm_expression"]["var_names"]) == GENES
    pd.testing.assert_frame_equal(
        back.uns["trm_expression"]["reliability"], new.uns["trm_expression"]["reliability"], check_names=False
    )
    pd.testing.assert_frame_equal(
        back.uns["trm_expression"]["sections"], new.uns["trm_expression"]["sections"], check_names=False
    )
    again = apply(back, model)
    np.testing.assert_array_equal(again.obsm["trm_expression"], new.obsm["trm_expression"])


def test_sections_without_counts_change_nothing_that_is_fitted(pair):
    models = []
    for seed in (3, 4):
        unknown = make_section("S3", seed)
        unknown.X = sparse.csr_matrix(unknown.shape, dtype=np.float32)
        models.append(train(join(pair, unknown), genes=5))
    assert_same_fit(*models)
    assert_same_fit(models[0], train(pair, genes=5))
    assert models[0].sections == ["S1", "S2"]


def test_the_validation_section_chooses_weights_and_nothing_else(pair):
    models = [train(join(pair, make_section("S3", seed)), validation="S3", genes=5) for seed in (3, 4)]
    first, second = map(fitted, models)
    for name in ("mean", "scale", "components", "weight", "bias", "head.mean_G", "head.sd_G"):
        assert np.array_equal(first[name], second[name]), name
    assert models[0].genes == models[1].genes
    assert models[0].sections == ["S1", "S2"]
    assert not models[0].scores.equals(models[1].scores)


def test_blocks_choose_weights_but_neither_rate_genes_nor_calibrate(pair, monkeypatch):
    seen, original = {}, fitting.fit

    def spy(network, sections, *rest, **options):
        seen.update({section.name: section.target_N for section in sections})
        return original(network, sections, *rest, **options)

    monkeypatch.setattr("strecur.models.fitting.fit", spy)
    judged = train(pair, validation="blocks", max_epochs=5)
    # the scores that choose come first
    assert [name for name in judged.history if name.startswith("blocks_")] == ["blocks_r2", "blocks_pcc"]
    assert 0 <= judged.blend <= 0.5
    assert judged.errors is None
    assert judged.reliability["pcc_network"].isna().all()
    hidden = sum(int(target.isnan().all(dim=1).sum()) for target in seen.values())
    assert 0.07 * pair.n_obs < hidden <= 0.15 * pair.n_obs
    # the baseline of the model knows the blocks, and so do genes and components
    plain = fitted(train(pair, max_epochs=1))
    assert all(np.array_equal(fitted(judged)[name], plain[name]) for name in ("weight", "bias", "components"))
    # by default nothing is held out
    assert not [name for name in train(pair).history if name.startswith(("blocks_", "validation_"))]


def test_validation_sections_rate_genes_and_models(pair):
    rated = train(join(pair, make_section("S3", 3)), validation="S3", max_epochs=10)
    assert {"validation_pcc", "validation_mse"} <= set(rated.history)
    assert list(rated.scores) == ["answer", "network", "linear"]
    found = apply(join(make_section("S3", 3)), rated)
    pcc = st.metrics.pcc_per_gene(rated.measure(found), found.obsm["trm_expression"])
    np.testing.assert_allclose(rated.reliability["pcc"], pcc, atol=1e-4)
    np.testing.assert_allclose(rated.scores.loc["pcc", "answer"], pcc.mean(), atol=1e-4)
    unrated = train(pair)
    assert unrated.reliability["pcc_network"].isna().all()
    np.testing.assert_array_equal(unrated.reliability["pcc"], unrated.reliability["pcc_linear"])
    assert unrated.reliability["pcc"].mean() > 0.5


def test_genes_are_rated_by_models_without_a_section(pair, caplog):
    uncounted = np.arange(pair.n_obs) % 9 == 0
    pair.X = sparse.diags((~uncounted).astype(np.float32)) @ pair.X
    rated, plain = train(pair, leave_one_out=True, max_epochs=2), train(pair, max_epochs=2)
    np.testing.assert_array_equal(fitted(rated)["weight"], fitted(plain)["weight"])
    np.testing.assert_array_equal(
        apply(pair.copy(), rated).obsm["trm_expression"], apply(pair.copy(), plain).obsm["trm_expression"]
    )
    found: dict[str, list[np.ndarray]] = {"pcc": [], "pcc_network": []}
    for name in ("S1", "S2"):
        left_out = (pair.obs["section"] == name).to_numpy()
        fold = train(pair[~left_out].copy(), genes=list(rated.genes), max_epochs=2)
        seen = apply(pair[left_out].copy(), fold)
        for column, key in (("pcc", "trm_expression"), ("pcc_network", "trm_expression_network")):
            known = ~uncounted[left_out]  # zeros of the others were not measured
            found[column].append(st.metrics.pcc_per_gene(fold.measure(seen)[known], seen.obsm[key][known]))
    for column, parts in found.items():
        np.testing.assert_allclose(rated.reliability[column], np.mean(parts, axis=0), atol=1e-4)
    assert not np.allclose(rated.reliability["pcc"], rated.reliability["pcc_linear"])
    one = pair[pair.obs["section"] == "S1"].copy()
    with pytest.raises(ValueError, match="leave_one_out needs at least 2 training sections"):
        train(one, leave_one_out=True)


def test_calibration_rates_the_answer_on_its_sections(pair, new):
    model = train(pair, max_epochs=2)
    calls.calibrate_expression(new, model, library_key="section")
    found = apply(new.copy(), model)
    for column, key in (("pcc", "trm_expression"), ("pcc_network", "trm_expression_network")):
        pcc = st.metrics.pcc_per_gene(model.measure(found), found.obsm[key])
        np.testing.assert_allclose(model.reliability[column], pcc, atol=1e-4)
    before = model.reliability.copy()
    calls.calibrate_expression(new, model, library_key="section", blend=0.9)
    assert model.reliability.equals(before)


def test_the_reliability_beside_an_answer_is_of_its_blend(pair, new):
    model = train(join(pair, make_section("S3", 3)), validation="S3", max_epochs=2)
    model.blend = 0.4
    columns = {model.blend: "pcc", 0.0: "pcc_linear", 1.0: "pcc_network"}
    for blend, column in columns.items():
        record = apply(new.copy(), model, blend=blend).uns["trm_expression"]["reliability"]
        np.testing.assert_array_equal(record["pcc"], model.reliability[column])
    record = apply(new.copy(), model, blend=0.123).uns["trm_expression"]["reliability"]
    assert record["pcc"].isna().all()


def test_a_single_training_section_is_rated_by_its_quarters(pair):
    alone = train(pair[pair.obs["section"] == "S1"].copy(), architecture="linear")
    assert alone.reliability["pcc"].between(0.2, 1).all()


def test_the_order_of_genes_does_not_matter(pair, new):
    shuffled = pair[:, np.random.default_rng(0).permutation(N_GENES)].copy()
    models = [train(adata, genes=5, extra_genes=["g0"]) for adata in (pair, shuffled)]
    assert models[0].genes == models[1].genes == sorted(models[0].genes)
    assert "g0" in models[0].genes
    assert_same_fit(*models)


@pytest.mark.parametrize("h", range(8))
def test_a_turned_section_gets_the_same_prediction(h, learned, new):
    turned = new.copy()
    site = transform_coords(new.obs["array_row"].to_numpy(), new.obs["array_col"].to_numpy(), h, SIDE, SIDE)
    turned.obsm["grid"] = np.column_stack(site).astype(np.int32)
    turned.obsm["spatial"] = np.column_stack(site[::-1]) * 100.0
    turned.obsm["X_patch_d4"] = new.obsm["X_patch_d4"][:, COMPOSE[h]]
    turned.obsm["X_patch"] = turned.obsm["X_patch_d4"][:, 0]
    expected, found = apply(new, learned), apply(turned, learned)
    for key in ("trm_expression", "trm_expression_linear"):
        np.testing.assert_allclose(found.obsm[key], expected.obsm[key], atol=2e-4)
    if h:
        # the views are needed for it
        single = apply(turned, learned, symmetric=False).obsm["trm_expression"]
        assert np.abs(single - apply(new, learned, symmetric=False).obsm["trm_expression"]).max() > 1e-3


@pytest.mark.parametrize("h", [1, 3, 6])
def test_a_lattice_that_lies_otherwise_than_its_image_gets_the_same_prediction(h, learned, new):
    other = new.copy()
    site = transform_coords(new.obs["array_row"].to_numpy(), new.obs["array_col"].to_numpy(), h, SIDE, SIDE)
    other.obsm["grid"] = np.column_stack(site).astype(np.int32)
    expected, found = apply(new, learned), apply(other, learned)
    np.testing.assert_allclose(found.obsm["trm_expression"], expected.obsm["trm_expression"], atol=2e-4)


def test_spots_without_embedding_stay_nan_and_do_not_influence_others(model, new):
    gone = np.zeros(new.n_obs, dtype=bool)
    gone[[0, 37, 38, 99]] = True
    holes = new.copy()
    for key in ("X_patch", "X_patch_d4"):
        holes.obsm[key][gone] = np.nan
    found, without = apply(holes, model), apply(new[~gone].copy(), model)
    for key in ("trm_expression", "trm_expression_linear"):
        assert np.isnan(found.obsm[key][gone]).all()
        np.testing.assert_array_equal(found.obsm[key][~gone], without.obsm[key])
    assert found.uns["trm_expression"]["sections"].loc["S3", ["n_spots", "n_predicted"]].tolist() == [100, 96]


def test_a_section_outside_its_image_is_listed_without_predictions(model, pair):
    pair.obsm["X_patch"][pair.obs["section"] == "S2"] = np.nan
    found = apply(pair, model)
    assert np.isnan(found.obsm["trm_expression"][pair.obs["section"] == "S2"]).all()
    assert found.uns["trm_expression"]["sections"]["n_predicted"].tolist() == [100, 0]


def test_spots_without_embedding_teach_nothing(pair):
    gone = np.zeros(pair.n_obs, dtype=bool)
    gone[[3, 50, 150]] = True
    without = train(pair[~gone].copy())
    for key in ("X_patch", "X_patch_d4"):
        pair.obsm[key][gone] = np.nan
    assert_same_fit(train(pair), without)


def test_empty_spots_teach_nothing_but_are_predicted(pair):
    empty = np.arange(pair.n_obs) % 10 == 0
    counts = pair.X.toarray()
    counts[empty] = 0
    pair.X = sparse.csr_matrix(counts)
    model = train(pair)
    np.testing.assert_allclose(model.network.head.mean_G, np.log2(counts[~empty] + 1).mean(axis=0), rtol=1e-5)
    found = apply(pair, model)
    assert np.isfinite(found.obsm["trm_expression"]).all()


def test_normalised_targets_do_not_see_the_depth(pair):
    # a gene that nobody predicts makes up for the depth
    deep = pair.copy()
    deep.X = sparse.csr_matrix(pair.X.toarray() * np.where(np.arange(pair.n_obs) % 2, 3, 1)[:, None])
    plain, scaled = (train(adata, target="log2_normalised", architecture="linear") for adata in (pair, deep))
    sizes = pair.X.sum(axis=1).A1
    expected = np.log2(pair.X.toarray() / sizes[:, None] * np.median(sizes) + 1)
    np.testing.assert_allclose(plain.measure(pair), expected, rtol=1e-4)
    np.testing.assert_allclose(scaled.measure(pair), scaled.measure(deep), rtol=1e-4)
    pair.obs["size"] = 7.0
    by_key = train(pair, target="log2_normalised", size_factor_key="size", architecture="linear")
    np.testing.assert_allclose(by_key.measure(pair), np.log2(pair.X.toarray() + 1), rtol=1e-4)


def test_a_linear_model_is_its_baseline(pair, new, tmp_path):
    linear = train(pair, architecture="linear")
    assert type(linear) is LinearExpressionModel
    assert not {"network", "architecture", "backbone", "halting", "history", "scores"} & set(dir(linear))
    assert train(pair).baseline.weight_FG == pytest.approx(linear.baseline.weight_FG)
    found = apply(new, linear)
    np.testing.assert_array_equal(found.obsm["trm_expression"], found.obsm["trm_expression_linear"])
    linear.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model")
    assert type(loaded) is LinearExpressionModel
    again = apply(new, loaded)
    np.testing.assert_array_equal(again.obsm["trm_expression"], found.obsm["trm_expression"])
    for options in ({"depth": 2}, {"breadth": 2}, {"symmetric": False}, {"n_samples": 2}):
        with pytest.raises(ValueError, match="a linear model has no recursion to run"):
            apply(new, linear, **options)


def test_constant_genes_have_no_correlation(pair, new):
    for adata in (pair, new):
        counts = adata.X.toarray()
        counts[:, 2] = 4
        adata.X = sparse.csr_matrix(counts)
    model = train(pair)
    assert np.flatnonzero(model.reliability["pcc"].isna()).tolist() == [2]
    found = apply(new, model)
    np.testing.assert_allclose(found.obsm["trm_expression"][:, 2], np.log2(5), rtol=1e-4)
    scores = st.metrics.expression_scores(model.measure(new), found.obsm["trm_expression"])
    assert scores["n_undefined"] == scores["n_constant"] == 1


def test_images_without_genes_are_predicted(model, new):
    image = ad.AnnData(obs=new.obs, obsm=dict(new.obsm), uns=dict(new.uns))
    assert image.n_vars == 0
    np.testing.assert_array_equal(apply(image, model).obsm["trm_expression"], apply(new, model).obsm["trm_expression"])


def test_without_views_the_patches_are_taken_as_they_are(pair, new):
    for adata in (pair, new):
        del adata.obsm["X_patch_d4"]
    model = train(pair)
    assert not model.features.source.has_views
    assert np.isfinite(apply(new, model).obsm["trm_expression"]).all()


def test_objects_on_disk_and_layers_are_read_too(pair, tmp_path):
    pair.write_h5ad(tmp_path / "pair.h5ad")
    expected = train(pair, genes=5)
    backed = ad.read_h5ad(tmp_path / "pair.h5ad", backed="r")
    assert_same_fit(train(backed, genes=5), expected)
    backed.file.close()
    pair.layers["raw"] = pair.X
    pair.X = pair.X.log1p()
    assert_same_fit(train(pair, genes=5, layer="raw"), expected)


def test_the_same_seed_gives_the_same_model(pair):
    assert_same_fit(train(pair, rng=3), train(pair, rng=3))


@pytest.mark.parametrize("halting", ["mse", "gene_pcc"])
def test_halting_is_reported(halting, pair, new):
    found = apply(new, train(pair, halting=halting), depth=4)
    sections = found.uns["trm_expression"]["sections"]
    assert sections["halt_step"].between(2, 4).all()
    assert sections["halt_probability"].between(0, 1).all()


def without_counts(adata: ad.AnnData) -> None:
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)


def with_logs(adata: ad.AnnData) -> None:
    adata.X = adata.X.log1p()


def half_nan(adata: ad.AnnData) -> None:
    adata.obsm["X_patch"][0, :3] = np.nan


def all_nan(adata: ad.AnnData) -> None:
    adata.obsm["X_patch"][:] = np.nan


def one_spot(adata: ad.AnnData) -> None:
    counts = adata.X.toarray()
    counts[1:] = 0
    adata.X = sparse.csr_matrix(counts)


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"use_rep": "X_uni"}, KeyError, "embed_patches"),
        (None, {"genes": ["g1", "TP53", "KRT7"]}, KeyError, r"\['TP53', 'KRT7'\]"),
        (None, {"genes": []}, ValueError, "genes is empty"),
        (None, {"extra_genes": ["TP53"], "genes": 5}, KeyError, "TP53"),
        (None, {"target": "log10"}, ValueError, "log2_normalised"),
        (None, {"size_factor_key": "total"}, ValueError, "log2_normalised"),
        (None, {"halting": "loss_proxy"}, ValueError, "does not fit expression"),
        (None, {"architecture": "cnn"}, ValueError, "architecture='cnn'"),
        (None, {"validation": "S9"}, ValueError, "S9"),
        (None, {"layer": "raw"}, KeyError, "raw"),
        (without_counts, {}, ValueError, "0 spots with counts"),
        (with_logs, {}, ValueError, "raw counts"),
        (half_nan, {}, ValueError, "NaN or infinite values in 1 spots"),
        (all_nan, {}, ValueError, "NaN for all"),
        (one_spot, {}, ValueError, "at least 2"),
    ],
)
def test_training_refuses_what_it_cannot_use(change, options, error, message, pair):
    if change is not None:
        change(pair)
    before = pair.copy()
    with pytest.raises(error, match=message):
        train(pair, **options)
    assert_unchanged(pair, before)


def assert_unchanged(adata: ad.AnnData, before: ad.AnnData) -> None:
    assert list(adata.obs) == list(before.obs)
    assert set(adata.obsm) == set(before.obsm)
    assert set(adata.uns) == set(before.uns)
    assert (adata.X != before.X).nnz == 0


def test_training_needs_genes(pair):
    with pytest.raises(ValueError, match="no genes"):
        train(pair[:, []].copy())


def other_encoder(adata: ad.AnnData) -> None:
    adata.uns["X_patch"]["encoder"] = "uni"


def other_weights(adata: ad.AnnData) -> None:
    adata.uns["X_patch"]["probe"] = np.arange(WIDTH, dtype=np.float32)[::-1]


def other_width(adata: ad.AnnData) -> None:
    adata.obsm["X_patch"] = adata.obsm["X_patch"][:, :5]


def no_views(adata: ad.AnnData) -> None:
    del adata.obsm["X_patch_d4"]


def no_embedding(adata: ad.AnnData) -> None:
    del adata.obsm["X_patch"]


def no_lattice(adata: ad.AnnData) -> None:
    del adata.obsm["grid"]


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (other_encoder, {}, ValueError, "'uni'; the model was trained on 'toy'"),
        (other_weights, {}, ValueError, "test pattern"),
        (other_width, {}, ValueError, "5 columns; the model was trained on 12"),
        (no_views, {}, KeyError, "views=8"),
        (no_embedding, {}, KeyError, "embed_patches"),
        (no_lattice, {}, KeyError, "to_grid"),
        (None, {"depth": 0}, ValueError, "depth=0: at least one"),
        (None, {"breadth": 0}, ValueError, "breadth=0: at least one"),
        (None, {"selection": "vote"}, ValueError, "selection='vote'"),
        (None, {"stop_early": True}, ValueError, "trained without halting"),
        (None, {"coverage": 1.0}, ValueError, "coverage=1.0"),
        (None, {"coverage": 0.9}, ValueError, "calibrate_expression"),
        (None, {"key_added": "a/b"}, ValueError, "legal key"),
    ],
)
def test_prediction_refuses_what_does_not_fit(change, options, error, message, model, new):
    if change is not None:
        change(new)
    before = new.copy()
    with pytest.raises(error, match=message):
        calls.predict_expression(new, model, **{**RUN, **options})
    assert_unchanged(new, before)
