"""Blocks of the training sections on which a training is judged when no section can be spared."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import strecur as st
from strecur._anndata import read_section_data
from strecur.engine.state import History
from strecur.models.fitting import Judges
from strecur.models.sections import BLOCK_SHARE, choose_blocks, hide_targets, split_sections
from strecur.nn import WindowedConfig

SMALL = {
    "architecture": "feedforward",
    "backbone": WindowedConfig(width=32, n_heads=2, window=4, n_global=1),
    "halting": None,
    "features": {"n_components": 10, "neighbours": (7,)},
}


@pytest.fixture(scope="module")
def adata():
    made = st.datasets.synthetic_sections(n_sections=2, n_rows=24, n_cols=24, n_genes=60, n_domains=3)
    st.pp.to_grid(made, library_key="section")
    return made


def codes(adata) -> np.ndarray:
    return pd.Categorical(adata.obs["domain"]).codes.astype(np.int64)


def split(data, group_N, validation, *, auto_blocks: bool = True):
    return split_sections(data, group_N, validation, 0, auto_blocks=auto_blocks)


def test_blocks_are_compact_and_hold_a_share_of_every_section(adata):
    data, group_N = read_section_data(adata, None), codes(adata)
    in_block_N = choose_blocks(data, data.names, group_N, rng=0)
    for name in data.names:
        rows = data.rows(name)
        assert 0.5 * BLOCK_SHARE < in_block_N[rows].mean() <= BLOCK_SHARE
        # a spot in a block has most of its neighbours there, as it would not among scattered spots
        sites = {(r, c): b for r, c, b in zip(data.grid.row[rows], data.grid.col[rows], in_block_N[rows], strict=True)}
        beside = [sites[r, c + 2] for (r, c), inside in sites.items() if inside and (r, c + 2) in sites]
        assert np.mean(beside) > 0.6
    assert not np.array_equal(in_block_N, choose_blocks(data, data.names, group_N, rng=1))


def test_a_domain_keeps_half_of_its_spots(adata):
    data = read_section_data(adata, None)
    group_N = np.zeros(adata.n_obs, dtype=np.int64)
    group_N[data.rows(data.names[0])[:4]] = 1  # four spots in one corner
    for seed in range(20):
        in_block_N = choose_blocks(data, data.names, group_N, rng=seed)
        assert in_block_N[group_N == 1].sum() <= 2


def test_spots_without_a_target_are_in_no_block(adata):
    data, group_N = read_section_data(adata, None), codes(adata)
    group_N[::3] = -1
    assert not choose_blocks(data, data.names, group_N, rng=0)[::3].any()


def test_sections_come_before_blocks_and_few_spots_are_not_divided(adata):
    data, group_N = read_section_data(adata, None), codes(adata)
    assert split(data, group_N, "auto").in_block_N.any()
    assert split(data, group_N, "blocks").in_block_N.any()
    assert not split(data, group_N, "auto", auto_blocks=False).in_block_N.any()
    for validation in (None, data.names[:1]):
        assert not split(data, group_N, validation).in_block_N.any()
    group_N[100:] = -1
    few = split(data, group_N, "blocks")
    assert not few.in_block_N.any()
    assert few.training == data.names[:1]


def test_targets_are_hidden_on_one_side_alone():
    hidden_N = np.array([True, False, True])
    np.testing.assert_array_equal(hide_targets(np.array([1, 2, 0]), hidden_N), [-1, 2, -1])
    np.testing.assert_array_equal(hide_targets(np.ones((3, 2)), hidden_N), [[np.nan] * 2, [1, 1], [np.nan] * 2])


def test_the_network_does_not_learn_what_it_is_judged_on(adata, monkeypatch):
    seen = {}

    def spy(network, sections, training, *, validate, **options):
        seen.update({section.name: section.target_N.numpy() for section in sections})
        return History([{"epoch": 1, "train_loss": 1.0, "learning_rate": 1.0} | validate(network)])

    monkeypatch.setattr("strecur.models.fitting.fit", spy)
    model = st.tl.train_domains(adata, "domain", **SMALL)
    data = read_section_data(adata, None)
    group_N = codes(adata)
    hidden_N = split(data, group_N, "auto").in_block_N | (group_N < 0)
    for name in data.names:
        np.testing.assert_array_equal(seen[name] < 0, hidden_N[data.rows(name)])
    assert {"blocks_log_likelihood", "blocks_ari"} <= set(model.history)
    assert list(model.scores) == ["answer", "network", "linear"]


def test_a_training_on_noise_stops_early_and_one_on_domains_does_not(adata):
    noisy = adata.copy()
    noisy.obs["domain"] = np.random.default_rng(0).permutation(noisy.obs["domain"].to_numpy())
    options = {"training": {"max_epochs": 60, "validate_every": 1, "patience": 5, "weight_decay": 0.0}}
    learned = st.tl.train_domains(adata, "domain", **SMALL, **options).history
    spoiled = st.tl.train_domains(noisy, "domain", **SMALL, **options).history
    assert learned["blocks_log_likelihood"].idxmax() > 2 * spoiled["blocks_log_likelihood"].idxmax()
    assert len(spoiled) < 60


@pytest.mark.parametrize(("weight", "of_blocks"), [(0.3, 0.3), (0.5, 0.5), (0.8, 0.5)])
def test_blocks_lower_a_weight_and_do_not_raise_it(weight, of_blocks):
    assert Judges([], are_blocks=True).limited(weight) == of_blocks
    assert Judges([], are_blocks=False).limited(weight) == weight


def test_blocks_choose_the_blend_and_promise_no_coverage(adata):
    model = st.tl.train_domains(adata, "domain", **SMALL, training={"max_epochs": 2})
    assert model.conformal_scores is None
    with pytest.raises(ValueError, match="calibrate"):
        st.tl.trm_domains(adata.copy(), model, coverage=0.9)
    plain = st.tl.train_domains(adata, "domain", **SMALL, training={"max_epochs": 2, "validation": None})
    assert model.blend <= 0.5
    # the baseline of the model knows all labels
    np.testing.assert_array_equal(model.baseline.weight_FC, plain.baseline.weight_FC)
    assert plain.blend == 0.5
    assert plain.scores.empty
