"""Training killed at any moment goes on to the same weights, bit for bit.

One process imports everything once and then forks: a child that is killed at one point, and a child that goes on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from strecur import _files
from strecur.engine import Augmentation, Checkpoint, Section, checkpoint, fit, make_fabric
from strecur.nn import TRM, DomainHead, Lattice, SpotNetwork, TRMConfig, WindowedBackbone, WindowedConfig
from strecur.options import Training

STAGES = ("before writing", "half written", "before the renaming", "after the renaming")
TRAINING = Training(
    max_epochs=3,
    learning_rate=1e-3,
    warmup=1,
    schedule="linear",
    weight_decay=0.5,
    ema=0.98,
    batch_sections=2,
    validate_every=2,
)
N_STEPS = 2
KILLED_STEPS = (1, 2, 4, 5, 8, 9, 12)
"""Of four steps an epoch: first and last ones, and one between; a checkpoint is written after an epoch."""


def section(name: str, size: int) -> Section:
    generator = torch.Generator().manual_seed(size)
    row, col = (axis.flatten() for axis in torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"))
    lattice = Lattice(row, col, (size**2,), "square")
    return Section(name, torch.randn(size**2, 4, generator=generator), lattice, (row >= size // 2).long())


SECTIONS = [section("a", 5), section("b", 4), section("c", 6)]


def make_network() -> SpotNetwork:
    torch.manual_seed(0)
    body = WindowedBackbone(WindowedConfig(width=16, n_layers=1, n_heads=2, window=4, n_global=1))
    # random starts and noise use random streams as well
    recursion = TRM(body, TRMConfig(n_latent=1, sigma=(1.0, 1.0), noise=0.1))
    return SpotNetwork(4, recursion, DomainHead(16, 2), halting="loss_proxy")


def validate(network: SpotNetwork) -> dict[str, float]:
    return {"score": -float(network.head.linear.weight.detach().abs().sum())}


def train(folder: Path | None, network: SpotNetwork | None = None, **changes: object) -> tuple[SpotNetwork, list[dict]]:
    network = network or make_network()
    arguments = {"sections": SECTIONS, "training": TRAINING, "augment": Augmentation(max_shift=2), "seed": 3} | changes
    sections, training = arguments.pop("sections"), arguments.pop("training")
    history = fit(
        network,
        sections,
        training,
        n_steps=N_STEPS,
        **arguments,
        fabric=make_fabric("cpu", 1, "32-true"),
        validate=validate,
        progress=False,
        checkpoint=None if folder is None else Checkpoint(folder, {}),
    )
    return network, history


def outcome(network: SpotNetwork, history: list[dict]) -> dict[str, object]:
    weights = hashlib.sha256(b"".join(v.numpy().tobytes() for v in network.state_dict().values())).hexdigest()
    return {"weights": weights, "history": [{k: v for k, v in r.items() if k != "seconds"} for r in history]}


# What runs in the process that forks


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at_step(point: int) -> None:
    """Die at an optimizer step."""
    calls, original = Counter(), torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: object) -> object:
        calls["step"] += 1
        if calls["step"] == point:
            die()
        return original(self, *arguments)

    torch.optim.AdamW.step = step


def kill_at_write(point: int, stage: str) -> None:
    """Die at a stage of writing a checkpoint."""
    calls, write, rename = Counter(), _files.write_through, Path.replace

    def write_through(path: Path, data: bytes) -> None:
        calls["write"] += 1
        if calls["write"] == point and stage == "before writing":
            die()
        if calls["write"] == point and stage == "half written":
            write(path, data[: len(data) // 2])
            die()
        write(path, data)

    def rename_or_die(self: Path, target: Path) -> Path:
        if calls["write"] == point and stage == "before the renaming":
            die()
        found = rename(self, target)
        if calls["write"] == point and stage == "after the renaming":
            die()
        return found

    _files.write_through, Path.replace = write_through, rename_or_die


def in_child(folder: Path, prepare: object = None) -> tuple[int, dict | None]:
    """Train in a child; return the signal that ended it, and the outcome if none did."""
    result = folder.with_suffix(".json")
    child = os.fork()
    if child == 0:
        if prepare is not None:
            prepare()
        result.write_text(json.dumps(outcome(*train(folder))))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status), json.loads(result.read_text()) if status == 0 else None


def main(folder: Path) -> None:
    """Kill at steps of all epochs, at every stage of every write, and again and again in one training."""
    torch.set_num_threads(1)
    checkpoint.SECONDS_BETWEEN = 0
    _, whole = in_child(folder / "whole")
    points = [(f"step {i}", lambda i=i: kill_at_step(i)) for i in KILLED_STEPS]
    points += [
        (f"write {i}, {stage}", lambda i=i, stage=stage: kill_at_write(i, stage))
        for i in range(1, TRAINING.max_epochs + 2)
        for stage in STAGES
    ]
    found = {}
    for name, prepare in points:
        own = folder / name.replace(" ", "_")
        ended_by, _ = in_child(own, prepare)
        _, resumed = in_child(own)
        found[name] = {
            "killed": ended_by == signal.SIGKILL,
            "same": resumed == whole,
            "left": [path.name for path in own.iterdir()],
        }
    own, n_kills, resumed = folder / "again", 0, None
    while resumed is None:
        # one epoch has four steps: each attempt gets a little further than one epoch
        ended_by, resumed = in_child(own, lambda: kill_at_step(6))
        n_kills += ended_by == signal.SIGKILL
    found["again and again"] = {
        "killed": n_kills == 2,
        "same": resumed == whole,
        "left": [path.name for path in own.iterdir()],
    }
    print(json.dumps({"whole": whole, "points": found}))


# What is tested


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> dict:
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_training_killed_at_any_moment_ends_with_the_same_weights(killed):
    points = killed["points"]
    assert len(points) == len(KILLED_STEPS) + 4 * len(STAGES) + 1
    assert [name for name, point in points.items() if not point["killed"]] == []
    assert [name for name, point in points.items() if not point["same"]] == []
    # nothing half-written stays
    assert {tuple(point["left"]) for point in points.values()} == {(checkpoint.FILE,)}


def test_a_training_without_checkpoint_is_the_same_one(killed):
    """Those in children had one thread; so has this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert outcome(*train(None)) == killed["whole"]
    finally:
        torch.set_num_threads(threads)


