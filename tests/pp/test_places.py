"""Every patch lies at its spot, wherever the image and its place come from; what cannot be right raises or warns."""

from __future__ import annotations

import logging
import os

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from strecur._settings import settings as package_settings
from strecur.pp import Encoder, embed_patches, fit_stain_reference, tile_image

spatialdata = pytest.importorskip("spatialdata")
SIDE = 24
N_ROWS, N_COLS = 6, 8
RNG = np.random.default_rng(0)
SITES = np.stack(np.meshgrid(np.arange(N_COLS), np.arange(N_ROWS)), axis=-1).reshape(-1, 2)
CENTRES = (SITES + 1.5) * SIDE  # (x, y) in pixels
SHAPE = ((N_ROWS + 2) * SIDE, (N_COLS + 3) * SIDE)
COLOURS = RNG.integers(30, 200, (len(CENTRES), 3), dtype=np.uint8)
MEANS = Encoder("means", lambda patches: patches.mean(axis=(1, 2)), 3, size=8)


def draw(centres: np.ndarray = CENTRES, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Draw a disc of its own colour around every spot, so that a patch tells at which spot it was cut."""
    y, x = np.indices(shape) + 0.5
    picture = np.full((*shape, 3), 255, dtype=np.uint8)
    for (cx, cy), colour in zip(centres, COLOURS, strict=True):
        picture[(x - cx) ** 2 + (y - cy) ** 2 < (SIDE / 3) ** 2] = colour
    return picture


PICTURE = draw()


def spots(coordinates: np.ndarray = CENTRES, **obs) -> AnnData:
    frame = pd.DataFrame(obs, index=[f"spot{i}" for i in range(len(coordinates))])
    return AnnData(np.ones((len(coordinates), 2), np.float32), obs=frame, obsm={"spatial": coordinates.astype(float)})


def library(picture: np.ndarray, factor: float, **metadata) -> dict:
    entry = {"images": {"hires": picture}, "scalefactors": {"tissue_hires_scalef": factor}, "metadata": metadata}
    return {"spatial": {"slide": entry}}


def shrink(picture: np.ndarray, factor: float) -> np.ndarray:
    size = (round(picture.shape[1] * factor), round(picture.shape[0] * factor))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def embed(adata: object, image: object = None, *, unit: float = 1.0, encoder: Encoder = MEANS, **options) -> np.ndarray:
    """Return the mean colours around the spots, from a square inside of the discs; ``unit`` is that of a pixel."""
    patches = {"px": SIDE / 3 * unit} | ({"image_scale": s} if (s := options.pop("image_scale", None)) else {})
    with package_settings.override(progress=False):
        embed_patches(adata, image, encoder=encoder, patches=patches, **options)
    table = next(iter(adata.tables.values())) if hasattr(adata, "tables") else adata
    return table.obsm["X_patch"]


# Elements of SpatialData


def spatial_data(picture: np.ndarray, centres: np.ndarray, systems: dict, **parse):
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Identity

    adata = spots(centres, region=pd.Categorical(["circles"] * len(centres)), instance=np.arange(len(centres)))
    shapes = ShapesModel.parse(centres, geometry=0, radius=1.0, transformations=dict.fromkeys(systems, Identity()))
    table = TableModel.parse(adata, region="circles", region_key="region", instance_key="instance")
    image = Image2DModel.parse(np.moveaxis(picture, -1, 0), dims=("c", "y", "x"), transformations=systems, **parse)
    return spatialdata.SpatialData(images={"he": image}, shapes={"circles": shapes}, tables={"table": table})


def affine(matrix: np.ndarray, shift: np.ndarray):
    from spatialdata.transformations import Affine

    return Affine(np.vstack([np.column_stack([matrix, shift]), [0, 0, 1]]), ("x", "y"), ("x", "y"))


@settings(max_examples=25, deadline=None)
@given(
    turn=st.floats(-180, 180),
    unequal=st.sampled_from([1.0, 1.005, 1.3]),
    mirrored=st.booleans(),
    unit=st.floats(0.2, 5),
    shift=st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)),
)
def test_patches_lie_at_their_spots_under_any_affine_map(turn, unequal, mirrored, unit, shift):
    """As of an H&E that is aligned by keypoints: turned a little or a lot, flipped, and stretched."""
    a = np.deg2rad(turn)
    matrix = unit * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) @ np.diag([1, unequal])
    matrix = matrix @ np.diag([-1 if mirrored else 1, 1])
    centres = CENTRES @ matrix.T + shift
    sdata = spatial_data(PICTURE, centres, {"global": affine(matrix, shift)})
    found = embed(sdata, "he", unit=unit)
    np.testing.assert_allclose(found, COLOURS, atol=2)


@pytest.mark.parametrize("turn", [0.3, 0.5, 1.0, 3.0])
def test_a_small_turn_does_not_blur(turn):
    """Patches are cut along the axes of the image, as sharp as without the turn."""
    noise = RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    a = np.deg2rad(turn)
    matrix = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    encoder = Encoder("sd", lambda p: p.std(axis=(1, 2)), 3, size=SIDE // 3)
    sharp = embed(spots(), noise, encoder=encoder)
    sdata = spatial_data(noise, CENTRES @ matrix.T, {"global": affine(matrix, np.zeros(2))})
    np.testing.assert_array_equal(embed(sdata, "he", encoder=encoder), sharp)


def test_coordinate_systems_that_contradict_each_other_raise():
    """As after an alignment by landmarks, which adds a system and leaves "global" as it was."""
    right = affine(np.eye(2) * 2, np.array([300.0, 40.0]))
    centres = CENTRES * 2 + [300, 40]
    from spatialdata.transformations import Identity, remove_transformation

    sdata = spatial_data(PICTURE, centres, {"global": Identity(), "aligned": right})
    with pytest.raises(
        ValueError, match=r"share the coordinate systems \['global', 'aligned'\].*remove_transformation"
    ):
        embed(sdata, "he", unit=2)
    remove_transformation(sdata["he"], to_coordinate_system="global")
    np.testing.assert_allclose(embed(sdata, "he", unit=2), COLOURS, atol=1)


def test_coordinate_systems_that_agree_up_to_rounding_do_not():
    sdata = spatial_data(
        PICTURE,
        CENTRES,
        {"global": affine(np.eye(2), np.zeros(2)), "other": affine(np.eye(2) * 1.001, np.zeros(2))},
    )
    np.testing.assert_allclose(embed(sdata, "he"), COLOURS, atol=1)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("scale_factors", [None, [2], [2, 2]])
def test_scales_of_an_element_are_one_image(tmp_path, scale_factors, saved):
    sdata = spatial_data(PICTURE, CENTRES, {"global": affine(np.eye(2), np.zeros(2))}, scale_factors=scale_factors)
    if saved:
        sdata.write(tmp_path / "s.zarr")
        sdata = spatialdata.read_zarr(tmp_path / "s.zarr")
    np.testing.assert_allclose(embed(sdata, "he"), COLOURS, atol=1)
    np.testing.assert_allclose(embed(sdata, sdata["he"]), COLOURS, atol=1)  # the element itself


def test_scales_in_another_order_are_sorted():
    from xarray import DataTree

    sdata = spatial_data(PICTURE, CENTRES, {"global": affine(np.eye(2), np.zeros(2))}, scale_factors=[2, 2])
    nodes = {name: sdata["he"][name].to_dataset() for name in ("scale2", "scale0", "scale1")}
    np.testing.assert_allclose(embed(spots(), DataTree.from_dict(nodes)), COLOURS, atol=1)


def test_an_element_without_its_object_keeps_its_transformation():
    sdata = spatial_data(PICTURE, CENTRES * 3 + 50, {"global": affine(np.eye(2) * 3, np.full(2, 50.0))})
    np.testing.assert_allclose(embed(spots(CENTRES * 3 + 50), sdata["he"], unit=3), COLOURS, atol=1)


@pytest.mark.parametrize("names", [["DAPI", "CD3", "CD20"], ["DAPI", "r", "g", "b"], ["0", "1", "2", "3"], ["r", "g"]])
def test_channels_that_are_no_colours_raise(names):
    picture = np.dstack([PICTURE, PICTURE])[..., : len(names)]
    sdata = spatial_data(picture, CENTRES, {"global": affine(np.eye(2), np.zeros(2))}, c_coords=names)
    with pytest.raises(ValueError, match="which are not red, green and blue; choose three"):
        embed(sdata, "he")


def test_named_channels_are_put_in_order():
    systems = {"global": affine(np.eye(2), np.zeros(2))}
    sdata = spatial_data(PICTURE[..., ::-1], CENTRES, systems, c_coords=["b", "g", "r"])
    np.testing.assert_allclose(embed(sdata, "he"), COLOURS, atol=1)


def test_coordinates_in_other_units_than_the_annotated_shapes_raise():
    """The coordinates are in pixels of another image; without a check they would be taken for those of the shapes."""
    sdata = spatial_data(PICTURE, CENTRES, {"global": affine(np.eye(2), np.zeros(2))})
    sdata["table"].obsm["aligned"] = CENTRES * 0.5
    np.testing.assert_allclose(embed(sdata, "he"), COLOURS, atol=1)
    with pytest.raises(ValueError, match=r"units of obsm\['aligned'\] are unknown: .* element 'circles'"):
        embed(sdata, "he", spatial_key="aligned")


def test_a_single_spot_has_its_patch():
    """Its coordinates may differ from the centroid of its shape by rounding."""
    sdata = spatial_data(PICTURE, CENTRES, {"global": affine(np.eye(2), np.zeros(2))})
    sdata.tables["table"] = sdata["table"][:1].copy()
    sdata["table"].obsm["spatial"] += 0.3
    np.testing.assert_allclose(embed(sdata, "he"), COLOURS[:1], atol=2)


@pytest.mark.parametrize("scale_factors", [None, [2]])
def test_crop_by_spatialdata_knows_its_place(scale_factors):
    from spatialdata import bounding_box_query

    matrix, shift = 2 * np.eye(2), np.array([100.0, -30.0])
    centres = CENTRES @ matrix.T + shift
    sdata = spatial_data(PICTURE, centres, {"global": affine(matrix, shift)}, scale_factors=scale_factors)
    low, high = centres.min(axis=0) - 30, centres.max(axis=0) - 60
    crop = bounding_box_query(
        sdata, axes=("x", "y"), min_coordinate=low, max_coordinate=high, target_coordinate_system="global"
    )
    inside = ((centres >= low) & (centres <= high)).all(axis=1)
    assert crop["table"].n_obs == inside.sum() < len(centres)
    np.testing.assert_allclose(embed(crop, "he", unit=2), COLOURS[inside], atol=1)


@pytest.mark.parametrize("turn", [1, 30, 90])
def test_image_that_spatialdata_transformed_is_read(turn):
    """The transformed image is upright, and black where the original ended."""
    from spatialdata import transform

    a = np.deg2rad(turn)
    matrix = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    centres = CENTRES @ matrix.T
    sdata = spatial_data(PICTURE, centres, {"global": affine(matrix, np.zeros(2))})
    sdata["he"] = transform(sdata["he"], to_coordinate_system="global")
    np.testing.assert_allclose(embed(sdata, "he"), COLOURS, atol=3)


# Arrays of other libraries


def test_dask_and_zarr_arrays_are_read():
    import dask.array as da
    import zarr

    for image in (da.from_array(PICTURE, chunks=(50, 40, 3)), zarr.array(PICTURE, chunks=(50, 40, 3))):
        np.testing.assert_allclose(embed(spots(), image), COLOURS, atol=1)


@pytest.mark.parametrize("dims", ["cyx", "yxc", "xyc", "ycx", "yxzc", "zcyx"])
def test_dimensions_of_xarray_go_by_name(dims):
    from xarray import DataArray

    order = {"y": 0, "x": 1, "c": 2, "z": 3}
    values = np.transpose(PICTURE[..., None], [order["c" if d == "c" else d] for d in [*dims, *({*"z"} - {*dims})]])
    values = values if "z" in dims else values[..., 0]
    image = DataArray(values, dims=[{"c": "channels"}.get(d, d) for d in dims])
    np.testing.assert_allclose(embed(spots(), image), COLOURS, atol=1)


@pytest.mark.parametrize("dims", [("a", "b", "c"), ("t", "y", "x", "c")])
def test_other_dimensions_raise(dims):
    from xarray import DataArray, Dataset

    image = DataArray(np.zeros([2] * len(dims), np.uint8) if "t" in dims else PICTURE, dims=dims)
    with pytest.raises(ValueError, match="has dimensions .*; expected a DataArray of y, x and channels"):
        embed(spots(), image)
    with pytest.raises(ValueError, match="expected a DataArray of y, x and channels"):
        embed(spots(), Dataset({"image": DataArray(PICTURE, dims=("y", "x", "c"))}))


# Containers of squidpy


def container(picture: np.ndarray = PICTURE, **options):
    return pytest.importorskip("squidpy").im.ImageContainer(picture, **options)


@pytest.mark.parametrize("lazy", [False, True])
def test_container_is_an_image(lazy):
    image = container(lazy=lazy)
    np.testing.assert_allclose(embed(spots(), image), COLOURS, atol=1)
    np.testing.assert_allclose(embed(spots(), image["image"]), COLOURS, atol=1)  # its only layer


def test_scaled_container_knows_its_scale():
    np.testing.assert_allclose(embed(spots(), container(shrink(PICTURE, 0.5), scale=0.5)), COLOURS, atol=12)


@pytest.mark.parametrize("corner", [(10, 5), (-7, -20), (60, 70)])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_crop_of_a_container_knows_its_place(corner, scale):
    """A crop may reach beyond the border, and be scaled."""
    y, x = corner
    crop = container().crop_corner(y, x, size=(150, 230), scale=scale, cval=255)
    found = embed(spots(), crop) if corner != (60, 70) else embed(spots()[SITES.min(axis=1) > 1].copy(), crop)
    expected = COLOURS if corner != (60, 70) else COLOURS[SITES.min(axis=1) > 1]
    seen = np.isfinite(found).all(axis=1)
    assert seen.mean() > 0.7
    np.testing.assert_allclose(found[seen][:, :], expected[seen], atol=3 if scale == 1 else 45)
    assert np.abs(found[seen] - expected[seen]).mean() < 3


def test_container_of_several_sections_is_told_apart_by_name():
    image = container(
        np.stack([PICTURE, PICTURE[::-1]], axis=2), dims=("y", "x", "z", "channels"), library_id=["A", "B"]
    )
    flipped = CENTRES * [1, -1] + [0, SHAPE[0]]
    adata = spots(np.vstack([CENTRES, flipped]), section=["A"] * len(CENTRES) + ["B"] * len(CENTRES))
    found = embed(adata, {"A": image, "B": image}, library_key="section")
    np.testing.assert_allclose(found, np.tile(COLOURS, (2, 1)), atol=1)
    with pytest.raises(ValueError, match=r"container of the images \['A', 'B'\], none of which is the section"):
        embed(spots(), image)


def test_container_with_several_layers_raises_and_segmentations_do_not_count():
    image = container()
    image.add_img(PICTURE[..., 0], layer="mask")
    image["mask"].attrs["segmentation"] = True
    np.testing.assert_allclose(embed(spots(), image), COLOURS, atol=1)
    image.add_img(PICTURE, layer="other", channel_dim="c")
    with pytest.raises(ValueError, match=r"container of the layers \['image', 'other'\]; pass one of them"):
        embed(spots(), image)


# Size of the full-resolution image


def test_recorded_file_that_is_not_the_full_image_is_not_used(tmp_path, caplog):
    half, path = shrink(PICTURE, 0.5), tmp_path / "slide.png"
    Image.fromarray(half).save(path)
    adata = spots()
    adata.uns = library(PICTURE, 1.0, source_image_path=str(path))
    np.testing.assert_allclose(embed(adata), COLOURS, atol=1)
    assert "slide.png has 132 × 96 pixels (columns × rows), but the full-resolution image has 264 × 192" in caplog.text
    assert "hires" in adata.uns["X_patch"]["sections"].loc["section", "image"]


@pytest.mark.parametrize("as_file", [False, True])
def test_smaller_copy_of_the_full_image_needs_its_scale(tmp_path, as_file, caplog):
    """Most spots lie inside the smaller image, so that only its size tells."""
    wide = np.full((SHAPE[0] * 2, SHAPE[1] * 2, 3), 255, dtype=np.uint8)
    wide[: SHAPE[0], : SHAPE[1]] = PICTURE
    image = half = shrink(wide, 0.5)
    if as_file:
        image = tmp_path / "half.png"
        Image.fromarray(half).save(image)
    adata = spots()
    adata.uns = library(shrink(wide, 0.25), 0.25)
    with pytest.raises(ValueError, match=r"has 264 × 192 pixels .* would have 528 × 384.*\{'image_scale': 0.5\}"):
        embed(adata, image)
    assert "X_patch" not in adata.obsm
    caplog.clear()
    np.testing.assert_allclose(embed(adata, image, image_scale=0.5), COLOURS, atol=15)
    assert "pixels (columns × rows)" not in caplog.text


def test_image_of_another_shape_is_told(caplog):
    adata = spots()
    adata.uns = library(shrink(np.vstack([PICTURE, PICTURE]), 0.5), 0.5)
    np.testing.assert_allclose(embed(adata, PICTURE), COLOURS, atol=1)
    assert "would have 264 × 384; check that it is the image to which the coordinates belong" in caplog.text


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(60, 900), cols=st.integers(60, 900), factor=st.floats(0.03, 1))
def test_rounding_of_the_downscaled_image_does_not_matter(rows, cols, factor):
    from strecur.pp.image.sources import full_size

    small = np.zeros((max(1, round(rows * factor)), max(1, int(cols * factor)), 3), np.uint8)
    size = full_size(library(small, factor)["spatial"]["slide"])
    assert size.fits((rows, cols))
    assert not size.fits((2 * rows + int(4 / factor), 2 * cols + int(4 / factor)))


@pytest.mark.parametrize("shape", [(60, 2900), (700, 900)])
def test_tiles_of_a_slide_find_their_file_again(tmp_path, shape, caplog):
    caplog.set_level(logging.WARNING)
    picture = np.broadcast_to(np.array([200, 90, 160], np.uint8), (*shape, 3)).copy()
    picture[:10] = 250
    Image.fromarray(picture).save(tmp_path / "slide.png")
    adata = tile_image(tmp_path / "slide.png", pitch_px=40, thumbnail_px=100)
    embed(adata)
    assert adata.uns["X_patch"]["sections"].loc["slide", "image"] == "slide.png"
    assert "full-resolution" not in caplog.text


# Checksums


def write_again(path, picture: np.ndarray) -> None:
    import tifffile

    padded = np.full((1000, 1400, 3), 255, np.uint8)
    padded[200 : 200 + picture.shape[0], 300 : 300 + picture.shape[1]] = picture
    tifffile.imwrite(path, padded, photometric="rgb")


def test_a_slide_that_is_saved_again_under_its_name_is_embedded_anew(tmp_path):
    """The file has the same size and the same ends, as uncompressed TIFFs with white margins have."""
    path, adata = tmp_path / "slide.tif", spots(CENTRES + np.array([300, 200]))
    write_again(path, PICTURE)
    np.testing.assert_allclose(embed(adata, path), COLOURS, atol=1)
    write_again(path, PICTURE // 2)
    np.testing.assert_allclose(embed(adata, path), COLOURS // 2, atol=1)


def test_a_file_of_another_date_is_not_embedded_anew(tmp_path):
    path, adata, calls = tmp_path / "slide.tif", spots(CENTRES + np.array([300, 200])), []
    counting = Encoder("means", lambda p: calls.append(len(p)) or p.mean(axis=(1, 2)), 3, size=8)
    write_again(path, PICTURE)
    embed(adata, path, encoder=counting)
    n_calls = len(calls)
    os.utime(path, (0, 0))
    embed(adata, path, encoder=counting)
    assert len(calls) == n_calls + 1  # the test pattern


@pytest.mark.parametrize("kind", ["array", "dask", "element", "uns"])
def test_a_change_of_one_pixel_is_noticed(kind):
    """A thumbnail would not show it."""
    import dask.array as da

    large = np.full((1200, 1500, 3), 255, dtype=np.uint8)
    large[: SHAPE[0], : SHAPE[1]] = PICTURE
    changed = large.copy()
    x, y = CENTRES[0].astype(int)
    changed[y, x, 0] ^= 64
    systems = {"global": affine(np.eye(2), np.zeros(2))}
    results, adata, table = [], spots(), None
    for picture in (large, changed):
        if kind == "element":
            sdata = spatial_data(picture, CENTRES, systems)
            if table is not None:
                sdata.tables["table"] = table
            results.append(embed(sdata, "he").copy())
            table = sdata["table"]
            continue
        adata.uns |= library(picture, 1.0)
        image = {"array": picture, "dask": da.from_array(picture, chunks=400), "uns": None}[kind]
        results.append(embed(adata, image).copy())
    differ = np.abs(results[0] - results[1]).max(axis=1)
    assert differ[0] > 0
    assert (differ[1:] == 0).all()


# Sections


def test_sections_may_be_numbers():
    adata = spots(np.vstack([CENTRES * 2, CENTRES]), section=[151673] * len(CENTRES) + [151674] * len(CENTRES))
    found = embed(
        adata,
        {151673: PICTURE, 151674: PICTURE},
        library_key="section",
        image_scale={151673: 0.5, 151674: 1.0},
        mpp={151673: 1.0, 151674: 1.0},
    )
    np.testing.assert_allclose(found[len(CENTRES) :], COLOURS, atol=1)
    np.testing.assert_allclose(found[: len(CENTRES)], COLOURS, atol=1)
    entry = library(PICTURE, 1.0)["spatial"]["slide"]
    adata.uns["spatial"] = {151673: entry, 151674: entry}
    adata.obsm["spatial"][: len(CENTRES)] = CENTRES
    np.testing.assert_allclose(embed(adata, library_key="section"), np.tile(COLOURS, (2, 1)), atol=1)


def test_stain_reference_takes_the_same_images(draw_slide):
    slide = draw_slide()
    adata = spots(CENTRES)
    expected = fit_stain_reference(adata, slide.rgb)["stains"]
    for image in (container(slide.rgb), slide.rgb.astype(np.uint16) * 257, slide.rgb / 255):
        np.testing.assert_allclose(fit_stain_reference(adata, image)["stains"], expected, atol=1e-6)


def visium(*, exchanged: bool = False, factor: float = 1.0) -> AnnData:
    """A Visium section of spots 100 pixels apart, with an image of a quarter of the resolution."""
    row, col = np.divmod(np.arange(80), 8)
    col = 2 * col + row % 2
    xy = np.column_stack([col * 50.0 + 100, row * 50 * np.sqrt(3) + 100])
    adata = spots((xy[:, ::-1] if exchanged else xy) * factor, array_row=row, array_col=col)
    factors = {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 65.0}
    picture = np.full((300, 300, 3), 200, dtype=np.uint8)
    adata.uns["spatial"] = {"slide": {"images": {"hires": picture}, "scalefactors": factors}}
    return adata


@pytest.mark.parametrize("exchanged", [False, True])
def test_exchanged_x_and_y_of_visium_are_reported(exchanged, caplog):
    embed(visium(exchanged=exchanged), unit=4)
    assert ("coordinates are the mirror image of array_row and array_col" in caplog.text) == exchanged


def test_pixels_of_the_downscaled_image_are_refused():
    with pytest.raises(
        ValueError, match=r"pixels of the image 'hires', not of the full-resolution one: spots are 25 apart"
    ):
        embed(visium(factor=0.25), unit=4)


@pytest.mark.parametrize("names", [["y", "x"], ["imagerow", "imagecol"], ["pxl_row_in_fullres", "pxl_col_in_fullres"]])
def test_named_columns_of_coordinates_in_another_order(names):
    right, named = visium(), visium()
    named.obsm["spatial"] = pd.DataFrame(right.obsm["spatial"][:, ::-1], columns=names, index=named.obs_names)
    for adata in (right, named):
        rng = np.random.default_rng(0)
        adata.uns["spatial"]["slide"]["images"]["hires"] = rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)
        embed(adata, unit=4)
    np.testing.assert_array_equal(right.obsm["X_patch"], named.obsm["X_patch"])
