"""Cohorts in files: the same results as in memory, section by section, and nothing lost or overwritten."""

from __future__ import annotations

import logging
import shutil

import anndata as ad
import calls
import numpy as np
import pandas as pd
import pytest
import small_world as world

import strecur as st
from strecur._stores import list_sections, name_results
from strecur.models.loading import fingerprint
from strecur.tl._cohort import choose_sections

OPTIONS = {"inference": {"breadth": 2}, "coverage": 0.9, "rng": 3}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def adata():
    return world.sections()


@pytest.fixture(scope="module")
def model():
    return world.calibrated()


def part(adata, name):
    return adata[adata.obs["section"] == name].copy()


@pytest.fixture(scope="module")
def _folder(adata, tmp_path_factory):
    place = tmp_path_factory.mktemp("files")
    part(adata, "S1").write_h5ad(place / "one.h5ad", compression="gzip")
    part(adata, "S2").write_zarr(place / "two.zarr")
    part(adata, "S3").write_h5ad(place / "three.h5ad")
    (place / "readme.txt").write_text("not a section")
    return place


@pytest.fixture
def folder(_folder, tmp_path):
    """One file per section, of which one is a zarr store; free to be changed."""
    return shutil.copytree(_folder, tmp_path / "cohort")


def expected(adata, name, model, **options):
    own = part(adata, name)
    st.tl.trm_domains(own, model, **options)
    return own


def assert_same(found, wanted, key="trm_domains"):
    """Compare everything that a prediction writes, bit for bit."""
    pd.testing.assert_index_equal(found.obs_names, wanted.obs_names)
    for slot in ("obs", "obsm"):
        names = [name for name in getattr(wanted, slot) if name.startswith(key)]
        assert len(names) > 2
        for name in names:
            ours, theirs = getattr(found, slot)[name], getattr(wanted, slot)[name]
            if slot == "obs":
                pd.testing.assert_series_equal(ours, theirs)
            else:
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours, theirs)
    assert found.uns[key].keys() == wanted.uns[key].keys()
    pd.testing.assert_frame_equal(found.uns[key]["sections"], wanted.uns[key]["sections"])


