"""What GenAR predicts genes from: its condition, or the tokens of coarser scales.

    python benchmarks/genar_context.py --data ../shared/data/her2st --sections C2 C3 C4 C5 --test C3

trains GenAR without a linear model in the logits, and predicts the section held out three times: with the tokens that
the network predicts at coarser scales (as it does for a new section), with the true ones (as in its training), and
with the true ones beside the conditions of other spots of the section. If the last two are alike, the network does not
use the condition. Prints the correlation of genes, PCC-200, and the loss of the last scale beside that of the
frequencies of counts in training, which know no spot. Rows that are in the table are not computed again.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from expression import choose_panel, is_done, read_sections

import strecur as st
from strecur._anndata import read_section_data
from strecur.engine import predict
from strecur.metrics import pcc_per_gene, pcc_top
from strecur.models.base import own_fabric
from strecur.models.sections import engine_sections
from strecur.nn import GenARConfig
from strecur.nn.genar.model import GenAR, most_probable
from strecur.nn.genar.targets import clip_counts, expected_log2, log_shares, nearest_token, pool
from strecur.options import Inference

if TYPE_CHECKING:
    import anndata as ad
    from torch import Tensor

ALONE = GenARConfig(linear_start=False)
ROWS: dict[str, tuple[GenARConfig, dict[str, Any]]] = {
    "teacher forcing": (ALONE, {}),
    "teacher forcing, learning rate 1e-3": (ALONE, {"learning_rate": 1e-3}),
    "teacher forcing, 24 spots per step": (GenARConfig(linear_start=False, spots_per_step=24), {}),
    "own tokens": (GenARConfig(linear_start=False, teacher_forcing=False), {}),
    "own tokens, 24 spots per step": (
        GenARConfig(linear_start=False, teacher_forcing=False, spots_per_step=24),
        {},
    ),
    "one scale": (GenARConfig(linear_start=False, scales="single"), {}),
    "one scale, 24 spots per step": (GenARConfig(linear_start=False, scales="single", spots_per_step=24), {}),
}
SCORES = ["own_tokens", "true_tokens", "other_conditions", "loss", "loss_of_frequencies"]


def conditions(adata: ad.AnnData, model: Any) -> Tensor:
    """Return the condition of every spot of one section, averaged over its views as in a prediction."""
    data = read_section_data(adata, None, use_rep=model.features.use_rep)
    sections = engine_sections(data, model.features.inputs(data))
    (answer,) = predict(model.network, sections, Inference(depth=1), fabric=own_fabric(), progress=False)
    return model.network.head.normalise(torch.from_numpy(answer.restarts[0].output_DN[-1]))


def from_truth(genar: GenAR, condition_NC: Tensor, counts_NG: Tensor) -> Tensor:
    """Return the logits of genes given the true tokens of coarser scales."""
    return genar.run(condition_NC, lambda logits: nearest_token(pool(counts_NG, logits.shape[1])))[-1]


@torch.no_grad()
def compare(model: Any, train: ad.AnnData, test: ad.AnnData, genes: list[str]) -> dict[str, float]:
    """Predict one section from different coarser tokens and conditions."""
    head = model.network.head
    genar, order_G = head.genar, head.order_G.numpy()
    counts, known = (torch.from_numpy(part[:, genes].X.toarray())[:, order_G].float() for part in (test, train))
    clipped, _ = clip_counts(counts, genar.config.n_tokens)
    condition_NC = conditions(test, model)
    others = torch.randperm(len(condition_NC), generator=torch.Generator().manual_seed(0))
    logits = {
        "own_tokens": genar.run(condition_NC, most_probable)[-1],
        "true_tokens": from_truth(genar, condition_NC, clipped),
        "other_conditions": from_truth(genar, condition_NC[others], clipped),
    }
    truth_NG = torch.log2(counts + 1).numpy()
    found = {name: pcc_top(pcc_per_gene(truth_NG, expected_log2(part).numpy())) for name, part in logits.items()}
    shares_GV = log_shares(known, len(genes), genar.config.n_tokens)
    found["loss"] = float(genar.scale_loss(logits["own_tokens"], clipped))
    found["loss_of_frequencies"] = float(genar.scale_loss(shares_GV.expand(len(counts), -1, -1), clipped))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", required=True)
    parser.add_argument("--test", required=True, help="section to hold out")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--genes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/genar_context.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    adata = read_sections(options)
    inside = adata.obs["section"] == options.test
    train, test = adata[~inside].copy(), adata[inside].copy()
    genes = choose_panel(train, options.genes)
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for name in options.rows:
        setting = {"data": options.data.name, "test": options.test, "row": name, "seed": options.seed}
        if is_done(done, setting):
            continue
        config, training = ROWS[name]
        model = st.tl.train_expression(train, genes=genes, architecture=config, training=training, rng=options.seed)
        found = {**setting, **compare(model, train, test, genes), "train_loss": model.history["train_loss"].iloc[-1]}
        done = pd.concat([done, pd.DataFrame([found])], ignore_index=True)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        done.to_csv(options.out, index=False)
        print(pd.Series(found).to_frame().T.to_string(index=False), flush=True)
    print(done.set_index("row")[SCORES].round(3).to_string())


if __name__ == "__main__":
    main()
