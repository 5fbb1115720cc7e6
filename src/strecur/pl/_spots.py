"""Spots of one section: their place, shape and colour on a map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import allow_rasterization
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, AffineDeltaTransform

from strecur.pl._colors import MARK, UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.colors import Colormap

# a square lattice of more spots is drawn as an image if at least this share of the image is tissue
RASTER_SPOTS = 50_000
RASTER_FILL = 0.25
# outer and inner diameter of a ring around a spot ÷ width of the spot
RING = 1.25, 0.7


class SeamlessPaths(PathCollection):
    """Paths that share edges, drawn without the seams that anti-aliasing leaves between neighbours."""

    @allow_rasterization
    def draw(self, renderer: RendererBase) -> None:
        """Fill every pixel first and smooth the edges on top, which requires opaque colours."""
        for antialiased in (False, True) if self.get_alpha() in (None, 1) else (False,):
            self.set_antialiased(antialiased)
            super().draw(renderer)


@dataclass(frozen=True)
class SectionMap:
    """Place and shape of the spots of one section, in axis units with y downwards, and the image behind them."""

    title: str
    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray
    shape: Literal["hexagon", "square", "circle"]
    width: float
    image: np.ndarray | None = None
    um: float | None = None
    """Micrometres per axis unit, if known."""
    tissue: SectionMap | None = None
    """The section on its tissue image, for a panel of its own left of the maps."""

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom edge, with a margin of half a spot."""
        return (
            float(self.x.min() - self.width),
            float(self.x.max() + self.width),
            float(self.y.min() - self.width),
            float(self.y.max() + self.width),
        )

    @property
    def height(self) -> float:
        """Height ÷ width."""
        left, right, top, bottom = self.limits
        return (bottom - top) / (right - left)

    def caption(self, text: str) -> str:
        """Return the title of a panel: the name of the section, if sections have names, above ``text``."""
        return f"{self.title}\n{text}" if self.title else text


def pitch(xy: np.ndarray) -> float:
    """Return the median distance to the nearest other spot."""
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        return 1.0
    distance = np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])
    return float(distance) if distance > 0 else 1.0


def draw_spots(
    ax: Axes, section: SectionMap, values: np.ndarray, *, cmap: Colormap, norm: Normalize, alpha: float = 1.0
) -> ScalarMappable:
    """Draw one value per spot of a section; the spots fill their lattice at any figure size.

    Parameters
    ----------
    ax
        Axes to draw on. Limits, aspect and ticks are set.
    section
        Place and shape of the spots.
    values
        Float array in the order of ``section.rows``: a quantity, or an index into the colours of ``cmap``. NaN has the
        grey of unlabelled spots.
    cmap, norm
        Colours of the values.
    alpha
        Opacity of the spots.

    Returns
    -------
    The mappable for a colour bar.
    """
    cmap = cmap.with_extremes(bad=UNLABELLED)
    if section.image is not None:
        _draw_image(ax, section, section.image)
    mappable: ScalarMappable
    if _as_raster(section):
        mappable = ScalarMappable(norm, cmap)
        mappable.set_array(values)
        _draw_raster(ax, section, mappable.to_rgba(np.ma.masked_invalid(values), alpha=alpha, bytes=True))
    else:
        mappable = spots = _add_paths(ax, section)
        spots.set(array=np.ma.masked_invalid(values), cmap=cmap, norm=norm, alpha=alpha)
    _set_frame(ax, section)
    return mappable


def draw_tissue(ax: Axes, section: SectionMap) -> None:
    """Draw the tissue image of a section without its spots, in the frame of its map."""
    if section.image is not None:
        _draw_image(ax, section, section.image)
    _set_frame(ax, section)