def test_every_file_gets_the_results_of_the_call_in_memory(adata, model, folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    table = st.tl.predict_cohort(folder, model, tmp_path / "out", predict=OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert table["section"].to_list() == ["S1", "S3", "S2"]  # in the order of the files
    assert table["error"].eq("").all()
    for section, path, confidence in zip(table["section"], table["result"], table["mean_confidence"], strict=True):
        found, wanted = ad.read_h5ad(path), expected(adata, section, model, **OPTIONS)
        assert_same(found, wanted)
        assert confidence == wanted.uns["trm_domains"]["sections"]["mean_confidence"].item()
        np.testing.assert_array_equal(found.obsm["spatial"], wanted.obsm["spatial"])
        assert found.n_vars == 0
        assert set(wanted.obs) == set(found.obs)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one.h5ad", "three.h5ad", "two.h5ad"]


@pytest.mark.parametrize("form", ["h5ad", "mixed h5ad", "zarr", "spatialdata"])
def test_sections_of_one_file_are_read_one_by_one(adata, model, tmp_path, form):
    order = np.arange(adata.n_obs)
    if form == "mixed h5ad":
        order, form = np.random.default_rng(0).permutation(order), "h5ad"
    whole = adata[order].copy()
    whole.obsp["graph"] = world.sparse.eye(adata.n_obs, format="csr")
    path = tmp_path / f"all.{form.replace('spatialdata', 'zarr')}"
    if form == "spatialdata":
        from spatialdata import SpatialData

        whole.uns.pop("spatial")
        SpatialData(tables={"cells": whole}).write(path)
    else:
        getattr(whole, f"write_{form}")(path)
    table = st.tl.predict_cohort(path, model, tmp_path / "out")
    assert [p.removeprefix(f"{tmp_path}/") for p in table["result"]] == [f"out/all/S{i}.h5ad" for i in (1, 2, 3)]
    for section, result in zip(table["section"], table["result"], strict=True):
        assert_same(ad.read_h5ad(result), expected(whole, section, model))


def test_expression_is_predicted_too(tmp_path):
    pair, model = world.pair(), world.expression_model()
    pair.write_h5ad(tmp_path / "pair.h5ad")
    table = st.tl.predict_cohort(tmp_path / "pair.h5ad", model, tmp_path / "out", library_key="section")
    for section, result in zip(table["section"], table["result"], strict=True):
        wanted, found = part(pair, section), ad.read_h5ad(result)
        st.tl.predict_expression(wanted, model, library_key="section")
        np.testing.assert_array_equal(found.obsm["trm_expression"], wanted.obsm["trm_expression"])
        np.testing.assert_array_equal(found.obsm["trm_expression_linear"], wanted.obsm["trm_expression_linear"])


def test_files_without_a_lattice_get_one(model, tmp_path):
    raw = part(world.raw(), "S2")
    raw.write_h5ad(tmp_path / "raw.h5ad")
    table = st.tl.predict_cohort(tmp_path / "raw.h5ad", model, tmp_path / "out")
    st.pp.to_grid(raw)
    st.tl.trm_domains(raw, model)
    assert_same(ad.read_h5ad(table["result"].item()), raw)


def test_results_can_be_plotted_and_exported_without_the_sections(model, folder, tmp_path):
    table = st.tl.predict_cohort(folder / "one.h5ad", model, tmp_path / "out")
    found = ad.read_h5ad(table["result"].item())
    st.pl.domains(found, truth="domain", show=False)
    st.pl.confidence(found, show=False)
    assert len(st.get.annotation(found)) == found.n_obs


class Stop(BaseException):
    """Ends a run as a signal would."""


def test_an_interrupted_run_resumes_and_gives_the_same(adata, model, folder, tmp_path, monkeypatch):
    whole = st.tl.predict_cohort(folder, model, tmp_path / "whole")
    written, write = [], ad.AnnData.write_h5ad

    def dying(self, path, *args, **kwargs):
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"half a file")
            raise Stop
        return write(self, path, *args, **kwargs)

    monkeypatch.setattr(ad.AnnData, "write_h5ad", dying)
    with pytest.raises(Stop):
        st.tl.predict_cohort(folder, model, tmp_path / "out")
    # what was being written has a name of its own
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one.h5ad", ".three.h5ad.new"}
    stamp = (tmp_path / "out" / "one.h5ad").stat().st_mtime_ns
    resumed = st.tl.predict_cohort(folder, model, tmp_path / "out")
    assert len(written) == 4, "the first section is not predicted again"
    assert (tmp_path / "out" / "one.h5ad").stat().st_mtime_ns == stamp
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"one.h5ad", "two.h5ad", "three.h5ad"}
    for a, b in zip(resumed["result"], whole["result"], strict=True):
        assert_same(ad.read_h5ad(a), ad.read_h5ad(b))
    pd.testing.assert_frame_equal(resumed.drop(columns="result"), whole.drop(columns="result"))


def test_a_file_that_changed_is_predicted_again(adata, model, folder, tmp_path):
    st.tl.predict_cohort(folder, model, tmp_path / "out")
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    changed = part(adata, "S1")[:60].copy()
    changed.write_h5ad(folder / "one.h5ad")
    table = st.tl.predict_cohort(folder, model, tmp_path / "out")
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {name for name in now if now[name] != stamps[name]} == {"one.h5ad"}
    assert table["n_spots"].iloc[0] == ad.read_h5ad(table["result"].iloc[0]).n_obs == 60


@pytest.mark.parametrize("other", ["model", "options"])
def test_results_of_another_model_or_other_options_stay(model, folder, tmp_path, other):
    st.tl.predict_cohort(folder, model, tmp_path / "out")
    another, options = world.calibrated(), {}
    if other == "model":
        another.temperature = 1.5  # calibrated again: its id is the same
    else:
        options = {"abstain": 0.5}
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(FileExistsError, match=f"results of other {other}; choose another folder, or pass overwrite"):
        st.tl.predict_cohort(folder, another, tmp_path / "out", predict=options)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    st.tl.predict_cohort(folder, another, tmp_path / "out", predict=options, overwrite=True)
    assert all(path.read_bytes() != data for path, data in before.items())


