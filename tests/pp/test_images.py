from __future__ import annotations

import struct
import warnings
import zlib
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from strecur.pp.image import decoding, section_image, tiff
from strecur.pp.image.colours import to_rgb
from strecur.pp.image.decoding import open_image

if TYPE_CHECKING:
    from pathlib import Path

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
WHITE = np.array([255, 255, 255])


def read(source: object) -> np.ndarray:
    """Return the whole image as the package sees it."""
    with closing(open_image(source, label="test")) as image:
        return image.region(0, 0, *image.shape)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, **options)
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def write_pyramid(path: Path, levels: list[np.ndarray]) -> Path:
    with tifffile.TiffWriter(path) as tif:
        tif.write(levels[0], subifds=len(levels) - 1, tile=(64, 64), photometric="rgb", compression="zlib")
        for level in levels[1:]:
            tif.write(level, subfiletype=1, tile=(64, 64), photometric="rgb", compression="zlib")
    return path


# Regions


def test_region_is_cut_where_asked():
    image = open_image(PIXELS, label="test")
    assert image.shape == (40, 60)
    np.testing.assert_array_equal(image.region(5, 7, 11, 13), PIXELS[5:16, 7:20])


@pytest.mark.parametrize(("limit", "n_reads"), [(PIXELS.size, 1), (PIXELS.size - 1, 3)])
def test_a_small_array_of_chunks_is_read_once_for_many_windows(monkeypatch, limit, n_reads):
    da = pytest.importorskip("dask.array")
    monkeypatch.setattr(section_image, "MAX_LOADED_VALUES", limit)
    read = []

    def chunk(block: np.ndarray) -> np.ndarray:
        read.append(1)
        return block

    stored = da.from_array(PIXELS, chunks=-1).map_blocks(chunk, meta=PIXELS[:0])
    opened = open_image(stored, label="test")
    read.clear()
    image = opened.loaded()
    for row in (0, 5, 9):
        np.testing.assert_array_equal(image.region(row, 7, 11, 13), PIXELS[row : row + 11, 7:20])
    assert len(read) == n_reads


@pytest.mark.parametrize(("row", "col"), [(-4, -6), (-4, 55), (35, -6), (35, 55)])
def test_beyond_the_border_is_white(row, col):
    padded = np.full((60, 80, 3), 255, dtype=np.uint8)
    padded[10:50, 10:70] = PIXELS
    region = open_image(PIXELS, label="test").region(row, col, 9, 10)
    np.testing.assert_array_equal(region, padded[10 + row : 19 + row, 10 + col : 20 + col])


@pytest.mark.parametrize(("row", "col"), [(-50, 0), (0, 60), (40, 10), (100, 100)])
def test_outside_there_is_nothing_but_white(row, col):
    assert (open_image(PIXELS, label="test").region(row, col, 10, 10) == WHITE).all()


def test_damage_outside_the_region_is_not_noticed_because_it_is_not_read(tmp_path):
    """Of a tiled TIFF only the tiles under a region are decoded, so that gigapixel images can be read."""
    pixels = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = save(tmp_path / "tiled.tif", pixels, tile=(64, 64), photometric="rgb", compression="zlib")
    with tifffile.TiffFile(path) as tif:
        offsets = tif.pages[0].dataoffsets
    intact = 5  # row 1, column 1
    with path.open("r+b") as file:
        for offset in (o for i, o in enumerate(offsets) if i != intact):
            file.seek(offset)
            file.write(b"\x00" * 16)
    with closing(open_image(path, label="test")) as image:
        np.testing.assert_array_equal(image.region(70, 80, 50, 40), pixels[70:120, 80:120])
        with pytest.raises(OSError, match=r"tiled\.tif is damaged"):
            image.region(0, 0, 64, 64)


def test_pyramid_gives_regions_of_the_finest_and_thumbnails_of_the_coarsest_level_that_is_large_enough(tmp_path):
    sides = (256, 128, 64)
    levels = [np.full((n, n, 3), 40 * i, dtype=np.uint8) for i, n in enumerate(sides)]
    with closing(open_image(write_pyramid(tmp_path / "p.tif", levels), label="test")) as image:
        assert image.shape == (256, 256)
        assert (image.region(10, 10, 100, 100) == 0).all()
        for max_side, level in ((200, 0), (128, 1), (100, 1), (64, 2), (30, 2)):
            thumbnail = image.thumbnail(max_side)
            assert (thumbnail == 40 * level).all()
            assert max(thumbnail.shape) <= max_side


