from __future__ import annotations

import json
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import strecur as st
from strecur._anndata import Grid, SectionData, Sections
from strecur._geometry import COMPOSE, transform_coords
from strecur.engine import Section
from strecur.models import ExpressionModel, LinearExpressionModel
from strecur.models.features.representation import RepresentationFeatures, fit_representation, orientation
from strecur.models.features.spots import SpotFeatures, fit_image_features, relative_spread
from strecur.models.linear import LinearExpression
from strecur.models.network import build_network
from strecur.models.targets import ExpressionTarget
from strecur.nn import ExpressionHead, Lattice, TRMConfig, WindowedConfig

GENES = ["a", "b", "c"]
RECORD = {"encoder": "toy", "width": 6, "patch_um": [112.0], "probe": [1.0, 2.0]}


def make_model(*, linear: bool = False) -> LinearExpressionModel:
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype("f4")  # noqa: E731
    source = RepresentationFeatures("X_patch", draw(6), np.abs(draw(6)), draw(6, 3), has_views=True, record=RECORD)
    features = SpotFeatures(source, 3, standardised=True, neighbours=(7,))
    architecture, backbone = TRMConfig(), WindowedConfig(width=16, n_heads=2)
    network = build_network(6, architecture, backbone, ExpressionHead, 3, halting="mse", seed=3)
    network.head.set_scale(torch.randn(9, 3, generator=torch.Generator().manual_seed(0)))
    common = {
        "target": ExpressionTarget(GENES, "log2_normalised", 1234.5, "total", "counts"),
        "features": features,
        "baseline": LinearExpression(draw(6, 3), draw(3)),
        "reliability": pd.DataFrame({"pcc": [0.5, np.nan, 0.1]}, index=pd.Index(GENES, name="gene")),
        "sections": ["S1"],
    }
    if linear:
        return LinearExpressionModel(**common)
    return ExpressionModel(
        **common,
        architecture=architecture,
        backbone=backbone,
        network=network,
        halting="mse",
        history=pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.5], "validation_pcc": [np.nan, 0.3]}),
        scores=pd.DataFrame({"network": {"pcc": 0.5}, "linear": {"pcc": 0.4}}),
    )


@pytest.mark.parametrize("linear", [False, True])
def test_everything_comes_back(linear, tmp_path):
    model = make_model(linear=linear)
    model.save(tmp_path / "model")
    for loaded in (st.load_model(tmp_path / "model"), st.load_model(str(tmp_path / "model"))):
        assert type(loaded) is type(model)
        assert (loaded.id, loaded.sections) == (model.id, model.sections)
        assert (loaded.target, loaded.genes) == (model.target, GENES)
        assert loaded.encoder == RECORD
        for name, value in vars(model.features.source).items():
            assert np.array_equal(getattr(loaded.features.source, name), value), name
        pd.testing.assert_frame_equal(loaded.reliability, model.reliability)
        assert np.array_equal(loaded.baseline.weight_FG, model.baseline.weight_FG)
        if not linear:
            assert loaded.halting == model.halting
            assert (loaded.architecture, loaded.backbone) == (model.architecture, model.backbone)
            for name in ("history", "scores"):
                pd.testing.assert_frame_equal(getattr(loaded, name), getattr(model, name))
            expected = model.network.state_dict()
            assert {"head.mean_G", "head.sd_G"} <= set(expected)
            assert all(torch.equal(value, expected[name]) for name, value in loaded.network.state_dict().items())


def test_a_loaded_model_predicts_the_same(tmp_path):
    model = make_model()
    model.save(tmp_path / "model")
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(5), torch.arange(6), indexing="ij"))
    features = torch.randn(8, 30, 6, generator=torch.Generator().manual_seed(0))
    views = dict(enumerate(features))
    section = Section("a", features[0], Lattice(row, col, (30,), "square"), views=views)
    first, second = (m.predict([section])[0].best.output_DN for m in (model, st.load_model(tmp_path / "model")))
    np.testing.assert_array_equal(first, second)
    assert first.shape == (1, 30, 3)


