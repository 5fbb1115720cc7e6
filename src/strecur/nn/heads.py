"""Heads map the answer y to the output and own the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.layers import linear

LABEL_SMOOTHING = 0.1


class Head(nn.Module):
    """Base class of heads.

    Attributes
    ----------
    bias
        Whether the maps to the embedding and to the output have a bias, as in the spatial TRM for expression.
    n_outputs
        Columns of the output.
    linear
        Map from the answer to the output.
    """

    bias: bool
    n_outputs: int
    linear: nn.Linear

    def labelled(self, target: Tensor) -> Tensor:
        """Which spots have a target, (N,)."""
        raise NotImplementedError

    def spot_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss per spot, zero where unlabelled, (N,)."""
        raise NotImplementedError

    def predict(self, output: Tensor) -> Tensor:
        """Turn the output into a prediction on the scale of the target."""
        return output


class DomainHead(Head):
    """Logits of the domains; spots with a target of -1 are unlabelled."""

    bias = False

    def __init__(self, width: int, n_domains: int, *, label_smoothing: float = LABEL_SMOOTHING) -> None:
        super().__init__()
        self.n_outputs = n_domains
        self.linear = linear(width, n_domains, bias=self.bias)
        self.label_smoothing = label_smoothing

    def forward(self, y_ND: Tensor) -> Tensor:
        return self.linear(y_ND).float()

    def labelled(self, target_N: Tensor) -> Tensor:
        return target_N >= 0

    def spot_loss(self, logits_NC: Tensor, target_N: Tensor) -> Tensor:
        """Cross-entropy per spot, zero where unlabelled."""
        return F.cross_entropy(
            logits_NC, target_N, ignore_index=-1, reduction="none", label_smoothing=self.label_smoothing
        )

    def predict(self, logits_NC: Tensor) -> Tensor:
        return logits_NC.softmax(dim=-1)


class LinearStart(nn.Module):
    """Linear model of the features that is not trained further."""

    weight_FO: Tensor
    bias_O: Tensor

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight_FO", torch.zeros(n_features, n_outputs))
        self.register_buffer("bias_O", torch.zeros(n_outputs))

    def forward(self, features_NF: Tensor) -> Tensor:
        return torch.addmm(self.bias_O, features_NF, self.weight_FO).float()


class ExpressionHead(Head):
    """Expression of every gene, on the scale of the target; spots with a target of NaN are unlabelled.

    A linear map predicts each gene in units of its standard deviation around its mean over the training spots, so that
    rare genes are as easy to learn as abundant ones. The loss is the squared error on the scale of the target.
    """

    mean_G: Tensor
    sd_G: Tensor
    bias = True

    def __init__(self, width: int, n_genes: int) -> None:
        super().__init__()
        self.n_outputs = n_genes
        self.linear = linear(width, n_genes, bias=self.bias)
        self.register_buffer("mean_G", torch.zeros(n_genes))
        self.register_buffer("sd_G", torch.ones(n_genes))

    def set_scale(self, target_NG: Tensor) -> None:
        """Fit mean and standard deviation (zero for a constant gene) on the labelled training spots."""
        known_NG = target_NG[self.labelled(target_NG)]
        self.mean_G.copy_(known_NG.mean(dim=0))
        self.sd_G.copy_(known_NG.std(dim=0, correction=0))

    def forward(self, y_ND: Tensor) -> Tensor:
        return torch.addcmul(self.mean_G, self.linear(y_ND).float(), self.sd_G)

    def labelled(self, target_NG: Tensor) -> Tensor:
        return ~target_NG.isnan().any(dim=1)

    def spot_loss(self, output_NG: Tensor, target_NG: Tensor) -> Tensor:
        """Mean squared error per spot, zero where unlabelled."""
        # an unlabelled spot is compared with itself: NaN times a gradient of zero would be NaN
        target_NG = torch.where(self.labelled(target_NG)[:, None], target_NG, output_NG.detach())
        return F.mse_loss(output_NG, target_NG, reduction="none").mean(dim=1)
