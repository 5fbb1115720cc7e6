from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from strecur._arguments import filled
from strecur.engine.answers import Answer, Prediction
from strecur.engine.data import Section, collate, require_spots, symmetries, view
from strecur.engine.tiles import cut_lattice, step_in_tiles
from strecur.nn import Carry, Lattice, Streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lightning_fabric import Fabric

    from strecur.nn import Backbone, Batch, SpotNetwork
    from strecur.options import Inference

MAX_BATCH_SPOTS = 32_768


def predict(
    network: SpotNetwork,
    sections: Sequence[Section],
    inference: Inference,
    *,
    seed: int = 0,
    keep_steps: bool = True,
    keep_latents: int = 0,
    fabric: Fabric,
    progress: bool = True,
) -> list[Answer]:
    """Run a network on every section.

    Parameters
    ----------
    network
        Trained network.
    sections
        Sections to predict; their targets are not used.
    inference
        Options of inference, in which ``depth`` and, with ``stop_early``, ``halt_threshold`` are filled in.
    seed
        Seed of random starts and noise, which also depend on the name of the section, the restart and the view.
    keep_steps
        Keep the output after every outer step, not only the last.
    keep_latents
        Keep the latent of this many spots, at regular intervals in their order, after every outer step.
    fabric
        Device and precision.
    progress
        Show a progress bar over sections and restarts.

    Raises
    ------
    ValueError
        If a section has no spots, or tiles are asked for with global tokens, random starts or noise.
    """
    require_spots(sections)
    network = network.to(fabric.device).eval()
    runs = [
        [
            Job(network, section, restart, inference, seed=seed, keep_steps=keep_steps, keep_latents=keep_latents)
            for restart in range(inference.breadth)
        ]
        for section in sections
    ]
    waiting = deque(job for jobs in runs for job in jobs)
    active: list[Job] = []
    batches = Batches(fabric.device, network.recursion.backbone)
    n_runs = len(waiting)
    with tqdm(total=n_runs, disable=not progress or n_runs == 1, desc="predicting", unit="run") as bar:
        while waiting or active:
            while waiting and len(active) < inference.slots:
                active.append(waiting.popleft())
            advance(network, active, batches, fabric)
            running = [job for job in active if not job.is_finished]
            bar.update(len(active) - len(running))
            active = running
    return [
        Answer(section.name, tuple(filled(job.result) for job in jobs))
        for section, jobs in zip(sections, runs, strict=True)
    ]


@dataclass
class Part:
    """One view of a section, its random generator, and its states after the last step."""

    section: Section
    generator: torch.Generator | None
    carry: Carry | None = None

    def latent(self) -> Tensor:
        """Last state of every spot."""
        return filled(self.carry).state[-1][-len(self.section.lattice.row_N) :]

    def tokens(self) -> Tensor:
        """Last state of the global tokens."""
        return filled(self.carry).state[-1][: -len(self.section.lattice.row_N)]


@dataclass
class Job:
    """One restart of one section, averaged over its views.

    With early stopping, all views advance together, so that they stop together. Otherwise, they advance in rounds of as
    many as fill a batch, to save memory.
    """

    network: SpotNetwork
    section: Section
    restart: int
    inference: Inference
    seed: int = 0
    keep_steps: bool = True
    keep_latents: int = 0
    n_views: int = field(init=False)
    rounds: deque[range] = field(init=False)
    parts: list[Part] = field(init=False)
    step: int = field(init=False)
    outputs: list[Tensor] = field(default_factory=list)
    halts: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    last_latent: list[Tensor] = field(default_factory=list)
    last_tokens: list[Tensor] = field(default_factory=list)
    result: Prediction | None = None

    def __post_init__(self) -> None:
        self.section = replace(self.section, target_N=None)
        self.n_views = len(symmetries(self.section.lattice.layout)) if self.inference.symmetric else 1
        together = self.n_views
        if not self.inference.stop_early:
            together = 1 if self.inference.tile else max(MAX_BATCH_SPOTS // len(self.section.lattice.row_N), 1)
        views = range(self.n_views)
        self.rounds = deque(views[start : start + together] for start in range(0, self.n_views, together))
        self.begin_round()

    @property
    def is_random(self) -> bool:
        """Whether the starts are random."""
        return self.network.recursion.sigma is not None or self.inference.breadth > 1

    @property
    def is_finished(self) -> bool:
        return self.result is not None

    @property
    def has_halted(self) -> bool:
        if not self.inference.stop_early or self.step < self.inference.min_steps:
            return False
        return bool(self.halts[-1] > filled(self.inference.halt_threshold))

    def begin_round(self) -> None:
        """Prepare the next views for their first step."""
        elements = symmetries(self.section.lattice.layout)
        self.parts = [Part(view(self.section, elements[i]), self.stream(i)) for i in self.rounds.popleft()]
        self.step = 0

    def stream(self, i_view: int) -> torch.Generator | None:
        """Create the random generator of a view, from the seed, the name of the section, the restart and the view."""
        if not self.is_random and not self.inference.noise:
            return None
        key = f"{self.seed}/{self.section.name}/{self.restart}/{i_view}"
        return torch.Generator(self.network.context.device).manual_seed(zlib.crc32(key.encode()))

    def record(self, outputs: list[Tensor], halts: list[Tensor], residuals: list[Tensor]) -> None:
        """Record one step of the views of this round; after the last step, begin the next round or finish."""
        self.step += 1
        self.add(self.halts, halts, self.step)
        self.add(self.residuals, residuals, self.step)
        is_last = self.step == self.inference.depth or self.has_halted
        if self.keep_steps or is_last:
            self.add(self.outputs, outputs, self.step if self.keep_steps else 1)
        if self.keep_latents:
            n_spots = len(self.section.lattice.row_N)
            latents = [part.latent() for part in self.parts]
            kept = torch.linspace(0, n_spots - 1, min(self.keep_latents, n_spots)).long().to(latents[0].device)
            self.add(self.latents, [latent[kept] for latent in latents], self.step)
        if is_last:
            self.add(self.last_latent, [part.latent() for part in self.parts], 1)
            self.add(self.last_tokens, [part.tokens() for part in self.parts], 1)
            if self.rounds:
                self.begin_round()
            else:
                self.finish()

    def add(self, records: list[Tensor], values: Sequence[Tensor], step: int) -> None:
        """Add the values of this round to the mean over all views."""
        share = torch.as_tensor(sum(value.float().cpu() for value in values) / self.n_views)
        if len(records) < step:
            records.append(share)
        else:
            records[step - 1] += share

    def finish(self) -> None:
        """Turn the records into a result, and free the states."""
        n_steps, depth = self.step, filled(self.inference.depth)
        outputs = self.outputs + self.outputs[-1:] * (depth - n_steps if self.keep_steps else 0)
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
            self.last_tokens[0].numpy(),
        )
        self.outputs, self.latents, self.last_latent, self.last_tokens, self.parts = [], [], [], [], []


