from __future__ import annotations

from typing import TYPE_CHECKING

import anndata as ad
import calls
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import strecur as st
from strecur.tl._reasoning import settling_steps

from .conftest import SMALL, train

if TYPE_CHECKING:
    from strecur.models import DomainModel

APPLY = {"library_key": "section"}


def apply(adata: ad.AnnData, model: DomainModel, **options: object) -> ad.AnnData:
    return calls.trm_domains(adata, model, **{**APPLY, "copy": True, **options})


def states(model: DomainModel) -> dict[str, np.ndarray]:
    """Return everything fitted: features, baseline, network."""
    source = model.features.source
    fitted = {"mean": source.mean_G, "components": source.components_GP, "weight": model.baseline.weight_FC}
    return fitted | {name: value.numpy() for name, value in model.network.state_dict().items()}


def test_layers_are_found_on_a_section_that_was_not_trained_on():
    sections = st.datasets.synthetic_sections(n_sections=3, n_rows=24, n_cols=24, n_genes=200, n_domains=3)
    st.pp.to_grid(sections, library_key="section")
    held_out = (sections.obs["section"] == "S3").to_numpy()
    options = {"max_epochs": 20, "validation": None, "n_components": 20}
    model = train(sections[~held_out].copy(), **options)
    single = train(sections[~held_out].copy(), **options | {"neighbours": (), "max_epochs": 1})
    found, alone = (apply(sections[held_out].copy(), m) for m in (model, single))
    scores = st.metrics.domain_scores(found.obs["domain"], found.obs["trm_domains"])
    assert scores["accuracy"] > 0.8
    # without its surroundings a spot cannot be read well
    assert scores["ari"] > st.metrics.domain_scores(alone.obs["domain"], alone.obs["trm_domains_linear"])["ari"] + 0.2


@pytest.mark.parametrize("architecture", ["trm", "feedforward", "universal"])
def test_training_starts_from_the_linear_model(architecture, sections):
    """One pass teaches next to nothing, so that the answer is still that of the linear model, not one of chance."""
    train_on = sections[sections.obs["section"] != "S3"].copy()
    found = apply(sections, train(train_on, architecture=architecture, max_epochs=1, validation=None))
    assert (found.obs["trm_domains"] == found.obs["trm_domains_linear"]).mean() > 0.95
    agreement = found.uns["trm_domains"]["sections"]["linear_agreement"]
    assert (agreement > 0.9).all()


def test_of_many_spots_the_network_learns_without_a_linear_start(sections, monkeypatch):
    seen = int(sections.obs["domain"].notna().sum())
    for few, starts in ((seen, False), (seen + 1, True)):
        monkeypatch.setattr("strecur.models.domain_task.FEW_SPOTS", few)
        model = train(sections, max_epochs=1, validation=None)
        assert (model.network.linear_start is not None) == starts


def test_network_and_baseline_are_smoothed_alike(sections):
    """The same weights answer with and without it; what is written is what :func:`smooth` makes of the raw answer."""
    model = train(sections, max_epochs=1, validation=None, smoothing=7)
    new = sections[sections.obs["section"] == "S3"].copy()
    smoothed = apply(new, model)
    model.smoothing = 1
    raw = apply(new, model)
    position_N2 = np.asarray(new.obsm["grid"], dtype=float) * [np.sqrt(0.75), 0.5]
    near_NN = np.linalg.norm(position_N2[:, None] - position_N2, axis=2) < 1.01
    whole_N = near_NN.sum(axis=1) == 7
    log_proba_NC = np.log(np.asarray(raw.obsm["trm_domains_proba"]) + 1e-4)
    expected_N = (near_NN @ log_proba_NC).argmax(axis=1)
    found_N = smoothed.obs["trm_domains"].cat.codes.to_numpy()
    assert whole_N.sum() > 40
    assert (found_N == expected_N)[whole_N].all()
    assert not smoothed.obs["trm_domains_linear"].equals(raw.obs["trm_domains_linear"])
    assert smoothed.uns["trm_domains"]["params"]["smoothing"] == 7


