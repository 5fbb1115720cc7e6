"""Targets and losses of GenAR (paper 002): counts of gene groups as distributions over count tokens.

Pure functions. Shape suffixes beside those of the package: ``P`` gene groups of one scale, ``V`` count tokens 0 … V-1.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

# SLOPE · count + OFFSET is the standard deviation of the Gaussian target, and the variance in the Gaussian likelihood.
SLOPE, OFFSET = 0.01, 1.0


def derive_scales(n_genes: int, *, few: bool = False) -> tuple[int, ...]:
    """Choose numbers of gene groups: 1, 4, 8, a fifth and a half of the genes, all of them.

    With ``few`` they are 1, 4, a tenth and all, which makes sequences of half the length. Left out is what exceeds a
    half of the genes or is close to the next number.
    """
    candidates = (1, 4, n_genes // 10) if few else (1, 4, 8, n_genes // 5, n_genes // 2)
    coarse = {n for n in candidates if 1 <= n <= n_genes // 2}
    return (*(n for n, finer in pairwise([*sorted(coarse), n_genes]) if finer >= 1.5 * n), n_genes)


def group_of(n_members: int, n_groups: int) -> Tensor:
    """Group of each of some consecutive members, ⌊member · groups / members⌋.

    Every member is in one group and every group has one member or more, also where the numbers do not divide; sizes
    then differ by one. (Adaptive pooling as in PyTorch would let neighbouring groups overlap.)
    """
    return torch.arange(n_members) * n_groups // n_members


def pool(values_NG: Tensor, n_groups: int) -> Tensor:
    """Mean over each of ``n_groups`` groups of consecutive genes, (N, P)."""
    group_G = group_of(values_NG.shape[1], n_groups).to(values_NG.device)
    total_NP = values_NG.new_zeros(len(values_NG), n_groups).index_add(1, group_G, values_NG)
    return total_NP / torch.bincount(group_G)


def clip_counts(counts_NG: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Return the counts as float32 with those beyond the vocabulary set to its last token, and how many there were.

    The loss needs the clipped counts; scores need the counts as they were measured.
    """
    return counts_NG.float().clamp(max=vocabulary - 1), (counts_NG > vocabulary - 1).sum()


def nearest_token(values_NP: Tensor) -> Tensor:
    """Round to a token, halves down."""
    return (values_NP - 0.5).ceil().long()


def soft_labels(values_NP: Tensor, vocabulary: int) -> Tensor:
    """Share each value out between the tokens below and above it, so that their mean is the value; (N, P, V)."""
    below_NP, above_NP = values_NP.floor(), values_NP.ceil()
    weight_NP = values_NP - below_NP
    labels_NPV = values_NP.new_zeros(*values_NP.shape, vocabulary)
    # Added, not set: below and above are one token for a whole number.
    labels_NPV.scatter_add_(-1, below_NP.long()[..., None], 1 - weight_NP[..., None])
    return labels_NPV.scatter_add_(-1, above_NP.long()[..., None], weight_NP[..., None])


def gaussian_logits(mean_NG: Tensor, variance_NG: Tensor, vocabulary: int) -> Tensor:
    """Log density of a Gaussian at every token, up to a constant; (N, G, V)."""
    token_V = torch.arange(vocabulary, device=mean_NG.device)
    return -((token_V - mean_NG[..., None]) ** 2) / (2 * variance_NG[..., None])


def gaussian_labels(counts_NG: Tensor, vocabulary: int) -> Tensor:
    """Gaussian around the true count, discretised to the tokens; (N, G, V)."""
    deviation_NG = SLOPE * counts_NG + OFFSET
    return gaussian_logits(counts_NG, deviation_NG**2, vocabulary).softmax(dim=-1)


def expected_count(logits_NGV: Tensor) -> Tensor:
    """Mean token of the predicted distribution (the paper's count head); (N, G)."""
    token_V = torch.arange(logits_NGV.shape[-1], dtype=logits_NGV.dtype, device=logits_NGV.device)
    return logits_NGV.softmax(dim=-1) @ token_V


def expected_log2(logits_NGV: Tensor) -> Tensor:
    """Mean of log2(count + 1) over the predicted distribution, (N, G)."""
    token_V = torch.arange(logits_NGV.shape[-1], dtype=logits_NGV.dtype, device=logits_NGV.device)
    return logits_NGV.softmax(dim=-1) @ (token_V + 1).log2()


def predicted_variance(mean_NG: Tensor) -> Tensor:
    """Variance that belongs to a predicted count."""
    return SLOPE * mean_NG + OFFSET


def kl_loss(logits_NPV: Tensor, labels_NPV: Tensor, *, normalized: bool) -> Tensor:
    """Divergence of the prediction from the labels, mean over spots, summed (``normalized``: mean) over groups."""
    divergence = F.kl_div(logits_NPV.log_softmax(dim=-1), labels_NPV, reduction="none")
    return over_spots(divergence.sum(dim=-1), normalized=normalized)


def gaussian_nll_loss(logits_NGV: Tensor, counts_NG: Tensor, *, normalized: bool) -> Tensor:
    """Negative log density of the counts around the predicted ones, mean over spots, summed (or mean) over genes."""
    mean_NG = expected_count(logits_NGV)
    nll_NG = F.gaussian_nll_loss(mean_NG, counts_NG, predicted_variance(mean_NG), full=True, reduction="none")
    return over_spots(nll_NG, normalized=normalized)


def over_spots(loss_NP: Tensor, *, normalized: bool) -> Tensor:
    """Mean over spots of the sum, or with ``normalized`` the mean, over positions."""
    return loss_NP.mean() if normalized else loss_NP.sum(dim=-1).mean()
