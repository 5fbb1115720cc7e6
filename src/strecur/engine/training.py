from __future__ import annotations

import logging
import math
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from strecur._arguments import filled
from strecur.engine.checkpoint import describe_run
from strecur.engine.data import Section, collate, require_spots
from strecur.engine.state import BestWeights, Clock, MovingAverage, TrainingState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lightning_fabric import Fabric

    from strecur.engine.checkpoint import Checkpoint
    from strecur.nn import Batch, SpotNetwork
    from strecur.options import Training

logger = logging.getLogger("strecur")


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
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, float]]:
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
    progress
        Show a progress bar over epochs.
    checkpoint
        Where the state is stored after epochs. If it exists, training resumes from it and gives the same weights, on a
        CPU bit for bit. If ``None`` (default), nothing is written.

    Returns
    -------
    One record per epoch: epoch, seconds, train_loss, learning_rate, and the scores of ``validate``.
    """
    require_spots(sections)
    n_epochs = filled(training.max_epochs)
    network = network.to(fabric.device)
    state = TrainingState(
        network,
        MovingAverage(network, filled(training.ema)),
        make_optimizer(network, training),
        torch.Generator().manual_seed(seed),
        Clock(n_epochs * n_batches(sections, training, fabric), training.max_minutes, agree=fabric.broadcast),
        BestWeights(training.patience),
        [],
    )
    if checkpoint is not None:
        run = describe_run(network, sections, training, n_steps=n_steps, augment=augment, seed=seed, fabric=fabric)
        checkpoint.begin(state, run, fabric)
    trainer = Trainer(
        state, sections, training, n_steps, augment, fabric, seed, *fabric.setup(Stepper(network), state.optimizer)
    )
    done = len(state.history)
    epochs = range(done + 1, (done if state.is_over else n_epochs) + 1)
    bar = tqdm(epochs, initial=done, total=epochs.stop - 1, disable=not progress, desc="training", unit="epoch")
    try:
        for epoch in bar:
            record = trainer.train_epoch(epoch)
            if validate is not None and (state.clock.finished or epoch % training.validate_every == 0):
                record |= state.keeper.judge(network, state.average, validate)
            state.history.append(record)
            bar.set_postfix({k: f"{v:.3f}" for k, v in record.items() if k not in {"epoch", "seconds"}})
            if checkpoint is not None:
                checkpoint.update(state, fabric)
            if state.is_over:
                break
    except KeyboardInterrupt:
        logger.warning("training interrupted after %d epochs; the model so far is kept", len(state.history))
    bar.close()
    (state.keeper.weights or state.average).copy_to(network)
    return state.history


@dataclass
class Trainer:
    """One training: its data and options, and the network and optimizer as wrapped by Fabric."""

    state: TrainingState
    sections: Sequence[Section]
    training: Training
    n_steps: int
    augment: Callable[[Section, torch.Generator], Section]
    fabric: Fabric
    seed: int
    stepper: nn.Module
    optimizer: torch.optim.Optimizer

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Visit all batches of an epoch, or those that the clock allows; return the record of the epoch."""
        losses: list[Tensor] = []
        for chosen in deal(self.sections, self.training, self.fabric, generator=self.state.order):
            losses += self.visit(epoch, chosen)
            self.state.clock.tick()
            if self.state.clock.finished:
                break
        mean_loss = float(cast("Tensor", self.fabric.all_reduce(torch.stack(losses).mean())))
        rate = self.optimizer.param_groups[0]["lr"]
        return {"epoch": epoch, "seconds": self.state.clock.seconds, "train_loss": mean_loss, "learning_rate": rate}

    def visit(self, epoch: int, chosen: Sequence[Section]) -> list[Tensor]:
        """Run all outer steps on a batch, with an optimizer step after each; return the losses."""
        clock, device = self.state.clock, self.fabric.device
        draw = self.augment.at(clock.share_done) if hasattr(self.augment, "at") else self.augment
        generators = [visit_generator(self.seed, epoch, section) for section in chosen]
        batch = collate(list(map(draw, chosen, generators)), device)
        losses = []
        with random_state_of(generators[0], device):
            visit = Visit(self.state.network, batch, self.n_steps, generators[0])
            for step in range(self.n_steps):
                loss = self.stepper(visit)
                require_finite(loss, epoch, step, chosen)
                done = clock.done * self.n_steps + step + 1
                self.descend(loss, learning_rate(done, clock.planned * self.n_steps, self.training))
                losses.append(loss.detach())
        return losses

    def descend(self, loss: Tensor, rate: float) -> None:
        """Take one optimizer step at the given learning rate, and update the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.stepper, self.optimizer, max_norm=self.training.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.state.average.update(self.state.network)


class Visit:
    """A batch and its carry between outer steps.

    Not a dataclass, because Fabric moves the tensors inside dataclasses, which fails for frozen ones such as batches.
    """

    def __init__(self, network: SpotNetwork, batch: Batch, n_steps: int, generator: torch.Generator) -> None:
        self.batch, self.generator = batch, generator
        network.train()  # a validation switches dropout off
        self.carry = network.training_start(batch, n_steps, generator)


class Stepper(nn.Module):
    """One supervision step as the ``forward`` that Fabric wraps, for mixed precision and the exchange of gradients."""

    def __init__(self, network: SpotNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, visit: Visit) -> Tensor:
        """Return the loss, and put the new carry into ``visit``."""
        loss, visit.carry = self.network.training_step(visit.batch, visit.carry, visit.generator)
        return loss


def visit_generator(seed: int, epoch: int, section: Section) -> torch.Generator:
    """Create the random generator of a visit; it does not depend on the process or the batch."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{epoch}/{section.name}".encode()))


@contextmanager
def random_state_of(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Seed the global random state, which dropout draws from, by the visit, and restore it at the end."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        own_seed = generator.initial_seed() + 2**32  # different from the seeds of all visits
        torch.default_generator.manual_seed(own_seed)
        if on_cuda:
            torch.cuda.manual_seed(own_seed)
        yield


def n_batches(sections: Sequence[Section], training: Training, fabric: Fabric) -> int:
    """Batches of this process per epoch."""
    return len(deal(sections, training, fabric, generator=torch.Generator()))


def deal(
    sections: Sequence[Section], training: Training, fabric: Fabric, *, generator: torch.Generator
) -> list[list[Section]]:
    """Shuffle the sections and return the batches of this process in one epoch; every process has equally many."""
    order = torch.randperm(len(sections), generator=generator).tolist()
    order += order[: -len(order) % fabric.world_size]
    mine = order[fabric.global_rank :: fabric.world_size]
    starts = range(0, len(mine), training.batch_sections)
    return [[sections[i] for i in mine[start : start + training.batch_sections]] for start in starts]


def require_finite(loss: Tensor, epoch: int, step: int, sections: Sequence[Section]) -> None:
    """Raise if the loss is not finite."""
    if not torch.isfinite(loss):
        names = [s.name for s in sections]
        msg = (
            f"the training loss became {loss.item()} in epoch {epoch}, outer step {step + 1}, on section(s) {names}; "
            "lower learning_rate, or train in full precision (precision='32-true')"
        )
        raise FloatingPointError(msg)
