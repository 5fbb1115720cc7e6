"""Presets: published systems, with their network and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from strecur.engine import Augmentation, HistAugmentation
from strecur.nn import BackboneConfig, DenseConfig, FeedforwardConfig, HistConfig, RecursionConfig, TRMConfig
from strecur.options import Training

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Preset", "hist", "paper_domains"]


def __dir__() -> list[str]:
    return __all__


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
    halting
        Halting recipe, unless the caller gives one.
    """

    architecture: RecursionConfig
    backbone: BackboneConfig
    training: Mapping[str, Any]
    halting: str | None = None

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


def paper_domains() -> Preset:
    """Return the network for domains of the spatial TRM :cite:p:`spatialtrm` and its optimisation.

    Two layers of width 192 attend over whole sections, with six updates of the latent, three blocks per outer step and
    eight outer steps: 896,065 parameters for 50 components and seven domains. AdamW at 1e-4 with a warm-up of 200
    steps, weight decay 0.1, and a moving average of 0.999, which trainings of fewer than 10,000 optimizer steps shorten
    to a tenth of their length. As in TRM :cite:p:`trm`, sections stand at different outer steps (eight slots). The
    features of the paper are single spots that are not standardised by section:
    ``features={"neighbours": (), "standardise": False}``.

    Returns
    -------
    The preset. The number of epochs, which the paper does not give, is the default of :func:`strecur.tl.train_domains`.

    Examples
    --------
    >>> import strecur as st
    >>> st.presets.paper_domains().architecture.n_steps
    8
    """
    training = {
        "slots": 8,
        "learning_rate": 1e-4,
        "warmup": 200,
        "weight_decay": 0.1,
        "ema": 0.999,
        "augmentation": Augmentation(noise=0.1, drop=0.1, hide=0.0),
    }
    architecture = TRMConfig(n_latent=6, n_deep=3, n_steps=8, branch_gain=1.0)
    return Preset(architecture, DenseConfig(), training, halting="loss_proxy")
