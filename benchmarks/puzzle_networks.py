"""Networks compared on puzzles: the recursions of the package over a mixer or attention, with equal layer passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from puzzle_sections import Mazes, Sudokus
from puzzle_variants import VARIANTS, VariantConfig, head_of, in_grid, starts_of, variant_of
from torch import Tensor, nn

from strecur.nn import (
    Backbone,
    BackboneConfig,
    DenseConfig,
    FeedforwardConfig,
    RecursionConfig,
    SpotNetwork,
    TRMConfig,
    UniversalConfig,
)
from strecur.nn.layers import BranchEnd, SwiGLU, linear, rms_norm, shrink_branches
from strecur.options import Training

if TYPE_CHECKING:
    from strecur.nn import Lattice

METHODS = (
    "feedforward",
    "feedforward, step",
    "feedforward, run",
    "universal, step",
    "universal, run",
    "trm",
    "trm, random",
    "trm, run",
    *VARIANTS,
)
"""``step``: as many layer passes as TRM in an outer step; ``run``: as many as in all outer steps of its training.

``trm, run`` has one loss after all of them, with a gradient through the last deep cycle.
"""

RECURSIONS = {"two networks", "one-step gradient", "single z", "several z"}
"""Variants with a recursion of their own."""

# With gradients through all layers of a run, the learning rate of the others and full branches leave answers at chance.
DEEP_RATE, DEEP_GAIN = 0.25, 0.2

RANDOM = (1.0, 0.01)
"""Standard deviations of random starts and of noise, as in Equilibrium Reasoners."""


@dataclass(frozen=True)
class MixerConfig(BackboneConfig):
    """Size of a :class:`MixerBackbone` for sections of ``n_spots`` spots."""

    name = "mixer"

    n_layers: int = 2
    n_spots: int = 81
    n_context: int = 1

    def build(self) -> MixerBackbone:
        return MixerBackbone(self)


class MixerLayer(nn.Module):
    """A gated MLP over the positions of a section instead of attention, then one over the channels, as in TRM."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.positions = SwiGLU(config.n_context + config.n_spots)
        self.mlp = SwiGLU(config.width)

    def forward(self, h_SLD: Tensor) -> Tensor:
        h_SDL = h_SLD.transpose(1, 2).contiguous()
        h_SLD = rms_norm(h_SDL + self.positions(h_SDL)).transpose(1, 2).contiguous()
        return rms_norm(h_SLD + self.mlp(h_SLD))


