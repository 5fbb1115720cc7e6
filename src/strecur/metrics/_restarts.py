"""Scores of independent restarts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from strecur.metrics._arrays import dense

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def path_dependence(scores: ArrayLike | pd.DataFrame) -> float:
    """Measure how much a result depends on the random start of the recursion.

    Parameters
    ----------
    scores
        Score of every restart, sections × restarts, for instance the adjusted Rand index after the last step of
        :func:`strecur.tl.landscape`: ``table[table.step == depth].pivot(index="section", columns="restart",
        values="ari")``.

    Returns
    -------
    Mean distance between the score of a restart and the mean score of its section; 0 if all restarts of a section
    have the same score. NaN scores are left out; NaN if all are.

    Raises
    ------
    ValueError
        If ``scores`` is not a table.

    Notes
    -----
    Δ_PI of Equilibrium Reasoners :cite:p:`eqr`, averaged over the choice of the single restart.

    Examples
    --------
    >>> import strecur as st
    >>> st.metrics.path_dependence([[0.5, 0.5], [0.25, 0.75]])  # two sections, two restarts each
    0.125
    """
    table = pd.DataFrame(dense(scores, "sections × restarts"))
    return float(table.sub(table.mean(axis=1), axis=0).abs().stack().mean())
