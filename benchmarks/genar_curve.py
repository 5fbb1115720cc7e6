"""GenAR as published, trained for a limited time: its learning curve, and its scores on a section held out.

    python benchmarks/genar_curve.py --data ../shared/data/her2st --sections C2 C3 C4 C5 --test C3 --minutes 15

The network, its loss and its optimisation are those of ``GenARConfig.paper()``, except for the spots per optimizer step
(``--spots``, 256 in the paper), which is what a CPU can afford. The loss is compared with that of the frequencies of
counts in the training sections, which know no spot. In training a scale sees the true tokens of the coarser ones, so
that a low loss does not mean good predictions; these are scored on the section held out, beside ridge regression on
single patches (features of GenAR have the default means over neighbours).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from expression import choose_panel, read_sections
from genar import score

import strecur as st
from strecur.nn import GenARConfig
from strecur.nn.genar.targets import clip_counts, log_shares

if TYPE_CHECKING:
    import anndata as ad

SHOWN = ["pcc_10", "pcc_50", "pcc_200", "mse", "rvd"]


@torch.no_grad()
def loss_of_frequencies(train: ad.AnnData, genes: list[str], model: Any) -> float:
    """Return the loss of a network that predicts the frequencies of the training counts at every scale and spot."""
    genar, order_G = model.network.head.genar, model.network.head.order_G.numpy()
    counts_NG = torch.from_numpy(train[:, genes].X.toarray())[:, order_G].float()
    clipped_NG, _ = clip_counts(counts_NG, genar.config.n_tokens)
    losses = []
    for n_groups in genar.config.group_counts:
        shares_PV = log_shares(counts_NG, n_groups, genar.config.n_tokens)
        parts = [genar.scale_loss(shares_PV.expand(len(some), -1, -1), some) for some in clipped_NG.split(64)]
        losses.append(torch.stack(parts).mean())
    return float(torch.stack(losses).mean())


def train_network(train: ad.AnnData, genes: list[str], options: argparse.Namespace) -> Any:
    """Train GenAR as published, except for the number of spots per optimizer step and the time."""
    return st.tl.train_expression(
        train,
        genes=genes,
        architecture=GenARConfig.paper(spots_per_step=options.spots),
        training={"max_minutes": options.minutes},
        rng=options.seed,
    )


def scores_of(train: ad.AnnData, test: ad.AnnData, model: Any) -> pd.DataFrame:
    """Score the mean of the network, and ridge regression on single patches."""
    counts, known = (part[:, model.genes].X.toarray() for part in (test, train))
    st.tl.predict_expression(test, model)
    ridge = st.tl.train_expression(train, genes=model.genes, architecture="linear", features={"neighbours": ()})
    found = {"GenAR, as published": test.obsm["trm_expression_log2"]}
    st.tl.predict_expression(test, ridge)
    found["ridge"] = test.obsm["trm_expression"]
    return pd.DataFrame({name: score(counts, values, known) for name, values in found.items()}).T[SHOWN]


def by_tenth(curve: pd.DataFrame) -> pd.DataFrame:
    """Average the loss over tenths of the training, each named by its last optimizer step."""
    rows = [curve.iloc[part] for part in np.array_split(np.arange(len(curve)), min(10, len(curve)))]
    shown = [{"optimizer_steps": r["optimizer_steps"].max(), "train_loss": r["train_loss"].mean()} for r in rows]
    return pd.DataFrame(shown).assign(frequencies=curve["loss_of_frequencies"].iloc[0])


def draw(curve: pd.DataFrame, path: Path) -> None:
    """Plot the loss of every pass over the sections, and that of the frequencies."""
    figure, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
    ax.plot(curve["optimizer_steps"], curve["train_loss"], ".-", color="tab:blue", label="mean of a pass")
    ax.axhline(curve["loss_of_frequencies"].iloc[0], color="grey", ls="--", label="frequencies of counts")
    ax.set(xlabel="optimizer steps", ylabel="training loss", title="GenAR, as published")
    ax.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", required=True)
    parser.add_argument("--test", required=True, help="section to hold out")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--spots", type=int, default=8, help="spots per optimizer step")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/genar_curve.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    adata = read_sections(options)
    inside = adata.obs["section"] == options.test
    train, test = adata[~inside].copy(), adata[inside].copy()
    genes, start = choose_panel(train, options.genes), time.process_time()
    model = train_network(train, genes, options)
    seconds = time.process_time() - start
    n_sections = train.obs["section"].nunique()
    curve = model.history.assign(
        optimizer_steps=model.history["epoch"] * n_sections,
        loss_of_frequencies=loss_of_frequencies(train, genes, model),
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    curve.to_csv(options.out, index=False)
    draw(curve, options.out.with_suffix(".png"))
    n_parameters = sum(p.numel() for p in model.network.parameters())
    print(f"{n_parameters:,} parameters, {curve['optimizer_steps'].max()} optimizer steps, {seconds:.0f} CPU seconds")
    print(by_tenth(curve).round(1).to_string(index=False))
    print(scores_of(train, test, model).round(3).to_string(), flush=True)


if __name__ == "__main__":
    main()
