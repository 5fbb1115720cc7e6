"""Schema of the ``config.json`` of a model: names, types and ranges, checked before any of it is used.

A model folder may come from anywhere. Its values become numbers, names and sizes, never paths or code.
"""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from strecur.models.network import ARCHITECTURES, Backbones
from strecur.nn.halting import RECIPES

MAX_DEPTH = 12
"""Largest nesting of values."""

MAX_INT = 10**9

LIMITS = {
    "features.width": 1_000_000,
    "width": 16_384,
    "condition_width": 16_384,
    "vocabulary": 1_000_000,
    "window": 100,
    "n_layers": 256,
    "n_heads": 256,
    "n_levels": 16,
    "n_global": 1_024,
    "n_groups": 100_000,
    "n_latent": 1_000,
    "n_deep": 1_000,
    "n_steps": 1_000,
    "n_repeats": 1_000,
    "encoder_depths": 64,
    "decoder_depths": 64,
    "scales": 1_000_000,
    "n_networks": 1_000,
    "neighbours": 1_000_000,
    "smoothing": 1_000_000,
    "mlp_ratio": 64.0,
}
"""Largest values of sizes and numbers of repetitions, far above useful ones."""

SMALLEST = {"n_global": 0, "n_latent": 0, "encoder_depths": 0, "decoder_depths": 0}
SHARES = {"blend", "dropout", "drop_path", "damping", "halt_threshold"}
POSITIVE = {"temperature", "median_size", "cells_per_pitch", "branch_gain", "mlp_ratio"}


ADDED_LATER = {
    *("positions", "skip", "shifted", "resampling"),
    *("gene_order", "soft_labels", "teacher_forcing", "as_published"),
}
"""Fields of networks that folders from before these options lack; the network then has their defaults."""


class Expression(TypedDict):
    """Fitted features of expression."""

    genes: list[str]
    size_factor_key: str | None
    layer: str | None
    row_sums: NotRequired[bool]


class Intensities(TypedDict):
    """Fitted features of the intensities of markers."""

    markers: list[str]
    transformation: Literal["arcsinh", "clr"]
    layer: str | None


class CellTypes(TypedDict):
    """Cell types of the training sections."""

    types: list[str]
    key: str


class Representation(TypedDict):
    """Fitted features of a representation, with a free-form record of the encoder."""

    use_rep: str
    has_views: bool
    record: dict[str, Any]
    names: NotRequired[list[str]]


class Lattices(TypedDict):
    """Layout of the training sections, and distances between their spots."""

    layout: Literal["hex", "square", "irregular"]
    pitch: list[float]
    pitch_um: list[float]


class Features(TypedDict):
    """Features made from one of several sources."""

    width: int
    standardised: bool
    neighbours: list[int]
    lattices: NotRequired[Lattices]
    use_rep: NotRequired[str]
    names: NotRequired[list[str]]
    expression: NotRequired[Expression]
    intensities: NotRequired[Intensities]
    cell_types: NotRequired[CellTypes]
    representation: NotRequired[Representation]


class Target(TypedDict):
    """Genes and scale of a model of expression."""

    genes: list[str]
    scale: Literal["log2", "log2_normalised", "counts"]
    median_size: float | None
    size_factor_key: str | None
    layer: str | None


class Common(TypedDict):
    """Fields of models of all kinds."""

    format: int
    kind: str
    strecur: str
    checksum: str
    id: str
    sections: list[str]
    features: Features
    history: dict[str, list[float]]
    scores: dict[str, dict[str, float]]
    halt_threshold: float | None


class DomainValues(Common):
    """A model of domains."""

    labels: list[str]
    coverage: NotRequired[dict[str, dict[str, float]]]
    smoothing: NotRequired[int]
    blend: NotRequired[float]
    temperature: float
    architecture: dict[str, Any]
    backbone: dict[str, Any]
    halting: str | None


class ExpressionValues(Common):
    """A model of expression; the linear one has no network."""

    target: Target
    reliability: dict[str, list[float]]
    architecture: NotRequired[dict[str, Any]]
    backbone: NotRequired[dict[str, Any]]
    halting: NotRequired[str | None]
    blend: NotRequired[float]
    n_networks: NotRequired[int]


SOURCES = ("use_rep", "expression", "intensities", "cell_types", "representation")
"""Fields of the features, of which a model has one."""

KINDS = {"domains": DomainValues, "expression": ExpressionValues}


class SchemaError(ValueError):
    """An invalid value; the message says where it is and what is expected."""


def check_values(values: dict[str, Any], backbones: Backbones) -> None:
    """Check everything that ``config.json`` alone determines.

    Raises
    ------
    SchemaError
        At the first value that is missing, unknown, of another type or out of range.
    """
    check(values, KINDS[values["kind"]], "")
    check_alike(values["history"], "history")
    features = values["features"]
    sources = [name for name in SOURCES if name in features]
    require(len(sources) == 1, f"features: has the sources {sources}; expected one")
    if "cell_types" in features:
        types, width = features["cell_types"]["types"], features["width"]
        require(len(set(types)) == len(types) == width, f"features: has {len(types)} cell types for width {width}")
    names = values["target"]["genes"] if values["kind"] == "expression" else values["labels"]
    require(len(names) > 0 and len(set(names)) == len(names), "labels or genes: are none, or not unique")
    if values["kind"] == "expression":
        n_genes = {"genes": len(names), **{f"reliability.{k}": len(v) for k, v in values["reliability"].items()}}
        require(len(set(n_genes.values())) == 1, f"reliability: has other lengths than the genes: {n_genes}")
    network = [name for name in ("architecture", "backbone", "halting") if name in values]
    require(len(network) in (0, 3), f"has {network} of architecture, backbone and halting; expected all or none")
    if network:
        check_network(values, backbones)


