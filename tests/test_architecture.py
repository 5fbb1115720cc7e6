"""Who may import whom; the rules are explained in docs/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

import strecur

SOURCE = Path(strecur.__file__).parent
TORCH_FREE = ("pl", "pp.grid", "_anndata", "_genes", "_labels", "_panels", "_stores", "metrics", "get")
TRAINING = {"lightning_fabric", "torch"}


class Import(NamedTuple):
    """One imported module, where it is imported, and whether only type checkers see it."""

    module: str
    place: str
    typing_only: bool

    @property
    def root(self) -> str:
        return self.module.partition(".")[0]

    def is_under(self, *parts: str) -> bool:
        """Tell whether the module is one of these parts of strecur, or inside one."""
        return any(f"{self.module}.".startswith(f"strecur.{part}.") for part in parts)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported_names(node: ast.AST, name: str) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{name}:{node.lineno} imports relatively; write the full name"
        # "from strecur.nn import dense" may name a module
        deeper = [f"{node.module}.{alias.name}" for alias in node.names]
        return [full if full.removeprefix("strecur.") in MODULES else node.module for full in deeper]
    return []


def read_imports(name: str) -> list[Import]:
    """Return all imports of a module, those inside functions too."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    guarded = {child for guard in guards for statement in guard.body for child in ast.walk(statement)}
    return [
        Import(module, f"{name}:{node.lineno}", node in guarded)
        for node in ast.walk(tree)
        for module in imported_names(node, name)
    ]


def imports_of(*parts: str) -> list[Import]:
    """Return the imports of some modules or packages of strecur, each of which must exist."""
    found = []
    for part in parts:
        members = [name for name in MODULES if f"{name}.".startswith(f"{part}.")]
        assert members, f"strecur.{part} does not exist"
        found += [imported for name in members for imported in read_imports(name)]
    return found


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_reader_of_imports_sees_every_kind(tmp_path, monkeypatch):
    code = """
from typing import TYPE_CHECKING
import torch.nn as tnn
from strecur import nn
from strecur.nn.layers import linear
if TYPE_CHECKING:
    from anndata import AnnData
def f():
    from scanpy.pp import pca
"""
    (tmp_path / "m.py").write_text(code)
    monkeypatch.setitem(MODULES, "m", tmp_path / "m.py")
    found = {(i.module, i.typing_only) for i in read_imports("m")}
    assert found == {
        ("typing", False),
        ("torch.nn", False),
        ("strecur.nn", False),
        ("strecur.nn.layers", False),
        ("anndata", True),
        ("scanpy.pp", False),
    }


def test_rule_1_nn_knows_torch_alone():
    allowed = {"torch", *sys.stdlib_module_names}
    assert [i for i in imports_of("nn") if i.root not in allowed and not i.is_under("nn")] == []


def test_rule_2_engine_knows_neither_anndata_nor_biology():
    allowed = {"numpy", "safetensors", "tqdm", *TRAINING, *sys.stdlib_module_names}
    own = ("nn", "engine", "_arguments", "_geometry", "_files")
    outside = [i for i in imports_of("engine") if i.root not in allowed and not i.is_under(*own)]
    # options are given to it; it makes none
    assert [i for i in outside if not (i.typing_only and i.is_under("options"))] == []


def test_rule_3_models_stay_below_tools_and_plots():
    low = ("_anndata", "_arguments", "_files", "_genes", "_geometry", "_labels", "_panels", "_settings", "_threads")
    allowed = (*low, "options", "engine", "metrics", "models", "nn", "presets")
    outside = [i for i in imports_of("models") if i.root == "strecur" and not i.is_under(*allowed)]
    # the panel of genes is the one of pp
    assert [i for i in outside if not (i.place.startswith("models.genes:") and i.is_under("pp"))] == []
    assert [i for i in imports_of("presets") if i.root == "strecur" and not i.is_under("engine", "nn", "options")] == []


@pytest.mark.parametrize("name", [name for name in MODULES if "." not in name and name.startswith(("_", "options"))])
def test_rule_3_what_is_shared_knows_no_part(name):
    if name in {"__init__", "__main__"}:
        return
    shared = [other for other in MODULES if "." not in other and other.startswith("_") and other != "__init__"]
    assert [i for i in imports_of(name) if i.root == "strecur" and not i.is_under(*shared)] == []


def test_rule_4_only_tools_bring_anndata_and_models_together():
    above = {name for name in MODULES if name.startswith("tl") or name in {"__init__", "cli", "demo"}}
    below = [name for name in MODULES if name not in above]
    imports = [i for name in below for i in read_imports(name) if not i.typing_only]
    assert [i for i in imports if i.is_under("tl")] == []
    machinery = ("models.", "engine.", "nn.", "presets.")
    outside = [i for i in imports if not f"{i.place.partition(':')[0]}.".startswith(machinery)]
    assert [i for i in outside if i.is_under("models", "engine", "nn")] == []


