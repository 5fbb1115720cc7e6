"""Draw the figures of README, front page and gallery into ``docs/_static``: ``python docs/gallery.py --model FOLDER``.

Maps show section 151673 of the human cortex (DLPFC), labelled by a model of two other sections, which is trained with
the default settings if the folder does not exist (about ten minutes). The sections come from ``datasets.dlpfc``, which
reads them from ``STRECUR_DATA`` or downloads them. Plots that need many trainings, or H&E at full resolution, show
synthetic sections.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from PIL import Image

import strecur as st
from strecur.nn import TRMConfig, WindowedConfig

if TYPE_CHECKING:
    from anndata import AnnData

    from strecur.models import DomainModel

OUT = Path(__file__).parent / "_static"
TRAINING, NEW = ["151674", "151675"], "151673"
CORTEX = ["151673", "151674", "151675"]
UNSEEN, UNSEEN_NEW = "WM", "151675"
"""Domain that is left out of the training on the two other sections, and the section that is labelled then."""
METHODS = {  # as they are called on the page on benchmarks, and in the figure
    "trm": "strecur",
    "linear": "linear",
    "scANVI": "scANVI",
    "GraphST": "GraphST (no annotation)",
    "SpaGCN": "SpaGCN (no annotation)",
    "CellCharter": "CellCharter (no annotation)",
}
WIDE = {"font.size": 10, "savefig.bbox": "tight", "savefig.dpi": 100, "font.family": "DejaVu Sans"}
SMALL = {"architecture": TRMConfig(n_steps=3), "backbone": WindowedConfig(width=48, n_heads=2)}
LARGE = 14  # font size of figures that are shown at half of their width
COLOURS = 256  # of the palette of a PNG, which makes the files three times smaller


def main() -> None:
    """Draw all figures, or those of one kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of the model of the cortex")
    parser.add_argument("--only", choices=["cortex", "unseen", "synthetic"], help="draw only these figures")
    given = parser.parse_args()
    (OUT / "gallery").mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(WIDE), st.settings.override(accelerator="cpu", progress=False):
        if given.only in ("cortex", None):
            draw_cortex(cortex_model(given.model))
            draw_benchmark()
        if given.only in ("unseen", None):
            draw_unseen(unseen_model(given.model.with_name(f"{given.model.name}_unseen")))
        if given.only in ("synthetic", None):
            draw_domains_of_synthetic_sections()
            draw_expression_of_synthetic_sections()


def save(figure: plt.Figure, name: str) -> None:
    """Write a PNG with a palette, in which photos do not take the colours of legends."""
    path = OUT / f"{name}.png"
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    print(f"{name}: {path.stat().st_size // 1024} kB")


def figure_of(axes: object) -> plt.Figure:
    """Return the figure of one or several axes."""
    return np.ravel(np.asarray(axes, dtype=object))[0].figure


def cortex_model(folder: Path) -> DomainModel:
    """Load the model, or train it with the default settings."""
    if not folder.exists():
        annotated = st.datasets.dlpfc(TRAINING)
        st.pp.to_grid(annotated, library_key="section")
        st.tl.train_domains(annotated, "domain", features={"size_factor_key": "sum_umi"}).save(folder)
    return st.load_model(folder)


def draw_cortex(model: DomainModel) -> None:
    """Label the section that was held out, and draw it."""
    new = st.datasets.dlpfc([NEW], images=True)
    st.pp.to_grid(new, library_key="section")
    st.tl.trm_domains(new, model)
    save(draw_front(new), "front")
    with mpl.rc_context({"font.size": LARGE}):
        save(figure_of(st.pl.domains(new, truth="domain", linear=True)), "gallery/domains")
        save(figure_of(st.pl.refinement(new)), "gallery/refinement")
    save(figure_of(st.pl.domains(new, alpha=0.5)), "gallery/overlay")
    save(figure_of(st.pl.confidence(new, truth="domain")), "gallery/confidence")
    save(figure_of(st.pl.halt_steps(new)), "gallery/halt_steps")
    save(figure_of(st.pl.reliability(new, truth="domain")), "gallery/reliability")
    save(figure_of(st.pl.training(model)), "gallery/training")


def unseen_model(folder: Path) -> DomainModel:
    """Load the model that never saw one of the domains, or train it with the default settings."""
    if not folder.exists():
        annotated = st.datasets.dlpfc([name for name in CORTEX if name != UNSEEN_NEW])
        annotated = annotated[(annotated.obs["domain"] != UNSEEN).to_numpy()].copy()
        st.pp.to_grid(annotated, library_key="section")
        st.tl.train_domains(annotated, "domain", features={"size_factor_key": "sum_umi"}).save(folder)
    return st.load_model(folder)


