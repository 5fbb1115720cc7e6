from __future__ import annotations

import anndata as ad
import calls
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score

import strecur as st

from .conftest import train

LATENT = "trm_domains_latent"


def make_groups(n_groups: int = 4, n: int = 60, *, noise: float = 0.2, width: int = 8, seed: int = 0) -> ad.AnnData:
    """Return spots whose latents point into one direction per group, at any length; groups of growing size."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), n + 10 * np.arange(n_groups))
    latent = np.eye(width)[group] + noise * rng.normal(size=(len(group), width))
    adata = ad.AnnData(np.zeros((len(group), 1), dtype=np.float32))
    adata.obs["truth"] = pd.Categorical(group)
    adata.obsm[LATENT] = (latent * rng.uniform(0.1, 10, (len(group), 1))).astype(np.float32)
    adata.obsm["spatial"] = rng.uniform(0, 100, (len(group), 2))
    return adata


def ari(adata: ad.AnnData, key: str = "latent_domains", truth: str = "truth") -> float:
    return adjusted_rand_score(adata.obs[truth], adata.obs[key])


@pytest.mark.parametrize("method", ["kmeans", "gmm"])
def test_planted_groups_are_found_whatever_the_length_of_the_latent(method):
    adata = make_groups()
    assert st.tl.cluster_latent(adata, 4, method=method) is None
    assert ari(adata) > 0.95
    found = adata.obs["latent_domains"]
    assert list(found.cat.categories) == ["0", "1", "2", "3"]
    assert found.value_counts()[["0", "1", "2", "3"]].is_monotonic_decreasing
    assert list(adata.uns["latent_domains"]["stability"]["n_domains"]) == [4]


def test_a_common_covariance_finds_elongated_groups():
    """Two stretched groups side by side: k-means cuts across their ends, a mixture does not."""
    rng = np.random.default_rng(0)
    adata = ad.AnnData(np.zeros((300, 1), dtype=np.float32))
    adata.obs["truth"] = np.repeat([0, 1], 150)
    places = rng.multivariate_normal([0, 0], 0.02 * np.array([[1, 0.97], [0.97, 1]]), 300)
    places[:, 0] += np.where(adata.obs["truth"], 0.2, -0.2)
    adata.obsm[LATENT] = np.column_stack([np.ones(300), places]).astype(np.float32)
    for method in ("gmm", "kmeans"):
        st.tl.cluster_latent(adata, 2, method=method, key_added=method)
    assert ari(adata, "gmm") > 0.95
    assert ari(adata, "kmeans") < 0.8


@pytest.mark.parametrize("n_groups", [3, 5])
def test_the_number_of_groups_is_found_by_stability(n_groups):
    adata = make_groups(n_groups)
    st.tl.cluster_latent(adata)
    record = adata.uns["latent_domains"]
    assert record["params"]["n_domains"] == n_groups
    assert list(record["stability"]["n_domains"]) == list(range(2, 11))
    by_number = record["stability"].set_index("n_domains")["stability"]
    assert by_number[n_groups] > 0.95
    # three groups can be stable as two, of which the larger number says more; more than there are is not stable
    assert by_number[n_groups] == by_number.max()
    assert by_number.loc[n_groups + 1 :].max() < 0.95
    assert ari(adata) > 0.95


def test_coordinates_matter_as_much_as_they_are_told_to():
    """The latent tells top from bottom, the place tells left from right."""
    rng = np.random.default_rng(0)
    adata = make_groups(2, 100, width=2, noise=0.3)
    adata.obs["side"] = rng.permutation(np.arange(adata.n_obs) % 2)
    adata.obsm["spatial"][:, 0] = 1000 * adata.obs["side"] + rng.uniform(0, 100, adata.n_obs)
    for weight, key in ((0.0, "latent"), (0.1, "both"), (10.0, "place")):
        st.tl.cluster_latent(adata, 2, spatial_weight=weight, key_added=key)
    assert ari(adata, "latent") > 0.8
    assert ari(adata, "both") > 0.8
    assert not adata.obs["both"].equals(adata.obs["place"])
    assert ari(adata, "place") < 0.1
    assert ari(adata, "place", "side") == 1
    without = adata.copy()
    del without.obsm["spatial"]
    st.tl.cluster_latent(without, 2, key_added="again")
    assert list(without.obs["again"]) == list(adata.obs["latent"])


def test_coordinates_are_taken_by_section_and_in_any_unit():
    adata = make_groups(2, 100)
    adata.obs["section"] = np.where(np.arange(adata.n_obs) % 2, "a", "b")
    moved = adata.copy()
    rows = (moved.obs["section"] == "a").to_numpy()
    moved.obsm["spatial"][rows] = 7 * moved.obsm["spatial"][rows] + 1e5
    for data in (adata, moved):
        st.tl.cluster_latent(data, 3, spatial_weight=2.0, library_key="section")
        st.tl.cluster_latent(data, 3, spatial_weight=2.0, key_added="joint")
    assert adata.obs["latent_domains"].equals(moved.obs["latent_domains"])
    assert adjusted_rand_score(adata.obs["joint"], moved.obs["joint"]) < 0.5


def test_seeds_repeat_and_nothing_else_changes():
    adata = make_groups(3, noise=0.8)
    before = adata.copy()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (st.tl.cluster_latent(adata, 5, copy=True, key_added="k") for _ in range(2))
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert first.obs["k"].equals(second.obs["k"])
    assert list(adata.obs) == list(before.obs)
    assert set(first.obs) - set(before.obs) == {"k"}
    assert set(first.uns) - set(before.uns) == {"k"}
    assert np.array_equal(first.obsm[LATENT], before.obsm[LATENT])


BAD = {
    "one cluster": ({"n_domains": 1}, ValueError, "n_domains=1: at least 2"),
    "too many": ({"n_domains": 10_000}, ValueError, "too few for up to 10000 clusters"),
    "method": ({"method": "leiden"}, ValueError, r"'leiden'.*kmeans.*gmm"),
    "weight": ({"spatial_weight": -1.0}, ValueError, "not be negative"),
    "representation": ({"use_rep": "X_pca"}, KeyError, "X_pca.*there are.*trm_domains_latent"),
    "coordinates": ({"spatial_weight": 1.0, "spatial_key": "xy"}, KeyError, "'xy'"),
    "library": ({"spatial_weight": 1.0, "library_key": "slide"}, KeyError, "slide"),
    "key": ({"key_added": "a/b"}, ValueError, "legal key"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    options, error, message = BAD[case]
    adata = make_groups(2, 20)
    with pytest.raises(error, match=message):
        st.tl.cluster_latent(adata, **{"n_domains": 2, **options})
    assert list(adata.uns) == []


def test_the_default_is_what_a_prediction_writes(sections):
    # latents of a model that was hardly trained do not differ much
    trained = train(sections[sections.obs["section"] != "S3"].copy(), validation=None, max_epochs=10)
    with pytest.raises(KeyError, match="trm_domains_latent"):
        st.tl.cluster_latent(sections, 3)
    calls.trm_domains(sections, trained, library_key="section")
    st.tl.cluster_latent(sections, 3)
    latent = sections.obsm[LATENT] / np.linalg.norm(sections.obsm[LATENT], axis=1, keepdims=True)
    codes = sections.obs["latent_domains"].cat.codes
    within = sum(latent[codes == c].var(axis=0).sum() * (codes == c).sum() for c in range(3))
    assert within < 0.8 * latent.var(axis=0).sum() * len(latent)
