"""Groups to hold out, and reasons why their scores may be optimistic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._anndata import read_matrix, read_representation, require
from strecur._labels import as_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from strecur._anndata import Sections

MANY = 0.05
"""Share of held-out spots also found in training that chance does not explain."""


@dataclass(frozen=True)
class Fold:
    """A group that is held out: its spots, all other spots, and cautions about the split.

    ``shared_donor`` is ``pd.NA`` if donors are not known.
    """

    group: str
    test: np.ndarray
    train: np.ndarray
    shared_donor: object
    cautions: list[str] = field(default_factory=list)


def make_folds(
    table: AnnData,
    sections: Sections,
    known_N: np.ndarray,
    *,
    group_key: str | None,
    donor_key: str | None,
    groups: Sequence[str] | None,
) -> list[Fold]:
    """Make one fold per group; ``known_N`` marks the spots that can be learned from and scored."""
    names = {name: name for name in sections.names}
    group_of = names if group_key is None else read_by_section(table, group_key, sections)
    donor_key = donor_key or group_key
    donor_of = None if donor_key is None else read_by_section(table, donor_key, sections)
    measured = [name for name in sections.names if known_N[sections.rows(name)].any()]
    folds = []
    for group in choose_groups(group_of, measured, groups):
        inside = [name for name in sections.names if group_of[name] == group]
        outside = [name for name in measured if name not in inside]
        is_test = np.isin(sections.codes, [sections.names.index(name) for name in inside])
        shared_donor, cautions = compare_donors(donor_of, inside, outside)
        folds.append(Fold(group, np.flatnonzero(is_test), np.flatnonzero(~is_test), shared_donor, cautions))
    return folds


def read_by_section(table: AnnData, key: str, sections: Sections) -> dict[str, str]:
    """Read a column that has one value per section."""
    require(table.obs, key, where="obs", hint="It has to name a column that is the same for all spots of a section.")
    if table.obs[key].isna().any():
        msg = f"adata.obs[{key!r}] is missing for {int(table.obs[key].isna().sum())} spots; every section needs one"
        raise ValueError(msg)
    values = np.array([as_text(value) for value in table.obs[key]], dtype=object)
    found = {name: sorted(set(values[sections.rows(name)])) for name in sections.names}
    mixed = {name: several for name, several in found.items() if len(several) > 1}
    if mixed:
        msg = f"adata.obs[{key!r}] differs within sections {mixed}; it has to be the same for all spots of a section"
        raise ValueError(msg)
    return {name: value for name, (value,) in found.items()}


def choose_groups(group_of: Mapping[str, str], measured: Sequence[str], groups: Sequence[str] | None) -> list[str]:
    """Return the groups to hold out, each of which can be scored and leaves others to learn from."""
    present = sorted(set(group_of.values()))
    usable = sorted({group_of[name] for name in measured})
    wanted = (
        present if groups is None else [as_text(group) for group in np.atleast_1d(np.asarray(groups, dtype=object))]
    )
    unknown = [group for group in wanted if group not in present]
    if unknown:
        msg = f"groups {unknown} do not exist; there are {present}"
        raise KeyError(msg)
    if len(usable) < 2:
        msg = (
            f"{len(usable)} of the groups {present} can be learned from; at least two are needed. Add sections with "
            "annotation or counts, or hold out smaller groups (without group_key every section is one)"
        )
        raise ValueError(msg)
    unscored = [group for group in wanted if group not in usable]
    if unscored:
        msg = (
            f"groups {unscored} have no annotation or counts to be scored against; leave them out with "
            f"groups={[group for group in wanted if group in usable]}"
        )
        raise ValueError(msg)
    return list(dict.fromkeys(wanted))


def compare_donors(
    donor_of: Mapping[str, str] | None, inside: Sequence[str], outside: Sequence[str]
) -> tuple[object, list[str]]:
    """Return whether sections held out and training sections share a donor, with cautions."""
    if donor_of is None:
        return pd.NA, ["donors are not known: name their column with donor_key"]
    shared = sorted({donor_of[name] for name in inside} & {donor_of[name] for name in outside})
    if not shared:
        return False, []
    return True, [f"other sections of {', '.join(shared)} are in training, and neighbouring sections are much alike"]


def check_inputs(table: AnnData, training: Mapping[str, object], use_rep: str | None) -> list[str]:
    """Return cautions about inputs made before the split, which may depend on the held-out sections."""
    cautions = []
    if use_rep is not None and "encoder" not in table.uns.get(use_rep, {}):
        cautions.append(f"obsm[{use_rep!r}] was made before the split: no held-out section may have been fitted")
    if not isinstance(training.get("genes", 0), int):
        cautions.append("genes were named before the split: no held-out section may have been used to choose them")
    return cautions


def read_profiles(table: AnnData, layer: str | None, use_rep: str | None) -> np.ndarray:
    """Hash each spot to one number: equal for equal values, practically never otherwise; 0 for an empty spot.

    Cell types alone, in an object without expression, are too few to tell spots apart.
    """
    if use_rep is None and layer is None and table.X is None:
        return np.zeros(table.n_obs)
    values = read_representation(table, use_rep) if use_rep is not None else read_matrix(table, layer)
    return np.asarray(values @ np.random.default_rng(0).random(values.shape[1])).ravel()


def find_duplicates(profiles_N: np.ndarray, fold: Fold) -> list[str]:
    """Return a caution if held-out spots are also in training, as when a section is duplicated."""
    own, counts = np.unique(profiles_N[fold.test], return_counts=True)
    own = own[(counts == 1) & (own != 0)]  # empty spots are alike anyway
    share = np.isin(own, profiles_N[fold.train]).mean() if len(own) else 0.0
    return [f"{share:.0%} of the spots held out are in training too"] if share > MANY else []
