"""A folder of the form of HEST: counts, patches matched by barcode, metadata."""

from __future__ import annotations

import json
import logging

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import strecur as st

GENES = ["A", "B", "C", "D"]


def colour(patches: np.ndarray) -> np.ndarray:
    return patches.mean(axis=(1, 2))


def write_section(folder, name: str, *, genes=GENES, side: int = 224, seed: int = 0, barcode: str = "barcode") -> None:
    """Write a section of 4 × 5 spots whose patches have one colour each, in another order than the spots."""
    rng = np.random.default_rng(seed)
    row, col = np.divmod(np.arange(20), 5)
    spots = [f"{r}x{c}" for r, c in zip(row, col, strict=True)]
    scale = {"tissue_downscaled_fullres_scalef": 0.1, "spot_diameter_fullres": 200.0}
    images = {"downscaled_fullres": rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)}
    adata = ad.AnnData(
        sparse.csr_matrix(rng.poisson(3, (20, len(genes))).astype(np.float32)),
        obs=pd.DataFrame({"array_row": row, "array_col": col, "in_tissue": 1}, index=spots),
        var=pd.DataFrame({"n": 1}, index=genes),
        obsm={"spatial": np.column_stack([400 * col + 100, 400 * row + 100]).astype(np.int64)},
        uns={"spatial": {"ST": {"images": images, "scalefactors": scale}}},
    )
    for part in ("st", "patches", "metadata"):
        (folder / part).mkdir(exist_ok=True)
    adata.write_h5ad(folder / "st" / f"{name}.h5ad")
    order = rng.permutation(20)[:18]  # two spots lie outside the tissue
    colours = (10 * np.arange(20)[:, None] + [0, 1, 2]).astype(np.uint8)
    with h5py.File(folder / "patches" / f"{name}.h5", "w") as file:
        file["img"] = np.broadcast_to(colours[order][:, None, None], (18, side, side, 3))
        file["coords"] = adata.obsm["spatial"][order]
        file[barcode] = np.array([[spots[i].encode()] for i in order], dtype=object)
    about = {"id": name, "patient": f"P{name[0]}", "pixel_size_um_estimated": 0.7, "organ": "Breast"}
    (folder / "metadata" / f"{name}.json").write_text(json.dumps(about))


@pytest.fixture
def folder(tmp_path):
    write_section(tmp_path, "A1", genes=[*GENES, "E"], seed=1)
    write_section(tmp_path, "B1", genes=["C", "A", "D", "B"], seed=2, barcode="barcodes")
    return tmp_path


def test_counts_places_and_metadata_are_those_of_the_files(folder):
    adata = st.pp.read_hest(folder)
    assert list(adata.obs["section"].cat.categories) == ["A1", "B1"]
    assert set(adata.var_names) == set(GENES)  # what both have
    for name in ("A1", "B1"):
        own = adata[adata.obs["section"] == name]
        file = ad.read_h5ad(folder / "st" / f"{name}.h5ad")
        np.testing.assert_array_equal(own.X.toarray(), file[:, own.var_names].X.toarray())
        np.testing.assert_array_equal(own.obsm["spatial"], file.obsm["spatial"])
        assert list(own.obs["array_row"]) == list(file.obs["array_row"])
        assert set(own.obs["patient"]) == {f"P{name[0]}"}
        entry = adata.uns["spatial"][name]
        assert entry["scalefactors"] == {
            "spot_diameter_fullres": 200.0,
            "tissue_hires_scalef": 0.1,
            "microns_per_pixel": 0.7,
        }
        assert entry["images"]["hires"].shape == (40, 50, 3)
    assert "X_patch" not in adata.obsm
    st.pp.to_grid(adata, library_key="section")
    assert adata.uns["grid"]["layout"] == "square"


