"""Coverage of label sets on sections held out, calibrated on training sections that were left out in turn.

    python benchmarks/set_coverage.py --data ../shared/data/dlpfc --size-factor-key sum_umi --epochs 25

Every section is held out once; the others train the model with ``leave_one_out``. Rows are the share of its spots whose
set for 90 % holds the annotated domain and the mean size of the sets, beside what the training sections promised.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from depth import read_sections

import strecur as st

COVERAGE = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--epochs", type=int, help="passes over the training sections; by default those of the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/set_coverage.csv"))
    options = parser.parse_args()
    adata, kind = read_sections(options.data)
    section, rows = adata.obs["section"].astype(str), []
    for test in section.unique():
        held_out = adata[(section == test).to_numpy()].copy()
        model = st.tl.train_domains(
            adata[(section != test).to_numpy()].copy(),
            "domain",
            features={"kind": kind, "size_factor_key": options.size_factor_key},
            training={"leave_one_out": True, "max_epochs": options.epochs},
            rng=options.seed,
        )
        st.tl.trm_domains(held_out, model, coverage=COVERAGE)
        codes = pd.Index(model.labels).get_indexer(held_out.obs["domain"].astype(object))
        known = codes >= 0
        sets = held_out.obsm["trm_domains_set"][known]
        scores = st.metrics.domain_scores(held_out.obs["domain"], held_out.obs["trm_domains"])
        promised = {f"left out {name}": row["coverage"] for name, row in model.coverage.iterrows()}
        covered = sets[np.arange(known.sum()), codes[known]].mean()
        row = {"test": test, "coverage": covered, "set size": sets.sum(axis=1).mean(), **promised}
        rows.append(row | {"ari": scores["ari"], "temperature": model.temperature})
        print(
            {name: value if isinstance(value, str) else round(value, 3) for name, value in rows[-1].items()}, flush=True
        )
    table = pd.DataFrame(rows)
    print(f"mean {table['coverage'].mean():.3f}, spread {table['coverage'].min():.3f} to {table['coverage'].max():.3f}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out, index=False)


if __name__ == "__main__":
    with st.settings.override(progress=False):
        main()
