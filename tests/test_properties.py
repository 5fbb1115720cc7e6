"""Laws that hold for any input, tried on many drawn ones."""

from __future__ import annotations

from itertools import product

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn import metrics as skm

import strecur
from strecur._anndata import (
    Grid,
    SectionData,
    align_genes,
    check_key,
    find_genes,
    read_sections,
)
from strecur._genes import clean_genes
from strecur._geometry import COMPOSE, INVERSE, KEEP_ROWS
from strecur._labels import clean_labels
from strecur.engine import Augmentation, HistAugmentation, Section
from strecur.engine.data import symmetries, view
from strecur.engine.tiles import cut_lattice
from strecur.models.calibration import (
    conformal_scores,
    fit_errors,
    fit_temperature,
    label_sets,
    negative_log_likelihood,
    temper,
)
from strecur.models.features.neighbourhood import neighbourhood_means
from strecur.models.gene_order import gene_groups
from strecur.nn import Lattice
from strecur.pp.grid.cells import place_cells
from strecur.pp.panels import _ranks
from strecur.tl._reasoning import settling_steps

QUICK = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
few, many = settings(max_examples=12, **QUICK), settings(max_examples=40, **QUICK)
seeds = st.integers(0, 2**32 - 1)
LAYOUTS = st.sampled_from(["hex", "square"])


@st.composite
def lattices(draw, *, layout=LAYOUTS, max_side: int = 14, max_spots: int = 60) -> Lattice:
    """Draw a section of any shape, with holes, in any place."""
    layout, rng = draw(layout), np.random.default_rng(draw(seeds))
    sites = np.argwhere(np.ones((draw(st.integers(1, max_side)), draw(st.integers(1, max_side))), dtype=bool))
    sites = rng.permutation(sites)[: draw(st.integers(1, max_spots))]
    row, col = (sites + rng.integers(-1000, 1000, 2)).T
    col = 2 * col + row % 2 if layout == "hex" else col
    return Lattice(torch.from_numpy(row), torch.from_numpy(col), (len(row),), layout)


def section_on(lattice: Lattice) -> Section:
    """Section whose features, targets and lattice name each spot."""
    number = torch.arange(len(lattice.row_N))
    return Section("s", torch.stack([number, number], dim=1).float() + 1, lattice, number)


def as_object(xy: np.ndarray, **obs: object) -> ad.AnnData:
    names = [f"spot{i}" for i in range(len(xy))]
    return ad.AnnData(obs=pd.DataFrame(obs, index=names), obsm={"spatial": np.asarray(xy, dtype=float)})


# Lattices


@few
@given(LAYOUTS, st.integers(7, 12), st.integers(7, 12), st.floats(0, 360), st.floats(0.01, 1000), seeds)
def test_a_lattice_is_found_again_whatever_its_turn_scale_order_and_place(layout, n_rows, n_cols, degrees, scale, seed):
    """Distances between spots on the lattice found are those between the spots, in a section with holes."""
    rng = np.random.default_rng(seed)
    row, col = torch.from_numpy(rng.permutation(np.argwhere(rng.random((n_rows, n_cols)) < 0.9))).T
    lattice = Lattice(row, 2 * col + row % 2 if layout == "hex" else col, (len(row),), layout)
    position = lattice.position_N2.numpy()
    pitch_steps = np.linalg.norm(position[:, None] - position[None], axis=-1)
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    order = rng.permutation(len(position))
    adata = as_object((scale * position @ turn)[order] + rng.normal(0, 100, 2))
    strecur.pp.to_grid(adata, layout=lattice.layout)
    sites, layout = adata.obsm["grid"], adata.uns["grid"]["layout"]
    found = Lattice(*torch.from_numpy(sites.astype(np.int64)).T, (len(sites),), layout).position_N2.numpy()
    distance = np.linalg.norm(found[:, None] - found[None], axis=-1)
    np.testing.assert_allclose(distance, pitch_steps[np.ix_(order, order)], atol=1e-6)
    assert adata.uns["grid"]["sections"]["max_displacement"].max() < 1e-3


