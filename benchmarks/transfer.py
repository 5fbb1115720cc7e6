"""Transfer without labels: networks trained on cortical layers, whose latents cluster the spots of breast tumours.

    python benchmarks/transfer.py --data ../shared/data/dlpfc --target ../shared/data/her2st --train 151674 151675

Networks are trained on annotated sections of the cortex (genes by symbol) and run on sections of another tissue. Their
latents are clustered (``tl.cluster_latent``) into as many groups as the section has annotated domains, beside clusters
of other representations of the same spots. Scores are mean and standard deviation over the training seeds. Models are
stored in a folder, and rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scanpy as sc
from expression import is_done
from kept_models import ModelSpec, append, read, read_table, trained

import strecur as st
from strecur._anndata import read_section_data

if TYPE_CHECKING:
    from strecur.models import DomainModel

SECTIONS = ("A1", "B1", "C1", "D1", "E1", "F1")
UNKNOWN = "undetermined"


def ids_of_symbols(folder: Path) -> dict[str, str]:
    """Return the gene id for each symbol; the first one for several genes with one symbol."""
    var = ad.read_h5ad(next(iter(sorted(folder.glob("*.h5ad")))), backed="r").var
    symbols = var["symbol"].astype(str)
    return dict(zip(symbols[::-1], var.index[::-1], strict=True))


def read_target(folder: Path, names: list[str], size_key: str, ids: dict[str, str]) -> dict[str, ad.AnnData]:
    """Read annotated sections, with gene ids, library sizes (``obs[size_key]``) and lattice."""
    sections = {}
    for name in names:
        section = ad.read_h5ad(folder / f"{name}.h5ad")
        section.obs["section"] = pd.Categorical([name] * section.n_obs)
        section.obs[size_key] = np.asarray(section.X.sum(axis=1)).ravel()
        section.obs["domain"] = section.obs["domain"].astype(object).where(section.obs["domain"] != UNKNOWN)
        section.var["gene_id"] = [ids.get(symbol, "") for symbol in section.var_names]
        st.pp.to_grid(section, library_key="section")
        sections[name] = section
    return sections


def own_components(section: ad.AnnData, n_components: int, seed: int) -> np.ndarray:
    """Compute principal components of the section's own variable genes, the usual input of clustering."""
    table = ad.AnnData(section.X.copy(), obs=section.obs[[]].copy(), var=section.var[[]].copy())
    sc.pp.filter_genes(table, min_cells=5)
    sc.pp.normalize_total(table, target_sum=1e4)
    sc.pp.log1p(table)
    sc.pp.highly_variable_genes(table, n_top_genes=2000)
    sc.pp.pca(table, n_comps=n_components, random_state=seed)
    return table.obsm["X_pca"]


def score_clusters(section: ad.AnnData, values: np.ndarray, weight: float, seed: int) -> float:
    """Cluster a representation into as many groups as there are annotated domains; return the adjusted Rand index."""
    section.obsm["to_cluster"] = np.asarray(values, dtype=np.float32)
    n_domains = section.obs["domain"].nunique()
    st.tl.cluster_latent(section, n_domains, use_rep="to_cluster", spatial_weight=weight, rng=seed)
    truth, found = section.obs["domain"].to_numpy(), section.obs["latent_domains"].to_list()
    return st.metrics.domain_scores(truth, found)["ari"]


def latents(section: ad.AnnData, model: DomainModel, depths: list[int]) -> dict[int, np.ndarray]:
    """Return the latent of every spot by the number of outer steps; missing genes count as zero."""
    found = {}
    for depth in depths:
        st.tl.trm_domains(section, model, inference={"depth": depth})
        found[depth] = section.obsm["trm_domains_latent"]
    return found


def baselines(section: ad.AnnData, model: DomainModel, seed: int) -> dict[str, np.ndarray]:
    """Return components of the section alone, and the input of the network without and with neighbourhoods."""
    return {
        "PCA of the section": own_components(section, 50, seed),
        "PCA of the cortex": model.features.representation(section),
        "network input": model.features.inputs(read_section_data(section, None)).columns_NF,
    }


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Average over sections; return mean and standard deviation over seeds."""
    by_seed = table.groupby(["weight", "method", "depth", "seed"])["ari"].mean()
    overall = by_seed.groupby(["weight", "method", "depth"]).agg(["mean", "std", "size"])
    by_section = table.pivot_table(index=["weight", "method", "depth"], columns="section", values="ari")
    return by_section.join(overall).round(3)


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot mean ARI against outer steps and of the baselines, for each weight of the coordinates."""
    weights = sorted(table["weight"].unique())
    size = (4 * len(weights), 3.6)
    figure, axes = plt.subplots(1, len(weights), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for ax, weight in zip(axes[0], weights, strict=True):
        own = table[table["weight"] == weight]
        for color, (method, rows) in zip(plt.cm.tab10.colors, own.groupby("method", sort=False), strict=False):
            by_seed = rows.groupby(["depth", "seed"])["ari"].mean().groupby("depth").agg(["mean", "std"])
            if len(by_seed) > 1:
                ax.errorbar(by_seed.index, by_seed["mean"], by_seed["std"], color=color, marker="o", label=method)
            else:
                ax.axhline(by_seed["mean"].iloc[0], color=color, ls="--", label=method)
        ax.set(title=f"spatial weight {weight:g}", xlabel="outer steps", xscale="log")
        ax.set_xticks(sorted(own.loc[own["depth"] > 0, "depth"].unique()))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.minorticks_off()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("ARI, mean over sections")
    axes[0, -1].legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="annotated sections to train on")
    parser.add_argument("--target", type=Path, required=True, help="annotated sections of the other tissue")
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--sections", nargs="+", default=SECTIONS)
    parser.add_argument(
        "--size-factor-key", default="sum_umi", help="column of obs with library sizes, of the sections to train on"
    )
    parser.add_argument("--architectures", nargs="+", default=["trm", "feedforward"])
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--weights", nargs="+", type=float, default=[0.0, 0.5, 1.0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--models", type=Path, default=Path("benchmarks/results/models"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/transfer.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    options.task = "domains"
    source = read(options)
    target = read_target(options.target, options.sections, options.size_factor_key, ids_of_symbols(options.data))
    done = read_table(options.out)
    for seed, architecture in product(options.seeds, options.architectures):
        spec = ModelSpec("domains", tuple(options.train), architecture, "loss_proxy", options.epochs, seed)
        setting = {"epochs": options.epochs or "default", "architecture": architecture, "seed": seed}
        if is_done(done, setting):
            continue
        model = trained(source, spec, options)
        depths = options.depths if architecture == "trm" else options.depths[:1]
        rows = []
        for name, section in target.items():
            share = np.isin(model.features.source.genes, section.var["gene_id"]).mean()
            found = latents(section, model, depths)
            named = {(f"latent, {architecture}", depth): values for depth, values in found.items()}
            if architecture == options.architectures[0]:
                named |= {(method, 0): values for method, values in baselines(section, model, seed).items()}
            for ((method, depth), values), weight in product(named.items(), options.weights):
                ari = score_clusters(section, values, weight, seed)
                row = {"section": name, "method": method, "depth": depth, "weight": weight, "ari": ari}
                rows.append(setting | row | {"shared_genes": share})
        done = append(done, rows, options.out)
        print(summarise(pd.DataFrame(rows)).to_string(), flush=True)
    print(summarise(done).to_string())
    print(f"share of the model's genes that was measured: {done['shared_genes'].mean():.2f}")
    draw(done, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