class MixerBackbone(Backbone):
    """Mixes the positions of sections that all have the same number of spots in the same order."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.width, self.n_context, self.n_spots = config.width, config.n_context, config.n_spots
        self.layers = nn.ModuleList(MixerLayer(config) for _ in range(config.n_layers))

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        if set(lattice.length_S) != {self.n_spots}:
            raise ValueError(f"sections have {sorted(set(lattice.length_S))} spots, not {self.n_spots}")
        n_tokens = lattice.n_sections * self.n_context
        context, spots = h_TD[:n_tokens], h_TD[n_tokens:]
        h_SLD = torch.cat([part.unflatten(0, (lattice.n_sections, -1)) for part in (context, spots)], dim=1)
        for layer in self.layers:
            h_SLD = layer(h_SLD)
        return torch.cat([h_SLD[:, : self.n_context].flatten(0, 1), h_SLD[:, self.n_context :].flatten(0, 1)])


def narrow(body: nn.Module, hidden: int) -> nn.Module:
    """Set the hidden width of the gated MLPs of a backbone, which in the package is a multiple of 256."""
    for mlp in [part for part in body.modules() if isinstance(part, SwiGLU)]:
        width = mlp.up.in_features
        mlp.up, mlp.down = linear(width, 2 * hidden), BranchEnd(hidden, width)
    return body


@dataclass(frozen=True)
class Preset:
    """Puzzles, size of the network, training and evaluation.

    Attributes
    ----------
    backbone
        ``"dense"`` or ``"mixer"``.
    width, n_layers, n_context
        Size of the backbone.
    hidden
        Hidden width of the gated MLPs. If ``None``, that of the package.
    n_latent, n_deep, n_steps
        Recursion of TRM. The other methods have as many layer passes.
    training
        Training of TRM. The other methods see as many puzzles for as many layer passes.
    n_train, n_test
        Number of puzzles.
    depths, breadths
        Outer steps and numbers of restarts of the evaluation.
    methods
        Methods to compare.
    """

    puzzles: Mazes | Sudokus
    backbone: str
    width: int
    n_layers: int
    n_latent: int
    n_deep: int
    n_steps: int
    training: Training
    n_train: int
    n_test: int
    n_context: int = 1
    hidden: int | None = None
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    breadths: tuple[int, ...] = (4, 16)
    methods: tuple[str, ...] = METHODS[: METHODS.index("trm, run")]

    def n_layer_passes(self, method: str) -> int:
        """Return the layer passes of a method in one of its outer steps."""
        if method == "feedforward":
            return self.n_layers
        n_deep, n_latent = self.updates(method)
        one_step = self.layers_of(method) * n_deep * (n_latent + 1)
        return one_step * self.n_steps if method.endswith("run") else one_step

    def updates(self, method: str) -> tuple[int, int]:
        """Return deep cycles and latent updates; methods without recursion have the layer passes of TRM."""
        if (found := in_grid(method)) is not None:
            return found
        halved = variant_of(method) == "twice the layers"
        return self.n_deep, max(self.n_latent // 2, 1) if halved else self.n_latent

    def layers_of(self, method: str) -> int:
        """Return the layers of the network that is called."""
        return self.n_layers * (2 if variant_of(method) == "twice the layers" else 1)

    def depths_of(self, method: str) -> tuple[int, ...]:
        """Return the outer steps to evaluate: one for feedforward networks, and no more layer passes than TRM has."""
        if method.startswith("feedforward"):
            return (1,)
        most = max(self.depths) * self.n_layer_passes("trm")
        return tuple(d for d in self.depths if d * self.n_layer_passes(method) <= most)

    def make_backbone(self, n_layers: int) -> Backbone:
        if self.backbone == "dense":
            config = DenseConfig(self.width, n_layers, n_heads=max(self.width // 64, 2))
        else:
            config = MixerConfig(self.width, n_layers, self.puzzles.side**2, self.n_context)
        body = config.build()
        return body if self.hidden is None else narrow(body, self.hidden)

    def recursion(self, method: str) -> RecursionConfig:
        if method.startswith("feedforward"):
            return FeedforwardConfig()
        if method.startswith("universal"):
            return UniversalConfig(n_repeats=self.n_layer_passes(method) // self.n_layers)
        n_deep, n_latent = self.updates(method)
        n_steps = self.steps_of(method)
        config = TRMConfig(n_latent, n_deep * self.n_steps // n_steps, n_steps)
        if variant_of(method) in RECURSIONS:
            second = partial(self.make_backbone, self.n_layers)
            return VariantConfig(n_latent, n_deep, self.n_steps, variant=variant_of(method), second=second)
        if (found := RANDOM if method == "trm, random" else starts_of(method)) is not None:
            sigma, noise = found
            config = replace(config, sigma=(sigma, sigma), damping=0.05, noise=noise)
        return config

    def make_network(
        self, method: str, seed: int, *, kind: type[SpotNetwork] = SpotNetwork, halting: str | None = None
    ) -> SpotNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = head_of(method)(self.width, self.puzzles.n_answers, label_smoothing=0.0)
            n_layers = self.n_layer_passes(method) if method.startswith("feedforward") else self.layers_of(method)
            backbone = self.make_backbone(n_layers)
            if self.is_deep(method):
                shrink_branches(backbone, DEEP_GAIN)
            recursion = self.recursion(method).build(backbone)
            return kind(self.puzzles.n_symbols, recursion, head, halting=halting)

    def steps_of(self, method: str) -> int:
        """Return the outer steps of a visit of a batch; a method without deep supervision has one."""
        return self.n_steps if method.startswith("trm") and method != "trm, run" else 1

    def is_deep(self, method: str) -> bool:
        """Whether gradients go through the layers of all outer steps."""
        return method in {"feedforward, run", "universal, run"}

    def training_of(self, method: str) -> Training:
        """Return a training with the layer passes of TRM: more visits for a method that does less in each of them."""
        if method.startswith("trm"):
            return replace(self.training, ema=0.0) if variant_of(method) == "no EMA" else self.training
        if self.is_deep(method):
            return replace(self.training, learning_rate=DEEP_RATE * self.training.learning_rate)
        return replace(self.training, max_epochs=self.training.max_epochs * self.n_steps)


SMALL = Preset(
    Sudokus(n_clues=10),
    "mixer",
    width=48,
    hidden=96,
    n_layers=1,
    n_latent=2,
    n_deep=1,
    n_steps=8,
    training=Training(
        max_epochs=3,
        batch_sections=16,
        learning_rate=4e-3,
        warmup=100,
        schedule="linear",
        weight_decay=0.1,
        ema=0.99,
    ),
    n_train=1024,
    n_test=128,
)
SMALL_MAZE = replace(SMALL, puzzles=Mazes(side=7), n_train=4096, training=replace(SMALL.training, max_epochs=1))
PRESETS = {
    "small": {
        "sudoku": SMALL,
        "maze 7": SMALL_MAZE,
        # states of late steps are trained too, so that an answer that was found is kept
        "maze 7, 16 steps": replace(SMALL_MAZE, n_steps=16, training=replace(SMALL.training, max_epochs=2)),
        "maze 9": replace(SMALL_MAZE, puzzles=Mazes(side=9), training=replace(SMALL.training, max_epochs=2)),
    },
    # as in TRM and Equilibrium Reasoners, except for stablemax loss, halting in training and constant learning rate
    "paper": {
        "sudoku": Preset(
            Sudokus(box=(3, 3), n_clues=17),
            "mixer",
            width=512,
            n_layers=2,
            n_latent=6,
            n_deep=3,
            n_steps=16,
            n_context=16,
            training=Training(
                max_epochs=60_000,
                batch_sections=768,
                learning_rate=1e-4,
                warmup=2000,
                schedule="linear",
                weight_decay=1.0,
                ema=0.999,
            ),
            n_train=1000,
            n_test=4096,
            depths=(1, 4, 16, 64),
            breadths=(8, 128),
            methods=("feedforward, step", "universal, step", "trm", "trm, random"),
        ),
    },
}
