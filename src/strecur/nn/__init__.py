"""Networks in pure PyTorch, without AnnData and files.

Shape suffixes used in this package: ``N`` spots, ``S`` sections, ``M`` context tokens of a section, ``T`` = S·M + N
tokens (all context tokens first), ``W`` windows, ``K`` slots of a window, ``H`` heads, ``E`` width of a head, ``D``
width, ``F`` features, ``C`` domains, ``G`` genes.
"""

from __future__ import annotations

from strecur.nn.backbone import Backbone, BackboneConfig
from strecur.nn.dense import DenseBackbone, DenseConfig
from strecur.nn.genar import CountHead, CountNetwork, GenARConfig
from strecur.nn.heads import DomainHead, ExpressionHead, LinearStart
from strecur.nn.hierarchical import HierarchicalBackbone, HierarchicalConfig
from strecur.nn.hist import HistBackbone, HistConfig
from strecur.nn.lattice import Lattice
from strecur.nn.network import Batch, Carry, SpotNetwork
from strecur.nn.patch import PatchBackbone, PatchConfig
from strecur.nn.recursion import (
    TRM,
    Feedforward,
    FeedforwardConfig,
    Recursion,
    RecursionConfig,
    Streams,
    TRMConfig,
    Universal,
    UniversalConfig,
)
from strecur.nn.windowed import WindowedBackbone, WindowedConfig

BACKBONES: tuple[type[BackboneConfig], ...] = (WindowedConfig, DenseConfig, HierarchicalConfig, HistConfig, PatchConfig)
"""Backbones that can be chosen by name."""

RECURSIONS: tuple[type[RecursionConfig], ...] = (TRMConfig, UniversalConfig, FeedforwardConfig)
"""Recursions that can be chosen by name."""

__all__ = [
    "BACKBONES",
    "RECURSIONS",
    "TRM",
    "Backbone",
    "BackboneConfig",
    "Batch",
    "Carry",
    "CountHead",
    "CountNetwork",
    "DenseBackbone",
    "DenseConfig",
    "DomainHead",
    "ExpressionHead",
    "Feedforward",
    "FeedforwardConfig",
    "GenARConfig",
    "HierarchicalBackbone",
    "HierarchicalConfig",
    "HistBackbone",
    "HistConfig",
    "Lattice",
    "LinearStart",
    "PatchBackbone",
    "PatchConfig",
    "Recursion",
    "RecursionConfig",
    "SpotNetwork",
    "Streams",
    "TRMConfig",
    "Universal",
    "UniversalConfig",
    "WindowedBackbone",
    "WindowedConfig",
]
