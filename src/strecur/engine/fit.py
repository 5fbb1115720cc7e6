from __future__ import annotations

import logging
import math
import os
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from torch import nn
from tqdm.auto import tqdm

from strecur.engine.checkpoint import TrainingState, describe_run
from strecur.engine.data import Section, collate, require_spots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from strecur.engine.checkpoint import Checkpoint
    from strecur.nn import Batch

logger = logging.getLogger("strecur")


@dataclass(frozen=True)
class FitConfig:
    """How a network is trained.

    Attributes
    ----------
    n_steps
        Outer steps per visit of a batch, each with its own optimizer step (deep supervision).
    max_epochs
        Passes over the training sections.
    max_minutes
        Shorten the schedule to what fits into this time; results then depend on the speed of the machine.
    batch_sections
        Sections per batch.
    learning_rate, warmup
        Peak rate, reached after ``warmup`` optimizer steps; 0 begins with it.
    schedule
        How the rate goes to zero after that: ``"linear"`` or along a ``"cosine"``.
    weight_decay
        On matrices only.
    clip
        Largest gradient norm.
    ema
        Decay of the averaged weights, which are the ones that are kept.
    patience
        Stop after this many validations without improvement.
    validate_every
        Epochs between validations.
    """

    n_steps: int
    max_epochs: int = 100
    max_minutes: float | None = None
    batch_sections: int = 1
    learning_rate: float = 1e-3
    warmup: int = 30
    schedule: Literal["linear", "cosine"] = "linear"
    weight_decay: float = 0.5
    clip: float = 1.0
    ema: float = 0.98
    patience: int = 8
    validate_every: int = 5


def make_fabric(accelerator: str, devices: int, precision: str | None) -> Fabric:
    """Choose device and precision; bf16 where the device computes faster with it.

    More than one device needs one process each, which ``torchrun`` starts; a notebook cannot.
    """
    if devices > 1 and "LOCAL_RANK" not in os.environ:
        msg = (
            f"devices={devices} needs one process per device: put the call into a script and start it with "
            f"'torchrun --nproc-per-node={devices} script.py'"
        )
        raise ValueError(msg)
    n_machines = int(os.environ.get("GROUP_WORLD_SIZE", "1")) if devices > 1 else 1
    place = {"accelerator": accelerator, "devices": devices, "num_nodes": n_machines}
    fabric = Fabric(**place, precision=precision or "32-true")
    if precision is None and fast_bf16(fabric.device):
        # handed over as a plugin, bf16 is not announced on every call
        mixed = MixedPrecision("bf16-mixed", "cpu" if fabric.device.type == "cpu" else "cuda")
        fabric = Fabric(**place, plugins=mixed)
    if devices > 1:
        fabric.launch()
    return fabric


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(check() for check in checks if check is not None)
    return False