def test_a_saved_model_is_recognised(model, folder, tmp_path):
    for number, made in enumerate((model, world.expression_model())):
        made.save(tmp_path / str(number))
        assert fingerprint(st.load_model(tmp_path / str(number))) == fingerprint(made)
    st.tl.predict_cohort(folder, model, tmp_path / "out")
    st.tl.predict_cohort(folder, st.load_model(tmp_path / "0"), tmp_path / "out")


def test_files_of_the_user_are_never_replaced(model, folder):
    before = (folder / "one.h5ad").read_bytes()
    with pytest.raises(FileExistsError, match="is not a result of strecur"):
        st.tl.predict_cohort(folder, model, folder, overwrite=True)
    assert (folder / "one.h5ad").read_bytes() == before


def test_shards_are_all_sections_once(model, folder, tmp_path):
    tables = [st.tl.predict_cohort(folder, model, tmp_path / "out", shard=f"{i}/4") for i in (1, 2, 3, 4)]
    assert [len(table) for table in tables] == [1, 1, 1, 0]
    assert {"file", "section", "result", "error"} <= set(tables[-1])
    together = pd.concat(tables, ignore_index=True)
    pd.testing.assert_frame_equal(together, st.tl.predict_cohort(folder, model, tmp_path / "out"), check_dtype=False)


def test_one_bad_section_does_not_stop_the_others(model, folder, tmp_path, caplog):
    (folder / "also.h5ad").write_bytes((folder / "three.h5ad").read_bytes())
    poor = ad.read_h5ad(folder / "three.h5ad")
    poor.var_names = [f"unknown{i}" for i in range(poor.n_vars)]
    poor.write_h5ad(folder / "three.h5ad")
    table = st.tl.predict_cohort(folder, model, tmp_path / "out").set_index("file")
    errors = table["error"]
    assert "genes are in this object" in errors[str(folder / "three.h5ad")]
    assert errors.ne("").sum() == 1
    assert not (tmp_path / "out" / "three.h5ad").exists()
    assert "three.h5ad could not be predicted" in caplog.text
    # and is predicted once it is mended
    shutil.copy(folder / "also.h5ad", folder / "three.h5ad")
    assert st.tl.predict_cohort(folder, model, tmp_path / "out")["error"].eq("").all()


def test_messages_name_the_file(model, folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("strecur.tl._novelty.MANY", -1.0)
    st.tl.predict_cohort(folder, model, tmp_path / "out")
    strange = [message.split(":")[0] for message in caplog.messages if "stranger than" in message]
    assert strange == [str(folder / name) for name in ("one.h5ad", "three.h5ad", "two.zarr")]
    caplog.clear()
    logging.getLogger("strecur").warning("later")
    assert caplog.messages == ["later"]


def test_sections_of_the_same_name_are_told_apart(adata, tmp_path):
    for name in ("left", "right"):
        part(adata, "S1").write_h5ad(tmp_path / f"{name}.h5ad")
    stored = list_sections(tmp_path, None, table_key=None)
    assert [section.label for section in stored] == ["left S1", "right S1"]
    assert sorted(path.name for path in name_results(stored, tmp_path / "out").values()) == ["left.h5ad", "right.h5ad"]
    sample = st.tl.sample_cohort(tmp_path, None)
    assert sample.obs["section"].cat.categories.to_list() == ["left S1", "right S1"]
    assert sample.obs_names.is_unique


# Sample


def write_many(place, labels_of, **columns):
    """Write tiny sections with given labels."""
    place.mkdir()
    base = part(world.sections(), "S1")[:30].copy()
    base.uns.pop("spatial")
    for name, labels in labels_of.items():
        base.obs["domain"] = np.resize(labels, base.n_obs) if labels else np.full(base.n_obs, None, dtype=object)
        base.obs["domain"] = base.obs["domain"].astype("category")
        base.obs["section"] = name
        for column, values in columns.items():
            base.obs[column] = values[name]
        base.write_h5ad(place / f"{name}.h5ad")


def test_the_sample_has_all_domains_and_only_annotated_sections(tmp_path):
    labels = {f"p{i:02}": ["L1", "L2"] for i in range(8)} | {"q": ["L2", "L3"], "r": ["L4", "L1"], "u": [], "v": []}
    write_many(tmp_path / "c", labels)
    stored = list_sections(tmp_path / "c", None, table_key=None)
    drawn = set()
    for seed in range(4):
        names = {section.name for section in choose_sections(stored, 3, "domain", None, seed)}
        assert {"q", "r"} < names
        assert len(names) == 3
        drawn |= names
    assert len(drawn) > 3, "the rest is drawn by the seed"
    assert not drawn & {"u", "v"}
    assert len(choose_sections(stored, None, "domain", None, 0)) == 10


def test_a_sample_too_small_for_all_domains_is_reported(tmp_path, caplog):
    write_many(tmp_path / "c", {"a": ["L1"], "b": ["L2"], "c": ["L3"]})
    st.tl.sample_cohort(tmp_path / "c", 2, label_key="domain")
    assert "lacks the domains" in caplog.text


def test_groups_take_turns(tmp_path):
    names = [f"s{i}" for i in range(9)]
    donor = {name: "rare" if name == "s4" else "common" for name in names}
    write_many(tmp_path / "c", {name: ["L1"] for name in names}, donor=donor)
    stored = list_sections(tmp_path / "c", None, table_key=None)
    for seed in range(4):
        chosen = choose_sections(stored, 2, None, "donor", seed)
        assert {donor[section.name] for section in chosen} == {"rare", "common"}


def test_a_sample_trains_as_the_object_in_memory(adata, folder):
    sample = st.tl.sample_cohort(folder, None, label_key="domain")
    assert set(sample.obs["section"]) == {"S1", "S2", "S3"}
    # in the order of the files, with which sums are the same to the last bit
    joined = adata[np.concatenate([np.flatnonzero(adata.obs["section"] == name) for name in ("S1", "S3", "S2")])].copy()
    models = [calls.train_domains(given, "domain", **world.QUICK) for given in (sample, joined)]
    assert models[0].sections == models[1].sections
    assert models[0].features.lattices == models[1].features.lattices
    a, b = (made.network.state_dict() for made in models)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_results_that_cannot_be_written_end_the_run(model, folder, tmp_path, monkeypatch):
    tried = []

    def full(_self, path):
        tried.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ad.AnnData, "write_h5ad", full)
    with pytest.raises(OSError, match="No space left"):
        st.tl.predict_cohort(folder, model, tmp_path / "out")
    assert len(tried) == 1


