from __future__ import annotations

import json
import logging
import re
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat, read_h5ad, read_zarr
from PIL import Image

from strecur._geometry import COMPOSE, NAMES, transform_coords, transform_patch
from strecur._settings import settings
from strecur.pp import Encoder, Patches, embed_patches, fit_stain_reference, to_grid
from strecur.pp.image.cutting import cut
from strecur.pp.image.decoding import open_image

SIDE = 8
N_ROWS, N_COLS = 5, 7
IMAGE = np.random.default_rng(0).integers(0, 256, (N_ROWS * SIDE, N_COLS * SIDE, 3), dtype=np.uint8)
PIXELS = Encoder("pixels", lambda patches: patches.reshape(len(patches), -1), SIDE * SIDE * 3, size=SIDE)
MEANS = Encoder("means", lambda patches: patches.mean(axis=(1, 2)), 3, size=SIDE)


def lattice(n_rows: int = N_ROWS, n_cols: int = N_COLS) -> tuple[np.ndarray, np.ndarray]:
    row, col = np.indices((n_rows, n_cols))
    return row.ravel(), col.ravel()


def spots(row: np.ndarray, col: np.ndarray, side: float = SIDE, **obs) -> AnnData:
    """Return spots at the centres of squares of an image, (x, y) in its pixels."""
    xy = np.column_stack([(col + 0.5) * side, (row + 0.5) * side])
    frame = pd.DataFrame(obs, index=[f"spot{i}" for i in range(len(xy))])
    return AnnData(np.ones((len(xy), 2), dtype=np.float32), obs=frame, obsm={"spatial": xy})


def two_sections() -> AnnData:
    adata = spots(*lattice())
    adata.obs["section"] = pd.Categorical(np.where(np.arange(adata.n_obs) % 3, "A", "B"))
    return adata


@pytest.fixture(autouse=True)
def silent_on_the_cpu():
    with settings.override(progress=False, accelerator="cpu"):
        yield


def embed(adata: object, image: object = IMAGE, **options) -> AnnData | None:
    """Embed patches of one square each; options of patches are given by their names."""
    patches = {name: options.pop(name) for name in [*options] if name in {f.name for f in fields(Patches)}}
    return embed_patches(adata, image, **{"encoder": PIXELS, "patches": {"px": SIDE, **patches}, **options})


