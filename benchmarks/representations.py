"""Leave one section out: ridge regression on embeddings of H&E, by encoder, magnification, stain and spread.

    python benchmarks/representations.py --data ../shared/data/her2st --sections C2 C3 C4 C5
    python benchmarks/representations.py --data ../shared/data/mob --sections Rep8 Rep11 --patch-px 80
    python benchmarks/representations.py --data ../shared/data/mob_st2k --sections MOB1 MOB2 MOB3 --patch-px 36 \\
        --features texture "texture@0.5 + texture + texture@2" texture/stain

Sections are embedded once by each input: an encoder, followed by ``@2`` for patches twice as wide, and by ``/stain``
for stains normalised to those of the first section. Components are centred and scaled in each section, and then
multiplied by the spread they have over the training spots to some power: with 0 all components have the same spread,
with 1 (as in ``strecur.tl.train_expression``) they keep theirs. Of several inputs, the components of each are set side
by side; those of each input have the same total spread. Predictions are shrunk along the axes of expression, as those
of the package are, or not (``--plain``).
"""

from __future__ import annotations

import argparse
from copy import copy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pandas as pd
from expression import choose_panel, read_sections

import strecur as st
from strecur._anndata import read_section_data
from strecur.models.expression_task import held_out_groups
from strecur.models.features.spots import fit_image_features
from strecur.models.linear import fit_linear_expression, tune_ridge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCORES = ["pcc_300", "pcc_300_depth_normalised", "mse"]
NEIGHBOURS = (9, 25, 81)
DEFAULT = ["texture", "efficientnet-lite0", "texture + efficientnet-lite0"]


@dataclass(frozen=True)
class Input:
    """How patches are embedded: encoder, width of a patch relative to the usual one, and normalisation of stains."""

    encoder: str
    width: float = 1.0
    stain: bool = False

    @property
    def folder(self) -> str:
        """Folder of the embeddings."""
        return self.encoder + (f"@{self.width:g}" if self.width != 1 else "") + ("-stain" if self.stain else "")


def parse(features: str) -> list[Input]:
    """Read a set of inputs, such as ``"texture@0.5 + texture/stain"``."""
    inputs = []
    for text in features.split(" + "):
        name, _, ending = text.strip().partition("/")
        if ending not in ("", "stain"):
            raise SystemExit(f"{text!r}: expected encoder, encoder@width or encoder@width/stain")
        encoder, _, width = name.partition("@")
        inputs.append(Input(encoder, float(width or 1), ending == "stain"))
    return inputs


def read_input(chosen: Input, options: argparse.Namespace) -> ad.AnnData:
    """Embed the sections by an input."""
    own = copy(options)
    own.encoder, own.patch_px, own.cache = (
        chosen.encoder,
        options.patch_px * chosen.width,
        options.cache / chosen.folder,
    )
    if chosen.stain:
        first = options.sections[0]
        section, image = ad.read_h5ad(options.data / f"{first}.h5ad"), options.data / "images" / f"{first}.jpg"
        own.stain_reference = st.pp.fit_stain_reference(section, str(image))
    return read_sections(own)


def columns(adata: ad.AnnData, train: Sequence[str], n_components: int, power: float) -> np.ndarray:
    """Return the features of all spots, which are fitted on the training sections."""
    data = read_section_data(adata, None, use_rep="X_patch")
    options = st.Features(n_components=n_components, neighbours=NEIGHBOURS)
    features = fit_image_features(data, train, "X_patch", options, rng=0)
    return replace(features, weight_P=features.weight_P**power).inputs(data).averaged_NF


def score(
    parts: Sequence[ad.AnnData], train: Sequence[str], test: str, n_components: int, power: float, *, shrink: bool
) -> dict[str, float]:
    """Fit the features of each input and a ridge regression on some sections, and score another one."""
    section_N = parts[0].obs["section"].to_numpy()
    seen_N, held_out_N = np.isin(section_N, train), section_N == test
    features_NF = np.hstack([columns(part, train, n_components, power) for part in parts])
    genes = choose_panel(parts[0][seen_N].copy(), 300)
    log_NG = np.log2(parts[0][:, genes].X.toarray() + 1)
    groups_N = held_out_groups(read_section_data(parts[0], None, use_rep="X_patch"), train)[seen_N]
    taught = features_NF[seen_N], log_NG[seen_N]
    ridge = tune_ridge(*taught, groups_N)
    model = ridge.fit(*taught) if shrink else fit_linear_expression(*taught, ridge.penalty)
    found = st.metrics.expression_scores(log_NG[held_out_N], model.predict(features_NF[held_out_N]))
    return {name: found[name] for name in SCORES}


def compare(
    embedded: Mapping[Input, ad.AnnData], options: argparse.Namespace, folds: Sequence[tuple[str, Sequence[str]]]
) -> None:
    """Print the scores of every set of inputs: means over the held-out sections, and the PCC-300 of each."""
    for features in options.features:
        parts = [embedded[chosen] for chosen in parse(features)]
        for n_components, power in product(options.components, options.powers):
            rows = pd.DataFrame(
                [score(parts, train, test, n_components, power, shrink=not options.plain) for test, train in folds],
                index=[test for test, _ in folds],
            )
            means, each = rows.mean().round(3).to_dict(), rows["pcc_300"].round(3).to_dict()
            print(features, n_components, power, means, each, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", required=True, help="each is held out in turn")
    parser.add_argument("--features", nargs="+", default=DEFAULT, help="sets of inputs, joined by ' + '")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--components", nargs="+", type=int, default=[30, 100])
    parser.add_argument("--powers", nargs="+", type=float, default=[0.0, 0.5, 1.0])
    parser.add_argument("--plain", action="store_true", help="ridge regression gene by gene, without shrunk axes")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    options = parser.parse_args()

    st.settings.progress = False
    inputs = {chosen for features in options.features for chosen in parse(features)}
    embedded = {chosen: read_input(chosen, options) for chosen in inputs}
    folds = [(test, [name for name in options.sections if name != test]) for test in options.sections]
    compare(embedded, options, folds)


if __name__ == "__main__":
    main()
