"""Domains from intensities of protein markers, and from cell types."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import small_world as world
from scipy import sparse

import strecur as st
from strecur._anndata import read_section_data
from strecur.models.domain_task import DomainTask
from strecur.models.features.intensities import limits
from strecur.models.features.spots import SpotFeatures, fit_domain_features
from strecur.options import Features, fill

TYPES = ["B cell", "T cell", "macrophage", "vessel"]
MARKERS = [f"CD{i}" for i in range(1, 21)]
ARCHITECTURE = {"backbone": world.NETWORK["backbone"]}
BRIEFLY = {"max_epochs": 1, "validation": None}
PANEL = {"kind": "intensities", "neighbours": (7,)}
OF_TYPES = {"kind": "cell_types", "neighbours": (7,)}


def panel_sections() -> ad.AnnData:
    """Three sections with intensities of 20 markers: three bright ones in every domain, noise, and a background."""
    adata, rng = world.sections(), np.random.default_rng(3)
    domain = adata.obs["domain"].cat.codes.to_numpy()
    bright = (np.arange(20)[None] // 3 == domain[:, None]) * 1.5
    values = 800 * np.exp(bright + 0.8 * rng.normal(size=(adata.n_obs, 20))) - 20
    return with_values(adata, values)


def with_values(adata: ad.AnnData, values: np.ndarray) -> ad.AnnData:
    """Replace the genes of an object by markers."""
    parts = {"obs": adata.obs, "obsm": dict(adata.obsm), "uns": dict(adata.uns), "var": pd.DataFrame(index=MARKERS)}
    return ad.AnnData(values.astype(np.float32), **parts)


def typed_sections() -> ad.AnnData:
    """Three sections whose domains differ by the shares of four cell types."""
    adata, rng = world.sections(), np.random.default_rng(4)
    shares = np.array([[0.85, 0.05, 0.05, 0.05], [0.05, 0.85, 0.05, 0.05], [0.05, 0.05, 0.45, 0.45]])
    drawn = [rng.choice(TYPES, p=shares[code]) for code in adata.obs["domain"].cat.codes]
    adata.obs["cell_type"] = pd.Categorical(drawn, categories=TYPES)
    del adata.X
    return adata


def split(adata: ad.AnnData) -> tuple[ad.AnnData, ad.AnnData]:
    """Two sections to train on, and the third."""
    is_new = (adata.obs["section"] == "S3").to_numpy()
    return adata[~is_new].copy(), adata[is_new].copy()


def train(adata: ad.AnnData, features: dict) -> st.models.DomainModel:
    return st.tl.train_domains(adata, "domain", features=features, training=BRIEFLY, **ARCHITECTURE)


def accuracy(adata: ad.AnnData, model: st.models.DomainModel) -> float:
    """Share of the spots whose domain is right; the labels are written into the object."""
    st.tl.trm_domains(adata, model)
    return float((adata.obs["trm_domains"].astype(str) == adata.obs["domain"].astype(str)).mean())


def fit(adata: ad.AnnData, features: dict) -> SpotFeatures:
    """Fit features alone on all sections of an object."""
    data = read_section_data(adata, "section")
    return fit_domain_features(data, data.names, None, fill(Features(**features), DomainTask.feature_defaults), 0)


def columns(adata: ad.AnnData, fitted: SpotFeatures) -> np.ndarray:
    return fitted.inputs(read_section_data(adata, "section")).columns_NF


# Intensities


@pytest.mark.parametrize("transform", ["arcsinh", "clr"])
def test_domains_are_learned_from_intensities(transform, caplog):
    caplog.set_level("INFO", "strecur")
    known, new = split(panel_sections())
    model = train(known, {**PANEL, "transform": transform})
    assert f"intensities of 20 markers: {transform}" in caplog.text
    assert model.features.source.markers == MARKERS
    assert model.features.width == 20
    assert accuracy(new, model) > 0.9


def test_parameters_come_from_the_training_sections_alone():
    adata = panel_sections()
    adata.obs["domain"] = adata.obs["domain"].where(adata.obs["section"] != "S3")
    model = train(adata, PANEL)
    in_test = (adata.obs["section"] == "S3").to_numpy()
    adata.X[in_test] = 1e5 * np.random.default_rng(0).random((in_test.sum(), 20))
    other = train(adata, PANEL)
    for name, value in vars(model.features.source).items():
        np.testing.assert_array_equal(getattr(other.features.source, name), value)
    np.testing.assert_array_equal(other.baseline.weight_FC, model.baseline.weight_FC)


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_unit_of_the_intensities_does_not_matter(factor):
    known, new = split(panel_sections())
    scaled = [with_values(part, factor * part.X) for part in (known, new)]
    found = [columns(part, fit(sections[0], PANEL)) for sections in ((known, new), scaled) for part in sections]
    np.testing.assert_allclose(found[2], found[0], atol=1e-3)
    np.testing.assert_allclose(found[3], found[1], atol=1e-3)


def test_a_section_at_another_gain_gets_its_domains():
    known, new = split(panel_sections())
    brighter = with_values(new, 2.5 * new.X)
    model = train(known, PANEL)
    assert accuracy(brighter, model) > 0.9


def test_the_log_ratio_does_not_depend_on_the_brightness_of_a_spot():
    known, new = split(panel_sections())
    features = {**PANEL, "transform": "clr", "winsorise": 0, "neighbours": (), "standardise": False}
    model = fit(known, features)
    gain = np.random.default_rng(1).uniform(0.3, 3, size=(new.n_obs, 1))
    bright = with_values(new, np.maximum(new.X, 1))
    np.testing.assert_allclose(columns(with_values(new, gain * bright.X), model), columns(bright, model), atol=0.1)
    arcsinh = fit(known, {**features, "transform": "arcsinh"})
    assert np.abs(columns(with_values(new, gain * bright.X), arcsinh) - columns(bright, arcsinh)).max() > 0.5


@pytest.mark.parametrize(("place", "standardise"), [("training", False), ("new", True)])
def test_one_huge_value_does_not_matter(place, standardise):
    known, new = split(panel_sections())
    change = {}
    for winsorise in (0.001, 0):
        features = {**PANEL, "neighbours": (), "standardise": standardise, "winsorise": winsorise}
        spoiled = (known if place == "training" else new).copy()
        spoiled.X[17, 4] = 1e12
        pair = (spoiled, new) if place == "training" else (known, spoiled)
        expected, found = columns(new, fit(known, features)), columns(pair[1], fit(pair[0], features))
        change[winsorise] = np.delete(np.abs(found - expected)[:, 4], 17).mean()
    assert change[0.001] < 0.1
    assert change[0] > 0.3


def test_limits_leave_out_a_share_of_the_spots_and_one_at_least():
    values = np.arange(200.0)[:, None]
    assert [float(end[0]) for end in limits(values, 0.0)] == [np.finfo(np.float32).min, np.finfo(np.float32).max]
    assert [float(end[0]) for end in limits(values, 0.001)] == [1, 198]
    assert [float(end[0]) for end in limits(values, 0.05)] == [10, 189]
    assert [float(end[0]) for end in limits(values[:2], 0.05)] == [0, 1]


def test_markers_are_matched_by_name(caplog):
    known, new = split(panel_sections())
    model = fit(known, {**PANEL, "standardise": False, "neighbours": ()})
    expected = columns(new, model)
    shuffled = new[:, np.random.default_rng(0).permutation(20)].copy()
    shuffled.X = sparse.csr_matrix(shuffled.X)
    np.testing.assert_allclose(columns(shuffled, model), expected, atol=1e-5)
    fewer = columns(new[:, 2:].copy(), model)
    assert "2 of 20 genes are missing and get their training mean" in caplog.text
    np.testing.assert_allclose(fewer[:, 2:], expected[:, 2:], atol=1e-5)
    assert (fewer[:, :2] == 0).all()
    with pytest.raises(ValueError, match="of the model's 20 genes are in this object"):
        columns(new[:, :5].copy(), model)


def test_fewer_components_than_markers_are_principal_components():
    known, new = split(panel_sections())
    model = train(known, {**PANEL, "n_components": 5})
    assert model.features.source.components_MP.shape == (20, 5)
    assert accuracy(new, model) > 0.9


def test_intensities_of_a_layer():
    known, new = split(panel_sections())
    expected = columns(new, fit(known, PANEL))
    for part in (known, new):
        part.layers["raw"] = part.X.copy()
        part.X[:] = 0
    np.testing.assert_array_equal(columns(new, fit(known, {**PANEL, "layer": "raw"})), expected)


def test_messages_name_the_kind_of_features():
    known, _ = split(panel_sections())
    with pytest.raises(ValueError, match=r"features=\{'kind': 'intensities'\}"):
        train(known, {"neighbours": (7,)})
    with pytest.raises(ValueError, match="leave one of them out"):
        st.tl.train_domains(known, "domain", use_rep="spatial", features=PANEL)
    known.X[3, 3] = np.nan
    with pytest.raises(ValueError, match="leave out the markers or spots that were not measured"):
        train(known, PANEL)
    with pytest.raises(ValueError, match="no marker varies"):
        train(with_values(known, np.ones(known.shape)), PANEL)
    with pytest.raises(ValueError, match="layer is an option of kind='counts' or kind='intensities'"):
        Features(kind="cell_types", layer="raw")
    with pytest.raises(ValueError, match="normalise is an option of kind='counts'"):
        Features(kind="intensities", normalise=False)
    with pytest.raises(ValueError, match=r"cofactor=5.0 is for transform='arcsinh'"):
        Features(kind="intensities", transform="clr", cofactor=5.0)
    with pytest.raises(ValueError, match="kind='intensities' is for domains"):
        st.tl.train_expression(world.pair(), genes=3, features={"kind": "intensities"})


# Cell types


def test_domains_are_learned_from_cell_types(caplog):
    caplog.set_level("INFO", "strecur")
    known, new = split(typed_sections())
    model = train(known, OF_TYPES)
    assert "features are the 4 cell types of adata.obs['cell_type']" in caplog.text
    assert accuracy(new, model) > 0.8
    assert "have no cell type" not in caplog.text


def test_cell_types_are_the_same_features_as_their_columns():
    known, new = split(typed_sections())
    features = {"neighbours": (7,), "standardise": False}
    model = train(known, {**OF_TYPES, **features})
    for part in (known, new):
        part.obsm["X_types"] = pd.get_dummies(part.obs["cell_type"])[TYPES].to_numpy(dtype=np.float32)
    by_hand = st.tl.train_domains(
        known, "domain", use_rep="X_types", features=features, training=BRIEFLY, **ARCHITECTURE
    )
    np.testing.assert_array_equal(columns(new, model.features), columns(new, by_hand.features))
    np.testing.assert_array_equal(by_hand.baseline.weight_FC, model.baseline.weight_FC)


def standardised(part: ad.AnnData, known: ad.AnnData) -> np.ndarray:
    """One-hot types, centred and scaled by the sections of ``known``."""
    ones, usual = (pd.get_dummies(own.obs["cell_type"])[TYPES].to_numpy(dtype=float) for own in (part, known))
    by_section = [usual[(known.obs["section"] == name).to_numpy()] for name in known.obs["section"].unique()]
    centre = np.mean([own.mean(axis=0) for own in by_section], axis=0)
    scale = np.sqrt(np.mean([own.var(axis=0) for own in by_section], axis=0))
    return (ones - centre) / scale


def test_cell_types_are_standardised_by_the_training_sections():
    known, new = split(typed_sections())
    model = train(known, {**OF_TYPES, "neighbours": ()})
    for part in (known, new):
        np.testing.assert_allclose(columns(part, model.features), standardised(part, known), rtol=1e-4, atol=1e-5)


def test_a_cell_means_the_same_in_a_section_of_one_domain():
    known, new = split(typed_sections())
    model = train(known, {**OF_TYPES, "neighbours": ()})
    inside = (new.obs["domain"] == new.obs["domain"].iloc[0]).to_numpy()
    assert 0 < inside.sum() < new.n_obs
    expected = columns(new, model.features)[inside]
    np.testing.assert_array_equal(columns(new[inside].copy(), model.features), expected)


@pytest.mark.parametrize("as_type", [lambda t: t.cat.reorder_categories(TYPES[::-1]), lambda t: t.astype(str)])
def test_order_and_type_of_the_column_do_not_matter(as_type):
    known, new = split(typed_sections())
    expected = columns(new, fit(known, OF_TYPES))
    for part in (known, new):
        part.obs["phenotype"] = as_type(part.obs.pop("cell_type"))
    np.testing.assert_array_equal(columns(new, fit(known, {**OF_TYPES, "cell_type_key": "phenotype"})), expected)


def test_cell_types_without_expression_are_validated():
    adata = typed_sections()
    bare = ad.AnnData(obs=adata.obs, obsm=dict(adata.obsm), uns=dict(adata.uns))
    assert bare.X is None
    options = {"features": OF_TYPES, "training": BRIEFLY, "backbone": ARCHITECTURE["backbone"]}
    networks = {"feedforward": "feedforward"}
    table = st.tl.cross_validate(bare, "domain", architectures=networks, seeds=(0,), train=options)
    assert table.loc[table["method"] == "linear", "accuracy"].min() > 0.8


def test_new_and_missing_types_are_zero_and_told_once(caplog):
    known, new = split(typed_sections())
    model = train(known, {**OF_TYPES, "neighbours": (), "standardise": False})
    new.obs["cell_type"] = new.obs["cell_type"].astype(object)
    new.obs.iloc[:3, new.obs.columns.get_loc("cell_type")] = "neuron"
    new.obs.iloc[3:5, new.obs.columns.get_loc("cell_type")] = np.nan
    found = columns(new, model.features)
    assert (found[:5] == 0).all()
    assert (found[5:].sum(axis=1) == 1).all()
    caplog.clear()
    st.tl.trm_domains(new, model)
    told = [record.message for record in caplog.records if "cell type" in record.message]
    assert told == [
        f"adata.obs['cell_type']: 2 of {new.n_obs} spots have no cell type, and 3 one that is in no training section "
        "(neuron); their features of cell types are zero"
    ]
    assert new.obs["trm_domains"].notna().all()


def test_types_of_the_test_section_are_not_learned():
    adata = typed_sections()
    adata.obs["domain"] = adata.obs["domain"].where(adata.obs["section"] != "S3")
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories("neuron")
    adata.obs.loc[adata.obs["section"] == "S3", "cell_type"] = "neuron"
    assert train(adata, OF_TYPES).features.source.types == TYPES


def test_what_is_wrong_with_cell_types():
    adata = typed_sections()
    with pytest.raises(KeyError, match="did you mean 'cell_type'"):
        train(adata, {**OF_TYPES, "cell_type_key": "celltype"})
    adata.obs["score"] = np.linspace(0, 1, adata.n_obs)
    with pytest.raises(ValueError, match="cell types are categories"):
        train(adata, {**OF_TYPES, "cell_type_key": "score"})
    adata.obs["cell_type"] = "T cell"
    with pytest.raises(ValueError, match=r"names 1 cell type\(s\) \['T cell'\]"):
        train(adata, OF_TYPES)


# Files and real sections


@pytest.mark.parametrize(("make", "features"), [(panel_sections, PANEL), (typed_sections, OF_TYPES)])
def test_models_come_back_from_their_folder(make, features, tmp_path):
    known, new = split(make())
    model = train(known, features)
    model.save(tmp_path / "model")
    loaded = st.load_model(tmp_path / "model")
    again = new.copy()
    for adata, fitted in ((new, model), (again, loaded)):
        st.tl.trm_domains(adata, fitted)
    np.testing.assert_array_equal(again.obsm["trm_domains_proba"], new.obsm["trm_domains_proba"])
    st.pl.domains(again)


def test_spleen(data_dir):
    parts = {}
    for name in ("BALBc-1", "BALBc-2"):
        whole = ad.read_h5ad(data_dir / "spleen" / f"{name}.h5ad")
        distance = np.abs(whole.obsm["spatial"] - np.median(whole.obsm["spatial"], axis=0)).max(axis=1)
        parts[name] = whole[np.sort(np.argsort(distance)[:2000])].copy()
    adata = ad.concat(parts, label="section", index_unique="-")
    st.pp.to_grid(adata, library_key="section")
    known, new = (adata[adata.obs["section"] == name].copy() for name in parts)
    options = {"architecture": "feedforward", "training": BRIEFLY, **ARCHITECTURE}
    model = st.tl.train_domains(known, "domain", features={"kind": "cell_types"}, **options)
    assert {"B cells", "marginal zone mphs"} <= set(model.features.source.types)
    st.tl.trm_domains(new, model)
    assert st.metrics.domain_scores(new.obs["domain"], new.obs["trm_domains_linear"])["ari"] > 0.5
