"""Leave one patient out: expression of patient A's section from those of patient C, and the reverse.

    python benchmarks/patients.py --data ../shared/data/her2st --seeds 0 1 2
    python benchmarks/patients.py --data ../shared/data/her2st --stain --patients A --out benchmarks/results/stain.csv
    python benchmarks/patients.py --data ../shared/data/her2st --intervals --methods linear trm --seeds 0
    python benchmarks/patients.py --data ../shared/data/her2st --features texture "texture@0.5 + texture + texture@2"

For A1 there is an overview, 2,000 pixels wide, with the tissue cut out on black; for C2 to C5 there are full images.
All are scaled to the resolution of the overview, so that only the patient differs. Methods, features and scores are
those of ``benchmarks/expression.py``. Rows that are already in the table are not computed again. The last table is an
upper bound: fifths of each section, predicted from the rest of the same section.

``--intervals`` reports novelty, and coverage and width of the intervals, of C5 (the same patient) and of A1, by models
of C2 to C4. ``--features`` compares sets of inputs by ridge regression, as
``benchmarks/representations.py`` does. Stains are normalised to those of C2 to C5 together.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from expression import METHODS, SCORES, Fold, choose_panel, compare_seeds, is_done, run, summarise
from PIL import Image
from representations import Input, compare, parse
from sklearn.decomposition import PCA

import strecur as st
from strecur.models.linear import choose_penalty

SECTIONS = ("A1", "C2", "C3", "C4", "C5")
COVERAGE = 0.9
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


def scale_of(name: str, section: ad.AnnData, options: argparse.Namespace) -> float:
    """Return the pixels of the image at the common resolution per unit of the coordinates."""
    if name == "A1":
        return A1_SCALE
    return A1_SCALE * pitch(ad.read_h5ad(options.data / "A1.h5ad")) / pitch(section)


def read_scaled(name: str, section: ad.AnnData, options: argparse.Namespace) -> np.ndarray:
    """Read the image of a section at the common resolution."""
    if name == "A1":
        return read_image(options.data / "images" / "A1_masked_2000px.png", 1, cut_out=True)
    return read_image(options.data / "images" / f"{name}.jpg", scale_of(name, section, options), cut_out=False)


def embed(name: str, chosen: Input, options: argparse.Namespace) -> ad.AnnData:
    """Read a section with the embeddings of its patches at the common resolution, which are stored in a folder."""
    cached = options.cache / chosen.folder / f"{options.data.name}_overview_{name}.h5ad"
    if not cached.exists():
        section = ad.read_h5ad(options.data / f"{name}.h5ad")
        image, mpp = read_scaled(name, section, options), PITCH_UM / pitch(section)
        patches = {"um": PATCH_UM * chosen.width, "image_scale": scale_of(name, section, options)}
        if chosen.stain:
            patches["stain_reference"] = fit_stains(options)
        st.pp.embed_patches(section, image, encoder=chosen.encoder, mpp=mpp, views=8, patches=patches)
        cached.parent.mkdir(parents=True, exist_ok=True)
        section.write_h5ad(cached)
    return ad.read_h5ad(cached)


def fit_stains(options: argparse.Namespace) -> str:
    """Fit the stains of C2 to C5 at the common resolution; return the file of the result."""
    path = options.cache / "stains_C.json"
    if not path.exists():
        parts = {name: ad.read_h5ad(options.data / f"{name}.h5ad") for name in FOLDS["A"].train}
        images = {name: read_scaled(name, section, options) for name, section in parts.items()}
        joined = ad.concat(parts, label="section", index_unique="-", join="inner")
        reference = st.pp.fit_stain_reference(joined, images, library_key="section")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(reference))
    return str(path)


def read_patients(chosen: Input, options: argparse.Namespace) -> ad.AnnData:
    """Read all sections with the embeddings of an input."""
    parts = {name: embed(name, chosen, options) for name in SECTIONS}
    adata = ad.concat(parts, label="section", index_unique="-", join="inner", merge="same", uns_merge="first")
    st.pp.to_grid(adata, library_key="section")
    return adata


def rate_intervals(adata: ad.AnnData, method: str, seed: int, options: argparse.Namespace) -> pd.DataFrame:
    """Rate novelty and the 90 % intervals of C5 and A1, by a model of C2 to C4.

    A linear model learns from all three; networks learn from C2 and C3 and are calibrated on C4.
    """
    training = ["C2", "C3", "C4"] if method == "linear" else ["C2", "C3"]
    train, calibrating, *tests = (
        adata[adata.obs["section"].isin(names)].copy() for names in (training, ["C4"], ["C5"], ["A1"])
    )
    model = st.tl.train_expression(train, genes=choose_panel(train, options.genes), architecture=method, rng=seed)
    if method != "linear":
        st.tl.calibrate_expression(calibrating, model)
    rows = {}
    for test in tests:
        st.tl.predict_expression(test, model, coverage=COVERAGE)
        known_N = np.asarray(test.X.sum(axis=1)).ravel() > 0
        error_NG = (test.obsm["trm_expression"] - model.measure(test))[known_N]
        half_NG = test.obsm["trm_expression_interval"][known_N]
        section = test.uns["trm_expression"]["sections"].iloc[0]
        rows[section.name] = {
            "novelty of the section": section["novelty"],
            "novel spots": section["novel"],
            "coverage": (np.abs(error_NG) <= half_NG).mean(),
            "coverage without offset": (np.abs(error_NG - error_NG.mean(axis=0)) <= half_NG).mean(),
            "width": 2 * half_NG.mean(),
            "mean error": np.abs(error_NG).mean(),
            "mean offset of a gene": np.abs(error_NG.mean(axis=0)).mean(),
        }
    return pd.DataFrame(rows).T.assign(method=method, seed=seed)


def predict_fifths(section: ad.AnnData, genes: int | str) -> dict[str, float]:
    """Predict random fifths of a section by ridge regression on its other spots; return the correlations."""
    panel = choose_panel(section, genes)
    log_NG = np.log2(section[:, panel].X.toarray() + 1)
    components_NF = PCA(30, random_state=0).fit_transform(section.obsm["X_patch"])
    fifth_N = np.random.default_rng(0).permutation(section.n_obs) % 5
    _, predicted_NG = choose_penalty(components_NF, log_NG, fifth_N)
    found = st.metrics.expression_scores(log_NG, predicted_NG)
    return {name: found[name] for name in ("pcc_300", "pcc_300_depth_normalised")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default="texture")
    parser.add_argument("--stain", action="store_true", help="normalise stains to those of C2 to C5")
    parser.add_argument("--genes", default=300)
    parser.add_argument("--methods", nargs="+", default=[name for name in METHODS if name != "universal"])
    parser.add_argument("--patients", nargs="+", default=list(FOLDS), help="patients to hold out")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--intervals", action="store_true", help="novelty and intervals of a section of each patient")
    parser.add_argument("--features", nargs="+", help="compare sets of inputs, such as 'texture@0.5 + texture'")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/results/embedded"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/patients.csv"))
    options = parser.parse_args()

    st.settings.progress = False
    if options.features:
        compare_inputs(options)
        return
    adata = read_patients(Input(options.encoder, stain=options.stain), options)
    if options.intervals:
        runs = product(options.methods, options.seeds)
        found = pd.concat([rate_intervals(adata, method, seed, options) for method, seed in runs])
        print(found.round(3).to_string())
        return
    compare_methods(adata, options)
    known = {name: predict_fifths(adata[adata.obs["section"] == name].copy(), options.genes) for name in SECTIONS}
    print(f"fifths of a section, from the rest of it\n{pd.DataFrame(known).T.round(3).to_string()}")


def compare_inputs(options: argparse.Namespace) -> None:
    """Predict each patient from the other by ridge regression on sets of inputs."""
    inputs = {chosen for features in options.features for chosen in parse(features)}
    embedded = {chosen: read_patients(chosen, options) for chosen in inputs}
    options.components, options.powers, options.plain = [100], [1.0], False
    for patient in options.patients:
        print(f"patient {patient} held out")
        compare(embedded, options, [(test, FOLDS[patient].train) for test in FOLDS[patient].test])


def compare_methods(adata: ad.AnnData, options: argparse.Namespace) -> None:
    """Predict each patient from the other by several methods."""
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
    print(compare_seeds(done).to_string())


if __name__ == "__main__":
    main()
