"""A whole slide from file to predicted expression: memory, seconds, and a figure to look at.

    python benchmarks/slide.py --data ../shared/data --out slide --side 40000

The slide is a pyramidal TIFF (JPEG tiles) of real breast tumour: the four full-resolution images of patient C of
HER2ST on white glass. The model is trained on the four sections themselves: this measures memory and time, not
accuracy. Peak memory is that of this process up to the last file written; model and slide are made by processes of
their own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import imagecodecs
import matplotlib.pyplot as plt
import numpy as np
import tifffile
from PIL import Image

import strecur as st

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

SECTIONS = ["C2", "C3", "C4", "C5"]
PITCH_UM = 200.0
TILE, STEP = 512, 16384
WHITE = 245
GENES = ["ERBB2", "GNAS", "COL1A1", "IGKC"]


def make_slide(path: Path, images: list[Path], side: int, mpp: float) -> None:
    """Write a pyramid of JPEG tiles: sections on white glass, each of which starts at a multiple of ``STEP`` pixels."""
    n_levels = int(np.log2(side / 1000)) + 1
    sections = [pyramid(image, n_levels) for image in images]
    options = {"tile": (TILE, TILE), "photometric": "rgb", "compression": "jpeg", "dtype": np.uint8}
    resolution = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(n_levels):
            role = {"subfiletype": 1} if level else {"subifds": n_levels - 1, **resolution}
            shape = (side >> level, side >> level, 3)
            file.write(tiles_of([levels[level] for levels in sections], level, shape), shape=shape, **role, **options)


def pyramid(path: Path, n_levels: int) -> list[np.ndarray]:
    """Read an image and shrink it by half again and again."""
    Image.MAX_IMAGE_PIXELS = None
    image = Image.open(path).convert("RGB")
    return [np.asarray(image.reduce(2**level)) for level in range(n_levels)]


def tiles_of(sections: list[np.ndarray], level: int, shape: tuple[int, int, int]) -> Iterator[bytes]:
    """Yield the encoded tiles of a level, row by row."""
    step = STEP >> level
    starts = [(i // 2 * step, i % 2 * step) for i in range(len(sections))]
    glass = np.full((TILE, TILE, 3), WHITE, dtype=np.uint8)
    white = encode(glass)
    for top in range(0, shape[0], TILE):
        for left in range(0, shape[1], TILE):
            parts = [
                section[top - y : top - y + TILE, left - x : left - x + TILE]
                for section, (y, x) in zip(sections, starts, strict=True)
                if y <= top < y + len(section) and x <= left < x + section.shape[1]
            ]
            if not parts:
                yield white
                continue
            tile = glass.copy()
            tile[: parts[0].shape[0], : parts[0].shape[1]] = parts[0]
            yield encode(tile)


def encode(tile: np.ndarray) -> bytes:
    return imagecodecs.jpeg8_encode(tile, level=85, colorspace="rgb", outcolorspace="rgb")


def train(options: argparse.Namespace) -> None:
    """Train on the four sections and store the model."""
    adata = st.datasets.her2st(SECTIONS)
    st.pp.to_grid(adata, library_key="section")
    st.pp.embed_patches(adata, encoder=options.encoder)
    model = st.tl.train_expression(adata, genes=300, extra_genes=GENES, training={"max_epochs": options.epochs})
    model.save(options.out / "model", overwrite=True)


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)
    print(f"{name:<22} {seconds[name]:>8} s   peak {peak_gb():.2f} GB", flush=True)


def peak_gb() -> float:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def run(options: argparse.Namespace, path: Path) -> ad.AnnData:
    """Take the slide from file to prediction, as in the documentation."""
    seconds: dict[str, float] = {}
    print(f"{'before':<22} {'':>8}     peak {peak_gb():.2f} GB")
    with timed("load_model", seconds):
        model = st.load_model(options.out / "model")
    with timed("tile_image", seconds):
        slide = st.pp.tile_image(path, pitch_um=PITCH_UM, layout="square")
    with timed("embed_patches", seconds):
        st.pp.embed_patches(slide, encoder=options.encoder)
    with timed("predict_expression", seconds):
        st.tl.predict_expression(slide, model)
    with timed("write h5ad", seconds):
        slide.write_h5ad(options.out / "slide.h5ad")
    with timed("write GeoJSON", seconds):
        st.get.write_expression(slide, options.out / "slide.geojson", genes=GENES)
    with timed("write SpatialData", seconds):
        st.get.spatialdata(slide).write(options.out / "slide.zarr", overwrite=True)
    print(json.dumps({"tiles": slide.n_obs, "peak_gb": round(peak_gb(), 2), **seconds}))
    return slide


def draw(slide: ad.AnnData, path: Path) -> None:
    st.pl.marker_panel(slide, GENES, show=False)
    plt.savefig(path, dpi=130, bbox_inches="tight")


def make(options: argparse.Namespace, path: Path) -> None:
    """Make the slide from the images of the training sections."""
    sections = st.datasets.her2st(SECTIONS)
    mpp = sections.uns["spatial"]["C2"]["scalefactors"]["microns_per_pixel"]
    make_slide(path, [options.data / "her2st" / "images" / f"{name}.jpg" for name in options.copies], options.side, mpp)
    print(f"{path}: {path.stat().st_size / 1e9:.2f} GB, {mpp:.3f} µm per pixel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with her2st/")
    parser.add_argument("--out", type=Path, default=Path("slide"))
    parser.add_argument("--side", type=int, default=40_000)
    parser.add_argument("--copies", nargs="+", default=SECTIONS, help="sections to place on the slide")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=["train", "make"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    st.settings.dataset_dir = options.data
    path = options.out / f"slide_{options.side}.tif"
    if options.only is not None:
        {"train": lambda: train(options), "make": lambda: make(options, path)}[options.only]()
        return
    for step, result in (("train", options.out / "model"), ("make", path)):
        if not result.exists():
            subprocess.run([sys.executable, *sys.argv, "--only", step], check=True)
    draw(run(options, path), options.out / "slide.png")


if __name__ == "__main__":
    main()
