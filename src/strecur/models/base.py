"""What models of all tasks share: a network with its configuration, and how it is run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from strecur._settings import settings
from strecur.engine.devices import make_fabric
from strecur.nn import CountNetwork
from strecur.options import Inference

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from strecur.models.network import Architecture
    from strecur.nn import BackboneConfig, SpotNetwork
    from strecur.options import Selection


class NetworkModel:
    """A model with a network; see the models of the two tasks."""

    architecture: Architecture
    backbone: BackboneConfig
    network: SpotNetwork
    halting: str | None
    halt_threshold: float | None
    blend: float
    selections: ClassVar[tuple[Selection, ...]]

    @property
    def has_two_states(self) -> bool:
        """Whether the recursion has an answer and a latent, which can start at random."""
        return self.architecture.has_two_states

    @property
    def predicts_counts(self) -> bool:
        """Whether the network generates counts."""
        return isinstance(self.network, CountNetwork)

    @property
    def networks(self) -> list[SpotNetwork]:
        """All networks, whose predictions are averaged."""
        return [self.network]

    @property
    def network_description(self) -> str:
        """Architecture, backbone and number of parameters."""
        n_parameters = sum(p.numel() for p in self.network.parameters())
        return f"{self.architecture.name} over a {self.backbone.name} backbone, {n_parameters:,} parameters"

    def _filled(self, inference: Inference | None) -> Inference:
        """Fill in the depth of the training."""
        inference = inference or Inference()
        return replace(inference, depth=inference.depth or self.architecture.n_steps)


def own_fabric() -> Fabric:
    """Return one device as the settings say."""
    return make_fabric(settings.accelerator, 1, settings.precision)