def test_training_goes_beyond_the_linear_model():
    """Where domains are told by a product of features, which no linear model sees, the network learns it on top."""
    sections = st.datasets.synthetic_sections(n_sections=2, n_rows=20, n_cols=20, n_domains=2)
    st.pp.to_grid(sections, library_key="section")
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(sections.n_obs, 2))
    sections.obsm["X_signs"] = signs.astype(np.float32)
    sections.obs["domain"] = np.where(signs.prod(axis=1) > 0, "same", "different")
    seen, new = (sections[sections.obs["section"] == name].copy() for name in ("S1", "S2"))
    options = {"use_rep": "X_signs", "neighbours": (), "validation": None, "max_epochs": 80}
    found = apply(new, train(seen, **options))
    assert (found.obs["trm_domains_linear"] == found.obs["domain"]).mean() < 0.65
    assert (found.obs["trm_domains"] == found.obs["domain"]).mean() > 0.9


def test_what_is_written(sections, trained):
    before = sections.copy()
    assert calls.trm_domains(sections, trained, **APPLY, key_added="k", depth=3) is None
    n = sections.n_obs
    ends = ("", "_confidence", "_novelty", "_settling_step", "_network", "_linear")
    assert set(sections.obs) - set(before.obs) == {f"k{end}" for end in ends}
    assert set(sections.obsm) - set(before.obsm) == {"k_proba", "k_latent", "k_steps"}
    assert set(sections.uns) - set(before.uns) == {"k"}
    assert list(sections.obs["k"].cat.categories) == list(sections.obs["k_linear"].cat.categories) == ["L1", "L2", "L3"]
    assert sections.obsm["k_proba"].shape == (n, 3)
    assert sections.obsm["k_proba"].dtype == np.float32
    assert sections.obsm["k_latent"].shape == (n, 32)
    assert sections.obsm["k_steps"].shape == (n, 3)
    assert np.array_equal(sections.obs["k"].cat.codes, sections.obsm["k_proba"].argmax(axis=1))
    np.testing.assert_allclose(sections.obs["k_confidence"], sections.obsm["k_proba"].max(axis=1))
    assert sections.obs["k_settling_step"].between(1, 3).all()
    table = sections.uns["k"]["sections"]
    assert list(table.index) == ["S1", "S2", "S3"]
    assert table["n_spots"].sum() == n
    assert table["halt_step"].between(2, 3).all()
    assert sections.uns["k"]["model"] == trained.id
    assert np.array_equal(sections.X.toarray(), before.X.toarray())
    pd.testing.assert_frame_equal(sections.obs[before.obs.columns], before.obs)


def test_nothing_that_is_fitted_depends_on_the_held_out_section(sections):
    """Features, baseline and network are the same to the bit when the unlabelled section changes."""
    sections.obs.loc[sections.obs["section"] == "S3", "domain"] = np.nan
    first = train(sections)
    other = sections.copy()
    rows = np.flatnonzero(other.obs["section"] == "S3")
    matrix = other.X.toarray()
    matrix[rows] = matrix[rows][:, ::-1] * 7
    other.X = sparse.csr_matrix(matrix)
    second = train(other)
    for name, value in states(first).items():
        assert np.array_equal(value, states(second)[name]), name
    assert first.features.source.genes == second.features.source.genes
    assert first.sections == ["S1", "S2"]


def test_validation_sections_fit_nothing(sections):
    first = train(sections, validation="S3", max_epochs=1)
    other = sections.copy()
    rows = np.flatnonzero(other.obs["section"] == "S3")
    matrix = other.X.toarray()
    matrix[rows] = matrix[rows][:, ::-1]
    other.X = sparse.csr_matrix(matrix)
    second = train(other, validation="S3", max_epochs=1)
    assert all(np.array_equal(value, states(second)[name]) for name, value in states(first).items())
    assert first.sections == ["S1", "S2"]
    assert set(first.scores.columns) == {"answer", "network", "linear"}


def test_seeds_repeat_and_global_randomness_stays(sections):
    part = sections[sections.obs["section"] != "S3"].copy()
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first, second, other = train(part), train(part), train(part, rng=1)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(value, states(second)[name]) for name, value in states(first).items())
    assert not np.array_equal(states(first)["embedding.weight"], states(other)["embedding.weight"])


