"""Sections as the readers of scanpy and squidpy return them, from a folder as Space Ranger writes it."""

from __future__ import annotations

import json
import warnings

import h5py
import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image
from scipy import sparse

from strecur import pl, settings
from strecur.pp import Encoder, embed_patches, to_grid

mpl.use("Agg")
PITCH = 40.0
FACTOR = 0.25
MEANS = Encoder("means", lambda patches: patches.mean(axis=(1, 2)), 3, size=8)


def sites() -> tuple[np.ndarray, np.ndarray]:
    row, col = (index.ravel() for index in np.indices((10, 16)))
    kept = (row + col) % 2 == 0
    return row[kept], col[kept]


def pixels() -> np.ndarray:
    """Return the places of the spots, (x, y), in pixels of the full image."""
    row, col = sites()
    return np.rint(np.column_stack([(col + 3) * PITCH / 2, (row + 3) * PITCH * np.sqrt(3) / 2])).astype(int)


def slide() -> np.ndarray:
    """Draw an image whose red grows with x and green with y."""
    width, height = pixels().max(axis=0) + 60
    y, x = np.indices((height // 4 * 4, width // 4 * 4))
    return np.stack([40 + 180 * x / width, 40 + 180 * y / height, np.full(x.shape, 120)], axis=-1).astype(np.uint8)


def write_counts(path, barcodes: list[str]) -> None:
    counts = sparse.csc_matrix(np.random.default_rng(0).poisson(1.0, (5, len(barcodes))).astype(np.int32))
    genes = [f"g{i}".encode() for i in range(5)]
    with h5py.File(path, "w") as file:
        matrix, features = file.create_group("matrix"), file.create_group("matrix/features")
        matrix["barcodes"] = [name.encode() for name in barcodes]
        matrix["shape"] = counts.shape
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(counts, name)
        for name, values in (("id", genes), ("name", genes), ("feature_type", [b"Gene Expression"] * 5)):
            features[name] = values
        features["genome"] = [b"GRCh38"] * 5
        file.attrs["library_ids"] = np.array([b"V1"])
        file.attrs["chemistry_description"] = b"Spatial 3' v1"
        file.attrs["software_version"] = b"spaceranger-2.0"


@pytest.fixture
def folder(tmp_path):
    """Write the output of Space Ranger, with the full image beside it."""
    row, col = sites()
    barcodes = [f"AAAC{i:04d}-1" for i in range(len(row))]
    where = tmp_path / "outs"
    (where / "spatial").mkdir(parents=True)
    write_counts(where / "filtered_feature_bc_matrix.h5", barcodes)
    lines = [f"{name},1,{r},{c},{y},{x}" for name, r, c, (x, y) in zip(barcodes, row, col, pixels(), strict=True)]
    (where / "spatial" / "tissue_positions_list.csv").write_text("\n".join(lines) + "\n")
    full = Image.fromarray(slide())
    for size, factor in (("hires", FACTOR), ("lowres", FACTOR / 2)):
        small = full.resize((int(full.width * factor), int(full.height * factor)), Image.Resampling.BOX)
        small.save(where / "spatial" / f"tissue_{size}_image.png")
    factors = {
        "spot_diameter_fullres": 0.65 * PITCH,
        "fiducial_diameter_fullres": 1.0,
        "tissue_hires_scalef": FACTOR,
        "tissue_lowres_scalef": FACTOR / 2,
    }
    (where / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    full.save(tmp_path / "full.tif")
    return where


def by_scanpy(folder, source):
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sc.read_visium(folder, source_image_path=source)


def by_squidpy(folder, source):
    import squidpy as sq

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sq.read.visium(folder, source_image_path=source)


READERS = {"scanpy": by_scanpy, "squidpy": by_squidpy}


@pytest.mark.parametrize("source", ["full", "half", None])
@pytest.mark.parametrize("reader", READERS)
def test_patches_lie_at_the_spots(folder, reader, source, caplog):
    """With the full image, with a smaller copy that is recorded as the full one, and with the downscaled images."""
    path = folder.parent / "full.tif"
    if source == "half":
        image = Image.open(path)
        path = folder.parent / "half.tif"
        image.resize((image.width // 2, image.height // 2)).save(path)
    adata = READERS[reader](folder, None if source is None else path)
    to_grid(adata)
    assert adata.uns["grid"]["layout"] == "hex"
    with settings.override(progress=False):
        embed_patches(adata, encoder=MEANS, patches={"um": 60})
    row = adata.uns["X_patch"]["sections"].loc["section"]
    assert row["mpp"] == pytest.approx(100 / PITCH, rel=0.01)
    assert row["scale"] == pytest.approx(1 if source == "full" else FACTOR)
    x, y = pixels().T
    np.testing.assert_allclose(adata.obsm["X_patch"], slide()[y, x], atol=3)
    assert ("half.tif has" in caplog.text) == (source == "half")


@pytest.mark.parametrize("reader", READERS)
def test_plots_show_the_image_below_the_spots(folder, reader):
    adata = READERS[reader](folder, None)
    to_grid(adata)
    adata.obs["domain"] = np.where(adata.obs["array_row"] < 5, "a", "b")
    ax = pl.domains(adata, "domain")
    (image,) = ax.images
    left, _, _, top = image.get_extent()
    shown = np.asarray(image.get_array())
    full = slide()
    for x, y in (pixels() * FACTOR).astype(int)[::7]:
        expected = full[int(y / FACTOR), int(x / FACTOR)]
        np.testing.assert_allclose(shown[int(y - top - 0.5), int(x - left - 0.5)].astype(float), expected, atol=4)
    mpl.pyplot.close(ax.figure)
