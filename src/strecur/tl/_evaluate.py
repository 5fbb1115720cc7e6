from __future__ import annotations

import inspect
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm.auto import tqdm

from strecur._anndata import open_table, read_sections
from strecur._settings import settings
from strecur.nn import FeedforwardConfig, TRMConfig
from strecur.tl._apply import hardware
from strecur.tl._evaluate_tasks import DomainTask, ExpressionTask, describe_split
from strecur.tl._folds import check_inputs, find_duplicates, make_folds, read_profiles
from strecur.tl._results import digest, open_results

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur.models._network import Architecture
    from strecur.tl._evaluate_tasks import Task

logger = logging.getLogger("strecur")

TASKS = ("domains", "expression")
NOT_RECURSIVE = "feedforward"

# arguments of the verbs that are set here
OWN = {"adata", "accelerator", "architecture", "label_key", "library_key", "precision", "progress", "rng", "table_key"}
PREDICTION = {"depth", "breadth", "selection", "noise", "symmetric", "stop_early", "halt_threshold"}
OF_TWO_STATES = {"breadth", "noise"}

MEMORY, PEAK = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def cross_validate(
    adata: AnnData | SpatialData,
    task: Literal["domains", "expression"],
    *,
    library_key: str,
    label_key: str | None = None,
    group_key: str | None = None,
    donor_key: str | None = None,
    groups: Sequence[str] | None = None,
    architectures: Sequence[str] | Mapping[str, str | Architecture] = ("trm", "feedforward"),
    seeds: Sequence[int] = (0, 1, 2),
    training: Mapping[str, object] | None = None,
    prediction: Mapping[str, object] | None = None,
    path: str | Path | None = None,
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    table_key: str | None = None,
) -> pd.DataFrame:
    """Train without some sections, predict them, and score: does the model help, and does its recursion?

    Every section, or every group of sections such as those of a donor, is held out once. The network without recursion
    and linear models on the same features are always among the methods, since a number means little without them.
    Nothing is fitted on what is held out: neither genes nor components nor weights.

    Parameters
    ----------
    adata
        Spots of one or several sections; here of several, at least two, as :func:`train_domains` or
        :func:`train_expression` wants them. The object is not changed.
    task
        What is learned.
    library_key
        Column of ``obs`` that tells sections apart.
    label_key
        Column of ``obs`` with the annotated domains, for ``"domains"``.
    group_key
        Column of ``obs`` with what is held out together, such as the donor or patient; not given: section by section,
        which says how well the *next section of the same donors* is predicted.
    donor_key
        Column of ``obs`` with the donor, to tell where a section held out shares its donor with training; not given:
        ``group_key``.
    groups
        Groups (or sections) to hold out; by default each in turn.
    architectures
        Networks to compare, by name, or a mapping of names of your choice to names or configurations of ``strecur.nn``.
        The network without recursion, ``"feedforward"``, is added if it is not there.
    seeds
        Seeds to train every network with; the spread over them is what differences have to exceed.
    training
        Further arguments of the verb that trains, such as ``{"size_factor_key": "total_counts"}``.
    prediction
        Further arguments of the verb that predicts: ``depth``, ``breadth``, ``selection``, ``noise``, ``symmetric``,
        ``stop_early`` and ``halt_threshold``. Breadth and noise are only for recursions with two states.
    path
        CSV to which results are added after every training. What is there already, of the same data and settings, is
        not computed again, so that an interrupted run continues.
    accelerator
        Device family as in Lightning (``"cpu"``, ``"cuda"``, …); not given: ``settings.accelerator``.
    precision
        Precision as in Lightning; not given: bf16 where the device is faster with it.
    progress
        Show a progress bar; not given: ``settings.progress``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    One row per group held out, seed and method; the methods are the networks by name, ``"linear"`` (on the same
    features) and, for domains, ``"linear, single spots"`` (without neighbours). Columns:

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
    Settings that were chosen by these scores make them too good. Choose settings with ``validation=`` in ``training``
    or by cross-validation within the training groups, and hold other groups out for the last word.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> table = st.tl.cross_validate(
    ...     adata,
    ...     "domains",
    ...     library_key="section",
    ...     label_key="domain",
    ...     seeds=(0,),
    ...     architectures=("feedforward",),
    ...     training={"max_epochs": 1},
    ...     progress=False,
    ... )
    >>> sorted(table["method"].unique())
    ['feedforward', 'linear', 'linear, single spots']
    """
    job = make_task(task, library_key, label_key)
    training, prediction = dict(training or {}), dict(prediction or {})
    check_options("training", training, set(inspect.signature(job.verb).parameters) - OWN)
    check_options("prediction", prediction, PREDICTION)
    networks, seeds = name_networks(architectures, job.baselines), check_seeds(seeds)
    table = open_table(adata, table_key=table_key, read_only=True)
    sections = read_sections(table, library_key)
    layer, use_rep = training.get("layer"), training.get("use_rep", job.use_rep)
    known = job.known(table, layer)
    folds = make_folds(table, sections, known, group_key=group_key, donor_key=donor_key, groups=groups)
    profiles = read_profiles(table, layer, use_rep if task == "domains" else None)
    for fold in folds:
        fold.cautions.extend([*find_duplicates(profiles, fold), *check_inputs(table, training, use_rep)])
    for caution in dict.fromkeys(caution for fold in folds for caution in fold.cautions):
        logger.warning("scores may be better than on new sections: %s", caution)

    labels = [] if label_key is None else table.obs[label_key].tolist()
    data = digest(task, labels, profiles.tobytes(), sections.names, sections.codes.tobytes())
    options = digest(data, sorted(training.items()), sorted(prediction.items()))
    methods = dict.fromkeys(job.baselines) | networks
    results = open_results(
        path,
        {
            (f.group, name): digest(options, f.train.tobytes(), config)
            for f in folds
            for name, config in methods.items()
        },
    )
    runs = [
        (fold, s, name) for fold in folds for s in seeds for name in networks if not results.has(fold.group, s, name)
    ]
    place = hardware(accelerator, precision) | {"progress": False}
    show_bar = settings.progress if progress is None else progress
    train = test = held_out = None
    for fold, seed, name in tqdm(runs, disable=not show_bar, desc="cross-validating", unit="training"):
        if fold.group != held_out:
            train, test, held_out = take(table, fold.train), take(table, fold.test), fold.group
        options = {"training": training | place | {"architecture": networks[name]}, "prediction": prediction | place}
        rows = run(job, train, test, name, seed, **options)
        wanted = [row for row in rows if not results.has(fold.group, seed, row["method"])]
        about = {"shared_donor": fold.shared_donor, "caution": "; ".join(fold.cautions)}
        results.add([{"group": fold.group, "seed": seed, **row, **about} for row in wanted])
    return results.select(seeds)


