from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from strecur.engine import Augmentation, HistAugmentation, Section, fit, make_fabric
from strecur.engine.augmentation import free_cells
from strecur.engine.data import symmetries, view
from strecur.nn import (
    DomainHead,
    Feedforward,
    FeedforwardConfig,
    Lattice,
    SpotNetwork,
    WindowedBackbone,
    WindowedConfig,
)
from strecur.options import Training

ALWAYS = HistAugmentation(mirror=1, shear=1, rotate=1, drop=0)


def visium(n_rows: int = 30, n_cols: int = 25) -> Section:
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(n_rows), torch.arange(n_cols), indexing="ij"))
    number = torch.arange(len(row))
    return Section("a", number[:, None].float(), Lattice(row, 2 * col + row % 2, (len(row),), "hex"), number)


def square() -> Section:
    part = visium()
    return replace(part, lattice=Lattice(part.lattice.row_N, part.lattice.col_N // 2, part.lattice.length_S, "square"))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("make", [visium, square])
def test_no_two_spots_share_a_cell_and_none_moves_far(make):
    part = make()
    for seed in range(20):
        changed = ALWAYS(part, generator(seed))
        cell = torch.stack([changed.lattice.row_N, changed.lattice.col_N], dim=1)
        assert len(torch.unique(cell, dim=0)) == len(cell) == len(part.features_NF)
        stream = generator(seed)
        torch.rand(len(cell), generator=stream)
        wanted = 1.5 * part.lattice.position_N2 @ ALWAYS.draw_map(stream).T
        away = cell - wanted
        away -= away.mean(dim=0)
        assert away.norm(dim=1).max() < 1.5
        assert cell.amin(dim=0).tolist() == [0, 0]
        # what it is laid out on has room for every window
        changed.lattice.windows(6, 3)


def test_cells_of_integers_are_themselves_and_order_does_not_matter():
    position = torch.tensor([[0.0, 3.0], [2.0, 1.0], [5.0, 5.0]], dtype=torch.float64)
    assert torch.equal(free_cells(position) + torch.tensor([0, 1]), position.long())
    crowd = torch.rand(200, 2, generator=generator(), dtype=torch.float64) * 12
    found, order = free_cells(crowd), torch.randperm(200, generator=generator(1))
    assert len(torch.unique(found, dim=0)) == 200
    assert torch.equal(free_cells(crowd[order]), found[order])


def test_a_crowded_position_takes_the_nearest_free_cell():
    position = torch.tensor([[4.0, 4.0], [4.1, 4.3], [0.0, 0.0]], dtype=torch.float64)
    assert free_cells(position).tolist() == [[4, 4], [4, 5], [0, 0]]


def test_spots_features_and_targets_stay_together_and_are_dropped_together():
    part = replace(visium(), views={4: torch.zeros(750, 1)})
    changed = replace(ALWAYS, drop=0.4)(part, generator())
    assert torch.equal(changed.features_NF[:, 0].long(), changed.target_N)
    assert len(changed.lattice.row_N) == len(changed.target_N) == pytest.approx(0.6 * 750, rel=0.1)
    assert changed.views == {}
    lonely = replace(
        part, features_NF=torch.ones(1, 1), target_N=torch.ones(1), lattice=Lattice(*torch.ones(2, 1), (1,), "hex")
    )
    assert len(replace(ALWAYS, drop=1.0)(lonely, generator()).features_NF) == 1


def test_maps_are_what_they_are_called():
    still = HistAugmentation(mirror=0, shear=0, rotate=0, drop=0)
    assert torch.equal(still.draw_map(generator()), torch.eye(2, dtype=torch.float64))
    for seed in range(30):
        mirrored = replace(still, mirror=1).draw_map(generator(seed))
        assert torch.linalg.det(mirrored) == pytest.approx(-1)
        sheared = replace(still, shear=1).draw_map(generator(seed))
        assert torch.linalg.det(sheared) == pytest.approx(1)
        assert abs(math.degrees(math.atan(sheared[0, 1]))) <= 15
        turned = replace(still, rotate=1).draw_map(generator(seed))
        torch.testing.assert_close(turned @ turned.T, torch.eye(2, dtype=torch.float64))
        angle = math.degrees(math.atan2(turned[1, 0], turned[0, 0])) % 90
        assert min(angle, 90 - angle) <= 30


def test_the_schedule_reaches_the_data(monkeypatch):
    """At the end of a training fewer spots are missing and fewer sections are turned than at its beginning."""
    seen = []
    original = HistAugmentation.__call__

    def recorded(self, section, stream):
        changed = original(self, section, stream)
        seen.append(len(changed.features_NF))
        return changed

    monkeypatch.setattr(HistAugmentation, "__call__", recorded)
    torch.manual_seed(0)
    body = WindowedBackbone(WindowedConfig(width=16, n_heads=2, window=4, n_global=1))
    net = SpotNetwork(1, Feedforward(body, FeedforwardConfig()), DomainHead(16, 2), halting=None)
    part = visium(12, 12)
    part = replace(part, target_N=part.target_N % 2)
    training = Training(max_epochs=20, learning_rate=1e-5, warmup=30, schedule="linear", weight_decay=0.5, ema=0.98)
    options = {"n_steps": 1, "fabric": make_fabric("cpu", 1, "32-true"), "seed": 0, "progress": False}
    fit(net, [part], training, augment=HistAugmentation(drop=0.5, last=0.1), **options)
    assert len(seen) == 20
    assert np.mean(seen[:5]) < 0.65 * 144
    assert np.mean(seen[-5:]) > 0.85 * 144
    early, late = HistAugmentation(rotate=1, last=0).at(0), HistAugmentation(rotate=1, last=0).at(1)
    unchanged = torch.eye(2, dtype=torch.float64)
    assert not any(torch.equal(early.draw_map(generator(s)), unchanged) for s in range(10))
    assert all(torch.equal(late.draw_map(generator(s)), unchanged) for s in range(10))


def test_the_finer_lattice_of_prediction_is_that_of_an_undeformed_copy():
    for part in (visium(), square()):
        still = HistAugmentation(mirror=0, shear=0, rotate=0, drop=0)(part, generator())
        finer = part.lattice.finer(1.5)
        assert finer.layout == still.lattice.layout == "irregular"
        moved = [finer.row_N - still.lattice.row_N, finer.col_N - still.lattice.col_N]
        # up to rounding at another origin
        assert all(shift.max() - shift.min() <= 1 for shift in moved)
        finer.windows(6, 0)
        assert finer is part.lattice.finer(1.5)
        assert finer.finer(1.5) is finer


# Augmentation


def section(name: str = "a", size: int = 8, seed: int = 0) -> Section:
    generator = torch.Generator().manual_seed(seed)
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    target = (row >= size // 2).long()
    features = torch.randn(size**2, 4, generator=generator) + 2 * target[:, None]
    return Section(name, features, Lattice(row, col, (size**2,), "square"), target)


@pytest.mark.parametrize("layout", ["hex", "square", "irregular"])
def test_augmentation_moves_features_labels_and_lattice_together(layout):
    part = section()
    if layout == "hex":
        row, col = part.lattice.row_N, part.lattice.col_N
        part = replace(part, lattice=Lattice(row, 2 * col + row % 2, part.lattice.length_S, layout))
    else:
        part = replace(part, lattice=replace(part.lattice, layout=layout))
    identity = torch.arange(64.0)[:, None].expand(64, 4)
    part = replace(part, features_NF=identity, target_N=torch.arange(64))
    augment = Augmentation(noise=0, drop=0, hide=0, max_shift=3)
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(60):
        changed = augment(part, generator)
        assert torch.equal(changed.features_NF[:, 0].long(), changed.target_N)
        cells = torch.stack([changed.lattice.row_N, changed.lattice.col_N], dim=1)
        assert len(torch.unique(cells, dim=0)) == 64
        if layout == "hex":
            assert len(torch.unique((changed.lattice.row_N + changed.lattice.col_N) % 2)) == 1
        seen.add(tuple((cells - cells[0]).flatten().tolist()))
    assert len(seen) == (4 if layout == "hex" else 8)


def test_symmetries_keep_distances():
    part = section()
    for element in symmetries("square"):
        moved = view(part, element, (2, 5)).lattice
        before, after = (torch.stack([x.row_N, x.col_N], dim=1).double() for x in (part.lattice, moved))
        torch.testing.assert_close(torch.cdist(before, before), torch.cdist(after, after), atol=1e-4, rtol=0)
    assert len(symmetries("square")) == 8
    assert len(symmetries("hex")) == 4


def test_large_sections_are_shown_in_parts_around_known_spots():
    spot = torch.arange(400)
    lattice = Lattice(spot // 20, spot % 20, (400,), "square")
    target = torch.where((spot // 20 < 2) & (spot % 20 < 2), 1, -1)  # a corner is annotated
    views = {1: spot[:, None] + 0.5}
    part = Section("a", spot[:, None].float(), lattice, target, views)
    augment = Augmentation(noise=0, drop=0, hide=0, symmetric=False, max_spots=50)
    generator = torch.Generator().manual_seed(0)
    shown = [augment(part, generator) for _ in range(20)]
    for some in shown:
        chosen = some.features_NF[:, 0].long()
        assert len(chosen.unique()) == 50
        # everything belongs to the same spots, which stay in their cells
        assert torch.equal(some.target_N, target[chosen])
        assert torch.equal(some.lattice.row_N * 20 + some.lattice.col_N, chosen)
        assert some.lattice.length_S == (50,)
        # a quarter of a disc around a spot of the corner
        assert (some.target_N >= 0).any()
        assert (some.lattice.row_N**2 + some.lattice.col_N**2).max() <= (1.5 + 9) ** 2
    assert len({tuple(some.features_NF[:, 0].tolist()) for some in shown}) > 1
    turned = Augmentation(noise=0, drop=0, hide=0, max_spots=50)
    parts = [turned(part, generator) for _ in range(30)]
    assert any((some.features_NF % 1 == 0.5).all() for some in parts)
    assert all(len(some.features_NF) == 50 for some in parts)
    # a section that is small enough is shown whole
    whole = replace(augment, max_spots=400)(part, generator)
    assert torch.equal(whole.features_NF, part.features_NF)


def test_parts_of_measured_sections_have_a_measured_spot():
    spot = torch.arange(100)
    target = torch.full((100, 3), torch.nan)
    target[97] = 1.0
    part = Section("a", torch.zeros(100, 1), Lattice(spot // 10, spot % 10, (100,), "square"), target)
    for _ in range(5):
        some = Augmentation(max_spots=4)(part, torch.Generator().manual_seed(0))
        assert (~some.target_N.isnan()).any()


def test_noise_and_dropped_columns():
    part = replace(section(), features_NF=torch.ones(64, 1000))
    generator = torch.Generator().manual_seed(0)
    dropped = Augmentation(noise=0, drop=0.25, hide=0, symmetric=False)(part, generator).features_NF
    # whole columns vanish, and the rest makes up for them
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped == dropped[0]).all()
    assert (dropped[0] == 0).float().mean() == pytest.approx(0.25, abs=0.05)
    noisy = Augmentation(noise=0.5, drop=0, hide=0, symmetric=False)(part, generator).features_NF
    assert noisy.std() == pytest.approx(0.5, rel=0.05)


def test_hidden_spots_have_no_features_but_stay():
    part = section(size=40)
    hidden = Augmentation(noise=0, drop=0, hide=0.25, symmetric=False)(part, torch.Generator().manual_seed(0))
    gone = (hidden.features_NF == 0).all(dim=1)
    assert gone.float().mean() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(hidden.features_NF[~gone], part.features_NF[~gone])
    assert torch.equal(hidden.target_N, part.target_N)
    assert len(hidden.lattice.row_N) == 1600


def test_hist_augmentation_weakens_along_a_line_or_half_a_cosine():
    share = np.linspace(0, 1, 11)
    line = [HistAugmentation().at(s).strength for s in share]
    cosine = [HistAugmentation(schedule="cosine").at(s).strength for s in share]
    np.testing.assert_allclose(line, 1 - 0.8 * share)
    np.testing.assert_allclose(cosine, 0.2 + 0.8 * (1 + np.cos(np.pi * share)) / 2)
    assert cosine[2] > line[2]
    assert cosine[8] < line[8]
    with pytest.raises(ValueError, match="'linear' or 'cosine'"):
        HistAugmentation(schedule="step")
