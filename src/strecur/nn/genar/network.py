from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from strecur.nn.genar.layers import random_state_from
from strecur.nn.genar.model import GenAR, Generated
from strecur.nn.heads import Head
from strecur.nn.layers import linear
from strecur.nn.network import SpotNetwork

if TYPE_CHECKING:
    from strecur.nn.genar.config import GenARConfig
    from strecur.nn.network import Batch, Carry
    from strecur.nn.recursion import Recursion, State


class CountHead(Head):
    """Map the answer of a spot to a condition of unit variance, from which GenAR generates its counts.

    The output is the condition, not counts, so that test-time augmentation averages conditions. Inputs and outputs have
    the genes in the order of the panel; GenAR has its own order.
    """

    order_G: Tensor
    bias = True

    def __init__(self, width: int, config: GenARConfig) -> None:
        super().__init__()
        self.condition = linear(width, config.condition_width, bias=self.bias)
        self.genar = GenAR(config)
        self.register_buffer("order_G", torch.arange(config.n_genes))

    def fit(self, order_G: Tensor, counts_NG: Tensor) -> None:
        """Set the order of the genes, and the frequencies of the linear model from the counts of the training spots."""
        self.set_order(order_G)
        if self.genar.config.linear_start:
            self.genar.set_shares(counts_NG[:, self.order_G])

    def set_order(self, order_G: Tensor) -> None:
        """Set which gene of the panel is at each position of GenAR."""
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
        """Loss of GenAR; its seed is drawn from the global random state."""
        return self.genar.loss(condition_NC, counts_NG[:, self.order_G], torch.default_generator).total

    def linear_loss(self, condition_NC: Tensor, counts_NG: Tensor) -> Tensor:
        """Loss of the linear model in GenAR; 0 without one."""
        if not self.genar.config.linear_start:
            return condition_NC.new_zeros(())
        return self.genar.linear_loss(condition_NC, counts_NG[:, self.order_G])

    def decode(self, condition_NC: Tensor) -> Generated:
        """Predict counts."""
        return self.in_panel_order(self.genar.decode(self.normalise(condition_NC)))

    def sample(self, condition_NC: Tensor, generator: torch.Generator, *, temperature: float = 1.0) -> Generated:
        """Draw counts at random."""
        drawn = self.genar.sample(self.normalise(condition_NC), generator, temperature=temperature)
        return self.in_panel_order(drawn)

    def in_panel_order(self, generated: Generated) -> Generated:
        """Reorder genes."""
        place_G = self.order_G.argsort()
        return Generated(generated.counts_NG[:, place_G], generated.log2_NG[:, place_G])


class CountNetwork(SpotNetwork):
    """Network over the spots of a section whose answer conditions the generation of counts.

    Parameters
    ----------
    n_features
        Width of the representation.
    recursion
        Recursion around a backbone.
    head
        Generates counts from the answer of a spot.
    """

    head: CountHead

    def __init__(self, n_features: int, recursion: Recursion, head: CountHead) -> None:
        super().__init__(n_features, recursion, head, halting=None)

    def answer(self, state: State, x_TD: Tensor) -> Tensor:
        """Add the embedding of the spot: before training, answers alone hardly differ between spots."""
        return x_TD + state[0]

    def training_start(self, batch: Batch, n_steps: int, generator: torch.Generator) -> Carry:
        """Return the carry before the first supervision step, with dropout, which a validation switches off."""
        self.train()
        return super().training_start(batch, n_steps, generator)

    def training_step(self, batch: Batch, carry: Carry, generator: torch.Generator) -> tuple[Tensor, Carry]:
        """Run one supervision step on some spots of every section; all random numbers come from ``generator``."""
        with random_state_from(generator):
            return super().training_step(batch, carry, generator)

    def mean_loss(self, output: Tensor, train_N: Tensor, batch: Batch) -> Tensor:
        """Mean over random ones of the chosen spots of each section, averaged over the sections.

        The linear model is trained on all of them.
        """
        assert batch.target_N is not None
        n_spots, losses = self.head.genar.config.spots_per_step, []
        for section_N in batch.lattice.split(torch.arange(len(train_N), device=train_N.device)):
            rows_N = section_N[train_N[section_N]]
            some_N = rows_N[torch.randperm(len(rows_N), device=rows_N.device)[:n_spots]]
            if len(rows_N):
                loss = self.head.loss(output[some_N], batch.target_N[some_N])
                losses.append(loss + self.head.linear_loss(output[rows_N], batch.target_N[rows_N]))
        return torch.stack(losses).mean() if losses else 0 * output.sum()