def run(
    job: Task,
    train: AnnData,
    test: AnnData,
    name: str,
    seed: int,
    *,
    training: Mapping[str, object],
    prediction: Mapping[str, object],
) -> list[dict[str, object]]:
    """Train one network, predict, and score it beside the linear models."""
    peak_memory(restart=True)
    start = time.perf_counter()
    model = job.train(train, rng=seed, **training)
    trained = time.perf_counter()
    left_out = set() if isinstance(model.architecture, TRMConfig) else OF_TWO_STATES
    fitting = {key: value for key, value in prediction.items() if key not in left_out}
    predicted = job.predict(test, model, rng=seed, **fitting)
    cost = {
        "train_seconds": trained - start,
        "predict_seconds": time.perf_counter() - trained,
        "peak_memory_gb": peak_memory(),
    }
    split = describe_split(job, train, test, model)
    nothing = dict.fromkeys(cost, np.nan)
    rows = [{"method": name, **job.score(test, model, predicted), **split, **cost}]
    for baseline, answer in job.predict_baselines(train, test, model).items():
        rows.append({"method": baseline, **job.score(test, model, answer), **split, **nothing})
    return rows


def take(table: AnnData, rows: np.ndarray) -> AnnData:
    """Copy some spots, with everything there is about them."""
    part = table[rows]
    return part.to_memory() if table.isbacked else part.copy()


def peak_memory(*, restart: bool = False) -> float:
    """Largest memory of this process since the last restart, in GB; NaN where the system does not tell."""
    try:
        if restart:
            MEMORY.write_text("5")
        (kilobytes,) = [line.split()[1] for line in PEAK.read_text().splitlines() if line.startswith("VmHWM")]
    except (OSError, ValueError):
        return np.nan
    return int(kilobytes) * 1024 / 1e9


def make_task(task: str, library_key: str, label_key: str | None) -> Task:
    """Return what a task is made of."""
    if task not in TASKS:
        msg = f"task={task!r}; choose one of {list(TASKS)}"
        raise ValueError(msg)
    if task == "expression":
        if label_key is not None:
            msg = f"label_key={label_key!r} is for task='domains'; expression is scored against the counts"
            raise ValueError(msg)
        return ExpressionTask(library_key)
    if label_key is None:
        msg = "task='domains' needs label_key, the column of obs with the annotated domains"
        raise ValueError(msg)
    return DomainTask(library_key, label_key)


def check_options(name: str, options: Mapping[str, object], allowed: set[str]) -> None:
    """Refuse arguments that the verb does not have or that are set here."""
    unknown = sorted(set(options) - allowed)
    if unknown:
        msg = (
            f"{name} cannot hold {unknown}; it takes {sorted(allowed)}. The rest are arguments of cross_validate itself"
        )
        raise ValueError(msg)


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """At least one seed, each once."""
    seeds = [int(seed) for seed in np.atleast_1d(seeds)]
    if not seeds or len(set(seeds)) < len(seeds):
        msg = f"seeds={seeds}: at least one is needed, each once"
        raise ValueError(msg)
    return seeds


def name_networks(
    architectures: Sequence[str] | Mapping[str, str | Architecture], reserved: Sequence[str]
) -> dict[str, str | Architecture]:
    """Networks by name, with the one without recursion among them."""
    if isinstance(architectures, str):
        architectures = [architectures]
    named = dict(architectures) if hasattr(architectures, "items") else {str(name): name for name in architectures}
    taken = sorted(set(named) & set(reserved))
    if taken:
        msg = f"architectures has {taken}, which is in every result without being asked for; leave it out"
        raise ValueError(msg)
    if not any(network == NOT_RECURSIVE or isinstance(network, FeedforwardConfig) for network in named.values()):
        named[NOT_RECURSIVE] = NOT_RECURSIVE
    return named
