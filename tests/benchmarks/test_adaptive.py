"""Halting on puzzles, and the learning curve of larger ones."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from strecur.engine import Answer, Prediction, collate, make_fabric, predict
from strecur.options import Inference, Training

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
adaptive, curve, figures, networks = map(
    importlib.import_module, ("adaptive", "puzzle_curve", "puzzle_figures", "puzzle_networks")
)
SMALL = networks.Sudokus(box=(2, 2), n_clues=6)
TRAINING = Training(max_epochs=1, batch_sections=4, learning_rate=1e-3, weight_decay=0.0, warmup=1, ema=0.9)


def preset() -> networks.Preset:
    sizes = {"n_layers": 1, "n_latent": 2, "n_deep": 1, "n_steps": 2, "n_train": 4, "n_test": 6, "hidden": 16}
    return networks.Preset(SMALL, "mixer", width=16, training=TRAINING, **sizes)


@pytest.fixture(scope="module")
def sections():
    rng = np.random.default_rng(0)
    return [SMALL.draw(rng, f"puzzle {i}") for i in range(6)]


def planted(section, right: list[bool]) -> Answer:
    """Answer of a puzzle that is right after some outer steps, and otherwise wrong in its last cell."""
    labels = [section.target_N.clone() for _ in right]
    for label_N, is_right in zip(labels, right, strict=True):
        if not is_right:
            label_N[-1] = (label_N[-1] + 1) % 4
    output = torch.nn.functional.one_hot(torch.stack(labels), 4).float().numpy()
    nothing = np.full(len(right), np.nan)
    return Answer(section.name, (Prediction(output, np.zeros((16, 1)), nothing, nothing, len(right)),))


def test_oracles_stop_at_the_first_right_and_at_the_last_change(sections):
    plans = [[False, True, True, True], [False, True, False, True], [False] * 4]
    found = [planted(section, plan) for section, plan in zip(sections, plans, strict=False)]
    right_DP = adaptive.right_by_step(found, sections[:3])
    assert right_DP.T.tolist() == plans
    assert adaptive.first_right(right_DP).tolist() == [2, 2, 4]
    assert adaptive.settling_steps(found, 4).tolist() == [2, 4, 1]
    assert adaptive.settling_steps(found, 3).tolist() == [2, 3, 1]
    assert adaptive.after(right_DP, np.array([2, 3, 1])) == {"exact": pytest.approx(1 / 3), "steps": 2.0}


def test_the_halt_logit_learns_whether_every_cell_is_right(sections):
    network = adaptive.make_network(preset(), "solved", 0)
    generator = torch.Generator().manual_seed(0)
    batch = collate(sections)
    output, halt_SL, _ = network.step(batch, network.start(batch))
    answer_N = output.argmax(dim=1)
    wrong_N = answer_N.clone()
    wrong_N[-1] = (wrong_N[-1] + 1) % 4  # one cell of the last puzzle
    for target_N, solved in ((answer_N, [1.0] * 6), (wrong_N, [1.0] * 5 + [0.0])):
        batch = replace(batch, target_N=target_N)
        loss, carry = network.training_step(batch, network.start(batch), generator)
        halting = torch.nn.functional.binary_cross_entropy_with_logits(halt_SL[:, 0], torch.tensor(solved))
        cells = network.mean_loss(output, target_N >= 0, batch)
        torch.testing.assert_close(loss, cells + 0.5 * halting)
        assert not any(part.requires_grad for part in carry.state)
        torch.testing.assert_close(carry.halt_S, halt_SL[:, 0].sigmoid())


def test_halting_through_the_queue_is_the_full_run_cut_at_the_halt_step(sections):
    network, fabric = adaptive.make_network(preset(), "solved", 0), make_fabric("cpu", 1, "32-true")
    torch.nn.init.normal_(network.halt_head.linear.weight, generator=torch.Generator().manual_seed(1))
    torch.nn.init.zeros_(network.halt_head.linear.bias)
    full = predict(network, sections, Inference(depth=6, symmetric=False), fabric=fabric, progress=False)
    probability_DP = np.stack([answer.restarts[0].halt_probability_D for answer in full], axis=1)
    threshold = float(np.median(probability_DP[1:]))
    fires_DP = (probability_DP > threshold) & (np.arange(6) >= 1)[:, None]
    expected = np.where(fires_DP.any(axis=0), fires_DP.argmax(axis=0) + 1, 6)
    assert len(set(expected)) > 1
    rows = pd.DataFrame(adaptive.evaluate(network, sections, fabric, depths=(6,), thresholds=(threshold, 1 - 1e-9)))
    halting = rows[rows["stop"] == "halting"]
    assert halting["steps"].tolist() == [expected.mean(), 6]
    wanted = adaptive.after(adaptive.right_by_step(full, sections), expected)
    assert halting["exact"].iloc[0] == wanted["exact"]
    assert rows.loc[rows["stop"] == "fixed", "steps"].item() == 6


def test_adaptive_computation_is_trained_tabulated_and_drawn(tmp_path):
    fabric, parts = make_fabric("cpu", 1, "32-true"), adaptive.make_puzzles(preset(), None, tmp_path / "kept.npz")
    rows = [
        adaptive.run(preset(), recipe, parts, 0, fabric).assign(puzzle="sudoku", recipe=recipe, seed=0)
        for recipe in adaptive.RECIPES
    ]
    table = pd.concat(rows)
    means = adaptive.summarise(table)
    fixed = means.xs("fixed", level="stop")
    assert (fixed["fewer"] == 1).all()
    assert (means["fewer"] >= 1).all()
    adaptive.draw(table, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_more_clues_are_cells_of_the_answer(tmp_path):
    answer = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))
    question = "." * 64 + answer[64:]
    pd.DataFrame({"question": [question], "answer": [answer]}).to_csv(tmp_path / "table.csv", index=False)
    for n_clues, expected in ((5, 17), (17, 17), (34, 34)):
        kind = networks.Sudokus(box=(3, 3), n_clues=n_clues)
        (section,) = kind.read(tmp_path / "table.csv", 1, np.random.default_rng(0))
        symbols = section.features_NF.argmax(dim=1)
        given = symbols > 0
        assert given.sum() == expected
        assert torch.equal(symbols[given] - 1, section.target_N[given])
        assert given[64:].all()
        assert curve.share_of_empty(section, given.numpy()) == 0
        assert curve.share_of_empty(section, ~given.numpy()) == 1


def test_figures_of_puzzles_hold_every_method_once(tmp_path, monkeypatch):
    rows = [
        {"puzzle": "sudoku", "method": m, "seed": s, "depth": d, "layer_passes": 3 * d, "breadth": b, "selection": how}
        for m in ("feedforward, step", "trm", "trm, random", "trm, single z")
        for s in (0, 1)
        for d in (1, 8)
        for b, how in ((1, "-"), (1, "one"), (4, "converged"), (4, "vote"))
    ]
    table = pd.DataFrame(rows).assign(exact=np.linspace(0, 1, len(rows)))
    kept = []
    monkeypatch.setattr(figures.plt, "close", kept.append)
    figures.draw(table, {"sudoku": 24}, tmp_path / "passes.png")
    figures.draw_breadth(table, tmp_path / "breadth.png")
    figures.draw_variants(table, {"sudoku": 8}, tmp_path / "variants.png")
    passes, breadth, variants = kept
    assert [text.get_text() for text in passes.axes[0].get_legend().get_texts()] == [
        "feedforward, step",
        "trm",
        "trm, random",
    ]
    shown = {ax.get_title(): ax.images[0].get_array() for ax in breadth.axes[:-1]}
    trm = table[(table["method"] == "trm") & (table["depth"] == 8) & (table["selection"] == "converged")]
    assert shown["sudoku: trm"][1, 1] == pytest.approx(trm["exact"].mean())
    assert sorted(label.get_text() for label in variants.axes[0].get_yticklabels()) == ["trm", "trm, single z"]
