"""Symmetries of lattices and images, and positions of lattice sites.

The eight symmetries of the square (group D4) are one table, shared by images, patches and lattices.
"""

from __future__ import annotations

import numpy as np

NAMES = (
    "identity",
    "flip_left_right",
    "flip_up_down",
    "rotate_90",
    "rotate_180",
    "rotate_270",
    "transpose",
    "transverse",
)
"""Identity, then the transpose codes 0 to 6 of Pillow in their order; rotations are counter-clockwise on the screen."""

ELEMENTS = (
    (False, False, False),
    (False, False, True),
    (False, True, False),
    (True, True, False),
    (False, True, True),
    (True, False, True),
    (True, False, False),
    (True, True, True),
)
"""Element ``g`` as (transpose, flip rows, flip columns): first swap rows and columns, then reverse the new axes."""

KEEP_ROWS = (0, 1, 2, 4)
"""The elements without transpose: the only ones that map a hexagonal or an oblong lattice onto itself."""


def transform_patch(patch: np.ndarray, g: int) -> np.ndarray:
    """Apply element ``g`` to an image, rows × columns (× channels).

    Parameters
    ----------
    patch
        Array whose first two axes are rows and columns.
    g
        Index into :data:`ELEMENTS`.

    Returns
    -------
    A view of ``patch``.
    """
    transpose, flip_row, flip_col = ELEMENTS[g]
    if transpose:
        patch = patch.swapaxes(0, 1)
    return patch[:: -1 if flip_row else 1, :: -1 if flip_col else 1]


def transform_coords(
    row: np.ndarray, col: np.ndarray, g: int, n_rows: int, n_cols: int
) -> tuple[np.ndarray, np.ndarray]:
    """Apply element ``g`` to sites of an ``n_rows`` × ``n_cols`` lattice.

    ``transform_patch(canvas, g)[transform_coords(row, col, g, *canvas.shape)]`` equals ``canvas[row, col]``.

    Parameters
    ----------
    row, col
        Sites, counted from 0.
    g
        Index into :data:`ELEMENTS`.
    n_rows, n_cols
        Size of the lattice before the transform.

    Returns
    -------
    Row and column after the transform.
    """
    transpose, flip_row, flip_col = ELEMENTS[g]
    if transpose:
        row, col, n_rows, n_cols = col, row, n_cols, n_rows
    return (n_rows - 1 - row if flip_row else row), (n_cols - 1 - col if flip_col else col)


def _compose(first: int, then: int) -> int:
    first_transpose, *first_flips = ELEMENTS[first]
    then_transpose, *then_flips = ELEMENTS[then]
    # A transpose that comes later carries an earlier flip over to the other axis.
    flips = first_flips[::-1] if then_transpose else first_flips
    flip_row, flip_col = (a != b for a, b in zip(flips, then_flips, strict=True))
    return ELEMENTS.index((first_transpose != then_transpose, flip_row, flip_col))


COMPOSE = tuple(tuple(_compose(first, then) for then in range(8)) for first in range(8))
"""``COMPOSE[a][b]`` is the element that equals ``a`` followed by ``b``."""

INVERSE = tuple(row.index(0) for row in COMPOSE)
"""``INVERSE[g]`` undoes ``g``: rotations by 90 and 270 degrees swap, every other element is its own inverse."""


def physical_positions(row: np.ndarray, col: np.ndarray, layout: str) -> np.ndarray:
    """Positions proportional to micrometres; Visium's doubled columns are √3 narrower than rows are high."""
    height = np.sqrt(3) if layout == "hex" else 1.0
    return np.column_stack([row * height, col]).astype(np.float64)
