"""One label per spot from those of several annotators."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd


def single_votes(votes: pd.DataFrame, *, names: pd.Index) -> pd.DataFrame:
    """Drop repeated labels; raise if one annotator gives a spot two of them."""
    votes = votes.drop_duplicates(["row", "annotator", "label"])
    twice = votes.duplicated(["row", "annotator"], keep=False)
    if twice.any():
        row = votes["row"][twice].iloc[0]
        labels = votes["label"][votes["row"] == row].tolist()
        msg = (
            f"{votes['row'][twice].nunique()} spots have several labels, such as {names[row]!r} with {labels}; if they "
            "are from several annotators, name their column with annotator_key, or pass {section: {annotator: source}}"
        )
        raise ValueError(msg)
    return votes


def majority(votes: pd.DataFrame, n_obs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the label that more than half of a spot's annotators give, else ``None``, and the largest share of one."""
    share = votes.groupby(["row", "label"]).size() / votes.groupby("row").size()
    labels, agreement = np.full(n_obs, None, dtype=object), np.full(n_obs, np.nan, dtype=np.float32)
    chosen = share[share > 0.5].reset_index()
    labels[chosen["row"]] = chosen["label"]
    largest = share.groupby("row").max()
    agreement[largest.index] = largest
    return labels, agreement


def pairwise_agreement(votes: pd.DataFrame) -> pd.DataFrame:
    """Compare annotators two by two over the spots that both label: share of equal labels, and Cohen's kappa."""
    from sklearn.metrics import cohen_kappa_score

    wide = votes.pivot(index="row", columns="annotator", values="label")
    rows = []
    for first, second in combinations(wide.columns, 2):
        both = wide[[first, second]].dropna()
        same = float((both[first] == both[second]).mean()) if len(both) else np.nan
        several = pd.unique(both.to_numpy().ravel()).size > 1
        kappa = float(cohen_kappa_score(both[first], both[second])) if several else np.nan
        rows.append((first, second, len(both), same, kappa))
    return pd.DataFrame(rows, columns=["annotator", "other", "n_spots", "agreement", "kappa"])
