"""Tutorials run from top to bottom, as they are stored."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import strecur

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
LARGEST = 600_000
SECONDS_PER_CELL = 900


@pytest.mark.tutorials
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the test extra brings nbclient, which runs notebooks")
    nbclient = pytest.importorskip("nbclient", reason="the test extra brings nbclient, which runs notebooks")
    pytest.importorskip("ipykernel", reason="the test extra brings ipykernel, in which notebooks run")
    source = str(Path(strecur.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=SECONDS_PER_CELL, kernel_name="python3").execute(cwd=str(tmp_path))
    drawn = [len(figures(cell)) for cell in notebook.cells]
    stored = [len(figures(cell)) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert drawn == stored


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_stored_with_its_results(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert path.stat().st_size < LARGEST
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(len(figures(cell)) for cell in code) >= 3
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    # what to change for one's own data is told, not run
    assert any("```python" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def figures(cell: dict) -> list[dict]:
    """Outputs of a cell that are pictures."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