@pytest.mark.parametrize("part", TORCH_FREE)
def test_rule_5_no_torch(part):
    imports = [i for i in imports_of(part) if not i.typing_only]
    assert [i for i in imports if i.root in TRAINING or i.is_under("tl", "models", "engine", "nn")] == []


def test_rule_5_no_torch_by_detour():
    code = f"""
import importlib, sys
for part in {TORCH_FREE}:
    importlib.import_module(f"strecur.{{part}}")
    print(*(f"{{part}} loads {{name}}" for name in sorted({TRAINING} & set(sys.modules))))
"""
    assert run_python(code) == ""


def test_rule_6_import_strecur_is_light():
    heavy = {*TRAINING, "scanpy", "squidpy", "spatialdata", "matplotlib.pyplot"}
    loaded = run_python(f"import sys, strecur; print(*sorted({heavy} & set(sys.modules)))")
    assert loaded == "", f"import strecur loads {loaded}; run python -X importtime -c 'import strecur' to see why"


# Size and names


def docstring_lines(tree: ast.AST) -> set[int]:
    """Return the lines of docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    hidden = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", [])
        if isinstance(node, documented) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                hidden |= set(range(body[0].lineno, body[0].end_lineno + 1))
    return hidden


def length(node: ast.AST, text: str) -> int:
    """Count the lines of a file or of the body of a function, without docstrings."""
    first, last = 1, len(text.splitlines())
    if not isinstance(node, ast.Module):
        first, last = node.body[0].lineno, node.end_lineno
    return len(set(range(first, last + 1)) - docstring_lines(node))


def functions_of(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def test_lengths_are_counted_without_docstrings():
    text = '''"""Two
lines."""


def f(
    a,
):
    """One."""
    b = 1

    return a + b
'''
    tree = ast.parse(text)
    assert length(tree, text) == 8
    assert length(functions_of(tree)[0], text) == 3


def test_files_are_short():
    lengths = {name: length(TREES[name], path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > 500} == {}


def test_functions_are_short():
    lengths = {
        f"{name}.{function.name}": length(function, MODULES[name].read_text(encoding="utf-8"))
        for name, tree in TREES.items()
        for function in functions_of(tree)
    }
    assert {name: n for name, n in lengths.items() if n > 60} == {}


def test_no_module_is_hidden_by_a_function_of_its_name():
    """``from strecur.engine import fit`` cannot mean two things: a package exports no name of one of its modules."""
    packages = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    modules = {name: {other.rpartition(".")[2] for other in MODULES if is_inside(other, name)} for name in packages}
    assert {"training", "prediction"} <= modules["engine"]
    assert {"fit", "predict"} <= exports("engine")
    hidden = {name: modules[name] & exports(name) for name in packages}
    assert {name: found for name, found in hidden.items() if found} == {}


def is_inside(module: str, package: str) -> bool:
    return module != "__init__" and (module.rpartition(".")[0] or "__init__") == package


def exports(package: str) -> set[str]:
    """Return the functions and classes that a package defines or imports from its modules."""
    found = {node.name for node in TREES[package].body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in TREES[package].body:
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("strecur."):
            inside = node.module.removeprefix("strecur.")
            found |= {alias.asname or alias.name for alias in node.names if f"{inside}.{alias.name}" not in MODULES}
    return found


def test_configurations_describe_themselves():
    """Code that asks for the class of a configuration has to be changed for a new one; there is hardly any."""
    asked = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance"
        if any(getattr(part, "id", "").endswith("Config") for part in ast.walk(node.args[1]))
    ]
    assert len(asked) <= 6, asked


# Circles


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module, or of a module that imports itself (Tarjan)."""
    found, index, low, stack = [], {}, {}, []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            place = stack.index(node)
            component, stack[place:] = stack[place:], []
            if len(component) > 1 or node in graph[node]:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(found)


def imports_at_run_time() -> dict[str, set[str]]:
    """Return the modules that every module imports, those inside functions too."""
    graph = {}
    for name in MODULES:
        imported = {i.module.removeprefix("strecur.") for i in read_imports(name) if not i.typing_only}
        graph[name] = {other for other in imported if other in MODULES}
    return graph


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"d", "a"}, "d": {"e"}, "e": {"d"}}, [["a", "b", "c"], ["d", "e"]]),
        ({"a": {"a"}}, [["a"]]),
    ],
)
def test_circles_are_found(graph, expected):
    assert circles(graph) == expected


def test_files_import_one_another_in_one_direction():
    graph = imports_at_run_time()
    assert sum(map(len, graph.values())) > 200, "imports are not read"
    assert circles(graph) == []
