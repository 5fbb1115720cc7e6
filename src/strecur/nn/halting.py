"""Adaptive computation: the halt head, and the recipes that supervise it (appendix F of the spatial TRM).

A recipe turns the quality of the current answer on held-out spots into a target between 0 and 1 for the halt logit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from strecur.nn.devices import is_on_cpu, sum_of_chosen

if TYPE_CHECKING:
    from collections.abc import Callable

    from strecur.nn.lattice import Lattice

MIN_HELD_OUT = 3
"""Fewest held-out spots to compute a correlation from; a section with fewer has no target."""


class HaltHead(nn.Module):
    """Halt logits of a section, from its first context token; initially -5, a probability of 0.0067."""

    def __init__(self, width: int, n_logits: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(width, n_logits)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, -5.0)

    def forward(self, context_SD: Tensor) -> Tensor:
        """Return logits of shape (S, 1), or (S, G) with one per gene."""
        return self.linear(context_SD).float()


def halt_probability(logits_SL: Tensor) -> Tensor:
    """Halt probability per section: the logistic function of the mean logit (there may be one per gene)."""
    return logits_SL.mean(dim=-1).sigmoid()


@dataclass(frozen=True)
class HaltingRecipe:
    """How the target of the halt logit is computed.

    Attributes
    ----------
    task
        ``"domains"`` or ``"expression"``.
    measure
        Quality of ``output`` on the held-out spots, ``measure(output, target, held_out_N, lattice)`` of shape (S,) or
        (S, G), NaN where it is not defined; ``None`` for the random recipe.
    tau, slope
        The target is the logistic function of (measure - tau) · slope; the slope is negative if less is better.
    threshold
        Default probability above which a section stops in prediction.
    per_gene
        One logit per gene.
    """

    task: str
    measure: Callable[[Tensor, Tensor, Tensor, Lattice], Tensor] | None
    tau: float = 0.0
    slope: float = 0.0
    threshold: float = 0.7
    per_gene: bool = False

    def loss(self, logits_SL: Tensor, output: Tensor, target: Tensor, held_out_N: Tensor, lattice: Lattice) -> Tensor:
        """Binary cross-entropy of the logits, over the sections (and genes) whose measure is defined."""
        measure = self.measure
        assert measure is not None
        with torch.no_grad():
            measured = measure(output, target, held_out_N, lattice)
            wanted = halting_target(measured, tau=self.tau, slope=self.slope).view(len(logits_SL), -1)
        known = wanted.isfinite()
        if not is_on_cpu(known):
            loss_SL = F.binary_cross_entropy_with_logits(logits_SL, wanted.nan_to_num(), reduction="none")
            return sum_of_chosen(loss_SL, known) / known.sum().clamp(min=1)
        if not known.any():
            return logits_SL.sum() * 0
        return F.binary_cross_entropy_with_logits(logits_SL[known], wanted[known])


def halting_target(measured: Tensor, *, tau: float, slope: float) -> Tensor:
    """Logistic function of (measured - tau) · slope."""
    return torch.sigmoid((measured - tau) * slope)


def random_target(halt_at_S: Tensor, step: int) -> Tensor:
    """Target of the random-K recipe at outer step ``step`` (from 1): 1 at the drawn step, otherwise 0."""
    return (halt_at_S == step).float()[:, None]


def draw_halt_steps(n_sections: int, n_steps: int, generator: torch.Generator, *, min_steps: int = 2) -> Tensor:
    """Draw K uniformly from ``min_steps``, …, ``n_steps`` for every section."""
    return torch.randint(
        min(min_steps, n_steps), n_steps + 1, (n_sections,), generator=generator, device=generator.device
    )


def hold_out(labelled_N: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Draw the labelled spots that measure the quality of the current answer and are left out of its loss."""
    draw_N = torch.rand(len(labelled_N), generator=generator, device=generator.device)
    return labelled_N & (draw_N.to(labelled_N.device) < share)


def section_means(values_N: Tensor, chosen_N: Tensor, lattice: Lattice) -> Tensor:
    """Mean of the chosen spots of each section; NaN where none is chosen."""
    total_S = torch.stack([v.sum() for v in lattice.split(values_N.masked_fill(~chosen_N, 0.0))])
    return total_S / torch.stack([c.sum() for c in lattice.split(chosen_N)])


def cross_entropy(logits_NC: Tensor, target_N: Tensor, held_out_N: Tensor, lattice: Lattice) -> Tensor:
    """Mean cross-entropy of the held-out spots of each section."""
    loss_N = F.cross_entropy(logits_NC, target_N, ignore_index=-1, reduction="none")
    return section_means(loss_N, held_out_N, lattice)


