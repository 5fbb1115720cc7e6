from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from strecur.engine.data import Section, collate, require_spots, symmetries, view
from strecur.engine.tiles import cut_lattice, step_in_tiles
from strecur.nn import Carry, Lattice, Streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_fabric import Fabric

    from strecur.nn import Batch, SpotNetwork

MAX_BATCH_SPOTS = 32_768
RESIDUAL_WINDOW = 3


@dataclass(frozen=True)
class Inference:
    """How a trained network is run.

    Attributes
    ----------
    depth
        Outer steps.
    breadth
        Independent restarts. With more than one, or a network trained so, each has random starts.
    symmetric
        Average over the views of the lattice that look alike.
    halt_threshold
        Stop a section when its halt probability exceeds this; ``None`` runs all steps.
    min_steps
        Outer steps before which no section stops.
    noise
        Standard deviation of the noise that every update adds (paper 003).
    slots
        Jobs that are advanced together; a job that stops makes room for a waiting one. It does not change results.
    seed
        Seed of random starts and noise, which also depend on the name of the section, the restart and the view.
    keep_steps
        Keep the output after every step, not just the last.
    keep_latents
        Keep the latent of this many spots, evenly spread over their order, after every step.
    tile, halo
        Compute every step in tiles of so many cells along a side, with a halo of at least
        ``strecur.engine.tiles.halo``; 0: a section at once. For networks without global tokens, halting
        and noise, whose results are the same.
    """

    depth: int
    breadth: int = 1
    symmetric: bool = True
    halt_threshold: float | None = None
    min_steps: int = 2
    noise: float = 0.0
    slots: int = 1
    seed: int = 0
    keep_steps: bool = True
    keep_latents: int = 0
    tile: int = 0
    halo: int = 0


@dataclass(frozen=True)
class Prediction:
    """What one restart of a network says of one section.

    Attributes
    ----------
    output_DN
        Output after each outer step (or only the last), (depth, N, C or G) float32, averaged over the symmetric views.
        A section that stopped keeps its answer.
    latent_ND
        Last latent, averaged over the views, float32.
    halt_probability_D
        Probability of halting after each outer step; NaN for a network without a halt head.
    residual_D
        Root mean square change of the states in each outer step (paper 003, per token and channel); NaN in the first
        step of a recursion with one state, and after the section stopped.
    n_steps
        Outer steps that were run.
    latents_DNE
        Latent of the spots that were to be kept after each outer step, (depth, spots, width) float32, or ``None``.
    """

    output_DN: np.ndarray
    latent_ND: np.ndarray
    halt_probability_D: np.ndarray
    residual_D: np.ndarray
    n_steps: int
    latents_DNE: np.ndarray | None = None

    @property
    def residual(self) -> float:
        """Mean residual of the last three outer steps that were run."""
        known = self.residual_D[: self.n_steps][-RESIDUAL_WINDOW:]
        known = known[np.isfinite(known)]
        return float(known.mean()) if len(known) else np.nan


def predict(
    network: SpotNetwork, sections: Sequence[Section], inference: Inference, *, fabric: Fabric, progress: bool = True
) -> list[list[Prediction]]:
    """Run a network on every section; return the restarts of each.

    Parameters
    ----------
    network
        Trained network.
    sections
        Sections to predict; their targets are not looked at.
    inference
        Depth, breadth and the like.
    fabric
        Device and precision.
    progress
        Show a progress bar over sections and restarts.
    """
    require_spots(sections)
    network = network.to(fabric.device).eval()
    jobs = [Job(network, section, restart, inference) for section in sections for restart in range(inference.breadth)]
    waiting, active = deque(jobs), []
    batches = Batches(fabric.device)
    with tqdm(total=len(jobs), disable=not progress or len(jobs) == 1, desc="predicting", unit="run") as bar:
        while waiting or active:
            while waiting and len(active) < inference.slots:
                active.append(waiting.popleft())
            advance(network, active, batches, fabric)
            running = [job for job in active if not job.is_finished]
            bar.update(len(active) - len(running))
            active = running
    results = [job.result for job in jobs]
    return [results[start : start + inference.breadth] for start in range(0, len(results), inference.breadth)]


@dataclass
class Part:
    """One view of a section on its way: its random stream, and its state after each step."""

    section: Section
    generator: torch.Generator | None
    carry: Carry | None = None

    def latent(self) -> Tensor:
        """Last state of every spot."""
        return self.carry.state[-1][-len(self.section.lattice.row_N) :]


