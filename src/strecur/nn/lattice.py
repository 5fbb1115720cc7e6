from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from strecur.nn.devices import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Windows:
    """Square windows of lattice cells, only those that hold a spot.

    Attributes
    ----------
    site_N
        Position of each spot in the (window, slot) table, flattened: ``window * K + slot``; slots go row by row.
    section_W, row_W, col_W
        Section of each window, and its row and column among windows.
    occupied_WK
        Which slots hold a spot.
    spot_WK
        Spot in each slot; an empty slot holds another spot of its window and has to be masked.
    """

    site_N: Tensor
    section_W: Tensor
    row_W: Tensor
    col_W: Tensor
    occupied_WK: Tensor
    spot_WK: Tensor

    def map(self, attend: Callable[[Windows], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Apply ``attend`` to all windows, in chunks if there is no gradient.

        ``attend`` takes windows and returns tensors with a row for each of their spots, in the order of ``site_N``.
        """
        if torch.is_grad_enabled() or len(self.blocks) == 1:
            return attend(self)
        found: tuple[Tensor, ...] = ()
        for spot_n, block in zip(self.order_N.split([len(b.site_N) for b in self.blocks]), self.blocks, strict=True):
            parts = attend(block)
            found = found or tuple(part.new_empty(len(self.site_N), *part.shape[1:]) for part in parts)
            for whole_N, part_n in zip(found, parts, strict=True):
                whole_N.index_copy_(0, spot_n, part_n)
        return found

    def to(self, device: torch.device | str) -> Windows:
        return Windows(*(getattr(self, table.name).to(device) for table in fields(self)))

    @cached_property
    def order_N(self) -> Tensor:
        """Spots in the order of their sites, and so of the windows."""
        return self.site_N.argsort()

    @cached_property
    def blocks(self) -> list[Windows]:
        """Chunks of windows that are computed together; the sites of a chunk count from its first window."""
        n_slots = self.spot_WK.shape[1]
        size = max(CHUNK // n_slots, 1)
        site_N, n_sites = self.site_N[self.order_N], size * n_slots
        n_spots = torch.bincount(site_N // n_sites).tolist()
        per_window = (self.section_W, self.row_W, self.col_W, self.occupied_WK, self.spot_WK)
        columns = ((site_N % n_sites).split(n_spots), *(part.split(size) for part in per_window))
        return [Windows(*parts) for parts in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Quarters:
    """Quarters of square windows, only those that hold a spot: the largest groups of spots that see the same slots.

    Attributes
    ----------
    spots
        The quarters as windows.
    place_Q
        Which quarter of its regular window each one is, row by row.
    seen_QL
        Spot in each slot of its regular window and of its shifted one.
    occupied_QL
        Which of these slots hold a spot.
    """

    spots: Windows
    place_Q: Tensor
    seen_QL: Tensor
    occupied_QL: Tensor

    def to(self, device: torch.device | str) -> Quarters:
        tables = (table.to(device) for table in (self.place_Q, self.seen_QL, self.occupied_QL))
        return Quarters(self.spots.to(device), *tables)


@dataclass(frozen=True)
class Lattice:
    """Integer positions of the spots of one or several sections; spots of a section are contiguous.

    Index tensors are built on first use and kept, so that all steps of a recursion share them.

    Attributes
    ----------
    row_N, col_N
        Lattice row and column. ``"hex"`` lattices use Visium's doubled columns.
    length_S
        Number of spots of each section.
    layout
        ``"hex"``, ``"square"`` or ``"irregular"``.
    """

    row_N: Tensor
    col_N: Tensor
    length_S: tuple[int, ...]
    layout: str
    _windows: dict[tuple[int, int], Windows] = field(default_factory=dict, init=False, repr=False, compare=False)
    _quarters: dict[int, Quarters] = field(default_factory=dict, init=False, repr=False, compare=False)
    _finer: dict[float, Lattice] = field(default_factory=dict, init=False, repr=False, compare=False)

    @staticmethod
    def concatenate(lattices: Sequence[Lattice]) -> Lattice:
        """Concatenate sections."""
        (layout,) = {lattice.layout for lattice in lattices}
        rows = torch.cat([lattice.row_N for lattice in lattices])
        cols = torch.cat([lattice.col_N for lattice in lattices])
        return Lattice(rows, cols, tuple(n for lattice in lattices for n in lattice.length_S), layout)

    @property
    def n_sections(self) -> int:
        return len(self.length_S)

    @cached_property
    @torch.inference_mode(mode=False)
    def section_N(self) -> Tensor:
        """Section of each spot."""
        index_S = torch.arange(self.n_sections, device=self.row_N.device)
        return index_S.repeat_interleave(torch.tensor(self.length_S, device=self.row_N.device))

    def split(self, spots_N: Tensor) -> tuple[Tensor, ...]:
        """Cut a tensor over spots into one tensor per section."""
        return spots_N.split(self.length_S)

    def to(self, device: torch.device | str) -> Lattice:
        """Move to a device, with all index tensors that were built."""
        moved = Lattice(self.row_N.to(device), self.col_N.to(device), self.length_S, self.layout)
        moved._windows.update({key: windows.to(device) for key, windows in self._windows.items()})
        moved._quarters.update({key: quarters.to(device) for key, quarters in self._quarters.items()})
        moved._finer.update({key: finer.to(device) for key, finer in self._finer.items()})
        for name in ("section_N", "coarser"):
            if name in vars(self):
                vars(moved)[name] = vars(self)[name].to(device)
        return moved

    def take(self, spot_T: Tensor) -> Lattice:
        """Return some spots of one section; they keep their cells and windows."""
        return Lattice(self.row_N[spot_T], self.col_N[spot_T], (len(spot_T),), self.layout)

    def moved(self, *, transpose: bool, flip_row: bool, flip_col: bool, shift: tuple[int, int] = (0, 0)) -> Lattice:
        """Return the lattice of one section under a symmetry, then shifted by (rows, columns).

        The section is mirrored within its bounding box. Transposition comes first; hexagonal lattices only have flips.
        """
        row_N, col_N = (self.col_N, self.row_N) if transpose else (self.row_N, self.col_N)
        row_N = row_N.min() + row_N.max() - row_N if flip_row else row_N
        col_N = col_N.min() + col_N.max() - col_N if flip_col else col_N
        return Lattice(row_N + shift[0], col_N + shift[1], self.length_S, self.layout)

    @property
    def cells_N2(self) -> Tensor:
        """Cell of each spot, (row, column), or (row, column // 2) on a hexagonal lattice; no two spots share one."""
        return torch.stack([self.row_N, self.col_N // 2 if self.layout == "hex" else self.col_N], dim=1).long()

    @property
    def position_N2(self) -> Tensor:
        """Position down and to the right, in distances of neighbours (in cells on an irregular lattice)."""
        row_N, col_N = self.row_N.double(), self.col_N.double()
        return torch.stack([row_N * 0.75**0.5, col_N / 2] if self.layout == "hex" else [row_N, col_N], dim=1)

    @torch.inference_mode(mode=False)
    def finer(self, cells_per_pitch: float) -> Lattice:
        """Return an irregular lattice with ``cells_per_pitch`` cells per distance of neighbours.

        With at least 1.5 cells, no two spots share one. A lattice that is irregular already is returned as it is.
        """
        if self.layout == "irregular":
            return self
        if cells_per_pitch not in self._finer:
            row_N, col_N = (self.position_N2 * cells_per_pitch + 0.5).floor().long().unbind(dim=1)
            self._finer[cells_per_pitch] = Lattice(row_N, col_N, self.length_S, "irregular")
        return self._finer[cells_per_pitch]

    def windows(self, size: int, offset: int) -> Windows:
        """Assign the spots to windows of ``size`` × ``size`` cells whose grid is shifted by ``offset`` cells."""
        if (size, offset) not in self._windows:
            self._windows[size, offset] = self._assign_windows(size, offset)
        return self._windows[size, offset]

    def quarters(self, size: int) -> Quarters:
        """Assign the spots to quarters of the windows of an even size, which each is in a regular and a shifted one."""
        if size not in self._quarters:
            self._quarters[size] = self._assign_quarters(size)
        return self._quarters[size]

    @cached_property
    def coarser(self) -> Lattice:
        """Lattice with one spot for every 2 × 2 cells that hold any, in the order of ``windows(2, 0)``.

        Its rows and columns are those of the cells divided by two, so that it is square for all layouts.
        """
        parents = self.windows(2, 0)
        length_S = torch.bincount(parents.section_W, minlength=self.n_sections)
        return Lattice(parents.row_W, parents.col_W, tuple(length_S.tolist()), "square")

    @torch.inference_mode(mode=False)  # kept index tensors must serve training too
    def _assign_windows(self, size: int, offset: int) -> Windows:
        row_N, col_N = (self.cells_N2 + offset).unbind(dim=1)
        key_3N = (self.section_N, row_N // size, col_N // size)
        window_N, n_windows = number_distinct(key_3N)
        site_N = window_N * size**2 + (row_N % size) * size + col_N % size
        spot_N = torch.arange(len(site_N), device=site_N.device)
        any_spot_W = spot_N.new_zeros(n_windows).scatter_reduce(0, window_N, spot_N, "amin", include_self=False)
        spot_WK = any_spot_W.repeat_interleave(size**2).index_copy(0, site_N, spot_N)
        occupied_WK = torch.zeros_like(spot_WK, dtype=torch.bool).index_fill(0, site_N, value=True)
        if occupied_WK.sum() < len(site_N):
            cell = "(row, column // 2)" if self.layout == "hex" else "(row, column)"
            msg = f"several spots of a section share a cell {cell}; strecur.pp.to_grid gives every spot its own"
            raise ValueError(msg)
        section_W, row_W, col_W = (key_N[any_spot_W] for key_N in key_3N)
        occupied_WK, spot_WK = occupied_WK.view(-1, size**2), spot_WK.view(-1, size**2)
        return Windows(site_N, section_W, row_W, col_W, occupied_WK, spot_WK)

    @torch.inference_mode(mode=False)
    def _assign_quarters(self, size: int) -> Quarters:
        quarters = self.windows(size // 2, 0)
        spot_Q = quarters.spot_WK[:, 0]  # any spot of a quarter tells its windows
        both = (self.windows(size, offset) for offset in (0, size // 2))
        pair = [(windows, windows.site_N[spot_Q] // size**2) for windows in both]
        return Quarters(
            quarters,
            quarters.row_W % 2 * 2 + quarters.col_W % 2,
            torch.cat([windows.spot_WK[own_Q] for windows, own_Q in pair], dim=1),
            torch.cat([windows.occupied_WK[own_Q] for windows, own_Q in pair], dim=1),
        )


def number_distinct(key_3N: Sequence[Tensor]) -> tuple[Tensor, int]:
    """Number the distinct tuples of integers in lexicographic order; return the number of each tuple, and their count.

    Sorts by one column after the other: many times faster than ``torch.unique(dim=0)``, safe for any 32-bit integers.
    """
    number_N, n_distinct = torch.zeros_like(key_3N[0]), 1
    for key_N in key_3N:
        from_zero_N = key_N - key_N.min()
        distinct, number_N = torch.unique(number_N * (from_zero_N.max() + 1) + from_zero_N, return_inverse=True)
        n_distinct = len(distinct)
    return number_N, n_distinct
