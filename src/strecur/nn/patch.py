"""Backbone of GenAR: every spot by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from strecur.nn.backbone import Backbone, BackboneConfig
from strecur.nn.genar.layers import initialise
from strecur.nn.layers import sinusoidal_positions

if TYPE_CHECKING:
    from strecur.nn.lattice import Lattice


@dataclass(frozen=True)
class PatchConfig(BackboneConfig):
    """Every spot by itself, from its features and its position in the section, as in GenAR :cite:p:`genar`.

    Attributes
    ----------
    width
        Channels of a token.
    dropout
        Dropout rate.
    """

    name: ClassVar[str] = "patch"
    sees_other_spots: ClassVar[bool] = False

    width: int = 96
    dropout: float = 0.1

    def build(self) -> PatchBackbone:
        return PatchBackbone(self)

    def tokens_seen(self, layout: str, n_spots: int) -> float:
        return 1


class PatchBackbone(Backbone):
    """Embed every spot by its features and its position; spots do not see each other, nor the context token."""

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.width = config.width
        self.encoder = ConditionEncoder(config.width, config.width, hidden=2 * config.width, dropout=config.dropout)

    def prepare(self, lattice: Lattice) -> None:
        lattice.section_N  # noqa: B018  kept by the lattice

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        n_context = len(h_TD) - len(lattice.row_N)
        return torch.cat([h_TD[:n_context], self.encoder(h_TD[n_context:], unit_positions(lattice))])


def unit_positions(lattice: Lattice) -> Tensor:
    """Row and column of every spot, from 0 to 1 within its section; (N, 2)."""
    site_N2 = torch.stack([lattice.row_N, lattice.col_N], dim=1).float()
    low_S2, high_S2 = (
        torch.stack([reduce(own_N2, dim=0) for own_N2 in lattice.split(site_N2)]) for reduce in (torch.amin, torch.amax)
    )
    span_S2 = (high_S2 - low_S2).clamp(min=1)
    return (site_N2 - low_S2[lattice.section_N]) / span_S2[lattice.section_N]


class ConditionEncoder(nn.Module):
    """Embed a spot from the features of its patch and its position in the section.

    Parameters
    ----------
    n_features
        Width of the patch features.
    condition_width
        Width of the embedding.
    hidden
        Width of the embedded features; positions get half of it.
    dropout
        Dropout rate, inside and on the output.
    """

    def __init__(self, n_features: int, condition_width: int, *, hidden: int = 512, dropout: float = 0.1) -> None:
        super().__init__()
        self.place_width = hidden // 2
        self.features = nn.Sequential(
            nn.LayerNorm(n_features),
            nn.Linear(n_features, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.LayerNorm(hidden),
        )
        self.place = nn.Sequential(
            nn.Linear(2, hidden // 4),
            nn.GELU(),
            nn.Linear(hidden // 4, self.place_width),
            nn.LayerNorm(self.place_width),
        )
        self.join = nn.Sequential(
            nn.Linear(hidden + self.place_width, condition_width), nn.LayerNorm(condition_width), nn.Dropout(dropout)
        )
        initialise(self, condition_width)

    def forward(self, features_NF: Tensor, xy_N2: Tensor) -> Tensor:
        """Embed spots; ``xy_N2`` is from 0 to 1 within each section. Returns (N, C)."""
        place_N = self.place(xy_N2) + sinusoidal_positions(xy_N2[:, 0], xy_N2[:, 1], self.place_width)
        return self.join(torch.cat([self.features(features_NF), place_N], dim=-1))
