"""Leave one section out: domains by linear models and by networks with and without recursion.

    python benchmarks/domains.py --data ../shared/data/dlpfc --size-factor-key sum_umi

trains on all sections of the folder but one, labels that one, and prints the mean over folds and seeds. What is in the
table already is not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import pandas as pd
from sklearn.linear_model import LogisticRegression

import strecur as st

METHODS = ("feedforward", "universal", "trm")
SCORES = ["ari", "accuracy", "macro_f1"]


def read_folder(folder: Path) -> ad.AnnData:
    """Join the sections of a folder on their common genes, and put them on their lattice."""
    parts = {path.stem: ad.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"))}
    adata = ad.concat(parts, label="section", index_unique="-", join="inner")
    st.pp.to_grid(adata, library_key="section")
    return adata


def without_neighbours(train: ad.AnnData, test: ad.AnnData, model: st.models.DomainModel) -> list[str]:
    """Logistic regression on the principal components of single spots, as most people would do it."""
    labelled = train.obs["domain"].notna().to_numpy()
    source = model.features.source
    fitted = LogisticRegression(max_iter=1000).fit(source.transform(train)[labelled], train.obs["domain"][labelled])
    return fitted.predict(source.transform(test)).tolist()


def run(train: ad.AnnData, test: ad.AnnData, method: str, seed: int, options: argparse.Namespace) -> list[dict]:
    """Train and score one method on one fold; the linear models come with the recursive one."""
    start = time.perf_counter()
    model = st.tl.train_domains(
        train,
        "domain",
        library_key="section",
        size_factor_key=options.size_factor_key,
        architecture=method,
        backbone=options.backbone,
        rng=seed,
        progress=False,
    )
    trained = time.perf_counter()
    st.tl.trm_domains(test, model, library_key="section", progress=False)
    seconds = {"train_seconds": trained - start, "predict_seconds": time.perf_counter() - trained}
    found = {method: test.obs["trm_domains"]}
    if method == "trm" and seed == 0:
        found["linear"] = test.obs["trm_domains_linear"]
        found["linear, single spots"] = without_neighbours(train, test, model)
    truth = test.obs["domain"].to_numpy()
    rows = []
    for name, answer in found.items():
        cost = seconds if name == method else {}
        rows.append({"method": name, "seed": seed, **st.metrics.domain_scores(truth, list(answer)), **cost})
    return rows


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds for each held-out section, and mean and spread over all."""
    per_section = table.pivot_table(index="method", columns="test", values="ari", aggfunc="mean")
    overall = table.groupby("method")[[*SCORES, "train_seconds", "predict_seconds"]].mean()
    spread = table.groupby(["method", "seed"])["ari"].mean().groupby("method").std().rename("sd_over_seeds")
    return per_section.join(overall).join(spread).sort_values("ari").round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--backbone", default="windowed")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/domains.csv"))
    options = parser.parse_args()

    adata = read_folder(options.data)
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for section in options.test or adata.obs["section"].cat.categories:
        train = adata[adata.obs["section"] != section].copy()
        test = adata[adata.obs["section"] == section].copy()
        for seed in options.seeds:
            for method in options.methods:
                setting = {"data": options.data.name, "test": section, "backbone": options.backbone}
                wanted = setting | {"method": method, "seed": seed}
                if len(done) and (done[list(wanted)].astype(str) == pd.Series(wanted).astype(str)).all(axis=1).any():
                    continue
                rows = pd.DataFrame(run(train, test, method, seed, options)).assign(**setting)
                done = pd.concat([done, rows], ignore_index=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                done.to_csv(options.out, index=False)
                print(rows[["test", "method", "seed", *SCORES]].round(3).to_string(index=False), flush=True)
    print(summarise(done[done["data"] == options.data.name]).to_string())


if __name__ == "__main__":
    main()
