"""Maps of the sections of a table: where the spots lie and which panels show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from strecur._anndata import find_spatial_key, read_array, read_grid, require
from strecur.pl._figure import MAX_COLUMNS, make_panels
from strecur.pl._results import choose_sections
from strecur.pl._spots import SectionMap, pitch
from strecur.pp.image.decoding import open_image
from strecur.pp.image.sources import find_library

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class MapFigure:
    """Maps of some sections of a table, each section in a row of panels."""

    sections: list[SectionMap]

    @classmethod
    def read(
        cls,
        table: AnnData,
        key: str,
        *,
        library_key: str | None,
        library_id: str | Sequence[str] | None,
        img: bool,
        spatial_key: str | None,
    ) -> MapFigure:
        """Read where to draw the spots of the chosen sections of the result ``key``."""
        spatial_key = find_spatial_key(table, spatial_key)
        chosen = choose_sections(table, key, library_key=library_key, library_id=library_id)
        sections: list[SectionMap] = []
        grid = None
        for name, rows in chosen.rows.items():
            title = chosen.titles[name]
            slide = _slide_with_image(table, title, alone=len(chosen.all_sections.names) == 1) if img else None
            if slide is not None:
                sections.append(_on_image(table, title, rows, slide, spatial_key))
                continue
            grid = read_grid(table, chosen.all_sections) if grid is None else grid
            if grid.layout == "irregular":
                sections.append(_on_tissue(table, title, rows, spatial_key))
            else:
                sections.append(_on_lattice(title, rows, grid.row[rows], grid.col[rows], grid.layout))
        return cls(sections)

    @property
    def rows(self) -> np.ndarray:
        """Positions of all spots that are drawn."""
        return np.concatenate([section.rows for section in self.sections])

    def panels(
        self,
        ax: Axes | Sequence[Axes] | None,
        per_section: int,
        what: str = "panels",
        *,
        n_columns: int | None = None,
        legend: Sequence[str] = (),
        margin: float = 0.0,
    ) -> list[Axes]:
        """Return the axes of the caller, or those of a new figure, for ``per_section`` panels of each section.

        Unless ``n_columns`` is given, single panels stand side by side, and several in one row per section.
        """
        heights = [section.height for section in self.sections for _ in range(per_section)]
        if n_columns is None:
            n_columns = per_section if per_section > 1 else min(len(self.sections), MAX_COLUMNS)
        contents = f"{len(self.sections)} sections × {per_section} {what}"
        return make_panels(ax, heights, n_columns, contents=contents, legend=legend, margin=margin)

    def with_panels(self, axes: list[Axes]) -> Iterator[tuple[SectionMap, list[Axes]]]:
        """Yield each section with its panels."""
        n = len(axes) // len(self.sections)
        yield from ((section, axes[k * n : (k + 1) * n]) for k, section in enumerate(self.sections))


def _on_lattice(title: str, rows: np.ndarray, row: np.ndarray, col: np.ndarray, layout: str) -> SectionMap:
    if layout == "hex":
        # doubled columns: neighbours in a row are 2 columns apart, rows are √3 apart
        return SectionMap(title, rows, col.astype(float), row * np.sqrt(3), "hexagon", 2.0)
    return SectionMap(title, rows, col.astype(float), row.astype(float), "square", 1.0)


def _on_tissue(table: AnnData, title: str, rows: np.ndarray, spatial_key: str) -> SectionMap:
    xy = _read_coordinates(table, rows, spatial_key)
    # cells lie irregularly, most farther apart than the median distance to the nearest one
    return SectionMap(title, rows, xy[:, 0], xy[:, 1], "circle", 1.3 * pitch(xy))


def _on_image(table: AnnData, title: str, rows: np.ndarray, slide: Mapping, spatial_key: str) -> SectionMap:
    resolution = _resolution(slide)
    factors = slide["scalefactors"]
    scale = float(factors[f"tissue_{resolution}_scalef"])
    xy = _read_coordinates(table, rows, spatial_key) * scale
    # without a recorded diameter, the ratio of spot to pitch of Visium
    width = float(factors["spot_diameter_fullres"]) * scale if "spot_diameter_fullres" in factors else 0.55 * pitch(xy)
    # decoded as for patches: 16 bits, floats and transparent pixels look as they do there
    image = open_image(slide["images"][resolution], label=f"{resolution!r} of section {title!r}").whole()
    return SectionMap(title, rows, xy[:, 0], xy[:, 1], "circle", width, image)


def _slide_with_image(table: AnnData, name: str, *, alone: bool) -> Mapping | None:
    """Return the ``uns["spatial"]`` entry of a section (or the only entry) if it has an image with a scale factor."""
    _, slide = find_library(table, name, alone=alone)
    return slide if _resolution(slide) else None


def _resolution(slide: Mapping) -> str | None:
    names = [r for r in ("hires", "lowres") if r in slide.get("images", {})]
    return next((r for r in names if f"tissue_{r}_scalef" in slide.get("scalefactors", {})), None)


def _read_coordinates(table: AnnData, rows: np.ndarray, spatial_key: str) -> np.ndarray:
    require(table.obsm, spatial_key, where="obsm", hint="spatial_key names the coordinates (x, y) of the spots")
    xy = read_array(table, spatial_key)
    if xy.ndim != 2 or xy.shape[1] < 2:
        msg = f"adata.obsm[{spatial_key!r}] has shape {xy.shape}; expected spots × 2"
        raise ValueError(msg)
    return xy[rows, :2]
