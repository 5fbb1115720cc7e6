"""Whether a model knows how far to trust it: calibration, label sets, intervals, and uncertainty against error.

    python benchmarks/uncertainty.py domains --data ../shared/data/dlpfc --size-factor-key sum_umi --epochs 15
    python benchmarks/uncertainty.py expression --data ../shared/data/her2st --sections C2 C3 C4 C5

Of the sections in turn one is held out, the next one calibrates, and the others train. Temperature, label sets and
intervals come from the calibrating section alone; all scores are of the one held out. Restarts begin at random, in a
network trained from a fixed start and in one trained from random ones. Models are kept in a folder, and what is in the
table already is not computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from kept_models import Training, add_options, append, is_done, of_sections, read, read_table, trained
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

import strecur as st
from strecur.engine import Inference
from strecur.tl._apply import hardware, read_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad

ARCHITECTURES = ("trm", "trm, random starts")
COVERAGE = 0.9
N_GROUPS = 5


def split(names: Sequence[str], test: str) -> tuple[tuple[str, ...], str]:
    """Training sections, and the one that calibrates: the next one after ``test``."""
    calibrating = names[(list(names).index(test) + 1) % len(names)]
    return tuple(name for name in names if name not in (test, calibrating)), calibrating


def error_by_group(uncertainty: np.ndarray, error: np.ndarray, n_groups: int = N_GROUPS) -> dict[str, float]:
    """Mean error in groups of equal size from the least to the most uncertain; equals are cut by their order."""
    group = (rankdata(uncertainty, method="ordinal") - 1) * n_groups // len(uncertainty)
    return {f"error_{g + 1}": float(error[group == g].mean()) for g in range(n_groups)}


def entropy(proba_NC: np.ndarray) -> np.ndarray:
    """Entropy of the probabilities of every spot, in nats."""
    proba_NC = np.clip(proba_NC, 1e-12, 1)
    return -(proba_NC * np.log(proba_NC)).sum(axis=1)


def last_changes(test: ad.AnnData, model: st.models.DomainModel, depth: int) -> np.ndarray:
    """Root mean square change of every spot's latent in the last outer step."""
    given = read_input(test, model, library_key="section", table_key=None, **hardware(None, None))
    changes = []
    for part in given.parts:
        ((run,),) = model.predict([part], Inference(depth, keep_latents=len(part.features_NF)))
        changes.append(np.sqrt(np.square(run.latents_DNE[-1] - run.latents_DNE[-2]).mean(axis=1)))
    order = np.concatenate([given.sections.rows(part.name) for part in given.parts])
    return np.concatenate(changes)[np.argsort(order)]


