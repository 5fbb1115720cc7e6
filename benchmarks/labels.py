"""Few labels: scores by the share of the annotation, and what to annotate next.

    python benchmarks/labels.py curve --data ../shared/data/dlpfc --size-factor-key sum_umi \
        --train 151673 151674 --test 151675 --linear-only
    python benchmarks/labels.py suggest --data ../shared/data/dlpfc --size-factor-key sum_umi \
        --train 151673 151674 --test 151675

``curve`` annotates a share of the spots of the training sections, as scattered spots and as strokes such as one draws
by hand, and scores linear model, network and blend on the test sections. ``suggest`` starts from one per cent and adds
places, in rounds, that ``tl.suggest_annotation`` suggests, or other rules do; the linear model is fitted again in each
round. ``osmfish_sscortex:left`` is the left half of a section. Rows are appended to a table.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from label_sets import (
    RULES,
    WAYS,
    annotate_in_rounds,
    make_case,
    predict_linear,
    predict_network,
    read_sections,
    score,
)

import strecur as st

if TYPE_CHECKING:
    from label_sets import Case

COMPLETE = 1.0


def curve_rows(case: Case, options: argparse.Namespace) -> list[dict[str, object]]:
    """Score models by the share of the annotation, its form and the seed."""
    rows = []
    for way, share, seed in product(options.ways, options.shares, options.seeds):
        if share == COMPLETE and (way != options.ways[0] or (options.linear_only and seed != options.seeds[0])):
            continue  # the same annotation
        marked = WAYS[way](case, share, np.random.default_rng(seed))
        if options.linear_only:
            answers = {"linear": predict_linear(case, marked).argmax(axis=1)}
        else:
            given = {"epochs": options.epochs, "size_factor_key": options.size_factor_key}
            answers = predict_network(case, marked, seed=seed, **given)
        about = {"way": way if share < COMPLETE else "complete", "share": share, "seed": seed, "n_labels": marked.sum()}
        rows += [{**about, "method": method, **score(case, answer_N)} for method, answer_N in answers.items()]
        if not options.linear_only:
            print(rows[-len(answers) :], flush=True)
    return rows


def suggestion_rows(case: Case, options: argparse.Namespace) -> list[dict[str, object]]:
    """Score the linear model after each round of annotation, by rule, start and seed."""
    rows = []
    for way, rule, seed in product(options.ways, options.rules, options.seeds):
        marked = WAYS[way](case, options.start, np.random.default_rng(seed))
        sizes = {"n": options.n, "n_spots": options.n_spots, "rounds": options.rounds}
        found = annotate_in_rounds(case, marked, rule, seed=seed, **sizes)
        rows += [{"way": way, "rule": rule, "seed": seed, **row} for row in found]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("curve", "suggest"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", nargs="+", required=True, help="sections to annotate")
    parser.add_argument("--test", nargs="+", required=True, help="sections to score")
    parser.add_argument("--size-factor-key")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.02, 0.05, 0.1, 0.2, COMPLETE])
    parser.add_argument("--linear-only", action="store_true", help="curve: without network, in seconds")
    parser.add_argument("--epochs", type=int, help="curve: length of the training; by default that of the package")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--start", type=float, default=0.01, help="suggest: share of the annotation to start from")
    parser.add_argument("--n", type=int, default=5, help="suggest: places of a round")
    parser.add_argument("--n-spots", type=int, default=7, help="suggest: spots of a place")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/labels"))
    options = parser.parse_args()

    st.settings.progress = False
    case = make_case(
        read_sections(options.data, [*options.train, *options.test]), options.train, options.size_factor_key
    )
    table = pd.DataFrame((curve_rows if options.task == "curve" else suggestion_rows)(case, options))
    options.out.mkdir(parents=True, exist_ok=True)
    name = "_".join([options.task, *options.train, "to", *options.test]).replace(":", "-")
    table.to_csv(options.out / f"{name}{'' if options.linear_only or options.task == 'suggest' else '_network'}.csv")
    if options.task == "curve":
        scores = table.groupby(["way", "method", "share"])[["n_labels", "ari", "accuracy", "macro_f1"]].mean()
        print(scores.round(3).to_string())
        return
    print(table.pivot_table(index=["way", "rule"], columns="round", values="ari").round(3).to_string())
    labels = table.groupby(["way", "round"])["n_labels"].mean().unstack("round")
    print(f"\nannotated spots, mean over rules and seeds\n{labels.round(0).to_string()}")


if __name__ == "__main__":
    main()
