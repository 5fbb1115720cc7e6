"""The whole way from an AnnData to results, on a device that is not there; see tests/nn/test_pretended_device.py."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import calls
import numpy as np
import pytest
import torch
from pretend_device import pretended_device
from toy_histology import GENES, RUN, apply

import strecur as st
from strecur.engine import make_fabric, prediction, slots
from strecur.models import base, fitting
from strecur.nn import GenARConfig, TRMConfig, WindowedConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad
    from lightning_fabric import Fabric

BACKBONE = WindowedConfig(width=16, n_heads=2, window=4, n_global=1)
GENAR = GenARConfig(
    width=24, n_heads=2, n_layers=1, condition_width=24, n_groups=2, spots_per_step=16, recursion=TRMConfig()
)


@contextmanager
def on_the_device() -> Iterator[None]:
    """Let all calls compute on the pretended device, with the streams of the CPU."""

    def fabric_on_it(*_: object) -> Fabric:
        fabric = make_fabric("cpu", 1, "32-true")
        fabric.strategy._root_device = device
        fabric._accelerator.setup_device = lambda _device: None
        return fabric

    def continued_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
        own = torch.Generator(device)
        own.set_state(generator.get_state())
        return own

    with pretended_device() as device, pytest.MonkeyPatch.context() as patch:
        for module in (base, fitting):
            patch.setattr(module, "make_fabric", fabric_on_it)
        patch.setattr(slots, "continued_on", continued_on)
        patch.setattr(prediction, "advance", torch.no_grad()(prediction.advance.__wrapped__))
        yield


def test_domains_are_those_of_the_cpu():
    adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_genes=60, n_domains=3)
    st.pp.to_grid(adata, library_key="section")

    def compute() -> ad.AnnData:
        model = st.tl.train_domains(adata, "domain", backbone=BACKBONE, training={"max_epochs": 1})
        found = st.tl.trm_domains(adata, model, copy=True)
        assert found is not None
        return found

    expected = compute()
    with on_the_device():
        found = compute()
    for key in ("trm_domains_proba", "trm_domains_latent", "trm_domains_steps"):
        np.testing.assert_allclose(found.obsm[key], expected.obsm[key], atol=1e-4, err_msg=key)


def test_counts_and_their_samples_are_those_of_the_cpu(pair, new):
    options = {"n_components": 6, "neighbours": (9,), "genes": GENES, "max_epochs": 1, "backbone": BACKBONE, **RUN}

    def compute() -> ad.AnnData:
        model = calls.train_expression(pair, architecture=GENAR, **options)
        return apply(new, model, n_samples=2)

    expected = compute()
    with on_the_device():
        found = compute()
    for key in ("trm_expression", "trm_expression_sample"):
        # a value at the edge of two counts may be rounded to the other
        assert (found.obsm[key] != expected.obsm[key]).mean() < 0.01
    np.testing.assert_allclose(found.obsm["trm_expression_log2"], expected.obsm["trm_expression_log2"], atol=1e-3)
