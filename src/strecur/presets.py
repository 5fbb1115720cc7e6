"""Presets: published systems, with their network and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from strecur.engine import HistAugmentation
from strecur.nn import BackboneConfig, FeedforwardConfig, HistConfig, RecursionConfig
from strecur.options import Training

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Preset", "hist"]

CELLS_PER_PITCH = 1.5


@dataclass(frozen=True)
class Preset:
    """A system to pass as ``architecture``.

    Attributes
    ----------
    architecture
        How the backbone is iterated.
    backbone
        Backbone.
    training
        Options of :class:`strecur.Training` by name; those that the caller gives take precedence.
    """

    architecture: RecursionConfig
    backbone: BackboneConfig
    training: Mapping[str, Any]

    def __post_init__(self) -> None:
        Training(**self.training)  # raises if a name or value is wrong


def hist(backbone: HistConfig | None = None) -> Preset:
    """Return the system of HiST :cite:p:`hist`: its network, run once, its optimisation and its augmentation.

    Parameters
    ----------
    backbone
        Size of the network. If ``None`` (default), that of the paper.

    Returns
    -------
    The preset: AdamW at 1e-4 without warm-up or averaging of weights, a cosine schedule, and 100 epochs of sections
    that are mirrored, sheared and rotated on a lattice of 1.5 cells to the distance of neighbouring spots (appendix
    A.7 of the paper). Halting and the linear start are left out.

    Examples
    --------
    >>> import strecur as st
    >>> st.presets.hist().training["max_epochs"]
    100
    """
    backbone = backbone or HistConfig()
    if not isinstance(backbone, HistConfig):
        msg = f"backbone={backbone!r}: HiST has a backbone of its own; leave it out, or pass a HistConfig"
        raise ValueError(msg)
    cells_per_pitch = backbone.cells_per_pitch or CELLS_PER_PITCH
    backbone = replace(backbone, cells_per_pitch=cells_per_pitch)
    training = {
        "max_epochs": 100,
        "learning_rate": 1e-4,
        "warmup": 0,
        "schedule": "cosine",
        "weight_decay": 1e-4,
        "ema": 0.0,
        "augmentation": HistAugmentation(cells_per_pitch=cells_per_pitch),
    }
    return Preset(FeedforwardConfig(), backbone, training)
