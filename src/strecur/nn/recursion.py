"""How a backbone is iterated. A recursion knows no head and no loss.

Each recursion has ``start`` (the state before the first outer step) and ``step`` (one outer step). A state is a tuple
of tensors over tokens: the answer y first, the latent last. Before the first step of a recursion with one state it is
empty: that step begins with the embedding x, which so receives a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from strecur.nn.layers import TRUNCATED_STD, truncated_normal_

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from strecur.nn.backbone import Backbone
    from strecur.nn.lattice import Lattice

State = tuple[Tensor, ...]


class RecursionConfig:
    """How a backbone is iterated; base class of frozen dataclasses.

    Attributes
    ----------
    name
        Name of the architecture in arguments and saved models.
    has_two_states
        Whether there are an answer and a latent, so that random starts and noise are possible.
    n_steps
        Outer steps in training.
    branch_gain
        Factor on the residual branches of the backbone at initialisation.
    """

    name: ClassVar[str]
    has_two_states: ClassVar[bool] = False

    n_steps: int
    branch_gain: float

    def build(self, backbone: Backbone) -> Recursion:
        """Create the module around a backbone."""
        raise NotImplementedError

    @property
    def n_gradient_calls(self) -> int:
        """Calls of the backbone per outer step that have a gradient."""
        return 1

    @property
    def n_calls(self) -> int:
        """Calls of the backbone per outer step."""
        return self.n_gradient_calls

    def with_steps(self, n_steps: int) -> Self:
        """Return the configuration with another number of outer steps in training."""
        return cast("Self", replace(cast("Any", self), n_steps=n_steps))

    @property
    def body(self) -> RecursionConfig:
        """Recursion over the backbone; that of an architecture in which it is one part."""
        return self


@dataclass(frozen=True)
class TRMConfig(RecursionConfig):
    """Tiny recursive model :cite:p:`trm,spatialtrm`, with the options of Equilibrium Reasoners :cite:p:`eqr`.

    Attributes
    ----------
    n_latent
        Updates of the latent z before each update of the answer y; together they are one block.
    n_deep
        Blocks per outer step, of which the last has a gradient.
    n_steps
        Outer steps in training.
    sigma
        Standard deviation of random starts of y and z, drawn for every token and channel. If ``None`` (default), the
        fixed starts of TRM.
    damping
        Share of the old state that every update keeps.
    noise
        Standard deviation of the noise added to every update in training.
    branch_gain
        Factor on the residual branches of the backbone at initialisation. Below 1, an update is close to the identity
        at first, so that the features reach the answer from the first step on; 1 is the initialisation of TRM.
    """

    name: ClassVar[str] = "trm"
    has_two_states: ClassVar[bool] = True

    n_latent: int = 3
    n_deep: int = 1
    n_steps: int = 4
    sigma: tuple[float, float] | None = None
    damping: float = 0.0
    noise: float = 0.0
    branch_gain: float = 0.1

    def build(self, backbone: Backbone) -> TRM:
        return TRM(backbone, self)

    @property
    def n_gradient_calls(self) -> int:
        return self.n_latent + 1

    @property
    def n_calls(self) -> int:
        return self.n_gradient_calls * self.n_deep


@dataclass(frozen=True)
class UniversalConfig(RecursionConfig):
    """Universal transformer: one state, several calls of the backbone with shared weights.

    Attributes
    ----------
    n_repeats
        Calls of the backbone per outer step.
    n_steps
        Outer steps in training.
    branch_gain
        Factor on the residual branches of the backbone at initialisation, as in :class:`TRMConfig`.
    """

    name: ClassVar[str] = "universal"

    n_repeats: int = 8
    n_steps: int = 1
    branch_gain: float = 0.2

    def build(self, backbone: Backbone) -> Universal:
        return Universal(backbone, self)

    @property
    def n_gradient_calls(self) -> int:
        return self.n_repeats


@dataclass(frozen=True)
class FeedforwardConfig(RecursionConfig):
    """One call of the backbone.

    Attributes
    ----------
    n_steps
        Outer steps in training.
    branch_gain
        Factor on the residual branches of the backbone at initialisation, as in :class:`TRMConfig`.
    """

    name: ClassVar[str] = "feedforward"

    n_steps: int = 1
    branch_gain: float = 1.0

    def build(self, backbone: Backbone) -> Feedforward:
        return Feedforward(backbone, self)


class Streams:
    """One random stream per section, so that draws depend neither on the batch nor on its order.

    Generators are on the device of the tensors: numbers drawn on the CPU would have to be moved in every update.
    """

    def __init__(self, generators: Sequence[torch.Generator], *, noise: float = 0.0) -> None:
        self.generators, self.noise = tuple(generators), noise

    def normal(self, like_TD: Tensor, lattice: Lattice) -> Tensor:
        """Draw a standard normal for every token and channel."""
        n_context = (len(like_TD) - len(lattice.row_N)) // lattice.n_sections
        width = like_TD.shape[1]
        drawn = [
            torch.randn(n_context + n_spots, width, generator=generator, device=like_TD.device)
            for n_spots, generator in zip(lattice.length_S, self.generators, strict=True)
        ]
        tokens = torch.cat([part[:n_context] for part in drawn] + [part[n_context:] for part in drawn])
        return tokens.to(like_TD)

    def start(self, like_TD: Tensor, lattice: Lattice, sigma: float) -> Tensor:
        """Draw a start of standard deviation ``sigma``, clipped at 2.27 ``sigma`` like the starts of TRM."""
        limit = 2 / TRUNCATED_STD
        # the normal quantile of a uniform draw between Φ(-2) and Φ(2) is a truncated normal
        share = torch.special.ndtr(self.normal(like_TD, lattice)) * (1 - 2 * TAIL) + TAIL
        return sigma * (torch.special.ndtri(share) / TRUNCATED_STD).clamp(-limit, limit)

    def perturb(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        """Add the noise of one update."""
        return h_TD + self.noise * self.normal(h_TD, lattice) if self.noise else h_TD


TAIL = 0.022750131948179209  # Φ(-2)


class Recursion(nn.Module):
    """A backbone and how it is called.

    Attributes
    ----------
    backbone
        Network over the tokens of a lattice.
    recompute
        Use gradient checkpointing: keep only the input of each call and repeat the call in the backward pass. Results
        are the same, with the memory of one call and a third more time.
    sigma, noise
        Standard deviations of random starts (``None``: fixed starts) and of the noise in training.
    """

    sigma: tuple[float, float] | None = None
    noise: float = 0.0

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.recompute = backbone, False

    @property
    def is_random(self) -> bool:
        """Whether training draws random starts or noise."""
        return self.sigma is not None or self.noise > 0

    def call(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        """Apply the backbone once."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.backbone, h_TD, lattice, use_reentrant=False)
        return self.backbone(h_TD, lattice)

    def start(self, x_TD: Tensor) -> State:
        """Return the state before the first outer step; a recursion with one state has none yet."""
        return ()

    def random_start(self, x_TD: Tensor, lattice: Lattice, streams: Streams) -> State:
        """Draw the state before the first outer step."""
        raise NotImplementedError

    def step(self, state: State, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None) -> State:
        """Run one outer step from the embedding x, with noise from ``streams``."""
        raise NotImplementedError