def test_the_folder_holds_no_code(tmp_path):
    make_model().save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "weights.safetensors"]
    config = json.loads((tmp_path / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["kind"] == "expression"


def test_the_description_is_readable():
    text = repr(make_model())
    for part in ("trm over a windowed backbone", "3 genes as log2_normalised", "toy", "S1"):
        assert part in text
    assert "ridge regression" in repr(make_model(linear=True))


def spots(n: int = 60, *, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.arange(n), 10)
    views = rng.normal(size=(n, 8, 6)) * 10 ** np.arange(6.0)
    return ad.AnnData(
        np.zeros((n, 1), dtype=np.float32),
        obsm={
            "X_patch": views[:, 0].astype("f4"),
            "X_patch_d4": views.astype("f4"),
            "grid": np.column_stack([row, col]),
            "spatial": np.column_stack([col, row]) * 50.0 + 7,
        },
    )


def grid_of(adata: ad.AnnData, layout: str = "square") -> Grid:
    return Grid(*adata.obsm["grid"].T.astype(np.int64), layout)


ONE = Sections(np.zeros(60, dtype=np.int64), ["S"])


def test_components_see_the_training_spots_alone():
    rows, first, second = np.arange(40), spots(), spots()
    second.obsm["X_patch"][40:] = 5
    second.obsm["X_patch_d4"][40:] = 5
    for a, b in zip(
        *(vars(fit_representation(x, rows, "X_patch", n_components=4, rng=0)).values() for x in (first, second)),
        strict=True,
    ):
        assert np.array_equal(a, b)


def test_columns_of_all_scales_count_the_same():
    fitted = fit_representation(spots(), np.arange(60), "X_patch", n_components=5, rng=0)
    assert fitted.components_FP.shape == (6, 5)
    # the last column is 100,000 times the first, and does not take the first component for itself
    assert np.abs(fitted.components_FP[:, 0]).max() < 0.95
    np.testing.assert_allclose(fitted.components_FP.T @ fitted.components_FP, np.eye(5), atol=1e-5)
    assert (fitted.components_FP[np.abs(fitted.components_FP).argmax(axis=0), range(5)] > 0).all()


@pytest.mark.parametrize("layout", ["square", "hex"])
def test_all_views_are_projected_alike(layout):
    adata = spots()
    fitted = fit_representation(adata, np.arange(60), "X_patch", n_components=4, rng=0)
    views = fitted.views(adata, ONE, grid_of(adata, layout))
    assert list(views) == ([0, 1, 2, 4] if layout == "hex" else list(range(8)))
    np.testing.assert_array_equal(views[0], fitted.transform(adata))
    for element, values in views.items():
        turned = adata.copy()
        turned.obsm["X_patch"] = adata.obsm["X_patch_d4"][:, element]
        np.testing.assert_array_equal(values, fitted.transform(turned))


@pytest.mark.parametrize("o", range(8))
def test_patches_are_turned_as_the_lattice_lies(o):
    adata = spots()
    grid = adata.obsm["grid"]
    adata.obsm["grid"] = np.column_stack(transform_coords(grid[:, 0], grid[:, 1], o, 6, 10))
    assert orientation(adata, grid_of(adata), np.arange(60)) == o
    fitted = fit_representation(adata, np.arange(60), "X_patch", n_components=4, rng=0)
    views = fitted.views(adata, ONE, grid_of(adata))
    for g in range(8):
        np.testing.assert_array_equal(views[g], fitted.project(adata.obsm["X_patch_d4"][:, COMPOSE[o][g]]))


def test_orientation_needs_coordinates():
    adata = spots()
    adata.obsm["spatial"] = np.full((60, 2), np.nan)
    assert orientation(adata, grid_of(adata), np.arange(60)) == 0
    assert orientation(adata, grid_of(adata), np.arange(1)) == 0
    del adata.obsm["spatial"]
    assert orientation(adata, grid_of(adata), np.arange(60)) == 0


def test_what_was_made_otherwise_is_told(caplog):
    adata = spots()
    adata.uns["X_patch"] = {
        "encoder": "toy",
        "probe": np.array([1.0, 2.0]),
        "sections": pd.DataFrame({"patch_um": [112.0], "patch_px": [224]}),
    }
    fitted = fit_representation(adata, np.arange(60), "X_patch", n_components=4, rng=0)
    fitted.transform(adata)
    assert caplog.text == ""
    adata.uns["X_patch"]["sections"]["patch_um"] = 224.0
    fitted.transform(adata)
    assert "from patches of [224.0] µm; in training [112.0] µm" in caplog.text
    adata.uns["X_patch"]["stain_reference"] = {"mean": np.arange(3)}
    fitted.transform(adata)
    assert "another stain_reference" in caplog.text


def test_tiles_at_another_magnification_are_told(caplog):
    """Patches as wide as in training, from an image whose pixels are four times as coarse."""
    adata = spots()
    sizes = pd.DataFrame({"patch_um": [112.0], "pixel_um": [0.5]})
    adata.uns["X_patch"] = {"encoder": "toy", "sections": sizes}
    fitted = fit_representation(adata, np.arange(60), "X_patch", n_components=4, rng=0)
    for pixel_um, is_told in ((0.5, False), (0.7, False), (0.3, True), (2.0, True)):
        caplog.clear()
        sizes["pixel_um"] = pixel_um
        fitted.transform(adata)
        assert ("as the encoder sees them" in caplog.text) == is_told, pixel_um


def test_embeddings_of_an_encoder_without_name_are_told(caplog):
    adata = spots()
    adata.uns["X_patch"] = {"encoder": "toy"}
    named = fit_representation(adata, np.arange(60), "X_patch", n_components=4, rng=0)
    bare = adata.copy()
    del bare.uns["X_patch"]
    unnamed = fit_representation(bare, np.arange(60), "X_patch", n_components=4, rng=0)
    unnamed.transform(bare)
    named.transform(adata)
    assert caplog.text == ""
    named.transform(bare)
    assert "is not named, and that of the training 'toy'" in caplog.text
    caplog.clear()
    unnamed.transform(adata)
    assert "is 'toy', and that of the training not named" in caplog.text


def test_embeddings_of_another_encoder_raise_with_the_way_to_the_right_ones():
    adata = spots()
    for known, remedy in (
        ("uni", r"embed_patches\(adata, \.\.\., encoder='uni'\)"),
        ("lazyslide:uni", r"lazyslide\.tl\.feature_extraction\(wsi, 'uni'\)"),
    ):
        adata.uns["X_patch"] = {"encoder": known}
        fitted = fit_representation(adata, np.arange(60), "X_patch", n_components=4, rng=0)
        adata.uns["X_patch"] = {"encoder": "uni2"}
        with pytest.raises(ValueError, match=rf"encoder 'uni2'; the model was trained on '{known}'.*{remedy}"):
            fitted.transform(adata)


def test_image_features_know_how_far_a_section_is():
    adata = spots()
    sections = Sections(np.arange(60) // 20, ["A", "B", "C"])
    data = SectionData(adata, sections, grid_of(adata), np.arange(60), 60)
    options = st.Features(n_components=4, standardise=True, neighbours=(5,))
    features = fit_image_features(data, ["A", "B"], "X_patch", options, rng=0)
    assert features.n_columns == 8
    far = replace(features).representation(adata)
    far[40:] += 20
    novelty = features.novelty(far, data)
    assert novelty[:2] == [0, 0]
    assert novelty[2] > 5


def image_features(adata: ad.AnnData, **options: object) -> tuple[SpotFeatures, SectionData]:
    data = SectionData(adata, Sections(np.arange(60) // 20, ["A", "B", "C"]), grid_of(adata), np.arange(60), 60)
    return fit_image_features(data, ["A", "B"], "X_patch", st.Features(**options), rng=0), data


def test_standardised_components_keep_their_spread_over_the_training_spots():
    adata = spots()
    # a stronger first component, which is the same in all columns and views, and a stain that scales a section
    signal = np.random.default_rng(1).normal(size=60)[:, None]
    scale = adata.obsm["X_patch"].std(axis=0)
    adata.obsm["X_patch"] += 3 * signal * scale
    adata.obsm["X_patch_d4"] += 3 * signal[:, None] * scale
    for key in ("X_patch", "X_patch_d4"):
        adata.obsm[key][20:40] = 2 * adata.obsm[key][20:40] + scale
    features, data = image_features(adata, n_components=4, neighbours=())
    columns = features.inputs(data).columns_NF
    mean = features.source.project(adata.obsm["X_patch_d4"].mean(axis=1))
    spread = mean[:40].std(axis=0)
    np.testing.assert_allclose(features.weight_P, spread / np.sqrt(np.square(spread).mean()), rtol=1e-4)
    assert features.weight_P[0] > 2 * features.weight_P[1]
    for rows in (slice(0, 20), slice(20, 40), slice(40, 60)):
        np.testing.assert_allclose(columns[rows].mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(columns[rows].std(axis=0), features.weight_P, rtol=1e-3)


def test_patches_are_compared_by_components_of_equal_spread():
    features, data = image_features(spots(), n_components=4, neighbours=(5,))
    alike = replace(features, weight_P=None).inputs(data)
    np.testing.assert_allclose(features.inputs(data).compared_NF, alike.compared_NF, atol=1e-4)


def test_components_that_are_not_standardised_stay_as_they_are():
    features, data = image_features(spots(), n_components=4, neighbours=(), standardise=False)
    assert features.weight_P is None
    np.testing.assert_array_equal(features.inputs(data).columns_NF, features.source.transform(data.table))


def test_columns_that_are_all_constant_weigh_alike():
    np.testing.assert_array_equal(relative_spread(np.ones((5, 3))), 1)


def test_measured_values_of_missing_genes_are_nan():
    adata = ad.AnnData(np.array([[3, 0], [0, 7]], dtype=np.float32), var=pd.DataFrame(index=["b", "a"]))
    found = ExpressionTarget(GENES, "log2", None, None, None).measure(adata)
    np.testing.assert_array_equal(found, [[0, 2, np.nan], [3, 0, np.nan]])
