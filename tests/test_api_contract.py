"""One shape for every public function; walks whatever the namespaces export."""

from __future__ import annotations

import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path

import pytest

import strecur

REQUIRED = {
    "pp": {"to_grid"},
    "tl": {"train_domains", "trm_domains"},
    "pl": {"confidence", "domains", "halt_steps", "refinement", "training"},
    "datasets": {"synthetic_sections"},
    "metrics": {"domain_scores", "expression_scores"},
    "get": set(),
    "models": {"DomainModel", "ExpressionModel", "LinearExpressionModel", "load_model"},
    "presets": {"hist"},
}
# Functions whose first argument is not an AnnData, and what it is instead.
FIRST_PARAMETER = {
    "pl.benchmark": "table",  # what tl.cross_validate returned
    "pl.landscape": "table",  # what tl.landscape returned
    "pl.recursion_sweep": "table",  # what tl.recursion_sweep returned
    "pl.training": "model",  # the history belongs to the model, no AnnData is needed
    "pp.load_encoder": "name",
    "tl.predict_cohort": "paths",  # of files, which are read one at a time
    "tl.sample_cohort": "paths",
    "pp.read_hest": "folder",  # makes the AnnData
    "pp.read_wsidata": "wsi",  # makes the AnnData
    "pp.tile_image": "image",  # makes the AnnData
}
READS_FILES = {"tl.predict_cohort", "tl.sample_cohort"}  # of SpatialData too
# Parameters whose text begins alike everywhere; after the first clause a function may say what is particular to it.
SAME_TEXT = ("adata", "library_key", "table_key", "copy", "rng")
CLAUSE_END = re.compile(r"[.;](?= |$)")
SECTION = re.compile(r"^(\w[\w ]*)\n-+$", re.M)


def namespace(name: str):
    return importlib.import_module(f"strecur.{name}")


def exported(*names: str) -> dict[str, object]:
    """Return every public function and class of some namespaces, and the public methods of the classes."""
    found = {}
    for name in names:
        for member in getattr(namespace(name), "__all__", []):  # its absence fails a test of its own
            thing = getattr(namespace(name), member)
            found[f"{name}.{member}"] = thing
            if inspect.isclass(thing):
                methods = inspect.getmembers(thing, lambda m: inspect.isfunction(m) or inspect.ismethod(m))
                own = {f"{name}.{member}.{k}": m for k, m in methods if not k.startswith("_")}
                found |= {k: m for k, m in own.items() if m.__module__.startswith("strecur.")}
    return {name: thing for name, thing in found.items() if callable(thing)}


def verbs(*names: str) -> dict[str, object]:
    """Return the public functions of some namespaces, without classes and their methods."""
    return {k: v for k, v in exported(*names).items() if inspect.isfunction(v) and k.count(".") == 1}


VERBS = verbs("pp", "tl", "pl")
OPTIONS = {kind.__name__: kind for kind in (strecur.Features, strecur.Training, strecur.Inference)}
DOCUMENTED = exported(*REQUIRED) | OPTIONS
every_verb = pytest.mark.parametrize("name", sorted(VERBS))
every_documented = pytest.mark.parametrize("name", sorted(DOCUMENTED))


def parameters(thing: object) -> dict[str, inspect.Parameter]:
    found = inspect.signature(thing).parameters
    return {name: p for name, p in found.items() if name not in {"self", "cls"}}


def sections(thing: object) -> dict[str, str]:
    """Split a numpy docstring into its sections."""
    _, *parts = SECTION.split(inspect.getdoc(thing) or "")
    return {title: text.strip("\n") for title, text in zip(parts[::2], parts[1::2], strict=True)}


def described(thing: object, section: str = "Parameters") -> dict[str, str]:
    """Return the text of every parameter, which stands in indented lines below its name."""
    text, names = defaultdict(list), []
    for line in sections(thing).get(section, "").splitlines():
        if line and not line.startswith(" "):
            names = [part.strip().lstrip("*") for part in line.split(",")]
        for name in names:
            text[name].append(line.strip())
    return {name: " ".join(lines[1:]).strip() for name, lines in text.items()}


@pytest.mark.parametrize("name", sorted(REQUIRED))
def test_namespaces_export_what_they_must_and_nothing_by_accident(name):
    module = namespace(name)
    assert set(module.__all__) >= REQUIRED[name]
    assert len(set(module.__all__)) == len(module.__all__)
    functions = {k for k, v in vars(module).items() if inspect.isfunction(v) and v.__module__.startswith("strecur.")}
    functions = {name for name in functions if not name.startswith("_")}
    assert functions <= set(module.__all__)


