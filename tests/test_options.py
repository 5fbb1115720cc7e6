"""Options are checked where they are made, and taken as objects and as mappings alike."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import FrozenInstanceError, fields, replace

import pytest

import strecur as st
from strecur.engine import Augmentation
from strecur.options import FLAT, as_options, fill

NAN, INF = float("nan"), float("inf")
KINDS = {"features": st.Features, "training": st.Training, "inference": st.Inference}
WHOLE, NUMBER, CHOICE = "pass a whole number", "pass a number", "choose one of"
LEAST, FINITE, POSITIVE = "at least one is needed", "pass a finite number", "must be positive"


def whole(*names: str) -> list[tuple]:
    """Return what is wrong of a whole number of at least one."""
    return [
        (name, value, error, f"{name}={value!r}: {message}")
        for name in names
        for value, error, message in (
            (0, ValueError, LEAST),
            (-3, ValueError, LEAST),
            (2.5, TypeError, WHOLE),
            (2.0, TypeError, WHOLE),
            (True, TypeError, WHOLE),
            ("3", TypeError, WHOLE),
        )
    ]


def positive(*names: str) -> list[tuple]:
    """Return what is wrong of a number above 0."""
    return [
        (name, value, error, f"{name}={value!r}{message}")
        for name in names
        for value, error, message in (
            (0, ValueError, f" {POSITIVE}"),
            (-0.5, ValueError, f" {POSITIVE}"),
            (NAN, ValueError, f": {FINITE}"),
            (INF, ValueError, f": {FINITE}"),
            ("1", TypeError, f": {NUMBER}"),
            (True, TypeError, f": {NUMBER}"),
        )
    ]


def not_negative(*names: str) -> list[tuple]:
    """Return what is wrong of a number of at least 0."""
    return [
        (name, value, error, f"{name}={value!r}{message}")
        for name in names
        for value, error, message in (
            (-1.0, ValueError, " must not be negative"),
            (NAN, ValueError, f": {FINITE}"),
            ("1", TypeError, f": {NUMBER}"),
        )
    ]


BAD: dict[str, list[tuple]] = {
    "features": [
        *whole("n_genes", "n_components"),
        ("neighbours", 19, TypeError, "neighbours=19: pass a list of whole numbers"),
        ("neighbours", "19", TypeError, "neighbours='19': pass a list of whole numbers"),
        ("neighbours", (7, 0), ValueError, f"neighbours[1]=0: {LEAST}"),
        ("neighbours", [7.5], TypeError, f"neighbours[0]=7.5: {WHOLE}"),
        ("kind", "proteins", ValueError, "kind='proteins'; choose one of ['counts', 'intensities', 'cell_types']"),
        ("transform", "log", ValueError, "transform='log'; choose one of ['arcsinh', 'clr']"),
        *positive("cofactor"),
        ("winsorise", 0.5, ValueError, "winsorise=0.5 must be at least 0 and below 0.25"),
        ("winsorise", -0.1, ValueError, "winsorise=-0.1 must be at least 0 and below 0.25"),
        ("winsorise", NAN, ValueError, f"winsorise=nan: {FINITE}"),
        ("winsorise", 0.01, ValueError, "winsorise is an option of kind='intensities', and kind is 'counts'"),
        ("cell_type_key", "type", ValueError, "cell_type_key is an option of kind='cell_types', and kind is 'counts'"),
        ("target", "log10", ValueError, "target='log10'; choose one of ['log2', 'log2_normalised']"),
        ("n_genes", None, TypeError, f"n_genes=None: {WHOLE}"),
    ],
    "training": [
        *whole(
            "max_epochs",
            "n_steps",
            "n_networks",
            "slots",
            "batch_sections",
            "patience",
            "validate_every",
            "tile",
            "smoothing",
        ),
        *positive("max_minutes", "learning_rate", "clip"),
        *not_negative("weight_decay"),
        ("warmup", -1, ValueError, "warmup=-1: at least 0 is needed"),
        ("warmup", 1.5, TypeError, f"warmup=1.5: {WHOLE}"),
        ("schedule", "step", ValueError, "schedule='step'; choose one of ['linear', 'cosine']"),
        ("ema", 1.5, ValueError, "ema=1.5 must lie between 0 and 1"),
        ("ema", -0.1, ValueError, "ema=-0.1 must lie between 0 and 1"),
        ("ema", NAN, ValueError, f"ema=nan: {FINITE}"),
        ("augmentation", 0.3, TypeError, "augmentation=0.3: pass a strecur.engine.Augmentation"),
    ],
    "inference": [
        *whole("depth", "breadth", "min_steps", "slots"),
        *not_negative("noise"),
        ("blend", 1.5, ValueError, "blend=1.5 must lie between 0 and 1"),
        ("blend", "half", TypeError, "blend='half': pass a number"),
        *positive("temperature"),
        ("tile", -1, ValueError, "tile=-1: at least 0 is needed"),
        ("halo", 1.5, TypeError, f"halo=1.5: {WHOLE}"),
        ("halt_threshold", 0, ValueError, "halt_threshold=0 must lie between 0 and 1"),
        ("halt_threshold", 1.0, ValueError, "halt_threshold=1.0 must lie between 0 and 1"),
        ("selection", "best", ValueError, "selection='best'; choose one of ['converged', 'vote', 'mean']"),
        ("n_samples", 1, ValueError, "n_samples=1 must be 0 or at least 2"),
        ("n_samples", -3, ValueError, "n_samples=-3 must be 0 or at least 2"),
        ("n_samples", 2.0, TypeError, f"n_samples=2.0: {WHOLE}"),
    ],
}
CASES = [(argument, *case) for argument, cases in BAD.items() for case in cases]
# What no value of these can be told to be wrong of before the data are there.
OF_THE_DATA = {
    "features": {"layer", "size_factor_key", "normalise", "standardise"},
    "training": {"validation", "early_exit", "leave_one_out", "checkpoint"},
    "inference": {"symmetric", "stop_early"},
}


@pytest.mark.parametrize(("argument", "name", "value", "error", "message"), CASES)
def test_every_option_is_checked_where_it_is_made(argument, name, value, error, message):
    for make in (KINDS[argument], lambda **given: as_options(KINDS[argument], argument, given)):
        with pytest.raises(error) as caught:
            make(**{name: value})
        assert message in str(caught.value)


@pytest.mark.parametrize("argument", KINDS)
def test_every_option_has_a_case(argument):
    tried = {name for name, *_ in BAD[argument]}
    assert tried | OF_THE_DATA[argument] == {field.name for field in fields(KINDS[argument])}
    assert not tried & OF_THE_DATA[argument]


@pytest.mark.parametrize(
    "options",
    [
        st.Features(neighbours=(), n_components=1, target="log2_normalised"),
        st.Training(warmup=0, weight_decay=0, ema=0, schedule="cosine", augmentation=Augmentation(), validation=None),
        st.Training(ema=1, weight_decay=0.0, max_minutes=0.1, validation=["S1"]),
        st.Inference(noise=0, tile=0, halo=0, n_samples=2, halt_threshold=0.5, selection="vote"),
        *(kind() for kind in KINDS.values()),
    ],
)
def test_values_at_the_edge_are_taken_and_a_mapping_is_the_same(options):
    argument = {kind: name for name, kind in KINDS.items()}[type(options)]
    assert as_options(type(options), argument, dict(vars(options))) == options
    assert as_options(type(options), argument, options) is options


@pytest.mark.parametrize("argument", KINDS)
def test_without_options_there_are_the_defaults(argument):
    kind = KINDS[argument]
    assert as_options(kind, argument, None) == as_options(kind, argument, {}) == kind()


@pytest.mark.parametrize("given", [8, "depth=8", [("depth", 8)], st.Training(), st.Features])
def test_what_is_neither_options_nor_a_mapping_raises(given):
    with pytest.raises(TypeError, match=r"inference=.*: pass a strecur\.Inference, or a mapping of its options"):
        as_options(st.Inference, "inference", given)


@pytest.mark.parametrize(
    ("argument", "name", "hint"),
    [
        ("training", "max_epoch", "training has no option 'max_epoch'; did you mean 'max_epochs'?"),
        ("training", "lr", "training has no option 'lr'; there are ['augmentation', "),
        ("training", "epochs", "did you mean 'max_epochs'?"),
        ("features", "neighbors", "features has no option 'neighbors'; did you mean 'neighbours'?"),
        ("inference", "depths", "did you mean 'depth'?"),
        ("inference", 3, "inference has no option '3'; there are "),
        ("features", "max_epochs", "max_epochs is an option of strecur.Training"),
        ("training", "neighbours", "neighbours is an option of strecur.Features"),
        ("training", "depth", "depth is an option of strecur.Inference"),
        ("inference", "target", "target is an option of strecur.Features"),
        ("training", "rng", "rng is an argument of the function itself"),
        ("features", "use_rep", "use_rep is an argument of the function itself"),
        ("inference", "coverage", "coverage is an argument of the function itself"),
    ],
)
def test_an_unknown_name_raises_and_says_what_was_meant_or_where_it_belongs(argument, name, hint):
    with pytest.raises(TypeError) as caught:
        as_options(KINDS[argument], argument, {name: 3})
    assert hint in str(caught.value)


@pytest.mark.parametrize("argument", KINDS)
def test_options_do_not_change(argument):
    options = KINDS[argument]()
    for field in fields(options):
        with pytest.raises(FrozenInstanceError):
            setattr(options, field.name, None)
    assert hash(options) == hash(KINDS[argument]())


def test_a_list_of_neighbours_becomes_a_tuple():
    given = [7, 19]
    options = st.Features(neighbours=given)
    assert options.neighbours == (7, 19)
    given.append(301)
    assert options.neighbours == (7, 19)
    assert options == st.Features(neighbours=(7, 19))


def test_only_what_is_none_is_filled():
    training = st.Training(learning_rate=0.1, warmup=0)
    found = fill(training, {"learning_rate": 0.2, "warmup": 30, "max_epochs": 7, "clip": 5.0})
    assert found == replace(training, max_epochs=7)
    assert training.max_epochs is None
    with pytest.raises(ValueError, match="max_epochs=0"):
        fill(training, {"max_epochs": 0})


# The functions that take them


def functions() -> dict[str, object]:
    """Return every public function."""
    found = {}
    for space in ("pp", "tl", "pl", "get", "metrics", "datasets"):
        module = importlib.import_module(f"strecur.{space}")
        found |= {f"{space}.{name}": getattr(module, name) for name in module.__all__}
    return {name: thing for name, thing in found.items() if inspect.isfunction(thing)}


def parameters(function: object) -> set[str]:
    return set(inspect.signature(function).parameters)


FUNCTIONS = functions()
TAKES_OPTIONS = sorted(name for name, function in FUNCTIONS.items() if KINDS.keys() & parameters(function))
NAMES = {field.name for kind in KINDS.values() for field in fields(kind)}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_functions_have_at_most_twelve_parameters(name):
    assert len(parameters(FUNCTIONS[name])) <= 12


@pytest.mark.parametrize("name", TAKES_OPTIONS)
def test_an_option_is_given_in_one_place(name):
    found = parameters(FUNCTIONS[name])
    assert not found & NAMES
    assert found & FLAT == found - {"adata", "model", "groups", "group_key", "donor_key", "path", *FLAT_OF_MANY, *KINDS}


# arguments of cross_validate, plural
FLAT_OF_MANY = {"architectures", "seeds", "train"}


def test_the_functions_that_take_options_are_these():
    assert TAKES_OPTIONS == [
        "tl.calibrate",
        "tl.calibrate_expression",
        "tl.cross_validate",
        "tl.predict_expression",
        "tl.train_domains",
        "tl.train_expression",
        "tl.trm_domains",
    ]
    for name in TAKES_OPTIONS:
        for argument in KINDS.keys() & parameters(FUNCTIONS[name]):
            parameter = inspect.signature(FUNCTIONS[name]).parameters[argument]
            assert parameter.default is None
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            assert parameter.annotation == f"{KINDS[argument].__name__} | Mapping[str, Any] | None"


@pytest.mark.parametrize("argument", KINDS)
def test_every_option_is_documented(argument):
    text = inspect.getdoc(KINDS[argument])
    assert [field.name for field in fields(KINDS[argument]) if f"\n{field.name}" not in text.replace(", ", "\n")] == []
