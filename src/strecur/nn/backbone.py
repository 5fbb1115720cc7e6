"""Base classes of backbones: the module, and the configuration that describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from strecur.nn.layers import hidden_width

if TYPE_CHECKING:
    from typing import Self

    from strecur.nn.lattice import Lattice

# Partition of each axis into windows: their size and offset, in cells.
Partition = tuple[int, int]

# Slots of non-empty windows per spot; more than one, because windows at the border and between spots are partly empty.
SLOTS_PER_SPOT = {"hex": 1.15, "square": 1.15, "irregular": 2.6}


class Backbone(nn.Module):
    """Network over the tokens of a lattice, the context tokens of all sections first.

    Attributes
    ----------
    width
        Channels of a token.
    n_context
        Context tokens per section.
    absolute_positions
        Add a sinusoidal encoding of row and column to the embedding of a spot.
    """

    width: int
    n_context: int = 1
    absolute_positions: bool = False

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        raise NotImplementedError

    def prepare(self, lattice: Lattice) -> None:
        """Build the index tensors of a lattice that :meth:`forward` uses on a GPU, before they are moved to it.

        What is not built before is built there, which waits for the device. By default, nothing.
        """


@dataclass(frozen=True)
class BackboneConfig:
    """Size of a backbone, and everything that the rest of the package has to know about it.

    A new backbone is a frozen dataclass that derives from this one, with a :meth:`build`. The other methods have
    defaults for a network in which every spot sees its whole section and whose layers are those of TRM :cite:p:`trm`;
    override what differs.

    Attributes
    ----------
    name
        Name of the backbone in arguments and saved models.
    max_spots
        Largest section that can be computed in reasonable time; ``None``: no limit.
    sees_other_spots
        Whether the output of a spot depends on other spots.
    width
        Channels of a token.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import torch
    >>> from strecur.nn import Backbone, BackboneConfig
    >>> class Pooled(Backbone):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.width, self.linear = width, torch.nn.Linear(width, width)
    ...
    ...     def forward(self, h_TD, lattice):
    ...         return torch.tanh(self.linear(h_TD + h_TD.mean(dim=0)))
    >>> @dataclass(frozen=True)
    ... class PooledConfig(BackboneConfig):
    ...     name = "pooled"
    ...
    ...     def build(self):
    ...         return Pooled(self.width)
    """

    name: ClassVar[str] = "custom"
    max_spots: ClassVar[int | None] = None
    sees_other_spots: ClassVar[bool] = True

    width: int = 192

    def build(self) -> Backbone:
        """Create the module, with weights drawn from the global random state."""
        raise NotImplementedError

    @classmethod
    def for_layout(cls, layout: str) -> Self:
        """Return the default configuration for a ``"hex"``, ``"square"`` or ``"irregular"`` lattice."""
        return cls()

    def partitions(self) -> list[list[Partition]] | None:
        """Windows that a token sees in each layer, last layer first; ``None`` if it sees its whole section."""
        return None

    @property
    def period(self) -> int:
        """Shift in cells after which all windows are the same again; 0 for a backbone without windows."""
        layers = self.partitions()
        return 0 if layers is None else math.lcm(*(size for seen in layers for size, _ in seen))

    def receptive_field(self, n_calls: int) -> int:
        """Largest distance in cells, along one axis, from which a spot is influenced in ``n_calls`` calls.

        Global tokens are left out: they see the whole section.

        Raises
        ------
        ValueError
            If the receptive field is the whole section.
        """
        layers = self.partitions()
        if layers is None:
            msg = (
                f"the receptive field of {self} is the whole section; only windowed and hierarchical backbones "
                "can be computed in tiles"
            )
            raise ValueError(msg)
        distance = 0
        for cell in range(self.period):
            low = high = cell
            for seen in layers * n_calls:
                low, high = (
                    min((low + offset) // size * size - offset for size, offset in seen),
                    max((high + offset) // size * size - offset + size - 1 for size, offset in seen),
                )
            distance = max(distance, cell - low, high - cell)
        return distance

    @property
    def n_context(self) -> int:
        """Context tokens per section."""
        return 1

    @property
    def n_weights(self) -> int:
        """Weights of the module."""
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return sum(weight.numel() for weight in self.build().parameters())

    @property
    def weights_per_layer(self) -> int:
        """Weights that every token of a layer is multiplied by."""
        return 4 * self.width**2 + 3 * self.width * hidden_width(self.width)

    @property
    def n_layers_per_call(self) -> int:
        """Layers applied in one call, on all levels of the lattice; by default estimated from the weights."""
        return math.ceil(self.n_weights / self.weights_per_layer)

    @property
    def layer_passes(self) -> float:
        """Layers applied to a spot in one call; those on a coarser lattice count by its share of tokens."""
        return self.n_layers_per_call

    def tokens_seen(self, layout: str, n_spots: int) -> float:
        """Tokens that a spot attends to in one layer, in a section of ``n_spots`` spots."""
        return n_spots

    def values_kept(self, layout: str) -> float:
        """Values per token that one layer keeps for the gradient."""
        return 4 * hidden_width(self.width) + 9 * self.width

    def values_passing(self, layout: str) -> float:
        """Values per token in the widest part of a layer, without gradient."""
        return 3 * hidden_width(self.width)