def balanced_cross_entropy(logits_NC: Tensor, target_N: Tensor, held_out_N: Tensor, lattice: Lattice) -> Tensor:
    """Cross-entropy of the held-out spots of each section, averaged over the domains."""
    loss_N = F.cross_entropy(logits_NC, target_N, ignore_index=-1, reduction="none")
    means = []
    for loss, target, chosen in zip(*map(lattice.split, (loss_N, target_N, held_out_N)), strict=True):
        per_domain = [loss[chosen & (target == domain)].mean() for domain in target[chosen].unique()]
        means.append(torch.stack(per_domain).mean() if per_domain else loss.new_tensor(torch.nan))
    return torch.stack(means)


def gene_correlations(output_NG: Tensor, target_NG: Tensor, held_out_N: Tensor, lattice: Lattice) -> Tensor:
    """Pearson correlation per section and gene over the held-out spots; NaN for constant genes."""
    rows = []
    for output, target, chosen in zip(*map(lattice.split, (output_NG, target_NG, held_out_N)), strict=True):
        rows.append(_correlate(output[chosen].double(), target[chosen].double()))
    return torch.stack(rows).float()


def _correlate(a_NG: Tensor, b_NG: Tensor) -> Tensor:
    if len(a_NG) < MIN_HELD_OUT:
        return a_NG.new_full((a_NG.shape[1],), torch.nan)
    a_NG, b_NG = a_NG - a_NG.mean(dim=0), b_NG - b_NG.mean(dim=0)
    norms_G = a_NG.norm(dim=0) * b_NG.norm(dim=0)
    defined_G = (a_NG.norm(dim=0) > 1e-6) & (b_NG.norm(dim=0) > 1e-6)
    return torch.where(defined_G, (a_NG * b_NG).sum(dim=0) / norms_G, torch.nan)


def mean_correlation(output_NG: Tensor, target_NG: Tensor, held_out_N: Tensor, lattice: Lattice) -> Tensor:
    """Mean over the defined genes of the correlation on the held-out spots of each section."""
    return gene_correlations(output_NG, target_NG, held_out_N, lattice).nanmean(dim=1)


def squared_error(output_NG: Tensor, target_NG: Tensor, held_out_N: Tensor, lattice: Lattice) -> Tensor:
    """Mean squared error of the held-out spots of each section."""
    return section_means((output_NG - target_NG).pow(2).mean(dim=1), held_out_N, lattice)


def variance_distance(output_NG: Tensor, target_NG: Tensor, held_out_N: Tensor, lattice: Lattice) -> Tensor:
    """Relative variance distance of the held-out spots of each section, over genes that vary."""
    distances = []
    for output, target, chosen in zip(*map(lattice.split, (output_NG, target_NG, held_out_N)), strict=True):
        if chosen.sum() < MIN_HELD_OUT:
            distances.append(output.new_tensor(torch.nan))
            continue
        own, wanted = (values[chosen].var(dim=0, correction=0) for values in (output, target))
        varies = wanted > 1e-12
        distances.append(((own[varies] - wanted[varies]) / wanted[varies]).square().mean())
    return torch.stack(distances)


RECIPES = {
    "loss_proxy": HaltingRecipe("domains", cross_entropy, tau=0.7, slope=-4.0),
    "weighted_bce": HaltingRecipe("domains", balanced_cross_entropy, tau=0.7, slope=-4.0, threshold=0.75),
    "random_k": HaltingRecipe("any", None, threshold=0.5),
    "pcc": HaltingRecipe("expression", mean_correlation, tau=0.65, slope=20.0),
    "rvd": HaltingRecipe("expression", variance_distance, tau=0.4, slope=-4.0),
    "mse": HaltingRecipe("expression", squared_error, tau=0.9, slope=-10.0),
    "gene_pcc": HaltingRecipe("expression", gene_correlations, tau=0.65, slope=20.0, threshold=0.4, per_gene=True),
}
"""Constants of the spatial TRM; the threshold of random-K, which it does not state, is ours."""


def halt_steps(probability_DS: Tensor, *, threshold: float, min_steps: int) -> Tensor:
    """First outer step (from 1) at or after ``min_steps`` whose probability exceeds the threshold, else the last."""
    depth = len(probability_DS)
    step_D = torch.arange(1, depth + 1, device=probability_DS.device)
    fires_DS = (probability_DS > threshold) & (step_D >= min_steps)[:, None]
    return torch.where(fires_DS, step_D[:, None], depth).min(dim=0).values
