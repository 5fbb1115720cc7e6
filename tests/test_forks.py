"""Forked workers compute, or say why they cannot; they neither hang nor disappear."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from strecur import _threads

WORKERS = """
import multiprocessing, os
import strecur as st
from strecur.nn import WindowedConfig

st.settings.progress = False
adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=3, n_genes=400)
st.pp.to_grid(adata, library_key="section")
options = {
    "backbone": WindowedConfig(width=32, n_heads=2),
    "features": {"n_genes": 100, "n_components": 5},
    "training": {"max_epochs": 1, "validation": None},
}
model = st.tl.train_domains(adata, "domain", **options)
right = adata.copy()
st.tl.trm_domains(right, model)


def predict(queue):
    part = adata.copy()
    st.tl.trm_domains(part, model)
    queue.put(abs(part.obsm["trm_domains_proba"] - right.obsm["trm_domains_proba"]).max() < 1e-5)


def train(queue):
    try:
        st.tl.train_domains(adata, "domain", **options)
        queue.put("trained")
    except RuntimeError as error:
        queue.put(str(error))


context = multiprocessing.get_context("fork")
for task in (predict, train):
    queue = context.Queue()
    worker = context.Process(target=task, args=(queue,))
    worker.start()
    print(queue.get(timeout=60))
    worker.join(10)
    assert worker.exitcode == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_forked_workers_predict_and_say_what_they_cannot_do():
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"), "2")
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKERS],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, **threads},
    )
    predicted, trained = run.stdout.strip().splitlines()
    assert predicted == "True"
    # Whether numba uses OpenMP depends on the machine.
    assert trained == "trained" or "start workers with multiprocessing.get_context('spawn')" in trained


def test_functions_that_need_numba_raise_in_such_a_worker(monkeypatch):
    monkeypatch.setattr(_threads.Fork, "ends_numba", True)
    with pytest.raises(RuntimeError, match="forked after numba had started threads"), _threads.threads_kept():
        pass
    monkeypatch.setattr(_threads.Fork, "ends_numba", False)
    with _threads.threads_kept():
        pass
