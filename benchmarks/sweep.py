"""A trained model with more and fewer updates of its states, on a section held out.

    python benchmarks/sweep.py expression --data ../shared/data/her2st --sections C2 C3 C4 C5 --test C3
    python benchmarks/sweep.py expression --data ../shared/data/her2st --sections C2 C3 C4 C5 --test C3 \\
        --architecture "trm, eight steps" --n-latent 1 2 3 4 6 8 12
    python benchmarks/sweep.py domains --data ../shared/data/dlpfc --size-factor-key sum_umi --test 151673 --epochs 15

The weights do not change. Writes a table and a figure of ``tl.recursion_sweep`` for every held-out section; the models
are those of ``benchmarks/halting.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from kept_models import ARCHITECTURES, ModelSpec, add_options, of_sections, read, trained

import strecur as st

mpl.use("Agg")

N_DEEP = (1, 2, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="trm")
    parser.add_argument("--n-latent", nargs="+", type=int, default=[1, 2, 3, 6], help="latent updates in a block")
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--halting", help="recipe the model was trained with; by default none")
    parser.add_argument(
        "--all-views", action="store_true", help="average over the views of the lattice, as predictions do"
    )
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/sweep_<task>.csv")
    options = parser.parse_args()

    out = options.out or Path(f"benchmarks/results/sweep_{options.task}.csv")
    st.settings.progress = False
    adata = read(options)
    names = list(adata.obs["section"].cat.categories)
    tables = []
    for section in options.test or names:
        others = tuple(options.train or (name for name in names if name != section))
        spec = ModelSpec(options.task, others, options.architecture, options.halting, options.epochs, options.seed)
        model = trained(adata, spec, options)
        tables.append(
            st.tl.recursion_sweep(
                of_sections(adata, [section]),
                model,
                label_key="domain" if options.task == "domains" else None,
                depths=options.depths,
                n_latent=options.n_latent,
                n_deep=N_DEEP,
                symmetric=options.all_views,
            )
        )
    table = pd.concat(tables, ignore_index=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False)
    score = "ari" if options.task == "domains" else "pcc_all"
    axes = st.pl.recursion_sweep(table.assign(section=table["section"].astype("category")), score=score)
    axes[0].figure.savefig(out.with_suffix(".png"), bbox_inches="tight", dpi=150)
    plt.close("all")
    by_blocks = table.pivot_table(index="n_latent", columns="n_blocks", values=[score, "residual"])
    print(by_blocks.round(3).to_string())


if __name__ == "__main__":
    main()
