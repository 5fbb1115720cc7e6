from __future__ import annotations

import anndata as ad
import calls
import numpy as np
import pandas as pd
import pytest
import toy_histology
from calls import grouped
from toy_histology import join, make_section

import strecur as st
from strecur._anndata import Sections
from strecur.nn import TRMConfig
from strecur.tl import _scoring
from strecur.tl._folds import read_by_section

from .conftest import SMALL

RUN = {"library_key": "section"}
TRAINING = {**SMALL, "neighbours": (7,), "max_epochs": 1, "validation": None}
TIMES = ["train_seconds", "predict_seconds", "peak_memory_gb"]


def evaluate(adata, label_key="domain", **options):
    options = {"library_key": "section", "seeds": (0,), "train": TRAINING, **options}
    options["train"] = grouped("train_domains", **options["train"])
    return st.tl.cross_validate(adata, label_key, **options)


@pytest.fixture
def models(monkeypatch) -> list:
    """Return the models that are trained from here on."""
    trained = []
    for name in ("train_domains", "train_expression"):
        verb = getattr(_scoring, name)
        monkeypatch.setattr(
            _scoring,
            name,
            lambda *args, verb=verb, **options: trained.append(verb(*args, **options)) or trained[-1],
        )
    return trained


@pytest.fixture(scope="module")
def table(_sections) -> pd.DataFrame:
    return evaluate(_sections, seeds=(0, 1))


def test_every_section_is_held_out_once_by_every_method_and_seed(table):
    alone = ["trm, network alone", "feedforward, network alone"]
    methods = ["linear", "linear, single spots", "trm", alone[0], "feedforward", alone[1]]
    expected = [(group, seed, method) for group in ("S1", "S2", "S3") for seed in (0, 1) for method in methods]
    assert list(table[["group", "seed", "method"]].itertuples(index=False, name=None)) == expected
    assert (table["n_train_sections"] == 2).all()
    assert (table["n_test_sections"] == 1).all()
    networks = table["method"].isin(["trm", "feedforward"])
    assert (table.loc[networks, TIMES[:2]] > 0).all(axis=None)
    assert table.loc[~networks, TIMES].isna().all(axis=None)
    # the synthetic domains show in the neighbourhood, not in single spots
    means = table.groupby("method")["ari"].mean()
    assert means["linear"] > means["linear, single spots"] + 0.1


def test_scores_are_those_of_train_and_predict_by_hand(sections, table):
    train, test = (sections[rows].copy() for rows in (sections.obs["section"] != "S2", sections.obs["section"] == "S2"))
    model = calls.train_domains(train, "domain", **RUN, **TRAINING, rng=1)
    calls.trm_domains(test, model, **RUN)
    rows = table.query("group == 'S2' and seed == 1").set_index("method")
    for method, key in (("trm", "trm_domains"), ("linear", "trm_domains_linear")):
        for name, score in st.metrics.domain_scores(test.obs["domain"], test.obs[key]).items():
            assert rows.loc[method, name] == score
    assert rows.loc["trm", "novelty"] == pytest.approx(test.uns["trm_domains"]["sections"]["novelty"].item())
    assert (rows["n_train_spots"] == train.n_obs).all()


def test_seeds_reproduce_and_the_object_stays(sections, table):
    before = sections.copy()
    again = evaluate(sections, groups=["S2"], seeds=(1,))
    expected = table.query("group == 'S2' and seed == 1").reset_index(drop=True)
    pd.testing.assert_frame_equal(again.drop(columns=TIMES), expected.drop(columns=TIMES))
    assert not again.query("method == 'trm'")["ari"].equals(table.query("group == 'S2' and method == 'trm'")["ari"])
    for slot in ("obs", "var"):
        pd.testing.assert_frame_equal(getattr(sections, slot), getattr(before, slot))
    assert (sections.X != before.X).nnz == 0
    assert {slot: list(getattr(sections, slot)) for slot in ("obsm", "uns", "layers")} == {
        slot: list(getattr(before, slot)) for slot in ("obsm", "uns", "layers")
    }


def fitted(model) -> dict[str, np.ndarray]:
    """Return what a model learned, and how."""
    learned = {name: value.numpy() for name, value in model.network.state_dict().items()}
    learned |= {f"baseline {name}": value for name, value in vars(model.baseline).items()}
    learned |= {f"features {k}": v for k, v in vars(model.features.source).items() if isinstance(v, np.ndarray)}
    return learned | {"loss": model.history["train_loss"].to_numpy()}


def scrambled(adata, name, seed=0):
    """Give the spots of a section other counts, labels and embeddings."""
    adata, rng = adata.copy(), np.random.default_rng(seed)
    rows = np.flatnonzero(adata.obs["section"] == name)
    counts = adata.X.tolil()
    counts[rows] = rng.poisson(3, (len(rows), adata.n_vars)).astype(np.float32)
    adata.X = counts.tocsr()
    if "domain" in adata.obs:
        labels = adata.obs["domain"].to_numpy().astype(object)
        labels[rows] = rng.permutation(labels[rows])
        adata.obs["domain"] = labels
    for key in adata.obsm.keys() & {"X_patch", "X_patch_d4"}:
        adata.obsm[key][rows] = rng.normal(size=adata.obsm[key][rows].shape)
    return adata


