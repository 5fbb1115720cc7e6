"""Leave one section out: expression from H&E by linear models, retrieval, and networks with and without recursion.

    python benchmarks/expression.py --data ../shared/data/her2st --sections C2 C3 C4 C5 --encoder efficientnet-lite0
    python benchmarks/expression.py --data ../shared/data/mob --sections Rep8 Rep11 --patch-px 80
    python benchmarks/expression.py --data ../shared/data/mob_st2k --sections MOB1 MOB2 MOB3 --test MOB3 --patch-px 36
    python benchmarks/expression.py --data HER2ST --protocol her2st-b1-v1 --genes her2st-300-training-v1

embeds the patches of ``images/<section>.jpg`` (once; the embeddings are stored in a folder), trains on all sections but
one, predicts that one, and prints the scores. Everything, including the gene panel, is fitted on the training sections.
Rows that are already in the table are not computed again. ``--protocol`` uses the folds of a published protocol, with
its validation sections, on which the weights of the networks are chosen (``strecur.datasets.read_split``; genes:
``strecur.datasets.read_genes``). Scores are means over the predicted sections.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from baselines import read_features, retrieve, smooth
from expression_peers import predict_by_contrast, predict_by_transformer

import strecur as st
from strecur._geometry import physical_positions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

METHODS = ("linear", "HisToGene-style", "BLEEP-style", "feedforward", "universal", "trm")
PEERS = METHODS[1:3]
SCORES = ["pcc_10", "pcc_50", "pcc_300", "pcc_300_depth_normalised", "mse", "rvd", "rvd_std"]


@dataclass(frozen=True)
class Fold:
    """Sections to train on, to choose the weights on (may be empty), and to predict."""

    train: list[str]
    validation: list[str]
    test: list[str]

    def __iter__(self) -> Iterator[list[str]]:
        return iter((self.train, self.validation, self.test))


def make_folds(options: argparse.Namespace) -> dict[str, Fold]:
    """Return the folds of the protocol, or one for each section held out."""
    if options.protocol is None:
        tests = options.test or options.sections
        return {test: Fold([s for s in options.sections if s != test], [], [test]) for test in tests}
    split = st.datasets.read_split(options.protocol)
    parts = ("train", "validation", "test")
    return {fold: Fold(*(split.index[split[fold] == part].tolist() for part in parts)) for fold in split.columns}


def read_sections(options: argparse.Namespace, names: Sequence[str] | None = None) -> ad.AnnData:
    """Embed sections, join them on their common genes, and assign their spots to a lattice."""
    parts = {}
    for name in names or options.sections:
        cached = options.cache / f"{options.data.name}_{name}.h5ad"
        if not cached.exists():
            section = ad.read_h5ad(options.data / f"{name}.h5ad")
            image = options.data / "images" / f"{name}.jpg"
            patches = {"px": options.patch_px, "stain_reference": getattr(options, "stain_reference", None)}
            st.pp.embed_patches(section, str(image), encoder=options.encoder, views=8, patches=patches)
            options.cache.mkdir(parents=True, exist_ok=True)
            section.write_h5ad(cached)
        parts[name] = ad.read_h5ad(cached)
        if (made_by := parts[name].uns["X_patch"]["encoder"]) != options.encoder:
            raise SystemExit(f"{cached} was made by {made_by!r}; choose another --cache for {options.encoder!r}")
        if ("stain_reference" in parts[name].uns["X_patch"]) != (getattr(options, "stain_reference", None) is not None):
            raise SystemExit(f"{cached} differs in its stain normalisation; choose another --cache")
    adata = ad.concat(parts, label="section", index_unique="-", join="inner", merge="same", uns_merge="first")
    st.pp.to_grid(adata, library_key="section")
    return adata


def choose_panel(train: ad.AnnData, genes: int | str) -> list[str]:
    """Choose a number of genes on the training sections, without mitochondrial and ribosomal ones, or read a list."""
    if not str(genes).isdecimal():
        return [gene for gene in st.datasets.read_genes(genes) if gene in train.var_names]
    symbols = "symbol" if "symbol" in train.var else None
    return st.pp.high_mean_high_variance_genes(train, int(genes), gene_symbols=symbols)


def linear_methods(train: ad.AnnData, test: ad.AnnData, genes: list[str]) -> dict[str, np.ndarray]:
    """Run ridge regression and retrieval on the components of single spots, and on those with neighbourhoods."""
    found = {}
    for neighbours, ending in (((), ""), ((9, 25, 81), " + neighbours")):
        features = {"neighbours": neighbours}
        model = st.tl.train_expression(train, genes=genes, architecture="linear", features=features)
        (_, reference_NF), (query, query_MF) = (read_features(part, model) for part in (train, test))
        found[f"ridge{ending}"] = model.baseline.predict(query_MF)
        for k in (20, 50):
            found[f"retrieval {k}{ending}"] = retrieve(reference_NF, model.measure(train), query_MF, k)
        if not neighbours:
            positions = physical_positions(query.grid.row, query.grid.col, query.grid.layout)
            found["ridge + smoothing"] = smooth(found["ridge"], positions)
    return found


def peer(name: str, train: ad.AnnData, test: ad.AnnData, genes: list[str], seed: int) -> np.ndarray:
    """Run a method of others on the features of the networks: components of the embedding with neighbourhoods."""
    model = st.tl.train_expression(train, genes=genes, architecture="linear")
    (known, known_NF), (query, query_MF) = (read_features(part, model) for part in (train, test))
    log_NG = model.measure(train)
    if name == "BLEEP-style":
        return predict_by_contrast(known_NF, log_NG, query_MF, seed)
    cells_N2, cells_M2 = (np.column_stack([part.grid.row, part.grid.col]).astype(np.int64) for part in (known, query))
    parts = [(known_NF[own], cells_N2[own], log_NG[own]) for own in map(known.rows, known.names)]
    return predict_by_transformer(parts, (query_MF, cells_M2), seed)


def run(adata: ad.AnnData, fold: Fold, method: str, seed: int, options: argparse.Namespace) -> list[dict]:
    """Train and score one method on one fold."""
    train, test = (adata[adata.obs["section"].isin(part)].copy() for part in (fold.train, fold.test))
    genes = choose_panel(train, options.genes)
    truth = np.log2(test[:, genes].X.toarray() + 1)
    start = time.perf_counter()
    if method == "linear":
        found = linear_methods(train, test, genes)
    elif method in PEERS:
        found = {method: peer(method, train, test, genes, seed)}
    else:
        seen = adata[adata.obs["section"].isin(fold.train + fold.validation)].copy()
        training = {"validation": fold.validation or "auto"}
        model = st.tl.train_expression(seen, genes=genes, architecture=method, training=training, rng=seed)
        st.tl.predict_expression(test, model)
        found = {method: test.obsm["trm_expression"], f"{method}, networks": test.obsm["trm_expression_network"]}
    seconds = time.perf_counter() - start
    rows = []
    for name, predicted in found.items():
        own = [(test.obs["section"] == section).to_numpy() for section in fold.test]
        scores = pd.DataFrame([st.metrics.expression_scores(truth[spots], predicted[spots]) for spots in own]).mean()
        rows.append({"method": name, "seed": seed, **{k: scores[k] for k in SCORES}, "seconds": seconds})
    return rows


def is_done(done: pd.DataFrame, wanted: dict[str, object]) -> bool:
    """Whether the table has this run; each of the linear methods has a name of its own."""
    if done.empty:
        return False
    if wanted.get("method") == "linear":
        wanted = wanted | {"method": "ridge"}
    return bool((done[list(wanted)].astype(str) == pd.Series(wanted).astype(str)).all(axis=1).any())


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average over sections and seeds."""
    return table.groupby("method")[[*SCORES, "seconds"]].mean().sort_values("pcc_300").round(3)


