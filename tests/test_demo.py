"""The demonstration does what the README says, on the sample of the package and on a folder of files."""

from __future__ import annotations

import re
import subprocess
import sys

import anndata as ad
import matplotlib
import numpy as np
import pytest

import strecur as st
from strecur import demo

FIGURES = ("domains", "refinement", "halt_steps", "confidence", "training")
SMALL = {"n_sections": 3, "n_rows": 16, "n_cols": 16, "n_genes": 50, "n_domains": 3}
ROW = re.compile(r"^(linear baseline|feedforward|TRM) +(-?[\d.]+) +([\d.]+) +([\d.]+) +\d+$", re.M)


@pytest.fixture(autouse=True)
def _quiet():
    matplotlib.use("agg")
    with st.settings.override(progress=False):
        yield


@pytest.fixture
def folder(tmp_path):
    """Three sections as files; the test section has a gene that the others lack and other columns."""
    adata = st.datasets.synthetic_sections(**SMALL)
    adata.obs["layer"] = adata.obs["domain"].astype(object)
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel()
    path = tmp_path / "sections"
    path.mkdir()
    for name in adata.obs["section"].cat.categories:
        section = adata[adata.obs["section"] == name].copy()
        section.obs_names = [spot.partition("_")[2] for spot in section.obs_names]
        del section.obs["section"], section.obs["domain"]
        if name != "S2":
            section = section[:, section.var_names != "gene0007"].copy()
            del section.obs["cellularity"]
        section.write_h5ad(path / f"{name}.h5ad")
    return path


def check_results(out, label, printed):
    """All figures are pictures, the labelled section holds the results, and the table scores them."""
    for name in FIGURES:
        picture = matplotlib.image.imread(out / f"{name}.png")
        assert picture.shape[0] > 300, name
        assert picture[..., :3].std() > 0.01, f"{name} is empty"
    labelled = ad.read_h5ad(out / "labelled.h5ad")
    rows = {name: [float(x) for x in numbers] for name, *numbers in ROW.findall(printed)}
    keys = {"linear baseline": "trm_domains_linear", "feedforward": "feedforward_domains", "TRM": "trm_domains"}
    assert list(rows) == list(keys)
    for name, key in keys.items():
        scores = st.metrics.domain_scores(labelled.obs[label], labelled.obs[key])
        np.testing.assert_allclose(rows[name], [scores[k] for k in ("ari", "accuracy", "macro_f1")], atol=6e-4)
    return labelled


def test_the_sample(tmp_path, monkeypatch, capsys):
    whole = st.datasets.spleen_sample()
    x, y = whole.obsm["spatial"].T
    part = whole[(x % 600 < 200) & (y % 600 < 200)].copy()
    monkeypatch.setattr(st.datasets, "spleen_sample", lambda: part)
    demo.main(["--out", str(tmp_path / "results"), "--epochs", "1"])
    printed = capsys.readouterr().out
    labelled = check_results(tmp_path / "results", "domain", printed)
    assert labelled.obs["section"].unique().tolist() == ["BALBc-2"]
    assert re.search(r"BALBc-1 A, BALBc-1 B \(\S+ spots\) for training, BALBc-2 for testing", printed)
    assert "MIT licence" in printed
    assert str(tmp_path / "results") in printed
    assert labelled.obs["trm_domains_linear"].eq(labelled.obs["domain"].astype(str)).mean() > 0.5


def test_a_folder_of_files(folder, tmp_path, monkeypatch, capsys):
    seen, original = [], st.tl.train_domains

    def spy(adata, *args, **options):
        key = options["features"]["size_factor_key"]
        seen.append((options["architecture"], key, adata.obs["section"].unique().tolist()))
        return original(adata, *args, **options)

    monkeypatch.setattr(st.tl, "train_domains", spy)
    words = ["--data", folder, "--label", "layer", "--test", "S2", "--size-factor-key", "total", "--epochs", "1"]
    demo.main([*map(str, words), "--out", str(tmp_path / "results")])
    printed = capsys.readouterr().out
    labelled = check_results(tmp_path / "results", "layer", printed)
    assert re.search(r"S1, S3 \(\d+ spots\) for training, S2 for testing", printed)
    assert seen == [(architecture, "total", ["S1", "S3"]) for architecture in ("feedforward", "trm")]
    source = ad.read_h5ad(folder / "S2.h5ad")
    assert labelled.obs_names.tolist() == [f"{name}-S2" for name in source.obs_names]
    assert labelled.n_vars == source.n_vars - 1, "only genes of all sections are used"
    assert "cellularity" not in labelled.obs
    np.testing.assert_array_equal(labelled.obsm["grid"], source.obs[["array_row", "array_col"]])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--test", "S9"], "there is no section 'S9'; choose one with --test from S1, S2, S3"),
        ([], "no section was chosen; choose one with --test from S1, S2, S3"),
        (["--test", "S1", "--label", "region"], "obs of S1.h5ad has no column 'region'; choose one with --label from"),
        (["--test", "S1", "--size-factor-key", "umi"], "no column 'umi'; choose one with --size-factor-key from"),
        (["--test", "S1", "--epochs", "0"], "--epochs: 0 is too few"),
    ],
)
def test_mistakes_are_explained(folder, tmp_path, capsys, words, message):
    words = ["--data", str(folder), "--label", "layer", "--out", str(tmp_path / "results"), *words]
    with pytest.raises(SystemExit) as stopped:
        demo.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_folder_needs_two_sections(folder, tmp_path, capsys):
    for name in ("S1", "S2"):
        (folder / f"{name}.h5ad").unlink()
    for path, n in ((folder, 1), (tmp_path / "nowhere", 0)):
        with pytest.raises(SystemExit):
            demo.main(["--data", str(path), "--test", "S3"])
        assert f"holds {n} .h5ad files; at least two are needed" in capsys.readouterr().err


def test_results_do_not_go_into_the_folder_of_the_data(folder, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--data", str(folder), "--label", "layer", "--test", "S1", "--out", str(folder)])
    assert "choose another folder with --out" in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 3


def test_an_unknown_section_of_the_sample_is_explained(tmp_path, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--test", "S7", "--out", str(tmp_path / "results")])
    assert (
        "there is no section 'S7'; choose one with --test from BALBc-1 A, BALBc-1 B, BALBc-2" in capsys.readouterr().err
    )


def test_importing_leaves_the_backend_alone():
    code = "import matplotlib; matplotlib.use('svg'); import strecur.demo; print(matplotlib.get_backend())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "svg"


def test_the_sample_holds_all_compartments_of_two_mice():
    adata = st.datasets.spleen_sample()
    table = adata.obs.groupby("section", observed=True)["domain"].value_counts().unstack()
    assert list(table.index) == ["BALBc-1 A", "BALBc-1 B", "BALBc-2"]
    assert list(table.columns) == ["B-zone", "PALS", "marginal zone", "red pulp"]
    assert (table > 100).all(axis=None)
    assert adata.obs_names.is_unique
    assert "MIT" in adata.uns["source"]
