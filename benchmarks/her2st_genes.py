"""Write the gene lists of HER2ST in the package: 300 genes of high mean and high variance, from two sets of sections.

Uses all 36 sections (``datasets.her2st`` downloads them if necessary) and takes about two minutes.

    python benchmarks/her2st_genes.py src/strecur/datasets/files/genes
"""

from __future__ import annotations

import sys
from pathlib import Path

import strecur as st

CHOSEN_ON = {
    "training": "chosen on the 34 training sections of her2st-b1-v1",
    "all": "chosen on all 36 sections, the test section among them",
}


def main(folder: Path) -> None:
    adata = st.datasets.her2st()
    common = adata[:, adata.var["n_sections"] == adata.obs["section"].nunique()]
    part = common.obs["section"].map(st.datasets.read_split("her2st-b1-v1")["B1"])
    for kind, spots in (("training", common[part == "train"]), ("all", common)):
        genes = st.pp.high_mean_high_variance_genes(spots.copy(), cutoff=350, library_key="section")
        title = f"# HER2ST, {len(genes)} genes of high mean and high variance (cut-off 350), {CHOSEN_ON[kind]}."
        text = "\n".join([title, "# Written by benchmarks/her2st_genes.py.", *genes, ""])
        (folder / f"her2st-{len(genes)}-{kind}-v1.txt").write_text(text, encoding="utf-8")
        print(f"{kind}: {len(genes)} genes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
