"""Maps of the sections of a table: where the spots lie and which panels show them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from strecur._anndata import find_spatial_key, read_grid, read_pitches, read_xy, require
from strecur.pl._figure import MAX_COLUMNS, check_axes, make_panels
from strecur.pl._results import choose_sections
from strecur.pl._scale import add_scale_bar
from strecur.pl._spots import SectionMap, draw_tissue, pitch
from strecur.pp.image.decoding import open_image
from strecur.pp.image.sources import VISIUM_PITCH_UM, find_library, read_mpp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes

    from strecur._anndata import Grid
    from strecur.pl._results import ChosenSections


@dataclass(frozen=True)
class MapFigure:
    """Maps of some sections of a table, each section in panels of its own."""

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
        beside: bool = False,
    ) -> MapFigure:
        """Read where to draw the spots of the chosen sections of the result ``key``.

        With ``beside``, tissue images have a panel of their own, left of the maps, instead of being behind the spots.
        """
        spatial_key = find_spatial_key(table, spatial_key)
        chosen = choose_sections(table, key, library_key=library_key, library_id=library_id)
        source = _Source(table, chosen, spatial_key)
        return cls([source.read(name, img=img, beside=beside) for name in chosen.rows])

    @property
    def has_tissue(self) -> bool:
        """Whether a section has a tissue image in a panel of its own."""
        return any(section.tissue is not None for section in self.sections)

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
        wrap: bool = False,
        legend: Sequence[str] = (),
        margin: float = 0.0,
    ) -> list[Axes]:
        """Return the axes of the caller, or those of a new figure, for ``per_section`` maps of each section.

        Single maps stand side by side. Several, after the tissue image if there is one, are in a row per section, or in
        several rows with ``wrap``.
        """
        n = per_section + self.has_tissue
        contents = f"{len(self.sections)} sections × {n} {'tissue image and ' * self.has_tissue}{what}"
        if n == 1:
            heights, columns = [section.height for section in self.sections], min(len(self.sections), MAX_COLUMNS)
            return make_panels(ax, heights, columns, contents=contents, legend=legend, margin=margin)
        if ax is not None:
            return check_axes(ax, n * len(self.sections), contents)
        n_rows = -(-n // MAX_COLUMNS) if wrap else 1
        columns = -(-n // n_rows)
        heights = [section.height for section in self.sections for _ in range(n_rows * columns)]
        slots = make_panels(None, heights, columns, contents=contents, legend=legend, margin=margin)
        used = [slot % (n_rows * columns) < n for slot in range(len(slots))]
        for panel in (panel for panel, is_used in zip(slots, used, strict=True) if not is_used):
            panel.remove()
        return [panel for panel, is_used in zip(slots, used, strict=True) if is_used]

    def with_panels(self, axes: list[Axes]) -> Iterator[tuple[SectionMap, list[Axes]]]:
        """Yield each section with the panels of its maps, after drawing its tissue image and its scale bar."""
        n = len(axes) // len(self.sections)
        for k, section in enumerate(self.sections):
            first, *others = axes[k * n : (k + 1) * n]
            add_scale_bar(first, section.tissue or section)
            if not self.has_tissue:
                yield section, [first, *others]
                continue
            if section.tissue is None:
                first.set_axis_off()
            else:
                draw_tissue(first, section.tissue)
                first.set_title(section.caption("H&E"), fontsize="medium")
            yield section, others


@dataclass
class _Source:
    """Table from which the maps of some sections are read."""

    table: AnnData
    chosen: ChosenSections
    spatial_key: str
    _grid: Grid | None = None

    @property
    def grid(self) -> Grid:
        """Lattice, which is read once, and only if needed: images need none."""
        if self._grid is None:
            self._grid = read_grid(self.table, self.chosen.all_sections)
        return self._grid

    def read(self, name: str, *, img: bool, beside: bool) -> SectionMap:
        """Return the map of one section."""
        alone = len(self.chosen.all_sections.names) == 1
        slide = _slide_with_image(self.table, self.chosen.titles[name], alone=alone) if img else None
        if slide is None:
            return self.on_lattice(name)
        on_image = self.on_image(name, slide)
        return replace(self.beside_image(name, on_image), tissue=on_image) if beside else on_image

    def on_lattice(self, name: str) -> SectionMap:
        """Map of the lattice, or of the coordinates of cells."""
        title, rows, grid = self.chosen.titles[name], self.chosen.rows[name], self.grid
        if grid.layout == "irregular":
            xy = _read_coordinates(self.table, rows, self.spatial_key)
            # cells lie irregularly, most farther apart than the median distance to the nearest one
            return SectionMap(title, rows, xy[:, 0], xy[:, 1], "circle", 1.3 * pitch(xy), um=self.mpp(name))
        row, col = grid.row[rows], grid.col[rows].astype(float)
        if grid.layout == "hex":
            # doubled columns: neighbours in a row are 2 columns apart, rows are √3 apart
            return SectionMap(title, rows, col, row * np.sqrt(3), "hexagon", 2.0, um=VISIUM_PITCH_UM / 2)
        pitch_um = read_pitches(self.table, [name])[1]
        return SectionMap(title, rows, col, row.astype(float), "square", 1.0, um=pitch_um[0] if pitch_um else None)

    def on_image(self, name: str, slide: Mapping) -> SectionMap:
        """Map on the tissue image, with spots of their true size."""
        title, rows = self.chosen.titles[name], self.chosen.rows[name]
        resolution = _resolution(slide)
        factors = slide["scalefactors"]
        scale = float(factors[f"tissue_{resolution}_scalef"])
        xy = _read_coordinates(self.table, rows, self.spatial_key) * scale
        # without a recorded diameter, the ratio of spot to pitch of Visium
        known = "spot_diameter_fullres" in factors
        width = float(factors["spot_diameter_fullres"]) * scale if known else 0.55 * pitch(xy)
        # decoded as for patches: 16 bits, floats and transparent pixels look as they do there
        image = open_image(slide["images"][resolution], label=f"{resolution!r} of section {title!r}").whole()
        um = self.mpp(name)
        if um is None and "grid" in self.table.obsm and self.grid.layout == "hex":
            um = VISIUM_PITCH_UM / (pitch(xy) / scale)
        return SectionMap(
            title, rows, xy[:, 0], xy[:, 1], "circle", width, image, um=None if um is None else um / scale
        )

    def beside_image(self, name: str, on_image: SectionMap) -> SectionMap:
        """Map to draw beside an image: the lattice if it has the orientation of the image, else the coordinates."""
        if "grid" in self.table.obsm:
            lattice = self.on_lattice(name)
            if _parallel(lattice.x, on_image.x) and _parallel(lattice.y, on_image.y):
                return lattice
        return replace(on_image, image=None, width=1.15 * pitch(np.column_stack([on_image.x, on_image.y])))

    def mpp(self, name: str) -> float | None:
        """Micrometres per unit of the coordinates, if known."""
        rows = self.chosen.rows[name]
        if self.spatial_key not in self.table.obsm:
            return None
        xy = _read_coordinates(self.table, rows, self.spatial_key)
        alone = len(self.chosen.all_sections.names) == 1
        return read_mpp(self.table, self.chosen.titles[name], rows, xy, alone=alone)


def _parallel(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether coordinates run in the same direction, within the tolerance of a slightly uneven lattice."""
    return bool(np.ptp(a) > 0 and np.ptp(b) > 0 and np.corrcoef(a, b)[0, 1] > 0.98)


def _slide_with_image(table: AnnData, name: str, *, alone: bool) -> Mapping | None:
    """Return the ``uns["spatial"]`` entry of a section (or the only entry) if it has an image with a scale factor."""
    _, slide = find_library(table, name, alone=alone)
    return slide if _resolution(slide) else None


def _resolution(slide: Mapping) -> str | None:
    names = [r for r in ("hires", "lowres") if r in slide.get("images", {})]
    return next((r for r in names if f"tissue_{r}_scalef" in slide.get("scalefactors", {})), None)


def _read_coordinates(table: AnnData, rows: np.ndarray, spatial_key: str) -> np.ndarray:
    require(table.obsm, spatial_key, where="obsm", hint="spatial_key names the coordinates (x, y) of the spots")
    xy = read_xy(table, spatial_key)
    if xy.ndim != 2 or xy.shape[1] < 2:
        msg = f"adata.obsm[{spatial_key!r}] has shape {xy.shape}; expected spots × 2"
        raise ValueError(msg)
    return xy[rows, :2]
