"""GenAR (paper 002): the counts of all genes of a spot, generated from coarse gene groups to single genes.

Shape suffixes beside those of the package: ``P`` gene groups of one scale, ``L`` positions of a sequence, ``V`` count
tokens. In this module ``C`` is the width of the condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.genar_layers import Block, FiLM, TiltedShares, initialise, modulate, random_state_from
from strecur.nn.genar_targets import (
    clip_counts,
    expected_count,
    expected_log2,
    gaussian_labels,
    gaussian_logits,
    gaussian_nll_loss,
    group_of,
    kl_loss,
    log_shares,
    nearest_token,
    pool,
    predicted_variance,
    soft_labels,
)

if TYPE_CHECKING:
    from strecur.nn.genar_config import GenARConfig

# The last scale starts from its parents and from which gene it is.
PARENT_SHARE, IDENTITY_SHARE = 0.7, 0.3


class Scale(nn.Module):
    """What one scale owns: its positions, how it starts from the coarser one, and who its gene groups are."""

    def __init__(self, config: GenARConfig, index: int) -> None:
        super().__init__()
        width, self.n_groups = config.width, config.scales[index]
        self.is_first, self.is_last = index == 0, self.n_groups == config.n_genes
        self.position = nn.Embedding(1 + sum(config.scales[: index + 1]), width)
        self.scale = nn.Embedding(1, width)
        if not self.is_first:
            self.register_buffer("parent_P", group_of(self.n_groups, config.scales[index - 1]), persistent=False)
            self.inherit = nn.Sequential(
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
                nn.LayerNorm(width),
                nn.Dropout(config.dropout),
            )
        if config.linear_start:
            self.linear = TiltedShares(config.condition_width, self.n_groups, config.vocabulary)
        if not self.is_last:
            self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(config.dropout))

    def identity(self, gene_GD: Tensor) -> Tensor:
        """Identity of each gene group: of the gene itself, or pooled; (P, D)."""
        return gene_GD if self.is_last else self.project(pool(gene_GD.T, self.n_groups).T)

    def sequence(self, start_1D: Tensor, context_NLD: Tensor, coarser_NPD: Tensor, identity_PD: Tensor) -> Tensor:
        """Put the start, the tokens of the coarser scales and the positions to predict behind each other."""
        n_spots, width = len(context_NLD), start_1D.shape[1]
        if self.is_first:
            target_NPD = start_1D.new_zeros(n_spots, self.n_groups, width)
        else:
            target_NPD = self.inherit(coarser_NPD)[:, self.parent_P]
        if self.is_last:
            target_NPD = PARENT_SHARE * target_NPD + IDENTITY_SHARE * identity_PD
        sequence_NLD = torch.cat([start_1D.expand(n_spots, 1, width), context_NLD, target_NPD], dim=1)
        return sequence_NLD + (self.position.weight + self.scale.weight)


@dataclass(frozen=True)
class GenARLoss:
    """Loss of a batch.

    Attributes
    ----------
    total
        Mean over the scales, with gradient.
    scale_S
        Loss of each scale, without gradient.
    n_clipped
        Counts beyond the vocabulary, which were clipped; scores should use the counts as measured.
    """

    total: Tensor
    scale_S: Tensor
    n_clipped: Tensor


@dataclass(frozen=True)
class Generated:
    """Generated spots.

    Attributes
    ----------
    counts_NG
        Tokens of the last scale, int64.
    log2_NG
        Mean of log2(count + 1) over the last scale's distribution, float32: smoother than a token and never tied, so
        that it is what errors and correlations are computed from.
    """

    counts_NG: Tensor
    log2_NG: Tensor


Choose = Callable[[Tensor], Tensor]  # logits (N, P, V) to tokens (N, P)


def most_probable(logits_NPV: Tensor) -> Tensor:
    """Choose the most probable token of each group, the lowest one if several are."""
    return logits_NPV.argmax(dim=-1)


def median(logits_NPV: Tensor) -> Tensor:
    """Choose the lowest token of each group that at least half of the probability does not exceed."""
    reaches_NPV = logits_NPV.softmax(dim=-1).cumsum(dim=-1) >= 0.5
    return torch.where(reaches_NPV.any(dim=-1), reaches_NPV.int().argmax(dim=-1), logits_NPV.shape[-1] - 1)


class GenAR(nn.Module):
    """Predict gene counts scale by scale, each from the tokens of all coarser scales and the condition of the spot.

    A scale is one pass over [start, tokens of coarser scales, positions to predict], with positions of its own, so that
    nothing can be cached from one scale to the next. The positions to predict start from the *most probable* tokens of
    the coarser scale, in training too, while the context holds the true tokens in training. So the passes follow each
    other in training as in generation. That costs nothing: six short causal passes have as many tokens as one
    concatenation of them, and less attention than its block mask would compute.

    Parameters
    ----------
    config
        Size and loss, with scales and vocabulary (:meth:`GenARConfig.fitted`).
    """

    def __init__(self, config: GenARConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.gene = nn.Embedding(config.n_genes, config.width)
        self.start = nn.Embedding(1, config.width)
        self.scales = nn.ModuleList(Scale(config, index) for index in range(len(config.scales)))
        hidden, steps = round(config.mlp_ratio * config.width), max(config.n_layers - 1, 1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.n_heads, hidden, config.condition_width, config.drop_path * layer / steps)
            for layer in range(config.n_layers)
        )
        self.head_modulation = nn.Linear(config.condition_width, 2 * config.width)
        self.film = FiLM(config.width)
        self.head = nn.Linear(config.width, config.vocabulary)
        initialise(self, config.width)
        self.film.start_as_identity()  # after everything was drawn
        if config.linear_start:
            for scale in self.scales:
                scale.linear.start_untilted()
        if not config.gene_identity:
            nn.init.zeros_(self.gene.weight).requires_grad_(requires_grad=False)

    def set_shares(self, counts_NG: Tensor) -> None:
        """Let the linear model begin at the shares of the tokens among training spots."""
        for scale in self.scales:
            scale.linear.log_share_PV.copy_(log_shares(counts_NG, scale.n_groups, self.config.vocabulary))

    def forward(self, condition_NC: Tensor, counts_NG: Tensor) -> list[Tensor]:
        """Logits (N, P, V) of every scale given the true tokens of the coarser ones (teacher forcing)."""
        return self.run(condition_NC, lambda logits_NPV: nearest_token(pool(counts_NG, logits_NPV.shape[1])))

    def run(self, condition_NC: Tensor, choose: Choose) -> list[Tensor]:
        """Logits of every scale; ``choose`` turns those of a scale into the tokens that finer scales see."""
        context_NL = torch.empty(len(condition_NC), 0, dtype=torch.long, device=condition_NC.device)
        coarser_NP, outputs = context_NL, []
        for scale in self.scales:
            outputs.append(self.logits(scale, condition_NC, context_NL, coarser_NP))
            if not scale.is_last:
                coarser_NP = outputs[-1].argmax(dim=-1)
                context_NL = torch.cat([context_NL, choose(outputs[-1])], dim=1)
        return outputs

    def logits(self, scale: Scale, condition_NC: Tensor, context_NL: Tensor, coarser_NP: Tensor) -> Tensor:
        """One pass: logits (N, P, V) of one scale, float32."""
        identity_PD = scale.identity(self.gene.weight)
        h_NLD = scale.sequence(self.start.weight, self.token(context_NL), self.token(coarser_NP), identity_PD)
        for block in self.blocks:
            h_NLD = block(h_NLD, condition_NC)
        modulation = self.head_modulation(F.silu(condition_NC))[:, None].chunk(2, dim=-1)
        h_NPD = modulate(h_NLD[:, -scale.n_groups :], *modulation)
        logits_NPV = self.head(self.film(h_NPD, identity_PD)).float()
        return logits_NPV + scale.linear(condition_NC) if self.config.linear_start else logits_NPV

    def loss(self, condition_NC: Tensor, counts_NG: Tensor, generator: torch.Generator) -> GenARLoss:
        """Mean of the losses of all scales; dropout is drawn from ``generator``."""
        counts_NG, n_clipped = clip_counts(counts_NG, self.config.vocabulary)
        with random_state_from(generator):
            outputs = self(condition_NC, counts_NG)
        loss_S = torch.stack([self.scale_loss(logits_NPV, counts_NG) for logits_NPV in outputs])
        return GenARLoss(loss_S.mean(), loss_S.detach(), n_clipped)

    def linear_loss(self, condition_NC: Tensor, counts_NG: Tensor) -> Tensor:
        """Loss of the linear model of single genes, weighed as their scale; cheap, and so for all spots."""
        return self.scales[-1].linear.loss(condition_NC, counts_NG) / len(self.scales)

    def scale_loss(self, logits_NPV: Tensor, counts_NG: Tensor) -> Tensor:
        """Loss of one scale, which its number of groups tells."""
        vocabulary, normalized = self.config.vocabulary, self.config.normalized
        n_groups = logits_NPV.shape[1]
        if n_groups < self.config.n_genes:
            return kl_loss(logits_NPV, soft_labels(pool(counts_NG, n_groups), vocabulary), normalized=normalized)
        if self.config.last_loss == "gaussian_nll":
            return gaussian_nll_loss(logits_NPV, counts_NG, normalized=normalized)
        if self.config.last_loss == "cross_entropy":
            return kl_loss(logits_NPV, soft_labels(counts_NG, vocabulary), normalized=normalized)
        return kl_loss(logits_NPV, gaussian_labels(counts_NG, vocabulary, self.config.softness), normalized=normalized)

    def decode(self, condition_NC: Tensor, *, max_tokens: int = 32_768) -> Generated:
        """Generate the most probable token at every coarse scale, the lowest one if several are.

        Of the last scale it is the one that the configuration asks for.

        Parameters
        ----------
        condition_NC
            Embedding of every spot.
        max_tokens
            Positions processed at once; spots are generated in batches that fit.
        """
        last = median if self.config.decision == "median" else most_probable
        return self.generate(condition_NC, lambda _: most_probable, max_tokens, last)

    def sample(
        self, condition_NC: Tensor, generator: torch.Generator, *, temperature: float = 1.0, max_tokens: int = 32_768
    ) -> Generated:
        """Draw a token at every position of every scale.

        Parameters
        ----------
        condition_NC
            Embedding of every spot.
        generator
            Source of randomness, on the CPU. What is drawn for a spot depends on its place among the spots alone, not
            on ``max_tokens``.
        temperature
            Above 0; below 1 draws closer to the most probable token.
        max_tokens
            Positions processed at once; spots are generated in batches that fit.
        """
        if temperature <= 0:
            msg = f"temperature={temperature} must be above 0; for the most probable tokens call decode"
            raise ValueError(msg)

        def choose_for(n_spots: int) -> Choose:
            # spot by spot, so that batches only cut the stream of draws
            uniform_NL = torch.rand(n_spots, sum(self.config.scales), generator=generator)
            by_scale = iter(uniform_NL.split(self.config.scales, dim=1))

            def draw(logits_NPV: Tensor) -> Tensor:
                cumulative_NPV = (logits_NPV / temperature).softmax(dim=-1).cumsum(dim=-1)
                uniform_NP1 = next(by_scale)[..., None].to(cumulative_NPV).contiguous()
                return torch.searchsorted(cumulative_NPV, uniform_NP1)[..., 0].clamp(max=self.config.vocabulary - 1)

            return draw

        return self.generate(condition_NC, choose_for, max_tokens)

    @torch.no_grad()
    def generate(
        self,
        condition_NC: Tensor,
        choose_for: Callable[[int], Choose],
        max_tokens: int,
        choose_last: Choose | None = None,
    ) -> Generated:
        """Generate spots in batches, each with what chooses the tokens of so many spots, and without dropout.

        ``choose_last`` chooses those of the last scale, if not given as those of all others.
        """
        was_training = self.training
        self.eval()
        counts, logs = [], []
        for part_NC in condition_NC.split(max(max_tokens // self.config.longest_sequence, 1)):
            choose = choose_for(len(part_NC))
            logits_NGV = self.token_logits(self.run(part_NC, choose)[-1])
            counts.append((choose_last or choose)(logits_NGV))
            logs.append(expected_log2(logits_NGV))
        self.train(was_training)
        return Generated(torch.cat(counts), torch.cat(logs))

    def token_logits(self, logits_NGV: Tensor) -> Tensor:
        """What the last scale says of tokens: after ``"gaussian_nll"`` only the mean of its output means something."""
        if self.config.last_loss != "gaussian_nll":
            return logits_NGV
        mean_NG = expected_count(logits_NGV)
        return gaussian_logits(mean_NG, predicted_variance(mean_NG), self.config.vocabulary)
