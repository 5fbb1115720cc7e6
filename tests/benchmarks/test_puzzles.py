from __future__ import annotations

import importlib
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from strecur.engine import Answer, Prediction, Section, collate, fit, make_fabric, predict
from strecur.nn import Lattice
from strecur.options import Inference, Training

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
networks, puzzles = map(importlib.import_module, ("puzzle_networks", "puzzles"))
Mazes, Sudokus = networks.Mazes, networks.Sudokus
OPEN, WALL, START, GOAL = range(4)
SMALL = Sudokus(box=(2, 2), n_clues=6)


def draw(kind, n: int = 5, seed: int = 0) -> list[Section]:
    rng = np.random.default_rng(seed)
    return [kind.draw(rng, f"puzzle {i}") for i in range(n)]


def square(values: torch.Tensor) -> np.ndarray:
    side = round(len(values) ** 0.5)
    return values.view(side, side).numpy()


def symbols(section: Section) -> np.ndarray:
    assert (section.features_NF.sum(dim=1) == 1).all()
    return square(section.features_NF.argmax(dim=1))


def neighbours(cell: tuple[int, int]) -> set[tuple[int, int]]:
    row, col = cell
    return {(row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)}


def without_dead_ends(maze: np.ndarray) -> np.ndarray:
    """Fill cells with at most one open neighbour until only ways between start and goal are left."""
    left = set(zip(*map(np.ndarray.tolist, np.nonzero(maze != WALL)), strict=True))
    while dead := {c for c in left if len(neighbours(c) & left) < 2 and maze[c] == OPEN}:
        left -= dead
    way = np.zeros(maze.shape, int)
    way[tuple(np.array(sorted(left)).T)] = 1
    return way


def all_solutions(cells: list[int], box: tuple[int, int]) -> list[list[int]]:
    """Fill the cells one after the other with whatever does not repeat."""
    if 0 not in cells:
        return [cells]
    side, i = box[0] * box[1], cells.index(0)

    def place(j: int) -> tuple[int, int, tuple[int, int]]:
        return j // side, j % side, (j // side // box[0], j % side // box[1])

    taken = {cells[j] for j in range(side**2) if any(a == b for a, b in zip(place(i), place(j), strict=True))}
    free = set(range(1, side + 1)) - taken
    return [found for digit in sorted(free) for found in all_solutions([*cells[:i], digit, *cells[i + 1 :]], box)]


@pytest.mark.parametrize("side", [5, 9, 15])
def test_mazes_are_perfect_and_the_target_is_the_only_way(side):
    for section in draw(Mazes(side)):
        maze = symbols(section)
        assert maze.shape == (side, side)
        assert Counter(maze.ravel().tolist())[START] == Counter(maze.ravel().tolist())[GOAL] == 1
        free = set(zip(*map(np.ndarray.tolist, np.nonzero(maze != WALL)), strict=True))
        # a tree: one joint less than cells, and no cell out of reach
        assert sum(len(neighbours(cell) & free) for cell in free) == 2 * (len(free) - 1)
        reached = frontier = {next(iter(free))}
        while frontier:
            frontier = set().union(*map(neighbours, frontier)) & free - reached
            reached = reached | frontier
        assert reached == free
        assert {(r, c) for r in range(0, side, 2) for c in range(0, side, 2)} <= free
        assert np.array_equal(square(section.target_N), without_dead_ends(maze))


@pytest.mark.parametrize("kind", [Sudokus(n_clues=12), SMALL], ids=["6x6", "4x4"])
def test_sudokus_have_the_target_as_their_only_solution(kind):
    for section in draw(kind):
        clues = symbols(section).ravel().tolist()
        assert kind.n_clues <= sum(map(bool, clues)) < kind.side**2
        assert all_solutions(clues, kind.box) == [(section.target_N + 1).tolist()]


@pytest.mark.parametrize("kind", [Mazes(9), SMALL], ids=["maze", "sudoku"])
def test_the_seed_decides_the_puzzles(kind):
    first, same, other = draw(kind, seed=1), draw(kind, seed=1), draw(kind, seed=2)
    for a, b, c in zip(first, same, other, strict=True):
        assert torch.equal(a.features_NF, b.features_NF)
        assert torch.equal(a.target_N, b.target_N)
        assert not torch.equal(a.features_NF, c.features_NF)
    assert not torch.equal(first[0].features_NF, first[1].features_NF)


def test_kept_puzzles_are_the_drawn_ones(tmp_path):
    preset = tiny("mixer", n_train=3, n_test=2)
    drawn, kept = (list(chain(*puzzles.make_puzzles(preset, None, tmp_path / "kept.npz"))) for _ in range(2))
    assert [section.name for section in kept] == [section.name for section in drawn]
    for a, b in zip(drawn, kept, strict=True):
        assert torch.equal(a.features_NF, b.features_NF)
        assert torch.equal(a.target_N, b.target_N)
        assert torch.equal(a.lattice.row_N, b.lattice.row_N)