def test_patches_belong_to_spots_by_barcode(folder, caplog):
    caplog.set_level(logging.INFO, "strecur")
    adata = st.pp.read_hest(folder, encoder=colour, batch_size=5)
    found = adata.obsm["X_patch"]
    missing = np.isnan(found[:, 0])
    assert missing.sum() == 4
    expected = 10 * (np.arange(40) % 20)[:, None] + [0, 1, 2]
    np.testing.assert_allclose(found[~missing], expected[~missing], atol=1e-3)
    assert "2 of 20 spots of A1 have no patch" in caplog.text
    record = adata.uns["X_patch"]
    assert (record["width"], record["views"]) == (3, 1)
    assert record["sections"].loc["B1", "patch_um"] == 112
    assert record["sections"].loc["B1", "pixel_um"] == 0.5


def test_sections_are_chosen_in_the_order_asked_for(folder):
    adata = st.pp.read_hest(folder, ["B1", "A1"])
    assert list(adata.obs["section"].cat.categories) == ["B1", "A1"]
    assert adata.obs["section"].iloc[0] == "B1"
    assert set(st.pp.read_hest(folder, "A1").var_names) == {*GENES, "E"}


def test_patches_are_resized_to_the_encoder(tmp_path):
    write_section(tmp_path, "A1", side=64)
    seen = []

    def encode(patches: np.ndarray) -> np.ndarray:
        seen.append(patches.shape)
        return colour(patches)

    encoder = st.pp.Encoder(name="small", encode=encode, width=3, size=32)
    adata = st.pp.read_hest(tmp_path, encoder=encoder, batch_size=18)
    assert (18, 32, 32, 3) in seen
    known = ~np.isnan(adata.obsm["X_patch"][:, 0])
    np.testing.assert_allclose(adata.obsm["X_patch"][known, 0], 10 * np.flatnonzero(known), atol=1)
    assert adata.uns["X_patch"]["sections"].loc["A1", "pixel_um"] == 1.0


def test_what_is_read_can_be_stored_trained_on_and_predicted(folder, tmp_path):
    adata = st.pp.read_hest(folder, encoder=colour)
    st.pp.to_grid(adata, library_key="section")
    adata.write_h5ad(tmp_path / "both.h5ad")
    adata = ad.read_h5ad(tmp_path / "both.h5ad")
    features = {"neighbours": (5,), "n_components": 2}
    model = st.tl.train_expression(adata, genes=GENES, architecture="linear", features=features)
    st.tl.predict_expression(adata, model)
    assert np.isnan(adata.obsm["trm_expression"][:, 0]).sum() == 4


def test_what_is_missing_is_named(folder):
    with pytest.raises(FileNotFoundError, match=r"\['A2'\].*there are \['A1', 'B1'\]"):
        st.pp.read_hest(folder, ["A2"])
    with pytest.raises(FileNotFoundError, match="holds 'st' and 'patches'"):
        st.pp.read_hest(folder / "st")
    with pytest.raises(FileNotFoundError, match="sections is empty"):
        st.pp.read_hest(folder, [])
    (folder / "patches" / "B1.h5").unlink()
    with pytest.raises(FileNotFoundError, match="download the patches"):
        st.pp.read_hest(folder, encoder=colour)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.__delitem__("img"), "pass the patches of HEST"),
        (lambda f: replaced(f, "barcode", [[b"0x0"]] * 18), "several patches of the spots"),
        (lambda f: replaced(f, "barcode", [[b"%d" % i] for i in range(18)]), "no barcode of"),
        (lambda f: replaced(f, "barcode", [[b"0x0"]]), "18 patches and 1 barcodes"),
    ],
)
def test_patches_that_do_not_fit_are_refused(folder, change, said):
    with h5py.File(folder / "patches" / "A1.h5", "a") as file:
        change(file)
    with pytest.raises(ValueError, match=said):
        st.pp.read_hest(folder, encoder=colour)


def replaced(file, name: str, values: list) -> None:
    del file[name]
    file[name] = np.array(values, dtype=object)


def test_sections_without_a_common_gene_are_refused(folder):
    write_section(folder, "C1", genes=["X", "Y"])
    with pytest.raises(ValueError, match="no gene in common"):
        st.pp.read_hest(folder)


def test_damaged_files_are_named(folder):
    (folder / "st" / "A1.h5ad").write_bytes(b"no hdf5")
    with pytest.raises(OSError, match=r"A1\.h5ad is damaged"):
        st.pp.read_hest(folder)
