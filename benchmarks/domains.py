"""Hold out sections or donors in turn: domains by linear models and by networks with and without recursion.

    python benchmarks/domains.py --data ../shared/data/dlpfc --size-factor-key sum_umi
    python benchmarks/domains.py --data DLPFC12 --size-factor-key sum_umi --group-key donor

trains on all sections of the folder but one (or those of one donor), labels the rest, and prints the means. Rows that
are already in the table are not computed again. A figure is saved beside the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad

import strecur as st

if TYPE_CHECKING:
    import pandas as pd

METHODS = ("feedforward", "universal", "trm")
SCORES = ["ari", "accuracy", "macro_f1"]
COSTS = ["train_seconds", "predict_seconds", "peak_memory_gb"]


def read_folder(folder: Path) -> ad.AnnData:
    """Join the sections of a folder on their common genes, and assign their spots to a lattice."""
    parts = {path.stem: ad.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"))}
    adata = ad.concat(parts, label="section", index_unique="-", join="inner")
    st.pp.to_grid(adata, library_key="section")
    return adata


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds for each group held out and over all groups, with the standard deviation over seeds."""
    per_group = table.pivot_table(index="method", columns="group", values="ari", aggfunc="mean")
    overall = table.groupby("method")[[*SCORES, *COSTS]].mean()
    spread = table.groupby(["method", "seed"])["ari"].mean().groupby("method").std().rename("sd_over_seeds")
    return per_group.join(overall).join(spread).sort_values("ari").round(3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--backbone", default="windowed")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--group-key", help="column of obs with what is held out together, such as the donor")
    parser.add_argument("--donor-key", help="column of obs with the donor, to report which are shared with training")
    parser.add_argument("--test", nargs="+", help="sections or groups to hold out; by default each in turn")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, help="by default those of the package")
    parser.add_argument("--smoothing", type=int, help="nearest spots to average over; by default from the annotation")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/domains_<data>_<backbone>.csv")
    options = parser.parse_args()

    out = options.out or Path(f"benchmarks/results/domains_{options.data.name}_{options.backbone}.csv")
    table = st.tl.cross_validate(
        read_folder(options.data),
        "domain",
        group_key=options.group_key,
        donor_key=options.donor_key,
        groups=options.test,
        architectures=options.methods,
        seeds=options.seeds,
        train={
            "backbone": options.backbone,
            "features": {"size_factor_key": options.size_factor_key},
            "training": {"max_epochs": options.epochs, "smoothing": options.smoothing},
        },
        path=out,
    )
    st.pl.benchmark(table).figure.savefig(out.with_suffix(".png"), bbox_inches="tight", dpi=150)
    print(summarise(table).to_string())


if __name__ == "__main__":
    main()
