"""How deep to train domains: outer steps and slots at equal optimizer steps, and what more depth at prediction brings.

    python benchmarks/depth.py --data ../shared/data/dlpfc --size-factor-key sum_umi --seeds 0 1 2
    python benchmarks/depth.py --data ../shared/data/dlpfc --size-factor-key sum_umi --architecture feedforward
    python benchmarks/depth.py --data ../shared/data/mob --regimes 2x1 4x4 8x6 --steps 400 --seeds 0 1 2
    python benchmarks/depth.py --data ../shared/data/spleen --depth 4
    python benchmarks/depth.py --data ../shared/data/spleen --regimes 16x16 --depth 16 --one-view

The regime ``default`` trains with the defaults of the package, ``4x4`` four outer steps in four slots. Every section of
the folder (or the halves of a single one) is held out in turn. Rows are the adjusted Rand index of the answer, of the
network alone after its last and after 1 to 24 outer steps (``--depth``), of the linear baseline, and of fixed blends of
both; rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import strecur as st

DEPTHS = (1, 2, 4, 8, 12, 24)
KEYS = ["data", "test", "seed", "regime", "steps"]


def read_sections(folder: Path) -> tuple[ad.AnnData, str]:
    """Join the sections of a folder, or cut a single one into a left and a right half; return the kind of features."""
    parts = {path.stem: ad.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"))}
    if len(parts) == 1:
        (whole,) = parts.values()
        left = whole.obsm["spatial"][:, 0] < np.median(whole.obsm["spatial"][:, 0])
        parts = {"left": whole[left].copy(), "right": whole[~left].copy()}
    parts = {
        name: part[~part.obs["domain"].isna()].copy() if "cell_type" in part.obs else part
        for name, part in parts.items()
    }
    adata = ad.concat(parts, label="section", index_unique="-", join="inner")
    st.pp.to_grid(adata, library_key="section")
    return adata, "counts" if adata.n_vars else "cell_types"


def plan(regime: str, steps: int | None, n_sections: int) -> dict[str, int]:
    """Return the options of the training that a regime stands for."""
    if regime == "default":
        return {}
    n_steps, slots = map(int, regime.split("x"))
    limit = {} if steps is None else {"max_epochs": max(steps // (n_steps * n_sections), 1)}
    return {"n_steps": n_steps, "slots": slots, **limit}


def measure(
    adata: ad.AnnData, test: str, seed: int, regime: str, options: argparse.Namespace, kind: str
) -> dict[str, object]:
    """Train a regime without one section, and score it there."""
    in_test = (adata.obs["section"] == test).to_numpy()
    train, held_out = adata[~in_test].copy(), adata[in_test].copy()
    start = time.perf_counter()
    model = st.tl.train_domains(
        train,
        "domain",
        architecture=options.architecture,
        features={"kind": kind, "size_factor_key": options.size_factor_key},
        training=plan(regime, options.steps, train.obs["section"].nunique()),
        rng=seed,
    )
    row = {"seconds": round(time.perf_counter() - start), "epochs": len(model.history), "weight": model.blend}
    n_steps = model.architecture.n_steps

    def score(key: str, **inference: object) -> float:
        st.tl.trm_domains(held_out, model, inference={"symmetric": not options.one_view, **inference})
        return st.metrics.domain_scores(held_out.obs["domain"], held_out.obs[key])["ari"]

    row["answer"] = score("trm_domains")
    for part in ("network", "linear"):
        row[part] = st.metrics.domain_scores(held_out.obs["domain"], held_out.obs[f"trm_domains_{part}"])["ari"]
    if n_steps > 1:
        row |= score_depths(held_out, model, max(options.depth, n_steps), symmetric=not options.one_view)
    return row | {f"blend {blend}": score("trm_domains", blend=blend) for blend in options.blends}


def score_depths(
    held_out: ad.AnnData, model: st.models.DomainModel, depth: int, *, symmetric: bool
) -> dict[str, float]:
    """Score the network alone after several outer steps, and return how much its states still change."""
    st.tl.trm_domains(held_out, model, inference={"depth": depth, "blend": 1.0, "symmetric": symmetric})
    labels, steps_ND = held_out.obs["trm_domains"].cat.categories, held_out.obsm["trm_domains_steps"]
    found = {
        f"depth {d}": st.metrics.domain_scores(held_out.obs["domain"], labels[steps_ND[:, d - 1]])["ari"]
        for d in DEPTHS
        if d <= depth
    }
    return found | {"residual": held_out.uns["trm_domains"]["sections"]["residual"].iloc[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--architecture", default="trm")
    parser.add_argument("--regimes", nargs="+", default=["default"])
    parser.add_argument("--steps", type=int, help="optimizer steps of a regime; by default those of the package")
    parser.add_argument("--depth", type=int, default=max(DEPTHS), help="outer steps in prediction")
    parser.add_argument("--one-view", action="store_true", help="predict without the symmetries of the lattice")
    parser.add_argument("--blends", nargs="*", type=float, default=[0.5], help="weights of the network to compare")
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/depth.csv"))
    options = parser.parse_args()

    adata, kind = read_sections(options.data)
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=KEYS)
    known = set(table[KEYS].astype(str).itertuples(index=False, name=None))
    for test in options.test or list(adata.obs["section"].unique()):
        for seed in options.seeds:
            for regime in options.regimes:
                name = regime if options.architecture == "trm" else f"{options.architecture} {regime}"
                key = (options.data.name, str(test), seed, name, options.steps or "default")
                if tuple(map(str, key)) in known:
                    continue
                row = measure(adata, test, seed, regime, options, kind)
                table = pd.concat([table, pd.DataFrame([dict(zip(KEYS, key, strict=True)) | row])], ignore_index=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                table.to_csv(options.out, index=False)
                print(key, {k: round(v, 3) for k, v in row.items()}, flush=True)
    own = table[table["data"] == options.data.name]
    means = own.groupby(["regime", "steps"]).mean(numeric_only=True)
    print(means.drop(columns="seed", errors="ignore").round(3).to_string())


if __name__ == "__main__":
    with st.settings.override(progress=False):
        main()
