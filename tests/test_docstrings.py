"""The examples in docstrings run and give the stated output."""

from __future__ import annotations

import doctest
import inspect
import warnings
from copy import deepcopy
from types import ModuleType

import pytest
from test_api_contract import DOCUMENTED, VERBS, exported

import strecur

OTHERS = {
    "Features": strecur.Features,
    "Training": strecur.Training,
    "Inference": strecur.Inference,
    "settings.override": strecur.settings.override,
}
EXAMPLES = {
    name: examples
    for name, thing in {**DOCUMENTED, **exported("nn", "engine", "presets"), **OTHERS}.items()
    if (examples := doctest.DocTestParser().get_examples(inspect.getdoc(thing) or ""))
}
PREPARATION = ("train_domains(", "trm_domains(", "embed_patches(", "train_expression(", "predict_expression(")
PREPARED = {}


def run(examples, namespace):
    """Run examples in a namespace, check their output, and return the namespace."""
    report = []
    test = doctest.DocTest(list(examples), namespace, "example", None, None, None)
    doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)
    return test.globs


def copied(namespace):
    """Copy the objects of a namespace, so that later changes do not reach them."""
    return {name: thing if isinstance(thing, ModuleType) else deepcopy(thing) for name, thing in namespace.items()}


def split(examples):
    """Split examples after the last step of a preparation, that is a training, a prediction or an embedding."""
    n = max((i + 1 for i, e in enumerate(examples) if any(word in e.source for word in PREPARATION)), default=0)
    return examples[:n], examples[n:]


def prepared(examples):
    """Return the namespace after a preparation; steps with which several begin are run once."""
    begin = "".join(e.source for e in examples)
    if begin not in PREPARED:
        earlier, _ = split(examples[:-1])
        PREPARED[begin] = run(examples[len(earlier) :], copied(prepared(earlier)) if earlier else {})
    return PREPARED[begin]


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_example(name, tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        begin, rest = split(EXAMPLES[name])
        run(rest, copied(prepared(begin)))
    plt.close("all")


def test_every_function_has_an_example():
    assert sorted((set(VERBS) | set(OTHERS)) - set(EXAMPLES)) == []


def test_a_wrong_example_is_noticed():
    with pytest.raises(AssertionError, match="Expected"):
        run([doctest.Example("1 + 1", "3\n")], {})
