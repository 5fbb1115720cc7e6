"""The command line: the results of the API, exit codes and messages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import small_world as world

import strecur as st
from strecur import cli

QUICK = [
    "--architecture",
    "feedforward",
    "--features",
    "n_genes=20",
    "n_components=4",
    "neighbours=[7]",
    "--training",
    "max_epochs=2",
    "validation=null",
]
ON_CPU = ["--accelerator", "cpu", "--precision", "32-true", "--quiet"]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_process(monkeypatch):
    for name in ("RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def _cohort(tmp_path_factory):
    place = tmp_path_factory.mktemp("files")
    adata = world.sections()
    for name in ("S1", "S2", "S3"):
        adata[adata.obs["section"] == name].write_h5ad(place / f"{name}.h5ad")
    return place


@pytest.fixture
def cohort(_cohort, tmp_path):
    """A folder with one file per section, free to be changed."""
    return shutil.copytree(_cohort, tmp_path / "cohort")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    place = tmp_path_factory.mktemp("models")
    world.calibrated().save(place / "domains")
    world.expression_model().save(place / "expression")
    return place


def run(*words, code=0):
    """Run a command in this process, and check its exit code."""
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(word) for word in words])
    assert stopped.value.code == code


def test_train_saves_the_model_of_the_api(cohort, tmp_path, capsys):
    run("train", cohort, "--label-key", "domain", "--out", tmp_path / "m", "--halting", "none", *QUICK, *ON_CPU)
    assert "trained on sections: S1, S2, S3" in capsys.readouterr().out
    model = st.load_model(tmp_path / "m")
    features = {"n_genes": 20, "n_components": 4, "neighbours": [7]}
    training = {"max_epochs": 2, "validation": None}
    sample = st.tl.sample_cohort(cohort, None, label_key="domain")
    options = {"architecture": "feedforward", "halting": None, "features": features, "training": training}
    expected = st.tl.train_domains(sample, "domain", **options)
    assert model.halting is None
    found, wanted = model.network.state_dict(), expected.network.state_dict()
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_predict_writes_the_results_of_the_api(cohort, saved, tmp_path, capsys):
    words = ["predict", cohort, "--model", saved / "domains", "--out", tmp_path / "out"]
    run(*words, "--coverage", "0.9", "--inference", "depth=3", "breadth=2", *ON_CPU)
    assert "3 of 3 sections are predicted" in capsys.readouterr().out
    found = ad.read_h5ad(tmp_path / "out" / "S2.h5ad")
    wanted = ad.read_h5ad(cohort / "S2.h5ad")
    st.tl.trm_domains(wanted, world.calibrated(), coverage=0.9, inference={"depth": 3, "breadth": 2})
    for name in ("proba", "steps", "set"):
        np.testing.assert_array_equal(found.obsm[f"trm_domains_{name}"], wanted.obsm[f"trm_domains_{name}"])
    table = pd.read_csv(tmp_path / "out" / "sections.csv")
    assert table["section"].to_list() == ["S1", "S2", "S3"]
    assert table["mean_confidence"].notna().all()
    # with other options, the results are not replaced
    run(*words, *ON_CPU, code=2)
    assert "S1.h5ad holds results of other options; choose another folder" in capsys.readouterr().err


def test_parts_have_tables_of_their_own(cohort, saved, tmp_path):
    for i in (1, 2):
        run("predict", cohort, "--model", saved / "domains", "--out", tmp_path, "--shard", f"{i}/2", *ON_CPU)
    tables = [pd.read_csv(tmp_path / f"sections-{i}-of-2.csv") for i in (1, 2)]
    assert sorted(pd.concat(tables)["section"]) == ["S1", "S2", "S3"]


def test_failed_sections_make_the_exit_code_one(cohort, saved, tmp_path, capsys, caplog):
    adata = ad.read_h5ad(cohort / "S2.h5ad")
    adata.var_names = [f"unknown{i}" for i in range(adata.n_vars)]
    adata.write_h5ad(cohort / "S2.h5ad")
    run("predict", cohort, "--model", saved / "domains", "--out", tmp_path / "out", *ON_CPU, code=1)
    assert "2 of 3 sections are predicted" in capsys.readouterr().out
    assert "S2.h5ad could not be predicted: only 0% of the model's" in caplog.text
    errors = pd.read_csv(tmp_path / "out" / "sections.csv").set_index("section")["error"]
    assert errors.notna().to_dict() == {"S1": False, "S2": True, "S3": False}
    assert (tmp_path / "out" / "S3.h5ad").exists()


def test_validate_continues_its_table(cohort, tmp_path, capsys):
    words = ["validate", cohort, "--label-key", "domain", "--seeds", "0", "--out", tmp_path / "scores.csv"]
    words += QUICK[2:]
    run(*words, *ON_CPU)
    printed = capsys.readouterr().out
    assert "linear, single spots" in printed
    table = pd.read_csv(tmp_path / "scores.csv")
    assert set(table["group"]) == {"S1", "S2", "S3"}
    stamp = (tmp_path / "scores.csv").stat().st_mtime_ns
    run(*words, *ON_CPU)
    assert capsys.readouterr().out == printed
    assert (tmp_path / "scores.csv").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "nowhere", "--model", "{saved}/domains"], "nowhere does not exist"),
        (["predict", "{empty}", "--model", "{saved}/domains"], "holds no .h5ad files"),
        (["predict", "{cohort}", "--model", "nowhere"], "is not a complete model folder"),
        (
            ["predict", "{cohort}", "--model", "{saved}/domains", "--library-key", "slide"],
            "'slide' is not in adata.obs",
        ),
        (["predict", "{cohort}", "--model", "{saved}/domains", "--shard", "4/3"], "shard='4/3'"),
        (["predict", "{cohort}", "--model", "{saved}/domains", "--inference", "deph=3"], "did you mean 'depth'?"),
        (["predict", "{cohort}", "--model", "{saved}/expression", "--abstain", "0.5"], "['abstain']; for this model"),
        (["predict", "{cohort}", "--model", "{saved}/expression"], "none of the 3 sections could be predicted"),
        (["train", "{cohort}", "--label-key", "layer"], "'layer' is not a column of obs in any file"),
        (["train", "{cohort}", "--genes", "10"], "X_patch"),
        (["train", "{cohort}"], "one of the arguments --label-key --genes is required"),
        (["train", "{cohort}", "--label-key", "domain", "--training", "epochs"], "write NAME=VALUE"),
        (["train", "{cohort}", "--label-key", "domain", "--training", "epochs=3"], "training has no option 'epochs'"),
    ],
)
def test_mistakes_are_explained(cohort, saved, tmp_path, capsys, words, says):
    (tmp_path / "empty").mkdir()
    places = {"cohort": cohort, "saved": saved, "empty": tmp_path / "empty"}
    run(*(word.format(**places) for word in words), "--out", tmp_path / "out", *ON_CPU, code=2)
    printed = capsys.readouterr()
    assert says in printed.err
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()


def test_a_model_is_replaced_only_on_request(cohort, saved, capsys):
    before = (saved / "domains" / "config.json").read_bytes()
    run("train", cohort, "--label-key", "domain", "--out", saved / "domains", code=2)
    assert "pass --overwrite to replace the model" in capsys.readouterr().err
    assert (saved / "domains" / "config.json").read_bytes() == before


def test_torchrun_does_not_predict(cohort, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    run("predict", cohort, "--model", saved / "domains", "--out", tmp_path / "out", code=2)
    assert "--shard" in capsys.readouterr().err


def test_the_script_is_the_command_line():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"strecur": "strecur.cli:main"}
    assert (cli.main.__module__, cli.main.__name__) == ("strecur.cli", "main")


def test_every_option_has_a_text():
    (commands,) = [action.choices for action in cli.make_parser()._actions if action.dest == "command"]
    assert set(commands) == {"train", "predict", "validate"}
    for name, parser in commands.items():
        assert [action.dest for action in parser._actions if not action.help] == [], name


def test_help_needs_no_torch():
    code = "import sys; from strecur import cli; cli.make_parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_two_processes_learn_what_one_does_with_both_sections_in_its_batch(cohort, tmp_path):
    (cohort / "S3.h5ad").unlink()
    words = ["train", cohort, "--label-key", "domain", "--halting", "none", *QUICK, "slots=1", *ON_CPU]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "strecur"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*launcher, *map(str, words), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved to") == 1
    run(*words[: -len(ON_CPU)], "batch_sections=2", *ON_CPU, "--out", tmp_path / "one")
    run(*words, "--out", tmp_path / "alone")
    two, one, alone = (st.load_model(tmp_path / name).network.state_dict() for name in ("two", "one", "alone"))
    for name, wanted in one.items():
        np.testing.assert_allclose(two[name], wanted, atol=1e-5, rtol=1e-4, err_msg=name)
    assert any(not np.allclose(alone[name], wanted, atol=1e-4) for name, wanted in one.items())
