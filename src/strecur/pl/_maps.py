"""Maps of spots: where a section's spots are drawn, in which shape and colour."""

from __future__ import annotations

from collections.abc import Mapping
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

from strecur._anndata import read_array, read_grid, read_sections, require
from strecur.pl._colors import UNLABELLED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.backend_bases import RendererBase
    from matplotlib.colors import Colormap

    from strecur._anndata import Sections

# a lattice of so many squares is drawn as an image, if at least a quarter of the image is tissue
RASTER_SPOTS = 50_000
RASTER_FILL = 0.25


class Tiles(PathCollection):
    """Paths that share their edges, drawn without the seams that anti-aliasing leaves between neighbours."""

    @allow_rasterization
    def draw(self, renderer: RendererBase) -> None:
        """Fill every pixel first, then smooth the edges on top of that, which only opaque colours allow."""
        for antialiased in (False, True) if self.get_alpha() in (None, 1) else (False,):
            self.set_antialiased(antialiased)
            super().draw(renderer)


@dataclass(frozen=True)
class SectionMap:
    """How one section is drawn: the position and shape of its spots in axis units, y downwards."""

    title: str
    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray
    shape: Literal["hexagon", "square", "circle"]
    width: float
    image: np.ndarray | None = None

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom, with a margin of half a spot."""
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


def choose_sections(
    adata: AnnData, key: str, *, library_key: str | None, library_id: str | Sequence[str] | None
) -> tuple[Sections, dict[str, str]]:
    """Return all sections, and which of them to draw under which title (none without ``library_key``).

    Without ``library_key`` the one that made the result ``key`` is used.
    """
    record = adata.uns.get(key, {})
    if library_key is None and isinstance(record, Mapping):
        library_key = record.get("params", {}).get("library_key")
    sections = read_sections(adata, library_key)
    wanted = [library_id] if isinstance(library_id, str) else list(sections.names if library_id is None else library_id)
    unknown = [name for name in wanted if name not in sections.names]
    if unknown:
        msg = f"library_id={unknown} are not sections of obs[{library_key!r}]; there are {sections.names}"
        raise KeyError(msg)
    return sections, {name: "" if library_key is None else name for name in wanted}


def read_maps(
    adata: AnnData,
    key: str,
    *,
    library_key: str | None,
    library_id: str | Sequence[str] | None,
    img: bool,
    spatial_key: str,
) -> list[SectionMap]:
    """Read where to draw the spots of the chosen sections."""
    sections, wanted = choose_sections(adata, key, library_key=library_key, library_id=library_id)
    maps: list[SectionMap] = []
    grid = None
    for name, title in wanted.items():
        rows = sections.rows(name)
        slide = _slide_with_image(adata, title or None) if img else None
        if slide is not None:
            maps.append(_on_image(adata, title, rows, slide, spatial_key))
            continue
        grid = read_grid(adata, sections) if grid is None else grid
        if grid.layout == "irregular":
            maps.append(_on_tissue(adata, title, rows, spatial_key))
        else:
            maps.append(_on_lattice(title, rows, grid.row[rows], grid.col[rows], grid.layout))
    return maps


def _on_lattice(title: str, rows: np.ndarray, row: np.ndarray, col: np.ndarray, layout: str) -> SectionMap:
    if layout == "hex":
        # doubled columns: neighbours in a row are 2 columns apart, rows are √3 apart
        return SectionMap(title, rows, col.astype(float), row * np.sqrt(3), "hexagon", 2.0)
    return SectionMap(title, rows, col.astype(float), row.astype(float), "square", 1.0)


def _on_tissue(adata: AnnData, title: str, rows: np.ndarray, spatial_key: str) -> SectionMap:
    xy = _coordinates(adata, rows, spatial_key)
    # cells lie at random, most are farther apart than their median neighbour
    return SectionMap(title, rows, xy[:, 0], xy[:, 1], "circle", 1.3 * pitch(xy))


def _on_image(adata: AnnData, title: str, rows: np.ndarray, slide: Mapping, spatial_key: str) -> SectionMap:
    resolution = _resolution(slide)
    factors = slide["scalefactors"]
    scale = float(factors[f"tissue_{resolution}_scalef"])
    xy = _coordinates(adata, rows, spatial_key) * scale
    # Visium's ratio of spot to pitch where the diameter is not recorded
    width = float(factors["spot_diameter_fullres"]) * scale if "spot_diameter_fullres" in factors else 0.55 * pitch(xy)
    return SectionMap(title, rows, xy[:, 0], xy[:, 1], "circle", width, np.asarray(slide["images"][resolution]))


def _slide_with_image(adata: AnnData, name: str | None) -> Mapping | None:
    """Return the ``uns["spatial"]`` entry of a section (or the only entry) if it has an image with a scale factor."""
    slides = adata.uns.get("spatial", {})
    if name is None and len(slides) == 1:
        name = next(iter(slides))
    slide = slides.get(name)
    return slide if isinstance(slide, Mapping) and _resolution(slide) else None


def _resolution(slide: Mapping) -> str | None:
    names = [r for r in ("hires", "lowres") if r in slide.get("images", {})]
    return next((r for r in names if f"tissue_{r}_scalef" in slide.get("scalefactors", {})), None)


def _coordinates(adata: AnnData, rows: np.ndarray, spatial_key: str) -> np.ndarray:
    require(adata.obsm, spatial_key, where="obsm", hint="spatial_key names the coordinates (x, y) of the spots")
    xy = read_array(adata, spatial_key)
    if xy.ndim != 2 or xy.shape[1] < 2:
        msg = f"adata.obsm[{spatial_key!r}] has shape {xy.shape}; expected spots × 2"
        raise ValueError(msg)
    return xy[rows, :2]


def pitch(xy: np.ndarray) -> float:
    """Median distance to the nearest other spot."""
    from scipy.spatial import cKDTree

    if len(xy) < 2:
        return 1.0
    distance = np.median(cKDTree(xy).query(xy, k=2)[0][:, 1])
    return float(distance) if distance > 0 else 1.0


def draw_spots(
    ax: Axes, section: SectionMap, values: np.ndarray, *, cmap: Colormap, norm: Normalize, alpha: float = 1.0
) -> ScalarMappable:
    """Draw one value per spot of a section, spots filling their lattice at any figure size.

    Parameters
    ----------
    ax
        Axes to draw on; limits, aspect and ticks are set.
    section
        Where the spots lie.
    values
        Float array in the order of ``section.rows``: a quantity, or an index into the colours of ``cmap``. NaN is drawn
        in the grey of unlabelled spots.
    cmap, norm
        Colours of the values.
    alpha
        Opacity of the spots.

    Returns
    -------
    What a colour bar needs.
    """
    cmap = cmap.with_extremes(bad=UNLABELLED)
    if section.image is not None:
        _draw_image(ax, section)
    if _as_raster(section):
        mappable = ScalarMappable(norm, cmap)
        mappable.set_array(values)
        _draw_raster(ax, section, mappable.to_rgba(np.ma.masked_invalid(values), alpha=alpha, bytes=True))
    else:
        mappable = _draw_patches(ax, section)
        mappable.set(array=np.ma.masked_invalid(values), cmap=cmap, norm=norm, alpha=alpha)
    _frame(ax, section)
    return mappable


def draw_tissue(ax: Axes, section: SectionMap) -> None:
    """Draw the tissue image of a section without its spots, in the frame of their map."""
    _draw_image(ax, section)
    _frame(ax, section)


def _frame(ax: Axes, section: SectionMap) -> None:
    left, right, top, bottom = section.limits
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[])
    # maps of one row share their upper edge
    ax.set_anchor("N")
    ax.spines[:].set_visible(False)


def _draw_image(ax: Axes, section: SectionMap) -> None:
    """Draw the part of the tissue image that lies behind the spots."""
    left, right, top, bottom = (int(edge) for edge in section.limits)
    part = section.image[max(top, 0) : bottom + 2, max(left, 0) : right + 2]
    if not part.size:
        msg = f"the spots of section {section.title!r} lie outside its image; check spatial_key and the scale factors"
        raise ValueError(msg)
    # pixel centres are at integer positions
    x, y = max(left, 0) - 0.5, max(top, 0) - 0.5
    extent = (x, x + part.shape[1], y + part.shape[0], y)
    ax.imshow(part, extent=extent, cmap="gray", origin="upper", interpolation="auto")


def _draw_patches(ax: Axes, section: SectionMap) -> ScalarMappable:
    """Add one path per spot, of a size in data units, as ``Axes.hexbin`` does."""
    outline, size = {
        "hexagon": (Path.unit_regular_polygon(6), section.width / np.sqrt(3)),
        "square": (Path.unit_regular_polygon(4).transformed(Affine2D().rotate_deg(45)), section.width / np.sqrt(2)),
        "circle": (Path.unit_circle(), section.width / 2),
    }[section.shape]
    artist = PathCollection if section.shape == "circle" else Tiles
    spots = artist(
        [outline.transformed(Affine2D().scale(size))],
        offsets=np.column_stack([section.x, section.y]),
        offset_transform=AffineDeltaTransform(ax.transData),
        linewidths=0,
        # keeps vector files of large sections small
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
    """Draw one label (a string or ``None``) per spot of a section; ``colors`` maps every label to its colour."""
    codes = pd.Index(list(colors)).get_indexer(labels).astype(float)
    codes[codes < 0] = np.nan
    cmap, norm = ListedColormap(list(colors.values())), Normalize(-0.5, len(colors) - 0.5)
    return draw_spots(ax, section, codes, cmap=cmap, norm=norm, alpha=alpha)


def made_by(key: str, tool: str = "trm_domains") -> str:
    """Hint for a missing result."""
    return f"Run strecur.tl.{tool}(adata, model, key_added={key!r}) first."


def panel_title(section: SectionMap, text: str) -> str:
    """Title of a panel: the section's name, if sections have names, above what is drawn."""
    return f"{section.title}\n{text}" if section.title else text