@pytest.mark.parametrize("task", ["domains", "expression"])
def test_nothing_is_learned_from_what_is_held_out(task, sections, models):
    options = {"groups": ["S3"], "seeds": (0,), "architectures": ("feedforward",)}
    if task == "domains":
        adata, options = sections, options | {"train": {**TRAINING, "n_genes": 40}}
    else:
        adata = join(*(make_section(f"S{k}", k) for k in (1, 2, 3)))
        options |= {"label_key": None, "train": {**toy_histology.SMALL, "genes": 5, "max_epochs": 1}}
    for changed in (adata, scrambled(adata, "S3"), scrambled(adata, "S1")):
        evaluate(changed, **options)
    reference, of_test, of_training = map(fitted, models)
    genes = [m.features.source.genes if task == "domains" else m.genes for m in models]
    assert genes[0] == genes[1]
    assert all(np.array_equal(reference[name], of_test[name]) for name in reference)
    # the comparison would see it
    changed = [n for n in reference if not np.array_equal(reference[n], of_training[n])]
    assert {"loss", *(n for n in reference if n.startswith(("baseline", "features")))} <= set(changed)


def test_patients_are_held_out_whole(models):
    adata = join(*(make_section(f"S{k}", k) for k in (1, 2, 3, 4)))
    patients = {"S1": "P1", "S2": "P2", "S3": "P1", "S4": "P2"}
    adata.obs["patient"] = adata.obs["section"].astype(str).map(patients)
    training = {**toy_histology.SMALL, "genes": 5, "max_epochs": 1, "target": "log2_normalised"}
    options = {"group_key": "patient", "seeds": (0,), "train": training, "architectures": "feedforward"}
    table = evaluate(adata, None, **options)
    assert table["method"].tolist() == ["linear", "feedforward", "feedforward, network alone"] * 2
    assert [sorted(m.sections) for m in models] == [["S2", "S4"], ["S1", "S3"]]
    assert (table["shared_donor"] == False).all()  # noqa: E712
    assert (table["caution"] == "").all()
    assert (table["n_test_sections"] == 2).all()

    # scores are means over the sections of the patient
    test = adata[adata.obs["patient"] == "P1"].copy()
    calls.predict_expression(test, models[0], **RUN)
    truth, parts = models[0].measure(test), []
    for name in ("S1", "S3"):
        rows = (test.obs["section"] == name).to_numpy()
        parts.append(st.metrics.expression_scores(truth[rows], test.obsm["trm_expression"][rows]))
    row = table.query("group == 'P1' and method == 'feedforward'").iloc[0]
    for score in ("pcc_all", "mse", "pcc_300_depth_normalised"):
        assert row[score] == pytest.approx(np.mean([part[score] for part in parts]))
    assert row["n_spots"] == test.n_obs

    by_section = evaluate(adata, None, **{**options, "group_key": None, "donor_key": "patient", "groups": ["S1"]})
    assert by_section["shared_donor"].all()
    assert by_section["caution"].str.contains("other sections of P1 are in training").all()


def test_what_makes_scores_too_good_is_said(sections):
    sections.obs["domain"] = sections.obs["domain"].astype(object)
    copy = sections.obs["section"] == "S3"
    twice = sections[copy].copy()
    twice.obs["section"] = "S4"
    import anndata as ad

    adata = ad.concat([sections, twice], index_unique="-", uns_merge="first")
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(sections.n_obs, 4)).repeat(2, axis=0)[: adata.n_obs]
    options = {"groups": ["S1", "S3"], "architectures": "feedforward"}
    caution = evaluate(adata, **options).groupby("group")["caution"].first()
    assert "donors are not known" in caution["S1"]
    assert "in training too" not in caution["S1"]
    assert "100% of the spots held out are in training too" in caution["S3"]
    own = {**TRAINING, "use_rep": "X_pca"}
    assert "obsm['X_pca'] was made before the split" in evaluate(adata, **options, train=own)["caution"].iloc[0]


def test_networks_may_be_named_and_configured(sections, models):
    networks = {"two latent steps": TRMConfig(n_latent=2), "three": TRMConfig(n_latent=3)}
    options = {"groups": ["S1"], "inference": {"breadth": 2, "depth": 1}}
    table = evaluate(sections, architectures=networks, **options)
    answers = table["method"][~table["method"].str.contains("alone")]
    assert answers.tolist() == ["linear", "linear, single spots", "two latent steps", "three", "feedforward"]
    assert [getattr(m.architecture, "n_latent", None) for m in models] == [2, 3, None]


