"""Reliability of a model: calibration, label sets, intervals, and uncertainty against error.

    python benchmarks/uncertainty.py domains --data ../shared/data/dlpfc --size-factor-key sum_umi --epochs 15
    python benchmarks/uncertainty.py expression --data ../shared/data/her2st --sections C2 C3 C4 C5

Each section is held out in turn; the next one is for calibration, and the others for training. Temperature, label sets
and intervals are fitted on the calibration section alone; all scores are of the section held out. Restarts have random
starts, for a network trained with a fixed start and for one trained with random starts. Models are stored in a folder,
and rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from expression import is_done
from kept_models import ModelSpec, add_options, append, of_sections, read, read_table, trained
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

import strecur as st
from strecur.options import Inference
from strecur.tl._inputs import read_input
from strecur.tl._reasoning import settling_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad

    from strecur.engine import Answer, Prediction
    from strecur.models import DomainModel, ExpressionModel

ARCHITECTURES = ("trm", "trm, random starts")
COVERAGE = 0.9
N_GROUPS = 5


def split(names: Sequence[str], test: str, train: Sequence[str] | None = None) -> tuple[tuple[str, ...], str]:
    """Return the training sections and the calibration section, which is the first of the others after ``test``."""
    start = list(names).index(test) + 1
    others = [name for name in (*names[start:], *names[: start - 1]) if name not in (train or ())]
    calibrating = others[0]
    return tuple(train or (name for name in names if name not in (test, calibrating))), calibrating


def error_by_group(uncertainty: np.ndarray, error: np.ndarray, n_groups: int = N_GROUPS) -> dict[str, float]:
    """Return the mean error in groups of equal size, from the least to the most uncertain; ties by order."""
    group = (rankdata(uncertainty, method="ordinal") - 1) * n_groups // len(uncertainty)
    return {f"error_{g + 1}": float(error[group == g].mean()) for g in range(n_groups)}


def entropy(proba_NC: np.ndarray) -> np.ndarray:
    """Compute the entropy of the probabilities of every spot, in nats."""
    proba_NC = np.clip(proba_NC, 1e-12, 1)
    return -(proba_NC * np.log(proba_NC)).sum(axis=1)


def explore(test: ad.AnnData, model: object, depth: int, breadth: int) -> tuple[Prediction, Answer]:
    """Run a model on one section once with the start of its training, and with restarts from random ones."""
    given = read_input(test, model, Inference(depth=depth), library_key=None, table_key=None)
    ((run,),) = model.predict(given.sections, Inference(depth=depth), keep_latents=test.n_obs)
    (answer,) = model.predict(given.sections, Inference(depth=depth, breadth=breadth))
    return run, answer


def last_changes(run: Prediction) -> np.ndarray:
    """Compute the root mean square change of every spot's latent in the last outer step."""
    before, after = run.latents_DNE[-2:]
    return np.sqrt(np.square(after - before).mean(axis=1))


def domain_rows(model: DomainModel, calibrating: ad.AnnData, test: ad.AnnData, breadth: int, depth: int) -> list[dict]:
    """Return one row for calibration, one for each selection of restarts, and one for each measure of uncertainty."""
    truth, labels = test.obs["domain"].to_numpy(), np.array(model.labels, dtype=object)
    known = pd.notna(truth)

    def ari(proba_NC: np.ndarray) -> float:
        return st.metrics.domain_scores(truth, labels[proba_NC.argmax(axis=1)])["ari"]

    model.temperature = 1.0
    st.tl.trm_domains(test, model)
    raw = test.obsm["trm_domains_proba"]
    st.tl.calibrate(calibrating, model, "domain")
    st.tl.trm_domains(test, model, coverage=COVERAGE)
    proba, sets = test.obsm["trm_domains_proba"], test.obsm["trm_domains_set"]
    chosen = proba.argmax(axis=1)
    column = pd.Index(labels).get_indexer(truth[known])
    wrong = chosen[known] != column
    rows = [
        {
            "what": "calibration",
            "ari": ari(proba),
            "accuracy": 1 - wrong.mean(),
            "temperature": model.temperature,
            "ece_before": st.metrics.expected_calibration_error(truth, raw, model.labels),
            "ece": st.metrics.expected_calibration_error(truth, proba, model.labels),
            "coverage": sets[known][np.arange(known.sum()), column].mean(),
            "set_size": sets[known].sum(axis=1).mean(),
        }
    ]
    run, answer = explore(test, model, depth, breadth)
    rows.append({"what": "no restarts", "ari": ari(run.output_DN[-1])})
    one = np.mean([ari(restart.output_DN[-1]) for restart in answer])
    rows.append({"what": "one restart", "ari": one, "disagreement": answer.disagreement})
    rows += [{"what": f"restarts, {how}", "ari": ari(answer.combined(how)[-1])} for how in model.selections]
    measures = {
        "1 - confidence": 1 - proba.max(axis=1),
        "entropy": entropy(proba),
        "restarts that disagree": 1 - answer.agreement(chosen),
        "entropy of the restarts' mean": entropy(answer.combined("mean")[-1]),
        "last change of the latent": last_changes(run),
        "settling step": settling_steps(run.output_DN.argmax(axis=2).T).astype(float),
    }
    for name, values in measures.items():
        own = values[known]
        rows.append({"what": name, "auroc": roc_auc_score(wrong, own), **error_by_group(own, wrong)})
    return rows


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Average Spearman's correlation over spots over the genes that are not constant."""
    return float(np.nanmean(st.metrics.pcc_per_gene(rankdata(a, axis=0), rankdata(b, axis=0))))


