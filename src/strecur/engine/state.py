"""The changing state of a training: weights, averages, optimizer, schedule and history."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from strecur.engine.slots import Slot, Visit, Visits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from strecur.nn import SpotNetwork


MIN_WARMUPS, MIN_STEPS, JUDGED_AFTER = 4, 30, 0.5
"""A training is judged after its half, if it has this many times the optimizer steps of the warm-up."""


class MovingAverage:
    """Exponential moving average (EMA) of the parameters, starting as a copy of them."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters()}

    def update(self, network: nn.Module) -> None:
        for name, p in network.named_parameters():
            self.shadow[name].lerp_(p.detach(), 1 - self.decay)

    def copy_to(self, network: nn.Module) -> None:
        network.load_state_dict(self.shadow, strict=False)


class Clock:
    """Count batches and, given a time limit, shorten the plan to what the measured speed allows."""

    def __init__(
        self, planned: int, minutes: float | None, *, warm: int = 5, agree: Callable[[float], float] = float
    ) -> None:
        self.planned, self.done, self.warm, self.agree = planned, 0, warm, agree
        self.limit = math.inf if minutes is None else 60 * minutes
        self.begin, self.seconds = time.monotonic(), 0.0

    @property
    def finished(self) -> bool:
        return self.done >= self.planned or self.seconds >= self.limit

    @property
    def share_done(self) -> float:
        """Share of the planned batches that is done, 0 to 1."""
        return self.done / self.planned

    def tick(self) -> None:
        """Count a batch."""
        self.done += 1
        # all processes use the clock of one of them; otherwise, one could wait for the others forever
        self.seconds = self.agree(time.monotonic() - self.begin)
        if self.done == self.warm and self.limit < math.inf:
            self.planned = min(self.planned, max(int(self.limit / self.seconds * self.done), self.done))


class BestWeights:
    """Keep the averaged weights of the best validation, and count validations without improvement."""

    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.failures = patience, -math.inf, 0
        self.weights: MovingAverage | None = None

    @property
    def exhausted(self) -> bool:
        return self.failures >= self.patience

    def keep(self, network: nn.Module) -> MovingAverage:
        """Copy the weights."""
        self.weights = MovingAverage(network, decay=0.0)
        return self.weights

    def judge(
        self, network: nn.Module, average: MovingAverage, validate: Callable[[nn.Module], dict[str, float]]
    ) -> dict[str, float]:
        """Validate the averaged weights and return the scores; the weights of the network stay as they are."""
        raw = MovingAverage(network, decay=0.0)
        average.copy_to(network)
        scores = validate(network)
        score = next(iter(scores.values()))
        if score > self.best:
            self.best, self.failures = score, 0
            self.keep(network)
        else:
            self.failures += 1
        raw.copy_to(network)
        return scores


class TrainingCollapseError(RuntimeError):
    """A training in which the network learns nothing."""


class CollapseWatch:
    """Notice a network that is no better than a constant answer.

    Parameters
    ----------
    reference
        Loss of the best constant answer; ``None``: not known.
    warmup
        Optimizer steps of the warm-up.
    """

    def __init__(self, reference: float | None, warmup: int) -> None:
        self.reference, self.least_steps = reference, MIN_WARMUPS * max(warmup, MIN_STEPS)

    def judge(self, error: float, share_done: float, n_steps: int) -> None:
        """Raise if half of a training of ``n_steps`` optimizer steps is done and the error is that of a constant."""
        if self.reference is None or n_steps < self.least_steps or share_done < JUDGED_AFTER:
            return
        if error >= self.reference:
            msg = (
                f"the network learns nothing: after {share_done:.0%} of the training its loss is {error:.3f}, and that "
                f"of a constant answer {self.reference:.3f}. Lower learning_rate, raise warmup, train with more slots "
                "or fewer n_steps, or take architecture='feedforward'"
            )
            raise TrainingCollapseError(msg)


@dataclass
class TrainingState:
    """Everything that changes in a training."""

    network: SpotNetwork
    average: MovingAverage
    optimizer: torch.optim.Optimizer
    order: torch.Generator
    clock: Clock
    keeper: BestWeights
    visits: Visits
    slots: list[Slot | None]
    watch: CollapseWatch
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        return self.clock.finished or self.keeper.exhausted

    def values(self) -> dict[str, object]:
        """Return the part that is stored as JSON."""
        return {
            "history": self.history,
            "clock": {"planned": self.clock.planned, "done": self.clock.done, "seconds": self.clock.seconds},
            "best": {"best": self.keeper.best, "failures": self.keeper.failures},
            "visits": {"epoch": self.visits.epoch, "waiting": [list(names) for names in self.visits.waiting]},
            "slots": [None if slot is None else slot.values() for slot in self.slots],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the part that is stored as tensors."""
        found = {"order": self.order.get_state()}
        found |= {f"weights/{name}": p.detach() for name, p in self.network.named_parameters()}
        found |= {f"average/{name}": value for name, value in self.average.shadow.items()}
        if self.keeper.weights is not None:
            found |= {f"best/{name}": value for name, value in self.keeper.weights.shadow.items()}
        for i, p in enumerate(self.parameters()):
            found |= {f"optimizer/{i}/{name}": value for name, value in self.optimizer.state[p].items()}
        for i, slot in enumerate(self.slots):
            found |= {} if slot is None else {f"slot/{i}/{name}": value for name, value in slot.tensors().items()}
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def parameters(self) -> list[nn.Parameter]:
        """Parameters in the order of the optimizer."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def restore(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`values` and :meth:`tensors` returned."""
        self.order.set_state(tensors["order"])
        with torch.no_grad():
            for name, p in self.network.named_parameters():
                p.copy_(tensors[f"weights/{name}"])
                self.average.shadow[name].copy_(tensors[f"average/{name}"])
        if any(name.startswith("best/") for name in tensors):
            for name, value in self.keeper.keep(self.network).shadow.items():
                value.copy_(tensors[f"best/{name}"])
        for i, p in enumerate(self.parameters()):
            own = {name.split("/")[2]: value for name, value in tensors.items() if name.startswith(f"optimizer/{i}/")}
            # AdamW counts its steps on the CPU
            self.optimizer.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in own.items()}
        self.visits.epoch = values["visits"]["epoch"]
        self.visits.waiting = [tuple(names) for names in values["visits"]["waiting"]]
        self.slots = [self.restore_slot(i, own, tensors) for i, own in enumerate(values["slots"])]
        self.history.extend(values["history"])
        vars(self.keeper).update(values["best"])
        vars(self.clock).update(values["clock"], begin=time.monotonic() - values["clock"]["seconds"])

    def restore_slot(self, i: int, values: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]) -> Slot | None:
        """Draw the batch of a slot again, and take over its state."""
        if values is None:
            return None
        visit = Visit(values["epoch"], tuple(values["names"]), values["share_done"], values["n_steps"])
        slot, prefix = self.visits.open(visit), f"slot/{i}/"
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        slot.restore(self.network, values, own)
        return slot
