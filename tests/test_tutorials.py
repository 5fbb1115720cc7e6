"""Tutorials run from top to bottom, with shorter trainings than the stored ones."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import strecur

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.ipynb"))
LARGEST = 1_500_000
SECONDS_PER_CELL = 900
DATA = {"cortex": "dlpfc", "expression": "her2st", "uncertainty": "dlpfc"}
"""Folder of real sections that a notebook needs; the others need none."""
FOLDER = Path(os.environ.get("STRECUR_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
SHORT = "import short_tutorials\n\nshort_tutorials.shorten()"
EPOCHS = 2
"""Number of epochs in the tests; the stored output is that of the full training."""


def execute(path, folder):
    """Run a notebook in a folder and return it."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = shortened(cell.source)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source += f"\n{SHORT}"
    nbclient.NotebookClient(notebook, timeout=SECONDS_PER_CELL, kernel_name="python3").execute(cwd=str(folder))
    return notebook


def shortened(source: str) -> str:
    """Shorten trainings: the test is that every cell runs, not what a model has learned."""
    return re.sub(r'\b(max_epochs(?:=|": ))(\d+)', lambda found: f"{found[1]}{min(int(found[2]), EPOCHS)}", source)


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Run the selected notebooks, two at a time, with one thread each."""
    for name in ("nbclient", "ipykernel"):
        pytest.importorskip(name, reason=f"{name} runs notebooks; the test extra brings it")
    tests = [item for item in request.session.items if getattr(item, "originalname", "") == "test_tutorial_runs"]
    chosen = [item.callspec.params["path"] for item in tests]
    chosen = [path for path in chosen if path.stem not in DATA or (FOLDER / DATA[path.stem]).is_dir()]
    source = [str(Path(strecur.__file__).parents[1]), str(Path(__file__).parent)]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setenv("PYTHONPATH", os.pathsep.join([*source, *filter(None, [os.environ.get("PYTHONPATH")])]))
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("STRECUR_DATA", str(FOLDER))
        yield {path: pool.submit(execute, path, tmp_path_factory.mktemp(path.stem)) for path in chosen}


@pytest.mark.tutorials
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, runs):
    if path not in runs:
        pytest.skip(f"no sections of {DATA[path.stem]} in {FOLDER}; set STRECUR_DATA to the folder that holds them")
    drawn = [len(figures(cell)) for cell in runs[path].result().cells]
    assert drawn == [len(figures(cell)) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_stored_with_its_results(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert path.stat().st_size < LARGEST
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert sum(len(figures(cell)) for cell in code) >= 2
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"] == []
    # the cell for one's own data is text
    assert any("```python" in "".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def figures(cell: dict) -> list[dict]:
    """Outputs of a cell that are images."""
    return [output for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