@few
@given(seeds, st.integers(2, 150), st.sampled_from([1.0, 1.5, 3.0]))
def test_cells_get_sites_of_their_own_that_depend_on_neither_order_nor_origin(seed, n, cells_per_pitch):
    rng = np.random.default_rng(seed)
    xy = rng.integers(0, 10**6, (n, 2)) / 1000
    assume(len(np.unique(xy, axis=0)) == n)
    adata, order, shift = as_object(xy), rng.permutation(n), rng.integers(-(10**4), 10**4, 2)
    moved = as_object(xy[order] + shift)
    for given_object in (adata, moved):
        strecur.pp.to_grid(given_object, layout="irregular", cells_per_pitch=cells_per_pitch)
    sites = adata.obsm["grid"]
    assert len(np.unique(sites, axis=0)) == n
    np.testing.assert_array_equal(moved.obsm["grid"], sites[order])
    placement = place_cells(xy[np.lexsort((xy[:, 0], xy[:, 1]))], cells_per_pitch=cells_per_pitch)
    reported = adata.uns["grid"]["sections"].iloc[0]
    assert reported["max_displacement"] == pytest.approx(placement.displacement.max())
    assert reported["mean_displacement"] == pytest.approx(placement.displacement.mean())
    # what is reported is how far cells are from their sites, up to where the grid begins
    offset = sites[:, ::-1] * placement.pitch / cells_per_pitch - xy
    assert np.ptp(offset, axis=0).max() <= 2 * placement.displacement.max() * placement.pitch + 1e-6


@few
@given(lattices(), seeds)
def test_array_positions_are_taken_as_they_are_in_any_order(lattice, seed):
    order = np.random.default_rng(seed).permutation(len(lattice.row_N))
    row, col = lattice.row_N.numpy()[order], lattice.col_N.numpy()[order]
    adata = as_object(np.zeros((len(row), 2)), array_row=row, array_col=col)
    del adata.obsm["spatial"]
    strecur.pp.to_grid(adata)
    np.testing.assert_array_equal(adata.obsm["grid"], np.column_stack([row, col]))


# Genes


@many
@given(st.lists(st.integers(0, 30), max_size=25), st.lists(st.integers(0, 30), min_size=1, unique=True), seeds)
def test_genes_are_matched_by_name_in_any_order_missing_repeated_or_versioned(have, wanted, seed):
    rng = np.random.default_rng(seed)
    names = [f"ENSG{g:04d}" + (f".{rng.integers(1, 9)}" if rng.random() < 0.5 else "") for g in have]
    genes = [f"ENSG{g:04d}.7" for g in wanted]
    values = rng.poisson(2, (4, len(have))).astype(np.float32)
    adata = ad.AnnData(values, var=pd.DataFrame(index=names))
    projection, missing = find_genes(adata, genes)
    expected = np.column_stack([values[:, [h == g for h in have]].sum(axis=1) for g in wanted])
    np.testing.assert_array_equal(values @ projection, expected)
    assert missing == [f"ENSG{g:04d}" for g in wanted if g not in have]
    share = 1 - len(missing) / len(genes)
    align_genes(adata, genes, min_share=share)
    if missing:
        with pytest.raises(ValueError, match="of the model's"):
            align_genes(adata, genes, min_share=share + 1e-6)


@many
@given(st.lists(st.sampled_from(["TP53", "tp53", "Tp53", "KRT7", "MT-CO1"]), min_size=1, unique=True))
def test_symbols_are_told_apart_by_case_and_found_in_any_column(symbols):
    ids = [f"ENSG{i:04d}" for i in range(len(symbols))]
    adata = ad.AnnData(np.eye(len(symbols), dtype=np.float32), var=pd.DataFrame({"symbol": symbols}, index=ids))
    projection, missing = find_genes(adata, symbols)
    assert missing == []
    np.testing.assert_array_equal(projection.toarray(), np.eye(len(symbols)))
    assert find_genes(adata, ["tP53"])[1] == ["tP53"]
    assert clean_genes(clean_genes(ids)) == clean_genes(ids)


@few
@given(seeds, st.integers(2, 30), st.integers(4, 20))
def test_ranks_of_genes_are_permutations_that_follow_mean_and_deviation(seed, n_spots, n_genes):
    counts = np.random.default_rng(seed).poisson(3, (n_spots, n_genes)).astype(float)
    from scipy import sparse

    for rank, measure in zip(_ranks(sparse.csr_matrix(counts)), (counts.mean(0), counts.std(0, ddof=1)), strict=True):
        assert sorted(rank) == list(range(n_genes))
        assert (np.diff(measure[np.argsort(rank)]) <= 1e-9).all()