def test_turned_mazes_are_mazes_in_raster_order():
    kind, generator = Mazes(7), torch.Generator().manual_seed(0)
    (section,) = draw(kind, n=1)
    seen = set()
    for _ in range(60):
        changed = kind.augment(section, generator)
        maze = symbols(changed)
        assert np.array_equal(square(changed.target_N), without_dead_ends(maze))
        assert torch.equal(changed.lattice.row_N * 7 + changed.lattice.col_N, torch.arange(49))
        seen.add(maze.tobytes())
    assert len(seen) == 8


def test_shuffled_sudokus_are_sudokus():
    kind, generator = Sudokus(n_clues=12), torch.Generator().manual_seed(0)
    (section,) = draw(kind, n=1)
    seen = set()
    for _ in range(20):
        changed = kind.augment(section, generator)
        clues = symbols(changed).ravel().tolist()
        assert all_solutions(clues, kind.box) == [(changed.target_N + 1).tolist()]
        seen.add(tuple(clues))
    assert len(seen) == 20


def test_sudokus_are_read_from_a_table(tmp_path):
    answer = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))
    question = "." * 40 + answer[40:]
    pd.DataFrame({"question": [question], "answer": [answer]}).to_csv(tmp_path / "table.csv", index=False)
    (section,) = Sudokus(box=(3, 3)).read(tmp_path / "table.csv", 1, np.random.default_rng(0))
    assert section.features_NF.shape == (81, 10)
    assert (section.features_NF[:40, 0] == 1).all()
    assert "".join(map(str, (section.target_N + 1).tolist())) == answer
    assert symbols(section).ravel()[40:].tolist() == [int(c) for c in answer[40:]]


def test_published_sudokus_agree_with_the_generator_about_their_solution(data_dir):
    kind = Sudokus(box=(3, 3))
    for section in kind.read(data_dir / "sudoku" / "sudoku17.csv.gz", 2, np.random.default_rng(0)):
        clues = symbols(section).ravel().tolist()
        assert sum(map(bool, clues)) == 17
        assert next(kind.solutions(clues, np.random.default_rng(0))) == (section.target_N + 1).tolist()


def test_the_published_network_has_the_published_size():
    found = {m: networks.PRESETS["paper"]["sudoku"].make_network(m, 0) for m in ("trm", "trm, random")}
    # two layers of positions (81 + 16) and channels; embedding, head, 16 context tokens
    expected = 2 * (3 * 97 * 512 + 3 * 512 * 1536) + 10 * 512 + 512 * 9 + 16 * 512
    assert {m: sum(p.numel() for p in n.parameters()) for m, n in found.items()} == dict.fromkeys(found, expected)
    assert round(expected / 1e6, 2) == 5.03


@pytest.mark.parametrize("backbone", ["dense", "mixer"])
def test_narrow_networks_have_gated_mlps_of_that_width_and_keep_the_rest(backbone):
    wide, slim = (tiny(backbone, hidden=hidden).make_network("trm", 0) for hidden in (None, 24))
    shapes = [{name: tuple(p.shape) for name, p in n.named_parameters()} for n in (wide, slim)]
    changed = {name for name in shapes[0] if shapes[0][name] != shapes[1][name]}
    assert changed
    assert all(name.endswith(("up.weight", "down.weight")) for name in changed)
    assert {shapes[1][n][0] if n.endswith("up.weight") else 2 * shapes[1][n][1] for n in changed} == {48}


def tiny(backbone: str, **changes) -> networks.Preset:
    training = Training(max_epochs=40, batch_sections=8, learning_rate=4e-3, weight_decay=0.0, warmup=10, ema=0.9)
    sizes = {"width": 32, "n_layers": 1, "n_latent": 2, "n_deep": 1, "n_steps": 4, "n_train": 8, "n_test": 8}
    preset = networks.Preset(SMALL, backbone, training=training, **sizes, depths=(1, 4, 6), breadths=(1, 3))
    return replace(preset, **changes)


@pytest.mark.parametrize("method", networks.METHODS)
def test_methods_pass_as_many_layers_as_they_say(method):
    preset = tiny("mixer", n_latent=3, n_deep=2, n_layers=2)
    network, batch, passed = preset.make_network(method, 0), collate(draw(SMALL)), []
    for module in network.modules():
        if isinstance(module, networks.MixerLayer):
            module.register_forward_hook(lambda *_: passed.append(1))
    network.step(batch, network.start(batch))
    one_step = 2 * 2 * (3 + 1)
    expected = 2 if method == "feedforward" else 4 * one_step if method.endswith("run") else one_step
    assert len(passed) == preset.n_layer_passes(method) == expected


