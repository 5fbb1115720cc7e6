"""Slots of a training: visits of sections that stand at different outer steps, and take turns (as in TRM)."""

from __future__ import annotations

import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from strecur._arguments import filled
from strecur.engine.data import Section, collate
from strecur.nn import Carry, Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from strecur.nn import Backbone, Batch, SpotNetwork

    Augment = Callable[[Section, torch.Generator], Section]

EXPLORATION = 0.1
"""Share of visits that go on to a random step before they may stop early, as in TRM."""


@dataclass(frozen=True)
class Visit:
    """Which sections are visited: the epoch they were dealt in, their names, and how much of the training was done."""

    epoch: int
    names: tuple[str, ...]
    share_done: float
    n_steps: int


class Slot:
    """A visit between its outer steps: its batch, carry and random streams.

    Not a dataclass, because Fabric moves the tensors inside dataclasses, which fails for frozen ones such as batches.
    """

    def __init__(self, visit: Visit, batch: Batch, generator: torch.Generator, device: torch.device) -> None:
        self.visit, self.batch, self.generator = visit, batch, generator
        self.carry: Carry | None = None
        self.least = 1
        own = torch.Generator(device).manual_seed(generator.initial_seed() + 2**32)  # a seed that no visit has
        self.random_state = own.get_state()

    def start(self, network: SpotNetwork, n_steps: int, *, early_exit: bool) -> None:
        """Start the recursion; ``n_steps`` is the number of outer steps of a whole visit."""
        self.carry = network.training_start(self.batch, n_steps, self.generator)
        own, device = self.generator, self.generator.device
        if early_exit and torch.rand((), generator=own, device=device) < EXPLORATION:
            self.least = int(torch.randint(min(2, n_steps), n_steps + 1, (), generator=own, device=device))

    def is_over(self, *, threshold: float | None) -> bool:
        """Return whether all steps were run or, with a threshold, all sections have halted."""
        carry = filled(self.carry)
        if threshold is not None and carry.halt_S is not None and carry.step >= self.least:
            return carry.step >= self.visit.n_steps or bool((carry.halt_S > threshold).all())
        return carry.step >= self.visit.n_steps

    @contextmanager
    def global_random_state(self, device: torch.device) -> Iterator[None]:
        """Let dropout, which draws from the global random state, continue the stream of this visit."""
        on_cuda = device.type == "cuda"
        with torch.random.fork_rng(devices=[device] if on_cuda else []):
            source = torch.cuda.default_generators[device.index or 0] if on_cuda else torch.default_generator
            source.set_state(self.random_state)
            yield
            self.random_state = source.get_state()

    def values(self) -> dict[str, Any]:
        """Return the part that is stored as JSON."""
        visit, step = self.visit, filled(self.carry).step
        place = {"epoch": visit.epoch, "names": list(visit.names), "share_done": visit.share_done}
        return {**place, "n_steps": visit.n_steps, "step": step, "least": self.least}

    def tensors(self) -> dict[str, Tensor]:
        """Return the part that is stored as tensors."""
        carry = filled(self.carry)
        found = {"generator": self.generator.get_state(), "random_state": self.random_state}
        found |= {f"state/{i}": part for i, part in enumerate(carry.state)}
        return found if carry.halt_at_S is None else found | {"halt_at": carry.halt_at_S}

    def restore(self, network: SpotNetwork, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`values` and :meth:`tensors` returned."""
        device = self.batch.features_NF.device
        self.generator.set_state(tensors["generator"])
        self.random_state, self.least = tensors["random_state"], values["least"]
        streams = None
        if network.recursion.is_random:
            streams = Streams([self.generator] * self.batch.lattice.n_sections, noise=network.recursion.noise)
        state = tuple(
            tensors[f"state/{i}"].to(device) for i in range(sum(name.startswith("state/") for name in tensors))
        )
        halt_at_S = tensors["halt_at"].to(device) if "halt_at" in tensors else None
        self.carry = Carry(state, values["step"], streams, halt_at_S)


@dataclass
class Visits:
    """The visits of this process, in the order in which slots take them.

    Attributes
    ----------
    sections
        Training sections by name.
    deal
        Returns the batches of the next epoch, as names.
    augment
        Draws a changed copy of a section.
    seed
        Seed of the random streams, which also depend on the epoch and the section, not on process or batch.
    device
        Device of the batches.
    backbone
        Backbone whose index tensors are moved with them.
    epoch
        Epochs that were dealt.
    waiting
        Batches that were dealt and not yet visited.
    """

    sections: Mapping[str, Section]
    deal: Callable[[], list[tuple[str, ...]]]
    augment: Augment
    seed: int
    device: torch.device
    backbone: Backbone
    epoch: int = 0
    waiting: list[tuple[str, ...]] = field(default_factory=list)

    def take(self, share_done: float, n_steps: int) -> Slot:
        """Return the next visit as a slot that has not started."""
        if not self.waiting:
            self.waiting, self.epoch = self.deal(), self.epoch + 1
        return self.open(Visit(self.epoch, self.waiting.pop(0), share_done, n_steps))

    def open(self, visit: Visit) -> Slot:
        """Draw the sections of a visit; the same visit always gives the same batch."""
        augment = self.augment
        draw: Augment = augment.at(visit.share_done) if hasattr(augment, "at") else augment
        generators = [visit_generator(self.seed, visit.epoch, name) for name in visit.names]
        chosen = [self.sections[name] for name in visit.names]
        batch = collate(list(map(draw, chosen, generators)), self.device, self.backbone)
        return Slot(visit, batch, continued_on(self.device, generators[0]), self.device)


def visit_generator(seed: int, epoch: int, name: str) -> torch.Generator:
    """Create the random generator of a visit of a section."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{epoch}/{name}".encode()))


def continued_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return the generator that continues a stream on a device, so that no numbers have to be moved there."""
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(generator.initial_seed() + 2**33)  # a seed that no other stream has


def first_steps(slot: int, n_slots: int, n_steps: int) -> int:
    """Outer steps of the first visit of a slot: fewer for later slots, so that slots stand at different steps."""
    return n_steps - slot * n_steps // n_slots


def require_visits(n_slots: int, n_visits: int) -> None:
    """Raise if there are more slots than visits."""
    if n_slots > n_visits:
        msg = f"slots={n_slots} is more than the {n_visits} visits of sections; lower slots, or raise max_epochs"
        raise ValueError(msg)


def require_own_slots(n_slots: int, world_size: int, *, early_exit: bool) -> None:
    """Raise if visits could stand open between epochs, which a checkpoint stores for its own process alone."""
    if n_slots > 1 or early_exit:
        msg = (
            f"a checkpoint of {world_size} processes cannot hold slots={n_slots}, early_exit={early_exit}; use slots=1 "
            "and early_exit=False, train in one process, or leave checkpoint out"
        )
        raise ValueError(msg)


def unique_names(sections: Sequence[Section]) -> dict[str, Section]:
    """Return the sections by name; tiles have names of their own."""
    return {section.name: section for section in sections}
