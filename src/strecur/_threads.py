"""Threads of torch and numba: kept as they are, and safe in forked processes."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = (
    "start workers with multiprocessing.get_context('spawn') or 'forkserver', or with joblib's default backend 'loky', "
    "instead of forking"
)


class Fork:
    """What a forked process has inherited: whether the parent had started OpenMP threads of numba."""

    ends_numba = False


def _after_fork() -> None:
    """Make a forked process do with one thread; those of OpenMP stay behind in the parent, and waiting never ends."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
    if "numba" in sys.modules:
        import numba

        try:
            Fork.ends_numba = numba.threading_layer() == "omp"
        except ValueError:  # no threads were started
            Fork.ends_numba = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def check_fork() -> None:
    """Raise in a forked process in which numba would end the process, before a compiled function of scanpy is called.

    Raises
    ------
    RuntimeError
        If the process was forked after its parent had started OpenMP threads of numba.
    """
    if Fork.ends_numba:
        msg = f"this process was forked after numba had started threads, which scanpy needs; {HELP}"
        raise RuntimeError(msg)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Restore the number of threads of torch, which compiled functions of scanpy change for the whole process.

    Raises
    ------
    RuntimeError
        If compiled functions cannot run in this process (see :func:`check_fork`).
    """
    import torch

    check_fork()
    n_threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