def test_every_public_name_is_on_an_api_page():
    docs = Path(__file__).parents[1] / "docs"
    page = "\n".join((docs / name).read_text(encoding="utf-8") for name in ("api.md", "api-extension.md"))
    names = {name for name in DOCUMENTED if name.count(".") == 1} | OPTIONS.keys()
    listed = {line.strip() for line in page.splitlines()}
    assert {name for name in names if not {name, name.removeprefix("models.")} & listed} == set()


def test_top_level_names_resolve():
    spaces = {"datasets", "get", "metrics", "pl", "pp", "presets", "tl"}
    assert set(strecur.__all__) == {*spaces, *OPTIONS, "load_model", "settings"}
    for name in strecur.__all__:
        assert getattr(strecur, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = strecur.nonsense


@every_verb
def test_first_parameter_is_adata(name):
    first = next(iter(parameters(VERBS[name]).values()))
    if name in FIRST_PARAMETER:
        assert first.name == FIRST_PARAMETER[name]
        return
    assert first.name == "adata"
    assert first.annotation == "AnnData | SpatialData"
    assert first.default is inspect.Parameter.empty


@every_verb
def test_at_most_three_positional_parameters(name):
    kinds = [p.kind for p in parameters(VERBS[name]).values()]
    positional = [kind for kind in kinds if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert len(positional) <= 3
    assert set(kinds) <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}


@every_verb
def test_table_key_comes_with_adata(name):
    found = parameters(VERBS[name])
    if name in FIRST_PARAMETER and name not in READS_FILES:
        assert "table_key" not in found
        return
    assert found["table_key"].default is None
    assert found["table_key"].kind is inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", sorted(verbs("pp", "tl")))
def test_what_writes_has_copy_and_key_added(name):
    found, returns = parameters(VERBS[name]), inspect.signature(VERBS[name]).return_annotation
    writes = {"copy" in found, "key_added" in found, returns == "AnnData | None"}
    assert len(writes) == 1, "copy, key_added and '-> AnnData | None' belong together"
    assert returns != "None"
    if "copy" in found:
        assert found["copy"].default is False
        assert {found[k].kind for k in ("copy", "key_added")} == {inspect.Parameter.KEYWORD_ONLY}
        assert isinstance(found["key_added"].default, str)
        assert re.search(r"(obs|obsm|uns)\[", sections(VERBS[name])["Returns"]), "name every slot written"


@pytest.mark.parametrize("name", sorted(verbs("pl")))
def test_plots_take_axes_and_return_them(name):
    found = parameters(VERBS[name])
    assert {"ax", "show"} <= set(found)
    assert not {"copy", "save"} & set(found)
    for key in ("ax", "show"):
        assert found[key].kind is inspect.Parameter.KEYWORD_ONLY
        assert found[key].default is None
    assert "Axes" in inspect.signature(VERBS[name]).return_annotation


@every_documented
def test_every_parameter_is_documented(name):
    thing = DOCUMENTED[name]
    assert inspect.getdoc(thing), "has no docstring"
    if inspect.isclass(thing):
        expected = [k for k in parameters(thing) if not k.startswith("_")]
        # a class may leave out what the one that it derives from has
        texts = {}
        for kind in reversed(inspect.getmro(thing)):
            texts |= described(kind, "Parameters") | described(kind, "Attributes")
        assert set(expected) <= set(texts)
    else:
        expected = list(parameters(thing))
        texts = described(thing)
        assert list(texts) == expected
    assert [key for key in expected if not texts[key]] == [], "documented without a text"
    assert [key for key in texts if ":" in key] == [], "types belong in the signature"


@every_documented
def test_every_result_is_documented(name):
    thing = DOCUMENTED[name]
    if inspect.isclass(thing):
        return
    returns = inspect.signature(thing).return_annotation
    assert returns is not inspect.Signature.empty, "has no return annotation"
    if returns not in {None, "None"}:
        assert {"Returns", "Yields"} & set(sections(thing))


@pytest.mark.parametrize("parameter", SAME_TEXT)
def test_shared_parameters_begin_alike(parameter):
    users = defaultdict(list)
    for name, thing in VERBS.items():
        texts = described(thing)
        if parameter in texts and name not in FIRST_PARAMETER:
            users[CLAUSE_END.split(texts[parameter])[0]].append(name)
    assert users, f"no function has the parameter {parameter}"
    assert len(users) == 1, "\n".join(f"{names}: {text}" for text, names in users.items())


def test_docstrings_are_split_as_they_should_be():
    def example(a, b, *, c):
        """Do.

        Parameters
        ----------
        a, b
            Two of
            them.
        c
            One.

        Returns
        -------
        Nothing.
        """

    assert described(example) == {"a": "Two of them.", "b": "Two of them.", "c": "One."}
    assert sections(example)["Returns"] == "Nothing."