def test_an_interrupted_run_continues(sections, models, monkeypatch, tmp_path, table):
    path = tmp_path / "folder" / "results.csv"
    options = {"seeds": (0, 1), "groups": ["S1"], "path": path}
    train, seen = _scoring.train_domains, []

    def interrupted(*args, **arguments):
        seen.append(arguments["rng"])
        if len(seen) == 4:
            raise KeyboardInterrupt
        return train(*args, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(_scoring, "train_domains", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(sections, **options)
    assert seen == [0, 0, 1, 1]
    models.clear()
    found = evaluate(sections, **options)
    assert len(models) == 1
    expected = table[table["group"] == "S1"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns=TIMES), expected.drop(columns=TIMES))
    models.clear()
    # what is there is not computed again, and what is not asked for is not returned
    part = evaluate(sections, **{**options, "seeds": (1,)}, architectures="feedforward")
    assert models == []
    assert part["method"].tolist() == ["linear", "linear, single spots", "feedforward", "feedforward, network alone"]

    with pytest.raises(ValueError, match="other data or settings"):
        evaluate(sections, **options, train={**TRAINING, "max_epochs": 2})
    with pytest.raises(ValueError, match="other data or settings"):
        evaluate(scrambled(sections, "S2"), **options)
    with pytest.raises(ValueError, match=r"other data or settings.*trm"):
        evaluate(sections, **options, architectures={"trm": TRMConfig(n_latent=2)})
    (tmp_path / "else.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"not a table of strecur.tl.cross_validate"):
        evaluate(sections, **{**options, "path": tmp_path / "else.csv"})


def one_donor(adata):
    adata.obs["donor"] = "D1"


def mixed_donor(adata):
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 2, "D1", "D2")


def one_annotated(adata):
    adata.obs["domain"] = adata.obs["domain"].astype(object).where(adata.obs["section"] == "S1", None)


def one_unlabelled(adata):
    adata.obs["domain"] = adata.obs["domain"].astype(object).where(adata.obs["section"] != "S3", None)


BAD = {
    "label": ({"label_key": "layer"}, None, KeyError, "layer.*there are.*domain"),
    "library": ({"library_key": "slide"}, None, KeyError, "slide.*there are"),
    "group key": ({"group_key": "clinic"}, None, KeyError, "clinic.*there are.*donor"),
    "one group": ({"group_key": "donor"}, one_donor, ValueError, r"1 of the groups \['D1'\].*smaller groups"),
    "mixed": ({"group_key": "donor"}, mixed_donor, ValueError, "differs within sections.*'D1', 'D2'"),
    "one annotated": ({}, one_annotated, ValueError, "1 of the groups.*at least two are needed"),
    "no truth": ({}, one_unlabelled, ValueError, r"\['S3'\] have no annotation.*groups=\['S1', 'S2'\]"),
    "unknown group": ({"groups": ["S9"]}, None, KeyError, r"S9.*there are \['S1', 'S2', 'S3'\]"),
    "training": ({"train": {"epochs": 3}}, None, ValueError, r"train cannot hold \['epochs'\].*backbone"),
    "option of training": (
        {"train": {"training": {"epochs": 3}}},
        None,
        TypeError,
        "training has no option 'epochs'; did you mean 'max_epochs'",
    ),
    "seed": ({"train": {"rng": 3}}, None, ValueError, r"\['rng'\].*arguments of cross_validate itself"),
    "inference": ({"inference": {"coverage": 0.9}}, None, TypeError, "coverage is an argument of the function itself"),
    "no seed": ({"seeds": ()}, None, ValueError, r"seeds=\[\]"),
    "seed twice": ({"seeds": (1, 1)}, None, ValueError, "each once"),
    "linear": ({"architectures": ("trm", "linear")}, None, ValueError, "linear.*without being asked for"),
    "network": ({"architectures": ("trn",)}, None, ValueError, "architecture='trn'; choose one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case, sections, models):
    options, change, error, message = BAD[case]
    if change is not None:
        change(sections)
    with pytest.raises(error, match=message):
        evaluate(sections, **options)
    assert models == []


def test_a_section_without_annotation_is_neither_learned_from_nor_scored(sections, models):
    one_unlabelled(sections)
    table = evaluate(sections, groups=["S1", "S2"], architectures="feedforward")
    assert [m.sections for m in models] == [["S2"], ["S1"]]
    assert (table["n_train_sections"] == 1).all()
    assert table["novelty"].isna().all()


def test_donors_that_are_numbers_have_the_same_names_whatever_their_type():
    names = [f"s{i}" for i in range(4)]
    sections = Sections(np.array([0, 0, 1, 1]), ["A", "B"])
    for donors in ([1, 1, 2, 2], [1.0, 1.0, 2.0, 2.0], ["1", "1", "2", "2"]):
        table = ad.AnnData(np.ones((4, 1), np.float32), obs=pd.DataFrame({"donor": donors}, index=names))
        assert read_by_section(table, "donor", sections) == {"A": "1", "B": "2"}
