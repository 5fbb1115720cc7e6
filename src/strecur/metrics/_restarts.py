"""Scores of independent restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from strecur.metrics._arrays import dense

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def path_dependence(scores: ArrayLike | pd.DataFrame) -> float:
    """Measure how far a result depends on where the recursion started.

    Parameters
    ----------
    scores
        Score of every restart, sections × restarts: for instance the adjusted Rand index after the last step of
        :func:`strecur.tl.landscape`, ``table[table.step == depth].pivot(index="section", columns="restart",
        values="ari")``.

    Returns
    -------
    Mean distance between the score of one restart and the mean score of its section; 0 if all restarts of a section
    score alike. NaN scores are left out; NaN if there are no others.

    Raises
    ------
    ValueError
        If ``scores`` is no table.

    Notes
    -----
    Δ_PI of Equilibrium Reasoners, averaged over which restart is the single one.

    Examples
    --------
    >>> import strecur as st
    >>> st.metrics.path_dependence([[0.5, 0.5], [0.25, 0.75]])  # two sections, two restarts each
    0.125
    """
    table = pd.DataFrame(dense(scores, "sections × restarts"))
    return float(table.sub(table.mean(axis=1), axis=0).abs().stack().mean())
