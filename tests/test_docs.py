"""Code of the documentation and the tutorials is valid Python; its functions, arguments and options exist."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
from dataclasses import fields
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest
from short_tutorials import part_of

import strecur as st
from strecur import engine, nn
from strecur.tl._cross_validation import OPTIONS as TRAIN
from strecur.tl._scoring import DomainScoring, ExpressionScoring

ROOT = Path(__file__).parents[1]
GENERATED = {"errors.md"}
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tutorials").glob("*.ipynb")]
    if "_build" not in path.parts and path.name not in GENERATED
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
ANY_BLOCK = re.compile(r"^```.*?^```", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")
CITED = re.compile(r"cite:p[:}]`([\w, ]+)`")

NAMESPACES = {"st", "datasets", "get", "metrics", "pl", "pp", "presets", "settings", "tl"}
CONFIGURATIONS = {name: getattr(module, name) for module in (nn, engine) for name in module.__all__}
OPTIONS = {
    "features": {field.name for field in fields(st.Features)},
    "training": {field.name for field in fields(st.Training)},
    "inference": {field.name for field in fields(st.Inference)},
    "patches": {field.name for field in fields(st.pp.Patches)},
    "train": TRAIN | DomainScoring.options | ExpressionScoring.options,
}


def text_of(path):
    """Text of a page, or of the Markdown cells of a notebook."""
    text = path.read_text(encoding="utf-8")
    return "\n".join(cells(path, "markdown")) if path.suffix == ".ipynb" else text


def cells(path, kind):
    """Sources of the cells of one kind of a notebook."""
    stored = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) + "\n" for cell in stored if cell["cell_type"] == kind]


def code_of(path):
    """Blocks of Python of a page; the code cells of a notebook are one more block, as they share their names."""
    own = ["".join(cells(path, "code"))] if path.suffix == ".ipynb" else []
    return [*own, *BLOCK.findall(text_of(path))]


def inline_code_of(path):
    """Arguments and expressions between backticks in the text of a page, as code; other spans are left out."""
    for span in INLINE.findall(ANY_BLOCK.sub("", text_of(path))):
        code = f"dict({span})" if re.match(r"\w+=[^=]", span) else span
        if code != span or re.match(r"[\w.]+\(|st\.", span):
            try:
                ast.parse(code)
            except SyntaxError:  # abbreviated, such as TRMConfig(sigma=…)
                continue
            yield code


def imported(tree):
    """Names that some code imports from strecur, each of which must exist."""
    return {
        alias.asname or alias.name: getattr(import_module(node.module), alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "strecur"
        for alias in node.names
    }


def find(name, names):
    """Return the thing of strecur with a dotted name, or ``None`` if the name is not one of strecur."""
    first, *rest = name.split(".")
    if first in names:
        return reduce(getattr, rest, names[first])
    if first not in NAMESPACES:
        return None
    return reduce(getattr, rest, st if first == "st" else getattr(st, first))


def keys_of(node):
    """Constant keys of a dictionary display."""
    return [key.value for key in node.keys if isinstance(key, ast.Constant)]


def unknown_options(argument, value):
    """Keys of a mapping that are no options of this argument."""
    if argument not in OPTIONS or not isinstance(value, ast.Dict):
        return []
    return [f"{argument}[{key!r}]" for key in keys_of(value) if key not in OPTIONS[argument]]


def wrong_arguments(name, thing, call, assigned):
    """Arguments of a call that do not fit the signature; mappings given as ``**name`` count if they are in the code."""
    if not callable(thing):
        return [f"{name} is not callable"]
    if thing == st.settings.override:
        return [f"settings.{k.arg}" for k in call.keywords if k.arg not in vars(st.settings)]
    keywords, complete = [k.arg for k in call.keywords if k.arg], True
    for starred in (k.value for k in call.keywords if not k.arg):
        known = assigned.get(getattr(starred, "id", None))
        keywords += known or []
        complete &= known is not None
    complete &= not any(map(is_dots, call.args))
    signature = inspect.signature(thing)
    try:
        bind = signature.bind if complete else signature.bind_partial
        bind(*[None] * sum(not is_dots(argument) for argument in call.args), **dict.fromkeys(keywords))
    except TypeError as error:
        return [f"{name}: {error}"]
    return []


def is_dots(node):
    """Whether an argument stands for others: ``...`` or ``*names``."""
    return isinstance(node, ast.Starred) or (isinstance(node, ast.Constant) and node.value is ...)


def mistakes(code):
    """Find calls and options of strecur that do not exist; names that do not exist raise an ``AttributeError``."""
    tree = ast.parse(code)
    names = CONFIGURATIONS | imported(tree)
    assigned = {
        target.id: keys_of(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"st\.\w+(\.\w+)?", ast.unparse(node)):
            find(ast.unparse(node), names)
        if isinstance(node, ast.Call):
            found += [wrong for k in node.keywords for wrong in unknown_options(k.arg, k.value)]
            name = ast.unparse(node.func)
            thing = find(name, names) if re.fullmatch(r"[\w.]+", name) else None
            if thing is not None:
                found += wrong_arguments(name, thing, node, assigned)
        if isinstance(node, ast.Dict):
            pairs = [(k.value, v) for k, v in zip(node.keys, node.values, strict=True) if isinstance(k, ast.Constant)]
            found += [wrong for key, value in pairs for wrong in unknown_options(key, value)]
    return found


every_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


@every_page
def test_code_calls_what_exists(path):
    assert [wrong for code in code_of(path) for wrong in mistakes(code)] == []


@every_page
def test_code_in_the_text_calls_what_exists(path):
    assert [wrong for code in inline_code_of(path) for wrong in mistakes(code)] == []


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("st.tl.train_domains(a, 'b', nonsense=1)", "nonsense"),
        ("st.tl.train_domains(a)", "label_key"),
        ("st.tl.train_domains(a, 'b', 'c')", "too many positional"),
        ("st.tl.trm_domains(a, m, inference={'epochs': 1})", "inference['epochs']"),
        ("common = {'nonsense': 1}\nst.tl.cross_validate(a, **common)", "nonsense"),
        ("common = {'train': {'training': {'depth': 1}}}", "training['depth']"),
        ("st.settings.override(device='cpu')", "settings.device"),
        ("from strecur.nn import TRMConfig as T\nT(n_stps=1)", "n_stps"),
    ],
)
def test_mistakes_are_noticed(code, wrong):
    assert wrong in "; ".join(mistakes(code))


@pytest.mark.parametrize("code", ["st.tl.nonsense(a)", "st.settings.nonsense = 1", "from strecur.nn import Nonsense"])
def test_names_that_do_not_exist_are_noticed(code):
    with pytest.raises(AttributeError):
        mistakes(code)


@pytest.mark.parametrize("page", ["docs/how-to/annotation.md", "docs/how-to/labels.md"])
def test_pages_that_say_so_run_as_they_are(page, tmp_path, monkeypatch, caplog):
    """Without a warning; trainings, which the pages leave at their default length, are short here, sections small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(st.datasets, "spleen_sample", part_of(st.datasets.spleen_sample, 200))
    monkeypatch.setattr("strecur.models.domain_task.OPTIMIZER_STEPS", 8)
    monkeypatch.setattr("strecur.models.fitting.MIN_EPOCHS", 2)
    namespace = {}
    with st.settings.override(progress=False), caplog.at_level(logging.WARNING, logger="strecur"):
        for code in code_of(ROOT / page):
            exec(compile(code, page, "exec"), namespace)
    assert [r.getMessage() for r in caplog.records if not is_about_a_short_training(r)] == []


def is_about_a_short_training(record):
    """Whether a warning is about a network that was not trained long enough to be better than the linear model."""
    return "is behind the linear" in record.getMessage()


def test_all_pages_are_read():
    assert len(PAGES) > 20
    assert sum(len(code_of(path)) for path in PAGES) > 40
    assert sum(len(list(inline_code_of(path))) for path in PAGES) > 25


def test_citations_are_in_the_bibliography():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")))
    texts = [text_of(path) for path in PAGES]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    cited = {key.strip() for text in texts for keys in CITED.findall(text) for key in keys.split(",")}
    assert cited <= known
    assert {"spatialtrm", "hist", "genar", "eqr", "trm"} <= cited
