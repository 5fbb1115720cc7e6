"""Size, loss and training of GenAR (paper 002)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from strecur.nn.genar_targets import OFFSET, SLOPE, derive_scales
from strecur.nn.recursion import TRMConfig

# Tokens of the released code. Cost is linear in them, so that one extreme count must not decide it.
LARGEST_VOCABULARY = 2001

LastLoss = Literal["gaussian_kl", "gaussian_nll", "cross_entropy"]
Decision = Literal["median", "most_probable"]


def rises(scales: object) -> bool:
    """Whether these are numbers of gene groups, from coarse to fine."""
    return isinstance(scales, tuple) and scales[:1] >= (1,) and list(scales) == sorted(set(scales))


@dataclass(frozen=True)
class GenARConfig:
    """Size and loss of GenAR; the defaults train on a CPU in minutes, those of ``GenARConfig.paper()`` on a GPU.

    Attributes
    ----------
    scales
        Number of gene groups of each scale, rising to the number of genes. A scale need not divide the next one or the
        genes: groups are consecutive, share no gene, and differ in size by one at most. ``"paper"``: 1, 4, 8, a fifth
        and a half of the genes, all genes; ``"few"``: 1, 4, a tenth of the genes, all genes, in half the time.
    vocabulary
        Number of count tokens; the largest count that can be predicted is ``vocabulary - 1``, and larger ones are
        clipped in training. ``None``: up to the largest training count, 2,001 at most.
    width, n_layers, n_heads, mlp_ratio
        Size of the transformer.
    condition_width
        Width of the embedding of a spot that everything is conditioned on; its values should be of order 1.
    recursion
        Where the embedding of a spot comes from. ``None``: from its own features and its place, as in the paper.
        Otherwise a recursion over the backbone runs on the whole section, is trained together with the generation,
        and its answer is the embedding, so that counts see the section.
    dropout
        In the embedding of features and place, in the identities of gene groups, and in what a scale takes over from
        the coarser one.
    drop_path
        Rate at which the last layer is skipped; the rate rises linearly over the layers.
    last_loss
        For single genes, ``"gaussian_kl"`` compares the tokens with a Gaussian around the true count (released code),
        ``"gaussian_nll"`` fits the mean token (the paper), ``"cross_entropy"`` wants the true token alone.
    softness
        Standard deviation of that Gaussian, as a share of the count plus a constant. The constant blurs small counts:
        with the 1 of the released code, a model of nothing but zeros draws other counts almost every second time.
    decision
        Which count of the predicted distribution is the prediction: its ``"median"``, which is off by least and less
        often the same for all spots, or the ``"most_probable"`` one (the paper).
    normalized
        Mean instead of sum over the gene groups of a scale, so that all scales weigh the same.
    gene_identity
        Let the last layer and the last scale know which gene is which beyond its position.
    linear_start
        Add a linear model to the logits: how often each gene group has each count in the training spots, tilted to
        higher or lower counts by a linear function of the condition. It learns from all spots of a section, which is
        cheap, and leaves to the transformer what it does not tell. The paper has none.
    n_groups
        Clusters of genes expressed alike that decide the order of the genes, before large ones are split.
    spots_per_step
        Spots of a section that one optimizer step generates.
    """

    scales: tuple[int, ...] | Literal["few", "paper"] = "few"
    vocabulary: int | None = None
    width: int = 64
    n_layers: int = 2
    n_heads: int = 2
    mlp_ratio: float = 3.0
    condition_width: int = 96
    recursion: TRMConfig | None = None
    dropout: float = 0.1
    drop_path: float = 0.1
    last_loss: LastLoss = "gaussian_kl"
    softness: tuple[float, float] = (0.1, 0.3)
    decision: Decision = "median"
    normalized: bool = False
    gene_identity: bool = True
    linear_start: bool = True
    n_groups: int = 4
    spots_per_step: int = 8

    def __post_init__(self) -> None:
        for name in ("scales", "softness"):
            if isinstance(value := getattr(self, name), list):  # when it comes from JSON
                object.__setattr__(self, name, tuple(value))
        if self.scales not in {"few", "paper"} and not rises(self.scales):
            msg = f"scales={self.scales!r} must rise from 1 or more to the number of genes, or be 'few' or 'paper'"
            raise ValueError(msg)
        if isinstance(self.recursion, dict):  # when it comes from JSON
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in self.recursion.items()}
            object.__setattr__(self, "recursion", TRMConfig(**values))
        if self.vocabulary is not None and self.vocabulary < 2:
            msg = f"vocabulary={self.vocabulary}; it needs the largest training count + 1 tokens, at least 2"
            raise ValueError(msg)
        if self.width % self.n_heads:
            msg = f"width={self.width} is not a multiple of n_heads={self.n_heads}"
            raise ValueError(msg)
        for name, kind in (("last_loss", LastLoss), ("decision", Decision)):
            if getattr(self, name) not in get_args(kind):
                msg = f"{name}={getattr(self, name)!r}; choose one of {list(get_args(kind))}"
                raise ValueError(msg)

        if len(self.softness) != 2 or self.softness[0] < 0 or self.softness[1] <= 0:
            msg = f"softness={self.softness} must be a share from 0 on and a constant above 0, as in (0.1, 0.3)"
            raise ValueError(msg)

    @classmethod
    def paper(cls, **options: object) -> GenARConfig:
        """The size of paper 002; the conditions are as wide as the transformer."""
        size = {"width": 768, "n_layers": 8, "n_heads": 8, "condition_width": 768, "scales": "paper"}
        decided = {"softness": (SLOPE, OFFSET), "decision": "most_probable", "linear_start": False}
        return cls(**{**size, **decided, "spots_per_step": 64, **options})

    def fitted(self, n_genes: int, largest_count: int) -> GenARConfig:
        """Fill in the scales and the vocabulary for the genes and counts of the training spots."""
        scales = self.scales
        if isinstance(scales, str):
            scales = derive_scales(n_genes, few=scales == "few")
        if scales[-1] != n_genes:
            msg = f"scales={scales} end with {scales[-1]} genes, but {n_genes} are to be predicted; leave scales out"
            raise ValueError(msg)
        vocabulary = self.vocabulary or min(max(largest_count + 1, 2), LARGEST_VOCABULARY)
        return replace(self, scales=scales, vocabulary=vocabulary)

    @property
    def n_steps(self) -> int:
        """Outer steps of the recursion, each with an optimizer step."""
        return 1 if self.recursion is None else self.recursion.n_steps

    @property
    def n_genes(self) -> int:
        return self.scales[-1]

    @property
    def longest_sequence(self) -> int:
        """Positions of the last scale, which are the start, all coarser groups and all genes."""
        return 1 + sum(self.scales)
