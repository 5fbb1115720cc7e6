from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from strecur.models.gene_order import gene_groups


@pytest.fixture
def planted():
    """300 spots × 24 genes that follow one of four patterns, shuffled; the pattern of every gene."""
    rng = np.random.default_rng(0)
    pattern = rng.permutation(np.repeat(np.arange(4), 6))
    activity = rng.gamma(1.0, size=(300, 4))
    level = np.array([2, 30, 8, 15.0])
    return rng.poisson(level[pattern] * activity[:, pattern]), pattern


def neighbours_correlation(counts: np.ndarray) -> float:
    """Mean correlation of each gene with the next one."""
    return np.corrcoef(counts, rowvar=False).diagonal(1).mean()


def test_genes_of_one_pattern_stand_together_the_most_abundant_first(planted):
    counts, pattern = planted
    order = gene_groups(counts)
    assert pattern[order.order_G].tolist() == [1] * 6 + [3] * 6 + [2] * 6 + [0] * 6
    assert order.group_G.tolist() == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6
    for group in range(4):
        inside = order.order_G[order.group_G == group]
        assert inside.tolist() == sorted(inside), "within a group the order of the panel stays"


def test_pitfall_64_order_is_a_permutation_undone_on_output(planted):
    counts, _ = planted
    order = gene_groups(counts)
    assert sorted(order.order_G) == list(range(24))
    arranged = order.arrange(counts)
    assert not np.array_equal(arranged, counts)
    np.testing.assert_array_equal(arranged[:, 5], counts[:, order.order_G[5]])
    np.testing.assert_array_equal(order.restore(arranged), counts)
    assert order.order_G.dtype == order.group_G.dtype == np.int64


@pytest.mark.parametrize("n_genes", [23, 25])
def test_pitfall_64_another_number_of_genes_raises_instead_of_being_cut(planted, n_genes):
    order = gene_groups(planted[0])
    for method in (order.arrange, order.restore):
        with pytest.raises(ValueError, match=f"{n_genes} genes for an order of 24"):
            method(np.ones((3, n_genes)))


def test_large_clusters_are_split_into_parts():
    rng = np.random.default_rng(0)
    activity = rng.gamma(1.0, size=(200, 3))
    counts = rng.poisson(10 * activity[:, np.repeat([0, 1, 2], [40, 10, 11])])
    order = gene_groups(counts, 3)
    sizes = np.bincount(order.group_G)
    assert len(sizes) == 3 + 1 + 2  # 40 // 12 parts, 10 genes whole, 11 genes in at least 2 parts
    parts = np.split(order.order_G, np.cumsum(sizes)[:-1])
    assert {frozenset(range(40, 50))} < {frozenset(part.tolist()) for part in parts}
    means = [counts[:, part].mean() for part in parts]
    clusters = [part[0] >= 40 and 1 + (part[0] >= 50) for part in parts]
    for cluster in set(clusters):
        of_cluster = [mean for mean, c in zip(means, clusters, strict=True) if c == cluster]
        assert of_cluster == sorted(of_cluster, reverse=True)


def test_the_same_seed_gives_the_same_order_and_sparse_counts_too(planted):
    counts, _ = planted
    first = gene_groups(counts, rng=3)
    for again in (gene_groups(counts, rng=3), gene_groups(sparse.csr_matrix(counts), rng=3)):
        np.testing.assert_array_equal(first.order_G, again.order_G)
        np.testing.assert_array_equal(first.group_G, again.group_G)


def test_order_does_not_depend_on_the_depth_of_a_gene(planted):
    counts, pattern = planted
    counts = counts * np.where(np.arange(24) % 2, 50, 1)
    groups = gene_groups(counts)
    assert all(len(set(pattern[groups.order_G[groups.group_G == g]])) == 1 for g in range(4))


def test_silent_genes_come_last_in_a_group_of_their_own(planted):
    counts, _ = planted
    counts[:, [0, 7, 20]] = 0
    order = gene_groups(counts)
    assert order.order_G[-3:].tolist() == [0, 7, 20]
    assert order.group_G[-4:].tolist() == [3, 4, 4, 4]
    assert sorted(order.order_G) == list(range(24))


def test_a_gene_that_is_the_same_everywhere_is_kept(planted):
    counts, _ = planted
    counts[:, 4] = 3
    assert sorted(gene_groups(counts).order_G) == list(range(24))


def test_too_few_genes_and_missing_values_raise(planted):
    counts, _ = planted
    with pytest.raises(ValueError, match="lower n_groups"):
        gene_groups(counts, 25)
    counts = counts.astype(float)
    silent = counts.copy()
    silent[:, 3:] = 0
    with pytest.raises(ValueError, match="3 of 24 genes have counts"):
        gene_groups(silent)
    counts[0, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        gene_groups(counts)


def test_pitfall_64_vim_is_not_lost_on_her2st(data_dir):
    """The released code keeps the first 200 names of an alphabetical list of 208, and so loses VIM."""
    section = ad.read_h5ad(data_dir / "her2st" / "B1.h5ad")
    mean = np.asarray(section.X.mean(axis=0)).ravel()
    panel = sorted(section.var_names[np.argsort(-mean)[:208]])
    assert panel.index("VIM") >= 200
    counts = section[:, panel].X.toarray()
    order = gene_groups(counts)
    assert "VIM" in np.array(panel)[order.order_G]
    assert len(set(order.order_G)) == 208
    assert order.group_G.max() >= 8
    assert neighbours_correlation(order.arrange(counts)) > neighbours_correlation(counts) + 0.03
