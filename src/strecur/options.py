"""Options of training and prediction: frozen dataclasses that document and check every option in one place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from strecur._arguments import (
    check_choice,
    check_not_negative,
    check_number,
    check_positive,
    check_probability,
    check_several,
    check_share,
    check_whole,
    nearest_name,
)

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Features", "Inference", "Training"]

FeatureKind = Literal["counts", "intensities", "cell_types"]
Transform = Literal["arcsinh", "clr"]
Target = Literal["log2", "log2_normalised"]
Schedule = Literal["linear", "cosine"]
Selection = Literal["converged", "vote", "mean"]
Options = TypeVar("Options", "Features", "Training", "Inference")
Kind = TypeVar("Kind")

FLAT = {
    *("library_key", "use_rep", "genes", "extra_genes", "architecture", "backbone", "halting", "label_key", "rng"),
    *("coverage", "abstain", "novelty", "key_added", "table_key", "copy"),
}
"""Names that functions with these options take themselves."""

MAX_WINSORISED = 0.25

OPTIONS_OF = {
    "layer": ("counts", "intensities"),
    "size_factor_key": ("counts",),
    "normalise": ("counts",),
    "transform": ("intensities",),
    "cofactor": ("intensities",),
    "winsorise": ("intensities",),
    "cell_type_key": ("cell_types",),
}
"""Kinds of features that an option belongs to; the other options belong to all."""


@dataclass(frozen=True)
class Features:
    """How the values of an object become the features of a spot and, for expression, its target.

    Every function that takes these options also takes a mapping of the same names, such as
    ``features={"size_factor_key": "total_counts"}``.

    Attributes
    ----------
    kind
        For domains: what the features are made of. ``"counts"`` (default) are raw counts of genes. ``"intensities"``
        are protein markers, such as those of CODEX, IMC, MIBI or CITE-seq: all markers are used, transformed,
        winsorised and scaled, with parameters fitted on the training sections. ``"cell_types"`` are the categories of
        ``obs[cell_type_key]``, one column per type of the training sections. For expression, always ``"counts"``.
    layer
        Layer of the raw counts or intensities. If ``None`` (default), ``X``.
    size_factor_key
        Column of ``obs`` with the library size of each spot. If ``None`` (default), the sum of its counts over all
        genes of the object; name a column if the object holds a part of the genes that were measured. For expression it
        belongs to ``target="log2_normalised"``.
    normalise
        For domains: divide the counts of each spot by its library size before the logarithm (to 10,000). With
        ``False`` they are taken as they are, as in the spatial TRM.
    n_genes
        Number of highly variable genes that features of expression are made of, chosen across sections. Not used with
        a ready representation.
    n_components
        Number of principal components. If ``None`` (default), 50 of expression and 100 of an embedding of patches.
        Markers are taken as they are if there are no more of them than components.
    transform
        For intensities: ``"arcsinh"`` (default) of the intensity divided by ``cofactor``, or ``"clr"``, the centred
        log-ratio of the markers of a spot, which does not depend on its overall brightness. It is log(x + 1) minus its
        mean over the markers, with negative intensities set to 0.
    cofactor
        Intensity up to which arcsinh is about linear; it is logarithmic above. If ``None`` (default), for each marker
        the median of its positive intensities in the training sections, whatever the unit.
    winsorise
        For intensities: share of the spots of the training sections, at either end of each marker (at least one spot),
        whose values lie outside the limits to which values are clipped; 0 for no limits.
    cell_type_key
        For cell types: column of ``obs`` with the type of each spot. If ``None`` (default), ``"cell_type"``. Spots
        without a type, or with one that no training section has, get zero in all columns.
    neighbours
        Append the mean of the components over this many nearest spots, for each number given; ``()`` for none. If
        ``None`` (default), (19, 91, 301) for domains and (9, 25, 81) for expression.
    standardise
        Centre and scale the components of each section separately, which removes batch effects such as staining. The
        components of an embedding are scaled to the spread that they have over the training spots, others to 1. Cell
        types are centred and scaled by the training sections.
    target
        Scale on which expression is predicted: ``"log2"`` is log2(counts + 1), as in the spatial TRM, in which the
        library size of a spot dominates; ``"log2_normalised"`` is the same after dividing the counts by the library
        size of their spot and multiplying by the median library size of the training spots. Models of counts predict
        counts in any case.

    Examples
    --------
    >>> import strecur as st
    >>> st.Features(n_components=30, neighbours=(7,)).n_components
    30
    """

    kind: FeatureKind = "counts"
    layer: str | None = None
    size_factor_key: str | None = None
    normalise: bool = True
    n_genes: int = 3000
    n_components: int | None = None
    transform: Transform = "arcsinh"
    cofactor: float | None = None
    winsorise: float = 0.001
    cell_type_key: str | None = None
    neighbours: Sequence[int] | None = None
    standardise: bool = True
    target: Target = "log2"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(FeatureKind))
        check_choice("transform", self.transform, get_args(Transform))
        if self.cofactor is not None:
            check_positive("cofactor", self.cofactor)
        if not 0 <= check_number("winsorise", self.winsorise) < MAX_WINSORISED:
            msg = f"winsorise={self.winsorise} must be at least 0 and below {MAX_WINSORISED}"
            raise ValueError(msg)
        check_whole("n_genes", self.n_genes)
        if self.n_components is not None:
            check_whole("n_components", self.n_components)
        if self.neighbours is not None:
            check_several("neighbours", self.neighbours)
            object.__setattr__(self, "neighbours", tuple(self.neighbours))
        check_choice("target", self.target, get_args(Target))
        if not self.normalise and self.size_factor_key is not None:
            msg = (
                f"size_factor_key={self.size_factor_key!r} is what counts are normalised by; leave out normalise=False"
            )
            raise ValueError(msg)
        if self.transform == "clr" and self.cofactor is not None:
            msg = f"cofactor={self.cofactor} is for transform='arcsinh'; leave it out"
            raise ValueError(msg)
        check_kind(self)


def check_kind(features: Features) -> None:
    """Raise if an option is given that belongs to another kind of features."""
    defaults = {field.name: field.default for field in fields(features)}
    for name, kinds in OPTIONS_OF.items():
        if features.kind not in kinds and getattr(features, name) != defaults[name]:
            wanted = " or ".join(f"kind={kind!r}" for kind in kinds)
            msg = f"{name} is an option of {wanted}, and kind is {features.kind!r}; leave it out, or change kind"
            raise ValueError(msg)


@dataclass(frozen=True)
class Training:
    """How long and how a network is trained.

    Every function that takes these options also takes a mapping of the same names, such as
    ``training={"max_epochs": 40}``. ``None`` is the default of the task and architecture.

    Attributes
    ----------
    max_epochs
        Passes over the training sections at most. By default 800 optimizer steps in all for domains and 300 for each
        network of expression (at least 10 passes); 120 visits of a section for GenAR; 100 passes for HiST.
    max_minutes
        Shorten the training, of all networks together, to what fits into this time; the result then depends on the
        speed of the machine.
    validation
        Where it is decided how long to train, which weights are kept, and how network and linear baseline are blended:
        names of sections, which are not learned from; ``"blocks"``, blocks with 15 % of the annotation or counts of the
        training sections, which the network does not learn from; or ``None``, nowhere. ``"auto"`` (default) takes one
        section if there are at least four, otherwise blocks for domains and nothing for expression. Blocks of fewer
        than 25 spots are not used.
    n_steps
        Outer steps per visit of a section, each with an optimizer step (deep supervision). If ``None`` (default), that
        of the architecture.
    slots
        Sections that are visited in turn: each optimizer step advances one of them by one outer step, and a section
        that is done is replaced by the next. Consecutive optimizer steps then see different sections at different
        outer steps, as in TRM, so that more outer steps can be trained. If ``None`` (default), as many as outer steps.
    early_exit
        Replace a section as soon as its halt probability exceeds the threshold of the recipe (with exploration, as in
        TRM). Needs a halting recipe.
    batch_sections
        Sections per batch.
    learning_rate
        Peak learning rate of AdamW. By default 1e-3; 5e-4 for the universal transformer on expression, 5e-3 for GenAR
        and 1e-4 for HiST.
    warmup
        Optimizer steps over which the learning rate rises to its peak. By default 30; 0 for HiST.
    schedule
        How the learning rate falls to zero after that: ``"linear"`` or ``"cosine"``.
    weight_decay
        Decay of the weights of linear maps. By default 0.5 for domains and GenAR, 0.1 for expression, 1e-4 for HiST.
    clip
        Largest norm of the gradient.
    ema
        Decay of the exponential moving average of the weights, which is what is kept. By default 0.98; 0 for HiST.
    patience
        Stop after this many validations without improvement: of the adjusted Rand index (domains) or the correlation
        (expression) on validation sections; in blocks, of the log-likelihood of the blend or of R².
    validate_every
        Epochs between validations.
    n_networks
        For expression: train as many networks from different random numbers (an ensemble), one after the other, and
        average their predictions. A single network depends on chance, and how much several differ becomes part of the
        uncertainty. By default 4, with eight or more training sections 2; 1 for presets and GenAR.
    augmentation
        Draws a changed copy of a training section at each visit: a :class:`strecur.engine.Augmentation`, or any
        callable of a section and a random generator.
    tile
        Train on tiles of this many lattice cells along a side, each with a halo as wide as the receptive field of one
        outer step. If ``None`` (default), whole sections (for domains, crops of 4,096 neighbouring spots), or tiles if
        a section exceeds the memory. Global tokens see the tile in training and the section in prediction.
    smoothing
        For domains: number of nearest spots, the spot itself included, over which the log-probabilities of network and
        linear baseline are averaged. If ``None`` (default), 7 where a majority vote of as many neighbours keeps 99 % of
        the annotation, otherwise 1.
    leave_one_out
        Also train one model without each of the training sections, at least two, and measure its answer there. For
        domains, all of these answers calibrate probabilities and label sets (``model.coverage``); for expression, they
        rate the genes (``model.reliability``). Training takes as many times longer as there are sections, plus one. No
        section may be held out for validation; with four or more pass ``validation="blocks"`` or ``None``. With
        ``False`` (default), label sets need :func:`strecur.tl.calibrate`, and genes are rated by the linear baseline
        alone.
    checkpoint
        Folder in which the state of the training is stored after epochs, so that the same call resumes after an
        interruption and gives the same model. With several processes it needs ``slots=1`` and no ``early_exit``. If
        ``None`` (default), nothing is written.

    Examples
    --------
    >>> import strecur as st
    >>> st.Training(max_epochs=40, learning_rate=5e-4).max_epochs
    40
    """

    max_epochs: int | None = None
    max_minutes: float | None = None
    validation: Literal["auto", "blocks"] | str | Sequence[str] | None = "auto"
    n_steps: int | None = None
    slots: int | None = None
    early_exit: bool = False
    batch_sections: int = 1
    learning_rate: float | None = None
    warmup: int | None = None
    schedule: Schedule | None = None
    weight_decay: float | None = None
    clip: float = 1.0
    ema: float | None = None
    patience: int = 8
    validate_every: int = 5
    n_networks: int | None = None
    augmentation: Callable[..., Any] | None = None
    tile: int | None = None
    smoothing: int | None = None
    leave_one_out: bool = False
    checkpoint: str | Path | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        for name in given.keys() & {
            "max_epochs",
            "n_steps",
            "slots",
            "tile",
            "smoothing",
            "batch_sections",
            "n_networks",
            "patience",
            "validate_every",
        }:
            check_whole(name, given[name])
        for name in given.keys() & {"max_minutes", "learning_rate", "clip"}:
            check_positive(name, given[name])
        if "warmup" in given:
            check_whole("warmup", self.warmup, least=0)
        if "schedule" in given:
            check_choice("schedule", self.schedule, get_args(Schedule))
        if "weight_decay" in given:
            check_not_negative("weight_decay", self.weight_decay)
        if "ema" in given:
            check_share("ema", self.ema)
        if self.augmentation is not None and not callable(self.augmentation):
            msg = f"augmentation={self.augmentation!r}: pass a strecur.engine.Augmentation, or leave it out"
            raise TypeError(msg)


@dataclass(frozen=True)
class Inference:
    """How a trained network is run on new sections.

    Every function that takes these options also takes a mapping of the same names, such as ``inference={"depth": 8}``.

    Attributes
    ----------
    depth
        Outer steps. If ``None`` (default), as many as in training.
    breadth
        Independent restarts. With more than one, or a network trained with random starts, each has a random start.
    selection
        How restarts become one answer: the ``"converged"`` one with the smallest residual, a ``"vote"`` for every spot
        (domains only), or the ``"mean"``. If ``None`` (default), ``"converged"`` for domains and ``"mean"`` for
        expression.
    blend
        Weight of the network in the answer, from 0 (linear baseline) to 1 (network alone); the linear baseline has the
        rest. If ``None`` (default), that of the model, chosen on its validation sections or equal. Models of counts
        answer by the network alone.
    noise
        Standard deviation of the noise added to every update of the states.
    symmetric
        Test-time augmentation: average over the flips (on square lattices also rotations) of the lattice.
    stop_early
        Stop a section at its halt step instead of running all steps (adaptive computation).
    halt_threshold
        Halt probability above which a section stops, between 0 and 1. If ``None`` (default), that of the model, from
        :func:`strecur.tl.calibrate_halting` or its halting recipe.
    min_steps
        Outer steps before which no section stops.
    slots
        Sections that are computed together; a section that stops makes room for the next one. It does not change
        results.
    tile, halo
        Compute every step in tiles of this many cells along a side, with a halo of at least the receptive field of one
        outer step; 0: whole sections. For networks without global tokens, halting and noise, with the same results.
    n_samples
        For models of counts: number of samples to draw from the predicted distribution (0, or at least 2), used to
        estimate its spread. The point prediction does not change.
    temperature
        Temperature of these samples; below 1 they are closer to the most probable counts and vary less.

    Examples
    --------
    >>> import strecur as st
    >>> st.Inference(depth=8, breadth=4).depth
    8
    """

    depth: int | None = None
    breadth: int = 1
    selection: Selection | None = None
    blend: float | None = None
    noise: float = 0.0
    symmetric: bool = True
    stop_early: bool = False
    halt_threshold: float | None = None
    min_steps: int = 2
    slots: int = 1
    tile: int = 0
    halo: int = 0
    n_samples: int = 0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.depth is not None:
            check_whole("depth", self.depth)
        for name in ("breadth", "min_steps", "slots"):
            check_whole(name, getattr(self, name))
        for name in ("tile", "halo"):
            check_whole(name, getattr(self, name), least=0)
        check_not_negative("noise", self.noise)
        if self.halt_threshold is not None:
            check_probability("halt_threshold", self.halt_threshold)
        if self.blend is not None:
            check_share("blend", self.blend)
        if self.selection is not None:
            check_choice("selection", self.selection, get_args(Selection))
        check_whole("n_samples", self.n_samples, least=-float("inf"))
        if self.n_samples < 0 or self.n_samples == 1:
            msg = f"n_samples={self.n_samples} must be 0 or at least 2"
            raise ValueError(msg)
        check_positive("temperature", self.temperature)


def as_options(
    kind: type[Kind],
    argument: str,
    given: Kind | Mapping[str, object] | None,
    *,
    place: str = "strecur",
    flat: Collection[str] = FLAT,
) -> Kind:
    """Return options given as an object, as a mapping of their names, or not at all.

    Parameters
    ----------
    kind
        Class of the options.
    argument
        Argument that takes them.
    given
        What was passed.
    place
        Module of the class, for messages.
    flat
        Names that the functions with this argument take themselves.

    Raises
    ------
    TypeError
        If it is neither, or a mapping has a name that is not an option; the message names the nearest one.
    """
    if given is None:
        return kind()
    if isinstance(given, kind):
        return given
    if not isinstance(given, Mapping):
        msg = f"{argument}={given!r}: pass a {place}.{kind.__name__}, or a mapping of its options"
        raise TypeError(msg)
    known = option_names(kind)
    for name in map(str, given):
        if name not in known:
            msg = f"{argument} has no option {name!r}; {hint_for(name, known, flat)}"
            raise TypeError(msg)
    return kind(**dict[str, Any](given))


def option_names(kind: Any) -> list[str]:
    """Return the names of the options of a class."""
    return [field.name for field in fields(kind)]


def fill(options: Options, defaults: Mapping[str, Any]) -> Options:
    """Replace options that are ``None`` by defaults."""
    return replace(options, **{name: value for name, value in defaults.items() if getattr(options, name) is None})


def hint_for(name: str, known: Sequence[str], flat: Collection[str]) -> str:
    """Say where an unknown option belongs, or which one may have been meant."""
    if name in flat:
        return f"{name} is an argument of the function itself"
    for kind in (Features, Training, Inference):
        if name in option_names(kind):
            return f"{name} is an option of strecur.{kind.__name__}"
    last_word = name.rpartition("_")[2]  # of patch_um
    nearest = last_word if last_word in known else nearest_name(name, known, cutoff=0.5)
    return f"did you mean {nearest!r}?" if nearest else f"there are {sorted(known)}"
