from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import calls
import numpy as np
import pytest
import torch

import strecur as st
from strecur.engine import Answer, Prediction
from strecur.nn import TRM, TRMConfig
from strecur.tl._recursion import most_converged_so_far, trajectories

from .conftest import SMALL, train

RUN = {"library_key": "section"}


@pytest.fixture
def opinionated(trained) -> st.models.DomainModel:
    """Return a model whose answers change with every update, as those of a hardly trained one do not."""
    network = deepcopy(trained.network)
    torch.nn.init.normal_(network.head.linear.weight, generator=torch.Generator().manual_seed(0))
    return replace(trained, network=network)


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Return the n_latent of every block that is run."""
    calls, block = [], TRM.block
    monkeypatch.setattr(TRM, "block", lambda self, *args: (calls.append(self.n_latent), block(self, *args))[1])
    return calls


def test_equivalent_configurations_are_run_once_and_are_what_such_a_model_would_say(sections, opinionated, counted):
    adata = sections[sections.obs["section"] == "S3"].copy()
    options = {"depths": (1, 2, 3), "n_latent": (1, 3), "n_deep": (1, 2), "label_key": "domain"}
    table = calls.recursion_sweep(adata, opinionated, **RUN, **options)
    assert counted == [1] * 6 + [3] * 6  # 3 · 2 blocks each; the views share a batch
    assert len(table) == 12
    same = table.groupby(["n_latent", "n_blocks"])[["residual", "ari", "accuracy", "macro_f1"]].nunique(dropna=False)
    assert (same == 1).all(axis=None)
    # blocks 1, 2, 3, 4, 6
    assert (table.groupby("n_latent")["residual"].nunique() == 5).all()
    assert (table.groupby("n_latent")["accuracy"].nunique() > 1).all()

    for n_latent, n_deep, depth in [(1, 2, 3), (3, 1, 2), (3, 2, 1)]:
        other = rebuilt(opinionated, n_latent=n_latent, n_deep=n_deep)
        calls.trm_domains(adata, other, **RUN, depth=depth, blend=1.0)
        expected = st.metrics.domain_scores(adata.obs["domain"], adata.obs["trm_domains"])
        chosen = table.query("n_latent == @n_latent and n_deep == @n_deep and n_steps == @depth").iloc[0]
        for name in ("ari", "accuracy", "macro_f1"):
            assert chosen[name] == expected[name]
        if n_deep == 1:
            assert chosen["residual"] == pytest.approx(adata.uns["trm_domains"]["residuals"]["residual"].iloc[-1])


def rebuilt(model: st.models.DomainModel, **config: int) -> st.models.DomainModel:
    """Build a network of another configuration with the same weights."""
    from strecur.models.network import build_network
    from strecur.nn import DomainHead

    architecture = TRMConfig(**config)
    options = {"halting": model.halting, "seed": 9, "linear_start": True}
    network = build_network(model.features.n_columns, architecture, model.backbone, DomainHead, 3, **options)
    network.load_state_dict(model.network.state_dict())
    return replace(model, architecture=architecture, network=network)


def test_a_sweep_changes_neither_model_nor_object(sections, trained):
    before = {name: value.clone() for name, value in trained.network.state_dict().items()}
    settings = (trained.network.recursion.n_latent, trained.network.recursion.n_deep)
    keys = {slot: list(getattr(sections, slot)) for slot in ("obs", "obsm", "uns")}
    calls.recursion_sweep(sections, trained, **RUN, depths=(1,), n_latent=(1,), n_deep=(1,), symmetric=False)
    calls.landscape(sections, trained, **RUN, depth=2, breadth=2)
    assert (trained.network.recursion.n_latent, trained.network.recursion.n_deep) == settings
    assert all(value.equal(before[name]) for name, value in trained.network.state_dict().items())
    assert {slot: list(getattr(sections, slot)) for slot in keys} == keys


def test_layer_evaluations_are_those_of_the_paper(sections, trained):
    options = {"depths": (8,), "n_latent": (6,), "n_deep": (3,), "symmetric": False}
    table = calls.recursion_sweep(sections[sections.obs["section"] == "S1"].copy(), trained, **RUN, **options)
    assert table["layer_evaluations"].tolist() == [8 * 42]
    assert table["n_blocks"].tolist() == [24]
    assert set(table.columns) == {
        *("section", "n_steps", "n_deep", "n_latent", "n_blocks", "layer_evaluations", "residual")
    }


def test_a_landscape_follows_the_restarts_of_a_prediction(sections, opinionated):
    options = {"depth": 4, "breadth": 3, "rng": 5}
    table = calls.landscape(sections, opinionated, **RUN, **options, label_key="domain", n_spots=20)
    calls.trm_domains(sections, opinionated, **RUN, **options, symmetric=False, blend=1.0)
    assert list(table.columns) == [
        *("section", "restart", "step", "residual", "converged", "pc1", "pc2", "ari", "accuracy", "macro_f1")
    ]
    expected = sections.uns["trm_domains"]["residuals"]
    assert table["restart"].tolist() == expected["restart"].tolist()
    assert table["step"].tolist() == expected["step"].tolist()
    np.testing.assert_allclose(table["residual"], expected["residual"], rtol=1e-5)
    for name, part in table.groupby("section", observed=True):
        # the restart that the prediction chose
        chosen = part[(part["restart"] == part["converged"].iloc[-1]) & (part["step"] == 4)].iloc[0]
        rows = sections.obs["section"] == name
        truth, predicted = sections.obs.loc[rows, "domain"], sections.obs.loc[rows, "trm_domains"]
        assert chosen["ari"] == st.metrics.domain_scores(truth, predicted)["ari"]
        assert part[["pc1", "pc2"]].var().is_monotonic_decreasing
    last = table[table["step"] == 4].pivot(index="section", columns="restart", values="ari")
    assert 0 < st.metrics.path_dependence(last) < 1


def test_trajectories_show_where_restarts_end():
    """Three restarts contract from random places, two into one point and one into another."""
    rng = np.random.default_rng(0)
    ends = np.stack([np.zeros((6, 4)), np.zeros((6, 4)), np.full((6, 4), 3.0)])
    starts = ends + rng.normal(0, 1, ends.shape)
    share = 0.3 ** np.arange(1, 9)[:, None, None]
    restarts = tuple(
        Prediction(*(np.zeros(0),) * 3, np.arange(8.0, 0, -1) + b, 8, (end + share * (start - end)).astype("f4"))
        for b, (start, end) in enumerate(zip(starts, ends, strict=True))
    )
    table = trajectories(Answer("a", restarts))
    last = table[table["step"] == 8].set_index("restart")[["pc1", "pc2"]].to_numpy()
    assert np.linalg.norm(last[0] - last[1]) < 0.01
    assert np.linalg.norm(last[0] - last[2]) == pytest.approx(3 * np.sqrt(24), rel=0.05)
    assert table["residual"].tolist() == [float(8 - d + b) for b in range(3) for d in range(8)]


def test_selection_by_depth_and_breadth():
    residual = np.array([[3.0, 3.0, 3.0, 0.0], [5.0, 1.0, 1.0, 1.0], [3.0, 3.0, 0.0, 0.0]])
    # means over the last three steps: 3 3 3 2 | 5 3 7/3 1 | 3 3 2 1
    assert most_converged_so_far(residual).tolist() == [[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 2, 1]]
    unknown = np.array([[np.nan, 1.0], [np.nan, 0.5]])
    assert most_converged_so_far(unknown).tolist() == [[0, 0], [0, 1]]


def test_path_dependence():
    planted = (np.random.default_rng(0).random((500, 200)) < 0.3).astype(float)
    assert st.metrics.path_dependence(planted) == pytest.approx(2 * 0.3 * 0.7, abs=0.01)
    assert st.metrics.path_dependence(np.repeat(planted[:, :1], 4, axis=1)) == 0
    assert st.metrics.path_dependence([[0.2, np.nan, 0.4], [np.nan] * 3]) == pytest.approx(0.1)
    assert np.isnan(st.metrics.path_dependence(np.full((2, 2), np.nan)))
    with pytest.raises(ValueError, match="sections × restarts"):
        st.metrics.path_dependence([0.1, 0.2])


def test_predicted_expression_is_scored_against_the_counts(sections):
    rng = np.random.default_rng(0)
    sections.obsm["X_patch"] = rng.normal(size=(sections.n_obs, 5)).astype(np.float32)
    sections.obsm["X_patch"][:3] = np.nan  # outside the image
    options = {"use_rep": "X_patch", "genes": list(sections.var_names[:6]), "max_epochs": 1, "validation": None}
    part = sections[sections.obs["section"] != "S3"].copy()
    model = calls.train_expression(part, **RUN, **options, backbone=SMALL["backbone"], n_components=4, n_networks=1)
    torch.nn.init.normal_(model.network.head.linear.weight, generator=torch.Generator().manual_seed(0))
    table = calls.recursion_sweep(sections, model, **RUN, depths=(1, 2), n_latent=(3,), n_deep=(1,))
    assert (table.groupby("section", observed=True)["pcc_all"].nunique() == 2).all()
    calls.predict_expression(sections, model, **RUN, depth=2)
    for name, row in table[table["n_steps"] == 2].set_index("section").iterrows():
        rows = (sections.obs["section"] == name).to_numpy()
        truth, predicted = model.measure(sections)[rows], sections.obsm["trm_expression_network"][rows]
        scores = st.metrics.expression_scores(truth, predicted)
        for score in ("pcc_50", "pcc_all", "rvd"):
            assert row[score] == pytest.approx(scores[score], rel=1e-4)
    landscape = calls.landscape(sections, model, **RUN, depth=2, breadth=2)
    assert landscape["pcc_all"].between(-1, 1).all()

    without = sections[:, 10:].copy()
    blind = calls.recursion_sweep(without, model, **RUN, depths=(1,), n_latent=(1,), n_deep=(1,))
    assert "pcc_all" not in blind
    with pytest.raises(ValueError, match="label_key='domain' is for models of domains"):
        calls.recursion_sweep(sections, model, **RUN, label_key="domain")


def test_layers_of_every_backbone():
    from strecur.nn import DenseConfig, HierarchicalConfig, HistConfig, WindowedConfig

    assert WindowedConfig().n_layers_per_call == DenseConfig().n_layers_per_call == 2
    assert HierarchicalConfig(n_levels=3, n_layers=2).n_layers_per_call == 10
    assert HistConfig().n_layers_per_call == 6


BAD = {
    "depth 0": ("recursion_sweep", {"depths": (0, 1)}, ValueError, r"depths\[0\]=0: at least one"),
    "no latent updates": ("recursion_sweep", {"n_latent": (0,)}, ValueError, r"n_latent\[0\]=0"),
    "nothing to try": ("recursion_sweep", {"n_deep": ()}, ValueError, "n_deep is empty"),
    "label": ("recursion_sweep", {"label_key": "layer"}, KeyError, "layer.*there are.*domain"),
    "library": ("recursion_sweep", {"library_key": "slide"}, KeyError, "slide"),
    "one step": ("landscape", {"depth": 1}, ValueError, "at least two steps"),
    "no restart": ("landscape", {"breadth": 0}, ValueError, "breadth=0: at least one"),
    "no spots": ("landscape", {"n_spots": 0}, ValueError, "n_spots=0: at least one"),
    "noise": ("landscape", {"noise": -1.0}, ValueError, "not be negative"),
    "label of a landscape": ("landscape", {"label_key": "layer"}, KeyError, "layer"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, sections, trained):
    name, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        getattr(st.tl, name)(sections, trained, **{**RUN, **options})


def test_other_recursions_have_nothing_to_sweep(sections):
    model = train(sections, architecture="feedforward", max_epochs=1, validation=None)
    with pytest.raises(ValueError, match="architecture='trm'"):
        calls.recursion_sweep(sections, model, **RUN)
    with pytest.raises(ValueError, match="architecture='trm'"):
        calls.landscape(sections, model, **RUN)
