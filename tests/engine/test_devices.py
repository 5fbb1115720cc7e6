"""Training in two processes, which is what several devices are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from strecur.engine import Augmentation, Checkpoint, Section, checkpoint, fit, make_fabric
from strecur.engine.training import deal
from strecur.nn import TRM, DomainHead, Lattice, SpotNetwork, TRMConfig, WindowedBackbone, WindowedConfig
from strecur.options import Training

SIZES = (8, 5, 7, 6)
TRAINING = Training(slots=1, max_epochs=4, learning_rate=1e-3, warmup=1, schedule="linear", weight_decay=0.5, ema=0.98)


def section(name: str, size: int) -> Section:
    generator = torch.Generator().manual_seed(size)
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    target = torch.where(col == 0, -1, (row >= size // 2).long())
    return Section(name, torch.randn(size**2, 4, generator=generator), Lattice(row, col, (size**2,), "square"), target)


def train(devices: int, batch_sections: int, folder: str | None = None) -> tuple[SpotNetwork, list[dict[str, float]]]:
    torch.manual_seed(0)
    body = WindowedBackbone(WindowedConfig(width=16, n_heads=2, window=4, n_global=1))
    network = SpotNetwork(4, TRM(body, TRMConfig(n_latent=1, n_deep=2)), DomainHead(16, 2), halting=None)
    network.recursion.recompute = devices > 1  # the same gradients, and processes exchange them all the same
    history = fit(
        network,
        [section(f"s{i}", size) for i, size in enumerate(SIZES)],
        replace(TRAINING, batch_sections=batch_sections),
        n_steps=2,
        fabric=make_fabric("cpu", devices, "32-true"),
        augment=Augmentation(max_shift=2),
        seed=0,
        progress=False,
        checkpoint=None if folder is None else Checkpoint(folder, {}),
    )
    return network, history


def crash_and_resume(folder: str) -> SpotNetwork:
    """Let all processes crash in the third epoch, and train again with the same call."""
    checkpoint.SECONDS_BETWEEN = 0
    steps, original = [], SpotNetwork.training_step

    def crashing(self: SpotNetwork, *arguments: object) -> object:
        steps.append(1)
        if len(steps) == 10:  # two sections for each process, two steps of each: four an epoch
            raise InterruptedError
        return original(self, *arguments)

    SpotNetwork.training_step = crashing
    with pytest.raises(InterruptedError):
        train(devices=2, batch_sections=1, folder=folder)
    network, _ = train(devices=2, batch_sections=1, folder=folder)
    assert len(steps) == 10 + 8
    return network


def main(folder: str) -> None:
    """One of the processes: train, and write what came out."""
    network, history = train(devices=2, batch_sections=1)
    rank = os.environ["RANK"]
    torch.save(network.state_dict(), f"{folder}/weights{rank}.pt")
    with open(f"{folder}/history{rank}.json", "w") as file:  # noqa: PTH123
        json.dump(history, file)
    torch.save(crash_and_resume(f"{folder}/checkpoint").state_dict(), f"{folder}/resumed{rank}.pt")


def test_two_processes_learn_what_one_does_with_both_sections_in_its_batch(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    network, history = train(devices=1, batch_sections=2)
    for rank in (0, 1):
        weights = torch.load(tmp_path / f"weights{rank}.pt")
        for name, expected in network.state_dict().items():
            torch.testing.assert_close(weights[name], expected, atol=1e-5, rtol=1e-4, msg=f"{name} of process {rank}")
        other = json.loads((tmp_path / f"history{rank}.json").read_text())
        assert [r["train_loss"] for r in other] == pytest.approx([r["train_loss"] for r in history], abs=1e-5)
        # both go on from the checkpoint that one of them wrote
        resumed = torch.load(tmp_path / f"resumed{rank}.pt")
        assert all(torch.equal(resumed[name], value) for name, value in weights.items())
    # two sections of different size pull at different weights: one of them alone leads elsewhere
    alone, _ = train(devices=1, batch_sections=1)
    assert not torch.allclose(alone.head.linear.weight, network.head.linear.weight, atol=1e-3)


@pytest.mark.parametrize("n_sections", [1, 4, 5])
def test_every_process_gets_equally_many_batches(n_sections):
    class Process:
        world_size = 2

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    sections = [section(f"s{i}", 3) for i in range(n_sections)]
    config = Training()
    dealt = [deal(sections, config, Process(rank), generator=torch.Generator().manual_seed(3)) for rank in (0, 1)]
    assert len(dealt[0]) == len(dealt[1])
    names = [name for batches in dealt for batch in batches for name in batch]
    assert set(names) == {part.name for part in sections}
    assert len(names) == n_sections + n_sections % 2


if __name__ == "__main__":
    main(sys.argv[1])