@settings(max_examples=3, **QUICK)
@given(seeds)
def test_panels_have_the_wanted_size_hold_the_extra_genes_and_grow(seed):
    adata = strecur.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_genes=40, n_domains=2, rng=seed)
    options, extra = {"library_key": "section"}, [str(adata.var_names[seed % 40])]
    panels = [strecur.pp.high_mean_high_variance_genes(adata, n, extra_genes=extra, **options) for n in (5, 12)]
    for panel, size in zip(panels, (5, 12), strict=True):
        assert size <= len(panel) <= size + 1
        assert panel == sorted(set(panel))
        assert set(extra) <= set(panel) <= set(adata.var_names)
    order = np.random.default_rng(seed).permutation(adata.n_obs)
    assert strecur.pp.high_mean_high_variance_genes(adata[order].copy(), 5, extra_genes=extra, **options) == panels[0]


@few
@given(seeds, st.integers(5, 40), st.integers(1, 4))
def test_gene_orders_are_undone(seed, n_genes, n_groups):
    counts = np.random.default_rng(seed).poisson(2, (12, n_genes))
    order = gene_groups(counts, n_groups, rng=0)
    assert sorted(order.order_G) == list(range(n_genes))
    assert (np.diff(order.group_G) >= 0).all()
    np.testing.assert_array_equal(order.restore(order.arrange(counts)), counts)


# Windows, coarser lattices and tiles


