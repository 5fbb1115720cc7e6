"""Training that goes on where it was stopped: its whole state in one file of numbers, replaced in one step."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from strecur.engine.data import Section
    from strecur.engine.fit import BestWeights, Clock, FitConfig, MovingAverage

logger = logging.getLogger("strecur")

FILE, FORMAT, STATE = "training.safetensors", 1, "strecur_training"
SECONDS_BETWEEN = 5.0
"""Epochs may be shorter than it takes to write down what they changed."""


@dataclass
class TrainingState:
    """Everything that changes from epoch to epoch; random streams of visits depend on the epoch alone."""

    network: nn.Module
    average: MovingAverage
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    clock: Clock
    keeper: BestWeights
    history: list[dict[str, float]]

    @property
    def is_over(self) -> bool:
        return self.clock.finished or self.keeper.exhausted

    def values(self) -> dict[str, object]:
        """What goes into JSON."""
        return {
            "history": self.history,
            "clock": {"planned": self.clock.planned, "done": self.clock.done, "seconds": self.clock.seconds},
            "best": {"best": self.keeper.best, "failures": self.keeper.failures},
        }

    def tensors(self) -> dict[str, Tensor]:
        """What does not."""
        found = {"order": self.order.get_state()}
        found |= {f"weights/{name}": p.detach() for name, p in self.network.named_parameters()}
        found |= {f"average/{name}": value for name, value in self.average.shadow.items()}
        if self.keeper.weights is not None:
            found |= {f"best/{name}": value for name, value in self.keeper.weights.shadow.items()}
        for i, p in enumerate(self.parameters()):
            found |= {f"optimizer/{i}/{name}": value for name, value in self.optimizer.state[p].items()}
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def restore(self, values: Mapping[str, object], tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`values` and :meth:`tensors`."""
        self.order.set_state(tensors["order"])
        with torch.no_grad():
            for name, p in self.network.named_parameters():
                p.copy_(tensors[f"weights/{name}"])
                self.average.shadow[name].copy_(tensors[f"average/{name}"])
        if any(name.startswith("best/") for name in tensors):
            self.keeper.keep(self.network)
            for name, value in self.keeper.weights.shadow.items():
                value.copy_(tensors[f"best/{name}"])
        for i, p in enumerate(self.parameters()):
            own = {name.split("/")[2]: value for name, value in tensors.items() if name.startswith(f"optimizer/{i}/")}
            # AdamW counts its steps on the CPU
            self.optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in own.items()}
        self.history.extend(values["history"])
        vars(self.keeper).update(values["best"])
        vars(self.clock).update(values["clock"], begin=time.monotonic() - values["clock"]["seconds"])


class Checkpoint:
    """Where a training writes its state after an epoch, and from where the same training goes on.

    Parameters
    ----------
    folder
        Folder of the file; made if it is not there.
    about
        What tells this training from others besides the arguments of :func:`strecur.engine.fit`, by name.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, object]) -> None:
        self.folder, self.about, self.run = Path(folder), about, {}
        self.written = -float("inf")

    def begin(self, state: TrainingState, run: Mapping[str, object], fabric: Fabric) -> None:
        """Take up the state of the file, or write the first one, so that a folder that takes none is noticed at once.

        Raises
        ------
        ValueError
            If the file holds another training; the message says what differs.
        """
        # through JSON, in which a tuple is a list
        self.run = json.loads(json.dumps({**self.about, **run}))
        found = fabric.broadcast(self.read() if fabric.is_global_zero else None)
        if found is None:
            if fabric.is_global_zero:
                self.write(state)
            return
        try:
            state.restore(*found)
        except (KeyError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(self.damaged(error)) from error
        logger.info("training goes on after epoch %d, from %s", len(state.history), self.folder)

    def update(self, state: TrainingState, fabric: Fabric) -> None:
        """Write the state, unless that was done a moment ago and more is to come; a failure does not stop training."""
        if not fabric.is_global_zero or (time.monotonic() - self.written < SECONDS_BETWEEN and not state.is_over):
            return
        try:
            self.write(state)
        except OSError as error:
            logger.warning("training goes on without a new checkpoint: %s", error)

    def read(self) -> tuple[dict[str, object], dict[str, Tensor]] | None:
        """Values and tensors of the file if it is there and belongs to this training."""
        path = self.folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                values = json.loads(file.metadata()[STATE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            there = values["run"] if values["format"] == FORMAT else {"format": values["format"]}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(self.damaged(error)) from error
        found = differences(there, self.run)
        if found:
            msg = (
                f"{self.folder} holds the checkpoint of another training, with other {'; '.join(found)}. Pass another "
                "folder, or delete this one to begin anew"
            )
            raise ValueError(msg)
        return values, tensors

    def write(self, state: TrainingState) -> None:
        """Replace the file in one step."""
        values = {"format": FORMAT, "run": self.run, **state.values()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / FILE, save(state.tensors(), {STATE: json.dumps(values)}))
        except OSError as error:
            msg = f"no checkpoint can be written to {self.folder}: {error}; free some space, or pass another folder"
            raise OSError(error.errno, msg) from error
        self.written = time.monotonic()

    def damaged(self, error: Exception) -> str:
        return f"{self.folder / FILE} is damaged or no checkpoint ({error}); delete it to begin anew"


def describe_run(
    network: nn.Module,
    sections: Sequence[Section],
    config: FitConfig,
    augment: object,
    seed: int,
    fabric: Fabric,
) -> dict[str, object]:
    """What a training begins with, in values that can be compared: data and first weights as checksums."""
    return {
        **asdict(config),
        "seed": seed,
        "augmentation": repr(augment)
        if is_dataclass(augment)
        else getattr(augment, "__qualname__", type(augment).__name__),
        "network": checksum(network.state_dict()),
        "sections": describe_sections(sections),
        "device": f"{fabric.world_size} × {fabric.device.type}",
    }


def describe_sections(sections: Sequence[Section]) -> dict[str, str]:
    """Checksum of everything a section holds, by name."""
    found = {}
    for section in sections:
        lattice = section.lattice
        tensors = {"features": section.features_NF, "row": lattice.row_N, "col": lattice.col_N}
        tensors |= {f"view {element}": values for element, values in section.views.items()}
        if section.target_N is not None:
            tensors["target"] = section.target_N
        found[section.name] = f"{lattice.layout} {checksum(tensors)}"
    return found


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors."""
    total = hashlib.sha256()
    for name, value in tensors.items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Name what two trainings do not share; numbers and words with both values, data by the names of the sections."""
    found = []
    for name in dict.fromkeys([*here, *there]):
        a, b = there.get(name), here.get(name)
        if a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            found.append(f"{name} ({', '.join(k for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k))})")
        elif name == "network":
            found.append("network (weights at the start)")
        else:
            found.append(f"{name} ({a!r} there, {b!r} here)")
    return found


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that at any moment either the old or the new one is there, also after the power fails."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        write_through(fresh, data)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_through(path: Path, data: bytes) -> None:
    """Write a file down to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring the names in a folder down to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