def mark_spots(ax: Axes, section: SectionMap, chosen: np.ndarray) -> None:
    """Draw a ring around the chosen spots (a mask in the order of ``section.rows``) of a map."""
    outer, inner = (Path.unit_circle().transformed(Affine2D().scale(size * section.width / 2)) for size in RING)
    # a hole runs in the other direction
    hole = Path(inner.vertices[-2::-1], inner.codes[:-1])  # type: ignore[index]
    rings = PathCollection(
        [Path.make_compound_path(outer, hole)],
        offsets=np.column_stack([section.x, section.y])[chosen],
        offset_transform=AffineDeltaTransform(ax.transData),  # type: ignore[arg-type]
        linewidths=0,
        facecolors=MARK,
        rasterized=int(chosen.sum()) > RASTER_SPOTS,
    )
    rings.set_transform(ax.transData)
    ax.add_collection(rings, autolim=False)


def _set_frame(ax: Axes, section: SectionMap) -> None:
    left, right, top, bottom = section.limits
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    # aligns the upper edges of the maps in a row
    ax.set_anchor("N")
    ax.spines[:].set_visible(False)


def _draw_image(ax: Axes, section: SectionMap, image: np.ndarray) -> None:
    """Draw the part of the tissue image behind the spots."""
    left, right, top, bottom = (int(edge) for edge in section.limits)
    part = image[max(top, 0) : bottom + 2, max(left, 0) : right + 2]
    if not part.size:
        msg = f"the spots of section {section.title!r} lie outside its image; check spatial_key and the scale factors"
        raise ValueError(msg)
    # pixel centres are at integer positions
    x, y = max(left, 0) - 0.5, max(top, 0) - 0.5
    extent = (x, x + part.shape[1], y + part.shape[0], y)
    ax.imshow(part, extent=extent, cmap="gray", origin="upper", interpolation="auto")


def _add_paths(ax: Axes, section: SectionMap) -> PathCollection:
    """Add one path per spot, with its size in data units, as ``Axes.hexbin`` does."""
    outline, size = {
        "hexagon": (Path.unit_regular_polygon(6), section.width / np.sqrt(3)),
        "square": (Path.unit_regular_polygon(4).transformed(Affine2D().rotate_deg(45)), section.width / np.sqrt(2)),
        "circle": (Path.unit_circle(), section.width / 2),
    }[section.shape]
    artist = PathCollection if section.shape == "circle" else SeamlessPaths
    spots = artist(
        [outline.transformed(Affine2D().scale(size))],
        offsets=np.column_stack([section.x, section.y]),
        offset_transform=AffineDeltaTransform(ax.transData),  # type: ignore[arg-type]
        linewidths=0,
        # keeps vector graphics of large sections small
        rasterized=len(section.rows) > RASTER_SPOTS,
    )
    spots.set_transform(ax.transData)
    ax.add_collection(spots, autolim=False)
    return spots


def _as_raster(section: SectionMap) -> bool:
    sites = (np.ptp(section.x) + 1) * (np.ptp(section.y) + 1)
    return section.shape == "square" and len(section.rows) > max(RASTER_SPOTS, RASTER_FILL * sites)


def _draw_raster(ax: Axes, section: SectionMap, rgba: np.ndarray) -> None:
    col = (section.x - section.x.min()).astype(np.intp)
    row = (section.y - section.y.min()).astype(np.intp)
    pixels = np.zeros((row.max() + 1, col.max() + 1, 4), dtype=np.uint8)
    pixels[row, col] = rgba
    extent = (section.x.min() - 0.5, section.x.max() + 0.5, section.y.max() + 0.5, section.y.min() - 0.5)
    ax.imshow(pixels, extent=extent, origin="upper", interpolation="nearest")


def draw_categories(
    ax: Axes, section: SectionMap, labels: np.ndarray, colors: Mapping[str, str], *, alpha: float = 1.0
) -> ScalarMappable:
    """Draw one label (a string or ``None``) per spot of a section, with the colour ``colors`` gives it."""
    codes = pd.Index(list(colors)).get_indexer(labels).astype(float)
    codes[codes < 0] = np.nan
    cmap, norm = ListedColormap(list(colors.values())), Normalize(-0.5, len(colors) - 0.5)
    return draw_spots(ax, section, codes, cmap=cmap, norm=norm, alpha=alpha)
