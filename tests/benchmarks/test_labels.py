"""Annotation of a part of the spots, for the benchmark of few labels."""

from __future__ import annotations

import importlib
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

import strecur as st

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
label_sets = importlib.import_module("label_sets")


@pytest.fixture(scope="module")
def case():
    adata = st.datasets.synthetic_sections(n_sections=2, n_rows=24, n_cols=24, n_genes=60, n_domains=4)
    st.pp.to_grid(adata, library_key="section")
    return label_sets.make_case(adata, ["S1"])


@pytest.mark.parametrize("way", ["scattered", "strokes"])
@pytest.mark.parametrize("share", [0.02, 0.2])
def test_the_share_and_every_domain_are_annotated_in_the_training_section(case, way, share):
    marked = label_sets.WAYS[way](case, share, np.random.default_rng(0))
    assert not (marked & ~case.can_annotate_N).any()
    wanted = label_sets.count_spots(case, share)
    assert wanted <= marked.sum() <= wanted + label_sets.STROKE
    assert np.bincount(case.truth_N[marked], minlength=4).min() >= 1
    other = label_sets.WAYS[way](case, share, np.random.default_rng(1))
    assert (marked != other).any()


def test_a_stroke_is_one_piece_inside_one_domain(case):
    inside = case.can_annotate_N & (case.truth_N == 1)
    tree, rng = cKDTree(case.position_N2), np.random.default_rng(0)
    start = int(np.flatnonzero(inside)[30])
    stroke = np.flatnonzero(label_sets.draw_stroke(case.position_N2, tree, inside, start, 20, rng))
    assert inside[stroke].all()
    assert len(stroke) <= 20
    reached = {start}
    while True:
        near = cKDTree(case.position_N2[sorted(reached)]).query(case.position_N2[stroke])[0] < 2.3
        if set(stroke[near]) == reached:
            break
        reached = set(stroke[near])
    assert reached == set(stroke)


def test_strokes_hold_neighbours_and_scattered_spots_do_not(case):
    share = {}
    for way, mark in label_sets.WAYS.items():
        marked = mark(case, 0.1, np.random.default_rng(0))
        near = cKDTree(case.position_N2).query(case.position_N2[marked], k=7)[1]
        share[way] = marked[near[:, 1:]].mean()
    assert share["strokes"] > 2 * share["scattered"]


@pytest.mark.parametrize("rule", ["random", "suggested", "most uncertain", "typical"])
def test_rounds_add_the_spots_of_new_places(case, rule):
    marked = label_sets.scatter(case, 0.02, np.random.default_rng(0))
    rows = label_sets.annotate_in_rounds(case, marked, rule, n=3, n_spots=5, rounds=2, seed=0)
    labels = [row["n_labels"] for row in rows]
    assert labels[0] == marked.sum()
    assert all(1 <= later - earlier <= 15 for earlier, later in pairwise(labels))
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
