"""A drawn H&E section, whose tissue and stains are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

HEMATOXYLIN, EOSIN = (0.65, 0.70, 0.29), (0.27, 0.95, 0.15)


class Slide(NamedTuple):
    """An image (uint8, rows × columns × 3), where its tissue is, and the optical densities of its stains."""

    rgb: np.ndarray
    tissue: np.ndarray
    stains: np.ndarray


def draw(
    shape: tuple[int, int] = (240, 320),
    *,
    hematoxylin: tuple[float, ...] = HEMATOXYLIN,
    eosin: tuple[float, ...] = EOSIN,
    strength: tuple[float, float] = (1.0, 1.0),
    white: float = 245.0,
    seed: int = 0,
) -> Slide:
    """Draw an ellipse of pink tissue with purple nuclei on glass, off the centre, so that no symmetry is left."""
    rng = np.random.default_rng(seed)
    row, col = np.indices(shape)
    tissue = ((row - 0.45 * shape[0]) / (0.35 * shape[0])) ** 2 + ((col - 0.6 * shape[1]) / (0.3 * shape[1])) ** 2 < 1
    nuclei = np.zeros(shape, dtype=bool)
    for r, c in zip(*(rng.integers(0, n, size=tissue.sum() // 250) for n in shape), strict=True):
        nuclei[max(0, r - 3) : r + 4, max(0, c - 3) : c + 4] = True
    nuclei &= tissue
    pink = tissue * rng.uniform(0.2, 0.6, shape) * np.where(nuclei, 0.1, 1)
    amount = np.stack([nuclei * 0.7 + tissue * 0.02, pink], axis=-1)
    stains = np.array([hematoxylin, eosin])
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    light = white * 10 ** -(amount * strength @ stains)
    return Slide(np.clip(np.rint(light), 0, 255).astype(np.uint8), tissue, stains)


@pytest.fixture(scope="session")
def draw_slide() -> Callable[..., Slide]:
    return draw
