"""What a newcomer meets: completion of names, hints in messages."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import small_world as world

import strecur as st

SPACES = ("datasets", "get", "metrics", "pl", "pp", "presets", "tl")


@pytest.mark.parametrize("space", SPACES)
def test_completion_shows_public_names_alone(space):
    module = getattr(st, space)
    assert sorted(dir(module)) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in dir(module))


@pytest.mark.parametrize("options", [{}, {"library_id": "S1"}])
def test_notebooks_print_no_axes_beside_the_figure(options):
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    axes = st.pl.domains(world.labelled(), **options)
    assert formatter.format(axes) == ({}, {})
    pickle.dumps(np.ravel(axes)[0].figure)
    assert isinstance(axes, list) == (not options)


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [(("domains",), "domain"), (("Domain",), "domain"), (("domain",), "section")],
)
def test_the_nearest_name_is_suggested(arguments, meant):
    options = {"library_key": "sections"} if meant == "section" else {}
    with pytest.raises(KeyError, match=f"did you mean '{meant}'"):
        st.tl.train_domains(world.sections(), *arguments, **options)


@pytest.mark.parametrize("change", [np.log1p, lambda x: x * 0.5, lambda x: x - 1.0])
def test_counts_that_are_elsewhere_are_named(change):
    adata = world.sections()
    counts = adata.X.copy()
    adata.raw = adata.copy()
    adata.X = change(adata.X.toarray())
    with pytest.raises(ValueError, match=r"adata.raw holds counts.*layer='counts'"):
        st.tl.train_domains(adata, "domain")
    adata.layers["umis"] = counts
    with pytest.raises(ValueError, match=r"adata.layers\['umis'\] holds counts: pass layer='umis'"):
        st.pp.high_mean_high_variance_genes(adata, 10)
    adata.layers["counts"] = adata.raw[:, adata.var_names].X
    assert st.pp.high_mean_high_variance_genes(adata, 10, layer="counts")