def draw_unseen(model: DomainModel) -> None:
    """Draw the answer where a domain is not known: by its confidence, and with a limit of the novelty."""
    new = st.datasets.dlpfc([UNSEEN_NEW])
    st.pp.to_grid(new, library_key="section")
    st.tl.trm_domains(new, model)
    st.tl.trm_domains(new, model, novelty=0.95, key_added="limited")
    figure, axes = plt.subplots(1, 5, figsize=(13, 2.8), layout="constrained")
    st.pl.domains(new, truth="domain", ax=axes[:2])
    st.pl.confidence(new, novelty=True, ax=axes[2:4])
    st.pl.domains(new, "limited", ax=axes[4])
    is_unseen, right = new.obs["domain"] == UNSEEN, new.obs["domain"].notna()
    (named, n_named), *_ = new.obs.loc[is_unseen, "trm_domains"].value_counts().items()
    confidence = new.obs["trm_domains_confidence"]
    left_out = new.obs["limited"].isna()
    print(
        f"{UNSEEN}: {n_named} of {is_unseen.sum()} spots are labelled {named}, with a confidence of "
        f"{confidence[is_unseen].mean():.2f} (others {confidence[right & ~is_unseen].mean():.2f}); with novelty=0.95 "
        f"{left_out[is_unseen].mean():.0%} of them and {left_out[right & ~is_unseen].mean():.0%} of the others get none"
    )
    titles = (
        "annotation",
        f"answer, no {UNSEEN} in training",
        "confidence",
        "stranger training spots",
        "answer with novelty=0.95",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
    save(figure, "gallery/unseen")


def draw_front(new: AnnData) -> plt.Figure:
    """Draw the tissue, the annotation that was withheld, the answer and its confidence."""
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.8), layout="constrained")
    st.pl.domains(new, truth="domain", ax=axes[:3])
    st.pl.confidence(new, ax=axes[3])
    truth = new.obs["domain"]
    answer, linear = (st.metrics.domain_scores(truth, new.obs[f"trm_domains{end}"]) for end in ("", "_linear"))
    for name, scores in (("answer", answer), ("linear", linear)):
        print(f"{NEW}, {name}: ARI {scores['ari']:.3f}, accuracy {scores['accuracy']:.3f}")
    titles = (
        f"new section {NEW}: H&E",
        "annotation, withheld",
        f"answer: ARI {answer['ari']:.2f} (linear {linear['ari']:.2f})",
        "confidence",
    )
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10)
    axes[2].set_xlabel(f"{answer['accuracy']:.0%} of the spots as annotated")
    return figure


def draw_domains_of_synthetic_sections() -> None:
    """Draw what needs several sections or several trainings."""
    adata = st.datasets.synthetic_sections(n_sections=4, n_rows=18, n_cols=20, n_domains=4)
    st.pp.to_grid(adata, library_key="section")
    held_out = adata.obs["section"] == "S4"
    annotated, new = adata[~held_out].copy(), adata[held_out].copy()
    model = st.tl.train_domains(annotated, "domain", **SMALL, training={"max_epochs": 20, "smoothing": 1})
    st.tl.trm_domains(adata, model, inference={"depth": 6, "breadth": 4})
    save(figure_of(st.pl.convergence(adata, library_id=["S1", "S4"])), "gallery/convergence")
    sweep = st.tl.recursion_sweep(new, model, label_key="domain")
    save(figure_of(st.pl.recursion_sweep(sweep)), "gallery/recursion_sweep")
    landscape = st.tl.landscape(new, model, label_key="domain")
    save(figure_of(st.pl.landscape(landscape)), "gallery/landscape")


def draw_benchmark() -> None:
    """Draw the scores on the cortex from the tables of the page on benchmarks."""
    page = (OUT.parent / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    rows = []
    for method, name in METHODS.items():
        # the first table with this method, in which the name may be followed by a version
        line = next(line for line in page if line.startswith(f"| {method} "))
        cells = [cell.strip(" *") for cell in line.strip("|").split("|")][1:4]
        scores = [np.nan if cell == "–" else float(cell.split()[0]) for cell in cells]
        rows += [(section, name, score) for section, score in zip(CORTEX, scores, strict=True)]
    table = pd.DataFrame(rows, columns=["group", "method", "ari"])
    save(figure_of(st.pl.benchmark(table)), "gallery/benchmark")


def draw_expression_of_synthetic_sections() -> None:
    """Draw measured and predicted markers of domains."""
    adata = st.datasets.synthetic_sections(n_sections=3, n_rows=24, n_cols=25, n_domains=4, image=True)
    st.pp.to_grid(adata, library_key="section")
    st.pp.embed_patches(adata, encoder="texture", mpp=1.0)
    markers = adata.var_names[adata.var["marker_of"].notna()]
    totals = pd.Series(np.asarray(adata[:, markers].X.sum(axis=0)).ravel(), index=markers)
    held_out = adata.obs["section"] == "S3"
    annotated, new = adata[~held_out].copy(), adata[held_out].copy()
    genes = totals.nlargest(20).index.tolist()
    model = st.tl.train_expression(annotated, genes=genes, architecture="linear")
    st.tl.predict_expression(new, model)
    scores = st.metrics.pcc_per_gene(np.log2(new[:, genes].X.toarray() + 1), st.get.expression(new)[:, genes].X)
    best = pd.Series(scores, index=genes).nlargest(2).index.tolist()
    save(figure_of(st.pl.marker_panel(new, best, genes_per_row=2)), "gallery/marker_panel")


if __name__ == "__main__":
    main()
