"""Targets and losses of GenAR: counts of gene groups as distributions over count tokens 0 … V-1."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

ScaleDesign = Literal["few", "paper", "three", "single"]

# SLOPE · count + OFFSET is the variance of the Gaussian likelihood, and in the released code the standard deviation of
# the Gaussian target.
SLOPE, OFFSET = 0.01, 1.0

# Standard deviation of the kernel in log2(count + 1), and the frequency of a token that no training spot has.
SMOOTHING, SMALLEST_SHARE = 0.3, 1e-6


def derive_scales(n_genes: int, design: ScaleDesign = "paper") -> tuple[int, ...]:
    """Choose numbers of gene groups: 1, 4, 8, a fifth and a half of the genes, all genes.

    ``"few"`` are 1, 4, a tenth, and all genes, which halves the length of sequences; ``"three"`` are 1, a tenth and
    all; ``"single"`` are all genes alone. Numbers above half of the genes or close to the next number are left out.
    """
    candidates = {
        "paper": (1, 4, 8, n_genes // 5, n_genes // 2),
        "few": (1, 4, n_genes // 10),
        "three": (1, n_genes // 10),
        "single": (),
    }
    coarse = {n for n in candidates[design] if 1 <= n <= n_genes // 2}
    return (*(n for n, finer in pairwise([*sorted(coarse), n_genes]) if finer >= 1.5 * n), n_genes)


def group_of(n_members: int, n_groups: int) -> Tensor:
    """Group of each of consecutive members, ⌊member · groups / members⌋.

    Every member is in one group and every group has at least one member, also if the numbers do not divide; sizes then
    differ by one. (In the adaptive pooling of PyTorch, neighbouring groups overlap.)
    """
    return torch.arange(n_members) * n_groups // n_members


def pool(values_NG: Tensor, n_groups: int) -> Tensor:
    """Mean over each of ``n_groups`` groups of consecutive genes, (N, P)."""
    group_G = group_of(values_NG.shape[1], n_groups).to(values_NG.device)
    total_NP = values_NG.new_zeros(len(values_NG), n_groups).index_add(1, group_G, values_NG)
    return total_NP / torch.bincount(group_G)


def clip_counts(counts_NG: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return the counts as float32, clipped to the vocabulary, and how many were clipped.

    The loss is computed from the clipped counts; scores should use the measured counts.
    """
    return counts_NG.float().clamp(max=vocabulary - 1), (counts_NG > vocabulary - 1).sum()


def nearest_token(values_NP: Tensor) -> Tensor:
    """Round to a token, halves down."""
    return (values_NP - 0.5).ceil().long()


def soft_labels(values_NP: Tensor, vocabulary: int) -> Tensor:
    """Distribute each value between the tokens below and above it, so that their mean is the value; (N, P, V)."""
    below_NP, above_NP = values_NP.floor(), values_NP.ceil()
    weight_NP = values_NP - below_NP
    labels_NPV = values_NP.new_zeros(*values_NP.shape, vocabulary)
    # added, not set: for a whole number, below and above are the same token
    labels_NPV.scatter_add_(-1, below_NP.long()[..., None], 1 - weight_NP[..., None])
    return labels_NPV.scatter_add_(-1, above_NP.long()[..., None], weight_NP[..., None])


def log_shares(counts_NG: Tensor, n_groups: int, vocabulary: int) -> Tensor:
    """Log frequency of each token in each group over the spots, smoothed; (P, V).

    The kernel acts on log2(count + 1): it keeps 0 and 1 apart and pools rare large counts.
    """
    values_PN = pool(clip_counts(counts_NG, vocabulary)[0], n_groups).T
    below_PN, above_PN = values_PN.floor(), values_PN.ceil()
    weight_PN = values_PN - below_PN
    share_PV = values_PN.new_zeros(n_groups, vocabulary)
    share_PV.scatter_add_(1, below_PN.long(), 1 - weight_PN).scatter_add_(1, above_PN.long(), weight_PN)
    log2_V = log2_of_tokens(share_PV)
    kernel_VV = torch.exp(-(((log2_V[:, None] - log2_V) / SMOOTHING) ** 2) / 2)
    share_PV = share_PV @ (kernel_VV / kernel_VV.sum(dim=1, keepdim=True))
    return (share_PV / share_PV.sum(dim=1, keepdim=True) + SMALLEST_SHARE).log()


def gaussian_logits(mean_NG: Tensor, variance_NG: Tensor, vocabulary: int) -> Tensor:
    """Log density of a Gaussian at every token, up to a constant; (N, G, V)."""
    token_V = torch.arange(vocabulary, device=mean_NG.device)
    return -((token_V - mean_NG[..., None]) ** 2) / (2 * variance_NG[..., None])


def gaussian_labels(counts_NG: Tensor, vocabulary: int, softness: tuple[float, float] = (SLOPE, OFFSET)) -> Tensor:
    """Gaussian around the true count, discretised to the tokens; (N, G, V).

    Its standard deviation is ``softness[0]`` times the count plus ``softness[1]``.
    """
    deviation_NG = softness[0] * counts_NG + softness[1]
    return gaussian_logits(counts_NG, deviation_NG**2, vocabulary).softmax(dim=-1)


def expected_count(logits_NGV: Tensor) -> Tensor:
    """Mean token of the predicted distribution (the count head of GenAR); (N, G)."""
    token_V = torch.arange(logits_NGV.shape[-1], dtype=logits_NGV.dtype, device=logits_NGV.device)
    return logits_NGV.softmax(dim=-1) @ token_V


def expected_log2(logits_NGV: Tensor) -> Tensor:
    """Mean of log2(count + 1) over the predicted distribution, (N, G)."""
    return logits_NGV.softmax(dim=-1) @ log2_of_tokens(logits_NGV)


def log2_of_tokens(values_V: Tensor) -> Tensor:
    """log2(count + 1) of every token, with the vocabulary, dtype and device of ``values_V``; (V,)."""
    return torch.arange(1, values_V.shape[-1] + 1, dtype=values_V.dtype, device=values_V.device).log2()


def predicted_variance(mean_NG: Tensor) -> Tensor:
    """Variance of the Gaussian likelihood around a predicted count."""
    return SLOPE * mean_NG + OFFSET


def kl_loss(logits_NPV: Tensor, labels_NPV: Tensor, *, normalized: bool) -> Tensor:
    """KL divergence of the prediction from the labels; mean over spots, sum (``normalized``: mean) over groups."""
    divergence = F.kl_div(logits_NPV.log_softmax(dim=-1), labels_NPV, reduction="none")
    return over_spots(divergence.sum(dim=-1), normalized=normalized)


def gaussian_nll_loss(logits_NGV: Tensor, counts_NG: Tensor, *, normalized: bool) -> Tensor:
    """Negative Gaussian log-likelihood of the counts; mean over spots, sum (``normalized``: mean) over genes."""
    mean_NG = expected_count(logits_NGV)
    nll_NG = F.gaussian_nll_loss(mean_NG, counts_NG, predicted_variance(mean_NG), full=True, reduction="none")
    return over_spots(nll_NG, normalized=normalized)


def over_spots(loss_NP: Tensor, *, normalized: bool) -> Tensor:
    """Mean over spots of the sum (``normalized``: mean) over positions."""
    return loss_NP.mean() if normalized else loss_NP.sum(dim=-1).mean()
