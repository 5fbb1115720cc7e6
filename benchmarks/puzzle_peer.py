"""Time to accuracy on 6x6 Sudokus: this package beside nano-trm, another implementation of TRM, at equal size.

    python benchmarks/puzzle_peer.py --peer NANO_TRM --seeds 0 1 2

``--peer`` is a checkout of olivkoch/nano-trm (MIT licence); it needs ``lightning``, ``hydra-core``, ``einops`` and
``rich``. Both train the same mixer (gated MLPs over positions and channels, whose hidden widths nano-trm rounds up to
256) with the same updates, puzzles, batches, decay of the learning rate and moving average. What differs is
theirs: nano-trm replaces every puzzle that its halt head takes for solved, and has the stablemax loss. Seconds are
those of the processor, without the evaluation.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from puzzle_curve import score
from puzzle_networks import SMALL
from puzzles import is_done, make_puzzles

from strecur.engine import fit, make_fabric

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from puzzle_networks import Preset

    from strecur.engine import Section

OWN, PEER = "strecur", "nano-trm"


@dataclass
class Curve:
    """Scores by optimizer step, and the seconds of the processor between evaluations."""

    evaluate: Callable[[Any], dict[str, float]]
    seconds: float = 0.0
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.since = time.process_time()

    def measure(self, network: Any) -> dict[str, float]:
        """Score a network, and add the row."""
        self.seconds += time.process_time() - self.since
        found = self.evaluate(network)
        self.rows.append(found | {"cpu_seconds": self.seconds})
        self.since = time.process_time()
        return found


def train_own(preset: Preset, train: Sequence[Section], test: Sequence[Section], seed: int) -> list[dict[str, float]]:
    """Train the TRM of this package, and score it after every pass."""
    fabric = make_fabric("cpu", 1, "32-true")
    network = preset.make_network("trm", seed)
    curve = Curve(lambda network: score(network, test, preset.n_steps, fabric))
    fit(
        network,
        train,
        preset.training,
        n_steps=preset.n_steps,
        augment=preset.puzzles.augment,
        fabric=fabric,
        seed=seed,
        validate=curve.measure,
        progress=False,
    )
    return curve.rows


def make_peer(preset: Preset, n_cells: int, seed: int) -> Any:
    """Build the network of nano-trm in the size of the preset."""
    torch.manual_seed(seed)
    model = importlib.import_module("src.nn.models.trm").TRMModule(
        hidden_size=preset.width,
        num_layers=preset.n_layers,
        num_heads=2,
        max_grid_size=preset.puzzles.side,
        H_cycles=preset.n_deep,
        L_cycles=preset.n_latent,
        N_supervision=preset.n_steps,
        N_supervision_val=preset.n_steps,
        learning_rate=preset.training.learning_rate,
        weight_decay=preset.training.weight_decay,
        warmup_steps=preset.training.warmup,
        puzzle_emb_dim=0,
        puzzle_emb_len=0,
        pos_emb_type=None,
        use_mlp_t=True,
        vocab_size=preset.puzzles.n_symbols,
        batch_size=preset.training.batch_sections,
        seq_len=n_cells,
    )
    model.total_steps = float("inf")
    model.log = lambda *_, **__: None  # there is no trainer
    model._optimizers = model.configure_optimizers()
    return model


def as_batch(sections: Sequence[Section]) -> dict[str, torch.Tensor]:
    """Return puzzles as nano-trm reads them: symbols and answers have the same numbers, 0 is an empty cell."""
    return {
        "input": torch.stack([section.features_NF.argmax(dim=1) for section in sections]),
        "output": torch.stack([section.target_N + 1 for section in sections]),
        "puzzle_identifiers": torch.zeros(len(sections), dtype=torch.long),
    }


def batches(preset: Preset, train: Sequence[Section], seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield shuffled batches of permuted puzzles without end."""
    generator, size = torch.Generator().manual_seed(seed), preset.training.batch_sections
    while True:
        for chosen in torch.randperm(len(train), generator=generator).split(size):
            yield as_batch([preset.puzzles.augment(train[int(i)], generator) for i in chosen])


@torch.no_grad()
def score_peer(model: Any, test: Sequence[Section], n_steps: int) -> dict[str, float]:
    """Return the share of right cells that were empty and of solved puzzles after some outer steps."""
    batch, training = as_batch(test), model.training
    model.eval()
    carry = model.initial_carry(batch)
    for _ in range(n_steps):
        carry, outputs = model(carry, batch)
    model.train(training)
    right = outputs["logits"].argmax(dim=-1) == batch["output"]
    empty = batch["input"] == 0
    cells = (right & empty).sum(dim=1) / empty.sum(dim=1)
    return {"cells": float(cells.mean()), "exact": float(right.all(dim=1).float().mean())}


def train_peer(preset: Preset, train: Sequence[Section], test: Sequence[Section], seed: int) -> list[dict[str, float]]:
    """Train the TRM of nano-trm for as many optimizer steps, and score it as often."""
    model = make_peer(preset, len(train[0].target_N), seed)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(preset.training.ema)
    )
    per_pass = preset.n_steps * -(-len(train) // preset.training.batch_sections)
    curve, stream = Curve(lambda network: score_peer(network, test, preset.n_steps)), batches(preset, train, seed)
    n_steps = preset.training.max_epochs * per_pass
    for step in range(1, n_steps + 1):
        model.hparams.learning_rate = preset.training.learning_rate * (1 - (step - 1) / n_steps)
        model.training_step(next(stream), step)
        average.update_parameters(model)
        if step % per_pass == 0:
            curve.measure(average.module)
    return curve.rows


def draw(table: pd.DataFrame, path: Path) -> None:
    """Plot solved puzzles against optimizer steps and seconds; one line per seed."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for color, (name, own) in zip(plt.cm.tab10.colors, table.groupby("implementation", sort=False), strict=False):
        for i, (_, rows) in enumerate(own.groupby("seed")):
            for ax, column in zip(axes, ("optimizer_steps", "cpu_seconds"), strict=True):
                ax.plot(rows[column], rows["exact"], "o-", ms=3, color=color, label=None if i else name)
    axes[0].set(xlabel="optimizer steps", ylabel="puzzles solved", ylim=(-0.03, 1.03))
    axes[1].set(xlabel="CPU seconds of the training")
    axes[0].legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="checkout of nano-trm")
    parser.add_argument("--epochs", type=int, default=6, help="passes over 1,024 puzzles")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/puzzle_peer.csv"))
    options = parser.parse_args()

    sys.path.insert(0, str(options.peer))
    training = replace(SMALL.training, max_epochs=options.epochs, validate_every=1, patience=10**6)
    preset = replace(SMALL, hidden=None, n_context=0, training=training)
    train, test = make_puzzles(preset, None, options.out.parent / "small_sudoku.npz")
    table = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame()
    for seed in options.seeds:
        for name, learn in ((OWN, train_own), (PEER, train_peer)):
            wanted = {"implementation": name, "seed": seed, "epochs": options.epochs}
            if is_done(table, wanted):
                continue
            steps = np.arange(1, options.epochs + 1) * preset.n_steps * (len(train) // training.batch_sections)
            rows = pd.DataFrame(learn(preset, train, test, seed)).assign(**wanted, optimizer_steps=steps)
            table = pd.concat([table, rows], ignore_index=True)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            table.to_csv(options.out, index=False)
            print(rows.round(3).to_string(index=False), flush=True)
    own = table[table["epochs"] == options.epochs]
    print(own.groupby(["implementation", "optimizer_steps"])[["exact", "cells", "cpu_seconds"]].mean().round(3))
    draw(own, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
