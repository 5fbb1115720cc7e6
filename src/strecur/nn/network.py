from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.devices import sum_of_chosen
from strecur.nn.halting import RECIPES, HaltHead, draw_halt_steps, halt_probability, hold_out, random_target
from strecur.nn.layers import linear, rms_norm, sinusoidal_positions, truncated_normal_
from strecur.nn.recursion import Streams

if TYPE_CHECKING:
    from strecur.nn.heads import Head, LinearStart
    from strecur.nn.lattice import Lattice
    from strecur.nn.recursion import Recursion, State

HALT_WEIGHT = 0.5
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True)
class Batch:
    """Sections that are computed together: features, lattice, and in training the target of every spot."""

    features_NF: Tensor
    lattice: Lattice
    target_N: Tensor | None = None


@dataclass(frozen=True)
class Carry:
    """State between two outer steps.

    Attributes
    ----------
    state
        States of the recursion.
    step
        Outer steps done.
    streams
        Random streams of the sections, for starts and noise.
    halt_at_S
        Target halt step of each section, drawn by the random-K recipe.
    halt_S
        Halt probability of each section after the last supervision step; ``None`` without a halting recipe.
    """

    state: State
    step: int = 0
    streams: Streams | None = None
    halt_at_S: Tensor | None = None
    halt_S: Tensor | None = None


