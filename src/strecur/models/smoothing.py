"""Smooth log-probabilities over spatial neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax

from strecur._arguments import filled
from strecur.models.features.neighbourhood import neighbourhood_means

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur.engine import Answer, Section

RING = 7
"""Number of spots of a neighbourhood: a spot and its six neighbours on a hexagonal lattice."""

MIN_KEPT = 0.99
"""Share of the annotation that a majority vote among neighbours must keep."""

TINY = 1e-4
"""Added to probabilities, so that no single neighbour outvotes all others."""


def smooth(proba_NC: np.ndarray, section: Section, size: int) -> np.ndarray:
    """Average log-probabilities over the nearest spots, the spot itself included.

    Parameters
    ----------
    proba_NC
        Probabilities of one section, spots × domains; any axes before these are kept.
    section
        Where the spots lie.
    size
        Number of spots to average over; 1 changes nothing.

    Returns
    -------
    Probabilities of the same shape, float32.
    """
    if size == 1:
        return proba_NC
    log_proba = np.moveaxis(np.log(proba_NC + TINY), -2, 0)
    positions_N2 = section.lattice.position_N2.numpy()
    means = neighbourhood_means(log_proba.reshape(len(log_proba), -1), positions_N2, (size,)).reshape(log_proba.shape)
    return np.moveaxis(np.exp(log_softmax(means, axis=-1)), 0, -2).astype(np.float32)


def smooth_answers(answers: Sequence[Answer], sections: Sequence[Section], size: int) -> list[Answer]:
    """Smooth the output of every restart of every section after every step."""
    return [
        replace(
            answer,
            restarts=tuple(replace(run, output_DN=smooth(run.output_DN, section, size)) for run in answer.restarts),
        )
        for answer, section in zip(answers, sections, strict=True)
    ]


def choose_smoothing(sections: Sequence[Section], n_domains: int) -> int:
    """Choose the number of spots to average over, so that the annotation is kept.

    Where spots are small compared with the domains, a majority vote among the neighbours of a spot almost always names
    its own domain (human cortex on Visium: 99.5 to 99.9 % of the spots), and smoothing removes errors. Where domains
    are a few spots wide (olfactory bulb: 81 %), it would remove domains. Neighbours without annotation do not vote; a
    spot that some of its neighbours tie with is kept.

    Parameters
    ----------
    sections
        Training sections with targets, -1 where there is none.
    n_domains
        Number of domains.
    """
    kept, known = 0, 0
    for section in sections:
        target_N = filled(section.target_N).numpy()
        votes_NC = (target_N[:, None] == np.arange(n_domains)).astype(np.float32)
        positions_N2 = section.lattice.position_N2.numpy()
        votes_NC = neighbourhood_means(votes_NC, positions_N2, (RING,))
        kept_N = votes_NC.argmax(axis=1) == target_N
        known_N = target_N >= 0
        # single labelled neighbours of another domain give ties, which tell nothing
        few_N = known_N & (votes_NC.sum(axis=1) < 1 - TINY)
        own_votes_N = np.take_along_axis(votes_NC, np.maximum(target_N, 0)[:, None], axis=1)[:, 0]
        kept_N |= few_N & (own_votes_N >= votes_NC.max(axis=1) - TINY)
        kept += kept_N.sum()
        known += known_N.sum()
    return RING if kept >= MIN_KEPT * known else 1
