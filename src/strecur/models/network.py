"""From names and configurations to networks, and back to JSON."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from strecur.nn import BACKBONES as BUILT_IN
from strecur.nn import (
    RECURSIONS,
    BackboneConfig,
    CountHead,
    CountNetwork,
    GenARConfig,
    LinearStart,
    RecursionConfig,
    SpotNetwork,
)
from strecur.nn.layers import shrink_branches

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

Architecture = RecursionConfig | GenARConfig
Backbones = dict[str, type[BackboneConfig]]

ARCHITECTURES: dict[str, type[Architecture]] = {config.name: config for config in RECURSIONS}
ARCHITECTURES[GenARConfig.name] = GenARConfig
BACKBONES: Backbones = {config.name: config for config in BUILT_IN}

PREFIX = "network."

# Values of models of counts that were saved before these options existed.
OF_EARLIER_COUNTS = {"softness": (0.01, 1.0), "decision": "most_probable", "linear_start": False}


def resolve_architecture(architecture: object) -> Architecture:
    """Turn the name of an architecture into its default configuration."""
    if isinstance(architecture, str) and architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture]()
    if isinstance(architecture, RecursionConfig | GenARConfig):
        return architecture
    raise ValueError(not_among("architecture", architecture, ARCHITECTURES))


def resolve_backbone(backbone: object, layout: str) -> BackboneConfig:
    """Turn the name of a backbone into its default configuration for a lattice."""
    if isinstance(backbone, str) and backbone in BACKBONES:
        return BACKBONES[backbone].for_layout(layout)
    if isinstance(backbone, BackboneConfig):
        return backbone
    raise ValueError(not_among("backbone", backbone, BACKBONES))


def known_to(backbone: BackboneConfig | None) -> Backbones:
    """Return the backbones there are, with the own one of a model among them."""
    return BACKBONES if backbone is None else BACKBONES | {backbone.name: type(backbone)}


def not_among(argument: str, value: object, known: Mapping[str, type]) -> str:
    """Say which names and configurations there are."""
    configs = [config.__name__ for config in known.values()]
    return f"{argument}={value!r}; choose one of {sorted(known)} or pass one of {configs}"


def to_json(config: Architecture | BackboneConfig) -> dict[str, Any]:
    """Describe a configuration by name and values."""
    assert is_dataclass(config)
    return {"name": config.name, **asdict(config)}


def architecture_from_json(values: Mapping[str, Any]) -> Architecture:
    """Undo :func:`to_json` for an architecture."""
    name, options = from_json(values)
    if name == GenARConfig.name:
        options = OF_EARLIER_COUNTS | options
    return ARCHITECTURES[name](**options)


def backbone_from_json(values: Mapping[str, Any], known: Backbones) -> BackboneConfig:
    """Undo :func:`to_json` for a backbone."""
    name, options = from_json(values)
    return known[name](**options)


def from_json(values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return name and values of a configuration, with lists as tuples."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return str(options.pop("name")), options


def build_network(
    n_features: int,
    architecture: Architecture,
    backbone: BackboneConfig,
    head: type,
    n_outputs: int,
    *,
    halting: str | None,
    seed: int,
    linear_start: bool = False,
) -> SpotNetwork:
    """Create a network with weights drawn from ``seed``; the global random state stays as it was.

    With ``linear_start`` the network has room for a linear model to add to (``SpotNetwork.start_from``).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = backbone.build()
        shrink_branches(body, architecture.body.branch_gain)
        recursion = architecture.body.build(body)
        if isinstance(architecture, GenARConfig):
            return CountNetwork(n_features, recursion, CountHead(backbone.width, architecture))
        start = LinearStart(n_features, n_outputs) if linear_start else None
        return SpotNetwork(n_features, recursion, head(backbone.width, n_outputs), halting=halting, linear_start=start)


def prefix_of(member: int) -> str:
    """Return how the names of the weights of a network begin in a model folder."""
    return f"network_{member}." if member else PREFIX


def network_weights(network: SpotNetwork, member: int = 0) -> dict[str, np.ndarray]:
    """Return the weights of a network of an ensemble by their names in a model folder."""
    return {f"{prefix_of(member)}{name}": value.cpu().numpy() for name, value in network.state_dict().items()}


def network_to_saved(
    network: SpotNetwork, architecture: Architecture, backbone: BackboneConfig, halting: str | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Split a network into JSON values and arrays."""
    values = {"architecture": to_json(architecture), "backbone": to_json(backbone), "halting": halting}
    return values, network_weights(network)


def network_from_saved(
    values: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    backbones: Backbones,
    n_features: int,
    head: type,
    n_outputs: int,
) -> dict[str, Any]:
    """Undo :func:`network_to_saved`; return its arguments by name."""
    architecture = architecture_from_json(values["architecture"])
    backbone = backbone_from_json(values["backbone"], backbones)
    halting = values["halting"]
    network = restore_network(arrays, architecture, backbone, halting, n_features, head, n_outputs)
    return {"network": network, "architecture": architecture, "backbone": backbone, "halting": halting}


def restore_network(
    arrays: Mapping[str, np.ndarray],
    architecture: Architecture,
    backbone: BackboneConfig,
    halting: str | None,
    n_features: int,
    head: type,
    n_outputs: int,
    *,
    member: int = 0,
) -> SpotNetwork:
    """Build a network of an ensemble, and give it its saved weights."""
    prefix = prefix_of(member)
    state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(prefix)}
    linear_start = "linear_start.weight_FO" in state
    network = build_network(
        n_features, architecture, backbone, head, n_outputs, halting=halting, seed=0, linear_start=linear_start
    )
    network.load_state_dict(state)
    if isinstance(network, CountNetwork):
        network.head.set_order(state["head.order_G"])  # raises unless it is a permutation
    return network