@pytest.mark.parametrize("method", networks.METHODS[1:])
def test_methods_pass_as_many_layers_in_training(method):
    preset = tiny("mixer", n_latent=3)
    passes = preset.training_of(method).max_epochs * preset.steps_of(method) * preset.n_layer_passes(method)
    assert passes == preset.training.max_epochs * preset.n_steps * preset.n_layer_passes("trm")


def test_the_mixer_mixes_the_positions_of_a_section_and_nothing_else():
    torch.manual_seed(0)
    body = networks.MixerBackbone(networks.MixerConfig(width=16, n_layers=2, n_spots=16, n_context=2))
    first, second = (section.lattice for section in draw(SMALL, n=2))
    context, spots = torch.randn(2, 2, 16), torch.randn(2, 16, 16)
    together = body(torch.cat([context.flatten(0, 1), spots.flatten(0, 1)]), Lattice.concatenate([first, second]))
    alone = body(torch.cat([context[1], spots[1]]), second)
    torch.testing.assert_close(together[2:4], alone[:2], atol=1e-6, rtol=0)
    torch.testing.assert_close(together[4 + 16 :], alone[2:], atol=1e-6, rtol=0)
    changed = spots.clone()
    changed[1, 3] += 1
    moved = body(torch.cat([context.flatten(0, 1), changed.flatten(0, 1)]), Lattice.concatenate([first, second]))
    assert torch.equal(moved[:2], together[:2])
    assert torch.equal(moved[4:20], together[4:20])
    assert ((moved[20:] - together[20:]).abs().amax(dim=1) > 1e-4).all()
    assert ((moved[2:4] - together[2:4]).abs().amax(dim=1) > 1e-4).all()
    with pytest.raises(ValueError, match="not 16"):
        body(torch.randn(83, 16), draw(Mazes(9), n=1)[0].lattice)


@pytest.mark.parametrize("method", ["trm", "trm, random"])
def test_a_tiny_network_learns_eight_tiny_puzzles(method):
    preset, fabric = tiny("mixer"), make_fabric("cpu", 1, "32-true")
    sections = draw(SMALL, n=8)
    network = preset.make_network(method, 0)
    before = puzzles.evaluate(network, sections, (1, 4), (3,), fabric)
    plain = {"augment": lambda section, _: section, "fabric": fabric, "seed": 0, "progress": False}
    fit(network, sections, preset.training_of(method), n_steps=preset.steps_of(method), **plain)
    after = puzzles.evaluate(network, sections, (1, 4), (3,), fabric)
    trained_depth = [{r["selection"]: r["exact"] for r in rows if r["depth"] == 4} for rows in (before, after)]
    assert trained_depth[0]["-"] == 0
    assert trained_depth[1]["-"] == 1


def test_a_longer_run_holds_the_shorter_one():
    preset, fabric = tiny("dense"), make_fabric("cpu", 1, "32-true")
    network, sections = preset.make_network("trm, random", 0), draw(SMALL, n=3)
    long, short = (
        predict(network, sections, Inference(depth=depth, breadth=3, symmetric=False), fabric=fabric, progress=False)
        for depth in (6, 4)
    )
    for longer, wanted in zip(long, short, strict=True):
        cut = puzzles.truncated(longer, 4)
        assert all(np.array_equal(a.output_DN[-1], b.output_DN[-1]) for a, b in zip(cut, wanted, strict=True))
        assert [run.residual for run in cut] == [run.residual for run in wanted]
        assert [run.residual for run in cut] != [run.residual for run in puzzles.truncated(longer, 3)]


def test_path_dependence_of_planted_coins():
    """One puzzle that three of four restarts solve, one that all solve."""
    sections = draw(SMALL, n=2)

    def planted(section: Section, *, right: bool) -> Prediction:
        answer = section.target_N if right else (section.target_N + 1) % 4
        output = torch.nn.functional.one_hot(answer, 4).float().numpy()[None]
        return Prediction(output, np.zeros((16, 1)), np.array([np.nan]), np.array([0.1]), 1)

    some = [planted(sections[0], right=right) for right in (True, True, False, True)]
    found = [Answer("some", tuple(some)), Answer("all", (planted(sections[1], right=True),) * 4)]
    scores = puzzles.path_dependence(found, sections, 1)
    assert scores == {"exact": 0.875, "delta_pi": (2 * 0.75 * 0.25) / 2, "solved_once": 1.0}
    assert puzzles.score(found, sections, 1, "vote") == {"cells": 1.0, "exact": 1.0}
    some[2] = replace(some[2], residual_D=np.array([0.01]))
    found[0] = Answer("some", tuple(some))
    assert puzzles.score(found, sections, 1, "converged") == {"cells": 0.5, "exact": 0.5}
