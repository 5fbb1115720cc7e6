"""How the stored values of an image become RGB: range, colour space, transparency and names of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

USUAL_WHITES = (255.0, 1023.0, 4095.0, 16383.0, 65535.0)
"""Values of white of 8, 10, 12, 14 and 16 bits, whatever the type in which they are stored."""

MAX_OVERSHOOT = 0.25
"""Interpolation pushes floats beyond white, with cubic splines by up to a quarter of their range."""

LOWEST_FLOAT_WHITE = 16.0
"""Floats whose largest value is between 1 and this are neither shares of white nor bytes: standardised, for example."""

STRAY = 0.001
"""Share of values that do not count for the range: hot pixels."""

MAX_NEGATIVE = 0.01
"""Share of values that may lie below black by more than rounding (a twentieth of the range), after interpolation."""

COLOUR_NAMES = {"r": 0, "red": 0, "g": 1, "green": 1, "b": 2, "blue": 2, "a": 3, "alpha": 3}
"""Names of channels and their place in RGBA."""


def white_of(values: np.ndarray, *, label: str) -> float:
    """Return the value of white: 255 for bytes, else the smallest usual one that hardly a value exceeds.

    Parameters
    ----------
    values
        Values of the image, or a sample of them.
    label
        Name of the image in messages.

    Raises
    ------
    ValueError
        If the values are not numbers, not finite, clearly negative or larger than 16 bits.
    """
    if values.dtype == np.uint8:
        return 255.0
    if values.dtype.kind not in "uif":
        msg = f"the image {label} holds {values.dtype}; expected numbers"
        raise ValueError(msg)
    if not np.isfinite(values).all():
        msg = f"the image {label} holds non-finite values; replace NaN by the value of white"
        raise ValueError(msg)
    return _usual_white(values, label)


def _usual_white(values: np.ndarray, label: str) -> float:
    is_float = values.dtype.kind == "f"
    values = values.astype(np.float64)
    top = float(np.quantile(values, 1 - STRAY, method="lower"))
    whites, slack = ((1.0, *USUAL_WHITES), MAX_OVERSHOOT) if is_float else (USUAL_WHITES, 0.01)
    white = next((white for white in whites if top <= white * (1 + slack)), None)
    if white is None or (is_float and 1 + slack < top < LOWEST_FLOAT_WHITE):
        msg = (
            f"the image {label} has values up to {top:g}, which is neither the white of 8 to 16 bits nor 1; convert it "
            "to 8 bits per channel"
        )
        raise ValueError(msg)
    if np.mean(values < -0.05 * white) > MAX_NEGATIVE:
        msg = f"the image {label} has negative values, down to {values.min():g}; expected 0 (black) to {white:g}"
        raise ValueError(msg)
    return white


def to_bytes(block: np.ndarray, *, white: float) -> np.ndarray:
    """Scale values of 0 to ``white`` to uint8; what lies beyond is clipped."""
    if block.dtype == np.uint8 and white == 255:
        return block
    return np.clip(np.rint(np.asarray(block, dtype=np.float32) * (255 / white)), 0, 255).astype(np.uint8)


def to_rgb(block: np.ndarray, *, white: float) -> np.ndarray:
    """Convert rows × columns × channels (grey or RGB, with or without alpha) to RGB uint8; alpha is over white.

    Parameters
    ----------
    block
        Rows × columns, or rows × columns × 1 to 4 channels.
    white
        Value of white.
    """
    block = to_bytes(block[..., None] if block.ndim == 2 else block, white=white)
    n_channels = block.shape[-1]
    if n_channels == 3:
        return block
    opaque = block if n_channels == 1 else _over_white(block[..., :-1], block[..., -1:])
    return np.repeat(opaque, 3, axis=-1) if opaque.shape[-1] == 1 else opaque


def _over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha.astype(np.float32) / 255
    return np.rint(colours * share + 255 * (1 - share)).astype(np.uint8)


def from_premultiplied(block: np.ndarray, *, white: float) -> np.ndarray:
    """Convert grey or RGB that is multiplied by its alpha (the last channel) to RGB uint8 over white."""
    block = to_bytes(block, white=white)
    colours, alpha = block[..., :-1].astype(np.int16), block[..., -1:]
    return to_rgb(np.clip(colours + (255 - alpha.astype(np.int16)), 0, 255).astype(np.uint8), white=255)


def from_inverted(block: np.ndarray, *, white: float) -> np.ndarray:
    """Convert grey values of 0 (white) to ``white`` (black) to RGB uint8."""
    return to_rgb(255 - to_bytes(block, white=white), white=255)


def from_palette(block: np.ndarray, *, palette: np.ndarray) -> np.ndarray:
    """Look indices up in a palette, colours × 3 uint8."""
    return palette[block[..., 0] if block.ndim == 3 else block]


def from_mode(block: np.ndarray, *, mode: str, white: float = 255.0) -> np.ndarray:
    """Convert a colour space by its mode in Pillow (``"CMYK"``, ``"YCbCr"``, ``"LAB"``) to RGB uint8."""
    from PIL import Image

    block = np.ascontiguousarray(to_bytes(block, white=white))
    return np.asarray(Image.frombytes(mode, block.shape[1::-1], block.tobytes()).convert("RGB"))


def colour_channels(names: Sequence[object] | None, n_channels: int, *, label: str, hint: str) -> list[int]:
    """Return the positions of red, green and blue (and alpha), or of grey.

    Parameters
    ----------
    names
        Names of the channels. Whole numbers are no names.
    n_channels
        Number of channels.
    label
        Name of the image in messages.
    hint
        What to do about channels that are not colours.

    Raises
    ------
    ValueError
        If there are several channels and they are not colours.
    """
    if n_channels == 1:
        return [0]
    known = [str(name).strip().lower() for name in (range(n_channels) if names is None else names)]
    if n_channels == 3 and known == ["0", "1", "2"]:
        return [0, 1, 2]
    places = [COLOUR_NAMES.get(name) for name in known]
    if set(places) >= {0, 1, 2} and len(set(places)) == len(places) and None not in places:
        return sorted(range(n_channels), key=lambda i: COLOUR_NAMES[known[i]])
    shown = list(map(str, names))[:8] if names is not None else "without names"
    msg = f"the image {label} has {n_channels} channels, {shown}, which are not red, green and blue; {hint}"
    raise ValueError(msg)
