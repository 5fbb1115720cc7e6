"""Figures of expression predicted from H&E: train on some HER2ST sections, predict one that is held out.

    python benchmarks/expression_figures.py --data ../shared/data/her2st --train C2 C4 C5 --test C3

writes ``marker_panel.png`` (measured and predicted markers by biological axis), ``gene_scores.png``, ``clusters.png``
(clusters of the predicted expression beside those of the study) and ``whole_slide.png`` (prediction from the image of
the test section alone, for spots that ``pp.tile_image`` places on the tissue at the pitch of the array), and prints
the scores of the test section and of each marker.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pandas as pd
import scanpy as sc
from expression import choose_panel, read_sections
from scipy.spatial import KDTree
from skimage.io import imread
from skimage.transform import rescale
from sklearn.cluster import KMeans

import strecur as st

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

    from strecur.models import ExpressionModel

mpl.use("Agg")

MARKERS = {
    "receptors": ["ERBB2", "ESR1", "PGR"],
    "proliferation": ["MKI67"],
    "epithelium": ["KRT8", "EPCAM"],
    "T cells": ["CD3E", "CD8A"],
}


def attach_image(adata: AnnData, section: str, image: Path) -> None:
    """Store a thumbnail of the image, so that maps are drawn beside the tissue."""
    scale = 0.1
    pixels = rescale(imread(image), scale, channel_axis=-1, anti_aliasing=True)
    adata.uns["spatial"] = {
        section: {
            "images": {"hires": (255 * pixels).astype(np.uint8)},
            "scalefactors": {"tissue_hires_scalef": scale, "spot_diameter_fullres": 150.0},
        }
    }


def predict_slide(image: Path, model: ExpressionModel, pitch_px: float, options: argparse.Namespace) -> AnnData:
    """Place spots on the tissue of an image, embed their patches and predict their expression."""
    slide = st.pp.tile_image(str(image), pitch_px=pitch_px, layout="square")
    st.pp.embed_patches(slide, str(image), encoder=options.encoder, views=8, patches={"px": options.patch_px})
    st.tl.predict_expression(slide, model)
    return slide


def rate_markers(test: AnnData, model: ExpressionModel, markers: list[str]) -> pd.DataFrame:
    """Return mean counts of markers in a held-out section, and the correlation there of the answer and its parts."""
    truth_NG, keys = model.measure(test), {"answer": "", "network": "_network", "linear": "_linear"}
    columns = {name: test.obsm[f"trm_expression{key}"] for name, key in keys.items()}
    table = pd.DataFrame(
        {
            "expected": model.reliability["pcc"].to_numpy(),
            **{name: st.metrics.pcc_per_gene(truth_NG, values_NG) for name, values_NG in columns.items()},
        },
        index=model.genes,
    )
    counts = {"mean count": np.asarray(test[:, markers].X.mean(axis=0)).ravel()}
    return table.loc[markers].assign(**counts)


def cluster(adata: AnnData, n_clusters: int, seed: int) -> None:
    """Cluster the spots by their predicted expression, into as many clusters as the study has."""
    expression = st.get.expression(adata)
    sc.pp.scale(expression)
    sc.pp.pca(expression, n_comps=20, random_state=seed)
    labels = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(expression.obsm["X_pca"])
    adata.obs["predicted_cluster"] = [str(label) for label in labels]
    adata.obs["predicted_cluster"] = adata.obs["predicted_cluster"].astype("category")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--train", nargs="+", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--encoder", default="texture")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--truth", default="cluster_annotation", help="column of the annotation to show")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expression_figures"))
    options = parser.parse_args()
    st.settings.progress = False
    options.sections = [*options.train, options.test]
    options.out.mkdir(parents=True, exist_ok=True)

    adata = read_sections(options)
    train = adata[adata.obs["section"].isin(options.train)].copy()
    test = adata[adata.obs["section"] == options.test].copy()
    shown = {axis: [gene for gene in genes if gene in adata.var_names] for axis, genes in MARKERS.items()}
    markers = [gene for genes in shown.values() for gene in genes]
    print("not measured in all sections:", sorted({gene for genes in MARKERS.values() for gene in genes} - {*markers}))
    panel = choose_panel(train, 300)
    model = st.tl.train_expression(train, genes=panel, extra_genes=markers, rng=options.seed)
    st.tl.predict_expression(test, model)
    scores = st.metrics.expression_scores(model.measure(test), test.obsm["trm_expression"])
    print({name: round(scores[name], 3) for name in ("pcc_10", "pcc_50", "pcc_300", "mse", "rvd")})
    print(rate_markers(test, model, markers).round(3).to_string())

    image = options.data / "images" / f"{options.test}.jpg"
    attach_image(test, options.test, image)
    save(st.pl.marker_panel(test, shown), options.out / "marker_panel.png")
    save(st.pl.gene_scores(test), options.out / "gene_scores.png")
    cluster(test, test.obs[options.truth].nunique(), options.seed)
    save(st.pl.domains(test, "predicted_cluster", truth=options.truth, img=False), options.out / "clusters.png")

    distance, _ = KDTree(test.obsm["spatial"]).query(test.obsm["spatial"], k=2)
    slide = predict_slide(image, model, float(np.median(distance[:, 1])), options)
    maps = st.pl.marker_panel(slide, ["ERBB2", "KRT8", "EPCAM", "CD3E"], genes_per_row=2)
    save(maps, options.out / "whole_slide.png")
    print(f"whole slide: {slide.n_obs} spots")


def save(axes: Axes | list[Axes], path: Path) -> None:
    """Save the figure of some axes."""
    axes = axes if isinstance(axes, list) else [axes]
    axes[0].figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