def test_a_finished_training_is_taken_as_it_is(tmp_path, caplog, monkeypatch):
    first = outcome(*train(tmp_path))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("trained again"))
    with caplog.at_level(logging.INFO, "strecur"):
        assert outcome(*train(tmp_path)) == first
    assert "goes on after epoch 3" in caplog.text


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_files, "write_through", lambda *_: pytest.fail("written"))
    train(None)
    assert list(tmp_path.iterdir()) == []


OTHERS = {
    "features": ({"sections": [*SECTIONS[:2], section("c", 7)]}, r"sections \(c\)"),
    "section": ({"sections": SECTIONS[:2]}, r"sections \(c\)"),
    "epochs": (
        {"training": replace(TRAINING, max_epochs=4, validate_every=5)},
        r"max_epochs \(3 there, 4 here",
    ),
    "seed": ({"seed": 4}, r"seed \(3 there, 4 here\)"),
    "augmentation": ({"augment": Augmentation(max_shift=3)}, "augmentation .*max_shift=2.*max_shift=3"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    train(folder)
    return folder


@pytest.mark.parametrize("case", OTHERS)
def test_a_checkpoint_of_another_training_is_refused_with_what_differs(case, finished):
    changes, message = OTHERS[case]
    before = (finished / checkpoint.FILE).read_bytes()
    with pytest.raises(ValueError, match=f"another training, with other .*{message}.*another folder"):
        train(finished, **changes)
    assert (finished / checkpoint.FILE).read_bytes() == before


def test_other_weights_at_the_start_are_another_training(finished):
    network = make_network()
    with torch.no_grad():
        network.embedding.weight[0, 0] += 1
    with pytest.raises(ValueError, match="network"):
        train(finished, network)


def test_a_damaged_checkpoint_is_refused(finished, tmp_path):
    whole = (finished / checkpoint.FILE).read_bytes()
    damaged = {"cut": whole[:-9], "empty": b"", "text": b"no numbers", "header": b"\xff" * 8 + whole[8:]}
    for data in damaged.values():
        (tmp_path / checkpoint.FILE).write_bytes(data)
        with pytest.raises(ValueError, match="damaged or no checkpoint.*delete it"):
            train(tmp_path)


def test_a_folder_that_takes_nothing_is_noticed_before_training(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("trained"))
    with pytest.raises(OSError, match="no checkpoint can be written to .*another folder"):
        train(tmp_path / "file" / "folder")


def test_a_disk_that_fills_up_costs_the_checkpoint_and_not_the_training(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0)
    calls, write = Counter(), _files.write_through

    def full_after_two(path: Path, data: bytes) -> None:
        calls["write"] += 1
        if calls["write"] > 2:
            path.write_bytes(data[:100])
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(_files, "write_through", full_after_two)
    expected = outcome(*train(None))
    assert outcome(*train(tmp_path)) == expected
    assert caplog.text.count("No space left") == 2
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
    monkeypatch.setattr(_files, "write_through", write)
    assert outcome(*train(tmp_path)) == expected


def test_short_epochs_are_not_all_written(tmp_path, monkeypatch):
    written, write = [], _files.write_through
    monkeypatch.setattr(_files, "write_through", lambda path, data: (written.append(path), write(path, data)))
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 1e9)
    train(tmp_path)
    assert len(written) == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