@many
@given(lattices(), st.integers(1, 6), st.integers(0, 5))
def test_windows_hold_every_pair_of_a_window_once(lattice, size, offset):
    windows, cells = lattice.windows(size, offset), lattice.cells_N2 + offset
    expected = (cells[:, None] // size == cells[None] // size).all(dim=-1)
    n, found = len(cells), torch.zeros(len(cells), len(cells), dtype=torch.long)
    for occupied, spot in zip(windows.occupied_WK, windows.spot_WK, strict=True):
        inside = spot[occupied]
        found[inside[:, None], inside[None]] += 1
    assert torch.equal(found, expected.long())
    assert torch.equal(windows.spot_WK.flatten()[windows.site_N], torch.arange(n))


@many
@given(lattices())
def test_parents_are_the_halved_cells_in_one_order_however_the_spots_stand(lattice):
    coarser = lattice.coarser
    parents = torch.stack([coarser.row_N, coarser.col_N], dim=1)
    assert torch.equal(parents, torch.unique(lattice.cells_N2 // 2, dim=0))
    order = torch.randperm(len(lattice.row_N), generator=torch.Generator().manual_seed(0))
    other = Lattice(lattice.row_N[order], lattice.col_N[order], lattice.length_S, lattice.layout).coarser
    assert torch.equal(torch.stack([other.row_N, other.col_N], dim=1), parents)
    levels, coarsest = 0, lattice
    while len(coarsest.row_N) > 4 and levels < 12:
        coarsest, levels = coarsest.coarser, levels + 1
    assert len(coarsest.row_N) <= 4  # a section across the origin of the cells ends in four


@many
@given(lattices(), st.integers(1, 8), st.integers(0, 5))
def test_tiles_hold_every_spot_once_and_all_of_its_surroundings(lattice, side, around):
    seen = torch.zeros(len(lattice.row_N), dtype=torch.long)
    cells = lattice.cells_N2
    for tile in cut_lattice(lattice, side, around):
        inner = tile.spot_T[tile.inner_T]
        seen[inner] += 1
        near = ((cells[inner][:, None] - cells[None]).abs() <= around).all(dim=-1).any(dim=0)
        assert set(near.nonzero().flatten().tolist()) <= set(tile.spot_T.tolist())
    assert (seen == 1).all()


# Augmentation


@many
@given(lattices())
def test_symmetries_of_a_lattice_are_a_group(lattice):
    section, elements = section_on(lattice), symmetries(lattice.layout)
    assert elements == (KEEP_ROWS if lattice.layout == "hex" else tuple(range(8)))
    for a, b in product(elements, elements):
        assert COMPOSE[a][b] in elements
        twice, once = view(view(section, a), b).lattice, view(section, COMPOSE[a][b]).lattice
        for axis in ("row_N", "col_N"):
            found, wanted = getattr(twice, axis), getattr(once, axis)
            assert torch.equal(found - found.min(), wanted - wanted.min())
        assert INVERSE[a] in elements


@many
@given(lattices(), st.integers(0, 6), seeds)
def test_augmentation_moves_spots_with_their_features_and_targets(lattice, max_shift, seed):
    section = section_on(lattice)
    draw = Augmentation(noise=0, drop=0, hide=0.3, max_shift=max_shift)
    found = draw(section, torch.Generator().manual_seed(seed))
    assert torch.equal(found.target_N, section.target_N)
    shown = found.features_NF[:, 0] > 0
    assert torch.equal(found.features_NF[shown], section.features_NF[shown])
    before, after = lattice.position_N2, found.lattice.position_N2
    torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before), atol=1e-4, rtol=0)
    if lattice.layout == "hex":
        assert len(torch.unique((found.lattice.row_N + found.lattice.col_N) % 2)) == 1


@few
@given(lattices(layout=st.sampled_from(["hex", "square", "irregular"])), seeds)
def test_deformed_sections_keep_spots_apart_and_whole(lattice, seed):
    found = HistAugmentation()(section_on(lattice), torch.Generator().manual_seed(seed))
    cells = torch.stack([found.lattice.row_N, found.lattice.col_N], dim=1)
    assert len(torch.unique(cells, dim=0)) == len(cells) > 0
    assert torch.equal(found.features_NF[:, 0].long() - 1, found.target_N)
    assert len(torch.unique(found.target_N)) == len(cells)


# Sections and labels


@many
@given(st.lists(st.sampled_from(["b", "a", "c", "10", "9"]), min_size=1, max_size=30))
def test_sections_are_told_apart_and_joined_again(names):
    adata = as_object(np.zeros((len(names), 2)), section=names)
    sections = read_sections(adata, "section")
    assert [sections.names[code] for code in sections.codes] == names
    values = np.arange(2.0 * len(names)).reshape(-1, 2)
    parts = [values[sections.rows(name)] for name in sections.names]
    grid = Grid(*np.zeros((2, len(names)), dtype=np.int64), "square")
    # every second spot of a larger object takes part
    data = SectionData(adata, sections, grid, 2 * np.arange(len(names)), 2 * len(names))
    np.testing.assert_array_equal(data.join(parts), values)
    np.testing.assert_array_equal(data.join([part.T for part in parts], axis=1), values.T)
    assert sum(data.sizes().values()) == len(names)
    spread = data.spread(values)
    np.testing.assert_array_equal(spread[::2], values)
    assert np.isnan(spread[1::2]).all()


@many
@given(st.lists(st.one_of(st.none(), st.integers(-5, 99), st.text(max_size=3), st.just(np.nan)), min_size=1))
def test_cleaning_labels_twice_is_cleaning_once_and_numbers_are_alike_in_every_type(labels):
    once = clean_labels(labels)
    assert clean_labels(once).equals(once)
    assert all(label is None or (isinstance(label, str) and label) for label in once)
    numbers = [label for label in labels if isinstance(label, int) and label != -1]
    assert list(clean_labels(numbers)) == list(clean_labels([float(n) for n in numbers])) == list(map(str, numbers))


@many
@given(st.text(max_size=8))
def test_legal_keys_are_accepted_by_spatialdata(key):
    from spatialdata._core.validation import check_valid_name

    try:
        check_key(key)
    except ValueError:
        return
    check_valid_name(key)


@many
@given(hnp.arrays(np.int16, st.tuples(st.integers(1, 20), st.integers(1, 8)), elements=st.integers(0, 2)))
def test_the_settling_step_is_the_first_from_which_the_answer_stays(steps):
    for row, step in zip(steps, settling_steps(steps), strict=True):
        assert (row[step - 1 :] == row[-1]).all()
        assert step == 1 or row[step - 2] != row[-1]


# Features


@many
@given(lattices(), st.lists(st.integers(1, 40), min_size=1, max_size=3), seeds)
def test_means_of_neighbours_follow_the_spots_and_end_at_the_mean_of_all(lattice, sizes, seed):
    rng, positions = np.random.default_rng(seed), lattice.position_N2.numpy()
    n = len(positions)
    features, order = rng.normal(size=(n, 2)).astype(np.float32), rng.permutation(n)
    means = neighbourhood_means(features, positions, [*sizes, n])
    np.testing.assert_allclose(
        neighbourhood_means(features[order], positions[order], [*sizes, n]), means[order], atol=1e-5
    )
    np.testing.assert_allclose(means[:, -2:], np.tile(features.mean(axis=0), (n, 1)), atol=1e-5)
    assert (means.min(axis=0) >= np.tile(features.min(axis=0), len(sizes) + 1) - 1e-5).all()
    if 1 in sizes:
        k = 2 * sizes.index(1)
        np.testing.assert_allclose(means[:, k : k + 2], features, atol=1e-6)


# Metrics

tables = hnp.arrays(np.float64, st.tuples(st.integers(3, 25), st.integers(1, 6)), elements=st.floats(0, 12, width=16))


@many
@given(tables, seeds)
def test_correlations_and_errors_are_those_of_scipy_and_scikit_learn(truth, seed):
    predicted = truth + np.random.default_rng(seed).normal(size=truth.shape)
    pcc = strecur.metrics.pcc_per_gene(truth, predicted)
    for g in range(truth.shape[1]):
        if np.ptp(truth[:, g]) > 1e-3:
            assert pcc[g] == pytest.approx(stats.pearsonr(truth[:, g], predicted[:, g])[0], abs=1e-9)
        elif np.ptp(truth[:, g]) == 0:
            assert np.isnan(pcc[g])
    scores = strecur.metrics.expression_scores(truth, predicted)
    assert scores["mse"] == pytest.approx(skm.mean_squared_error(truth, predicted))
    assert scores["mae"] == pytest.approx(skm.mean_absolute_error(truth, predicted))
    assert scores["pcc_all"] == pytest.approx(strecur.metrics.pcc_top(pcc), nan_ok=True)
    order = np.random.default_rng(seed).permutation(len(truth))
    again = strecur.metrics.expression_scores(truth[order], predicted[order])
    assert again == pytest.approx(scores, nan_ok=True, rel=1e-6, abs=1e-9)
    perfect = strecur.metrics.expression_scores(truth, truth)
    assert perfect["mse"] == 0
    assert np.isnan(perfect["rvd"]) or perfect["rvd"] == 0


@many
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=40))
def test_domain_scores_are_those_of_scikit_learn(pairs):
    truth, predicted = map(list, zip(*pairs, strict=True))
    known = [(t, p) for t, p in pairs if p is not None]
    scores = strecur.metrics.domain_scores(truth, predicted)
    assert (scores["n_spots"], scores["n_missing"]) == (len(known), len(pairs) - len(known))
    if not known:
        assert np.isnan(scores["ari"])
        return
    true, pred = zip(*known, strict=True)
    assert scores["ari"] == pytest.approx(skm.adjusted_rand_score(true, pred))
    assert scores["nmi"] == pytest.approx(skm.normalized_mutual_info_score(true, pred))
    assert scores["accuracy"] == pytest.approx(skm.accuracy_score(true, pred))
    assert scores["macro_f1"] == pytest.approx(skm.f1_score(true, pred, average="macro", zero_division=0))
    renamed = strecur.metrics.domain_scores(truth, [None if p is None else f"x{p}" for p in predicted])
    assert renamed["ari"] == pytest.approx(scores["ari"])


