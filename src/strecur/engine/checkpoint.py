"""Resuming an interrupted training: its whole state in one file, which is replaced atomically."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from strecur._files import replace_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lightning_fabric import Fabric
    from torch import Tensor, nn

    from strecur.engine.data import Section
    from strecur.engine.state import TrainingState
    from strecur.options import Training

logger = logging.getLogger("strecur")

FILE, FORMAT, STATE = "training.safetensors", 1, "strecur_training"
SECONDS_BETWEEN = 5.0
"""Least time between two writes: an epoch may take less time than a write."""

RECORDED = (
    *("max_epochs", "max_minutes", "batch_sections", "learning_rate", "warmup", "schedule", "weight_decay", "clip"),
    *("ema", "patience", "validate_every", "slots", "early_exit"),
)
"""Training options that identify a run."""


class Checkpoint:
    """Folder in which a training stores its state after epochs, and from which the same training resumes.

    Parameters
    ----------
    folder
        Folder of the file; created if it does not exist.
    about
        What identifies this training in addition to the arguments of :func:`strecur.engine.fit`, by name.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, object]) -> None:
        self.folder, self.about = Path(folder), about
        self.run: dict[str, Any] = {}
        self.written = -float("inf")

    def begin(self, state: TrainingState, run: Mapping[str, object], fabric: Fabric) -> None:
        """Resume from the file, or write the first one, so that a folder that is not writable raises at once.

        Raises
        ------
        ValueError
            If the file belongs to another training; the message says what differs.
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
        """Write the state, unless it was just written and training is not over; a failure does not stop training."""
        if not fabric.is_global_zero or (time.monotonic() - self.written < SECONDS_BETWEEN and not state.is_over):
            return
        try:
            self.write(state)
        except OSError as error:
            logger.warning("training continues without a new checkpoint: %s", error)

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Read values and tensors of the file, if it exists, and check that it belongs to this training."""
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
                "folder, or delete this one to start from the beginning"
            )
            raise ValueError(msg)
        return values, tensors

    def write(self, state: TrainingState) -> None:
        """Replace the file atomically."""
        values = {"format": FORMAT, "run": self.run, **state.values()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(self.folder / FILE, save(state.tensors(), {STATE: json.dumps(values)}))
        except OSError as error:
            msg = f"no checkpoint can be written to {self.folder}: {error}; free some space, or pass another folder"
            raise OSError(error.errno, msg) from error
        self.written = time.monotonic()

    def damaged(self, error: Exception) -> str:
        return f"{self.folder / FILE} is damaged or no checkpoint ({error}); delete it to start from the beginning"


def describe_run(
    network: nn.Module,
    sections: Sequence[Section],
    training: Training,
    *,
    n_steps: int,
    augment: object,
    seed: int,
    fabric: Fabric,
) -> dict[str, object]:
    """Describe a training by comparable values; data and initial weights are described by checksums."""
    return {
        "n_steps": n_steps,
        **{name: getattr(training, name) for name in RECORDED},
        "seed": seed,
        "augmentation": describe(augment),
        "network": checksum(network.state_dict()),
        "sections": checksum_sections(sections),
        "device": f"{fabric.world_size} × {fabric.device.type}",
    }


def describe(augment: object) -> str:
    """Describe an augmentation by its options, or by its name."""
    return repr(augment) if is_dataclass(augment) else getattr(augment, "__qualname__", type(augment).__name__)


def checksum_sections(sections: Sequence[Section]) -> dict[str, str]:
    """Compute the checksum of each section, by name."""
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
        total.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Name what differs between two trainings: options with both values, data by the names of the sections."""
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
