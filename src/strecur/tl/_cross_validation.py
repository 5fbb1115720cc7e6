from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from strecur._anndata import find_library_key, open_table, read_sections
from strecur._settings import settings
from strecur.options import Features, Inference, Training, as_options
from strecur.tl._folds import check_inputs, find_duplicates, make_folds, read_profiles
from strecur.tl._results import digest, open_results
from strecur.tl._scoring import DomainScoring, ExpressionScoring, describe_split

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur.models.network import Architecture
    from strecur.presets import Preset
    from strecur.tl._folds import Fold
    from strecur.tl._scoring import Scoring

logger = logging.getLogger("strecur")

NOT_RECURSIVE = "feedforward"
ALONE = ", network alone"

OPTIONS = {"backbone", "halting", "features", "training", "use_rep"}
"""Arguments of both training functions that can be given in ``train``."""

MEMORY, PEAK = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def cross_validate(
    adata: AnnData | SpatialData,
    label_key: str | None = None,
    *,
    library_key: str | None = None,
    group_key: str | None = None,
    donor_key: str | None = None,
    groups: Sequence[str] | None = None,
    architectures: Sequence[str] | Mapping[str, str | Architecture | Preset] = ("trm", "feedforward"),
    seeds: Sequence[int] = (0, 1, 2),
    train: Mapping[str, Any] | None = None,
    inference: Inference | Mapping[str, Any] | None = None,
    path: str | Path | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Train without some sections, predict and score them, and compare with the linear baseline.

    Every section, or every group of sections such as those of a donor, is held out once. The network without recursion
    and linear models on the same features are always among the methods. Nothing is fitted on what is held out: neither
    genes nor components nor weights.

    Parameters
    ----------
    adata
        Spots of one or several sections; here at least two sections, as :func:`train_domains` or
        :func:`train_expression` takes them. The object is not changed.
    label_key
        Column of ``obs`` with the annotated domains, to cross-validate models of domains. If ``None`` (default), models
        of expression.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    group_key
        Column of ``obs`` with what is held out together, such as the donor or patient. If ``None`` (default), each
        section, which measures how well the *next section of the same donors* is predicted.
    donor_key
        Column of ``obs`` with the donor, to report where a section held out shares its donor with training. If ``None``
        (default), ``group_key``.
    groups
        Groups (or sections) to hold out; by default each in turn.
    architectures
        Networks to compare, by name, or a mapping of names of your choice to names, configurations of ``strecur.nn`` or
        presets. The network without recursion, ``"feedforward"``, is added if it is not there.
    seeds
        Seeds to train every network with; differences between methods should exceed the spread over seeds.
    train
        Further arguments of :func:`train_domains` (``backbone``, ``halting``, ``use_rep``, ``features``, ``training``)
        or :func:`train_expression` (also ``genes`` and ``extra_genes``), by name.
    inference
        Options of the prediction: a :class:`strecur.Inference` or a mapping. Breadth and noise are used for recursions
        with two states only.
    path
        CSV file to which results are added after every training. Results of the same data and settings that it already
        contains are not computed again, so an interrupted run resumes.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    One row per group held out, seed and method; the methods are the models by name (blends of network and linear
    baseline), each followed by its network alone, ``"linear"`` (on the same features) and, for domains,
    ``"linear, single spots"`` (without neighbours). Columns:

    - ``group``, ``seed``, ``method``.
    - The scores of :func:`strecur.metrics.domain_scores` or :func:`strecur.metrics.expression_scores`: means over the
      sections of the group; ``n_spots`` and ``n_missing`` are sums.
    - ``n_test_sections``, ``n_train_sections``, ``n_train_spots``: what was scored and what was learned from.
    - ``novelty``: distance of the group to the nearest training section, in the space of the representation; 1: as far
      as training sections are from one another, NaN: there was only one.
    - ``train_seconds``, ``predict_seconds`` and ``peak_memory_gb``, the largest memory of the whole process in that
      time (not that of a GPU; Linux only). NaN for linear models, which come with a network.
    - ``shared_donor``: whether a donor of the group is in training too; missing if donors are not known.
    - ``caution``: what may make the scores better than they will be on new sections; empty if nothing is known.

    Raises
    ------
    KeyError
        If a key or a group does not exist; the message lists those that do.
    ValueError
        If there are fewer than two groups to learn from, a group cannot be scored, an argument is not one of the verb,
        or ``path`` holds results of other data or settings.

    Notes
    -----
    Scores are optimistic if settings were chosen by them. Choose settings on validation sections or by cross-validation
    within the training groups, and report scores of groups that played no part in the choice.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> table = st.tl.cross_validate(
    ...     adata, "domain", architectures=("feedforward",), seeds=(0,), train={"training": {"max_epochs": 1}}
    ... )
    >>> sorted(table["method"].unique())
    ['feedforward', 'feedforward, network alone', 'linear', 'linear, single spots']
    """
    table = open_table(adata, table_key=table_key, read_only=True)
    library_key = find_library_key(table, library_key)
    scoring = DomainScoring(library_key, label_key) if label_key is not None else ExpressionScoring(library_key)
    train = check_options(dict(train or {}), OPTIONS | scoring.options)
    train["features"] = as_options(Features, "features", train.get("features"))
    train["training"] = as_options(Training, "training", train.get("training"))
    options = as_options(Inference, "inference", inference)
    networks, seeds = name_networks(architectures, scoring.baselines), check_seeds(seeds)
    folds, data = plan_folds(table, scoring, label_key, train, group_key=group_key, donor_key=donor_key, groups=groups)
    methods: dict[str, object] = dict.fromkeys(scoring.baselines)
    for name, config in networks.items():
        methods |= {name: config, f"{name}{ALONE}": config}
    with_options = digest(data, sorted(train.items(), key=lambda item: item[0]), options)
    results = open_results(
        path, {(f.group, m): digest(with_options, f.train.tobytes(), c) for f in folds for m, c in methods.items()}
    )
    runs = [(f, s, m) for f in folds for s in seeds for m in networks if not results.has(f.group, s, m)]
    held_out = None
    for fold, seed, name in tqdm(runs, disable=not settings.progress, desc="cross-validating", unit="training"):
        if fold.group != held_out:
            parts, held_out = (copy_spots(table, fold.train), copy_spots(table, fold.test)), fold.group
        with settings.override(progress=False):
            rows = run_fold(scoring, *parts, name, seed, train | {"architecture": networks[name]}, options)
        wanted = [row for row in rows if not results.has(fold.group, seed, row["method"])]
        about = {"shared_donor": fold.shared_donor, "caution": "; ".join(fold.cautions)}
        results.add([{"group": fold.group, "seed": seed, **row, **about} for row in wanted])
    return results.select(seeds)


def plan_folds(
    table: AnnData,
    scoring: Scoring,
    label_key: str | None,
    train: Mapping[str, Any],
    *,
    group_key: str | None,
    donor_key: str | None,
    groups: Sequence[str] | None,
) -> tuple[list[Fold], str]:
    """Return the folds with their cautions, and a digest of the data."""
    sections = read_sections(table, scoring.library_key)
    layer = train["features"].layer
    use_rep = train.get("use_rep", scoring.use_rep)
    known = scoring.known(table, layer)
    folds = make_folds(table, sections, known, group_key=group_key, donor_key=donor_key, groups=groups)
    profiles = read_profiles(table, layer, use_rep if label_key is not None else None)
    for fold in folds:
        fold.cautions.extend([*find_duplicates(profiles, fold), *check_inputs(table, train, use_rep)])
    for caution in dict.fromkeys(caution for fold in folds for caution in fold.cautions):
        logger.warning("scores may be better than on new sections: %s", caution)
    labels = [] if label_key is None else table.obs[label_key].tolist()
    return folds, digest(label_key, labels, profiles.tobytes(), sections.names, sections.codes.tobytes())


def run_fold(
    scoring: Scoring,
    train: AnnData,
    test: AnnData,
    name: str,
    seed: int,
    arguments: Mapping[str, Any],
    inference: Inference,
) -> list[dict[str, Any]]:
    """Train one network, predict, and score it beside the linear models."""
    peak_memory(restart=True)
    start = time.perf_counter()
    model = scoring.train(train, rng=seed, **arguments)
    trained = time.perf_counter()
    if not model.has_two_states:
        inference = replace(inference, breadth=1, noise=0.0)
    predicted = scoring.predict(test, model, inference, seed)
    cost = {
        "train_seconds": trained - start,
        "predict_seconds": time.perf_counter() - trained,
        "peak_memory_gb": peak_memory(),
    }
    split = describe_split(scoring, train, test, model)
    nothing = dict.fromkeys(cost, np.nan)
    rows = [{"method": name, **scoring.score(test, model, predicted), **split, **cost}]
    alone = scoring.network_alone(test, model)
    if alone is not None:
        rows.append({"method": f"{name}{ALONE}", **scoring.score(test, model, alone), **split, **nothing})
    for baseline, answer in scoring.predict_baselines(train, test, model).items():
        rows.append({"method": baseline, **scoring.score(test, model, answer), **split, **nothing})
    return rows


def copy_spots(table: AnnData, rows: np.ndarray) -> AnnData:
    """Copy some spots, with everything there is about them."""
    part = table[rows]
    return part.to_memory() if table.isbacked else part.copy()


def peak_memory(*, restart: bool = False) -> float:
    """Return the largest memory of this process since the last restart, in GB; NaN where it is not known."""
    try:
        if restart:
            MEMORY.write_text("5")
        (kilobytes,) = [line.split()[1] for line in PEAK.read_text().splitlines() if line.startswith("VmHWM")]
    except (OSError, ValueError):
        return np.nan
    return int(kilobytes) * 1024 / 1e9


def check_options(train: dict[str, Any], allowed: set[str]) -> dict[str, Any]:
    """Raise if there are arguments that the training does not have or that are set here."""
    unknown = sorted(set(train) - allowed)
    if unknown:
        msg = f"train cannot hold {unknown}; it takes {sorted(allowed)}; others are arguments of cross_validate itself"
        raise ValueError(msg)
    return train


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Return the seeds; there must be at least one, each once."""
    seeds = [int(seed) for seed in np.atleast_1d(seeds)]
    if not seeds or len(set(seeds)) < len(seeds):
        msg = f"seeds={seeds}: at least one is needed, each once"
        raise ValueError(msg)
    return seeds


def name_networks(
    architectures: Sequence[str] | Mapping[str, str | Architecture | Preset], reserved: Sequence[str]
) -> dict[str, str | Architecture | Preset]:
    """Return the networks by name, with the one without recursion among them."""
    if isinstance(architectures, str):
        architectures = [architectures]
    named: dict[str, str | Architecture | Preset] = {}
    named |= architectures if isinstance(architectures, Mapping) else {str(name): name for name in architectures}
    taken = sorted(set(named) & set(reserved))
    if taken:
        msg = f"architectures has {taken}, which is in every result without being asked for; leave it out"
        raise ValueError(msg)
    if not any(getattr(network, "name", network) == NOT_RECURSIVE for network in named.values()):
        named[NOT_RECURSIVE] = NOT_RECURSIVE
    return named
