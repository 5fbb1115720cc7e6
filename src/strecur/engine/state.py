"""The changing state of a training: weights, averages, optimizer, schedule and history."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from strecur.engine.slots import Slot, Visit, Visits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from strecur.nn import SpotNetwork


JUDGED_AFTER = 0.5
"""Share of a training after which it is checked for a collapse."""


class History(list[dict[str, float]]):
    """One record per epoch of a training, and whether the user interrupted it."""

    interrupted: bool = False


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

    @contextmanager
    def in_place(self, network: nn.Module) -> Iterator[None]:
        """Give the network the averaged weights for a while."""
        raw = MovingAverage(network, decay=0.0)
        self.copy_to(network)
        try:
            yield
        finally:
            raw.copy_to(network)


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
        with average.in_place(network):
            scores = validate(network)
            score = next(iter(scores.values()))
            if score > self.best:
                self.best, self.failures = score, 0
                self.keep(network)
            else:
                self.failures += 1
        return scores


class TrainingCollapseError(RuntimeError):
    """A training in which the network learns nothing."""


class CollapseWatch:
    """Stop a training whose network has learned nothing by its half.

    Parameters
    ----------
    has_collapsed
        Whether the answer of a network is no better than a constant one; ``None``: not checked.
    least_steps
        Optimizer steps of the shortest training that is checked.
    """

    def __init__(self, has_collapsed: Callable[[nn.Module], bool] | None, least_steps: int) -> None:
        self.has_collapsed, self.least_steps = has_collapsed, least_steps
        self.is_done = has_collapsed is None

    def judge(self, network: nn.Module, average: MovingAverage, share_done: float, n_steps: int) -> None:
        """Check the averaged weights once half of ``n_steps`` optimizer steps are done.

        Raises
        ------
        TrainingCollapseError
            If they have learned nothing.
        """
        if self.is_done or n_steps < self.least_steps or share_done < JUDGED_AFTER:
            return
        self.is_done = True
        with average.in_place(network):
            if self.has_collapsed is None or not self.has_collapsed(network):
                return
        msg = (
            f"the network has learned nothing: after {share_done:.0%} of the training its answer on the training "
            "sections is no better than a constant one. Lower learning_rate, raise warmup, train with more slots or "
            "fewer n_steps, or take architecture='feedforward'"
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
    history: History = field(default_factory=History)

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