def check_network(values: dict[str, Any], backbones: Backbones) -> None:
    """Check the configurations of a network, whose fields are those of their dataclasses."""
    places: dict[str, dict[str, Any]] = {"architecture": dict(ARCHITECTURES), "backbone": dict(backbones)}
    for what, known in places.items():
        config = dict(values[what])
        name = config.pop("name", None)
        require(isinstance(name, str) and name in known, f"{what}.name: is {name!r}; expected one of {sorted(known)}")
        check(config, known[name], what)
        width, n_heads = config.get("width"), config.get("n_heads", 1)
        require(width is None or width % n_heads == 0, f"{what}: width {width} is not a multiple of n_heads {n_heads}")
    if values["architecture"]["name"] == "genar":
        n_genes, scales = len(values.get("target", {}).get("genes", [])), values["architecture"]["scales"]
        require(scales[-1:] == [n_genes], f"architecture.scales: end with {scales[-1:]}; there are {n_genes} genes")
    halting = values["halting"]
    require(halting is None or halting in RECIPES, f"halting: is {halting!r}; expected one of {sorted(RECIPES)}")


def check(value: Any, expected: Any, where: str) -> None:
    """Check a value against a type, and numbers against the range of their field."""
    origin = get_origin(expected)
    if expected is Any:
        return
    if is_typeddict(expected) or is_dataclass(expected):
        check_fields(value, expected, where)
    elif origin in (Union, UnionType):
        check_choice(value, get_args(expected), where)
    elif origin is Literal:
        require(value in get_args(expected), f"{where}: is {shown(value)}; expected one of {list(get_args(expected))}")
    elif origin in (list, tuple):
        require(isinstance(value, list), f"{where}: is {shown(value)}; expected a list")
        inner = get_args(expected)
        if origin is tuple and inner[-1] is not Ellipsis:
            require(len(value) == len(inner), f"{where}: has {len(value)} values; expected {len(inner)}")
        for part in value:
            check(part, inner[0], where)
    elif origin is dict:
        require(isinstance(value, dict), f"{where}: is {shown(value)}; expected names with values")
        for name, part in value.items():
            check(part, get_args(expected)[1], f"{where}.{name}")
    else:
        check_plain(value, expected, where)


def check_fields(value: Any, expected: type, where: str) -> None:
    """Check that all fields exist, and no others."""
    require(isinstance(value, dict), f"{where}: is {shown(value)}; expected names with values")
    marked = get_type_hints(expected, include_extras=True)
    if is_dataclass(expected):
        marked = {field.name: marked[field.name] for field in fields(expected)}
    hints = {name: get_args(hint)[0] if get_origin(hint) is NotRequired else hint for name, hint in marked.items()}
    wanted = {name for name, hint in marked.items() if get_origin(hint) is not NotRequired}
    if is_dataclass(expected):
        wanted -= ADDED_LATER
    missing, unknown = sorted(wanted - value.keys()), sorted(value.keys() - hints.keys())
    require(not missing, f"{where or 'it'}: lacks {missing}")
    require(not unknown, f"{where or 'it'}: has the unknown names {shown(unknown)}; a later version may know them")
    for name, part in value.items():
        check(part, hints[name], f"{where}.{name}" if where else name)


def check_choice(value: Any, choices: tuple[object, ...], where: str) -> None:
    """Check a value that may have one of several types."""
    if value is None and NoneType in choices:
        return
    found = SchemaError(f"{where}: is {shown(value)}")
    for choice in (choice for choice in choices if choice is not NoneType):
        try:
            check(value, choice, where)
        except SchemaError as error:
            found = error
        else:
            return
    raise found


def check_plain(value: Any, expected: type, where: str) -> None:
    """Check a string, number or bool."""
    accepted = (int, float) if expected is float else expected
    fits = isinstance(value, accepted) and (expected is bool or not isinstance(value, bool))
    require(fits, f"{where}: is {shown(value)}; expected {expected.__name__}")
    if expected in (int, float):
        check_range(value, expected, where)


def check_range(value: float, expected: type, where: str) -> None:
    """Check the range of a number; scores and histories may be NaN."""
    name = where.rpartition(".")[2]
    if where.startswith(("history.", "scores.", "reliability.")):
        return
    require(math.isfinite(value), f"{where}: is {value}; expected a finite number")
    low = SMALLEST.get(name, 1) if expected is int else 0
    high = 1 if name in SHARES else LIMITS.get(where, LIMITS.get(name, MAX_INT))
    require(low <= value <= high, f"{where}: is {value:.6g}; expected {low} to {high:,}")
    require(name not in POSITIVE or value > 0, f"{where}: is {value}; expected more than 0")


def check_alike(columns: dict[str, list[float]], where: str) -> None:
    """Check that all columns have the same length."""
    require(len({len(column) for column in columns.values()}) <= 1, f"{where}: has columns of different length")


def require(condition: bool, message: str) -> None:  # noqa: FBT001
    """Raise unless a condition holds."""
    if not condition:
        raise SchemaError(message)


def depth_of(value: object, limit: int = MAX_DEPTH) -> int:
    """Return the nesting depth of a value, up to a limit."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if limit == 0 or not isinstance(value, dict | list):
        return 0
    return 1 + max((depth_of(part, limit - 1) for part in inner), default=0)


def shown(value: object) -> str:
    """Return the beginning of a value as text."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