@pytest.mark.parametrize("shape", [(1000, 700), (1023, 511), (37, 3000)])
def test_thumbnail_is_the_area_average(shape):
    image = open_image(np.broadcast_to(np.indices(shape)[1][..., None] % 256, (*shape, 3)).astype(np.uint8), label="x")
    thumbnail = image.thumbnail(100)
    factor = -(-max(shape) // 100)
    assert thumbnail.shape[:2] == tuple(-(-n // factor) for n in shape)
    block = image.region(0, 0, factor, factor)
    np.testing.assert_allclose(thumbnail[0, 0], block.mean(axis=(0, 1)), atol=1)


# Kinds of images


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_lossless_files_equal_the_array(tmp_path, name):
    np.testing.assert_array_equal(read(save(tmp_path / name, PIXELS)), PIXELS)
    np.testing.assert_array_equal(read(str(tmp_path / name)), PIXELS)


def test_jpeg_is_close_to_the_array(tmp_path, draw_slide):
    rgb = draw_slide().rgb
    assert np.abs(read(save(tmp_path / "a.jpg", rgb, quality=95)).astype(int) - rgb).mean() < 5


@pytest.mark.parametrize("options", [{}, {"tile": (16, 16)}, {"planarconfig": "separate"}, {"bigtiff": True}])
def test_layouts_of_tiff(tmp_path, options):
    pixels = np.moveaxis(PIXELS, -1, 0) if "planarconfig" in options else PIXELS
    np.testing.assert_array_equal(read(save(tmp_path / "a.tif", pixels, photometric="rgb", **options)), PIXELS)


def test_jpeg_in_tiff_is_read(tmp_path, draw_slide):
    pytest.importorskip("imagecodecs")
    rgb = draw_slide().rgb
    path = save(tmp_path / "a.tif", rgb, tile=(64, 64), photometric="rgb", compression="jpeg")
    assert np.abs(read(path).astype(int) - rgb).mean() < 5


def test_image_elements_with_and_without_scales():
    models = pytest.importorskip("spatialdata.models")
    channels_first = np.moveaxis(PIXELS, -1, 0)
    np.testing.assert_array_equal(read(models.Image2DModel.parse(channels_first, dims=("c", "y", "x"))), PIXELS)
    scaled = models.Image2DModel.parse(channels_first, dims=("c", "y", "x"), scale_factors=[2])
    np.testing.assert_array_equal(read(scaled), PIXELS)
    assert open_image(scaled, label="x").thumbnail(30).shape == (20, 30, 3)


def test_grey_becomes_three_equal_channels(tmp_path):
    grey = PIXELS[..., 0]
    for source in (grey, grey[..., None], save(tmp_path / "a.png", grey), save(tmp_path / "a.tif", grey)):
        np.testing.assert_array_equal(read(source), np.repeat(grey[..., None], 3, axis=-1))


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.concatenate([PIXELS, np.full((40, 60, 1), 255, dtype=np.uint8)], axis=-1)
    rgba[:10, :, 3] = 0
    rgba[10:20, :, 3] = 51  # a fifth
    for source in (rgba, save(tmp_path / "a.png", rgba), save(tmp_path / "a.tif", rgba, photometric="rgb")):
        pixels = read(source)
        assert (pixels[:10] == 255).all()
        np.testing.assert_allclose(pixels[10:20], 0.2 * PIXELS[10:20] + 0.8 * 255, atol=1)
        np.testing.assert_array_equal(pixels[20:], PIXELS[20:])


@pytest.mark.parametrize("top", [255, 4095, 65535])
def test_sixteen_bits_are_scaled_by_their_white(tmp_path, top):
    """8, 12 and 16 bits are all stored as uint16; the brightest pixel tells which white is meant."""
    wide = np.rint(PIXELS / 255 * top).astype(np.uint16)
    for source in (wide, save(tmp_path / "a.tif", wide, photometric="rgb")):
        np.testing.assert_allclose(read(source), PIXELS, atol=1)
    grey = save(tmp_path / "a.png", wide[..., 0])
    np.testing.assert_allclose(read(grey)[..., 0], PIXELS[..., 0], atol=1)


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_are_scaled_by_their_white(top):
    np.testing.assert_allclose(read(PIXELS / 255 * top), PIXELS, atol=1)


@pytest.mark.parametrize("mode", ["P", "L", "LA", "CMYK", "1", "I;16", "F"])
def test_modes_of_pillow_become_rgb(tmp_path, mode):
    black = {"LA": (0, 255), "CMYK": (0, 0, 0, 255)}.get(mode, 0)
    path = tmp_path / {"CMYK": "a.jpg", "F": "a.tiff"}.get(mode, "a.png")
    Image.new(mode, (6, 4), black).save(path)
    pixels = read(path)
    assert pixels.shape == (4, 6, 3)
    assert pixels.max() <= 1


def test_to_rgb_leaves_bytes_alone():
    assert to_rgb(PIXELS, white=255.0) is PIXELS


# What cannot be read


def test_missing_file():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        open_image("nowhere.jpg", label="nowhere.jpg")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.svs"])
def test_files_that_are_no_images(tmp_path, name):
    (tmp_path / name).write_text("not an image")
    with pytest.raises(OSError, match=r"a.* (is not an image|cannot be read as TIFF)"):
        open_image(tmp_path / name, label="test")


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_truncated_files_name_the_file(tmp_path, draw_slide, name):
    path = save(tmp_path / name, draw_slide().rgb)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(OSError, match=f"{name} is damaged"):
        read(path)


def test_decompression_bomb_raises_before_decoding(tmp_path):
    """The header claims 100,000 × 100,000 pixels, for which there would be no memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"bomb\.png .*tiled TIFF"):
        open_image(path, label="bomb")


def test_large_file_names_the_command_that_makes_it_readable(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "MAX_DECODED_PIXELS", 2000)
    path = save(tmp_path / "large.png", PIXELS)
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(ValueError, match=r"60 × 40 pixels.*vips tiffsave large\.png large\.tif --tile --pyramid"),
    ):
        open_image(path, label="large")


def test_a_tiff_in_one_piece_that_is_too_large_raises_and_tiles_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tiff, "MAX_DECODED_PIXELS", 2000)
    whole = save(tmp_path / "whole.tif", PIXELS, rowsperstrip=40, photometric="rgb", compression="zlib")
    with pytest.raises(
        ValueError, match=r"60 × 40 pixels in one piece.*vips tiffsave whole\.tif whole_tiled\.tif --tile"
    ):
        open_image(whole, label="whole")
    for options in ({"tile": (32, 32)}, {"rowsperstrip": 8}, {"planarconfig": "separate", "rowsperstrip": 8}):
        pixels = np.moveaxis(PIXELS, -1, 0) if "planarconfig" in options else PIXELS
        path = save(tmp_path / "parts.tif", pixels, photometric="rgb", compression="zlib", **options)
        np.testing.assert_array_equal(read(path), PIXELS)


def test_a_tiff_that_claims_more_pixels_than_a_slide_has_raises(tmp_path):
    """Width and height are overwritten in the file, as no such image can be written."""
    path = save(tmp_path / "huge.tif", PIXELS, tile=(32, 32), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["ImageWidth"].overwrite(1_000_000, dtype="I")
        tif.pages[0].tags["ImageLength"].overwrite(1_000_000, dtype="I")
    with pytest.raises((ValueError, OSError), match=r"huge\.tif (claims 1000000 × 1000000|cannot be read)"):
        open_image(path, label="huge")


def test_limit_of_pillow_is_as_before(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    read(save(tmp_path / "a.png", PIXELS))
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5, 2), np.uint8), "expected grey, RGB or RGBA"),
        (np.zeros((40, 60, 7), np.uint8), "expected grey, RGB or RGBA"),
        (np.zeros((4, 5, 3, 3), np.uint8), "expected grey, RGB or RGBA"),
        (np.zeros((0, 5, 3), np.uint8), "expected grey, RGB or RGBA"),
        (np.zeros((3, 40, 60), np.uint8), "channels come last"),
        (np.full((4, 5, 3), np.nan), "non-finite"),
        (np.full((4, 5, 3), -1.0), "negative"),
        (np.full((4, 5, 3), 1e6), r"values up to 1e\+06"),
        (np.full((4, 5, 3), "x"), "expected numbers"),
    ],
)
def test_arrays_that_are_no_images(array, message):
    with pytest.raises(ValueError, match=message):
        open_image(array, label="test")


def test_stack_of_pages_raises(tmp_path):
    path = save(tmp_path / "stack.tif", np.zeros((5, 40, 60), np.uint16), photometric="minisblack")
    with pytest.raises(ValueError, match=r"stack\.tif has axes"):
        open_image(path, label="test")


def test_real_section_is_opened_without_decoding_it(data_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow would warn of 92 million pixels
        with closing(open_image(data_dir / "her2st" / "images" / "C2.jpg", label="C2")) as image:
            assert image.shape == (9911, 9274)
            assert "_pixels" not in vars(image.levels[0])
