"""Leave one section out: the time that each halting recipe saves, and its cost in accuracy.

    python benchmarks/halting.py expression --data ../shared/data/her2st --sections C2 C3 C4 C5
    python benchmarks/halting.py domains --data ../shared/data/dlpfc --size-factor-key sum_umi --test 151673 --epochs 15

Networks are trained with the default number of outer steps and predict with more of them (``--depth``), so that there
are steps to save. The published threshold is that of the recipe; the calibrated one is found by
``tl.calibrate_halting`` on the training sections, without labels. Seconds are processor time of the whole call,
including the features. Models are stored in a folder, and rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from expression import is_done
from kept_models import ARCHITECTURES, ModelSpec, add_options, append, of_sections, read, read_table, trained

import strecur as st

if TYPE_CHECKING:
    import anndata as ad

RECIPES = {
    "domains": ["without", "loss_proxy", "weighted_bce", "random_k"],
    "expression": ["without", "pcc", "gene_pcc", "mse", "rvd", "random_k"],
}
SCORES = {"domains": ["ari", "accuracy"], "expression": ["pcc_300", "mse", "rvd"]}


def predict(test: ad.AnnData, model: object, task: str, **inference: object) -> dict[str, float]:
    """Predict a section with some options; return scores, halt step and seconds."""
    start = time.process_time()
    if task == "domains":
        st.tl.trm_domains(test, model, inference=inference)
    else:
        st.tl.predict_expression(test, model, inference=inference)
    seconds = time.process_time() - start
    key = "trm_domains" if task == "domains" else "trm_expression"
    (section,) = test.uns[key]["sections"].to_dict("records")
    if task == "domains":
        scores = st.metrics.domain_scores(test.obs["domain"].to_numpy(), list(test.obs[key]))
    else:
        truth = np.log2(test[:, model.genes].X.toarray() + 1)
        scores = st.metrics.expression_scores(truth, test.obsm[key])
    found = {name: section[name] for name in ("n_steps", "halt_step", "halt_probability")}
    return {name: scores[name] for name in SCORES[task]} | found | {"seconds": seconds}


def compare(train: ad.AnnData, test: ad.AnnData, model: object, options: argparse.Namespace) -> list[dict]:
    """Return rows without halting (at the depth of training and at full depth) and with both thresholds."""
    task, depth = options.task, options.depth
    rows = [
        {"stop": "depth of training", **predict(test, model, task)},
        {"stop": "never", **predict(test, model, task, depth=depth)},
    ]
    if model.halting is None:
        return rows
    published = model.network.recipe.threshold
    calibrated = st.tl.calibrate_halting(train, model, depth=depth)
    for stop, threshold in (("published", published), ("calibrated", calibrated)):
        found = predict(test, model, task, depth=depth, stop_early=True, halt_threshold=threshold)
        rows.append({"stop": stop, "threshold": threshold, **found})
    return rows


def summarise(table: pd.DataFrame, task: str) -> pd.DataFrame:
    """Average over the held-out sections, and add the share of the time of the full depth that halting saves."""
    columns = [*SCORES[task], "n_steps", "threshold", "halt_probability", "seconds"]
    means = table.groupby(["architecture", "recipe", "stop"], sort=False)[columns].mean()
    full = means["seconds"].xs("never", level="stop")
    return means.assign(saved=1 - means["seconds"] / full.reindex(means.index.droplevel("stop")).to_numpy()).round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--recipes", nargs="+", help="by default all that fit the task")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="trm")
    parser.add_argument("--depth", type=int, default=8, help="outer steps of the prediction")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/halting.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    adata, done = read(options), read_table(options.out)
    names = list(adata.obs["section"].cat.categories)
    for section in options.test or names:
        others = tuple(options.train or (name for name in names if name != section))
        for recipe in options.recipes or RECIPES[options.task]:
            halting = None if recipe == "without" else recipe
            spec = ModelSpec(options.task, others, options.architecture, halting, options.epochs, options.seed)
            setting = {"data": options.data.name, "test": section, "train": " ".join(others), "recipe": recipe}
            setting |= {"architecture": options.architecture, "epochs": options.epochs or "default"}
            setting |= {"seed": options.seed, "depth": options.depth}
            if is_done(done, setting):
                continue
            model = trained(adata, spec, options)
            rows = compare(of_sections(adata, others), of_sections(adata, [section]), model, options)
            rows = [setting | row for row in rows]
            done = append(done, rows, options.out)
            print(pd.DataFrame(rows).drop(columns="data").round(3).to_string(index=False), flush=True)
    print(summarise(done[done["data"] == options.data.name], options.task).to_string())


if __name__ == "__main__":
    main()
