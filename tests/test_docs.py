"""Code in the documentation is Python, and calls what exists with arguments that exist."""

from __future__ import annotations

import ast
import inspect
import json
import re
from functools import reduce
from pathlib import Path

import pytest

import strecur

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "tutorials").glob("*.ipynb")]
    if "_build" not in path.parts
)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def text_of(path):
    """Text of a page, or of all that is written between the code of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    return "\n".join("".join(c["source"]) + "\n" for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")


def calls(code):
    """Calls of ``st.…`` in some code: the thing, its name, and the keywords it is given."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("st.") and name.count(".") <= 2:
                yield reduce(getattr, name.split(".")[1:], strecur), name, []
        if isinstance(node, ast.Call) and re.fullmatch(r"st\.[\w.]+", ast.unparse(node.func)):
            name = ast.unparse(node.func)
            keywords = [keyword.arg for keyword in node.keywords if keyword.arg]
            yield reduce(getattr, name.split(".")[1:], strecur), name, keywords


def wrong_keywords(code):
    """Keywords that a function does not have."""
    return [
        f"{name}({keyword}=)"
        for thing, name, keywords in calls(code)
        for keyword in keywords
        if keyword not in inspect.signature(thing).parameters
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_code_is_possible(path):
    assert [wrong for code in BLOCK.findall(text_of(path)) for wrong in wrong_keywords(code)] == []


def test_impossible_code_is_noticed():
    assert wrong_keywords("st.tl.train_domains(a, 'b', nonsense=1)") == ["st.tl.train_domains(nonsense=)"]
    with pytest.raises(AttributeError):
        wrong_keywords("st.tl.nonsense(a)")
    assert len(PAGES) > 20
