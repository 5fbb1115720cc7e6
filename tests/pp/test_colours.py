"""The same picture in every form in which files and arrays store it has the same colours, or is refused."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from strecur.pp import tile_image
from strecur.pp.image.colours import colour_channels, white_of
from strecur.pp.image.decoding import open_image

if TYPE_CHECKING:
    from pathlib import Path

tifffile = pytest.importorskip("tifffile")
HEIGHT, WIDTH = 48, 64


def draw() -> np.ndarray:
    """Draw glass, pink tissue and purple nuclei in smooth gradients, different in every corner."""
    row, col = np.indices((HEIGHT, WIDTH)) / [[[HEIGHT]], [[WIDTH]]]
    tissue = np.stack([200 - 60 * row, 90 + 60 * col, 170 - 40 * row * col], axis=-1)
    inside = (((row - 0.4) / 0.35) ** 2 + ((col - 0.6) / 0.35) ** 2 < 1)[..., None]
    return np.where(inside, tissue, 250).astype(np.uint8)


PICTURE = draw()
RGB = Image.fromarray(PICTURE)
GREY = np.asarray(RGB.convert("L"))


def read(source: object) -> np.ndarray:
    """Return the whole image as the package sees it."""
    with closing(open_image(source, label="test")) as image:
        return image.region(0, 0, *image.shape)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


# Colour spaces of TIFF

RGBA = np.dstack([PICTURE, np.full(GREY.shape, 51, dtype=np.uint8)])
OVER_WHITE = np.rint(PICTURE * 0.2 + 255 * 0.8)
INDICES = RGB.convert("P", palette=Image.Palette.ADAPTIVE, colors=200)
PALETTE_16 = np.zeros((3, 256), dtype=np.uint16)
PALETTE_16[:, : len(INDICES.getpalette()) // 3] = np.reshape(INDICES.getpalette(), (-1, 3)).T * 257
CMYK = np.asarray(RGB.convert("CMYK"))
FROM_YCBCR = np.asarray(RGB.convert("YCbCr").convert("RGB"))


def write(path: Path, pixels: np.ndarray, **options) -> None:
    tifffile.imwrite(path, pixels, **options)


FORMS = {
    "rgb": (partial(write, pixels=PICTURE, photometric="rgb"), PICTURE),
    "rgb, planes": (
        partial(write, pixels=np.moveaxis(PICTURE, -1, 0), photometric="rgb", planarconfig="separate"),
        PICTURE,
    ),
    "rgb, 16 bits": (partial(write, pixels=PICTURE.astype(np.uint16) * 257, photometric="rgb"), PICTURE),
    "rgb, 16 bits, big-endian": (
        partial(write, pixels=PICTURE.astype(np.uint16) * 257, photometric="rgb", byteorder=">"),
        PICTURE,
    ),
    "rgb, compressed": (
        partial(write, pixels=PICTURE, photometric="rgb", compression="lzw", predictor=True, tile=(16, 16)),
        PICTURE,
    ),
    "rgb, floats": (partial(write, pixels=(PICTURE / 255).astype(np.float32), photometric="rgb"), PICTURE),
    "alpha": (partial(write, pixels=RGBA, photometric="rgb", extrasamples=["unassalpha"]), OVER_WHITE),
    "premultiplied alpha": (
        partial(
            write,
            pixels=np.dstack([np.rint(PICTURE * 0.2).astype(np.uint8), RGBA[..., 3]]),
            photometric="rgb",
            extrasamples=["assocalpha"],
        ),
        OVER_WHITE,
    ),
    "a fourth sample without meaning": (
        partial(write, pixels=RGBA, photometric="rgb", extrasamples=["unspecified"]),
        PICTURE,
    ),
    "grey": (partial(write, pixels=GREY, photometric="minisblack"), as_rgb(GREY)),
    "grey with alpha": (
        partial(write, pixels=RGBA[..., 2:], photometric="minisblack", extrasamples=["unassalpha"]),
        as_rgb(OVER_WHITE[..., 2]),
    ),
    "white is zero": (partial(write, pixels=255 - GREY, photometric="miniswhite"), as_rgb(GREY)),
    "white is zero, 16 bits": (
        partial(write, pixels=(255 - GREY).astype(np.uint16) * 257, photometric="miniswhite"),
        as_rgb(GREY),
    ),
    "palette": (INDICES.save, np.asarray(INDICES.convert("RGB"))),
    "palette by tifffile": (
        partial(write, pixels=np.asarray(INDICES), photometric="palette", colormap=PALETTE_16),
        np.asarray(INDICES.convert("RGB")),
    ),
    "cmyk": (lambda path: RGB.convert("CMYK").save(path), PICTURE),
    "cmyk, planes": (
        partial(write, pixels=np.moveaxis(CMYK, -1, 0), photometric="separated", planarconfig="separate"),
        PICTURE,
    ),
    "cmyk, 16 bits": (partial(write, pixels=CMYK.astype(np.uint16) * 257, photometric="separated"), PICTURE),
    "ycbcr": (lambda path: RGB.convert("YCbCr").save(path), FROM_YCBCR),
    "ycbcr, compressed": (
        lambda path: RGB.convert("YCbCr").save(path, compression="tiff_lzw"),
        FROM_YCBCR,
    ),
    "ycbcr, jpeg": (
        partial(
            write, pixels=PICTURE, photometric="rgb", compression="jpeg", compressionargs={"outcolorspace": "ycbcr"}
        ),
        PICTURE,
    ),
    "rgb, jpeg": (partial(write, pixels=PICTURE, photometric="rgb", compression="jpeg"), PICTURE),
    "jpeg by Pillow": (lambda path: RGB.save(path, compression="jpeg", quality=95), PICTURE),
    "lab": (lambda path: RGB.convert("LAB").save(path), PICTURE),
}


@pytest.mark.parametrize("form", FORMS)
def test_colour_spaces_of_tiff_become_the_same_rgb(tmp_path, form):
    save, expected = FORMS[form]
    save(tmp_path / "a.tif")
    difference = np.abs(read(tmp_path / "a.tif") - expected.astype(float))
    assert difference.mean() < 3
    assert "jpeg" in form or difference.max() <= (10 if form == "lab" else 1)


@pytest.mark.parametrize("form", ["rgb", "cmyk", "palette", "ycbcr", "white is zero", "lab"])
def test_regions_of_tiff_are_those_of_the_whole(tmp_path, form):
    FORMS[form][0](tmp_path / "a.tif")
    with closing(open_image(tmp_path / "a.tif", label="test")) as image:
        np.testing.assert_array_equal(image.region(5, 7, 11, 13), image.whole()[5:16, 7:20])


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_sixteen_bit_files_are_scaled_by_the_bits_they_use(tmp_path, bits):
    wide = np.rint(PICTURE / 255 * (2**bits - 1)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", wide, photometric="rgb")
    for source in (wide, wide.astype(np.float32), wide.astype(np.int32), tmp_path / "a.tif"):
        np.testing.assert_allclose(read(source), PICTURE, atol=1)


def test_significant_bits_of_ome_are_taken(tmp_path):
    """A dark picture of 12 bits would be taken for one of 10 by its range."""
    dark = (PICTURE.astype(np.uint16) * 16) // 5
    tifffile.imwrite(tmp_path / "a.ome.tif", dark, photometric="rgb", metadata={"axes": "YXS", "SignificantBits": 12})
    np.testing.assert_allclose(read(tmp_path / "a.ome.tif"), PICTURE / 5, atol=1)


# What is refused


def ome(path: Path, pixels: np.ndarray, names: list[str] | None) -> Path:
    metadata = {"axes": "CYX"} | ({} if names is None else {"Channel": {"Name": names}})
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=metadata)
    return path


CHANNELS = np.moveaxis(PICTURE, -1, 0)


@pytest.mark.parametrize(
    ("pixels", "names", "message"),
    [
        (
            CHANNELS,
            ["DAPI", "CD3", "CD20"],
            r"3 channels, \['DAPI', 'CD3', 'CD20'\], which are not red, green and blue",
        ),
        (CHANNELS, None, "'unnamed', 'unnamed'], which are not red, green and blue; pass the right ones as an arr"),
        (CHANNELS[[0, 1, 2, 0]], ["DAPI", "r", "g", "b"], "4 channels"),
        (CHANNELS[[0, 1]], ["r", "g"], "2 channels"),
        (CHANNELS[[0, 1, 2, 0, 1]], None, "5 channels"),
    ],
)
def test_channels_of_fluorescence_are_not_taken_for_colours(tmp_path, pixels, names, message):
    with pytest.raises(ValueError, match=message):
        open_image(ome(tmp_path / "a.ome.tif", pixels, names), label="test")


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_named_colours_are_put_in_order(tmp_path, order):
    names = [["Red", "Green", "Blue"][i] for i in order]
    path = ome(tmp_path / "a.ome.tif", CHANNELS[order], names)
    np.testing.assert_array_equal(read(path), PICTURE)


REFUSED = {
    "other inks": (
        {"pixels": CMYK, "photometric": "separated", "extratags": [(332, "H", 1, 2, True)]},
        "colour space SEPARATED",
    ),
    "lab of 16 bits": ({"pixels": PICTURE.astype(np.uint16), "photometric": "cielab"}, "colour space CIELAB with 3"),
    "another lab": ({"pixels": PICTURE, "photometric": "icclab"}, "colour space ICCLAB"),
    "grey with three samples": (
        {"pixels": PICTURE, "photometric": "minisblack", "planarconfig": "contig"},
        "colour space MINISBLACK with 3 channels",
    ),
    "stored turned": (
        {"pixels": PICTURE, "photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]},
        r"stored turned or flipped \(orientation 6\)",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_tiffs_that_cannot_be_shown_raise(tmp_path, form):
    options, message = REFUSED[form]
    write(tmp_path / "a.tif", **options)
    with pytest.raises(ValueError, match=message):
        open_image(tmp_path / "a.tif", label="test")


def test_several_slides_in_one_file_raise_and_labels_do_not(tmp_path):
    with tifffile.TiffWriter(tmp_path / "two.tif") as tif:
        for width in (WIDTH, WIDTH - 10):
            tif.write(np.ascontiguousarray(PICTURE[:, :width]), photometric="rgb")
    with pytest.raises(ValueError, match=r"two\.tif holds 2 images, of shapes \[\(48, 64, 3\), \(48, 54, 3\)\]"):
        open_image(tmp_path / "two.tif", label="test")
    with tifffile.TiffWriter(tmp_path / "label.tif") as tif:
        for pixels in (PICTURE, PICTURE[:20, :20]):
            tif.write(np.ascontiguousarray(pixels), photometric="rgb")
    np.testing.assert_array_equal(read(tmp_path / "label.tif"), PICTURE)


# Other files


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_pictures_are_turned_upright(tmp_path, name, orientation):
    """The stored pixels are those that the orientation turns into the picture."""
    stored = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.swapaxes(0, 1),
        6: np.rot90,
        7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
        8: lambda p: np.rot90(p, -1),
    }[orientation](PICTURE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {"quality": 98, "subsampling": 0} if name == "a.jpg" else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / name, exif=exif, **options)
    assert open_image(tmp_path / name, label="test").shape == (HEIGHT, WIDTH)
    assert np.abs(read(tmp_path / name) - PICTURE.astype(float)).mean() < 2


@pytest.mark.parametrize(("name", "form"), [("a.png", "TIFF"), ("a.tif", "PNG"), ("slide", "TIFF"), ("b.svs", "JPEG")])
def test_files_are_read_by_their_contents_not_their_names(tmp_path, name, form):
    RGB.save(tmp_path / name, format=form)
    difference = np.abs(read(tmp_path / name) - PICTURE.astype(float))
    assert difference.mean() < 4 if form == "JPEG" else difference.max() == 0


def test_png_of_twelve_bits_is_not_read_as_black(tmp_path):
    codec = pytest.importorskip("imagecodecs")
    wide = PICTURE.astype(np.uint16)
    (tmp_path / "full.png").write_bytes(codec.png_encode(wide * 257))
    np.testing.assert_allclose(read(tmp_path / "full.png"), PICTURE, atol=1)
    (tmp_path / "low.png").write_bytes(codec.png_encode(wide * 16))
    with pytest.raises(OSError, match=r"low\.png .*of its 16 bits per channel only the lower ones are used"):
        read(tmp_path / "low.png")


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "LAB", "P", "HSV"])
def test_images_of_pillow_know_their_colours(mode):
    np.testing.assert_allclose(read(RGB.convert(mode)), np.asarray(RGB.convert(mode).convert("RGB")), atol=1)


# Ranges of arrays


@given(
    white=st.sampled_from([1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0]),
    dtype=st.sampled_from([np.float32, np.float64, np.float16, np.uint16, np.int32]),
    over=st.floats(0, 0.2),
    under=st.floats(0, 0.2),
    n_stray=st.integers(0, 3),
    seed=st.integers(0, 100),
)
def test_what_interpolation_and_hot_pixels_push_beyond_the_range_is_clipped(white, dtype, over, under, n_stray, seed):
    is_float = np.dtype(dtype).kind == "f"
    if (white == 1 and not is_float) or (dtype is np.float16 and white > 16383):
        return
    rng = np.random.default_rng(seed)
    values = PICTURE / 255 * white
    if is_float:
        some = rng.random(values.shape) < 0.005
        values = np.where(some & (PICTURE >= 250), white * (1 + over), np.where(some, -white * under, values))
    else:
        some = np.zeros(values.shape, dtype=bool)
    for _ in range(n_stray):
        place = tuple(rng.integers(values.shape))
        values[place], some[place] = min(3 * white, 65000.0), True
    values = np.rint(values).astype(dtype) if not is_float else values.astype(dtype)
    kept = ~some
    np.testing.assert_allclose(read(values)[kept], PICTURE[kept], atol=1)


@pytest.mark.parametrize("top", [1 + 7e-16, 1.0000001, 1.02, 1.2])
@pytest.mark.parametrize("bottom", [0.0, -1e-9, -0.04])
def test_a_float_image_just_beyond_its_range(top, bottom):
    values = PICTURE / 255
    values[0, 0], values[0, 1] = top, bottom
    np.testing.assert_allclose(read(values)[1:], PICTURE[1:], atol=1)
    assert (read(values)[0, 0] == 255).all()
    assert (read(values)[0, 1] == 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (PICTURE / 127.5 - 1, "negative values"),
        ((PICTURE - 150.0) / 60, "values up to 1.66667, which is neither"),
        (PICTURE * 1e4, "values up to"),
        ((PICTURE - 150.0) / 20, "values up to 5"),
        (np.where(PICTURE == 250, np.nan, PICTURE), "non-finite"),
        (PICTURE > 128, "holds bool"),
        (PICTURE.astype(complex), "holds complex"),
    ],
)
def test_values_that_are_no_colours_raise(values, message):
    with pytest.raises(ValueError, match=message):
        open_image(values, label="test")


def test_nan_that_the_sample_misses_raises_when_it_is_read():
    values = np.ones((4001, 50, 3), dtype=np.float32)
    values[2001, 7] = np.nan  # only every second row is sampled
    image = open_image(values, label="test")
    with pytest.raises(ValueError, match="the image test holds non-finite values"):
        image.region(2000, 0, 5, 20)
    assert (image.region(0, 0, 5, 20) == 255).all()


def test_white_of_bytes_needs_no_values():
    assert white_of(np.empty(0, dtype=np.uint8), label="test") == 255


# Names of channels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, [0, 1, 2]),
        ([0, 1, 2], [0, 1, 2]),
        (["r", "g", "b"], [0, 1, 2]),
        (["B", "G", "R"], [2, 1, 0]),
        (["alpha", "Red", "green", "blue "], [1, 2, 3, 0]),
        (["DAPI"], [0]),
    ],
)
def test_channels_are_ordered_by_their_names(names, expected):
    assert colour_channels(names, len(expected), label="x", hint="") == expected


@given(st.lists(st.sampled_from(["r", "g", "b", "a", "red", "DAPI", "0", "1", ""]), min_size=2, max_size=5))
def test_channels_are_colours_or_raise(names):
    places = [{"red": "r"}.get(name, name) for name in names]
    if sorted(places) in (["b", "g", "r"], ["a", "b", "g", "r"]):
        order = colour_channels(names, len(names), label="x", hint="")
        assert [places[i] for i in order] == ["r", "g", "b", "a"][: len(names)]
    else:
        with pytest.raises(ValueError, match="which are not red, green and blue"):
            colour_channels(names, len(names), label="x", hint="")


# One way for all


def test_tiles_have_the_colours_of_the_file(tmp_path):
    RGB.resize((640, 480)).convert("CMYK").save(tmp_path / "slide.tif")
    adata = tile_image(tmp_path / "slide.tif", pitch_px=40)
    thumbnail = adata.uns["spatial"]["slide"]["images"]["hires"]
    np.testing.assert_allclose(thumbnail, np.asarray(RGB.resize((640, 480))), atol=2)