class TRM(Recursion):
    """Two states, one shared network :cite:p:`trm,spatialtrm`.

    A block is ``n_latent`` updates z ← net(y + z + x), then one y ← net(y + z). An outer step is ``n_deep`` blocks,
    of which only the last has a gradient. The result depends only on the product of outer steps and ``n_deep``. With
    damping λ and noise β :cite:p:`eqr` an update is λ·old + (1 - λ)·net(…) + β·ε.
    """

    y_init: Tensor
    z_init: Tensor

    def __init__(self, backbone: Backbone, config: TRMConfig) -> None:
        super().__init__(backbone)
        self.n_latent, self.n_deep = config.n_latent, config.n_deep
        self.sigma, self.damping, self.noise = config.sigma, config.damping, config.noise
        self.register_buffer("y_init", truncated_normal_(torch.empty(backbone.width), 1.0))
        self.register_buffer("z_init", truncated_normal_(torch.empty(backbone.width), 1.0))

    def start(self, x_TD: Tensor) -> State:
        """Return the fixed starts, which are the same for all tokens."""
        return self.y_init.to(x_TD.dtype).expand_as(x_TD), self.z_init.to(x_TD.dtype).expand_as(x_TD)

    def random_start(self, x_TD: Tensor, lattice: Lattice, streams: Streams) -> State:
        """Draw starts for every token and channel, with standard deviation 1 if the network has fixed starts."""
        return tuple(streams.start(x_TD, lattice, sigma) for sigma in self.sigma or (1.0, 1.0))

    def step(self, state: State, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None) -> State:
        y_TD, z_TD = state
        with torch.no_grad():
            for _ in range(self.n_deep - 1):
                y_TD, z_TD = self.block(y_TD, z_TD, x_TD, lattice, streams)
        return self.block(y_TD, z_TD, x_TD, lattice, streams)

    def block(
        self, y_TD: Tensor, z_TD: Tensor, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None
    ) -> State:
        """Update the latent ``n_latent`` times, then the answer once."""
        for _ in range(self.n_latent):
            z_TD = self.mix(z_TD, self.call(z_TD + (y_TD + x_TD), lattice), lattice, streams)
        return self.mix(y_TD, self.call(y_TD + z_TD, lattice), lattice, streams), z_TD

    def mix(self, old_TD: Tensor, new_TD: Tensor, lattice: Lattice, streams: Streams | None) -> Tensor:
        """Keep a share of the old state and add noise; without either, return the new state."""
        if self.damping:
            new_TD = self.damping * old_TD + (1 - self.damping) * new_TD
        return new_TD if streams is None else streams.perturb(new_TD, lattice)


class Universal(Recursion):
    """One state, shared weights, ``n_repeats`` calls per outer step, all with a gradient (Dehghani et al. 2019)."""

    def __init__(self, backbone: Backbone, config: UniversalConfig) -> None:
        super().__init__(backbone)
        self.n_repeats = config.n_repeats

    def step(self, state: State, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None) -> State:
        (h_TD,) = state or (x_TD,)
        for _ in range(self.n_repeats):
            h_TD = self.call(h_TD, lattice)
        return (h_TD,)


class Feedforward(Recursion):
    """One call of the backbone; further outer steps change nothing."""

    def __init__(self, backbone: Backbone, config: FeedforwardConfig) -> None:
        super().__init__(backbone)

    def step(self, state: State, x_TD: Tensor, lattice: Lattice, streams: Streams | None = None) -> State:
        return (self.call(x_TD, lattice),)
