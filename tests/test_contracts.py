"""What every public function promises beside its result: what it writes, what it leaves alone, and what it accepts."""

from __future__ import annotations

import inspect
import logging
import os
import random
import re
import warnings
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import bad_inputs
import lightning_fabric  # noqa: F401  imported before states are compared: imports may change them
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy  # noqa: F401
import skimage.morphology  # noqa: F401
import sklearn.mixture  # noqa: F401
import small_world as world
import spatialdata
import torch
from scipy import sparse

import strecur as st

if TYPE_CHECKING:
    from collections.abc import Mapping

KEYS = (Path(__file__).parents[1] / "docs" / "keys.md").read_text(encoding="utf-8")
# Every writer with the options that make it write all its keys.
WRITERS = {
    "pp.to_grid": {},
    "pp.read_annotation": {},
    "pp.embed_patches": {"views": 8},
    "tl.trm_domains": {"breadth": 2, "coverage": 0.9},
    "tl.predict_expression": {"breadth": 2, "coverage": 0.9},
    "tl.cluster_latent": {"spatial_weight": 0.5},
    "tl.suggest_annotation": {},
}
# Keys of uns records that are there for some models only.
CONDITIONAL = {
    ("obsm", "spatial"),
    ("uns", "annotation_colors"),
    ("obsm", "trm_expression_log2"),
    ("obsm", "trm_expression_sample"),
    ("uns", "trm_expression", "target_sum"),
    ("uns", "trm_expression", "size_factor_key"),
}
CHANGES_THE_MODEL = {"tl.calibrate", "tl.calibrate_expression", "tl.calibrate_halting"}
ADDS_COLOURS = {"pl.domains", "pl.refinement"}
every_writer = pytest.mark.parametrize("name", WRITERS)


@pytest.fixture(autouse=True)
def _close_figures():
    plt.close("all")
    yield
    plt.close("all")


def valid(name: str, **options: object) -> tuple[object, dict[str, object]]:
    first, usual = world.valid(name)
    return first, usual | WRITERS.get(name, {}) | options


@cache
def written(name: str) -> ad.AnnData:
    """Return the object after a valid call with all options."""
    first, options = valid(name)
    assert world.call(name, first, options) is None
    return first