@dataclass
class Job:
    """One restart of one section, averaged over its views.

    Views advance together, so that they stop together. Where all steps are run in any case, only so many advance
    together as fill a batch, one round after the other: the states of all views of a large section take much memory.
    """

    network: SpotNetwork
    section: Section
    restart: int
    inference: Inference
    n_views: int = field(init=False)
    rounds: deque[range] = field(init=False)
    parts: list[Part] = field(init=False)
    step: int = field(init=False)
    outputs: list[Tensor] = field(default_factory=list)
    halts: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    last_latent: list[Tensor] = field(default_factory=list)
    result: Prediction | None = None

    def __post_init__(self) -> None:
        self.section = replace(self.section, target_N=None)
        self.n_views = len(symmetries(self.section.lattice.layout)) if self.inference.symmetric else 1
        together = self.n_views
        if self.inference.halt_threshold is None:
            together = max(MAX_BATCH_SPOTS // len(self.section.lattice.row_N), 1) if not self.inference.tile else 1
        views = range(self.n_views)
        self.rounds = deque(views[start : start + together] for start in range(0, self.n_views, together))
        self.begin_round()

    @property
    def is_random(self) -> bool:
        """Whether the starts are drawn."""
        sigma = getattr(self.network.recursion, "sigma", None)
        return sigma is not None or self.inference.breadth > 1

    @property
    def is_finished(self) -> bool:
        return self.result is not None

    @property
    def has_halted(self) -> bool:
        threshold = self.inference.halt_threshold
        return threshold is not None and self.step >= self.inference.min_steps and bool(self.halts[-1] > threshold)

    def begin_round(self) -> None:
        """Take up the next views, before their first step."""
        elements = symmetries(self.section.lattice.layout)
        self.parts = [Part(view(self.section, elements[i]), self.stream(i)) for i in self.rounds.popleft()]
        self.step = 0

    def stream(self, i_view: int) -> torch.Generator | None:
        """Random stream that depends on nothing but the seed, the section's name, the restart and the view."""
        if not self.is_random and not self.inference.noise:
            return None
        key = f"{self.inference.seed}/{self.section.name}/{self.restart}/{i_view}"
        return torch.Generator().manual_seed(zlib.crc32(key.encode()))

    def record(self, outputs: list[Tensor], halts: list[Tensor], residuals: list[Tensor]) -> None:
        """Take in one step of the views of this round; after the last one go on to the next views, or to the result."""
        self.step += 1
        self.add(self.halts, halts, self.step)
        self.add(self.residuals, residuals, self.step)
        is_last = self.step == self.inference.depth or self.has_halted
        if self.inference.keep_steps or is_last:
            self.add(self.outputs, outputs, self.step if self.inference.keep_steps else 1)
        if self.inference.keep_latents:
            n_spots = len(self.section.lattice.row_N)
            kept = torch.linspace(0, n_spots - 1, min(self.inference.keep_latents, n_spots)).long()
            self.add(self.latents, [part.latent()[kept] for part in self.parts], self.step)
        if is_last:
            self.add(self.last_latent, [part.latent() for part in self.parts], 1)
            if self.rounds:
                self.begin_round()
            else:
                self.finish()

    def add(self, records: list[Tensor], values: Sequence[Tensor], step: int) -> None:
        """Add to the mean over all views what those of this round contribute to one step."""
        share = sum(value.float().cpu() for value in values) / self.n_views
        if len(records) < step:
            records.append(share)
        else:
            records[step - 1] += share

    def finish(self) -> None:
        """Turn the records into a result, and let go of the states."""
        n_steps, depth = self.step, self.inference.depth
        outputs = self.outputs + self.outputs[-1:] * (depth - n_steps if self.inference.keep_steps else 0)
        halts = self.halts + self.halts[-1:] * (depth - n_steps)
        residuals = self.residuals + [torch.tensor(torch.nan)] * (depth - n_steps)
        latents = self.latents + self.latents[-1:] * (depth - n_steps)
        self.result = Prediction(
            torch.stack(outputs).numpy(),
            self.last_latent[0].numpy(),
            torch.stack(halts).numpy(),
            torch.stack(residuals).numpy(),
            n_steps,
            torch.stack(latents).numpy() if latents else None,
        )
        self.outputs, self.latents, self.last_latent, self.parts = [], [], [], []


class Batches:
    """Makes the batch of some parts, and keeps the last one as long as the same parts come again."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.sections, self.batch = device, [], None

    def of(self, parts: Sequence[Part]) -> Batch:
        sections = [part.section for part in parts]
        if list(map(id, sections)) != list(map(id, self.sections)):
            self.batch = None  # gone before the next one comes
            self.sections, self.batch = sections, collate(sections, self.device)
        return self.batch


@torch.inference_mode()
def advance(network: SpotNetwork, jobs: Sequence[Job], batches: Batches, fabric: Fabric) -> None:
    """Run one outer step of all jobs."""
    steps: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {id(job): [] for job in jobs}
    for chunk in in_chunks([(job, part) for job in jobs for part in job.parts]):
        parts = [part for _, part in chunk]
        batch = batches.of(parts)
        with fabric.autocast():
            before = join(network, batch, parts, random=chunk[0][0].is_random, noise=chunk[0][0].inference.noise)
            output, halt_SL, after = run_step(network, batch, before, chunk[0][0].inference)
            output = network.head.predict(output)
        halt_S = network.halt_probability(halt_SL, len(parts))
        states, outputs = split(after, batch.lattice), batch.lattice.split(output)
        for i, (job, part) in enumerate(chunk):
            change = residual(part.carry, states[i])
            part.carry = states[i]
            steps[id(job)].append((outputs[i].float(), halt_S[i], change))
    for job in jobs:
        job.record(*map(list, zip(*steps[id(job)], strict=True)))


def run_step(
    network: SpotNetwork, batch: Batch, carry: Carry, inference: Inference
) -> tuple[Tensor, Tensor | None, Carry]:
    """One outer step of some sections at once, or of one in tiles."""
    if not inference.tile:
        return network.step(batch, carry)
    if len(network.context) or carry.streams is not None or batch.lattice.n_sections > 1:
        msg = "tiles are for networks without global tokens (n_global=0), random starts and noise, section by section"
        raise ValueError(msg)
    return step_in_tiles(network, batch, carry, cut_lattice(batch.lattice, inference.tile, inference.halo))


def in_chunks(parts: Sequence[tuple[Job, Part]]) -> Iterator[list[tuple[Job, Part]]]:
    """Group parts into batches of a limited number of spots."""
    chunk, n_spots = [], 0
    for job, part in parts:
        n = len(part.section.lattice.row_N)
        if chunk and (n_spots + n > MAX_BATCH_SPOTS or job.inference.tile):
            yield chunk
            chunk, n_spots = [], 0
        chunk.append((job, part))
        n_spots += n
    yield chunk


def join(network: SpotNetwork, batch: Batch, parts: Sequence[Part], *, random: bool, noise: float) -> Carry:
    """Put the states of parts together, those that begin with their start."""
    streams = None
    if parts[0].generator is not None:
        streams = Streams([part.generator for part in parts], noise=noise)
    fresh = [i for i, part in enumerate(parts) if part.carry is None]
    if len(fresh) == len(parts):
        started = network.start(batch, streams, random=random)
        for part, carry in zip(parts, split(started, batch.lattice), strict=True):
            part.carry = carry
        return started
    for i in fresh:
        own = collate([parts[i].section], batch.features_NF.device)
        own_streams = None if streams is None else Streams([parts[i].generator], noise=noise)
        (parts[i].carry,) = split(network.start(own, own_streams, random=random), own.lattice)
    if len(parts) == 1:
        return replace(parts[0].carry, streams=streams)
    n_context = len(network.context)
    states = [
        torch.cat([piece[:n_context] for piece in pieces] + [piece[n_context:] for piece in pieces])
        for pieces in zip(*(part.carry.state for part in parts), strict=True)
    ]
    return Carry(tuple(states), streams=streams)


def split(carry: Carry, lattice: Lattice) -> list[Carry]:
    """Cut the states into those of each section, its context tokens first."""
    if lattice.n_sections == 1:
        return [Carry(carry.state)]
    parts: list[list[Tensor]] = [[] for _ in lattice.length_S]
    for tokens_TD in carry.state:
        n_tokens = len(tokens_TD) - len(lattice.row_N)
        context = tokens_TD[:n_tokens].view(lattice.n_sections, -1, tokens_TD.shape[1])
        for i, spots in enumerate(lattice.split(tokens_TD[n_tokens:])):
            parts[i].append(torch.cat([context[i], spots]))
    return [Carry(tuple(pieces)) for pieces in parts]


def residual(before: Carry, after: Carry) -> Tensor:
    """Root mean square change of the states in one outer step."""
    if len(before.state) != len(after.state):
        return torch.tensor(torch.nan)
    changes = [(b.float() - a.float()).square().mean() for a, b in zip(before.state, after.state, strict=True)]
    return torch.stack(changes).mean().sqrt()
