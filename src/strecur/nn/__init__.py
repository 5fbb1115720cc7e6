"""Networks in pure PyTorch: they know neither AnnData nor files.

Shape suffixes used in this package: ``N`` spots, ``S`` sections, ``M`` context tokens of a section, ``T`` = S·M + N
tokens (all context tokens first), ``W`` windows, ``K`` slots of a window, ``H`` heads, ``E`` width of a head, ``D``
width, ``F`` features, ``C`` domains, ``G`` genes.
"""

from __future__ import annotations

from strecur.nn.counts import CountHead, CountNetwork, PatchBackbone, PatchConfig
from strecur.nn.dense import DenseBackbone, DenseConfig
from strecur.nn.genar_config import GenARConfig
from strecur.nn.heads import DomainHead, ExpressionHead, LinearStart
from strecur.nn.hierarchical import HierarchicalBackbone, HierarchicalConfig, HistBackbone, HistConfig
from strecur.nn.lattice import Lattice
from strecur.nn.network import Batch, Carry, SpotNetwork
from strecur.nn.recursion import TRM, Feedforward, FeedforwardConfig, Streams, TRMConfig, Universal, UniversalConfig
from strecur.nn.windowed import WindowedBackbone, WindowedConfig

__all__ = [
    "TRM",
    "TRMConfig",
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
    "SpotNetwork",
    "Streams",
    "Universal",
    "UniversalConfig",
    "WindowedBackbone",
    "WindowedConfig",
]
