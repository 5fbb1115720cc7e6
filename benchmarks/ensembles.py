"""How many networks to average: expression from H&E, one section held out, by the number of networks.

    python benchmarks/ensembles.py --data ../shared/data/her2st --sections C2 C3 C4 C5 --seeds 0 1 2 3
    python benchmarks/ensembles.py --data ../shared/data/mob --sections Rep8 Rep11 --patch-px 80

trains one network per seed and held-out section, stores its predictions, and scores the averages of all combinations of
1, 2, … networks, alone and blended with the ridge regression. Networks that are stored are not trained again.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from expression import choose_panel, read_sections

import strecur as st

SCORES = ["pcc_300", "pcc_300_depth_normalised", "mse"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", required=True)
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--encoder", default="texture")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--epochs", type=int, help="of each network; by default those of strecur")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--networks", type=Path, default=Path("benchmarks/results/networks"))
    options = parser.parse_args()

    st.settings.progress = False
    adata, rows = read_sections(options), []
    for test in options.test or options.sections:
        own = (adata.obs["section"] == test).to_numpy()
        train, held_out = adata[~own].copy(), adata[own].copy()
        genes = choose_panel(train, 300)
        truth_NG = np.log2(held_out[:, genes].X.toarray() + 1)
        networks = []
        for seed in options.seeds:
            path = options.networks / f"{options.data.name}_{test}_{options.encoder}_{options.epochs}_{seed}.npz"
            if not path.exists():
                training = {"n_networks": 1, "max_epochs": options.epochs}
                model = st.tl.train_expression(train, genes=genes, training=training, rng=seed)
                st.tl.predict_expression(held_out, model)
                parts = {name: held_out.obsm[f"trm_expression_{name}"] for name in ("network", "linear")}
                path.parent.mkdir(parents=True, exist_ok=True)
                np.savez(path, **parts)
            with np.load(path) as stored:
                networks.append(stored["network"])
                linear_NG = stored["linear"]
        rows.append({"test": test, "answer": "linear", **st.metrics.expression_scores(truth_NG, linear_NG)})
        for n in range(1, len(networks) + 1):
            for chosen in combinations(networks, n):
                mean_NG = np.mean(chosen, axis=0)
                for answer, predicted_NG in (("network", mean_NG), ("blend", (mean_NG + linear_NG) / 2)):
                    scores = st.metrics.expression_scores(truth_NG, predicted_NG)
                    rows.append({"test": test, "answer": answer, "networks": n, **scores})
    table = pd.DataFrame(rows).fillna({"networks": 0}).astype({"networks": int})
    by_test = table.groupby(["answer", "networks", "test"])[SCORES]
    print(by_test.agg(["mean", "std", "min"]).round(4).to_string())
    print(by_test.mean().groupby(["answer", "networks"]).mean().round(4).to_string())


if __name__ == "__main__":
    main()
