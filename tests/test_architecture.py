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
TORCH_FREE = ("pl", "pp.grid", "_anndata", "metrics", "get")
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
    assert [
        i for i in imports_of("engine") if i.root not in allowed and not i.is_under("nn", "engine", "_geometry")
    ] == []


def test_rule_3_models_stay_below_tools_and_plots():
    allowed = ("_anndata", "_settings", "_geometry", "engine", "metrics", "models", "nn", "pp")
    assert [i for i in imports_of("models") if i.root == "strecur" and not i.is_under(*allowed)] == []


def test_rule_4_only_tools_bring_anndata_and_models_together():
    above = {name for name in MODULES if name.startswith("tl") or name in {"__init__", "demo"}}
    below = [name for name in MODULES if name not in above]
    imports = [i for name in below for i in read_imports(name) if not i.typing_only]
    assert [i for i in imports if i.is_under("tl")] == []
    machinery = ("models.", "engine.", "nn.")
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


def test_files_are_short():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