def test_the_sample_keeps_the_genes_of_all_sections(adata, folder, caplog):
    poor = part(adata, "S3")[:, 5:].copy()
    poor.write_h5ad(folder / "three.h5ad")
    sample = st.tl.sample_cohort(folder, None)
    assert sample.n_vars == adata.n_vars - 5
    assert "genes that not all sections have" in caplog.text


# Mistakes


@pytest.mark.parametrize(
    ("paths", "error", "says"),
    [
        ("nowhere", FileNotFoundError, "nowhere does not exist"),
        ("empty", ValueError, "holds no .h5ad files and no .zarr stores"),
        ("cohort/readme.txt", ValueError, "is neither an .h5ad file nor a .zarr store"),
        (["cohort", "cohort/one.h5ad"], ValueError, "more than once"),
        ([], ValueError, "paths is empty"),
    ],
)
def test_wrong_paths_are_explained(model, folder, tmp_path, paths, error, says):
    (tmp_path / "empty").mkdir()
    given = tmp_path / paths if isinstance(paths, str) else [tmp_path / path for path in paths]
    with pytest.raises(error, match=says):
        st.tl.predict_cohort(given, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_file_is_named(model, folder, tmp_path):
    (folder / "three.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(ValueError, match=r"three\.h5ad is damaged"):
        st.tl.predict_cohort(folder, model, tmp_path / "out")


def test_options_are_checked_before_anything_is_read(folder, tmp_path):
    model = world.domain_model()
    for options, says in (
        ({"coverage": 0.9}, "calibrated model"),
        ({"abstian": 0.5}, "did you mean 'abstain'"),
        ({"library_key": "section"}, "predict cannot hold"),
        ({"inference": {"deph": 3}}, "did you mean 'depth'"),
    ):
        with pytest.raises((TypeError, ValueError), match=says):
            st.tl.predict_cohort(tmp_path / "nowhere", model, tmp_path / "out", predict=options)
    with pytest.raises(ValueError, match="for this model it takes"):
        st.tl.predict_cohort(folder, world.expression_model(), tmp_path / "out", predict={"abstain": 0.5})