def test_order_of_spots_genes_and_sections_does_not_matter(sections, trained):
    expected = apply(sections, trained)
    rng = np.random.default_rng(0)
    shuffled = sections[rng.permutation(sections.n_obs)][:, rng.permutation(sections.n_vars)].copy()
    found = apply(shuffled, trained)[sections.obs_names].copy()
    np.testing.assert_allclose(found.obsm["trm_domains_proba"], expected.obsm["trm_domains_proba"], atol=1e-4)
    alone = apply(sections[sections.obs["section"] == "S2"].copy(), trained)
    together = expected[expected.obs["section"] == "S2"]
    np.testing.assert_allclose(alone.obsm["trm_domains_proba"], together.obsm["trm_domains_proba"], atol=1e-4)


def test_labels_of_the_section_are_not_looked_at(sections, trained):
    expected = apply(sections, trained)
    sections.obs["domain"] = "nonsense"
    assert np.array_equal(apply(sections, trained).obsm["trm_domains_proba"], expected.obsm["trm_domains_proba"])


def test_unlabelled_spots_teach_nothing_but_are_seen(sections):
    part = sections[sections.obs["section"] == "S1"].copy()
    hidden = np.arange(part.n_obs) % 3 == 0
    part.obs["masked"] = part.obs["domain"].where(~hidden)
    wrong = part.obs["domain"].astype(str).to_numpy()
    wrong[hidden] = "nan"
    part.obs["text"] = wrong
    first, second = train(part, "masked"), train(part, "text")
    assert all(np.array_equal(value, states(second)[name]) for name, value in states(first).items())
    assert apply(part, first).obs["trm_domains"].notna().all()


