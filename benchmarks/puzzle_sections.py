"""Puzzles with a unique solution as sections: a cell is a spot, its symbol the features, its answer the target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, depth_first_order
from sklearn.feature_extraction.image import grid_to_graph
from torch.nn.functional import one_hot

from strecur.engine import Section
from strecur.engine.data import symmetries, view
from strecur.nn import Lattice

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OPEN, WALL, START, GOAL = range(4)


def as_section(name: str, symbols: np.ndarray, answers: np.ndarray, n_symbols: int) -> Section:
    """Turn a square of symbols (side, side) and of answers into a section in raster order."""
    row, col = (torch.from_numpy(axis.ravel()) for axis in np.indices(symbols.shape))
    features = one_hot(torch.from_numpy(symbols.ravel()).long(), n_symbols).float()
    target = torch.from_numpy(answers.ravel()).long()
    return Section(name, features, Lattice(row, col, (row.numel(),), "square"), target)


def reordered(section: Section, order: torch.Tensor) -> Section:
    """Move the contents of cell ``order[i]`` to cell ``i``; cells stay in raster order, which a mixer needs."""
    return replace(section, features_NF=section.features_NF[order], target_N=section.target_N[order])


@dataclass(frozen=True)
class Mazes:
    """Perfect mazes: exactly one path leads from the start to the goal, which is the farthest room.

    Walls are cells: rooms are at even rows and columns of a square of odd ``side``, without an outer wall. The answer
    of a cell is whether it is on the path.
    """

    side: int = 11
    n_symbols = 4
    n_answers = 2

    def draw(self, rng: np.random.Generator, name: str) -> Section:
        n_rooms = (self.side + 1) // 2
        tree = self.random_tree(n_rooms, rng)
        start = int(rng.integers(n_rooms**2))
        order, previous = breadth_first_order(tree, start, directed=False)
        goal = room = int(order[-1])
        way = [goal]
        while room != start:
            room = int(previous[room])
            way.append(room)
        symbols, answers = np.full((self.side, self.side), WALL), np.zeros((self.side, self.side), int)
        position = 2 * np.stack(np.divmod(np.arange(n_rooms**2), n_rooms), axis=1)
        symbols[tuple(position.T)] = OPEN
        symbols[tuple((position[tree.row] + position[tree.col]).T // 2)] = OPEN
        symbols[tuple(position[start])], symbols[tuple(position[goal])] = START, GOAL
        way = position[way]
        answers[tuple(way.T)] = 1
        answers[tuple((way[1:] + way[:-1]).T // 2)] = 1
        return as_section(name, symbols, answers, self.n_symbols)

    @staticmethod
    def random_tree(n_rooms: int, rng: np.random.Generator) -> coo_array:
        """Join rooms, numbered row by row, by a depth-first walk, which makes long corridors."""
        room = rng.permutation(n_rooms**2)  # the walk prefers neighbours that come early here
        grid = grid_to_graph(n_rooms, n_rooms).tocsr()[room][:, room]
        _, previous = depth_first_order(grid, 0, directed=False)
        reached = np.flatnonzero(previous >= 0)
        return coo_array((np.ones(len(reached)), (room[previous[reached]], room[reached])), shape=grid.shape)

    def augment(self, section: Section, generator: torch.Generator) -> Section:
        """Rotate or flip the maze at random."""
        choices = symmetries("square")
        moved = view(section, choices[int(torch.randint(len(choices), (), generator=generator))]).lattice
        return reordered(section, (moved.row_N * self.side + moved.col_N).argsort())


@dataclass(frozen=True)
class Sudokus:
    """Sudokus with a unique solution and boxes of ``box`` (rows, columns). Symbol 0 is an empty cell.

    Drawn puzzles have at least ``n_clues`` clues; those of a table are given random cells until they have as many.
    """

    box: tuple[int, int] = (2, 3)
    n_clues: int = 12

    @property
    def side(self) -> int:
        return self.box[0] * self.box[1]

    @property
    def n_symbols(self) -> int:
        return self.side + 1

    @property
    def n_answers(self) -> int:
        return self.side

    def draw(self, rng: np.random.Generator, name: str) -> Section:
        """Fill a square at random, then empty cells in random order as long as the solution is unique."""
        solution = next(self.solutions([0] * self.side**2, rng))
        clues = list(solution)
        for cell in rng.permutation(self.side**2):
            if sum(map(bool, clues)) == self.n_clues:
                break
            kept, clues[cell] = clues[cell], 0
            if self.has_several_solutions(clues):
                clues[cell] = kept
        return self.section(name, clues, solution)

    def read(self, path: Path, n: int, rng: np.random.Generator) -> list[Section]:
        """Draw puzzles from a table with columns ``question`` (a dot is an empty cell) and ``answer``."""
        table = pd.read_csv(path, usecols=["question", "answer"], dtype=str)
        chosen = table.iloc[rng.choice(len(table), n, replace=False)]
        sections = []
        for i, question, answer in chosen.itertuples():
            clues, solution = np.array([*question.replace(".", "0")], int), np.array([*answer], int)
            empty = rng.permutation(np.flatnonzero(clues == 0))
            given = empty[: max(self.n_clues - np.count_nonzero(clues), 0)]
            clues[given] = solution[given]
            sections.append(self.section(f"{i}", clues.tolist(), solution.tolist()))
        return sections

    def section(self, name: str, clues: list[int], solution: list[int]) -> Section:
        symbols, answers = (np.array(values).reshape(self.side, self.side) for values in (clues, solution))
        return as_section(name, symbols, answers - 1, self.n_symbols)

    def has_several_solutions(self, clues: list[int]) -> bool:
        found = self.solutions(clues, np.random.default_rng(0))
        return next(found, None) is not None and next(found, None) is not None

    def solutions(self, clues: list[int], rng: np.random.Generator) -> Iterator[list[int]]:
        """Iterate over all solutions; every guess fills the cell with the fewest candidates."""
        cells, side = list(clues), self.side
        groups = [(i // side, side + i % side, 2 * side + self.box_of(i)) for i in range(side**2)]
        used = [0] * (3 * side)  # digits of each row, column and box as bits
        for i, digit in enumerate(cells):
            for group in groups[i]:
                used[group] |= 1 << digit if digit else 0
        empty = [i for i, digit in enumerate(cells) if not digit]

        def candidates(i: int) -> list[int]:
            a, b, c = groups[i]
            taken = used[a] | used[b] | used[c]
            return [digit for digit in range(1, side + 1) if not taken >> digit & 1]

        def fill() -> Iterator[list[int]]:
            if not empty:
                yield list(cells)
                return
            i = min(empty, key=lambda cell: len(candidates(cell)))
            empty.remove(i)
            for digit in rng.permutation(candidates(i)).tolist():
                cells[i] = digit
                for group in groups[i]:
                    used[group] ^= 1 << digit
                yield from fill()
                for group in groups[i]:
                    used[group] ^= 1 << digit
            empty.append(i)

        yield from fill()

    def box_of(self, i: int) -> int:
        (height, width), (row, col) = self.box, divmod(i, self.side)
        return row // height * (self.side // width) + col // width

    def augment(self, section: Section, generator: torch.Generator) -> Section:
        """Rename the digits, and permute bands, rows within bands, stacks and columns within stacks."""
        digits = torch.randperm(self.side, generator=generator)
        section = replace(
            section,
            features_NF=section.features_NF[:, torch.cat([torch.zeros(1, dtype=torch.long), 1 + digits.argsort()])],
            target_N=digits[section.target_N],
        )
        rows, cols = (shuffled_lines(self.side, size, generator) for size in self.box)
        return reordered(section, (rows[:, None] * self.side + cols).flatten())


def shuffled_lines(side: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Permutation of the rows (or columns) that keeps those of a box of this size together."""
    bands = torch.randperm(side // size, generator=generator)
    within = [torch.randperm(size, generator=generator) for _ in bands]
    return torch.cat([band * size + lines for band, lines in zip(bands, within, strict=True)])
