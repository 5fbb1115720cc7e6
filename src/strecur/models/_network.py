"""From configuration to network and back to JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import nn

from strecur.nn import (
    TRM,
    CountHead,
    CountNetwork,
    DenseBackbone,
    DenseConfig,
    Feedforward,
    FeedforwardConfig,
    GenARConfig,
    HierarchicalBackbone,
    HierarchicalConfig,
    HistBackbone,
    HistConfig,
    LinearStart,
    PatchBackbone,
    PatchConfig,
    SpotNetwork,
    TRMConfig,
    Universal,
    UniversalConfig,
    WindowedBackbone,
    WindowedConfig,
)
from strecur.nn.layers import shrink_branches

if TYPE_CHECKING:
    import numpy as np

Architecture = TRMConfig | UniversalConfig | FeedforwardConfig | GenARConfig
Backbone = WindowedConfig | DenseConfig | HierarchicalConfig | HistConfig | PatchConfig

ARCHITECTURES = {
    "trm": (TRMConfig, TRM),
    "universal": (UniversalConfig, Universal),
    "feedforward": (FeedforwardConfig, Feedforward),
    "genar": (GenARConfig, CountNetwork),
}
BACKBONES = {
    "windowed": (WindowedConfig, WindowedBackbone),
    "dense": (DenseConfig, DenseBackbone),
    "hierarchical": (HierarchicalConfig, HierarchicalBackbone),
    "hist": (HistConfig, HistBackbone),
    "patch": (PatchConfig, PatchBackbone),
}

PREFIX = "network."

# What models of counts that do not say so were made with.
OF_EARLIER_COUNTS = {"softness": (0.01, 1.0), "decision": "most_probable", "linear_start": False}

# At 1.5 cells per pitch a window of 12 cells holds as many spots as one of 8 on a regular lattice.
IRREGULAR_WINDOW = 12


def resolve_architecture(architecture: str | Architecture) -> Architecture:
    """Turn a name into its default configuration."""
    return _resolve(architecture, ARCHITECTURES, "architecture")


def resolve_backbone(backbone: str | Backbone, layout: str) -> Backbone:
    """Turn a name into the default configuration for a lattice."""
    if backbone == "windowed" and layout == "irregular":
        return WindowedConfig(window=IRREGULAR_WINDOW)
    return _resolve(backbone, BACKBONES, "backbone")


def _resolve(value: object, known: dict[str, tuple[type, type]], what: str) -> object:
    if isinstance(value, str) and value in known:
        return known[value][0]()
    if type(value) in {config for config, _ in known.values()}:
        return value
    configs = [config.__name__ for config, _ in known.values()]
    msg = f"{what}={value!r}; choose one of {sorted(known)} or pass one of {configs}"
    raise ValueError(msg)


def to_json(config: Architecture | Backbone) -> dict[str, object]:
    """Describe a configuration by name and values."""
    (name,) = [n for n, (c, _) in (ARCHITECTURES | BACKBONES).items() if c is type(config)]
    return {"name": name, **asdict(config)}


def from_json(values: dict[str, object]) -> Architecture | Backbone:
    """Undo :func:`to_json`."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if values["name"] == "genar":
        values = OF_EARLIER_COUNTS | values
    return (ARCHITECTURES | BACKBONES)[values.pop("name")][0](**values)


def build_network(
    n_features: int,
    architecture: Architecture,
    backbone: Backbone,
    head: type,
    n_outputs: int,
    *,
    halting: str | None,
    seed: int,
    linear_start: bool = False,
) -> SpotNetwork:
    """Create a network with weights drawn from ``seed``; the global generator is left as it was.

    With ``linear_start`` the network has room for a linear model to add to (``SpotNetwork.start_from``).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = module_of(backbone, BACKBONES)(backbone)
        iterated = recursion_of(architecture)
        shrink_branches(body, iterated.branch_gain)
        recursion = module_of(iterated, ARCHITECTURES)(body, iterated)
        if isinstance(architecture, GenARConfig):
            return CountNetwork(n_features, recursion, CountHead(body.width, architecture))
        start = LinearStart(n_features, n_outputs) if linear_start else None
        return SpotNetwork(n_features, recursion, head(body.width, n_outputs), halting=halting, linear_start=start)


def recursion_of(architecture: Architecture) -> TRMConfig | UniversalConfig | FeedforwardConfig:
    """Return how the backbone is iterated; GenAR by itself runs it once."""
    if isinstance(architecture, GenARConfig):
        return architecture.recursion or FeedforwardConfig()
    return architecture


def module_of(config: Architecture | Backbone, known: dict[str, tuple[type, type]]) -> type[nn.Module]:
    """Find the module a configuration belongs to."""
    return dict(known.values())[type(config)]


def network_to_saved(
    network: SpotNetwork, architecture: Architecture, backbone: Backbone, halting: str | None
) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Split a network into JSON values and arrays."""
    values = {"architecture": to_json(architecture), "backbone": to_json(backbone), "halting": halting}
    return values, {f"{PREFIX}{name}": value.cpu().numpy() for name, value in network.state_dict().items()}


def network_from_saved(
    values: dict[str, object], arrays: dict[str, np.ndarray], n_features: int, head: type, n_outputs: int
) -> dict[str, object]:
    """Undo :func:`network_to_saved`; return its arguments by name."""
    architecture, backbone = from_json(values["architecture"]), from_json(values["backbone"])
    state = {k.removeprefix(PREFIX): torch.from_numpy(v) for k, v in arrays.items() if k.startswith(PREFIX)}
    options = {"halting": values["halting"], "linear_start": "linear_start.weight_FO" in state}
    network = build_network(n_features, architecture, backbone, head, n_outputs, seed=0, **options)
    network.load_state_dict(state)
    if isinstance(network, CountNetwork):
        network.head.set_order(state["head.order_G"])  # refuses what is none
    return {"network": network, "architecture": architecture, "backbone": backbone, "halting": values["halting"]}