def expression_rows(
    model: ExpressionModel, calibrating: ad.AnnData, test: ad.AnnData, breadth: int, depth: int
) -> list[dict]:
    """Return one row for intervals, one for each selection of restarts, and one for each measure of uncertainty."""
    truth = np.log2(test[:, model.genes].X.toarray() + 1)
    st.tl.calibrate_expression(calibrating, model)
    st.tl.predict_expression(test, model, coverage=COVERAGE)
    predicted, half = test.obsm["trm_expression"], test.obsm["trm_expression_interval"]
    error = np.abs(truth - predicted)
    by_gene = (error <= half).mean(axis=0)
    _, answer = explore(test, model, depth, breadth)
    spread = np.std([restart.output_DN[-1] for restart in answer], axis=0)

    def pcc(values: np.ndarray) -> float:
        return st.metrics.expression_scores(truth, values)["pcc_300"]

    rows = [
        {
            "what": "intervals",
            "pcc_300": pcc(predicted),
            "coverage": by_gene.mean(),
            "coverage_low": np.quantile(by_gene, 0.1),
            "coverage_high": np.quantile(by_gene, 0.9),
            "width": 2 * half.mean(),
        },
        {
            "what": "one restart",
            "pcc_300": np.mean([pcc(restart.output_DN[-1]) for restart in answer]),
            "disagreement": spread.mean(),
        },
    ]
    rows += [{"what": f"restarts, {how}", "pcc_300": pcc(answer.combined(how)[-1])} for how in model.selections]
    for name, values in {"spread of restarts": spread, "half width": half, "predicted level": predicted}.items():
        pooled = np.corrcoef(rankdata(values), rankdata(error))[0, 1]
        groups = error_by_group(values.ravel(), error.ravel())
        rows.append({"what": name, "within_genes": rank_correlation(values, error), "pooled": pooled, **groups})
    # of whole spots and of whole genes
    for axis, unit in ((1, "spots"), (0, "genes")):
        a, b = (rankdata(values.mean(axis=axis)) for values in (spread, error))
        rows.append({"what": f"mean spread of {unit}", "pooled": np.corrcoef(a, b)[0, 1]})
    return rows


ROWS = {"domains": domain_rows, "expression": expression_rows}


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot the error from the least to the most uncertain fifth of the spots, for every measure."""
    columns = [f"error_{g + 1}" for g in range(N_GROUPS)]
    own = table.dropna(subset=columns)
    architectures = list(own["architecture"].unique())
    figure, axes = plt.subplots(
        1, len(architectures), figsize=(4.5 * len(architectures), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for ax, architecture in zip(axes[0], architectures, strict=True):
        part = own[own["architecture"] == architecture]
        for name, rows in part.groupby("what", sort=False):
            ax.plot(range(1, N_GROUPS + 1), rows[columns].mean(), "o-", label=name)
        ax.set(title=architecture, xlabel="fifth of the spots, the most uncertain last")
        ax.set_xticks(range(1, N_GROUPS + 1))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylabel="mean error", ylim=(0, 1.08 * own[columns].to_numpy().max()))
    axes[0, -1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--halting", help="recipe the models were trained with; by default none")
    parser.add_argument("--breadth", type=int, default=8)
    parser.add_argument("--depth", type=int, default=4, help="outer steps of the restarts")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/uncertainty_<task>.csv")
    options = parser.parse_args()

    out = options.out or Path(f"benchmarks/results/uncertainty_{options.task}.csv")
    st.settings.progress = False
    adata, done = read(options), read_table(out)
    names = list(adata.obs["section"].cat.categories)
    for section in options.test or names:
        training_sections, calibrating = split(names, section, options.train)
        for architecture in options.architectures:
            setting = {"data": options.data.name, "test": section, "architecture": architecture}
            setting |= {"epochs": options.epochs or "default", "seed": options.seed}
            if is_done(done, setting):
                continue
            spec = ModelSpec(
                options.task, training_sections, architecture, options.halting, options.epochs, options.seed
            )
            model = trained(adata, spec, options)
            held_out = [of_sections(adata, [name]) for name in (calibrating, section)]
            rows = ROWS[options.task](model, *held_out, options.breadth, options.depth)
            rows = [setting | {"calibrated_on": calibrating} | row for row in rows]
            done = append(done, rows, out)
            shown = pd.DataFrame(rows).drop(columns=["data", "epochs", "seed", "calibrated_on"])
            print(shown.round(3).to_string(index=False), flush=True)
    own = done[done["data"] == options.data.name].drop(columns=["data", "test", "epochs", "seed", "calibrated_on"])
    print(own.groupby(["architecture", "what"], sort=False).mean().round(3).to_string())
    draw(done[done["data"] == options.data.name], out.with_suffix(".png"))


if __name__ == "__main__":
    main()
