"""HiST without its parts, one at a time: the ablation table of the paper.

    python benchmarks/hist.py --data ../shared/data/her2st --sections C2 C3 C4 C5
    python benchmarks/hist.py --data ../shared/data/her2st --sections C2 C3 C4 C5 --rows HiST RoPE --seeds 0 1 2
    python benchmarks/hist.py --data ../shared/data/her2st --sections C2 C3 C4 C5 --stain C2 --cache STAINED
    python benchmarks/hist.py --hest HEST --sections SPA148 SPA123 --encoder uni --genes 2000 --folds 4

trains HiST on all sections but those of a fold, predicts these, and prints the scores of the network alone and of a
ridge regression on the same features: those of single patches, as in the paper, unless ``--neighbours`` says otherwise.
R² and the correlation are pooled over spots and genes on the scale of counts, as in the paper, and averaged over the
sections. Genes are chosen on training sections. ``--hest`` reads a folder of HEST instead of ``--data``. ``--stain``
normalises the stains of all sections to those of one (Macenko). Rows that are in the table are not computed again.

The paper has 100 epochs of a network 512 channels wide at a learning rate of 1e-4. On a CPU choose a smaller
``--width``, which learns at a larger ``--learning-rate``.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from expression import choose_panel, is_done, read_sections

import strecur as st
from strecur.engine import HistAugmentation
from strecur.nn import HistConfig

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Options of the network and of the augmentation.
ROWS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "HiST": ({}, {}),
    "RoPE": ({"positions": "rope"}, {}),
    "ALiBi": ({"positions": "alibi"}, {}),
    "no positions": ({"positions": "none"}, {}),
    "no skip connections": ({"skip": False}, {}),
    "no shifted windows": ({"shifted": False}, {}),
    "merged children": ({"resampling": "merge"}, {}),
    "mean of children": ({"resampling": "mean"}, {}),
    "no calibration token": ({"n_global": 0}, {}),
    "no augmentation": ({}, {"mirror": 0.0, "shear": 0.0, "rotate": 0.0, "drop": 0.0}),
    "cosine annealing": ({}, {"schedule": "cosine"}),
}
LINEAR = "ridge"
SCORES = ["r2_pooled", "pcc_pooled", "pcc_10", "pcc_50", "pcc_all", "mse", "rvd"]


def make_folds(names: Sequence[str], n_folds: int | None) -> list[list[str]]:
    """Deal sections to folds of equal size, of which the last has the remainder; by default each is a fold.

    They are shuffled with a fixed seed. The paper does the same with the order of the files in a folder, which differs
    between machines, so that its folds cannot be repeated.
    """
    if n_folds is None:
        return [[name] for name in names]
    if not 2 <= n_folds <= len(names):
        raise SystemExit(f"--folds {n_folds}: choose 2 to {len(names)}, the number of sections")
    order = sorted(names)
    random.Random(0).shuffle(order)
    size = len(order) // n_folds
    folds = [order[i * size : (i + 1) * size] for i in range(n_folds)]
    folds[-1] += order[n_folds * size :]
    return folds


def read(options: argparse.Namespace) -> ad.AnnData:
    """Return all sections with embedded patches and a lattice."""
    if options.hest is None:
        options.stain_reference = fit_stain(options)
        return read_sections(options)
    cached = options.cache / f"{options.hest.name}_{options.encoder}.h5ad"
    if cached.exists():
        adata = ad.read_h5ad(cached)
        adata = adata[adata.obs["section"].isin(options.sections or adata.obs["section"].unique())].copy()
    else:
        adata = st.pp.read_hest(options.hest, options.sections, encoder=options.encoder)
        options.cache.mkdir(parents=True, exist_ok=True)
        adata.write_h5ad(cached)
    st.pp.to_grid(adata, library_key="section")
    return adata


def fit_stain(options: argparse.Namespace) -> Mapping[str, object] | None:
    """Return the stains of one section, to which those of all others are brought; ``None``: they stay as they are."""
    if options.stain is None:
        return None
    section = ad.read_h5ad(options.data / f"{options.stain}.h5ad")
    return st.pp.fit_stain_reference(section, str(options.data / "images" / f"{options.stain}.jpg"))


def train(adata: ad.AnnData, row: str, genes: list[str], options: argparse.Namespace, seed: int) -> Any:
    """Train one row of the table with the optimisation of the paper."""
    network, augmentation = ROWS[row]
    return st.tl.train_expression(
        adata,
        genes=genes,
        architecture="hist",
        backbone=HistConfig(width=options.width, n_heads=options.heads, **network),
        features={"neighbours": tuple(options.neighbours)},
        training={
            "max_epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "validation": None,
            "augmentation": HistAugmentation(**augmentation),
        },
        rng=seed,
    )


def score(test: ad.AnnData, model: Any, slot: str) -> dict[str, float]:
    """Return the mean over sections of the scores of one prediction."""
    truth = np.log2(test[:, model.genes].X.toarray() + 1)
    rows = []
    for section in test.obs["section"].unique():
        own = (test.obs["section"] == section).to_numpy()
        known = own & ~np.isnan(test.obsm[slot][:, 0])
        predicted = np.maximum(test.obsm[slot][known], 0)  # counts are not negative
        rows.append(st.metrics.expression_scores(truth[known], predicted))
    return pd.DataFrame(rows)[SCORES].mean().to_dict()


def run(adata: ad.AnnData, fold: Sequence[str], row: str, options: argparse.Namespace, seed: int) -> list[dict]:
    """Train on the sections outside a fold, and score network and ridge regression on those inside."""
    inside = adata.obs["section"].isin(fold)
    learned, test = adata[~inside].copy(), adata[inside].copy()
    start = time.process_time()
    model = train(learned, row, choose_panel(learned, options.genes), options, seed)
    seconds = time.process_time() - start
    st.tl.predict_expression(test, model)
    n_weights = sum(weight.numel() for weight in model.network.parameters())
    about = {"n_weights": n_weights, "cpu_seconds": seconds, "train_loss": model.history["train_loss"].iloc[-1]}
    return [
        {"row": row, **score(test, model, "trm_expression_network"), **about},
        {"row": LINEAR, **score(test, model, "trm_expression_linear")},
    ]


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average over folds, then over seeds, with the standard deviation over seeds of the first score."""
    by_seed = table.groupby(["row", "seed"])[[*SCORES, "n_weights", "cpu_seconds"]].mean()
    found = by_seed.groupby("row").mean()
    found.insert(1, "sd", by_seed[SCORES[0]].groupby("row").std())
    return found.sort_values(SCORES[0], ascending=False).round(3)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot pooled R² and PCC of the rows as differences from the whole network, one dot per fold and seed."""
    run = ["test", "seed"]
    whole = table[table["row"] == "HiST"].set_index(run)[SCORES]
    rows = table[table["row"] != "HiST"].join(whole, on=run, rsuffix="_whole").dropna(subset="r2_pooled_whole")
    if rows.empty:
        return
    panels = {"r2_pooled": "pooled R²", "pcc_all": "PCC, mean of genes"}
    differences = {score: rows[score] - rows[f"{score}_whole"] for score in panels}
    order = differences["pcc_all"].groupby(rows["row"]).mean().sort_values().index
    figure, axes = plt.subplots(1, 2, figsize=(8, 0.6 + 0.28 * len(order)), sharey=True, layout="constrained")
    for ax, (score, label) in zip(axes, panels.items(), strict=True):
        for fold, own in rows.groupby("test"):
            ax.plot(differences[score][own.index], order.get_indexer(own["row"]), "o", ms=4, alpha=0.7, label=fold)
        ax.plot(differences[score].groupby(rows["row"]).mean()[order], range(len(order)), "k|", ms=11)
        ax.axvline(0, color="grey", lw=1)
        ax.set(xlabel=f"{label}, difference from HiST")
        ax.locator_params(axis="x", nbins=5)
    axes[0].set_yticks(range(len(order)), labels=order)
    axes[0].legend(title="held out", fontsize=7, title_fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", type=Path, help="folder of h5ad files and images")
    source.add_argument("--hest", type=Path, help="folder of HEST, with st and patches")
    parser.add_argument("--sections", nargs="+", help="by default all of a folder of HEST")
    parser.add_argument("--folds", type=int, help="by default each section is held out")
    parser.add_argument("--test", nargs="+", help="hold out these sections one by one, not all")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--stain", metavar="SECTION", help="normalise all stains to those of this section")
    parser.add_argument("--neighbours", nargs="*", type=int, default=[])
    parser.add_argument("--genes", default=300, help="number, or name of a published list")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hist.csv"))
    options = parser.parse_args(arguments)
    if options.data is not None and options.sections is None:
        parser.error("--data needs --sections")
    if options.test is not None and options.folds is not None:
        parser.error("--test names the sections to hold out one by one; leave out --folds")
    if options.hest is not None and options.stain is not None:
        parser.error("--stain needs whole images, and HEST has patches; leave it out")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_options(arguments)
    st.settings.progress = False
    adata = read(options)
    names = list(adata.obs["section"].cat.categories)
    done = pd.read_csv(options.out, keep_default_na=False, na_values=[""]) if options.out.exists() else pd.DataFrame()
    common = {
        "data": (options.data or options.hest).name,
        "stain": options.stain or "as it is",
        "width": options.width,
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "neighbours": " ".join(map(str, options.neighbours)) or "none",
    }
    for seed in options.seeds:
        for fold in make_folds(options.test or names, options.folds):
            for row in options.rows:
                setting = {**common, "test": " ".join(fold), "seed": seed}
                if is_done(done, {**setting, "row": row}):
                    continue
                rows = pd.DataFrame(run(adata, fold, row, options, seed)).assign(**setting)
                done = pd.concat([done, rows], ignore_index=True).drop_duplicates([*setting, "row"])
                options.out.parent.mkdir(parents=True, exist_ok=True)
                done.to_csv(options.out, index=False)
                print(rows[["test", "seed", "row", *SCORES]].round(3).to_string(index=False), flush=True)
    own = done[(done[list(common)].astype(str) == pd.Series(common).astype(str)).all(axis=1)]
    print(summarise(own).to_string())
    draw(own, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