class MovingAverage:
    """Exponential moving average of the parameters, starting as a copy of them."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters()}

    def update(self, network: nn.Module) -> None:
        for name, p in network.named_parameters():
            self.shadow[name].lerp_(p.detach(), 1 - self.decay)

    def copy_to(self, network: nn.Module) -> None:
        network.load_state_dict(self.shadow, strict=False)


def make_optimizer(network: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    """AdamW that decays the weights of linear maps and nothing else."""
    decayed = {id(m.weight) for m in network.modules() if isinstance(m, nn.Linear)}
    parameters = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in decayed], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95))


def learning_rate(step: int, total: int, config: FitConfig) -> float:
    """Rate of optimizer step 1, 2, …: linear warm-up to the peak, then to zero after the last step."""
    warmup = min(config.warmup, max(total // 4, 1))
    rising, falling = step / max(warmup, 1), (total + 1 - step) / max(total + 1 - max(warmup, 1), 1)
    if config.schedule == "cosine":
        falling = (1 - math.cos(math.pi * falling)) / 2
    return config.learning_rate * min(rising, falling)


def fit(
    network: nn.Module,
    sections: Sequence[Section],
    config: FitConfig,
    *,
    fabric: Fabric,
    augment: Callable[[Section, torch.Generator], Section],
    seed: int,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    progress: bool = True,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, float]]:
    """Train ``network`` in place by deep supervision; leave the averaged (with ``validate``: the best) weights in it.

    Every batch is visited ``n_steps`` times: an optimizer step per outer step, the state carried on without gradient.
    Several processes, each with its share of the sections, average their gradients. Augmentation is drawn for every
    section and epoch alike wherever it is visited, so that processes with one section each train as one process with
    all of them in its batch; what a network draws itself (held-out spots, random starts) differs.

    Parameters
    ----------
    network
        Module with ``training_start(batch, n_steps, generator)`` and ``training_step(batch, carry, generator)``.
    sections
        Training sections, with targets.
    config
        Optimisation settings.
    fabric
        Device and precision.
    augment
        Draws a changed copy of a section. If it has a method ``at``, that is given the share of the training that is
        over, and returns what draws from then on.
    seed
        Seed of sampling and augmentation; global random state is not used.
    validate
        Scores the averaged weights; the first value is maximised. Without it the last averaged weights are kept.
    progress
        Show a progress bar over epochs.
    checkpoint
        Where the state is written after epochs; if it is there already, training goes on from it to the same weights,
        to the bit on a CPU. ``None`` writes nothing.

    Returns
    -------
    One record per epoch: epoch, seconds, train_loss, learning_rate, and what ``validate`` returned.
    """
    require_spots(sections)
    order = torch.Generator().manual_seed(seed)
    average = MovingAverage(network.to(fabric.device), config.ema)
    optimizer, keeper = make_optimizer(network, config), BestWeights(config.patience)
    n_batches = len(deal(sections, config, fabric, generator=torch.Generator()))
    clock = Clock(planned=config.max_epochs * n_batches, minutes=config.max_minutes, agree=fabric.broadcast)
    history: list[dict[str, float]] = []
    state = TrainingState(network, average, optimizer, order, clock, keeper, history)
    if checkpoint is not None:
        checkpoint.begin(state, describe_run(network, sections, config, augment, seed, fabric), fabric)
    stepper, optimizer = fabric.setup(Stepper(network), optimizer)
    first, last = len(history) + 1, len(history) if state.is_over else config.max_epochs
    bar = tqdm(
        range(first, last + 1), initial=first - 1, total=last, disable=not progress, desc="training", unit="epoch"
    )
    try:
        for epoch in bar:
            losses = []
            for chosen in deal(sections, config, fabric, generator=order):
                draw = augment.at(clock.share_done) if hasattr(augment, "at") else augment
                generators = [visit_generator(seed, epoch, section) for section in chosen]
                batch = collate(list(map(draw, chosen, generators)), fabric.device)
                with random_state_of(generators[0], fabric.device):
                    visit = Visit(network, batch, config.n_steps, generators[0])
                    for step in range(config.n_steps):
                        done, planned = clock.done * config.n_steps + step + 1, clock.planned * config.n_steps
                        rate = learning_rate(done, planned, config)
                        loss = stepper(visit)
                        require_finite(loss, epoch, step, chosen)
                        descend(stepper, optimizer, loss, rate, config, fabric)
                        average.update(network)
                        losses.append(loss.detach())
                clock.tick()
                if clock.finished:
                    break
            mean_loss = float(fabric.all_reduce(torch.stack(losses).mean()))
            record = {"epoch": epoch, "seconds": clock.seconds, "train_loss": mean_loss, "learning_rate": rate}
            if validate is not None and (clock.finished or epoch % config.validate_every == 0):
                record |= keeper.judge(network, average, validate)
            history.append(record)
            bar.set_postfix({k: f"{v:.3f}" for k, v in record.items() if k not in {"epoch", "seconds"}})
            if checkpoint is not None:
                checkpoint.update(state, fabric)
            if state.is_over:
                break
    except KeyboardInterrupt:
        logger.warning("training interrupted after %d epochs; the model so far is kept", len(history))
    bar.close()
    (keeper.weights or average).copy_to(network)
    return history


class Visit:
    """A batch on its way through the outer steps.

    No dataclass: Fabric would look for tensors inside one, and cannot if it is frozen as batches are.
    """

    def __init__(self, network: nn.Module, batch: Batch, n_steps: int, generator: torch.Generator) -> None:
        self.batch, self.generator = batch, generator
        network.train()  # a validation in between switched dropout off
        self.carry = network.training_start(batch, n_steps, generator)


class Stepper(nn.Module):
    """One supervision step as the ``forward`` that Fabric wraps, for its precision and its exchange of gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, visit: Visit) -> torch.Tensor:
        """Return the loss, and leave the state to go on from in ``visit``."""
        loss, visit.carry = self.network.training_step(visit.batch, visit.carry, visit.generator)
        return loss