class Batches:
    """Collate parts into a batch, and keep the last batch as long as its parts stay the same."""

    def __init__(self, device: torch.device, backbone: Backbone) -> None:
        self.device, self.backbone = device, backbone
        self.sections: list[Section] = []
        self.batch: Batch | None = None

    def of(self, parts: Sequence[Part]) -> Batch:
        """Return the batch of parts."""
        sections = [part.section for part in parts]
        if self.batch is None or list(map(id, sections)) != list(map(id, self.sections)):
            self.batch = None  # freed before the next one is made
            self.sections, self.batch = sections, collate(sections, self.device, self.backbone)
        return self.batch


@torch.inference_mode()
def advance(network: SpotNetwork, jobs: Sequence[Job], batches: Batches, fabric: Fabric) -> None:
    """Run one outer step of all jobs."""
    steps: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {id(job): [] for job in jobs}
    for chunk in in_chunks([(job, part) for job in jobs for part in job.parts]):
        parts = [part for _, part in chunk]
        batch = batches.of(parts)
        with fabric.autocast():
            before = join_states(network, batch, parts, random=chunk[0][0].is_random, noise=chunk[0][0].inference.noise)
            output, halt_SL, after = run_step(network, batch, before, chunk[0][0].inference)
            output = network.head.predict(output)
        halt_S = network.halt_probability(halt_SL, len(parts))
        states, outputs = split_states(after, batch.lattice), batch.lattice.split(output)
        for i, (job, part) in enumerate(chunk):
            change = residual(filled(part.carry), states[i])
            part.carry = states[i]
            steps[id(job)].append((outputs[i].float(), halt_S[i], change))
    for job in jobs:
        job.record(*map(list, zip(*steps[id(job)], strict=True)))


def run_step(
    network: SpotNetwork, batch: Batch, carry: Carry, inference: Inference
) -> tuple[Tensor, Tensor | None, Carry]:
    """Run one outer step of whole sections, or of one section in tiles."""
    if not inference.tile:
        return network.step(batch, carry)
    if len(network.context) or carry.streams is not None or batch.lattice.n_sections > 1:
        msg = "prediction in tiles needs a network without global tokens (n_global=0), without random starts and noise"
        raise ValueError(msg)
    return step_in_tiles(network, batch, carry, cut_lattice(batch.lattice, inference.tile, inference.halo))


def in_chunks(parts: Sequence[tuple[Job, Part]]) -> Iterator[list[tuple[Job, Part]]]:
    """Group parts into batches of a limited number of spots."""
    chunk: list[tuple[Job, Part]] = []
    n_spots = 0
    for job, part in parts:
        n = len(part.section.lattice.row_N)
        if chunk and (n_spots + n > MAX_BATCH_SPOTS or job.inference.tile):
            yield chunk
            chunk, n_spots = [], 0
        chunk.append((job, part))
        n_spots += n
    yield chunk


def join_states(network: SpotNetwork, batch: Batch, parts: Sequence[Part], *, random: bool, noise: float) -> Carry:
    """Concatenate the states of parts; new parts begin with their start."""
    generators = [part.generator for part in parts if part.generator is not None]
    streams = Streams(generators, noise=noise) if generators else None
    fresh = [i for i, part in enumerate(parts) if part.carry is None]
    if len(fresh) == len(parts):
        started = network.start(batch, streams, random=random)
        for part, carry in zip(parts, split_states(started, batch.lattice), strict=True):
            part.carry = carry
        return started
    for i in fresh:
        own = collate([parts[i].section], batch.features_NF.device, network.recursion.backbone)
        own_streams = None if streams is None else Streams([generators[i]], noise=noise)
        (parts[i].carry,) = split_states(network.start(own, own_streams, random=random), own.lattice)
    if len(parts) == 1:
        return replace(filled(parts[0].carry), streams=streams)
    n_context = len(network.context)
    states = [
        torch.cat([piece[:n_context] for piece in pieces] + [piece[n_context:] for piece in pieces])
        for pieces in zip(*(filled(part.carry).state for part in parts), strict=True)
    ]
    return Carry(tuple(states), streams=streams)


def split_states(carry: Carry, lattice: Lattice) -> list[Carry]:
    """Split the states into those of each section, its context tokens first."""
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
