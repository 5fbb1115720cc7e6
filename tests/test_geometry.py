from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from strecur._geometry import COMPOSE, ELEMENTS, INVERSE, KEEP_ROWS, NAMES, transform_coords, transform_patch

CANVAS = np.arange(12, dtype=np.uint8).reshape(3, 4)  # neither square nor symmetric
SQUARE = np.arange(9, dtype=np.uint8).reshape(3, 3)
every_element = pytest.mark.parametrize("g", range(8), ids=NAMES)


def test_the_eight_results_are_distinct():
    assert len({transform_patch(SQUARE, g).tobytes() for g in range(8)}) == 8
    assert len(set(ELEMENTS)) == len(set(NAMES)) == 8


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "identity": CANVAS,
        "flip_left_right": np.fliplr(CANVAS),
        "flip_up_down": np.flipud(CANVAS),
        "rotate_90": np.rot90(CANVAS),
        "rotate_180": np.rot90(CANVAS, 2),
        "rotate_270": np.rot90(CANVAS, 3),
        "transpose": CANVAS.T,
        "transverse": np.rot90(CANVAS.T, 2),
    }.items(),
)
def test_names_say_what_is_done(name, expected):
    np.testing.assert_array_equal(transform_patch(CANVAS, NAMES.index(name)), expected)


@pytest.mark.parametrize("code", list(Image.Transpose), ids=lambda code: code.name.lower())
def test_elements_follow_the_codes_of_pillow(code):
    turned = np.asarray(Image.fromarray(CANVAS).transpose(code))
    np.testing.assert_array_equal(transform_patch(CANVAS, code + 1), turned)
    assert NAMES[code + 1] == code.name.lower().replace("flip_top_bottom", "flip_up_down")


@every_element
def test_channels_come_along(g):
    colours = np.stack([CANVAS, CANVAS + 100], axis=-1)
    turned = transform_patch(colours, g)
    np.testing.assert_array_equal(turned[..., 1], transform_patch(CANVAS, g) + 100)


@every_element
def test_coordinates_move_with_the_pixels(g):
    row, col = np.indices(CANVAS.shape)
    moved = transform_coords(row, col, g, *CANVAS.shape)
    np.testing.assert_array_equal(transform_patch(CANVAS, g)[moved], CANVAS)


@every_element
def test_inverse_undoes(g):
    np.testing.assert_array_equal(transform_patch(transform_patch(CANVAS, g), INVERSE[g]), CANVAS)


def test_inverse_table():
    """Only the quarter turns are not their own inverse; counted from the turns, the table is 0 3 2 1 4 5 6 7."""
    turns_first = ["identity", "rotate_90", "rotate_180", "rotate_270"]
    order = [NAMES.index(name) for name in [*turns_first, *(n for n in NAMES if n not in turns_first)]]
    assert [order.index(INVERSE[g]) for g in order] == [0, 3, 2, 1, 4, 5, 6, 7]


def test_composition_is_one_after_the_other():
    for first in range(8):
        for then in range(8):
            expected = transform_patch(transform_patch(CANVAS, first), then)
            np.testing.assert_array_equal(transform_patch(CANVAS, COMPOSE[first][then]), expected)
    assert all(sorted(row) == list(range(8)) for row in COMPOSE)  # a group: every element is reached once


def test_elements_without_transpose_keep_an_oblong_lattice():
    assert [g for g in range(8) if transform_patch(CANVAS, g).shape == CANVAS.shape] == list(KEEP_ROWS)


@pytest.mark.parametrize("g", KEEP_ROWS)
def test_hex_lattice_maps_onto_itself_or_its_mirror(g):
    """On 78 × 128 sites with even row + column, half a turn keeps the parity and one flip changes it for all spots."""
    row, col = np.nonzero(np.add.outer(np.arange(78), np.arange(128)) % 2 == 0)
    new_row, new_col = transform_coords(row, col, g, 78, 128)
    assert new_row.min() >= 0
    assert new_row.max() < 78
    assert new_col.min() >= 0
    assert new_col.max() < 128
    assert set(((new_row + new_col) % 2).tolist()) == {0 if NAMES[g] in ("identity", "rotate_180") else 1}
