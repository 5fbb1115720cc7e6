"""Leave one section out: recursion over windowed, dense and hierarchical backbones, and HiST, in equal training time.

    export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1
    python benchmarks/backbones.py domains --data ../shared/data/dlpfc --size-factor-key sum_umi
    python benchmarks/backbones.py expression --data ../shared/data/her2st --sections C2 C3 C4 C5 --minutes 1.5

Every method is trained for ``--minutes`` (``max_minutes``: the schedule is shortened to what fits) on an otherwise
idle processor, with the same features, genes and sections. To make enough passes in this time, recursive models of
domains are trained on crops of 1,024 spots; HiST, run once, is trained on whole sections with the augmentation of its
paper. Rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import domains
import expression
import numpy as np
import pandas as pd

import strecur as st
from strecur.engine import Augmentation
from strecur.models.network import resolve_backbone

if TYPE_CHECKING:
    import anndata as ad

    from strecur.models import DomainModel, ExpressionModel

CROP = 1024
METHODS = {
    "TRM, windowed": {"architecture": "trm", "backbone": "windowed"},
    "TRM, hierarchical": {"architecture": "trm", "backbone": "hierarchical"},
    "TRM, dense": {"architecture": "trm", "backbone": "dense"},
    "HiST": {"architecture": "hist"},
}


def train_domains(train: ad.AnnData, name: str, options: argparse.Namespace) -> DomainModel:
    """Train on the annotated sections."""
    method, training = METHODS[name], {"max_minutes": options.minutes}
    if "backbone" in method:
        shift = resolve_backbone(method["backbone"], "hex").period
        training["augmentation"] = Augmentation(max_shift=shift, max_spots=CROP)
    features = {"size_factor_key": options.size_factor_key}
    return st.tl.train_domains(train, "domain", features=features, training=training, rng=options.seed, **method)


def train_expression(train: ad.AnnData, name: str, options: argparse.Namespace) -> ExpressionModel:
    """Train on the sections with image and expression."""
    genes, training = expression.choose_panel(train, options.genes), {"max_minutes": options.minutes}
    return st.tl.train_expression(train, genes=genes, training=training, rng=options.seed, **METHODS[name])


def domain_rows(test: ad.AnnData, model: DomainModel, name: str) -> list[dict]:
    """Score the network and the linear model on its features."""
    st.tl.trm_domains(test, model)
    answers = {name: test.obs["trm_domains"], "linear": test.obs["trm_domains_linear"]}
    truth = test.obs["domain"].to_numpy()
    return [{"method": key, **st.metrics.domain_scores(truth, list(answer))} for key, answer in answers.items()]


def expression_rows(test: ad.AnnData, model: ExpressionModel, name: str) -> list[dict]:
    """Score the network and the ridge regression on its features, also with the pooled scores of HiST."""
    st.tl.predict_expression(test, model)
    truth = np.log2(test[:, model.genes].X.toarray() + 1)
    rows = []
    for key, slot in ((name, "trm_expression"), ("ridge + neighbours", "trm_expression_linear")):
        predicted = test.obsm[slot]
        scores = st.metrics.expression_scores(truth, predicted)
        pooled = st.metrics.pooled_scores(truth, predicted)
        rows.append({"method": key, **{k: scores[k] for k in expression.SCORES}, **pooled})
    return rows


TASKS = {
    "domains": (train_domains, domain_rows, ["ari", "accuracy", "macro_f1"]),
    "expression": (train_expression, expression_rows, [*expression.SCORES, "pcc_pooled", "r2_pooled"]),
}


def run(task: str, train: ad.AnnData, test: ad.AnnData, name: str, options: argparse.Namespace) -> list[dict]:
    """Train one method for the given time, and score it on the section held out."""
    fit, score, _ = TASKS[task]
    model = fit(train, name, options)
    start = time.perf_counter()
    rows = score(test, model, name)
    cost = {
        "epochs": len(model.history),
        "train_seconds": model.history["seconds"].iloc[-1],
        "predict_seconds": time.perf_counter() - start,
    }
    return [{**row, **(cost if row["method"] == name else {})} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--sections", nargs="+", help="of the expression task")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--minutes", type=float, default=4.0, help="for training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/backbones.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    read = domains.read_folder(options.data) if options.task == "domains" else expression.read_sections(options)
    columns = TASKS[options.task][2]
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for section in read.obs["section"].cat.categories:
        train = read[read.obs["section"] != section].copy()
        for name in options.methods:
            setting = {"data": options.data.name, "test": section, "minutes": options.minutes, "seed": options.seed}
            if expression.is_done(done, {**setting, "method": name}):
                continue
            test = read[read.obs["section"] == section].copy()
            rows = pd.DataFrame(run(options.task, train, test, name, options)).assign(**setting)
            done = pd.concat([done, rows], ignore_index=True).drop_duplicates([*setting, "method"])
            options.out.parent.mkdir(parents=True, exist_ok=True)
            done.to_csv(options.out, index=False)
            print(rows[["test", "method", *columns]].round(3).to_string(index=False), flush=True)
    own = done[(done["data"] == options.data.name) & (done["minutes"] == options.minutes)]
    means = own.groupby("method")[[*columns, "epochs", "train_seconds", "predict_seconds"]].mean()
    per_section = own.pivot_table(index="method", columns="test", values=columns[0])
    print(per_section.join(means).sort_values(columns[0]).round(3).to_string())


if __name__ == "__main__":
    main()
