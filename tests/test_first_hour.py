"""What a newcomer meets: completion of names, hints in messages."""

from __future__ import annotations

import pickle
from typing import ClassVar

import numpy as np
import pytest
import small_world as world
from tqdm.auto import tqdm

import strecur as st
from strecur.models.domain_task import DomainTask

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


def test_the_nearest_gene_section_and_column_of_a_table_are_suggested():
    with pytest.raises(KeyError, match=r"genes \['G1'\] are not in adata.var_names \(did you mean 'g1'\?\)"):
        st.tl.train_expression(world.pair(), genes=["G1"])
    with pytest.raises(KeyError, match=r"extra_genes \['G1'\] are not in adata.var_names \(did you mean 'g1'\?\)"):
        st.pp.high_mean_high_variance_genes(world.pair(), 3, extra_genes=["G1"])
    with pytest.raises(KeyError, match=r"did you mean 'S1'"):
        st.pl.domains(world.labelled(), library_id="s1")
    with pytest.raises(KeyError, match=r"'Spatial' is not in adata.obsm \(did you mean 'spatial'\?\)"):
        st.tl.train_domains(world.sections(), "domain", use_rep="Spatial")


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


class Bar(tqdm):
    """Progress bar that keeps how full each one was when it closed."""

    closed: ClassVar[list] = []

    def close(self):
        if not self.disable:
            self.closed.append((self.desc, self.n, self.total))
        super().close()


def scored(monkeypatch, scores: list[float]) -> None:
    """Let validations give these scores, and the last of them from then on."""
    given = iter(scores)
    monkeypatch.setattr(DomainTask, "validate", lambda *_: {"validation_ari": next(given, scores[-1])})


@pytest.mark.parametrize("stopped", [False, True])
def test_bars_end_full(stopped, monkeypatch):
    monkeypatch.setattr("strecur.engine.training.tqdm", Bar)
    monkeypatch.setattr(Bar, "closed", [])
    scored(monkeypatch, [0.5, 0.4] if stopped else [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    training = {"max_epochs": 6, "validation": "S3", "validate_every": 1, "patience": 2}
    with st.settings.override(progress=True):
        model = st.tl.train_domains(world.sections(), "domain", training=training, backbone=world.NETWORK["backbone"])
    n_epochs = 3 if stopped else 6
    assert len(model.history) == n_epochs
    assert Bar.closed[-1] == ("training", n_epochs, n_epochs)


@pytest.mark.parametrize(
    ("training", "scores", "told"),
    [
        ({"max_epochs": 2}, [0.5], True),
        ({"max_epochs": 6}, [0.5], False),
        ({"max_epochs": 400, "max_minutes": 1e-4}, [0.5], True),
        ({}, [0.5, 0.4], False),
    ],
)
def test_a_training_that_is_too_short_says_so(training, scores, told, monkeypatch, caplog):
    monkeypatch.setattr("strecur.models.domain_task.OPTIMIZER_STEPS", 80)
    scored(monkeypatch, scores)
    options = {"validation": "S3", "validate_every": 1, "patience": 1 if len(scores) > 1 else 1000, **training}
    st.tl.train_domains(world.sections(), "domain", training=options, backbone=world.NETWORK["backbone"])
    assert ("10 are usual here: it may not be trained out" in caplog.text) == told


@pytest.mark.parametrize("validation", ["S3", "blocks"])
def test_a_network_behind_the_linear_model_says_so(validation, caplog):
    training = {"max_epochs": 2, "validation": validation}
    for seed in range(1):
        caplog.clear()
        model = st.tl.train_domains(
            world.sections(), "domain", training=training, backbone=world.NETWORK["backbone"], rng=seed
        )
        behind = model.scores.loc["ari", "network"] < model.scores.loc["ari", "linear"]
        assert ("is behind the linear baseline" in caplog.text) == behind