class SpotNetwork(nn.Module):
    """Embed spots, iterate a backbone over them, and decode the answer after every outer step.

    Parameters
    ----------
    n_features
        Width of the representation.
    recursion
        Recursion around a backbone.
    head
        Output map with its loss.
    halting
        Name of the recipe that supervises halting (a key of ``strecur.nn.halting.RECIPES``), or ``None``.
    linear_start
        Linear model of the features to which the output of the head is added. If ``None`` (default), the output is that
        of the head.
    """

    def __init__(
        self,
        n_features: int,
        recursion: Recursion,
        head: Head,
        *,
        halting: str | None,
        linear_start: LinearStart | None = None,
    ) -> None:
        super().__init__()
        width = recursion.backbone.width
        self.embedding = linear(n_features, width, bias=head.bias)
        self.context = nn.Parameter(truncated_normal_(torch.empty(recursion.backbone.n_context, width), 0.02))
        self.recursion = recursion
        self.head: Head = head
        self.linear_start = linear_start
        self.recipe = None if halting is None else RECIPES[halting]
        if self.recipe is not None:
            self.halt_head = HaltHead(width, head.n_outputs if self.recipe.per_gene else 1)

    def start_from(self, weight_FO: Tensor, bias_O: Tensor) -> None:
        """Start from the answer of a linear model, which training then corrects."""
        assert self.linear_start is not None
        self.linear_start.weight_FO.copy_(weight_FO)
        self.linear_start.bias_O.copy_(bias_O)
        for parameter in self.head.linear.parameters():
            nn.init.zeros_(parameter)

    def embed(self, features_NF: Tensor, lattice: Lattice) -> Tensor:
        """Concatenate the context tokens and the embedded spots (unit RMS, plus positions for the dense backbone)."""
        x_ND = rms_norm(self.embedding(features_NF))
        if self.recursion.backbone.absolute_positions:
            x_ND = x_ND + sinusoidal_positions(lattice.row_N, lattice.col_N, x_ND.shape[-1])
        return torch.cat([self.context.repeat(lattice.n_sections, 1).to(x_ND.dtype), x_ND])

    def start(self, batch: Batch, streams: Streams | None = None, *, random: bool = False) -> Carry:
        """Return the carry before the first outer step, with fixed or random starts."""
        with torch.no_grad():
            x_TD = self.embed(batch.features_NF, batch.lattice).float()
            if not random:
                return Carry(self.recursion.start(x_TD), streams=streams)
            assert streams is not None
            return Carry(self.recursion.random_start(x_TD, batch.lattice, streams), streams=streams)

    def training_start(self, batch: Batch, n_steps: int, generator: torch.Generator) -> Carry:
        """Return the carry before the first supervision step; all random numbers come from ``generator``.

        It is a generator of the device of the batch.
        """
        streams, n_sections = None, batch.lattice.n_sections
        if self.recursion.is_random:
            streams = Streams([generator] * n_sections, noise=self.recursion.noise)
        carry = self.start(batch, streams, random=streams is not None and self.recursion.sigma is not None)
        if self.recipe is None or self.recipe.measure is not None:
            return carry
        return replace(carry, halt_at_S=draw_halt_steps(n_sections, n_steps, generator))

    def step(self, batch: Batch, carry: Carry) -> tuple[Tensor, Tensor | None, Carry]:
        """Run one outer step; return the output per spot, the halt logits per section and the new carry."""
        x_TD = self.embed(batch.features_NF, batch.lattice)
        state = self.recursion.step(carry.state, x_TD, batch.lattice, carry.streams)
        n_context = len(self.context)
        answer_TD = self.answer(state, x_TD)
        output = self.head(answer_TD[n_context * batch.lattice.n_sections :])
        if self.linear_start is not None:
            output = output + self.linear_start(batch.features_NF)
        halt_SL = None
        if self.recipe is not None:
            halt_SL = self.halt_head(answer_TD[: n_context * batch.lattice.n_sections : n_context])
        return output, halt_SL, replace(carry, state=state, step=carry.step + 1)

    def answer(self, state: State, x_TD: Tensor) -> Tensor:
        """Return the input of the head for every token."""
        return state[0]

    def halt_probability(self, halt_SL: Tensor | None, n_sections: int) -> Tensor:
        """Halt probability per section; NaN for a network without a recipe."""
        return torch.full((n_sections,), torch.nan) if halt_SL is None else halt_probability(halt_SL)

    def training_step(self, batch: Batch, carry: Carry, generator: torch.Generator) -> tuple[Tensor, Carry]:
        """Run one supervision step; return the loss of this outer step, and the new carry without gradient."""
        assert batch.target_N is not None
        output, halt_SL, carry = self.step(batch, carry)
        labelled_N = self.head.labelled(batch.target_N)
        held_out_N = torch.zeros_like(labelled_N)
        if self.recipe is not None and self.recipe.measure is not None:
            held_out_N = hold_out(labelled_N, HELD_OUT_SHARE, generator)
        loss = self.mean_loss(output, labelled_N & ~held_out_N, batch)
        halt_S = None
        if halt_SL is not None:
            loss = loss + HALT_WEIGHT * self.halt_loss(output, halt_SL, held_out_N, batch, carry)
            halt_S = halt_probability(halt_SL.detach())
        state = tuple(part.detach() for part in carry.state)
        return loss, replace(carry, state=state, halt_S=halt_S)

    def mean_loss(self, output: Tensor, train_N: Tensor, batch: Batch) -> Tensor:
        """Mean over the chosen spots of each section, averaged over the sections.

        All sections have the same weight, so that their distribution to batches and devices does not matter.
        """
        assert batch.target_N is not None
        loss_N = self.head.spot_loss(output, batch.target_N)
        by_section = zip(batch.lattice.split(loss_N), batch.lattice.split(train_N), strict=True)
        return torch.stack([sum_of_chosen(*section) / section[1].sum().clamp(min=1) for section in by_section]).mean()

    def halt_loss(self, output: Tensor, halt_SL: Tensor, held_out_N: Tensor, batch: Batch, carry: Carry) -> Tensor:
        """Binary cross-entropy of the halt logits with the target of the recipe."""
        if carry.halt_at_S is not None:
            wanted = random_target(carry.halt_at_S.to(halt_SL.device), carry.step)
            return F.binary_cross_entropy_with_logits(halt_SL, wanted)
        assert self.recipe is not None
        assert batch.target_N is not None
        return self.recipe.loss(halt_SL, output, batch.target_N, held_out_N, batch.lattice)
