"""The system of HiST (paper 001) under the verbs of this package: its network, optimisation and augmentation."""

from __future__ import annotations

from dataclasses import replace

from strecur.engine import HistAugmentation
from strecur.nn import FeedforwardConfig, HistConfig

CELLS_PER_PITCH = 1.5

# Paper, appendix A.7: no warm-up, no average of the weights, the cosine ends at zero.
OPTIMISATION = {"learning_rate": 1e-4, "weight_decay": 1e-4, "schedule": "cosine", "warmup": 0, "ema": 0.0}
EPOCHS = 100


def is_hist(architecture: object) -> bool:
    """Whether the name of the whole system is given."""
    return isinstance(architecture, str) and architecture == "hist"


def hist_network(backbone: object) -> tuple[FeedforwardConfig, HistConfig]:
    """Configuration of the network: run once, on a lattice as fine as that of its augmentation."""
    if backbone in ("windowed", "hist"):
        backbone = HistConfig()
    if not isinstance(backbone, HistConfig):
        msg = f"architecture='hist' has a backbone of its own; leave out backbone={backbone!r}, or pass a HistConfig"
        raise ValueError(msg)
    return FeedforwardConfig(), replace(backbone, cells_per_pitch=backbone.cells_per_pitch or CELLS_PER_PITCH)


def hist_augmentation(backbone: HistConfig) -> HistAugmentation:
    """Deformations onto the lattice of the network."""
    return HistAugmentation(cells_per_pitch=backbone.cells_per_pitch)
