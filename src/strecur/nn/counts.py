"""From the features of a section to the counts of its spots: GenAR behind a network over spots.

``C`` is the width of a condition here, as in :mod:`strecur.nn.genar`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.genar import GenAR, Generated
from strecur.nn.genar_layers import ConditionEncoder, random_state_from
from strecur.nn.layers import linear
from strecur.nn.network import SpotNetwork

if TYPE_CHECKING:
    from strecur.nn.genar_config import GenARConfig
    from strecur.nn.lattice import Lattice
    from strecur.nn.network import Batch, Carry
    from strecur.nn.recursion import State


@dataclass(frozen=True)
class PatchConfig:
    """Every spot by itself, from its features and its place in the section, as in GenAR."""

    width: int = 96
    dropout: float = 0.1


class PatchBackbone(nn.Module):
    """Embed every spot by its features and its place; spots do not see each other."""

    n_context = 1  # not read, but every network over spots has one
    absolute_positions = False

    def __init__(self, config: PatchConfig) -> None:
        super().__init__()
        self.width = config.width
        self.encoder = ConditionEncoder(config.width, config.width, hidden=2 * config.width, dropout=config.dropout)

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


class CountHead(nn.Module):
    """Map the answer of a spot to a condition of unit variance, from which GenAR generates its counts.

    Conditions, not counts, are the output, so that views of a section are averaged before anything is decided. Genes
    go in and out in the order of the panel; GenAR has an order of its own.
    """

    bias = True

    def __init__(self, width: int, config: GenARConfig) -> None:
        super().__init__()
        self.condition = linear(width, config.condition_width, bias=self.bias)
        self.genar = GenAR(config)
        self.register_buffer("order_G", torch.arange(config.n_genes))

    def fit(self, order_G: Tensor, counts_NG: Tensor) -> None:
        """Set the order of the genes and, if wanted, where the logits begin, from the counts of training spots."""
        self.set_order(order_G)
        if self.genar.config.linear_start:
            self.genar.set_shares(counts_NG[:, self.order_G])

    def set_order(self, order_G: Tensor) -> None:
        """Set which gene of the panel stands at each place of GenAR."""
        if not torch.equal(order_G.sort().values, torch.arange(len(self.order_G))):
            msg = f"an order of {len(order_G)} genes does not fit a panel of {len(self.order_G)}; fit it on that panel"
            raise ValueError(msg)
        self.order_G.copy_(order_G)

    def forward(self, y_ND: Tensor) -> Tensor:
        return self.normalise(self.condition(y_ND).float())

    def normalise(self, condition_NC: Tensor) -> Tensor:
        return F.layer_norm(condition_NC, condition_NC.shape[-1:])

    def labelled(self, counts_NG: Tensor) -> Tensor:
        return ~counts_NG.isnan().any(dim=1)

    def loss(self, condition_NC: Tensor, counts_NG: Tensor) -> Tensor:
        """Loss of GenAR; dropout is drawn from the global random state."""
        return self.genar.loss(condition_NC, counts_NG[:, self.order_G], torch.default_generator).total

    def linear_loss(self, condition_NC: Tensor, counts_NG: Tensor) -> Tensor:
        """Loss of the linear model inside GenAR, 0 without one."""
        if not self.genar.config.linear_start:
            return condition_NC.new_zeros(())
        return self.genar.linear_loss(condition_NC, counts_NG[:, self.order_G])

    def predict(self, condition_NC: Tensor) -> Tensor:
        return condition_NC

    def decode(self, condition_NC: Tensor) -> Generated:
        """Counts that are predicted."""
        return self.in_panel_order(self.genar.decode(self.normalise(condition_NC)))

    def sample(self, condition_NC: Tensor, generator: torch.Generator, *, temperature: float = 1.0) -> Generated:
        """Counts drawn at random."""
        drawn = self.genar.sample(self.normalise(condition_NC), generator, temperature=temperature)
        return self.in_panel_order(drawn)

    def in_panel_order(self, generated: Generated) -> Generated:
        place_G = self.order_G.argsort()
        return Generated(generated.counts_NG[:, place_G], generated.log2_NG[:, place_G])


class CountNetwork(SpotNetwork):
    """Network over the spots of a section whose answer conditions the generation of counts.

    Parameters
    ----------
    n_features
        Width of the representation.
    recursion
        A recursion of ``strecur.nn.recursion`` around a backbone.
    head
        Generates counts from the answer of a spot.
    """

    def __init__(self, n_features: int, recursion: nn.Module, head: CountHead) -> None:
        super().__init__(n_features, recursion, head, halting=None)

    def answer(self, state: State, x_TD: Tensor) -> Tensor:
        """The answer refines the embedding of a spot: before training, answers differ too little to be read."""
        return x_TD + state[0]

    def training_start(self, batch: Batch, n_steps: int, generator: torch.Generator) -> Carry:
        """Carry before the first supervision step, with dropout, which a validation in between switched off."""
        self.train()
        return super().training_start(batch, n_steps, generator)

    def training_step(self, batch: Batch, carry: Carry, generator: torch.Generator) -> tuple[Tensor, Carry]:
        """One supervision step on some spots of every section; all that is random is drawn from ``generator``."""
        with random_state_from(generator):
            return super().training_step(batch, carry, generator)

    def mean_loss(self, output: Tensor, train_N: Tensor, batch: Batch) -> Tensor:
        """Mean over some of the chosen spots of each section, averaged over the sections; a linear model sees all."""
        n_spots, losses = self.head.genar.config.spots_per_step, []
        for rows_N in batch.lattice.split(torch.arange(len(train_N), device=train_N.device)):
            rows_N = rows_N[train_N[rows_N]]
            some_N = rows_N[torch.randperm(len(rows_N))[:n_spots].to(rows_N.device)]
            if len(rows_N):
                loss = self.head.loss(output[some_N], batch.target_N[some_N])
                losses.append(loss + self.head.linear_loss(output[rows_N], batch.target_N[rows_N]))
        return torch.stack(losses).mean() if losses else 0 * output.sum()