@many
@given(seeds, st.integers(2, 30), st.integers(1, 5), st.floats(0.05, 5))
def test_likelihoods_of_counts_are_those_of_scipy_and_best_at_the_truth(seed, n_spots, n_genes, dispersion):
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.1, 20, (n_spots, n_genes))
    counts = rng.poisson(mean)
    found = strecur.metrics.negative_binomial_log_likelihood(counts, mean, dispersion=np.full(n_genes, dispersion))
    size = 1 / dispersion
    np.testing.assert_allclose(found, stats.nbinom.logpmf(counts, size, size / (size + mean)).mean(axis=0))
    poisson = strecur.metrics.negative_binomial_log_likelihood(counts, mean, dispersion=np.zeros(n_genes))
    np.testing.assert_allclose(poisson, stats.poisson.logpmf(counts, mean).mean(axis=0))
    exact = strecur.metrics.negative_binomial_log_likelihood(
        counts, counts, dispersion=np.zeros(n_genes), min_mean=1e-9
    )
    assert (exact >= poisson - 1e-9).all()


@many
@given(seeds, st.floats(0.1, 50))
def test_depth_normalised_values_do_not_see_the_depth_of_a_spot(seed, factor):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(3, (8, 5)) + 1.0
    deeper = counts * rng.uniform(0.5, factor + 0.6, (8, 1))
    found = [strecur.metrics.depth_normalised(np.log2(values + 1), target_sum=100) for values in (counts, deeper)]
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    np.testing.assert_allclose((np.exp2(found[0]) - 1).sum(axis=1), 100)


