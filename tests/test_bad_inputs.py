"""Invalid input raises and changes nothing; see bad_inputs.py for the cases."""

from __future__ import annotations

import linecache
import logging
import warnings
from collections import Counter
from functools import cache
from pathlib import Path

import bad_inputs
import pytest
import small_world as world
from bad_inputs import CASES, Case

import strecur as st

SOURCE = Path(st.__file__).parent
INVALID = [case for case in CASES if case.error is not None]
UNUSUAL = [case for case in CASES if case.error is None]


def name_of(case: Case) -> str:
    return f"{case.call}: {case.wrong}"


@pytest.fixture(autouse=True)
def _quiet(caplog):
    caplog.set_level(logging.CRITICAL)
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.mark.parametrize("case", INVALID, ids=name_of)
def test_invalid_input_raises_and_changes_nothing(case):
    first, options = case.arguments()
    before = world.fingerprint((first, options))
    with pytest.raises(case.error) as caught:
        world.call(case.call, first, options)
    assert case.says in str(caught.value)
    last = caught.traceback[-1]
    assert Path(last.path).is_relative_to(SOURCE), "raised in the depths"
    assert linecache.getline(str(last.path), last.lineno + 1).strip().startswith("raise "), (
        "not raised by our own check"
    )
    assert world.fingerprint((first, options)) == before


@cache
def expected(call: str) -> object:
    first, options = world.valid(call)
    found = world.call(call, first, options)
    return first if found is None else found


@pytest.mark.parametrize("case", UNUSUAL, ids=name_of)
def test_unusual_input_gives_a_right_result(case):
    first, options = case.arguments()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        found = world.call(case.call, first, options)
    assert case.check(found, first, expected(case.call))


def test_every_public_function_is_tried():
    tried = {case.call for case in CASES}
    spaces = ("datasets", "get", "metrics", "pl", "pp", "tl")
    public = {f"{space}.{name}" for space in spaces for name in getattr(st, space).__all__}
    # the first raise where they are made, see tests of encoders and patches; the others take no input
    assert public - tried == {"pp.Encoder", "pp.Patches", "datasets.gene_panels", "datasets.spleen_sample"}
    assert {*world.VALID, *world.NEEDS_FILES} == tried
    assert [name for name, n in Counter(map(name_of, CASES)).items() if n > 1] == []
    assert len(CASES) >= 100


def test_the_page_has_every_public_function_and_every_case():
    text = bad_inputs.page()
    headings = [line.removeprefix("## ").strip("`") for line in text.splitlines() if line.startswith("## ")]
    assert set(headings) == {case.call for case in CASES}
    assert len(set(headings)) == len(headings)
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith(("| input", "| ---"))]
    assert len(rows) == len(CASES)
    assert all(row.count(" | ") == 1 for row in rows), "a bar would break the table"