def visit_generator(seed: int, epoch: int, section: Section) -> torch.Generator:
    """Random stream of one visit of a section; it does not depend on the process or the batch."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}/{epoch}/{section.name}".encode()))


@contextmanager
def random_state_of(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Let dropout, which draws from the global random state, depend on the visit alone; leave that state as it was."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        own_seed = generator.initial_seed() + 2**32  # that of no visit
        torch.default_generator.manual_seed(own_seed)
        if on_cuda:
            torch.cuda.manual_seed(own_seed)
        yield


def deal(
    sections: Sequence[Section], config: FitConfig, fabric: Fabric, *, generator: torch.Generator
) -> list[list[Section]]:
    """Shuffle the sections into this process's batches of one epoch; every process gets equally many."""
    order = torch.randperm(len(sections), generator=generator).tolist()
    order += order[: -len(order) % fabric.world_size]
    mine = order[fabric.global_rank :: fabric.world_size]
    starts = range(0, len(mine), config.batch_sections)
    return [[sections[i] for i in mine[start : start + config.batch_sections]] for start in starts]


def descend(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    rate: float,
    config: FitConfig,
    fabric: Fabric,
) -> None:
    """One optimizer step at the given learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    fabric.backward(loss)
    fabric.clip_gradients(module, optimizer, max_norm=config.clip)
    optimizer.step()
    optimizer.zero_grad()


def require_finite(loss: torch.Tensor, epoch: int, step: int, sections: Sequence[Section]) -> None:
    """Stop at once when the loss is no number."""
    if not torch.isfinite(loss):
        names = [s.name for s in sections]
        msg = (
            f"the training loss became {loss.item()} in epoch {epoch}, outer step {step + 1}, on section(s) {names}; "
            "lower learning_rate, or train in full precision (precision='32-true')"
        )
        raise FloatingPointError(msg)


class Clock:
    """Counts batches and, given a time limit, shortens the plan to what the measured speed allows."""

    def __init__(
        self,
        planned: int,
        minutes: float | None,
        *,
        warm: int = 5,
        agree: Callable[[float], float] = float,
    ) -> None:
        self.planned, self.done, self.warm, self.agree = planned, 0, warm, agree
        self.limit = math.inf if minutes is None else 60 * minutes
        self.begin, self.seconds = time.monotonic(), 0.0

    @property
    def finished(self) -> bool:
        return self.done >= self.planned or self.seconds >= self.limit

    @property
    def share_done(self) -> float:
        """Part of the planned batches that is over, 0 to 1."""
        return self.done / self.planned

    def tick(self) -> None:
        self.done += 1
        # all processes go by one clock, or one of them would wait for the others for ever
        self.seconds = self.agree(time.monotonic() - self.begin)
        if self.done == self.warm and self.limit < math.inf:
            self.planned = min(self.planned, max(int(self.limit / self.seconds * self.done), self.done))


class BestWeights:
    """Keeps the averaged weights of the best validation and notices when they stop improving."""

    def __init__(self, patience: int) -> None:
        self.patience, self.best, self.failures = patience, -math.inf, 0
        self.weights: MovingAverage | None = None

    @property
    def exhausted(self) -> bool:
        return self.failures >= self.patience

    def keep(self, network: nn.Module) -> None:
        """Copy the weights."""
        self.weights = MovingAverage(network, decay=0.0)

    def judge(
        self, network: nn.Module, average: MovingAverage, validate: Callable[[nn.Module], dict[str, float]]
    ) -> dict[str, float]:
        """Validate the averaged weights and return the scores; the network keeps its own weights."""
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