@many
@given(seeds, st.integers(1, 60), st.integers(2, 5), st.integers(1, 20))
def test_calibration_errors_are_shares_and_zero_for_certain_truth(seed, n_spots, n_labels, n_bins):
    rng = np.random.default_rng(seed)
    labels, codes = [f"L{i}" for i in range(n_labels)], rng.integers(0, n_labels, n_spots)
    truth = np.array(labels)[codes]
    proba = rng.dirichlet(np.ones(n_labels), n_spots)
    assert 0 <= strecur.metrics.expected_calibration_error(truth, proba, labels, n_bins=n_bins) <= 1
    assert strecur.metrics.expected_calibration_error(truth, np.eye(n_labels)[codes], labels, n_bins=n_bins) == 0


# Calibration


@many
@given(seeds, st.integers(20, 200), st.integers(2, 5), st.floats(0.05, 0.95), st.floats(0.3, 3))
def test_label_sets_cover_what_they_were_calibrated_on_and_grow_with_coverage(seed, n_spots, n_labels, coverage, sharp):
    rng = np.random.default_rng(seed)
    proba, target = rng.dirichlet(np.ones(n_labels) / sharp, n_spots), rng.integers(0, n_labels, n_spots)
    scores = conformal_scores(proba, target)
    sets = label_sets(proba, scores, coverage)
    assert sets[np.arange(n_spots), target].mean() >= coverage - 1e-9
    assert sets[np.arange(n_spots), proba.argmax(axis=1)].all()
    assert (label_sets(proba, scores, min(coverage + 0.04, 0.99)) >= sets).all()
    order = rng.permutation(n_spots)
    np.testing.assert_array_equal(
        label_sets(proba[order], conformal_scores(proba[order], target[order]), coverage), sets[order]
    )


@settings(max_examples=6, **QUICK)
@given(seeds, st.sampled_from([0.5, 0.8, 0.9]))
def test_sets_and_intervals_cover_exchangeable_spots(seed, coverage):
    """On average over draws the promised share of new spots is covered; five standard errors are allowed."""
    rng, n_draws, n_spots = np.random.default_rng(seed), 60, 100
    labels, genes = [], []
    for _ in range(n_draws):
        logits = rng.normal(0, 1.5, (2 * n_spots, 4))
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        target = (rng.random((2 * n_spots, 1)) > proba.cumsum(axis=1)).sum(axis=1).clip(max=3)
        sets = label_sets(proba[n_spots:], conformal_scores(proba[:n_spots], target[:n_spots]), coverage)
        labels.append(sets[np.arange(n_spots), target[n_spots:]].mean())
        predicted = rng.normal(size=(2 * n_spots, 2))
        truth = predicted + rng.normal(size=predicted.shape) * (1 + np.abs(predicted))
        width = fit_errors(predicted[:n_spots], truth[:n_spots]).half_width(predicted[n_spots:], coverage)
        genes.append((np.abs(truth - predicted)[n_spots:] <= width).mean())
    for shares in (labels, genes):
        assert np.mean(shares) >= coverage - 5 * np.std(shares) / np.sqrt(n_draws)


@many
@given(seeds, st.integers(2, 60), st.integers(2, 5), st.floats(0.1, 10))
def test_tempering_keeps_the_order_of_domains_and_fits_the_labels_best(seed, n_spots, n_labels, temperature):
    rng = np.random.default_rng(seed)
    proba, target = rng.dirichlet(np.ones(n_labels), n_spots), rng.integers(0, n_labels, n_spots)
    tempered = temper(proba, temperature)
    np.testing.assert_allclose(tempered.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(tempered.argmax(axis=1), proba.argmax(axis=1))
    best = fit_temperature(proba, target)
    found, other = (negative_log_likelihood(temper(proba, t), target) for t in (best, temperature))
    assert found <= other + 1e-3


@many
@given(seeds, st.integers(30, 100), st.floats(0.1, 0.9))
def test_intervals_widen_with_coverage_and_hold_their_own_errors(seed, n_spots, coverage):
    rng = np.random.default_rng(seed)
    predicted = rng.normal(size=(n_spots, 3))
    truth = predicted + rng.normal(size=predicted.shape)
    errors = fit_errors(predicted, truth)
    width, wider = (errors.half_width(predicted, share) for share in (coverage, min(coverage + 0.09, 0.99)))
    assert (wider >= width).all()
    assert (np.abs(truth - predicted) <= width + 1e-6).mean() >= coverage - 1e-9


def test_laws_are_tried_the_same_way_every_time():
    laws = [law for name, law in globals().items() if hasattr(law, "hypothesis")]
    assert len(laws) >= 25
    assert all(law._hypothesis_internal_use_settings.derandomize for law in laws)
