from __future__ import annotations

from typing import TYPE_CHECKING

import calls
import pytest
from toy_histology import join, make_section

import strecur as st
from strecur.nn import WindowedConfig

if TYPE_CHECKING:
    from anndata import AnnData

    from strecur.models import DomainModel

SMALL = {"backbone": WindowedConfig(width=32, n_heads=2, window=4, n_global=1), "n_components": 10}
QUICK = {"neighbours": (7, 19), "max_epochs": 3}


def make_sections() -> AnnData:
    adata = st.datasets.synthetic_sections(n_sections=3, n_rows=14, n_cols=14, n_genes=80, n_domains=3)
    adata.obs["total"] = adata.X.sum(axis=1).A1 if hasattr(adata.X.sum(axis=1), "A1") else adata.X.sum(axis=1)
    st.pp.to_grid(adata, library_key="section")
    return adata


def train(adata: AnnData, label_key: str = "domain", **options: object) -> DomainModel:
    return calls.train_domains(adata, label_key, **{"library_key": "section", **SMALL, **QUICK, **options})


@pytest.fixture(scope="session")
def _sections() -> AnnData:
    return make_sections()


@pytest.fixture
def sections(_sections: AnnData) -> AnnData:
    """Return three sections of three domains on a hexagonal lattice, free to be changed."""
    return _sections.copy()


@pytest.fixture(scope="session")
def trained(_sections: AnnData) -> DomainModel:
    """Return a model of the first two sections."""
    return train(_sections[_sections.obs["section"] != "S3"].copy(), validation=None)


@pytest.fixture(scope="session")
def _pair() -> AnnData:
    return join(make_section("S1", 1), make_section("S2", 2))


@pytest.fixture
def pair(_pair: AnnData) -> AnnData:
    """Return two sections with image patches to train on, free to be changed."""
    return _pair.copy()


@pytest.fixture
def new() -> AnnData:
    """Return a section with image patches to predict."""
    return join(make_section("S3", 3))
