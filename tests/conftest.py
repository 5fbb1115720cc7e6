"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is loaded: processes that run side by side have one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks, which take longest, so that no process waits for them at the end."""
    items.sort(key=lambda item: "tutorials" not in item.keywords)


@pytest.fixture(scope="session", autouse=True)
def _distributions_are_read_once():
    """Fabric reads the metadata of all installed distributions whenever one is made; they stay the same."""
    import lightning_fabric.fabric

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lightning_fabric.fabric, "_load_external_callbacks", lambda _group: [])
        yield


@pytest.fixture(scope="session", autouse=True)
def _on_the_cpu():
    """Compute on the CPU in full precision, without progress bars."""
    import strecur as st

    with st.settings.override(accelerator="cpu", precision="32-true", progress=False):
        yield


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return what sets the memory that seems to be free, in bytes."""
    from strecur.engine import cost

    def free(n_bytes: float) -> None:
        monkeypatch.setattr(cost, "available_memory", lambda _device: n_bytes)

    return free


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real sections; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("STRECUR_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set STRECUR_DATA to the folder that holds them")
    return folder