def tiles(image: np.ndarray = IMAGE) -> np.ndarray:
    """Return all squares of an image, row by row, as vectors."""
    rows, cols = (n // SIDE for n in image.shape[:2])
    return image.reshape(rows, SIDE, cols, SIDE, 3).swapaxes(1, 2).reshape(rows * cols, -1).astype(np.float32)


def contents(adata: AnnData) -> str:
    """Return all that an AnnData holds, to notice changes."""
    parts = {**{f"obs {k}": adata.obs[k] for k in adata.obs}, **{f"obsm {k}": v for k, v in adata.obsm.items()}}
    parts |= {"X": adata.X, "uns": adata.uns, "names": adata.obs_names}
    with np.printoptions(threshold=10**6):
        return "\n".join(f"{k}: {v!s}" for k, v in sorted(parts.items()))


class Counting:
    """An encoder that counts the patches it has seen, and may be stopped by the user."""

    def __init__(self, stop_after: float = np.inf) -> None:
        self.seen, self.stop_after = 0, stop_after

    def __call__(self, patches: np.ndarray) -> np.ndarray:
        if self.seen > self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(patches)
        return patches.mean(axis=(1, 2))


# What is cut


def test_every_spot_has_the_patch_around_it():
    adata = spots(*lattice())
    assert embed(adata) is None
    np.testing.assert_array_equal(adata.obsm["X_patch"], tiles())
    assert adata.obsm["X_patch"].dtype == np.float32
    assert "X_patch_d4" not in adata.obsm


def test_order_of_spots_is_kept():
    order = np.random.default_rng(1).permutation(N_ROWS * N_COLS)
    adata = spots(*lattice())[order].copy()
    embed(adata)
    np.testing.assert_array_equal(adata.obsm["X_patch"], tiles()[order])


def test_beyond_the_border_is_white():
    adata = spots(np.array([0]), np.array([0]))
    embed(adata, px=2 * SIDE, encoder=Encoder("pixels", PIXELS.encode, 4 * SIDE * SIDE * 3, size=2 * SIDE))
    patch = adata.obsm["X_patch"].reshape(2 * SIDE, 2 * SIDE, 3)
    assert (patch[: SIDE // 2] == 255).all()
    assert (patch[:, : SIDE // 2] == 255).all()
    np.testing.assert_array_equal(patch[SIDE // 2 :, SIDE // 2 :], IMAGE[: 3 * SIDE // 2, : 3 * SIDE // 2])


@pytest.mark.parametrize("side", [7, 8, 9])
def test_patches_are_centred_to_half_a_pixel(side):
    image = open_image(np.zeros((50, 50, 3), dtype=np.uint8), label="x")
    asked = []
    object.__setattr__(image, "region", lambda *a, **_: asked.append(a) or np.zeros((side, side, 3), dtype=np.uint8))
    centres = np.random.default_rng(0).uniform(10, 40, (200, 2))
    list(cut(image, centres, side, side))
    corners = np.array(asked)
    assert np.abs(corners[:, [1, 0]] + side / 2 - centres).max() <= 0.5


def test_large_patches_are_shrunk_by_averaging():
    """A patch of 4 × 4 blocks at a size of 4 pixels has their means, up to the ringing of the filter."""
    blocks = np.kron(np.random.default_rng(0).integers(50, 200, (4, 4)), np.ones((16, 16)))
    image = np.repeat(blocks[..., None], 3, axis=-1).astype(np.uint8)
    adata = spots(np.array([0]), np.array([0]), side=64)
    embed(adata, image, px=64, encoder=Encoder("small", lambda p: p.reshape(len(p), -1), 48, size=4))
    np.testing.assert_allclose(adata.obsm["X_patch"].reshape(4, 4, 3)[..., 0], blocks[8::16, 8::16], atol=25)


def test_micrometres_become_pixels():
    by_um = spots(*lattice())
    embed(by_um, px=None, um=4.0, mpp=0.5)
    np.testing.assert_array_equal(by_um.obsm["X_patch"], tiles())
    row = by_um.uns["X_patch"]["sections"].loc["section"]
    assert (row["patch_px"], row["patch_um"], row["mpp"]) == (8, 4, 0.5)


@pytest.mark.parametrize("per_section", [False, True])
def test_coordinates_of_the_full_image_fit_a_smaller_one(per_section):
    adata = spots(*lattice())
    adata.obsm["spatial"] *= 10
    embed(adata, px=10 * SIDE, image_scale={"section": 0.1} if per_section else 0.1)
    np.testing.assert_array_equal(adata.obsm["X_patch"], tiles())


def test_batch_size_does_not_change_the_result():
    results = [embed(spots(*lattice()), batch_size=n, views=8, copy=True).obsm["X_patch_d4"] for n in (1, 5, 1000)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_tissue_fraction_is_that_of_the_patch(draw_slide):
    slide = draw_slide()
    row, col = lattice(11, 15)
    adata = spots(row, col, side=20)
    embed(adata, slide.rgb, px=20, encoder=MEANS)
    expected = [slide.tissue[20 * r : 20 * r + 20, 20 * c : 20 * c + 20].mean() for r, c in zip(row, col, strict=True)]
    np.testing.assert_allclose(adata.obs["X_patch_tissue_fraction"], expected, atol=0.05)
    assert adata.obs["X_patch_tissue_fraction"].dtype == np.float32


# The eight views


@pytest.mark.parametrize("g", range(8), ids=NAMES)
def test_views_are_those_of_the_turned_section(g):
    """Turning the image and moving the spots with the lattice gives view ``g`` at the right spots."""
    row, col = lattice()
    original = spots(row, col)
    embed(original, views=8)
    new_row, new_col = transform_coords(row, col, g, N_ROWS, N_COLS)
    turned = spots(new_row, new_col)
    embed(turned, transform_patch(IMAGE, g), views=8)
    np.testing.assert_array_equal(turned.obsm["X_patch"], original.obsm["X_patch_d4"][:, g])
    for h in range(8):
        np.testing.assert_array_equal(
            turned.obsm["X_patch_d4"][:, h], original.obsm["X_patch_d4"][:, COMPOSE[g][h]], err_msg=NAMES[h]
        )


def test_views_are_distinct_and_the_first_is_the_patch_itself():
    adata = spots(*lattice())
    embed(adata, views=8)
    views = adata.obsm["X_patch_d4"]
    assert views.shape == (N_ROWS * N_COLS, 8, SIDE * SIDE * 3)
    assert views.dtype == np.float32
    np.testing.assert_array_equal(views[:, 0], adata.obsm["X_patch"])
    assert all(len(np.unique(spot, axis=0)) == 8 for spot in views)


def test_encoder_without_orientation_is_asked_once():
    counting = Counting()
    adata = spots(*lattice())
    embed(adata, encoder=Encoder("means", counting, 3, size=SIDE, orientation_free=True), views=8)
    assert counting.seen == adata.n_obs + 1
    np.testing.assert_array_equal(adata.obsm["X_patch_d4"], np.repeat(adata.obsm["X_patch"][:, None], 8, axis=1))


# Options


def test_options_are_an_object_or_a_mapping():
    one, other = spots(*lattice()), spots(*lattice())
    embed_patches(one, IMAGE, encoder=PIXELS, patches=Patches(px=SIDE, batch_size=3))
    embed_patches(other, IMAGE, encoder=PIXELS, patches={"px": SIDE, "batch_size": 3})
    assert contents(one) == contents(other)


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ({"pix": 8}, "patches has no option 'pix'; did you mean 'px'?"),
        ({"patch_um": 8}, "patches has no option 'patch_um'; did you mean 'um'?"),
        ({"batchsize": 8}, "did you mean 'batch_size'?"),
        ({"mpp": 0.5}, "patches has no option 'mpp'; mpp is an argument of the function itself"),
        ({"zzz": 1}, "there are ['batch_size', 'image_scale', 'px', 'stain_reference', 'um']"),
        (112, "patches=112: pass a strecur.pp.Patches, or a mapping of its options"),
        ({"um": "112"}, "um='112': pass a number"),
        ({"image_scale": {"A": "1"}}, "section 'A': image_scale='1': pass a number"),
        ({"batch_size": 1.5}, "batch_size=1.5: pass a whole number"),
        ({"stain_reference": 3}, "pass the result of strecur.pp.fit_stain_reference"),
    ],
)
def test_wrong_options_raise_with_the_nearest_name(patches, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        embed_patches(spots(*lattice()), IMAGE, encoder=PIXELS, patches=patches)


def test_options_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Patches().um = 3


# Several sections


def test_library_key_of_the_lattice_is_used():
    adata, images = two_sections(), {"A": IMAGE, "B": IMAGE[::-1].copy()}
    given = adata.copy()
    embed(given, images, library_key="section", encoder=MEANS)
    with pytest.raises(KeyError, match="which are not sections"):
        embed(adata, images, encoder=MEANS)
    to_grid(adata, library_key="section", layout="irregular")  # B has every third spot
    assert adata.uns["grid"]["params"]["library_key"] == "section"
    embed(adata, images, encoder=MEANS)
    np.testing.assert_array_equal(adata.obsm["X_patch"], given.obsm["X_patch"])
    assert adata.uns["X_patch"]["sections"].equals(given.uns["X_patch"]["sections"])
    adata.obs = adata.obs.rename(columns={"section": "slide"})
    with pytest.raises(KeyError, match="which are not sections"):  # the column is gone, so all spots are one section
        embed(adata, images, encoder=MEANS)


def test_sections_have_their_own_images():
    adata, other = two_sections(), IMAGE[::-1].copy()
    embed(adata, {"A": IMAGE, "B": other}, library_key="section")
    in_a = (adata.obs["section"] == "A").to_numpy()
    np.testing.assert_array_equal(adata.obsm["X_patch"][in_a], tiles()[in_a])
    np.testing.assert_array_equal(adata.obsm["X_patch"][~in_a], tiles(other)[~in_a])
    assert adata.uns["X_patch"]["sections"]["n_spots"].to_dict() == {"A": int(in_a.sum()), "B": int((~in_a).sum())}


def test_sections_can_be_added_one_by_one(caplog):
    adata, whole = two_sections(), two_sections()
    counting = Counting()
    encoder = Encoder("means", counting, 3, size=SIDE)
    images = {"A": IMAGE, "B": IMAGE[::-1].copy()}
    embed(adata, {"A": IMAGE}, library_key="section", encoder=encoder)
    in_a = (adata.obs["section"] == "A").to_numpy()
    assert np.isnan(adata.obsm["X_patch"]).all(axis=1).tolist() == (~in_a).tolist()
    assert "sections without image have NaN in obsm['X_patch']: ['B']" in caplog.text
    embed(adata, {"B": images["B"]}, library_key="section", encoder=encoder)
    assert counting.seen == adata.n_obs + 2  # none twice; each call asks for the test pattern
    embed(whole, images, library_key="section", encoder=MEANS)
    np.testing.assert_array_equal(adata.obsm["X_patch"], whole.obsm["X_patch"])
    np.testing.assert_array_equal(adata.obs["X_patch_tissue_fraction"], whole.obs["X_patch_tissue_fraction"])
    assert adata.uns["X_patch"]["sections"].equals(whole.uns["X_patch"]["sections"])


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (IMAGE, ValueError, r"one image for 2 sections.*\['A', 'B'\]"),
        ({"C": IMAGE}, KeyError, r"\['C'\], which are not sections; there are \['A', 'B'\]"),
        (None, KeyError, r"uns\['spatial'\] has no 'A'.*Pass image="),
    ],
)
def test_images_that_do_not_name_the_sections(image, error, message):
    with pytest.raises(error, match=message):
        embed(two_sections(), image, library_key="section")


@pytest.mark.parametrize("option", ["mpp", "image_scale"])
def test_numbers_per_section_name_all_sections(option):
    with pytest.raises(KeyError, match=rf"{option} has no entry for section 'B'; there are \['A'\]"):
        embed(two_sections(), {"A": IMAGE, "B": IMAGE}, library_key="section", **{option: {"A": 1.0}})


# Going on


@pytest.mark.parametrize("views", [1, 8])
def test_interrupted_run_goes_on_where_it_was(views, caplog):
    adata, whole = spots(*lattice()), spots(*lattice())
    embed(whole, encoder=MEANS, views=views)
    first, second = Counting(stop_after=10 * views), Counting()
    options = {"views": views, "batch_size": views}
    with pytest.raises(KeyboardInterrupt):
        embed(adata, encoder=Encoder("means", first, 3, size=SIDE), **options)
    done = np.isfinite(adata.obsm["X_patch"]).all(axis=1)
    assert 5 < done.sum() < adata.n_obs
    assert "run again to continue" in caplog.text
    embed(adata, encoder=Encoder("means", second, 3, size=SIDE), **options)
    assert second.seen == (~done).sum() * views + 1
    np.testing.assert_array_equal(adata.obsm["X_patch"], whole.obsm["X_patch"])
    assert contents(adata) == contents(whole)


def test_finished_run_is_not_repeated_even_after_saving(tmp_path):
    adata = spots(*lattice())
    embed(adata, encoder=MEANS)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for again in (adata, read_h5ad(tmp_path / "a.h5ad")):
        counting = Counting()
        embed(again, encoder=Encoder("means", counting, 3, size=SIDE))
        assert counting.seen == 1
        np.testing.assert_array_equal(again.obsm["X_patch"], adata.obsm["X_patch"])


@pytest.mark.parametrize("change", ["image", "coordinates", "patch"])
def test_what_was_embedded_otherwise_is_embedded_anew(change):
    """Another image of equal size, moved spots or another patch size do not leave the old features behind."""
    adata, fresh = spots(*lattice()), spots(*lattice())
    embed(adata)
    image, side = IMAGE, SIDE
    if change == "image":
        image = IMAGE[::-1].copy()
    elif change == "coordinates":
        adata.obsm["spatial"] = fresh.obsm["spatial"] = adata.obsm["spatial"][::-1].copy()
    else:
        side = SIDE + 2
    for one in (adata, fresh):
        embed(one, image, px=side)
    np.testing.assert_array_equal(adata.obsm["X_patch"], fresh.obsm["X_patch"])
    assert contents(adata) == contents(fresh)


def test_another_file_of_the_same_name_is_noticed(tmp_path):
    adata = spots(*lattice())
    for folder, image in (("one", IMAGE), ("two", IMAGE[::-1].copy())):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "tissue.png")
        embed(adata, tmp_path / folder / "tissue.png")
        np.testing.assert_array_equal(adata.obsm["X_patch"], tiles(image))


def test_another_function_of_the_same_name_is_noticed(caplog):
    """As when a cell of a notebook is edited and run again."""
    adata, fresh = spots(*lattice()), spots(*lattice())
    embed(adata, encoder=lambda p: p.mean(axis=(1, 2)))
    for one in (adata, fresh):
        embed(one, encoder=lambda p: p.max(axis=(1, 2)))
    np.testing.assert_array_equal(adata.obsm["X_patch"], fresh.obsm["X_patch"])
    assert "is replaced: it has other ['probe']" in caplog.text


def test_fewer_views_leave_no_old_views_behind(caplog):
    adata = spots(*lattice())
    embed(adata, views=8)
    embed(adata, encoder=MEANS)
    assert set(adata.obsm) == {"spatial", "X_patch"}
    assert "other ['encoder', 'views', 'width', 'probe']" in caplog.text


def test_replaced_features_are_not_taken_for_the_old_ones():
    adata = spots(*lattice())
    embed(adata)
    adata.obsm["X_patch"] = adata.obsm["X_patch"][:, :5].copy()
    embed(adata)
    np.testing.assert_array_equal(adata.obsm["X_patch"], tiles())


# What is written


def test_all_is_written_under_one_name_and_nothing_else_changes():
    adata = spots(*lattice(), label="x")
    before = adata.copy()
    embed(adata, key_added="he", views=8)
    assert set(adata.obsm) == {"spatial", "he", "he_d4"}
    assert set(adata.obs) == {"label", "he_tissue_fraction"}
    assert set(adata.uns) == {"he"}
    record = adata.uns["he"]
    assert set(record) == {"encoder", "width", "views", "probe", "sections"}
    assert (record["encoder"], record["width"], record["views"]) == ("pixels", SIDE * SIDE * 3, 8)
    columns = "image n_spots n_outside n_missing patch_px patch_um mpp scale pixel_um fingerprint"
    assert list(record["sections"]) == columns.split()
    np.testing.assert_array_equal(adata.X, before.X)
    np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])


def test_copy_leaves_the_original_alone():
    adata = spots(*lattice())
    before = contents(adata)
    result = embed(adata, copy=True)
    assert contents(adata) == before
    np.testing.assert_array_equal(result.obsm["X_patch"], tiles())


def test_view_becomes_independent():
    whole = spots(*lattice())
    before = contents(whole)
    part = whole[:5]
    embed(part)
    assert contents(whole) == before
    np.testing.assert_array_equal(part.obsm["X_patch"], tiles()[:5])


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_result_can_be_saved_and_read(draw_slide, tmp_path, form):
    slide = draw_slide()
    adata = spots(*lattice(2, 3), side=100)
    reference = fit_stain_reference(adata, slide.rgb)
    embed(adata, slide.rgb, encoder="texture", px=100, views=8, stain_reference=reference)
    path = tmp_path / f"a.{form}"
    getattr(adata, f"write_{form}")(path)
    again = (read_h5ad if form == "h5ad" else read_zarr)(path)
    np.testing.assert_array_equal(again.obsm["X_patch_d4"], adata.obsm["X_patch_d4"])
    assert len(again.uns["X_patch"]["feature_names"]) == again.obsm["X_patch"].shape[1]
    assert again.uns["X_patch"]["stain_reference"]["method"] == "macenko"
    pd.testing.assert_frame_equal(again.uns["X_patch"]["sections"], adata.uns["X_patch"]["sections"], check_dtype=False)


def test_progress_is_one_bar_that_can_be_silenced(capsys):
    with settings.override(progress=True):
        embed(spots(*lattice()))
    assert "35/35" in capsys.readouterr().err
    embed(spots(*lattice()))
    assert capsys.readouterr().err == ""


# Stains


def test_stain_reference_makes_sections_alike(draw_slide):
    """The same tissue in two stains: after normalisation to the training section its features agree."""
    train, test = draw_slide(), draw_slide(hematoxylin=(0.75, 0.6, 0.28), strength=(1.3, 0.7), white=230.0)
    row, col = lattice(11, 15)
    adata = spots(np.tile(row, 2), np.tile(col, 2), side=20)
    adata.obs["section"] = np.repeat(["train", "test"], len(row))
    images = {"train": train.rgb, "test": test.rgb}
    reference = fit_stain_reference(adata, images, library_key="section", sections=["train"])
    gaps = []
    for options in ({}, {"stain_reference": reference}):
        embed(adata, images, library_key="section", px=20, encoder=MEANS, **options)
        a, b = np.split(adata.obsm["X_patch"], 2)
        gaps.append(np.abs(a - b).mean())
    assert gaps[1] < 0.2 * gaps[0]


# Where images come from


def library(**entries) -> dict:
    return {"spatial": {"lib": {"images": {}, "scalefactors": {}, **entries}}}


def test_largest_image_of_uns_is_taken():
    adata = spots(*lattice())
    images = {"lowres": IMAGE[::4, ::4], "hires": np.kron(IMAGE, np.ones((2, 2, 1), dtype=np.uint8)), "aligned": IMAGE}
    adata.uns = library(images=images, scalefactors={"tissue_lowres_scalef": 0.25, "tissue_hires_scalef": 2.0})
    embed(adata, None)  # the name of the only library need not be that of the section
    row = adata.uns["X_patch"]["sections"].loc["section"]
    assert (row["scale"], row["image"]) == (2, "uns['spatial']['lib']['images']['hires']")
    np.testing.assert_allclose(adata.obsm["X_patch"], tiles(), atol=60)


def test_images_of_uns_may_be_fractions_of_one():
    adata = spots(*lattice())
    adata.uns = library(images={"hires": IMAGE / np.float32(255)}, scalefactors={"tissue_hires_scalef": 1.0})
    embed(adata, None)
    np.testing.assert_array_equal(adata.obsm["X_patch"], tiles())


@pytest.mark.parametrize("exists", [True, False])
def test_full_resolution_file_is_preferred_if_it_is_there(tmp_path, exists):
    path = tmp_path / "full.png"
    if exists:
        Image.fromarray(IMAGE).save(path)
    adata = spots(*lattice())
    adata.uns = library(
        images={"hires": np.zeros_like(IMAGE)},
        scalefactors={"tissue_hires_scalef": 1.0},
        metadata={"source_image_path": str(path)},
    )
    embed(adata, None)
    np.testing.assert_array_equal(adata.obsm["X_patch"], tiles() if exists else 0)


def test_uns_without_scale_factor_is_told():
    adata = spots(*lattice())
    adata.uns = library(images={"hires": IMAGE})
    with pytest.raises(KeyError, match=r"no image with a scale factor; there are the images \['hires'\]"):
        embed(adata, None)


def visium(pitch_px: float, *, hires: bool = True) -> AnnData:
    """Return spots of a Visium array on an image of the given pitch."""
    row, col = (index.ravel() for index in np.indices((12, 20)))
    row, col = row[(row + col) % 2 == 0], col[(row + col) % 2 == 0]
    adata = spots(row, col, array_row=row, array_col=col)
    adata.obsm["spatial"] = np.column_stack([(col + 2) * pitch_px / 2, (row + 2) * pitch_px * np.sqrt(3) / 2])
    factors = {"fiducial_diameter_fullres": 1.0, "spot_diameter_fullres": 0.6 * pitch_px, "tissue_hires_scalef": 1.0}
    height, width = (int(adata.obsm["spatial"][:, i].max() + 2 * pitch_px) for i in (1, 0))
    adata.uns = library(images={"hires": np.full((height, width, 3), 150, dtype=np.uint8)}, scalefactors=factors)
    return adata


@pytest.mark.parametrize("missing", [False, True])
def test_spots_of_visium_are_the_ruler(missing):
    """Neighbouring spots are 100 µm apart; a spot without coordinates does not spoil it."""
    adata = visium(40.0)
    if missing:
        adata.obsm["spatial"][3] = np.nan
    embed(adata, None, px=None, encoder=MEANS)
    row = adata.uns["X_patch"]["sections"].loc["section"]
    assert row["mpp"] == pytest.approx(2.5, rel=1e-6)
    assert row["patch_um"] == pytest.approx(112)


def test_diameter_of_a_spot_is_the_ruler_without_array_positions():
    adata = visium(40.0)
    del adata.obs["array_row"]
    embed(adata, None, px=None, encoder=MEANS)
    assert adata.uns["X_patch"]["sections"].loc["section", "mpp"] == pytest.approx(65 / 24)


def test_recorded_scale_is_taken():
    adata = visium(40.0)
    adata.uns["spatial"]["lib"]["scalefactors"]["microns_per_pixel"] = 3.0
    embed(adata, None, px=None, um=60, encoder=MEANS)
    assert adata.uns["X_patch"]["sections"].loc["section", "patch_px"] == 20


# SpatialData


def spatial_data(scale: float = 1.0, *, n_tables: int = 1):
    """Return spots and an image whose pixels are ``scale`` units of the coordinates wide."""
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    adata = spots(*lattice(), region="circles", instance=np.arange(N_ROWS * N_COLS))
    adata.obs["region"] = adata.obs["region"].astype("category")
    adata.obsm["spatial"] *= scale
    image = Image2DModel.parse(
        np.moveaxis(IMAGE, -1, 0),
        dims=("c", "y", "x"),
        transformations={"global": Scale([scale, scale], axes=("x", "y"))},
    )
    shapes = ShapesModel.parse(adata.obsm["spatial"], geometry=0, radius=1.0)
    tables = {
        f"table{i}": TableModel.parse(adata.copy(), region="circles", region_key="region", instance_key="instance")
        for i in range(n_tables)
    }
    return spatialdata.SpatialData(images={"he": image}, shapes={"circles": shapes}, tables=tables)


@pytest.mark.parametrize("scale", [1.0, 4.0, 0.5])
def test_image_element_is_placed_by_its_transformation(scale):
    sdata = spatial_data(scale)
    embed(sdata, "he", px=SIDE * scale)
    table = sdata["table0"]
    np.testing.assert_array_equal(table.obsm["X_patch"], tiles())
    assert table.uns["X_patch"]["sections"].loc["section", "scale"] == pytest.approx(1 / scale)


@pytest.mark.parametrize("g", range(8), ids=NAMES)
def test_turned_image_element_has_the_same_patches(g):
    """An element that its transformation turns back gives the patches of the upright one, in all views."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine

    sdata, upright = spatial_data(), spatial_data()
    corners = np.array([[0, 0], [0, 1], [1, 0]])  # (row, column)
    row, col = transform_coords(*corners.T, g, N_ROWS * SIDE, N_COLS * SIDE)
    middles = np.column_stack([col, row, np.full(3, 0.5)]) + 0.5
    # The rows of the matrix are x and y of the section, as functions of x and y of the turned image.
    to_section = np.linalg.solve(middles, corners[:, ::-1] + 0.5).T
    matrix = np.vstack([to_section, [0, 0, 1]])
    del sdata.images["he"]
    sdata["he"] = Image2DModel.parse(
        np.moveaxis(transform_patch(IMAGE, g), -1, 0).copy(),
        dims=("c", "y", "x"),
        transformations={"global": Affine(matrix, ("x", "y"), ("x", "y"))},
    )
    for one in (sdata, upright):
        embed(one, "he", views=8)
    np.testing.assert_array_equal(sdata["table0"].obsm["X_patch_d4"], upright["table0"].obsm["X_patch_d4"])


def test_table_is_named_if_there_are_several():
    sdata = spatial_data(n_tables=2)
    with pytest.raises(KeyError, match=r"\['table0', 'table1'\]"):
        embed(sdata, "he")
    embed(sdata, "he", table_key="table1")
    assert "X_patch" in sdata["table1"].obsm
    assert "X_patch" not in sdata["table0"].obsm


def test_sections_may_be_regions_with_their_own_images_and_coordinates():
    """Two regions, whose images are of different scale; without library_key the image of one would be ambiguous."""
    spatialdata = pytest.importorskip("spatialdata")
    parts = [spatial_data(scale) for scale in (1.0, 4.0)]
    tables = []
    for name, part in zip("AB", parts, strict=True):
        table = part["table0"].copy()
        table.obs["region"] = pd.Categorical([name] * table.n_obs)
        table.obs_names = name + table.obs_names
        del table.uns["spatialdata_attrs"]
        tables.append(table)
    table = spatialdata.models.TableModel.parse(
        concat(tables), region=["A", "B"], region_key="region", instance_key="instance"
    )
    sdata = spatialdata.SpatialData(
        images={f"he{name}": part["he"] for name, part in zip("AB", parts, strict=True)},
        shapes={name: part["circles"] for name, part in zip("AB", parts, strict=True)},
        tables={"table": table},
    )
    with pytest.raises(ValueError, match=r"belong to several regions, \['A', 'B'\]; pass library_key"):
        embed(sdata, "heA")
    embed(sdata, {"A": "heA"}, library_key="region")
    embed(sdata, {"B": "heB"}, library_key="region", px=4 * SIDE)
    np.testing.assert_array_equal(sdata["table"].obsm["X_patch"], np.tile(tiles(), (2, 1)))
    assert sdata["table"].uns["X_patch"]["sections"]["scale"].to_dict() == pytest.approx({"A": 1, "B": 0.25})


def test_unknown_image_element_lists_what_exists():
    with pytest.raises(KeyError, match=r"'hne' is neither a file nor an image element; there are \['he'\]"):
        embed(spatial_data(), "hne")
    with pytest.raises(KeyError, match=r"and the image elements \['he'\]"):
        embed(spatial_data(), None)


def test_spatial_data_can_be_saved_with_the_result(tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    sdata = spatial_data()
    embed(sdata, "he", views=8)
    sdata.write(tmp_path / "s.zarr")
    again = spatialdata.read_zarr(tmp_path / "s.zarr")["table0"]
    np.testing.assert_array_equal(again.obsm["X_patch_d4"], sdata["table0"].obsm["X_patch_d4"])


# What does not fit


def test_few_spots_outside_are_counted_and_have_nan(caplog):
    adata = spots(*lattice())
    adata.obsm["spatial"][[3, 8]] = [[-1, 5], [5, N_ROWS * SIDE]]  # half-open: the border itself is outside
    embed(adata)
    gone = np.isnan(adata.obsm["X_patch"]).all(axis=1)
    assert np.flatnonzero(gone).tolist() == [3, 8]
    assert np.isnan(adata.obs["X_patch_tissue_fraction"]).tolist() == gone.tolist()
    np.testing.assert_array_equal(adata.obsm["X_patch"][~gone], tiles()[~gone])
    assert adata.uns["X_patch"]["sections"].loc["section", "n_outside"] == 2
    assert "2 spots outside the image have no embedding" in caplog.text


def test_spots_without_coordinates_have_nan_and_do_not_count_as_outside(caplog):
    adata = spots(*lattice())
    adata.obsm["spatial"][:20] = np.nan
    adata.obsm["spatial"][20, 0] = np.nan
    embed(adata)
    assert np.isnan(adata.obsm["X_patch"]).all(axis=1).sum() == 21
    row = adata.uns["X_patch"]["sections"].loc["section"]
    assert (row["n_missing"], row["n_outside"]) == (21, 0)
    assert "21 spots without coordinates have no embedding" in caplog.text


def failing(patches: np.ndarray) -> np.ndarray:
    """Return NaN for all but the test pattern, which is no noise."""
    features = patches.mean(axis=(1, 2)).astype(float)
    return features if (np.diff(patches[0, :, 0, 0].astype(int)) == 1).all() else features * np.nan


def at(xy: list) -> AnnData:
    adata = spots(*lattice())
    adata.obsm["spatial"] = np.broadcast_to(np.asarray(xy, dtype=float), (adata.n_obs, 2)).copy()
    return adata


@pytest.mark.parametrize(
    ("adata", "options", "error", "message"),
    [
        (at([100, 10]), {}, ValueError, "35 of 35 spots lie outside the image .* of 56 × 40 pixels.*x is 100 to 100"),
        (at([np.nan, 10]), {}, ValueError, "none of its 35 spots has coordinates"),
        (at([9, 9]), {"encoder": failing}, ValueError, "returned NaN or infinite"),
        (at([9, 9]), {"encoder": Encoder("bad", MEANS.encode, 4, SIDE)}, ValueError, r"expected \(1, 4\)"),
        (at([9, 9]), {"px": None}, ValueError, "scale of section 'section' is unknown"),
        (at([9, 9]), {"um": 10, "mpp": 1}, ValueError, "not both"),
        (at([9, 9]), {"px": -3}, ValueError, "positive"),
        (at([9, 9]), {"px": 500}, ValueError, "a patch of 500 pixels for an image of 56 × 40"),
        (at([9, 9]), {"mpp": -1.0}, ValueError, "mpp=-1.0"),
        (at([9, 9]), {"image_scale": 0.0}, ValueError, "image_scale=0.0"),
        (at([9, 9]), {"views": 4}, ValueError, "views=4"),
        (at([9, 9]), {"batch_size": 0}, ValueError, "batch_size=0"),
        (at([9, 9]), {"image": "nowhere.jpg"}, FileNotFoundError, "nowhere.jpg"),
        (at([9, 9]), {"spatial_key": "xy"}, KeyError, "'xy' is not in adata.obsm"),
        (at([9, 9]), {"library_key": "slide"}, KeyError, "'slide' is not in adata.obs"),
        (at([9, 9]), {"key_added": "a/b"}, ValueError, "legal key"),
        (at([9, 9]), {"stain_reference": {"a": 1}}, ValueError, "stain_reference is not one"),
        (at([9, 9]), {"encoder": 3}, TypeError, "encoder=3"),
        (at([9, 9]), {"table_key": "table"}, ValueError, "table_key is for SpatialData"),
    ],
)
def test_errors_are_clear_and_leave_everything_as_it_was(adata, options, error, message):
    before = contents(adata)
    with pytest.raises(error, match=message):
        embed(adata, options.pop("image", IMAGE), **options)
    assert contents(adata) == before


def test_damaged_second_image_leaves_everything_as_it_was(tmp_path):
    path = tmp_path / "b.jpg"
    Image.fromarray(IMAGE).save(path)
    path.write_bytes(path.read_bytes()[:900])
    adata = two_sections()
    before = contents(adata)
    with pytest.raises(OSError, match=r"b\.jpg is damaged"):
        embed(adata, {"A": IMAGE, "B": path}, library_key="section")
    assert contents(adata) == before


def test_image_of_another_section_raises_if_the_spots_miss_it():
    adata = two_sections()
    with pytest.raises(ValueError, match=r"section 'B': .* Is it the image of this section"):
        embed(adata, {"A": IMAGE, "B": IMAGE[: 2 * SIDE]}, library_key="section")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"px": 4}, r"a patch of 4 pixels of the image .* is smaller than a nucleus"),
        ({"px": None, "um": 4, "mpp": 0.1}, r"a patch of 40 pixels \(4 µm\) .* is smaller than a nucleus"),
        ({"px": 50}, r"a patch of 50 pixels is larger than the tissue \(the spots span 48 pixels\)"),
    ],
)
def test_wrong_scale_is_told_with_the_numbers(options, message, caplog):
    embed(spots(*lattice()), encoder=MEANS, **options)
    assert re.search(message, caplog.text)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full_like(IMAGE, 240), "35 patches show less than 5 % tissue"),
        (np.repeat(IMAGE[..., :1], 3, axis=-1), "has no colour; is it H&E?"),
    ],
)
def test_blank_and_grey_images_are_told(image, message, caplog):
    adata = spots(*lattice())
    embed(adata, image)
    assert message in caplog.text
    assert np.isfinite(adata.obsm["X_patch"]).all()


def test_good_input_is_silent(draw_slide, caplog):
    caplog.set_level(logging.WARNING)
    adata = spots(*lattice(2, 3), side=40)
    adata.obsm["spatial"] += (130, 70)
    embed(adata, draw_slide().rgb, encoder=MEANS, px=40)
    assert caplog.records == []


# Real sections


def twelve_spots(data_dir) -> AnnData:
    adata = read_h5ad(data_dir / "her2st" / "C2.h5ad")
    return adata[:: adata.n_obs // 12][:12].copy()


def test_real_section_with_texture(data_dir, caplog):
    caplog.set_level(logging.WARNING)
    adata = twelve_spots(data_dir)
    image = data_dir / "her2st" / "images" / "C2.jpg"
    embed(adata, image, encoder="texture", library_key="sample", px=None, mpp=200 / 289)
    assert caplog.records == []
    assert np.isfinite(adata.obsm["X_patch"]).all()
    assert (adata.obs["X_patch_tissue_fraction"] > 0.3).all()
    row = adata.uns["X_patch"]["sections"].loc["C2"]
    assert (row["image"], row["n_outside"]) == ("C2.jpg", 0)
    assert row["patch_px"] == pytest.approx(162, abs=1)


def test_real_views_are_those_of_the_turned_section(data_dir):
    """A quarter turn of a piece of the image, with the network."""
    pytest.importorskip("efficientnet_lite_pytorch")
    adata = twelve_spots(data_dir)[4:7].copy()
    centres = np.rint(adata.obsm["spatial"])
    corner = centres.min(axis=0).astype(int) - 200
    height, width = (np.ptp(centres, axis=0).astype(int) + 400)[::-1]
    piece = open_image(data_dir / "her2st" / "images" / "C2.jpg", label="C2").region(*corner[::-1], height, width)
    adata.obsm["spatial"] = centres - corner
    turned, g = adata.copy(), NAMES.index("rotate_90")
    # Coordinates count from the border of a pixel, sites from its middle.
    row, col = transform_coords(*(adata.obsm["spatial"].T[::-1] - 0.5), g, height, width)
    turned.obsm["spatial"] = np.column_stack([col, row]) + 0.5
    options = {"encoder": "efficientnet-lite0", "px": 224}
    embed(adata, piece, views=8, **options)
    embed(turned, np.ascontiguousarray(transform_patch(piece, g)), **options)
    views, spread = adata.obsm["X_patch_d4"], adata.obsm["X_patch"].std()
    np.testing.assert_allclose(turned.obsm["X_patch"], views[:, g], atol=0.01 * spread)
    assert np.abs(views[:, 0] - views[:, g]).mean() > 0.05 * spread


def test_reduced_image_needs_its_scale(data_dir):
    """The image of A1 is smaller than the one its coordinates belong to."""
    adata = read_h5ad(data_dir / "her2st" / "A1.h5ad")
    with pytest.raises(ValueError, match=r"section 'A1': .* of 346 spots lie outside .* is image_scale wrong"):
        embed(adata, data_dir / "her2st" / "images" / "A1_masked_2000px.png", library_key="sample")


def test_visium_with_the_low_resolution_image(data_dir, caplog):
    """The scale comes from the array; a pixel of the small image is larger than a nucleus, which is told."""
    images = data_dir / "dlpfc" / "images"
    adata = read_h5ad(data_dir / "dlpfc" / "151673.h5ad")[::300].copy()
    factors = json.loads((images / "151673_scalefactors.json").read_text())
    pixels = np.asarray(Image.open(images / "151673_tissue_lowres_image.png").convert("RGB"))
    adata.uns["spatial"] = {"151673": {"images": {"lowres": pixels}, "scalefactors": factors}}
    embed(adata, None, encoder=MEANS, px=None)
    row = adata.uns["X_patch"]["sections"].loc["section"]
    assert row["mpp"] == pytest.approx(100 / 137, rel=0.03)
    assert row["n_outside"] == 0
    assert "smaller than a nucleus" in caplog.text
    assert (adata.obsm["X_patch"].mean(axis=1) < 230).mean() > 0.9  # the spots lie on tissue, not on glass