def domain_rows(
    model: st.models.DomainModel, calibrating: ad.AnnData, test: ad.AnnData, breadth: int, depth: int
) -> list[dict]:
    """One row on calibration, and one for every measure of uncertainty."""
    usual = {"library_key": "section", "progress": False}
    truth, labels = test.obs["domain"].to_numpy(), model.labels
    known = pd.notna(truth)
    model.temperature = 1.0
    st.tl.trm_domains(test, model, **usual)
    raw = test.obsm["trm_domains_proba"]
    st.tl.calibrate(calibrating, model, "domain", **usual)
    st.tl.trm_domains(test, model, coverage=COVERAGE, **usual)
    proba, sets = test.obsm["trm_domains_proba"], test.obsm["trm_domains_set"]
    column = pd.Index(labels).get_indexer(truth[known])
    wrong = (test.obs["trm_domains"].astype(object).to_numpy() != truth)[known]
    # what a model that errs as often can reach: the mean confidence should be the accuracy
    rows = [
        {
            "what": "calibration",
            "ari": st.metrics.domain_scores(truth, list(test.obs["trm_domains"]))["ari"],
            "accuracy": 1 - wrong.mean(),
            "temperature": model.temperature,
            "ece_before": st.metrics.expected_calibration_error(truth, raw, labels),
            "ece": st.metrics.expected_calibration_error(truth, proba, labels),
            "coverage": sets[known][np.arange(known.sum()), column].mean(),
            "set_size": sets[known].sum(axis=1).mean(),
        }
    ]
    deep = test.copy()
    st.tl.trm_domains(deep, model, depth=depth, **usual)
    wide = test.copy()
    st.tl.trm_domains(wide, model, depth=depth, breadth=breadth, selection="mean", **usual)
    measures = {
        "1 - confidence": 1 - proba.max(axis=1),
        "entropy": entropy(proba),
        "restarts disagree": 1 - wide.obs["trm_domains_agreement"].to_numpy(),
        "entropy of restarts' mean": entropy(wide.obsm["trm_domains_proba"]),
        "last change of the latent": last_changes(test, model, depth),
        "settling step": deep.obs["trm_domains_settling_step"].to_numpy(dtype=float),
    }
    wide_ari = st.metrics.domain_scores(truth, list(wide.obs["trm_domains"]))["ari"]
    rows.append(
        {
            "what": "restarts",
            "ari": wide_ari,
            "disagreement": wide.uns["trm_domains"]["sections"]["disagreement"].iloc[0],
        }
    )
    for name, values in measures.items():
        values = values[known]
        rows.append({"what": name, "auroc": roc_auc_score(wrong, values), **error_by_group(values, wrong)})
    return rows


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over genes of Spearman's correlation over spots; genes that are constant in either have none."""
    return float(np.nanmean(st.metrics.pcc_per_gene(rankdata(a, axis=0), rankdata(b, axis=0))))


def expression_rows(
    model: st.models.ExpressionModel, calibrating: ad.AnnData, test: ad.AnnData, breadth: int, depth: int
) -> list[dict]:
    """One row on intervals, and one for every measure of uncertainty."""
    usual = {"library_key": "section", "progress": False}
    truth = np.log2(test[:, model.target.genes].X.toarray() + 1)
    st.tl.calibrate_expression(calibrating, model, **usual)
    st.tl.predict_expression(test, model, coverage=COVERAGE, **usual)
    predicted, half = test.obsm["trm_expression"], test.obsm["trm_expression_interval"]
    error = np.abs(truth - predicted)
    by_gene = (error <= half).mean(axis=0)
    wide = test.copy()
    st.tl.predict_expression(wide, model, depth=depth, breadth=breadth, **usual)
    spread = wide.obsm["trm_expression_spread"]
    rows = [
        {
            "what": "intervals",
            "pcc_300": st.metrics.expression_scores(truth, predicted)["pcc_300"],
            "coverage": by_gene.mean(),
            "coverage_low": np.quantile(by_gene, 0.1),
            "coverage_high": np.quantile(by_gene, 0.9),
            "width": 2 * half.mean(),
        },
        {
            "what": "restarts",
            "pcc_300": st.metrics.expression_scores(truth, wide.obsm["trm_expression"])["pcc_300"],
            "disagreement": spread.mean(),
        },
    ]
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
    """Error from the least to the most uncertain fifth of the spots, for every measure."""
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
    axes[0, 0].set(ylabel="mean error", ylim=(0, None))
    axes[0, -1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=ARCHITECTURES)
    parser.add_argument("--breadth", type=int, default=8)
    parser.add_argument("--depth", type=int, default=4, help="outer steps of the restarts")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/uncertainty_<task>.csv")
    options = parser.parse_args()

    out = options.out or Path(f"benchmarks/results/uncertainty_{options.task}.csv")
    adata, done = read(options), read_table(out)
    names = list(adata.obs["section"].cat.categories)
    for section in options.test or names:
        training_sections, calibrating = split(names, section)
        for architecture in options.architectures:
            setting = {"data": options.data.name, "test": section, "architecture": architecture}
            setting |= {"epochs": options.epochs or "default", "seed": options.seed}
            if is_done(done, setting):
                continue
            training = Training(options.task, training_sections, architecture, None, options.epochs, options.seed)
            model = trained(adata, training, options)
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