def signature(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(world.function(name)).parameters


def slots(adata: ad.AnnData) -> set[tuple[str, ...]]:
    """All keys of an object, and those inside of the records in uns."""
    found = {("obs", key) for key in adata.obs} | {("var", key) for key in adata.var}
    for slot in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
        found |= {(slot, key) for key in getattr(adata, slot)}
    records = {key: value for key, value in adata.uns.items() if isinstance(value, dict)}
    return found | {("uns", key, part) for key, value in records.items() for part in value}


def global_state() -> dict[str, object]:
    loggers = [logging.getLogger(), logging.getLogger("strecur")]
    return {
        "random": random.getstate(),
        "numpy random": world.fingerprint(np.random.get_state()[1]),  # noqa: NPY002
        "torch random": torch.get_rng_state().tolist(),
        "torch threads": torch.get_num_threads(),
        "torch modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "torch algorithms": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "logging": [(log.level, list(log.handlers), log.propagate, log.disabled) for log in loggers],
        "matplotlib": dict(mpl.rcParams),
        "numpy errors": np.geterr(),
        "pandas": [pd.get_option(key) for key in ("mode.chained_assignment", "display.max_rows")],
        "warnings": list(warnings.filters),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "settings": dict(vars(st.settings)),
    }


@pytest.mark.parametrize("name", world.VALID)
def test_a_call_changes_nothing_beside_what_it_is_for(name):
    first, options = valid(name)
    before, keys, state = world.fingerprint(first), slots(first) if hasattr(first, "obsm") else set(), global_state()
    given = {key: value for key, value in options.items() if not (name in CHANGES_THE_MODEL and key == "model")}
    given_before, figures = world.fingerprint(given), len(plt.get_fignums())
    world.call(name, first, options)
    after = global_state()
    assert {key for key, value in state.items() if after[key] != value} == set()
    assert len(plt.get_fignums()) == figures + name.startswith("pl.")
    assert world.fingerprint(given) == given_before
    if name in WRITERS or name in ADDS_COLOURS:
        for slot, key in sorted(entry for entry in slots(first) - keys if len(entry) == 2):
            del getattr(first, slot)[key]
    assert world.fingerprint(first) == before


def documented(name: str, key: str) -> set[tuple[str, ...]]:
    """Read the keys of a writer from the table in docs/keys.md."""
    (section,) = [part for part in KEYS.split("\n## ") if part.startswith(f"`{name}`")]
    found = set()
    for line in section.splitlines():
        if cells := re.match(r"\| `(obs|obsm|uns)` \| (`.+?`) \|", line):
            names = [part.replace("{k}", key) for part in re.findall(r"`(.+?)`", cells[2])]
            found.add((cells[1], *names))
    return found


@every_writer
def test_what_is_written_is_what_is_documented(name):
    adata, key = written(name), world.function(name).__kwdefaults__["key_added"]
    new = slots(adata) - slots(valid(name)[0])
    expected = documented(name, key) - CONDITIONAL
    top = {entry for entry in new if len(entry) == 2}
    assert top == {entry[:2] for entry in expected}
    if any(len(entry) == 3 for entry in expected):
        assert {entry for entry in new if len(entry) == 3} == {e for e in expected if len(e) == 3}
    text = world.function(name).__doc__
    for slot, entry in top:
        suffix = re.escape(entry.removeprefix(key))
        assert re.search(rf'{slot}\[(f?"\{{\w+\}}{suffix}"|\w+)\]', text), f"{slot}[{entry!r}] is not in the docstring"


@every_writer
def test_a_copy_gets_the_results_and_the_object_stays(name):
    first, options = valid(name, copy=True)
    before = world.fingerprint(first)
    found = world.call(name, first, options)
    assert isinstance(found, ad.AnnData)
    assert world.fingerprint(first) == before
    assert world.fingerprint(found) == world.fingerprint(written(name))


@every_writer
def test_the_same_call_again_gives_the_same(name):
    first = deepcopy(written(name))
    before = world.fingerprint(first)
    world.call(name, first, valid(name)[1])
    assert world.fingerprint(first) == before


@every_writer
def test_other_data_are_not_replaced_but_earlier_results_are(name):
    first, options = valid(name, key_added="mine")
    world.call(name, first, options)
    keys = slots(first)
    world.call(name, first, options)
    assert slots(first) == keys
    first, options = valid(name, key_added="precious")
    first.uns["precious"] = "data"
    with pytest.raises(ValueError, match=r"uns\['precious'\], which is not a result"):
        world.call(name, first, options)


REMEMBERS = [name for name, (_, options) in world.VALID.items() if "library_key" in options and name != "pp.to_grid"]
SHOWS_SECTIONS = [name for name in world.VALID if name.startswith("pl.") and "library_key" in signature(name)]


def test_every_function_with_a_library_key_is_tried():
    takes = {name for name in world.VALID if "library_key" in signature(name)}
    read = {"pp.read_hest", "pp.read_wsidata", "tl.predict_cohort", "tl.sample_cohort"}
    assert takes - {*REMEMBERS, *SHOWS_SECTIONS} == {"pp.to_grid", "pp.tile_image", *read}


@pytest.mark.parametrize("name", REMEMBERS)
def test_the_column_of_sections_is_remembered(name):
    """Calls without ``library_key`` give the result of those with the one that to_grid was given."""
    results = []
    for keys in (world.SECTIONS, {"library_key": None}):
        first, options = valid(name, **({"spatial_weight": 0.5} if name == "tl.cluster_latent" else {}))
        if "grid" not in first.obsm:
            st.pp.to_grid(first, **world.SECTIONS)
        found = world.call(name, first, options | keys)
        if hasattr(found, "network"):  # its name is random
            found.id, found.history = "", found.history.drop(columns="seconds")
        if isinstance(found, pd.DataFrame):
            found = found.drop(columns=[key for key in found if key.endswith(("_seconds", "_memory_gb"))])
        results.append(world.fingerprint([first, found]))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", SHOWS_SECTIONS)
def test_plots_show_one_panel_or_mark_for_every_section_remembered(name):
    """The figure of a call without ``library_key`` is drawn as that of a call with it."""
    drawn = []
    for keys in (world.SECTIONS, {}):
        first, options = valid(name)
        world.call(name, first, options | keys)
        figure = plt.gcf()
        figure.canvas.draw()
        drawn.append(np.asarray(figure.canvas.buffer_rgba()).copy())
        plt.close("all")
    np.testing.assert_array_equal(*drawn)


def with_matrix(make) -> object:
    def change(adata: ad.AnnData, _folder: Path) -> ad.AnnData:
        adata.X = make(adata.X)
        return adata

    return change


def view(adata: ad.AnnData, _folder: Path) -> ad.AnnData:
    return ad.concat([adata, adata[:2]], merge="same", uns_merge="same")[: adata.n_obs]


def backed(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    adata.write_h5ad(folder / "backed.h5ad")
    return ad.read_h5ad(folder / "backed.h5ad", backed="r")


def interleaved(adata: ad.AnnData, _folder: Path) -> ad.AnnData:
    """Shuffle spots, so that those of all sections alternate, and genes."""
    rng = np.random.default_rng(0)
    return adata[rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)].copy()


FORMS = {
    "CSC": with_matrix(sparse.csc_matrix),
    "dense int64": with_matrix(lambda x: x.toarray().astype(np.int64)),
    "CSR float64": with_matrix(lambda x: sparse.csr_matrix(x, dtype=np.float64)),
    "view": view,
    "backed": backed,
    "shuffled and interleaved": interleaved,
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("form", FORMS)
@every_writer
def test_every_form_of_the_object_gives_the_same(name, form, tmp_path):
    first, options = valid(name)
    expected = written(name)
    if form == "shuffled and interleaved" and "breadth" in options:
        # random starts are drawn spot by spot
        options["breadth"] = 1
        expected = world.call(name, first, {**options, "copy": True})
    new = slots(expected) - slots(first)
    assert new
    given = FORMS[form](first, tmp_path)
    assert world.call(name, given, options) is None
    rows = expected.obs_names.get_indexer(given.obs_names)
    for slot, key, *part in new:
        if part or slot == "uns":
            continue
        wanted, found = getattr(expected, slot)[key], getattr(given, slot)[key]
        wanted = wanted.iloc[rows] if isinstance(wanted, pd.Series) else wanted[rows]
        if not pd.api.types.is_float_dtype(wanted.dtype):
            same = (wanted == found) | (pd.isna(wanted) & pd.isna(found))
            assert np.mean(same) > 0.98, key  # a tie may fall otherwise
        else:
            np.testing.assert_allclose(np.asarray(found, float), np.asarray(wanted, float), atol=2e-3, err_msg=key)


@pytest.mark.parametrize("form", ["CSC", "dense int64", "view", "backed"])
def test_gene_panels_are_the_same_for_every_form_of_the_object(form, tmp_path):
    name = "pp.high_mean_high_variance_genes"
    first, options = world.valid(name)
    expected = world.call(name, first, options)
    assert world.call(name, FORMS[form](first, tmp_path), options) == expected


# Results on disk


def alike(found: object, wanted: object) -> bool:
    """Tell whether a value came back from a file; lists come back as arrays."""
    if isinstance(wanted, pd.DataFrame):
        return list(found) == list(wanted) and all(alike(found[key], wanted[key]) for key in wanted)
    if hasattr(wanted, "items") and not isinstance(wanted, pd.Series):
        return set(found) == set(wanted) and all(alike(found[key], wanted[key]) for key in wanted)
    if isinstance(wanted, pd.Series | list | str | bool):
        return list(pd.Series(found).astype(object).dropna()) == list(pd.Series(wanted).astype(object).dropna())
    if wanted is None:
        return found is None
    if sparse.issparse(wanted):  # X is an entry of layers since anndata 0.13
        return bool(np.array_equal(sparse.csr_array(found).toarray(), wanted.toarray()))
    return bool(np.array_equal(np.asarray(found), np.asarray(wanted), equal_nan=np.asarray(wanted).dtype.kind == "f"))


def through_h5ad(objects: list[ad.AnnData], folder: Path) -> list[ad.AnnData]:
    for i, adata in enumerate(objects):
        adata.write_h5ad(folder / f"{i}.h5ad")
    return [ad.read_h5ad(folder / f"{i}.h5ad") for i in range(len(objects))]


def through_zarr(objects: list[ad.AnnData], folder: Path) -> list[ad.AnnData]:
    for i, adata in enumerate(objects):
        adata.write_zarr(folder / f"{i}.zarr")
    return [ad.read_zarr(folder / f"{i}.zarr") for i in range(len(objects))]


def through_spatialdata(objects: list[ad.AnnData], folder: Path) -> list[ad.AnnData]:
    tables = {f"table{i}": spatialdata.models.TableModel.parse(adata) for i, adata in enumerate(objects)}
    spatialdata.SpatialData(tables=tables).write(folder / "s.zarr")
    back = spatialdata.read_zarr(folder / "s.zarr").tables
    return [back[name] for name in tables]


@cache
def written_together() -> list[ad.AnnData]:
    """Objects with the results of all writers side by side, one for each set of spots; to write many takes long."""
    objects: dict[tuple[str, ...], ad.AnnData] = {}
    for adata in map(written, WRITERS):
        joined = objects.setdefault(tuple(adata.obs_names), adata.copy())
        joined.uns.pop("spatial", None)
        for slot, key, *part in slots(adata) - slots(joined):
            if not part and (slot, key) != ("uns", "spatial"):
                getattr(joined, slot)[key] = getattr(adata, slot)[key]
    return list(objects.values())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("store", [through_h5ad, through_zarr, through_spatialdata])
def test_results_come_back_from_files(store, tmp_path):
    found = store([adata.copy() for adata in written_together()], tmp_path)
    seen = set()
    for back, adata in zip(found, written_together(), strict=True):
        for slot, key, *part in slots(adata):
            if part:
                continue
            assert alike(getattr(back, slot)[key], getattr(adata, slot)[key]), (slot, key)
            if slot in {"obs", "obsm"}:
                assert getattr(back, slot)[key].dtype == getattr(adata, slot)[key].dtype, (slot, key)
            seen.add((slot, key))
    for name in WRITERS:
        new = slots(written(name)) - slots(valid(name)[0])
        assert {entry for entry in new if len(entry) == 2} <= seen, name


# Exceptions


def test_exceptions_are_in_the_docstrings():
    """Every exception of the corpus stands below Raises; what a TypeError is for, the page on errors says."""
    tried = {(case.call, case.error.__name__) for case in bad_inputs.CASES if case.error not in (None, TypeError)}
    said = {name: re.split(r"\n\s*Raises\n\s*-+\n", world.function(name).__doc__)[1:] for name, _ in tried}
    assert sorted(f"{name}: {error}" for name, error in tried if error not in "".join(said[name])) == []
