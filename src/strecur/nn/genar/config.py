from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

from strecur.nn.genar.targets import OFFSET, SLOPE, ScaleDesign, derive_scales
from strecur.nn.recursion import FeedforwardConfig, RecursionConfig, TRMConfig

# Vocabulary of the released code. Cost is linear in it, so a single extreme count must not determine it.
LARGEST_VOCABULARY = 2001

LastLoss = Literal["gaussian_kl", "gaussian_nll", "cross_entropy"]
Decision = Literal["median", "most_probable"]
GeneOrder = Literal["clusters", "panel", "random"]


def rises(scales: object) -> bool:
    """Whether these are increasing numbers of gene groups."""
    return isinstance(scales, tuple) and scales[:1] >= (1,) and list(scales) == sorted(set(scales))


@dataclass(frozen=True)
class GenARConfig:
    """Size and loss of GenAR :cite:p:`genar`.

    The defaults train on a CPU in minutes; ``GenARConfig.paper()`` is for a GPU.

    Attributes
    ----------
    scales
        Number of gene groups of each scale, rising to the number of genes. A scale need not divide the next one or the
        number of genes: groups are consecutive, disjoint, and differ in size by at most one. ``"paper"``: 1, 4, 8, a
        fifth and a half of the genes, all genes; ``"few"``: 1, 4, a tenth of the genes, all genes, in half the time;
        ``"three"``: 1, a tenth of the genes, all genes; ``"single"``: the genes alone.
    vocabulary
        Number of count tokens; the largest count that can be predicted is ``vocabulary - 1``, and larger ones are
        clipped in training. If ``None`` (default), up to the largest training count, at most 2,001.
    width, n_layers, n_heads, mlp_ratio
        Size of the transformer.
    condition_width
        Width of the condition, the embedding of a spot; its values should be of order 1.
    recursion
        How the condition is computed. If ``None`` (default), from the features and position of the spot, as in GenAR.
        Otherwise by a recursion over the backbone on the whole section, which is trained together with GenAR and whose
        answer is the condition, so that counts depend on the surroundings of a spot.
    dropout
        Dropout rate in the embedding of features and position, in the identities of gene groups, and in what a scale
        inherits from the coarser one.
    drop_path
        Stochastic depth: rate at which the last layer is skipped; it rises linearly over the layers.
    last_loss
        Loss of single genes: ``"gaussian_kl"``, divergence from a Gaussian around the true count (released code);
        ``"gaussian_nll"``, Gaussian likelihood of the mean token (publication); ``"cross_entropy"`` with the true
        token.
    softness
        Standard deviation of that Gaussian: a share of the count plus a constant. The constant blurs small counts:
        with 1, as in the released code, a model trained on zeros alone draws other counts almost half of the time.
    decision
        Point prediction from the predicted distribution: its ``"median"``, which has the smallest absolute error and
        is less often constant, or the ``"most_probable"`` count (GenAR).
    soft_labels
        Distribute the mean count of a gene group between the two counts around it (GenAR). If false, the label of a
        coarse scale is the nearest count.
    normalized
        Average instead of sum the loss over the gene groups of a scale, so that all scales have the same weight.
    gene_identity
        Learn an embedding of each gene, used by the last layer and the last scale.
    linear_start
        Add a linear model to the logits: the frequency of each count in each gene group of the training spots, tilted
        to higher or lower counts by a linear function of the condition. It is trained on all spots of a section, which
        is cheap; the transformer learns the rest. Not part of GenAR.
    gene_order
        Which genes are neighbours, and so in one group of coarse scales: ``"clusters"`` of co-expressed genes (GenAR),
        the order of the ``"panel"``, or a ``"random"`` one.
    n_groups
        Clusters of co-expressed genes that determine the order of the genes, before large ones are split.
    spots_per_step
        Spots of a section per optimizer step.
    teacher_forcing
        In training, let a scale see the true tokens of the coarser ones (GenAR). They tell most of the counts of a
        spot, which the condition then is hardly needed for; in prediction they are not known. If false, a scale sees
        the most probable tokens of the network, as in prediction.
    as_published
        Train as published, where options of the training do not say otherwise: at a learning rate of 1e-4 with a weight
        decay of 1e-4, for 50 passes over the spots, without warm-up, averaging of weights or changes of the features.
    """

    name: ClassVar[str] = "genar"
    has_two_states: ClassVar[bool] = False

    scales: tuple[int, ...] | ScaleDesign = "few"
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
    gene_order: GeneOrder = "clusters"
    soft_labels: bool = True
    teacher_forcing: bool = True
    as_published: bool = False

    def __post_init__(self) -> None:
        for name in ("scales", "softness"):
            if isinstance(value := getattr(self, name), list):  # when it comes from JSON
                object.__setattr__(self, name, tuple(value))
        if self.scales not in get_args(ScaleDesign) and not rises(self.scales):
            names = list(get_args(ScaleDesign))
            msg = f"scales={self.scales!r} must rise from 1 or more to the number of genes, or be one of {names}"
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
        for name, kind in (("last_loss", LastLoss), ("decision", Decision), ("gene_order", GeneOrder)):
            if getattr(self, name) not in get_args(kind):
                msg = f"{name}={getattr(self, name)!r}; choose one of {list(get_args(kind))}"
                raise ValueError(msg)
        if len(self.softness) != 2 or self.softness[0] < 0 or self.softness[1] <= 0:
            msg = f"softness={self.softness} must be a share from 0 on and a constant above 0, as in (0.1, 0.3)"
            raise ValueError(msg)

    @classmethod
    def paper(cls, **options: Any) -> GenARConfig:
        """Return the configuration of the publication, trained as published.

        The condition is as wide as the transformer. Sizes and optimisation are those of appendix D, with batches of up
        to 256 spots, all of one section.
        """
        published: dict[str, Any] = {
            **{"width": 768, "n_layers": 8, "n_heads": 8, "condition_width": 768, "scales": "paper"},
            **{"softness": (SLOPE, OFFSET), "decision": "most_probable", "linear_start": False},
            **{"spots_per_step": 256, "as_published": True},
        }
        return cls(**published | options)

    def fitted(self, n_genes: int, largest_count: int) -> GenARConfig:
        """Fill in the scales and the vocabulary for the genes and counts of the training spots."""
        scales = self.scales
        if isinstance(scales, str):
            scales = derive_scales(n_genes, scales)
        if scales[-1] != n_genes:
            msg = f"scales={scales} end with {scales[-1]} genes, but {n_genes} are to be predicted; leave scales out"
            raise ValueError(msg)
        vocabulary = self.vocabulary or min(max(largest_count + 1, 2), LARGEST_VOCABULARY)
        return replace(self, scales=scales, vocabulary=vocabulary)

    @property
    def body(self) -> RecursionConfig:
        """Recursion that computes the condition; one call of the backbone if ``recursion`` is ``None``."""
        return self.recursion or FeedforwardConfig()

    def with_steps(self, n_steps: int) -> GenARConfig:
        """Return the configuration with another number of outer steps in training."""
        if self.recursion is None:
            msg = f"n_steps={n_steps}: GenAR without a recursion has one step; see GenARConfig(recursion=...)"
            raise ValueError(msg)
        return replace(self, recursion=replace(self.recursion, n_steps=n_steps))

    @property
    def n_steps(self) -> int:
        """Outer steps of the recursion, each with an optimizer step."""
        return self.body.n_steps

    @property
    def group_counts(self) -> tuple[int, ...]:
        """Number of gene groups of each scale, after :meth:`fitted`."""
        if isinstance(self.scales, str):
            msg = f"scales={self.scales!r} are names; fill them in with fitted(n_genes, largest_count)"
            raise ValueError(msg)
        return self.scales

    @property
    def n_tokens(self) -> int:
        """Number of count tokens, after :meth:`fitted`."""
        if self.vocabulary is None:
            msg = "vocabulary=None; fill it in with fitted(n_genes, largest_count)"
            raise ValueError(msg)
        return self.vocabulary

    @property
    def n_genes(self) -> int:
        return self.group_counts[-1]

    @property
    def longest_sequence(self) -> int:
        """Length of the sequence of the last scale: the start, all coarser groups and all genes."""
        return 1 + sum(self.group_counts)
