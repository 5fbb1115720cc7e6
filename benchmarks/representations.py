"""Leave one section out: ridge regression on embeddings of H&E, by encoder, number of components and their spread.

    python benchmarks/representations.py --data ../shared/data/her2st --sections C2 C3 C4 C5
    python benchmarks/representations.py --data ../shared/data/mob --sections Rep8 Rep11 --patch-px 80
    python benchmarks/representations.py --data ../shared/data/mob_st2k --sections MOB1 MOB2 MOB3 --patch-px 36

Sections are embedded once by each encoder. Components are centred and scaled in each section, and then multiplied by
the spread they have over the training spots to some power: with 0 all components have the same spread, with 1 (as in
``strecur.tl.train_expression``) they keep theirs. Of several encoders, the components of each are set side by side.
"""

from __future__ import annotations

import argparse
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from expression import choose_panel, read_sections

import strecur as st
from strecur._anndata import read_section_data
from strecur.models.expression_task import held_out_groups
from strecur.models.features.spots import fit_image_features
from strecur.models.linear import choose_penalty, fit_linear_expression

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad

SCORES = ["pcc_300", "pcc_300_depth_normalised", "mse"]
NEIGHBOURS = (9, 25, 81)


def columns(adata: ad.AnnData, train: Sequence[str], n_components: int, power: float) -> np.ndarray:
    """Return the features of all spots, which are fitted on the training sections."""
    data = read_section_data(adata, None, use_rep="X_patch")
    options = st.Features(n_components=n_components, neighbours=NEIGHBOURS)
    features = fit_image_features(data, train, "X_patch", options, rng=0)
    return replace(features, weight_P=features.weight_P**power).inputs(data).averaged_NF


def score(parts: Sequence[ad.AnnData], test: str, n_components: int, power: float) -> dict[str, float]:
    """Fit the features of each encoder and a ridge regression on all sections but one, and score that one."""
    section_N = parts[0].obs["section"].to_numpy()
    seen_N, train = section_N != test, [name for name in np.unique(section_N) if name != test]
    features_NF = np.hstack([columns(part, train, n_components, power) for part in parts])
    genes = choose_panel(parts[0][seen_N].copy(), 300)
    log_NG = np.log2(parts[0][:, genes].X.toarray() + 1)
    groups_N = held_out_groups(read_section_data(parts[0], None, use_rep="X_patch"), train)
    penalty, _ = choose_penalty(features_NF[seen_N], log_NG[seen_N], groups_N[seen_N])
    model = fit_linear_expression(features_NF[seen_N], log_NG[seen_N], penalty)
    found = st.metrics.expression_scores(log_NG[~seen_N], model.predict(features_NF[~seen_N]))
    return {name: found[name] for name in SCORES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", required=True, help="each is held out in turn")
    parser.add_argument("--encoders", nargs="+", default=["texture", "efficientnet-lite0"])
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--components", nargs="+", type=int, default=[30, 100])
    parser.add_argument("--powers", nargs="+", type=float, default=[0.0, 0.5, 1.0])
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    options = parser.parse_args()

    st.settings.progress = False
    embedded = {}
    for encoder in options.encoders:
        own = copy(options)
        own.encoder, own.cache = encoder, options.cache / encoder
        embedded[encoder] = read_sections(own)
    chosen = [[encoder] for encoder in options.encoders]
    chosen += [options.encoders] if len(options.encoders) > 1 else []
    for encoders in chosen:
        for n_components in options.components:
            for power in options.powers:
                parts = [embedded[encoder] for encoder in encoders]
                rows = pd.DataFrame([score(parts, test, n_components, power) for test in options.sections])
                print(" + ".join(encoders), n_components, power, rows.mean().round(3).to_dict(), flush=True)


if __name__ == "__main__":
    main()
