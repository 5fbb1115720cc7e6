"""Where not to trust a model of domains: unseen domains, and sections that hold a part of the tissue.

    python benchmarks/novelty.py unseen --data ../shared/data/dlpfc --size-factor-key sum_umi
    python benchmarks/novelty.py unseen --data ../shared/data/spleen
    python benchmarks/novelty.py parts --data ../shared/data/dlpfc --size-factor-key sum_umi --network

``unseen`` leaves each domain in turn out of the training sections (its spots are removed) and holds one section out:
the area under the ROC curve with which the novelty of its spots tells that domain from the others, and the share of
spots of known domains above the levels .95 and .99. The rows ``none`` leave no domain out. ``parts`` cuts the section
held out, and compares the accuracy in each part with that of the same spots in the whole section, with and without
the moments of the domains. Features, linear baseline and novelty are those of ``train_domains``; the network is trained
with the defaults if ``--network`` is given (one training per section), otherwise for one pass and not looked at.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import strecur as st

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

sys.path.insert(0, str(Path(__file__).parent))
from depth import read_sections

MIN_SPOTS = 20


def train(adata: ad.AnnData, kind: str, options: argparse.Namespace) -> st.models.DomainModel:
    """Train with the defaults, or for one pass if no network is wanted."""
    network = getattr(options, "network", False)
    return st.tl.train_domains(
        adata,
        "domain",
        architecture="trm" if network else "feedforward",
        features={"kind": kind, "size_factor_key": options.size_factor_key},
        training={} if network else {"max_epochs": 1, "validation": None},
        rng=options.seed,
    )


def unseen(adata: ad.AnnData, kind: str, options: argparse.Namespace) -> pd.DataFrame:
    """Score the novelty of the spots of domains that were left out of the training."""
    domain, section = adata.obs["domain"].astype(object), adata.obs["section"].astype(str)
    rows = []
    for test in options.test or section.unique():
        held_out = adata[(section == test).to_numpy()].copy()
        for left_out in ["none", *sorted(domain.dropna().unique())]:
            is_left_out = (held_out.obs["domain"] == left_out).to_numpy()
            if left_out != "none" and is_left_out.sum() < MIN_SPOTS:
                continue
            model = train(adata[((section != test) & (domain != left_out)).to_numpy()].copy(), kind, options)
            st.tl.trm_domains(held_out, model)
            novelty = held_out.obs["trm_domains_novelty"].to_numpy()
            known = held_out.obs["domain"].notna().to_numpy() & ~is_left_out
            row = {"test": test, "left out": left_out, "auroc": np.nan, "auroc of 1 - confidence": np.nan}
            if left_out != "none":
                both, doubt = known | is_left_out, 1 - held_out.obs["trm_domains_confidence"].to_numpy()
                row["auroc"] = roc_auc_score(is_left_out[both], novelty[both])
                row["auroc of 1 - confidence"] = roc_auc_score(is_left_out[both], doubt[both])
            for level in (0.95, 0.99):
                row[f"false at {level}"] = (novelty[known] > level).mean()
                row[f"found at {level}"] = (novelty[is_left_out] > level).mean() if is_left_out.any() else np.nan
            rows.append(row)
            print({k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return pd.DataFrame(rows)


def cuts(adata: ad.AnnData) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield kind, name and spots of parts of a section."""
    x, y = (axis < np.median(axis) for axis in adata.obsm["spatial"][:, :2].T)
    yield "whole", "whole", np.ones(adata.n_obs, dtype=bool)
    for name, half in (("left", x), ("right", ~x), ("upper", y), ("lower", ~y)):
        yield "half", name, half
    for name, quarter in (("upper left", x & y), ("lower right", ~x & ~y)):
        yield "quarter", name, quarter
    domain = adata.obs["domain"].astype(object)
    names = sorted(domain.dropna().unique())
    for size in (1, 2, 3):
        for start in range(0, len(names) - size + 1, size):
            chosen = names[start : start + size]
            yield f"{size} domain{'s' * (size > 1)}", " ".join(chosen), domain.isin(chosen).to_numpy()


def parts(adata: ad.AnnData, kind: str, options: argparse.Namespace) -> pd.DataFrame:
    """Compare the accuracy in parts of a section with that of the same spots in the whole section."""
    section, rows = adata.obs["section"].astype(str), []
    for test in options.test or section.unique():
        held_out = adata[(section == test).to_numpy()].copy()
        model = train(adata[(section != test).to_numpy()].copy(), kind, options)
        models = {"own moments": replace(model, features=replace(model.features, domains=None)), "default": model}
        keys = {"linear": "trm_domains_linear"}
        if options.network:
            keys |= {"network": "trm_domains_network", "answer": "trm_domains"}
        whole: dict[str, np.ndarray] = {}
        for shape, cut, inside in cuts(held_out):
            if inside.sum() < MIN_SPOTS:
                continue
            part = held_out[inside].copy()
            truth = part.obs["domain"].astype(object)
            known = truth.notna().to_numpy()
            for treatment, candidate in models.items():
                st.tl.trm_domains(part, candidate)
                for method, key in keys.items():
                    right = (part.obs[key].astype(object) == truth).to_numpy()
                    if shape == "whole" and treatment == "own moments":
                        whole[method] = right
                    row = {"test": test, "kind": shape, "cut": cut, "treatment": treatment, "method": method}
                    row |= {"accuracy": right[known].mean(), "in the whole": whole[method][inside][known].mean()}
                    rows.append(row)
        own = pd.DataFrame([row for row in rows if row["test"] == test])
        own["difference"] = own["accuracy"] - own["in the whole"]
        print(test, own.groupby(["method", "treatment", "kind"], sort=False)["difference"].mean().round(3), flush=True)
    table = pd.DataFrame(rows)
    table["difference"] = table["accuracy"] - table["in the whole"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["unseen", "parts"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--network", action="store_true", help="train the network too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    adata, kind = read_sections(options.data)
    if options.what == "unseen":
        table = unseen(adata, kind, options)
        print(table.drop(columns="test").groupby("left out").mean().round(3).to_string())
        print("mean over domains:", table.groupby("left out")["auroc"].mean().mean().round(3))
    else:
        table = parts(adata, kind, options)
        means = table.pivot_table(
            index=["method", "treatment"], columns="kind", values=["accuracy", "difference"], sort=False
        )
        print(means.round(3).to_string())
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / f"novelty_{options.what}_{options.data.stem}.csv", index=False)


if __name__ == "__main__":
    with st.settings.override(progress=False):
        main()
