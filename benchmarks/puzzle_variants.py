"""Variants of TRM: what table 1 of its paper leaves out or replaces, and its loss."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from strecur.nn import TRM, DomainHead, TRMConfig
from strecur.nn.layers import truncated_normal_
from strecur.nn.recursion import Recursion

if TYPE_CHECKING:
    from collections.abc import Callable

    from strecur.nn import Backbone, Lattice
    from strecur.nn.recursion import State, Streams

VARIANTS = (
    "trm, two networks",
    "trm, twice the layers",
    "trm, one-step gradient",
    "trm, no EMA",
    "trm, single z",
    "trm, several z",
    "trm, stablemax",
)
"""``twice the layers`` has half of the latent updates."""

GRID = re.compile(r"trm, T=(\d+), n=(\d+)")
STARTS = re.compile(r"trm, sigma=([\d.]+), beta=([\d.]+)")


def in_grid(method: str) -> tuple[int, int] | None:
    """Return deep cycles and latent updates of a method of the T × n grid, such as ``"trm, T=3, n=6"``."""
    found = GRID.fullmatch(method)
    return None if found is None else (int(found[1]), int(found[2]))


def starts_of(method: str) -> tuple[float, float] | None:
    """Return the standard deviations of starts and noise of a method such as ``"trm, sigma=1, beta=0.01"``."""
    found = STARTS.fullmatch(method)
    return None if found is None else (float(found[1]), float(found[2]))


@dataclass(frozen=True)
class VariantConfig(TRMConfig):
    """A recursion of TRM with another order of updates."""

    variant: str = ""
    second: Callable[[], Backbone] | None = None

    def build(self, backbone: Backbone) -> Recursion:
        if self.variant == "two networks":
            assert self.second is not None
            return TwoNetworks(backbone, self.second(), self)
        kinds = {"one-step gradient": OneStepGradient, "single z": SingleState, "several z": SeveralLatents}
        return kinds[self.variant](backbone, self)


class TwoNetworks(TRM):
    """A second network for the updates of the answer."""

    def __init__(self, backbone: Backbone, second: Backbone, config: TRMConfig) -> None:
        super().__init__(backbone, config)
        self.second = second

    def block(
        self, y_TD: Tensor, z_TD: Tensor, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None
    ) -> State:
        for _ in range(self.n_latent):
            z_TD = self.mix(z_TD, self.call(z_TD + (y_TD + x_TD), lattice), lattice, streams)
        return self.mix(y_TD, self.second(y_TD + z_TD, lattice), lattice, streams), z_TD


class OneStepGradient(TRM):
    """A gradient through the last update of the latent and that of the answer alone."""

    def block(
        self, y_TD: Tensor, z_TD: Tensor, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None
    ) -> State:
        with torch.no_grad():
            for _ in range(self.n_latent - 1):
                z_TD = self.mix(z_TD, self.call(z_TD + (y_TD + x_TD), lattice), lattice, streams)
        z_TD = self.mix(z_TD, self.call(z_TD + (y_TD + x_TD), lattice), lattice, streams)
        return self.mix(y_TD, self.call(y_TD + z_TD, lattice), lattice, streams), z_TD


class SingleState(Recursion):
    """One state: ``n_latent`` updates from itself and the input, then one from itself."""

    z_init: Tensor

    def __init__(self, backbone: Backbone, config: TRMConfig) -> None:
        super().__init__(backbone)
        self.n_latent, self.n_deep = config.n_latent, config.n_deep
        self.register_buffer("z_init", truncated_normal_(torch.empty(backbone.width), 1.0))

    def start(self, x_TD: Tensor) -> State:
        return (self.z_init.to(x_TD.dtype).expand_as(x_TD),)

    def step(self, state: State, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None) -> State:
        (z_TD,) = state
        with torch.no_grad():
            for _ in range(self.n_deep - 1):
                z_TD = self.block(z_TD, x_TD, lattice)
        return (self.block(z_TD, x_TD, lattice),)

    def block(self, z_TD: Tensor, x_TD: Tensor, lattice: Lattice) -> Tensor:
        for _ in range(self.n_latent):
            z_TD = self.call(z_TD + x_TD, lattice)
        return self.call(z_TD, lattice)


class SeveralLatents(TRM):
    """A latent for each of the ``n_latent`` updates of a block, which sees the sum of all."""

    def start(self, x_TD: Tensor) -> State:
        y_TD, z_TD = super().start(x_TD)
        return y_TD, *([z_TD] * self.n_latent)

    def random_start(self, x_TD: Tensor, lattice: Lattice, streams: Streams) -> State:
        return tuple(streams.start(x_TD, lattice, 1.0) for _ in range(self.n_latent + 1))

    def step(self, state: State, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None) -> State:
        with torch.no_grad():
            for _ in range(self.n_deep - 1):
                state = self.blocks(state, x_TD, lattice, streams)
        return self.blocks(state, x_TD, lattice, streams)

    def blocks(self, state: State, x_TD: Tensor, lattice: Lattice, streams: Streams | None) -> State:
        y_TD, *latents = state
        for i in range(self.n_latent):
            total = torch.stack(latents).sum(dim=0)
            latents[i] = self.mix(latents[i], self.call(total + (y_TD + x_TD), lattice), lattice, streams)
        answer = self.call(y_TD + torch.stack(latents).sum(dim=0), lattice)
        return self.mix(y_TD, answer, lattice, streams), *latents


class StablemaxHead(DomainHead):
    """Cross-entropy of stablemax, which is linear where softmax is exponential."""

    def spot_loss(self, logits_NC: Tensor, target_N: Tensor) -> Tensor:
        known_N = target_N >= 0
        loss_N = -log_stablemax(logits_NC).gather(1, target_N.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(known_N, loss_N, torch.zeros_like(loss_N))

    def predict(self, logits_NC: Tensor) -> Tensor:
        return log_stablemax(logits_NC).exp().to(logits_NC)


def log_stablemax(logits_NC: Tensor) -> Tensor:
    """Logarithm of s / Σ s, where s(v) is v + 1 for v ≥ 0 and 1 / (1 − v) below; in double precision."""
    values = logits_NC.double()
    s_NC = torch.where(values >= 0, values + 1, 1 / (1 - values.clamp(max=0)))
    return (s_NC / s_NC.sum(dim=-1, keepdim=True)).log()


def variant_of(method: str) -> str:
    """Return the name of a variant, without that of TRM."""
    return method.removeprefix("trm, ")


def head_of(method: str) -> type[nn.Module]:
    """Return the head of a method."""
    return StablemaxHead if variant_of(method) == "stablemax" else DomainHead
