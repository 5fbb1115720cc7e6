from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.backbone import Backbone, BackboneConfig
from strecur.nn.layers import BranchEnd, SwiGLU, in_chunks, linear, rms_norm

if TYPE_CHECKING:
    from strecur.nn.lattice import Lattice


@dataclass(frozen=True)
class DenseConfig(BackboneConfig):
    """Attention between all spots of a section, as in the spatial TRM :cite:p:`spatialtrm`.

    Attributes
    ----------
    width
        Channels of a token.
    n_layers
        Transformer layers.
    n_heads
        Attention heads.
    """

    name: ClassVar[str] = "dense"
    max_spots: ClassVar[int | None] = 20_000

    width: int = 192
    n_layers: int = 2
    n_heads: int = 3

    def build(self) -> DenseBackbone:
        return DenseBackbone(self)

    @property
    def n_weights(self) -> int:
        return self.n_layers * self.weights_per_layer

    @property
    def n_layers_per_call(self) -> int:
        return self.n_layers


class DenseLayer(nn.Module):
    """Post-norm transformer layer over packed sections, without padding and without attention across sections."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.qkv = linear(width, 3 * width)
        self.out = BranchEnd(width, width)
        self.mlp = SwiGLU(width)

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        h_TD = rms_norm(h_TD + self.out(self.attend(self.qkv(h_TD), lattice)))
        return in_chunks(self.refine, h_TD)

    def refine(self, h_TD: Tensor) -> Tensor:
        """Apply the second half of the layer, in which tokens do not see each other."""
        return rms_norm(h_TD + self.mlp(h_TD))

    def attend(self, qkv_T: Tensor, lattice: Lattice) -> Tensor:
        n_tokens = len(qkv_T) - len(lattice.row_N)
        context_SM = qkv_T[:n_tokens].unflatten(0, (lattice.n_sections, -1))
        spots_N = qkv_T[n_tokens:]
        if len(set(lattice.length_S)) == 1:
            groups = [(context_SM, spots_N.unflatten(0, (lattice.n_sections, -1)))]
        else:
            groups = [(m[None], n[None]) for m, n in zip(context_SM, lattice.split(spots_N), strict=True)]
        attended = [self.attend_alike(torch.cat(group, dim=1)) for group in groups]
        n_context = context_SM.shape[1]
        parts = [h_SL[:, :n_context] for h_SL in attended] + [h_SL[:, n_context:] for h_SL in attended]
        return torch.cat([part.flatten(0, 1) for part in parts])

    def attend_alike(self, qkv_SL: Tensor) -> Tensor:
        """Attend within each of several sections of equal length, in one call: (S, L, 3D) to (S, L, D)."""
        qkv_3SHLE = qkv_SL.unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(*qkv_3SHLE).transpose(1, 2).flatten(2)


class DenseBackbone(Backbone):
    """Full attention within each section; spots are told apart by an encoding of their position."""

    absolute_positions = True

    def __init__(self, config: DenseConfig) -> None:
        super().__init__()
        self.width = config.width
        self.layers = nn.ModuleList(DenseLayer(config.width, config.n_heads) for _ in range(config.n_layers))

    def forward(self, h_TD: Tensor, lattice: Lattice) -> Tensor:
        for layer in self.layers:
            h_TD = layer(h_TD, lattice)
        return h_TD
