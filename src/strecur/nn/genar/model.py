from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.genar.layers import Block, FiLM, TiltedShares, initialise, modulate, random_state_from
from strecur.nn.genar.targets import (
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
    from strecur.nn.genar.config import GenARConfig

# Weights of the parents and of the gene embeddings at the start of the last scale.
PARENT_SHARE, IDENTITY_SHARE = 0.7, 0.3


class Scale(nn.Module):
    """Embeddings of one scale: positions, what is inherited from the coarser scale, and the identity of gene groups."""

    parent_P: Tensor

    def __init__(self, config: GenARConfig, index: int) -> None:
        super().__init__()
        scales, width = config.group_counts, config.width
        self.n_groups = scales[index]
        self.is_first, self.is_last = index == 0, self.n_groups == config.n_genes
        self.position = nn.Embedding(1 + sum(scales[: index + 1]), width)
        self.scale = nn.Embedding(1, width)
        if not self.is_first:
            self.register_buffer("parent_P", group_of(self.n_groups, scales[index - 1]), persistent=False)
            self.inherit = nn.Sequential(
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
                nn.LayerNorm(width),
                nn.Dropout(config.dropout),
            )
        if config.linear_start:
            self.linear = TiltedShares(config.condition_width, self.n_groups, config.n_tokens)
        if not self.is_last:
            self.project = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.Dropout(config.dropout))

    def identity(self, gene_GD: Tensor) -> Tensor:
        """Embedding of each gene group: that of the gene, or pooled over genes; (P, D)."""
        return gene_GD if self.is_last else self.project(pool(gene_GD.T, self.n_groups).T)

    def sequence(self, start_1D: Tensor, context_NLD: Tensor, coarser_NPD: Tensor, identity_PD: Tensor) -> Tensor:
        """Concatenate the start, the tokens of the coarser scales and the positions to predict."""
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
        Number of counts that were clipped to the vocabulary; scores should use the measured counts.
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
        Mean of log2(count + 1) over the distribution of the last scale, float32; smoother than a token and without
        ties, so that errors and correlations are computed from it.
    """

    counts_NG: Tensor
    log2_NG: Tensor


Choose = Callable[[Tensor], Tensor]  # logits (N, P, V) to tokens (N, P)


def most_probable(logits_NPV: Tensor) -> Tensor:
    """Choose the most probable token of each group; of ties, the lowest."""
    return logits_NPV.argmax(dim=-1)


def median(logits_NPV: Tensor) -> Tensor:
    """Choose the median token of each group: the lowest with a cumulative probability of at least one half."""
    reaches_NPV = logits_NPV.softmax(dim=-1).cumsum(dim=-1) >= 0.5
    return torch.where(reaches_NPV.any(dim=-1), reaches_NPV.int().argmax(dim=-1), logits_NPV.shape[-1] - 1)


class GenAR(nn.Module):
    """Predict gene counts scale by scale, each from the tokens of all coarser scales and the condition of the spot.

    A scale is one pass over [start, tokens of coarser scales, positions to predict], with positional embeddings of its
    own, so that nothing can be cached between scales. In training, the context holds the true tokens (unless the
    configuration says otherwise), but the positions
    to predict start from the *most probable* tokens of the coarser scale; so the passes are sequential, as in
    generation. This is not slower: six short causal passes have as many tokens as their concatenation, and less
    attention than its block mask.

    Parameters
    ----------
    config
        Size and loss, with scales and vocabulary filled in (:meth:`GenARConfig.fitted`).
    """

    def __init__(self, config: GenARConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.n_tokens, config.width)
        self.gene = nn.Embedding(config.n_genes, config.width)
        self.start = nn.Embedding(1, config.width)
        self.scales = nn.ModuleList(Scale(config, index) for index in range(len(config.group_counts)))
        hidden, steps = round(config.mlp_ratio * config.width), max(config.n_layers - 1, 1)
        self.blocks = nn.ModuleList(
            Block(config.width, config.n_heads, hidden, config.condition_width, config.drop_path * layer / steps)
            for layer in range(config.n_layers)
        )
        self.head_modulation = nn.Linear(config.condition_width, 2 * config.width)
        self.film = FiLM(config.width)
        self.head = nn.Linear(config.width, config.n_tokens)
        initialise(self, config.width)
        self.film.start_as_identity()  # after all weights were drawn
        if config.linear_start:
            for linear in self.linear_models():
                linear.start_untilted()
        if not config.gene_identity:
            nn.init.zeros_(self.gene.weight)
            self.gene.weight.requires_grad = False

    def linear_models(self) -> list[TiltedShares]:
        """Linear model of each scale."""
        return [module for module in self.scales.modules() if isinstance(module, TiltedShares)]

    def set_shares(self, counts_NG: Tensor) -> None:
        """Set the frequencies of the linear model to those of the tokens in the training spots."""
        for linear in self.linear_models():
            n_groups, vocabulary = linear.log_share_PV.shape
            linear.log_share_PV.copy_(log_shares(counts_NG, n_groups, vocabulary))

    def forward(self, condition_NC: Tensor, counts_NG: Tensor) -> list[Tensor]:
        """Logits (N, P, V) of every scale given the true tokens of coarser ones (teacher forcing), or the predicted."""
        if not self.config.teacher_forcing:
            return self.run(condition_NC, most_probable)
        return self.run(condition_NC, lambda logits_NPV: nearest_token(pool(counts_NG, logits_NPV.shape[1])))

    def run(self, condition_NC: Tensor, choose: Choose) -> list[Tensor]:
        """Return the logits of every scale; ``choose`` turns them into the tokens that finer scales see."""
        context_NL = torch.empty(len(condition_NC), 0, dtype=torch.long, device=condition_NC.device)
        coarser_NP, outputs = context_NL, []
        for scale in self.scales:
            assert isinstance(scale, Scale)
            outputs.append(self.logits(scale, condition_NC, context_NL, coarser_NP))
            if not scale.is_last:
                coarser_NP = outputs[-1].argmax(dim=-1)
                context_NL = torch.cat([context_NL, choose(outputs[-1])], dim=1)
        return outputs

    def logits(self, scale: Scale, condition_NC: Tensor, context_NL: Tensor, coarser_NP: Tensor) -> Tensor:
        """Run one pass; return the logits (N, P, V) of one scale, float32."""
        identity_PD = scale.identity(self.gene.weight)
        h_NLD = scale.sequence(self.start.weight, self.token(context_NL), self.token(coarser_NP), identity_PD)
        for block in self.blocks:
            h_NLD = block(h_NLD, condition_NC)
        modulation = self.head_modulation(F.silu(condition_NC))[:, None].chunk(2, dim=-1)
        h_NPD = modulate(h_NLD[:, -scale.n_groups :], *modulation)
        logits_NPV = self.head(self.film(h_NPD, identity_PD)).float()
        return logits_NPV + scale.linear(condition_NC) if self.config.linear_start else logits_NPV

    def loss(self, condition_NC: Tensor, counts_NG: Tensor, generator: torch.Generator) -> GenARLoss:
        """Mean loss over all scales; dropout is drawn from ``generator``."""
        counts_NG, n_clipped = clip_counts(counts_NG, self.config.n_tokens)
        with random_state_from(generator):
            outputs = self(condition_NC, counts_NG)
        loss_S = torch.stack([self.scale_loss(logits_NPV, counts_NG) for logits_NPV in outputs])
        return GenARLoss(loss_S.mean(), loss_S.detach(), n_clipped)

    def linear_loss(self, condition_NC: Tensor, counts_NG: Tensor) -> Tensor:
        """Loss of the linear model of single genes, with the weight of their scale; cheap enough for all spots."""
        return self.linear_models()[-1].loss(condition_NC, counts_NG) / len(self.scales)

    def scale_loss(self, logits_NPV: Tensor, counts_NG: Tensor) -> Tensor:
        """Loss of the scale with as many groups as the logits."""
        vocabulary, normalized = self.config.n_tokens, self.config.normalized
        n_groups = logits_NPV.shape[1]
        if n_groups < self.config.n_genes:
            values_NP = pool(counts_NG, n_groups)
            values_NP = values_NP if self.config.soft_labels else nearest_token(values_NP).to(values_NP)
            return kl_loss(logits_NPV, soft_labels(values_NP, vocabulary), normalized=normalized)
        if self.config.last_loss == "gaussian_nll":
            return gaussian_nll_loss(logits_NPV, counts_NG, normalized=normalized)
        if self.config.last_loss == "cross_entropy":
            return kl_loss(logits_NPV, soft_labels(counts_NG, vocabulary), normalized=normalized)
        return kl_loss(logits_NPV, gaussian_labels(counts_NG, vocabulary, self.config.softness), normalized=normalized)

    def decode(self, condition_NC: Tensor, *, max_tokens: int = 32_768) -> Generated:
        """Generate the most probable token at every coarse scale, and the token of ``decision`` at the last one.

        Parameters
        ----------
        condition_NC
            Condition of every spot.
        max_tokens
            Positions per batch of spots.
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
            Condition of every spot.
        generator
            Random generator on the CPU. The draws of a spot depend on its index, not on ``max_tokens``.
        temperature
            Temperature above 0; below 1, draws are closer to the most probable token.
        max_tokens
            Positions per batch of spots.
        """
        if temperature <= 0:
            msg = f"temperature={temperature} must be above 0; for the most probable tokens call decode"
            raise ValueError(msg)

        def choose_for(n_spots: int) -> Choose:
            # spot by spot, so that draws do not depend on the batches
            scales = self.config.group_counts
            uniform_NL = torch.rand(n_spots, sum(scales), generator=generator)
            by_scale = iter(uniform_NL.split(scales, dim=1))

            def draw(logits_NPV: Tensor) -> Tensor:
                cumulative_NPV = (logits_NPV / temperature).softmax(dim=-1).cumsum(dim=-1)
                uniform_NP1 = next(by_scale)[..., None].to(cumulative_NPV).contiguous()
                return torch.searchsorted(cumulative_NPV, uniform_NP1)[..., 0].clamp(max=self.config.n_tokens - 1)

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
        """Generate spots in batches, without dropout.

        ``choose_for`` takes the size of a batch and returns how its tokens are chosen. ``choose_last`` chooses those of
        the last scale; if ``None``, like those of the other scales.
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
        """Logits of tokens at the last scale; after ``"gaussian_nll"``, only the mean of the output is meaningful."""
        if self.config.last_loss != "gaussian_nll":
            return logits_NGV
        mean_NG = expected_count(logits_NGV)
        return gaussian_logits(mean_NG, predicted_variance(mean_NG), self.config.n_tokens)
