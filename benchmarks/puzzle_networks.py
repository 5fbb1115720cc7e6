"""What is compared on puzzles: the package's recursions around a mixer or attention, of equal layer passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from puzzle_sections import Mazes, Sudokus
from torch import Tensor, nn

from strecur.engine import FitConfig
from strecur.nn import (
    TRM,
    DenseBackbone,
    DenseConfig,
    DomainHead,
    Feedforward,
    FeedforwardConfig,
    SpotNetwork,
    TRMConfig,
    Universal,
    UniversalConfig,
)
from strecur.nn.layers import BranchEnd, SwiGLU, linear, rms_norm, shrink_branches

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
)
"""``step``: as many layers as TRM passes in an outer step, ``run``: as in all outer steps of its training."""

# Gradients through all layers of a run leave the answer at chance at the rate of the others and with full branches.
DEEP_RATE, DEEP_GAIN = 0.25, 0.2


@dataclass(frozen=True)
class MixerConfig:
    """Size of a :class:`MixerBackbone`; sections have ``n_spots`` spots each."""

    width: int
    n_layers: int
    n_spots: int
    n_context: int = 1


class MixerLayer(nn.Module):
    """A gated MLP over the positions of a section in place of attention, then one over the channels (paper 004)."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.positions = SwiGLU(config.n_context + config.n_spots)
        self.mlp = SwiGLU(config.width)

    def forward(self, h_SLD: Tensor) -> Tensor:
        h_SDL = h_SLD.transpose(1, 2).contiguous()
        h_SLD = rms_norm(h_SDL + self.positions(h_SDL)).transpose(1, 2).contiguous()
        return rms_norm(h_SLD + self.mlp(h_SLD))


class MixerBackbone(nn.Module):
    """Mixes the positions of sections that all have the same number of spots in the same order."""

    absolute_positions = False

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.width, self.n_context, self.n_spots = config.width, config.n_context, config.n_spots
        self.layers = nn.ModuleList(MixerLayer(config) for _ in range(config.n_layers))

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        if set(lattice.length_S) != {self.n_spots}:
            msg = f"this mixer is for sections of {self.n_spots} spots; these have {sorted(set(lattice.length_S))}"
            raise ValueError(msg)
        n_tokens = lattice.n_sections * self.n_context
        context, spots = h_TD[:n_tokens], h_TD[n_tokens:]
        h_SLD = torch.cat([part.unflatten(0, (lattice.n_sections, -1)) for part in (context, spots)], dim=1)
        for layer in self.layers:
            h_SLD = layer(h_SLD)
        return torch.cat([h_SLD[:, : self.n_context].flatten(0, 1), h_SLD[:, self.n_context :].flatten(0, 1)])


def narrow(body: nn.Module, hidden: int) -> nn.Module:
    """Give the gated MLPs of a backbone another hidden width than the package's multiple of 256."""
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
        Hidden width of the gated MLPs; ``None``: that of the package.
    n_latent, n_deep
        Of TRM. The others pass as many layers.
    fit
        Training of TRM. The others see as many puzzles for as many layer passes.
    n_train, n_test
        Puzzles.
    depths, breadths
        Outer steps and numbers of restarts of the evaluation.
    methods
        What is compared.
    """

    puzzles: Mazes | Sudokus
    backbone: str
    width: int
    n_layers: int
    n_latent: int
    n_deep: int
    fit: FitConfig
    n_train: int
    n_test: int
    n_context: int = 1
    hidden: int | None = None
    depths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    breadths: tuple[int, ...] = (4, 16)
    methods: tuple[str, ...] = METHODS

    def n_layer_passes(self, method: str) -> int:
        """Layers that a method passes through in one of its outer steps."""
        if method == "feedforward":
            return self.n_layers
        one_step = self.n_layers * self.n_deep * (self.n_latent + 1)
        return one_step * self.fit.n_steps if method.endswith("run") else one_step

    def depths_of(self, method: str) -> tuple[int, ...]:
        """Outer steps to evaluate: more change nothing for a feedforward network, and none gets more work than TRM."""
        if method.startswith("feedforward"):
            return (1,)
        most = max(self.depths) * self.n_layer_passes("trm")
        return tuple(d for d in self.depths if d * self.n_layer_passes(method) <= most)

    def make_backbone(self, n_layers: int) -> nn.Module:
        if self.backbone == "dense":
            body = DenseBackbone(DenseConfig(self.width, n_layers, n_heads=max(self.width // 64, 2)))
        else:
            body = MixerBackbone(MixerConfig(self.width, n_layers, self.puzzles.side**2, self.n_context))
        return body if self.hidden is None else narrow(body, self.hidden)

    def make_recursion(self, method: str) -> nn.Module:
        n_passes = self.n_layer_passes(method)
        backbone = self.make_backbone(n_passes if method.startswith("feedforward") else self.n_layers)
        if method.endswith("run"):
            shrink_branches(backbone, DEEP_GAIN)
        if method.startswith("feedforward"):
            return Feedforward(backbone, FeedforwardConfig())
        if method.startswith("universal"):
            return Universal(backbone, UniversalConfig(n_repeats=n_passes // self.n_layers))
        config = TRMConfig(self.n_latent, self.n_deep, self.fit.n_steps)
        if method == "trm, random":  # paper 003
            config = replace(config, sigma=(1.0, 1.0), damping=0.05, noise=0.01)
        return TRM(backbone, config)

    def make_network(self, method: str, seed: int) -> SpotNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = DomainHead(self.width, self.puzzles.n_answers, label_smoothing=0.0)
            return SpotNetwork(self.puzzles.n_symbols, self.make_recursion(method), head, halting=None)

    def fit_config(self, method: str) -> FitConfig:
        """TRM visits a batch for some outer steps; what does all of them at once visits as many, for one step each."""
        if method.startswith("trm"):
            return self.fit
        once = replace(self.fit, n_steps=1)
        if method.endswith("run"):
            return replace(once, learning_rate=DEEP_RATE * self.fit.learning_rate)
        return replace(once, max_epochs=self.fit.max_epochs * self.fit.n_steps)


SMALL = Preset(
    Sudokus(n_clues=10),
    "mixer",
    width=48,
    hidden=96,
    n_layers=1,
    n_latent=2,
    n_deep=1,
    fit=FitConfig(8, max_epochs=3, batch_sections=16, learning_rate=4e-3, weight_decay=0.1, warmup=100, ema=0.99),
    n_train=1024,
    n_test=128,
)
SMALL_MAZE = replace(SMALL, puzzles=Mazes(side=7), n_train=4096, fit=replace(SMALL.fit, max_epochs=1))
PRESETS = {
    "small": {
        "sudoku": SMALL,
        "maze 7": SMALL_MAZE,
        "maze 9": replace(SMALL_MAZE, puzzles=Mazes(side=9), fit=replace(SMALL_MAZE.fit, max_epochs=2)),
    },
    # as in papers 003 and 004 but for their stablemax loss, halting in training and constant learning rate
    "paper": {
        "sudoku": Preset(
            Sudokus(box=(3, 3), n_clues=17),
            "mixer",
            width=512,
            n_layers=2,
            n_latent=6,
            n_deep=3,
            n_context=16,
            fit=FitConfig(
                16, max_epochs=60_000, batch_sections=768, learning_rate=1e-4, weight_decay=1.0, warmup=2000, ema=0.999
            ),
            n_train=1000,
            n_test=4096,
            depths=(1, 4, 16, 64),
            breadths=(8, 128),
            methods=("feedforward, step", "universal, step", "trm", "trm, random"),
        ),
    },
}