def compare_seeds(table: pd.DataFrame, baseline: str = "ridge + neighbours") -> pd.DataFrame:
    """Return the PCC-300 of the networks over seeds, and the least that any of them gains on the baseline, by section.

    ``table`` holds the scores of one data set. Without the baseline in it, gains are NaN.
    """
    reference = table[table["method"] == baseline].groupby("test")["pcc_300"].first()
    seeded = table[table["method"].str.partition(",")[0].isin(METHODS[3:])]
    seeded = seeded.assign(gain=seeded["pcc_300"] - seeded["test"].map(reference))
    scores = {"seeds": ("seed", "nunique"), "mean": ("pcc_300", "mean"), "sd": ("pcc_300", "std")}
    return seeded.groupby(["method", "test"]).agg(**scores, least_gain=("gain", "min")).round(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", help="sections to use, each of which is held out in turn")
    parser.add_argument("--protocol", help="folds of a published protocol, instead of --sections")
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--genes", default=300, help="number, or name of a published list")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expression.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    folds = make_folds(options)
    names = {name for fold in folds.values() for part in fold for name in part}
    adata = read_sections(options, sorted(names))
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for name, fold in folds.items():
        for seed in options.seeds:
            for method in options.methods:
                setting = {"data": options.data.name, "test": name, "encoder": options.encoder}
                if is_done(done, setting | {"method": method, "seed": seed}):
                    continue
                rows = pd.DataFrame(run(adata, fold, method, seed, options)).assign(**setting)
                done = pd.concat([done, rows], ignore_index=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                done.to_csv(options.out, index=False)
                print(rows[["test", "method", "seed", *SCORES]].round(3).to_string(index=False), flush=True)
    own = done[done["data"] == options.data.name]
    print(summarise(own).to_string())
    print(compare_seeds(own).to_string())


if __name__ == "__main__":
    main()
