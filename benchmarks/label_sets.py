"""Sections of which a part is annotated: as scattered spots, as strokes, or at places chosen by a rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.spatial import cKDTree

import strecur as st
from strecur._anndata import read_section_data
from strecur._geometry import physical_positions
from strecur.models.features.spots import fit_domain_features
from strecur.models.linear import fit_linear_domains, is_sparse
from strecur.models.sections import engine_sections
from strecur.models.smoothing import choose_smoothing, smooth
from strecur.options import Features
from strecur.tl._suggest import choose_places, find_places, place_features, uncertainty

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from strecur._anndata import SectionData
    from strecur.engine import Section
    from strecur.models.features.spots import SpotFeatures

UNLABELLED = -1
LEAST = 3
"""Annotated spots of every domain at least, where a domain has as many."""

STROKE = 40
"""Spots of a long stroke."""

FEATURES = {"n_components": 50, "neighbours": (19, 91, 301)}


@dataclass(frozen=True)
class Case:
    """Sections to annotate, and others to score.

    Attributes
    ----------
    adata
        All sections, with lattice and complete annotation.
    data
        The same, as models read them.
    labels
        Domains.
    truth_N
        Index of the domain of every spot, -1 without annotation.
    features
        Features, fitted on the sections to annotate.
    columns_NF
        Features of every spot.
    parts
        Positions of the spots of each section, and the section as the engine reads it.
    to_annotate_N
        Whether a spot belongs to the sections to annotate.
    position_N2
        Positions on the lattice, in distances between neighbours; sections lie far apart.
    """

    adata: ad.AnnData
    data: SectionData
    labels: list[str]
    truth_N: np.ndarray
    features: SpotFeatures
    columns_NF: np.ndarray
    parts: list[tuple[np.ndarray, Section]]
    to_annotate_N: np.ndarray
    position_N2: np.ndarray

    @property
    def can_annotate_N(self) -> np.ndarray:
        """Whether a spot of the sections to annotate has an annotation."""
        return self.to_annotate_N & (self.truth_N >= 0)


def read_sections(folder: Path, names: Sequence[str]) -> ad.AnnData:
    """Read sections of a folder; ``osmfish_sscortex:left`` is the left half of a section."""
    parts = {}
    for name in names:
        stem, _, side = name.partition(":")
        part = ad.read_h5ad(folder / f"{stem}.h5ad")
        if side:
            x = part.obsm["spatial"][:, 0]
            part = part[(x < np.median(x)) == (side == "left")].copy()
        parts[name] = part
    adata = ad.concat(parts, label="section", index_unique="-", join="inner")
    st.pp.to_grid(adata, library_key="section")
    return adata


def make_case(adata: ad.AnnData, train: Sequence[str], size_factor_key: str | None = None) -> Case:
    """Compute what all rounds of annotation have in common."""
    data = read_section_data(adata, "section")
    labels = sorted(adata.obs["domain"].dropna().astype(str).unique())
    truth_N = pd.Index(labels).get_indexer(adata.obs["domain"].astype(object))
    options = Features(size_factor_key=size_factor_key, **FEATURES)
    features = fit_domain_features(data, list(train), None, options, 0)
    inputs = features.inputs(data)
    sections = engine_sections(data, inputs, target=truth_N)
    parts = [(data.rows(section.name), section) for section in sections]
    position_N2 = np.empty((adata.n_obs, 2))
    for i, (rows, _) in enumerate(parts):
        own = physical_positions(data.grid.row[rows], data.grid.col[rows], data.grid.layout)
        position_N2[rows] = own / np.median(cKDTree(own).query(own, k=2)[0][:, 1]) + [1e5 * i, 0]
    to_annotate_N = data.within(train)
    return Case(adata, data, labels, truth_N, features, inputs.averaged_NF, parts, to_annotate_N, position_N2)


# Annotation to start from


def scatter(case: Case, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mark a share of the annotated spots at random, with at least :data:`LEAST` of every domain."""
    spots = rng.permutation(np.flatnonzero(case.can_annotate_N))
    rank = pd.Series(case.truth_N[spots]).groupby(case.truth_N[spots]).cumcount().to_numpy()
    order = np.concatenate([spots[rank < LEAST], spots[rank >= LEAST]])
    marked = np.zeros(len(case.truth_N), dtype=bool)
    marked[order[: count_spots(case, share)]] = True
    return marked


