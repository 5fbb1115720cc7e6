"""The figure of the README: two annotated sections, and the domains of a new one step by step.

Takes about a minute and uses synthetic data.

    python benchmarks/readme_figure.py docs/_static/overview.png
"""

from __future__ import annotations

import sys

import matplotlib as mpl

mpl.use("agg")

import matplotlib.pyplot as plt

import strecur as st

KEY, SECTION = "trm_domains", "S3"
STEPS = (1, 2, 6)


def main(path: str) -> None:
    st.settings.accelerator, st.settings.precision, st.settings.progress = "cpu", "32-true", False
    adata = st.datasets.synthetic_sections(n_sections=3, n_rows=26, n_cols=28)
    st.pp.to_grid(adata, library_key="section")
    annotated, new = (adata[mask].copy() for mask in (adata.obs["section"] != SECTION, adata.obs["section"] == SECTION))
    training = {"max_epochs": 25, "smoothing": 1}  # shows the output of the network itself
    model = st.tl.train_domains(annotated, "domain", training=training)
    st.tl.trm_domains(new, model, inference={"depth": STEPS[-1]})
    scores = st.metrics.domain_scores(new.obs["domain"], new.obs[KEY])
    print(f"{SECTION}: adjusted Rand index {scores['ari']:.2f}, accuracy {scores['accuracy']:.2f}")

    figure, axes = plt.subplots(1, 6, figsize=(13, 2.2), layout="constrained")
    steps = new.obsm[f"{KEY}_steps"]
    names = new.obs[KEY].cat.categories
    for ax, step in zip(axes[2:5], STEPS, strict=True):
        new.obs["step"] = names[steps[:, step - 1]].astype("category").set_categories(names)
        draw(new, "step", ax, f"{SECTION}, new: step {step}")
    for ax, name in zip(axes[:2], ("S1", "S2"), strict=True):
        draw(annotated[annotated.obs["section"] == name].copy(), "domain", ax, f"{name}, annotated by you")
    st.pl.confidence(new, KEY, img=False, ax=axes[5], show=False)
    axes[5].set_title(f"{SECTION}: confidence", fontsize=11)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def draw(adata, key: str, ax, title: str) -> None:
    """Draw one map without legend."""
    adata.uns.pop(f"{key}_colors", None)
    st.pl.domains(adata, key, img=False, ax=ax, show=False)
    ax.set_title(title, fontsize=11)
    ax.set_xlabel("")
    if ax.get_legend() is not None:
        ax.get_legend().remove()


if __name__ == "__main__":
    main(sys.argv[1])
