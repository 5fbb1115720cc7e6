from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from strecur._arguments import filled
from strecur.engine.checkpoint import describe_run
from strecur.engine.data import Section, require_spots
from strecur.engine.slots import Slot, Visits, first_steps, require_own_slots, require_visits, unique_names
from strecur.engine.state import BestWeights, Clock, CollapseWatch, History, MovingAverage, TrainingState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_fabric import Fabric

    from strecur.engine.checkpoint import Checkpoint
    from strecur.nn import SpotNetwork
    from strecur.options import Training

logger = logging.getLogger("strecur")

MIN_STEPS, MIN_WARMUPS = 120, 4
"""A training of fewer optimizer steps, or fewer times its warm-up, is too short to be checked for a collapse."""

READ_TOGETHER = 50
"""Optimizer steps after which losses are checked, if the epoch is not over before."""


def make_optimizer(network: nn.Module, training: Training) -> torch.optim.AdamW:
    """Create AdamW with weight decay on the weights of linear maps only."""
    decayed = {id(m.weight) for m in network.modules() if isinstance(m, nn.Linear)}
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=filled(training.learning_rate), betas=(0.9, 0.95))


def learning_rate(step: int, total: int, training: Training) -> float:
    """Learning rate of optimizer step 1, 2, …: linear warm-up to the peak, then decay to zero after the last step."""
    warmup = min(filled(training.warmup), max(total // 4, 1))
    rising, falling = step / max(warmup, 1), (total + 1 - step) / max(total + 1 - max(warmup, 1), 1)
    if training.schedule == "cosine":
        falling = (1 - math.cos(math.pi * falling)) / 2
    return filled(training.learning_rate) * min(rising, falling)


def fit(
    network: SpotNetwork,
    sections: Sequence[Section],
    training: Training,
    *,
    n_steps: int,
    augment: Callable[[Section, torch.Generator], Section],
    fabric: Fabric,
    seed: int,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    has_collapsed: Callable[[nn.Module], bool] | None = None,
    progress: bool = True,
    title: str = "training",
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train a network in place by deep supervision, and leave the averaged (with ``validate``: the best) weights in it.

    Every batch is visited for ``n_steps`` outer steps, each with an optimizer step; the state is passed on without
    gradient. With several processes, each has a share of the sections, and gradients are averaged. The augmentation of
    a section depends on the epoch and its name alone, so that several processes with one section each train like one
    process with all of these sections in its batch; what the network draws itself (held-out spots, random starts)
    differs.

    Parameters
    ----------
    network
        Network with ``training_start(batch, n_steps, generator)`` and ``training_step(batch, carry, generator)``.
    sections
        Training sections, with targets.
    training
        Options of training, in which ``max_epochs``, ``learning_rate``, ``warmup``, ``schedule``, ``weight_decay`` and
        ``ema`` are filled in.
    n_steps
        Outer steps per visit of a batch.
    augment
        Draws a changed copy of a section. If it has a method ``at``, it is called with the share of the training that
        is done, and returns the augmentation to use.
    fabric
        Device and precision.
    seed
        Seed of sampling and augmentation; the global random state is not used.
    validate
        Scores the averaged weights; the first score is maximised. If ``None`` (default), the last averaged weights are
        kept.
    has_collapsed
        Whether the answer of a network is no better than a constant one. It is called once after half of the training,
        and stops it. If ``None`` (default), this is not checked.
    progress
        Show a progress bar over epochs.
    title
        Text of the progress bar.
    checkpoint
        Where the state is stored after epochs. If it exists, training resumes from it and gives the same weights, on a
        CPU bit for bit. If ``None`` (default), nothing is written.

    Raises
    ------
    FloatingPointError
        If a loss or gradient is not finite; losses of up to 50 optimizer steps are checked together.
    TrainingCollapseError
        If the network learns nothing.
    ValueError
        If there are more slots than visits, or a checkpoint is asked for of several processes with several slots or
        with ``early_exit``.

    Returns
    -------
    One record per epoch: epoch, seconds, train_loss, learning_rate, and the scores of ``validate``. Its attribute
    ``interrupted`` tells whether the user stopped the training.
    """
    require_spots(sections)
    n_epochs, device = filled(training.max_epochs), fabric.device
    network = network.to(device)
    n_visits = n_epochs * n_batches(sections, training, fabric)
    n_slots = training.slots or min(n_steps, n_visits)
    require_visits(n_slots, n_visits)
    if checkpoint is not None and fabric.world_size > 1:
        require_own_slots(n_slots, fabric.world_size, early_exit=training.early_exit)
    order = torch.Generator().manual_seed(seed)
    visits = Visits(
        unique_names(sections),
        lambda: deal(sections, training, fabric, generator=order),
        augment,
        seed,
        device,
        network.recursion.backbone,
    )
    state = TrainingState(
        network,
        MovingAverage(network, filled(training.ema)),
        make_optimizer(network, training),
        order,
        Clock(n_visits, training.max_minutes, agree=fabric.broadcast),
        BestWeights(training.patience),
        visits,
        [None] * n_slots,
        CollapseWatch(has_collapsed, max(MIN_STEPS, MIN_WARMUPS * filled(training.warmup))),
    )
    if checkpoint is not None:
        run = describe_run(network, sections, training, n_steps=n_steps, augment=augment, seed=seed, fabric=fabric)
        checkpoint.begin(state, run, fabric)
    trainer = Trainer(state, training, n_steps, fabric, *fabric.setup(Stepper(network), state.optimizer))
    done = len(state.history)
    epochs = range(done + 1, (done if state.is_over else n_epochs) + 1)
    with tqdm(initial=done, total=epochs.stop - 1, disable=not progress, desc=title, unit="epoch") as bar:
        try:
            for epoch in epochs:
                record = trainer.train_epoch(epoch, n_visits // n_epochs)
                if validate is not None and (state.clock.finished or epoch % training.validate_every == 0):
                    record |= state.keeper.judge(network, state.average, validate)
                state.history.append(record)
                bar.set_postfix({k: f"{v:.3f}" for k, v in record.items() if k not in {"epoch", "seconds"}})
                bar.update()
                if checkpoint is not None:
                    checkpoint.update(state, fabric)
                if state.is_over:
                    bar.total = bar.n  # notebooks mark a bar that is not full as failed
                    break
        except KeyboardInterrupt:
            state.history.interrupted = True
            logger.warning("training interrupted after %d epochs; the model so far is kept", len(state.history))
    (state.keeper.weights or state.average).copy_to(network)
    return state.history


@dataclass
class Trainer:
    """One training: its options, and the network and optimizer as wrapped by Fabric."""

    state: TrainingState
    training: Training
    n_steps: int
    fabric: Fabric
    stepper: nn.Module
    optimizer: torch.optim.Optimizer

    def train_epoch(self, epoch: int, n_visits: int) -> dict[str, float]:
        """Take as many optimizer steps as ``n_visits`` whole visits, or those the clock allows; return the record."""
        clock, losses = self.state.clock, Losses()
        try:
            for _ in range(n_visits):
                for step in range(self.n_steps):
                    self.advance(clock.done * self.n_steps + step, losses)
                clock.tick()
                if clock.finished:
                    break
        finally:
            losses.require_finite()
        state, mean = self.state, self.fabric.all_reduce(losses.mean())
        state.watch.judge(state.network, state.average, clock.share_done, clock.planned * self.n_steps)
        rate = self.optimizer.param_groups[0]["lr"]
        loss = float(cast("Tensor", mean))
        return {"epoch": epoch, "seconds": clock.seconds, "train_loss": loss, "learning_rate": rate}

    def advance(self, done: int, losses: Losses) -> None:
        """Advance the next slot by one outer step and one optimizer step, and record the loss."""
        state, device = self.state, self.fabric.device
        turn = done % len(state.slots)
        slot = state.slots[turn] or self.open_slot(turn, is_first=done < len(state.slots))
        state.network.train()  # a validation switches dropout off
        with slot.global_random_state(device):
            if slot.carry is None:
                slot.start(state.network, self.n_steps, early_exit=self.training.early_exit)
            loss = self.stepper(slot)
            norm = self.descend(loss, learning_rate(done + 1, state.clock.planned * self.n_steps, self.training))
        recipe = state.network.recipe if self.training.early_exit else None
        threshold = None if recipe is None else recipe.threshold
        state.slots[turn] = None if slot.is_over(threshold=threshold) else slot
        losses.add(loss.detach(), norm, slot)

    def open_slot(self, turn: int, *, is_first: bool) -> Slot:
        """Fill a slot with the next visit."""
        n_steps = first_steps(turn, len(self.state.slots), self.n_steps) if is_first else self.n_steps
        return self.state.visits.take(self.state.clock.share_done, n_steps)

    def descend(self, loss: Tensor, rate: float) -> Tensor:
        """Take one optimizer step at the given learning rate, and update the average; return the gradient norm."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.stepper,
            self.optimizer,
            max_norm=self.training.clip,
            error_if_nonfinite=False,  # which would wait for the device; the losses are checked instead
        )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.average.update(self.state.network)
        return cast("Tensor", norm)


class Losses:
    """Losses of the optimizer steps of an epoch, of which many are read together, because to read is to wait."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []
        self.unread: list[tuple[Tensor, str]] = []

    def add(self, loss: Tensor, norm: Tensor, slot: Slot) -> None:
        """Record a loss, with the norm of its gradient and the place in the training."""
        visit, step = slot.visit, filled(slot.carry).step
        self.values.append(loss)
        place = f"in epoch {visit.epoch}, outer step {step}, on section(s) {list(visit.names)}"
        self.unread.append((torch.stack([loss, norm]), place))
        if len(self.unread) == READ_TOGETHER:
            self.require_finite()

    def require_finite(self) -> None:
        """Raise at the first loss or gradient that is not finite."""
        unread, self.unread = self.unread, []
        read = torch.stack([pair for pair, _ in unread]).tolist() if unread else []
        for (_, place), (loss, norm) in zip(unread, read, strict=True):
            what, value = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
            if not math.isfinite(value):
                msg = (
                    f"the training {what} became {value} {place}; lower learning_rate, or train in full precision "
                    "(precision='32-true')"
                )
                raise FloatingPointError(msg)

    def mean(self) -> Tensor:
        return torch.stack(self.values).mean()


class Stepper(nn.Module):
    """One supervision step as the ``forward`` that Fabric wraps, for mixed precision and the exchange of gradients."""

    def __init__(self, network: SpotNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, slot: Slot) -> Tensor:
        """Return the loss, and put the new carry into ``slot``."""
        loss, slot.carry = self.network.training_step(slot.batch, filled(slot.carry), slot.generator)
        return loss


def n_batches(sections: Sequence[Section], training: Training, fabric: Fabric) -> int:
    """Batches of this process per epoch."""
    return len(deal(sections, training, fabric, generator=torch.Generator()))


def deal(
    sections: Sequence[Section], training: Training, fabric: Fabric, *, generator: torch.Generator
) -> list[tuple[str, ...]]:
    """Shuffle the sections and return the batches of this process in one epoch, by name."""
    order = torch.randperm(len(sections), generator=generator).tolist()
    order += order[: -len(order) % fabric.world_size]
    mine = [sections[i].name for i in order[fabric.global_rank :: fabric.world_size]]
    starts = range(0, len(mine), training.batch_sections)
    return [tuple(mine[start : start + training.batch_sections]) for start in starts]
