"""Equilibrium training: what depth and breadth at prediction bring for domains.

    python benchmarks/equilibrium.py domains --data ../shared/data/dlpfc --size-factor-key sum_umi --test 151673

A network with random starts, damping and noise ("trm, equilibrium" of ``benchmarks/kept_models.py``) labels the section
held out from one and from several restarts. Rows are the adjusted Rand index of the network alone after each number of
outer steps, for each way of combining restarts, with the mean residual of the last steps.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path

from kept_models import ARCHITECTURES, ModelSpec, add_options, append, of_sections, read, read_table, trained

import strecur as st

SELECTIONS = ("converged", "vote", "mean")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="trm, equilibrium")
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 4, 8, 12, 24])
    parser.add_argument("--breadths", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/equilibrium.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    adata, table = read(options), read_table(options.out)
    names = list(adata.obs["section"].cat.categories)
    for section in options.test or names:
        others = tuple(options.train or (name for name in names if name != section))
        model = trained(adata, ModelSpec("domains", others, options.architecture, None, seed=options.seed), options)
        test, rows = of_sections(adata, [section]), []
        for breadth, selection in product(options.breadths, SELECTIONS):
            if breadth == 1 and selection != SELECTIONS[0]:
                continue
            inference = {"depth": max(options.depths), "breadth": breadth, "selection": selection, "blend": 1.0}
            st.tl.trm_domains(test, model, inference=inference)
            labels, steps_ND = test.obs["trm_domains"].cat.categories, test.obsm["trm_domains_steps"]
            for depth in options.depths:
                ari = st.metrics.domain_scores(test.obs["domain"], labels[steps_ND[:, depth - 1]])["ari"]
                rows.append({"breadth": breadth, "selection": selection, "depth": depth, "ari": ari})
            residual = test.uns["trm_domains"]["sections"]["residual"].iloc[0]
            print(section, breadth, selection, f"residual {residual:.4f}", flush=True)
        setting = {"data": options.data.name, "test": section, "architecture": options.architecture}
        table = append(table, [setting | {"seed": options.seed} | row for row in rows], options.out)
    own = table[table["data"] == options.data.name]
    print(own.pivot_table(index=["breadth", "selection"], columns="depth", values="ari").round(3).to_string())


if __name__ == "__main__":
    main()