@pytest.mark.parametrize("kind", ["dense", "int", "view", "float64", "backed"])
def test_every_kind_of_matrix_works(kind, sections, trained, tmp_path):
    expected = apply(sections, trained).obsm["trm_domains_proba"]
    if kind == "backed":
        sections.write_h5ad(tmp_path / "a.h5ad")
        found = apply(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"), trained)
    elif kind == "view":
        view = sections[np.arange(sections.n_obs)]
        calls.trm_domains(view, trained, **APPLY)
        found = view
    else:
        matrix = sections.X.toarray()
        sections.X = {"dense": matrix, "int": matrix.astype(int), "float64": matrix.astype(float)}[kind]
        found = apply(sections, trained)
    np.testing.assert_allclose(found.obsm["trm_domains_proba"], expected, atol=1e-5)


def test_backed_training(sections, tmp_path):
    part = sections[sections.obs["section"] != "S3"].copy()
    part.write_h5ad(tmp_path / "a.h5ad")
    first, second = train(part), train(ad.read_h5ad(tmp_path / "a.h5ad", backed="r"))
    assert all(np.array_equal(value, states(second)[name]) for name, value in states(first).items())


def test_spatialdata(sections, trained):
    from spatialdata import SpatialData
    from spatialdata.models import TableModel

    expected = apply(sections, trained)
    sdata = SpatialData(
        tables={"counts": TableModel.parse(sections.copy()), "other": TableModel.parse(sections[:5].copy())}
    )
    with pytest.raises(KeyError, match=r"counts.*other"):
        calls.trm_domains(sdata, trained, **APPLY)
    calls.trm_domains(sdata, trained, **APPLY, table_key="counts")
    found = sdata.tables["counts"]
    assert np.array_equal(found.obsm["trm_domains_proba"], expected.obsm["trm_domains_proba"])
    again = SpatialData(tables={"table": TableModel.parse(found)})
    assert "trm_domains" in again.tables["table"].obs


def test_representation_in_place_of_expression(sections):
    rng = np.random.default_rng(0)
    sections.obsm["X_own"] = rng.normal(size=(sections.n_obs, 6)).astype(np.float32)
    sections.X = None
    model = train(sections, use_rep="X_own")
    result = apply(sections, model)
    assert result.obs["trm_domains"].notna().all()
    sections.obsm["X_own"] = sections.obsm["X_own"][:, :5]
    with pytest.raises(ValueError, match=r"5 columns.*trained on 6"):
        apply(sections, model)
    del sections.obsm["X_own"]
    with pytest.raises(KeyError, match=r"X_own.*trained on this representation"):
        apply(sections, model)


@pytest.mark.parametrize("architecture", ["trm", "universal", "feedforward"])
@pytest.mark.parametrize("backbone", ["dense", "windowed", "hierarchical"])
def test_every_architecture_over_every_backbone(architecture, backbone, sections, tmp_path):
    from strecur.nn import DenseConfig, HierarchicalConfig

    bodies = {
        "dense": DenseConfig(width=32, n_heads=2),
        "windowed": SMALL["backbone"],
        "hierarchical": HierarchicalConfig(width=32, n_heads=2, window=4, n_levels=2, n_global=1),
    }
    body = bodies[backbone]
    model = train(sections, architecture=architecture, backbone=body, max_epochs=1, validation=None)
    expected = apply(sections, model)
    model.save(tmp_path / "model")
    found = apply(sections, st.load_model(tmp_path / "model"))
    assert np.array_equal(found.obsm["trm_domains_proba"], expected.obsm["trm_domains_proba"])
    assert architecture in repr(model)


def test_two_domains_and_one_section_without_library_key(sections):
    part = sections[sections.obs["section"] == "S1"].copy()
    part.obs["domain"] = part.obs["domain"].astype(str).replace({"L3": "L2"})
    del part.uns["grid"]["params"]["library_key"]
    model = train(part, library_key=None)
    result = apply(part, model, library_key=None)
    np.testing.assert_allclose(model.baseline.predict_proba(model_features(model, part)).sum(axis=1), 1, atol=1e-5)
    assert list(result.uns["trm_domains"]["sections"].index) == ["section"]
    assert st.metrics.domain_scores(part.obs["domain"], result.obs["trm_domains_linear"])["accuracy"] > 0.8


def model_features(model: DomainModel, adata: ad.AnnData) -> np.ndarray:
    from strecur._anndata import read_section_data

    return model.features.inputs(read_section_data(adata, None)).columns_NF


def test_a_domain_of_the_validation_section_alone_is_dropped(sections, caplog):
    names = sections.obs["domain"].astype(str).to_numpy()
    names[(sections.obs["section"] == "S3").to_numpy() & (names == "L1")] = "rare"
    sections.obs["names"] = names
    with caplog.at_level("WARNING"):
        model = train(sections, "names", validation=["S3"], max_epochs=1)
    assert model.labels == ["L1", "L2", "L3"]
    assert "rare" in caplog.text


def test_a_section_with_one_spot(sections, trained):
    lonely = sections[np.r_[0, np.flatnonzero(sections.obs["section"] == "S2")]].copy()
    result = apply(lonely, trained)
    assert np.isfinite(result.obsm["trm_domains_proba"]).all()
    assert train(lonely, max_epochs=1).sections == ["S1", "S2"]


def test_settling_step_is_the_last_change():
    steps = np.array([[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 1], [2, 2, 0, 2], [3, 2, 2, 3]])
    assert settling_steps(steps).tolist() == [1, 2, 4, 4, 4]
    assert settling_steps(steps[:, :1]).tolist() == [1] * 5


def forget_sections(adata: ad.AnnData) -> dict[str, None]:
    """Remove the column of sections that the lattice remembers."""
    del adata.uns["grid"]["params"]["library_key"]
    return {"library_key": None}


BAD_TRAINING = {
    "unknown library_key": (lambda a: {"library_key": "slide"}, KeyError, r"slide.*there are.*section"),
    "unknown label": (lambda a: {"label_key": "layer"}, KeyError, r"layer.*there are.*domain"),
    "no labels": (lambda a: a.obs.__setitem__("domain", np.nan), ValueError, "0 domain"),
    "one class": (lambda a: a.obs.__setitem__("domain", "L1"), ValueError, r"1 domain\(s\) \['L1'\]; at least two"),
    "numbers as labels": (
        lambda a: a.obs.__setitem__("domain", np.random.default_rng(0).random(a.n_obs)),
        ValueError,
        "domains are categories",
    ),
    "no lattice": (lambda a: a.obsm.__delitem__("grid"), KeyError, r"grid.*to_grid"),
    "lattice of joined sections": (forget_sections, ValueError, "library_key"),
    "log values": (lambda a: setattr(a, "X", np.log1p(a.X.toarray())), ValueError, "raw counts"),
    "negative values": (lambda a: setattr(a, "X", -a.X.toarray()), ValueError, "negative"),
    "infinite values": (lambda a: setattr(a, "X", np.full(a.shape, np.inf)), ValueError, "infinite"),
    "unknown layer": (lambda a: {"layer": "counts"}, KeyError, "counts"),
    "unknown size factor": (lambda a: {"size_factor_key": "umi"}, KeyError, "umi.*total"),
    "unknown representation": (lambda a: {"use_rep": "X_pca"}, KeyError, "X_pca"),
    "representation and layer": (lambda a: {"use_rep": "spatial", "layer": "x"}, ValueError, "use_rep"),
    "architecture": (lambda a: {"architecture": "cnn"}, ValueError, "feedforward.*trm"),
    "backbone": (lambda a: {"backbone": "conv"}, ValueError, "dense.*windowed"),
    "halting": (lambda a: {"halting": "mse"}, ValueError, "loss_proxy.*weighted_bce.*random_k"),
    "validation": (lambda a: {"validation": "S9"}, ValueError, r"S9.*S1"),
    "all for validation": (lambda a: {"validation": ["S1", "S2", "S3"]}, ValueError, "none is left"),
    "devices": (lambda a: {"devices": 2}, ValueError, "torchrun"),
    "missing section": (
        lambda a: setattr(a, "obs", a.obs.assign(section=a.obs["section"].where(a.obs["section"] != "S1"))),
        ValueError,
        "every spot needs a section",
    ),
    "table key": (lambda a: {"table_key": "table"}, ValueError, "SpatialData"),
}


@pytest.mark.parametrize("case", BAD_TRAINING)
def test_bad_training_input_is_named(case, sections):
    change, error, message = BAD_TRAINING[case]
    options = {"label_key": "domain", **(change(sections) or {})}
    with pytest.raises(error, match=message):
        train(sections, options.pop("label_key"), **options)


BAD_PREDICTION = {
    "depth": (lambda a: {"depth": 0}, ValueError, "depth=0: at least one"),
    "breadth": (lambda a: {"breadth": 0}, ValueError, "breadth=0: at least one"),
    "noise": (lambda a: {"noise": -1.0}, ValueError, "not be negative"),
    "selection": (lambda a: {"selection": "best"}, ValueError, "converged.*vote.*mean"),
    "threshold": (lambda a: {"halt_threshold": 1.0}, ValueError, "between 0 and 1"),
    "key": (lambda a: {"key_added": "a/b"}, ValueError, "legal key"),
    "library_key": (lambda a: {"library_key": "slide"}, KeyError, "slide"),
    "no lattice": (lambda a: a.obsm.__delitem__("grid"), KeyError, "to_grid"),
    "other genes": (lambda a: setattr(a, "var_names", [f"x{i}" for i in range(a.n_vars)]), ValueError, "only 0%"),
    "log values": (lambda a: setattr(a, "X", np.log1p(a.X.toarray())), ValueError, "raw counts"),
    "shared sites": (lambda a: a.obsm["grid"].__setitem__(slice(None), 0), ValueError, "share a lattice site"),
}


@pytest.mark.parametrize("case", BAD_PREDICTION)
def test_bad_prediction_input_is_named_and_changes_nothing(case, sections, trained):
    change, error, message = BAD_PREDICTION[case]
    options = change(sections) or {}
    before = sections.copy()
    with pytest.raises(error, match=message):
        calls.trm_domains(sections, trained, **{**APPLY, **options})
    assert set(sections.obs) == set(before.obs)
    assert set(sections.obsm) == set(before.obsm)
    assert set(sections.uns) == set(before.uns)


def test_no_object_and_no_spots(sections, trained):
    with pytest.raises(TypeError, match="expected an AnnData"):
        calls.trm_domains(sections.X, trained)
    with pytest.raises(ValueError, match="no spots"):
        calls.trm_domains(sections[:0].copy(), trained)


def test_names_that_are_not_unique_work(sections, trained):
    expected = apply(sections, trained)
    sections.obs_names = ["spot"] * sections.n_obs
    found = apply(sections, trained)
    assert np.array_equal(found.obsm["trm_domains_proba"], expected.obsm["trm_domains_proba"])
    assert train(sections, max_epochs=1).labels == ["L1", "L2", "L3"]


def test_the_dense_backbone_refuses_what_would_not_end(sections, monkeypatch):
    monkeypatch.setattr("strecur.nn.DenseConfig.max_spots", 100)
    with pytest.raises(ValueError, match=r"dense backbone is for at most 100.*windowed"):
        train(sections, backbone="dense")