def count_spots(case: Case, share: float) -> int:
    """Return the number of spots of a share, with at least :data:`LEAST` of every domain."""
    sizes_C = np.bincount(case.truth_N[case.can_annotate_N])
    return max(round(share * sizes_C.sum()), int(np.minimum(sizes_C, LEAST).sum()))


def draw_strokes(case: Case, share: float, rng: np.random.Generator) -> np.ndarray:
    """Mark strokes, each along a curved path inside one domain and about three spots wide.

    Domains take turns, the one with the fewest marked spots first. Strokes are as long as the number of spots allows
    for every domain, up to :data:`STROKE` spots.
    """
    free = case.can_annotate_N
    domains, n_spots = np.unique(case.truth_N[free]), count_spots(case, share)
    length = int(np.clip(n_spots // len(domains), LEAST, STROKE))
    marked, tree = np.zeros(len(free), dtype=bool), cKDTree(case.position_N2)
    while marked.sum() < n_spots:
        open_C = [d for d in domains if (free & ~marked & (case.truth_N == d)).any()]
        domain = min(open_C, key=lambda d: marked[case.truth_N == d].sum())
        inside = free & (case.truth_N == domain)
        marked |= draw_stroke(case.position_N2, tree, inside, rng.choice(np.flatnonzero(inside & ~marked)), length, rng)
    return marked


def draw_stroke(
    position_N2: np.ndarray, tree: cKDTree, inside: np.ndarray, start: int, length: int, rng: np.random.Generator
) -> np.ndarray:
    """Mark spots ``inside`` along a curved path that begins at one of them and ends where there is no way on."""
    marked, place = np.zeros(len(inside), dtype=bool), position_N2[start]
    marked[start] = True
    heading = rng.uniform(0, 2 * np.pi)
    # longer paths than the wanted number of spots turn in circles
    for _ in range(length):
        near = [i for i in tree.query_ball_point(place, 1.1) if inside[i] and not marked[i]]
        marked[near[: length - int(marked.sum())]] = True
        for turn in (0.0, 0.6, -0.6, 1.2, -1.2):
            angle = heading + turn + rng.normal(0, 0.3)
            ahead = place + np.array([np.cos(angle), np.sin(angle)])
            distance, nearest = tree.query(ahead)
            if distance < 1 and inside[nearest]:
                place, heading = ahead, angle
                break
        else:
            break
    return marked


WAYS: dict[str, Callable[..., np.ndarray]] = {"scattered": scatter, "strokes": draw_strokes}

# Answers of models that learn from it


def predict_linear(case: Case, marked: np.ndarray) -> np.ndarray:
    """Fit the linear model on the marked spots; return the smoothed probabilities of all spots."""
    target_N = np.where(marked, case.truth_N, UNLABELLED)
    present = np.unique(target_N[marked])
    own, renumbered_N = case.to_annotate_N, np.where(marked, np.searchsorted(present, target_N), UNLABELLED)
    sparse = is_sparse(renumbered_N[own])
    model = fit_linear_domains(case.columns_NF[own], renumbered_N[own], len(present), equal_weight=sparse)
    proba_NC = np.zeros((len(marked), len(case.labels)), dtype=np.float32)
    proba_NC[:, present] = model.predict_proba(case.columns_NF)
    known = [section_with(section, target_N[rows]) for rows, section in case.parts if case.to_annotate_N[rows[0]]]
    size = choose_smoothing(known, len(case.labels))
    for rows, section in case.parts:
        proba_NC[rows] = smooth(proba_NC[rows], section, size)
    return proba_NC


def section_with(section: Section, target_N: np.ndarray) -> Section:
    """Return a section with another target."""
    return type(section)(section.name, section.features_NF, section.lattice, torch.from_numpy(target_N))


def predict_network(
    case: Case, marked: np.ndarray, *, epochs: int | None, size_factor_key: str | None, seed: int
) -> dict[str, np.ndarray]:
    """Train on the marked spots; return the domains of all spots by the blend, the network and the linear model."""
    case.adata.obs["marked"] = pd.Categorical.from_codes(np.where(marked, case.truth_N, UNLABELLED), case.labels)
    model = st.tl.train_domains(
        case.adata[case.to_annotate_N].copy(),
        "marked",
        features={"size_factor_key": size_factor_key},
        training={"max_epochs": epochs},
        rng=seed,
    )
    st.tl.trm_domains(case.adata, model)
    columns = {"blend": "trm_domains", "network": "trm_domains_network", "linear": "trm_domains_linear"}
    found = {name: pd.Index(case.labels).get_indexer(case.adata.obs[column]) for name, column in columns.items()}
    del case.adata.obs["marked"]
    return found


def score(case: Case, answer_N: np.ndarray) -> dict[str, float]:
    """Score the domain of every spot on the sections that are not annotated."""
    held_out = ~case.to_annotate_N & (case.truth_N >= 0)
    found = st.metrics.domain_scores(case.truth_N[held_out], answer_N[held_out])
    return {name: found[name] for name in ("ari", "accuracy", "macro_f1")}


# Rules that choose what to annotate next


@dataclass(frozen=True)
class Choice:
    """What a rule chooses from.

    Attributes
    ----------
    place_NK, features_NF
        Spots and features of the place around every spot.
    weight_N
        Uncertainty of every spot, 0 where it is annotated.
    open_N
        Whether a spot can be suggested.
    """

    place_NK: np.ndarray
    features_NF: np.ndarray
    weight_N: np.ndarray
    open_N: np.ndarray


def suggested(choice: Choice, n: int, seed: int) -> np.ndarray:
    """Choose as :func:`strecur.tl.suggest_annotation` does."""
    candidates = np.flatnonzero(choice.open_N)
    return choose_places(choice.weight_N, choice.features_NF, choice.place_NK, candidates, n, seed).index.to_numpy()


def typical(choice: Choice, n: int, seed: int) -> np.ndarray:
    """Choose by clusters alone, without uncertainty."""
    equal_N, candidates = choice.open_N.astype(float), np.flatnonzero(choice.open_N)
    return choose_places(equal_N, choice.features_NF, choice.place_NK, candidates, n, seed).index.to_numpy()


def most_uncertain(choice: Choice, n: int, seed: int) -> np.ndarray:
    """Choose the most uncertain places that do not overlap."""
    return take_first(choice, np.argsort(-choice.weight_N[choice.place_NK].mean(axis=1), kind="stable"), n)


def at_random(choice: Choice, n: int, seed: int) -> np.ndarray:
    """Choose places at random."""
    return take_first(choice, np.random.default_rng(seed).permutation(len(choice.open_N)), n)


def take_first(choice: Choice, order: np.ndarray, n: int) -> np.ndarray:
    """Return the first places that do not overlap and whose centre can be suggested."""
    taken_N, chosen = np.zeros(len(choice.open_N), dtype=bool), []
    for centre in order:
        if choice.open_N[centre] and not taken_N[choice.place_NK[centre]].any():
            taken_N[choice.place_NK[centre]] = True
            chosen.append(centre)
        if len(chosen) == n:
            break
    return np.array(chosen)


RULES = {"random": at_random, "suggested": suggested, "most uncertain": most_uncertain, "typical": typical}


def annotate_in_rounds(
    case: Case, marked: np.ndarray, rule: str, *, n: int, n_spots: int, rounds: int, seed: int
) -> list[dict[str, float]]:
    """Annotate the places that a rule chooses, and fit the linear model again, several times."""
    place_NK = find_places(case.data, n_spots)
    features_NF = place_features(case.features, case.data, place_NK)
    rows = []
    for done in range(rounds + 1):
        proba_NC = predict_linear(case, marked)
        rows.append({"round": done, "n_labels": int(marked.sum()), **score(case, proba_NC.argmax(axis=1))})
        open_N = case.to_annotate_N & ~marked
        weight_N = np.where(open_N, uncertainty(proba_NC), 0)
        chosen = RULES[rule](Choice(place_NK, features_NF, weight_N, open_N), n, 100 * seed + done)
        added = np.zeros_like(marked)
        added[place_NK[chosen].ravel()] = True
        marked = marked | (added & case.can_annotate_N)
    return rows
