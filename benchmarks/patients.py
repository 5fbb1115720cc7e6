"""Leave one patient out: expression of patient A's section from those of patient C, and the reverse.

    python benchmarks/patients.py --data ../shared/data/her2st --seeds 0 1 2

For A1 there is an overview, 2,000 pixels wide, with the tissue cut out on black; for C2 to C5 there are full images.
All are scaled to the resolution of the overview, so that only the patient differs. Methods, features and scores are
those of ``benchmarks/expression.py``. Rows that are already in the table are not computed again. The last table is an
upper bound: fifths of each section, predicted from the rest of the same section.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from expression import METHODS, SCORES, Fold, choose_panel, is_done, run, summarise
from PIL import Image
from sklearn.decomposition import PCA

import strecur as st
from strecur.models.linear import choose_penalty

PITCH_UM = 200.0  # between neighbouring spots of these arrays
PATCH_UM = 168.0  # 224 pixels of the full images of patient C
A1_SCALE = 2000 / 6930  # full width: where all spots lie on tissue and nuclei counts agree best with darkness
FOLDS = {"A": Fold(["C2", "C3", "C4", "C5"], [], ["A1"]), "C": Fold(["A1"], [], ["C2", "C3", "C4", "C5"])}


def pitch(section: ad.AnnData) -> float:
    """Return the distance in pixels between neighbours in a column of the array."""
    table = section.obs[["array_col", "array_row"]].assign(y=section.obsm["spatial"][:, 1])
    table = table.sort_values(["array_col", "array_row"])
    steps = table.groupby("array_col")[["array_row", "y"]].diff()
    return float(steps.loc[steps["array_row"] == 1, "y"].median())


def read_image(path: Path, scale: float, *, cut_out: bool) -> np.ndarray:
    """Read an image and scale it; the black background of cut-out tissue becomes white."""
    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(path).convert("RGB")
    if scale != 1:
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BOX)
    pixels = np.array(image)
    if cut_out:
        pixels[pixels.sum(axis=2) < 60] = 255
    return pixels


def embed(name: str, options: argparse.Namespace) -> ad.AnnData:
    """Read a section with the embeddings of its patches at the common resolution, which are stored in a folder."""
    cached = options.cache / f"{options.data.name}_overview_{name}.h5ad"
    if not cached.exists():
        a1, section = (ad.read_h5ad(options.data / f"{part}.h5ad") for part in ("A1", name))
        mpp = PITCH_UM / pitch(section)
        scale = A1_SCALE * mpp * pitch(a1) / PITCH_UM
        ending = "A1_masked_2000px.png" if name == "A1" else f"{name}.jpg"
        image = read_image(options.data / "images" / ending, 1 if name == "A1" else scale, cut_out=name == "A1")
        patches = {"um": PATCH_UM, "image_scale": scale}
        st.pp.embed_patches(section, image, encoder=options.encoder, mpp=mpp, views=8, patches=patches)
        options.cache.mkdir(parents=True, exist_ok=True)
        section.write_h5ad(cached)
    return ad.read_h5ad(cached)


def predict_fifths(section: ad.AnnData, genes: int | str) -> float:
    """Predict random fifths of a section by ridge regression on its other spots; return the PCC."""
    panel = choose_panel(section, genes)
    log_NG = np.log2(section[:, panel].X.toarray() + 1)
    components_NF = PCA(30, random_state=0).fit_transform(section.obsm["X_patch"])
    fifth_N = np.random.default_rng(0).permutation(section.n_obs) % 5
    _, predicted_NG = choose_penalty(components_NF, log_NG, fifth_N)
    return st.metrics.expression_scores(log_NG, predicted_NG)["pcc_300"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--genes", default=300)
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "universal"])
    parser.add_argument("--patients", nargs="+", default=list(FOLDS), help="patients to hold out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/patients.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    parts = {name: embed(name, options) for name in ("A1", "C2", "C3", "C4", "C5")}
    adata = ad.concat(parts, label="section", index_unique="-", join="inner", merge="same", uns_merge="first")
    st.pp.to_grid(adata, library_key="section")
    done = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for patient in options.patients:
        for seed in options.seeds:
            for method in options.methods:
                if is_done(done, {"test": patient, "method": method, "seed": seed}):
                    continue
                rows = pd.DataFrame(run(adata, FOLDS[patient], method, seed, options)).assign(test=patient)
                done = pd.concat([done, rows], ignore_index=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                done.to_csv(options.out, index=False)
                print(rows[["test", "method", "seed", *SCORES]].round(3).to_string(index=False), flush=True)
    for patient, rows in done.groupby("test"):
        print(f"patient {patient} held out\n{summarise(rows).to_string()}")
    known = {name: predict_fifths(adata[adata.obs["section"] == name].copy(), options.genes) for name in parts}
    print(f"PCC-300 of fifths of a section, from the rest of it\n{pd.Series(known).round(3).to_string()}")


if __name__ == "__main__":
    main()
