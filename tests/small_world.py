"""Small sections, models and results, made once and handed out as copies, and a valid call of every public function."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from copy import deepcopy
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import calls
import matplotlib as mpl
import numpy as np
import pandas as pd
from scipy import sparse
from toy_histology import GENES, apply, join, make_section
from toy_histology import train as train_expression
from toy_slides import lazy_slide

import strecur as st
from strecur.nn import GenARConfig, WindowedConfig
from strecur.pp import Encoder

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

mpl.use("Agg")

SECTIONS = {"library_key": "section"}
NETWORK = {"backbone": WindowedConfig(width=32, n_heads=2, window=4, n_global=1), "n_components": 8}
BRIEFLY = {"neighbours": (7,), "max_epochs": 1, "validation": None}
QUICK = {**SECTIONS, **NETWORK, **BRIEFLY, "max_epochs": 2}
COUNTS = GenARConfig(width=24, n_heads=2, n_layers=1, condition_width=24, n_groups=2, spots_per_step=16)
MEANS = Encoder("means", lambda patches: patches.mean(axis=(1, 2)), 3, size=16)


@cache
def _raw() -> AnnData:
    adata = st.datasets.synthetic_sections(n_sections=3, n_rows=12, n_cols=12, n_genes=40, n_domains=3, image=True)
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() + 1
    return adata


def raw() -> AnnData:
    """Three sections with images, counts, labels and coordinates, as they come."""
    return deepcopy(_raw())


@cache
def _sections() -> AnnData:
    adata = raw()
    st.pp.to_grid(adata, **SECTIONS)
    return adata


def sections() -> AnnData:
    """The same with a lattice."""
    return deepcopy(_sections())


@cache
def _domain_model() -> st.models.DomainModel:
    adata = sections()
    return calls.train_domains(adata[adata.obs["section"] != "S3"].copy(), "domain", **QUICK)


def domain_model() -> st.models.DomainModel:
    """Model of two sections, not calibrated."""
    return deepcopy(_domain_model())


@cache
def _calibrated() -> st.models.DomainModel:
    model = domain_model()
    calls.calibrate(sections(), model, "domain", **SECTIONS)
    return model


def calibrated() -> st.models.DomainModel:
    return deepcopy(_calibrated())


@cache
def _one_state() -> st.models.DomainModel:
    return calls.train_domains(sections(), "domain", **{**QUICK, "max_epochs": 1}, architecture="universal")


@cache
def _labelled() -> AnnData:
    adata = sections()
    calls.trm_domains(adata, _calibrated(), **SECTIONS, breadth=2, coverage=0.9)
    return adata


def labelled() -> AnnData:
    """Sections with predicted domains, all keys of them."""
    return deepcopy(_labelled())


def clustered() -> AnnData:
    """The same with a latent that has three clusters of different size."""
    adata, rng = labelled(), np.random.default_rng(0)
    centres = 5 * np.eye(3, 8)[rng.choice(3, adata.n_obs, p=(0.5, 0.3, 0.2))]
    adata.obsm["trm_domains_latent"] = (centres + rng.normal(size=centres.shape)).astype(np.float32)
    return adata


def partly_annotated() -> AnnData:
    """Sections with predicted domains, of which every fifth spot is annotated in ``some``."""
    adata = labelled()
    adata.obs["some"] = adata.obs["domain"].where(np.arange(adata.n_obs) % 5 == 0)
    return adata


def suggested() -> AnnData:
    """The same with places to annotate next."""
    adata = partly_annotated()
    st.tl.suggest_annotation(adata, domain_model(), 3, label_key="some", n_spots=4)
    return adata


@cache
def _pair() -> AnnData:
    return join(make_section("S1", 1), make_section("S2", 2))


def pair() -> AnnData:
    """Two sections with embedded patches and counts."""
    return deepcopy(_pair())


@cache
def _new() -> AnnData:
    return join(make_section("S3", 3))


def new() -> AnnData:
    """A third one."""
    return deepcopy(_new())


@cache
def _expression_model() -> st.models.ExpressionModel:
    return train_expression(_pair(), halting="pcc")


def expression_model() -> st.models.ExpressionModel:
    """Model of two sections, not calibrated."""
    return deepcopy(_expression_model())


@cache
def _expression_calibrated() -> st.models.ExpressionModel:
    model = expression_model()
    calls.calibrate_expression(_new(), model, **SECTIONS)
    return model


@cache
def _linear_model() -> st.models.LinearExpressionModel:
    return train_expression(_pair(), architecture="linear")


@cache
def _count_model() -> st.models.ExpressionModel:
    options = {"architecture": COUNTS, "genes": GENES, "n_components": 6, "neighbours": (9,), "max_epochs": 1}
    return calls.train_expression(_pair(), **SECTIONS, **options)


@cache
def _predicted() -> AnnData:
    return apply(_new(), _expression_calibrated(), breadth=2, coverage=0.9)


def predicted() -> AnnData:
    """A section with predicted expression, all keys of it."""
    return deepcopy(_predicted())


@cache
def _swept() -> pd.DataFrame:
    return call("tl.recursion_sweep", *valid("tl.recursion_sweep"))


@cache
def _landscape() -> pd.DataFrame:
    return call("tl.landscape", *valid("tl.landscape"))


def cross_validated() -> pd.DataFrame:
    """Table of a cross-validation: two groups, two methods."""
    rows = [
        (group, method, ari)
        for group, shift in (("S1", 0.0), ("S2", 0.1))
        for method, ari in (("trm", 0.6), ("linear", 0.5 + shift))
    ]
    return pd.DataFrame(rows, columns=["group", "method", "ari"]).assign(seed=0)


def annotation() -> pd.DataFrame:
    """Table of the labels of all sections by two annotators, who differ in a few spots."""
    obs = _raw().obs[["section", "domain"]].reset_index(names="barcode").rename(columns={"domain": "label"})
    other = obs.assign(label=obs["label"].astype(str).where(np.arange(len(obs)) % 10 > 0, "L1"))
    return pd.concat([obs.assign(annotator="a"), other.assign(annotator="b")], ignore_index=True)


@cache
def scratch() -> Path:
    """Return a folder for files that calls read and write."""
    from pathlib import Path
    from tempfile import mkdtemp

    return Path(mkdtemp())


def image() -> np.ndarray:
    return np.array(_raw().uns["spatial"]["S1"]["images"]["hires"])


def images() -> dict[str, np.ndarray]:
    return {name: np.array(entry["images"]["hires"]) for name, entry in _raw().uns["spatial"].items()}


@cache
def _model_folder() -> Path:
    from pathlib import Path
    from tempfile import mkdtemp

    folder = Path(mkdtemp()) / "model"
    _domain_model().save(folder)
    return folder


def section_files() -> list[Path]:
    """Files of two of the sections."""
    files = [scratch() / f"{name}.h5ad" for name in ("S1", "S2")]
    for file in files:
        if not file.exists():
            adata = _sections()
            adata[adata.obs["section"] == file.stem].write_h5ad(file)
    return files


def other_panel_file() -> Path:
    """File of a section without a gene of the models."""
    path = scratch() / "other.h5ad"
    adata = sections()[:50].copy()
    adata.var_names = [f"other{i}" for i in range(adata.n_vars)]
    adata.write_h5ad(path)
    return path


def empty_folder() -> Path:
    place = scratch() / "empty"
    place.mkdir(exist_ok=True)
    return place


def hest_folder() -> Path:
    """Folder of the form of HEST with one section."""
    import h5py

    folder = scratch() / "hest"
    if not folder.exists():
        (folder / "st").mkdir(parents=True)
        (folder / "patches").mkdir()
        adata = sections()
        adata = adata[adata.obs["section"] == "S1"].copy()
        adata.write_h5ad(folder / "st" / "S1.h5ad")
        with h5py.File(folder / "patches" / "S1.h5", "w") as file:
            file["img"] = np.zeros((adata.n_obs, 16, 16, 3), dtype=np.uint8)
            file["barcode"] = np.array([[name.encode()] for name in adata.obs_names], dtype=object)
    return folder


def log_values(seed: int = 0, shape: tuple[int, int] = (30, 6)) -> np.ndarray:
    return np.log2(np.random.default_rng(seed).poisson(3, shape) + 1.0)


def counts(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(3, (30, 6)).astype(float)


def labels(seed: int = 0) -> pd.Series:
    return pd.Series(np.random.default_rng(seed).choice(["a", "b", "c"], 30))


def probabilities() -> np.ndarray:
    return np.random.default_rng(1).dirichlet(np.ones(3), 30)


def sites() -> np.ndarray:
    return np.argwhere(np.ones((5, 6), dtype=bool))


def function(name: str) -> Callable:
    """Find a public function by its name, as ``"pp.to_grid"``."""
    found = st
    for part in name.split("."):
        found = getattr(found, part)
    return found


PATCHES = {**SECTIONS, "encoder": MEANS, "px": 100, "image_scale": 0.25}
METRIC = {"predicted": lambda: log_values(1)}
COUNT_METRIC = {"predicted": lambda: counts(1)}

# First argument and options of a valid call, all side by side; what is callable is called to get the value.
VALID: dict[str, tuple[Callable, dict[str, object]]] = {
    "pp.to_grid": (raw, SECTIONS),
    "pp.read_annotation": (sections, {"source": annotation, "annotator_key": "annotator", **SECTIONS}),
    "pp.embed_patches": (raw, {"image": images, **PATCHES}),
    "pp.load_encoder": (None, {"name": "texture"}),
    "pp.tile_image": (image, {"pitch_px": 25}),
    "pp.read_wsidata": (lambda: lazy_slide(Path("slide.svs")), {"feature_key": "toy"}),
    "pp.read_hest": (hest_folder, {"sections": "S1", "encoder": MEANS}),
    "pp.fit_stain_reference": (raw, SECTIONS),
    "pp.high_mean_high_variance_genes": (raw, {"n_genes": 10, **SECTIONS}),
    "tl.train_domains": (sections, {"label_key": "domain", **QUICK}),
    "tl.trm_domains": (sections, {"model": calibrated, **SECTIONS}),
    "tl.sample_cohort": (section_files, {"n_sections": 2, "label_key": "domain"}),
    "tl.predict_cohort": (section_files, {"model": calibrated, "folder": lambda: scratch() / "results"}),
    "tl.train_expression": (
        pair,
        {**QUICK, "n_components": 6, "neighbours": (9,), "genes": GENES, "validation": None, "n_networks": 1},
    ),
    "tl.predict_expression": (new, {"model": lambda: deepcopy(_expression_calibrated()), **SECTIONS}),
    "tl.calibrate": (sections, {"model": domain_model, "label_key": "domain", **SECTIONS}),
    "tl.calibrate_expression": (new, {"model": expression_model, **SECTIONS}),
    "tl.calibrate_halting": (sections, {"model": domain_model, "depth": 3, **SECTIONS}),
    "tl.recursion_sweep": (
        sections,
        {
            "model": domain_model,
            "label_key": "domain",
            "depths": (1, 2),
            "n_latent": (1, 2),
            "n_deep": (1,),
            **SECTIONS,
        },
    ),
    "tl.landscape": (
        sections,
        {"model": domain_model, "label_key": "domain", "depth": 3, "breadth": 2, "n_spots": 20, **SECTIONS},
    ),
    "tl.cluster_latent": (clustered, {"n_domains": 3, **SECTIONS}),
    "tl.suggest_annotation": (
        partly_annotated,
        {"model": domain_model, "n": 3, "label_key": "some", "n_spots": 4, **SECTIONS},
    ),
    "get.annotation": (labelled, SECTIONS),
    "get.outlines": (labelled, {"library_id": "S1", **SECTIONS}),
    "get.write_annotation": (
        labelled,
        {"path": lambda: scratch() / "domains.geojson", "library_id": "S1", **SECTIONS},
    ),
    "get.expression": (predicted, {}),
    "get.write_expression": (predicted, {"path": lambda: scratch() / "tiles.geojson", **SECTIONS}),
    "get.spatialdata": (predicted, SECTIONS),
    "pl.domains": (labelled, {"truth": "domain", "linear": True}),
    "pl.refinement": (labelled, {}),
    "pl.halt_steps": (labelled, {}),
    "pl.halt_summary": (labelled, {}),
    "pl.confidence": (labelled, {"truth": "domain"}),
    "pl.reliability": (labelled, {"truth": "domain"}),
    "pl.confusion": (labelled, {"truth": "domain"}),
    "pl.suggestions": (suggested, {}),
    "pl.convergence": (labelled, {}),
    "pl.slide_tokens": (labelled, {"key": "trm_domains"}),
    "pl.recursion_sweep": (lambda: _swept().copy(), {}),
    "pl.landscape": (lambda: _landscape().copy(), {}),
    "pl.marker_panel": (predicted, {"genes": lambda: ["g0", "g1"]}),
    "pl.gene_scores": (predicted, {}),
    "pl.training": (domain_model, {}),
    "load_model": (_model_folder, {}),
    "metrics.domain_scores": (labels, {"predicted": lambda: labels(1)}),
    "metrics.confusion_table": (labels, {"predicted": lambda: labels(1)}),
    "metrics.scores_by_domain": (labels, {"predicted": lambda: labels(1)}),
    "metrics.expected_calibration_error": (labels, {"proba": probabilities, "labels": lambda: ["a", "b", "c"]}),
    "metrics.path_dependence": (lambda: np.random.default_rng(0).random((3, 4)), {}),
    "metrics.expression_scores": (log_values, METRIC),
    "metrics.pcc_per_gene": (log_values, METRIC),
    "metrics.pcc_top": (lambda: np.array([0.1, 0.5, np.nan, 0.3]), {"k": 2}),
    "metrics.rvd": (log_values, METRIC),
    "metrics.rvd_std": (log_values, METRIC),
    "metrics.gene_structure": (log_values, METRIC),
    "metrics.moran_structure": (
        log_values,
        {**METRIC, "graph": lambda: st.metrics.lattice_graph(sites(), layout="square")},
    ),
    "metrics.lattice_graph": (sites, {"layout": "square"}),
    "metrics.pooled_scores": (log_values, METRIC),
    "metrics.depth_normalised": (log_values, {}),
    "metrics.negative_binomial_log_likelihood": (counts, COUNT_METRIC),
    "metrics.moment_dispersion": (counts, {}),
    "metrics.zero_scores": (counts, COUNT_METRIC),
    "metrics.library_size_correlation": (counts, COUNT_METRIC),
    "tl.cross_validate": (
        sections,
        {
            "label_key": "domain",
            **SECTIONS,
            "groups": ["S3"],
            "architectures": ("feedforward",),
            "seeds": (0,),
            "train": lambda: calls.grouped("train_domains", **NETWORK, **BRIEFLY),
        },
    ),
    "pl.benchmark": (cross_validated, {}),
    "datasets.read_split": (None, {"name": "dlpfc-donors-v1"}),
    "datasets.read_genes": (None, {"name": "her2st-300-training-v1"}),
    "datasets.synthetic_sections": (None, {"n_sections": 2, "n_rows": 12, "n_cols": 12, "n_genes": 20, "n_domains": 2}),
}


# Options of calls that need files of the user or a network, which no test here makes; they serve to be made wrong.
NEEDS_FILES: dict[str, dict[str, object]] = {
    f"datasets.{name}": {"sections": [section]}
    for name, section in (("dlpfc", "151673"), ("her2st", "A1"), ("mob", "Rep1"))
}


def valid(name: str) -> tuple[object, dict[str, object]]:
    """First argument (``None``: there is none) and options of a valid call, fresh."""
    first, options = (None, NEEDS_FILES[name]) if name in NEEDS_FILES else VALID[name]
    made = {key: made_now(value) for key, value in options.items()}
    return (None if first is None else first()), made


def made_now(value: object) -> object:
    """Call what makes a value; encoders are values themselves."""
    return value() if callable(value) and not isinstance(value, Encoder | type) else value


def call(name: str, first: object, options: Mapping[str, object]) -> object:
    """Call a public function with options side by side, which are grouped; the first argument is given by position."""
    return calls.call(function(name), *(() if first is None else (first,)), **options)


def fingerprint(value: object) -> str:
    """Digest of everything a value holds: objects, tables, arrays (with dtype and order), models, configurations."""
    digest = hashlib.sha256()
    _feed(digest, value)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, value: object) -> None:
    digest.update(type(value).__name__.encode())
    contents = next((inside(value) for fits, inside in CONTENTS if fits(value)), None)
    if contents is None:
        digest.update(repr(value).encode())
    elif isinstance(contents, bytes):
        digest.update(contents)
    elif isinstance(contents, Mapping):
        for key, entry in contents.items():
            _feed(digest, str(key))
            _feed(digest, entry)
    else:
        for entry in contents:
            _feed(digest, entry)


def _of_object(adata: AnnData) -> dict[str, object]:
    adata = adata.to_memory() if adata.isbacked else adata
    slots = {slot: dict(getattr(adata, slot)) for slot in ("obsm", "varm", "obsp", "varp", "layers", "uns")}
    return {"X": adata.X, "obs": adata.obs, "var": adata.var, **slots}


def _of_column(column: pd.Series | pd.Index) -> list[object]:
    categories = list(column.dtype.categories) if isinstance(column.dtype, pd.CategoricalDtype) else []
    return [str(column.dtype), repr(column.astype(object).to_list()), categories]


def _of_own(value: object) -> dict[str, object]:
    # what is computed once and kept is no part of the value
    kind = type(value)
    return {k: v for k, v in vars(value).items() if not isinstance(getattr(kind, k, None), cached_property)}


# Which values have contents, and what these are: bytes, or values by name or in order.
CONTENTS: list[tuple[Callable[..., bool], Callable]] = [
    (lambda v: hasattr(v, "obsm") and hasattr(v, "var_names"), _of_object),
    (lambda v: hasattr(v, "state_dict"), lambda v: {name: tensor.numpy() for name, tensor in v.state_dict().items()}),
    (
        lambda v: isinstance(v, pd.DataFrame),
        lambda v: {"index": v.index, **{f"column {name}": v[name] for name in v.columns}},
    ),
    (lambda v: isinstance(v, pd.Series | pd.Index), _of_column),
    (sparse.issparse, lambda v: {"data": v.data, "indices": v.indices, "indptr": v.indptr, "shape": v.shape}),
    (lambda v: isinstance(v, Mapping), dict),
    (
        lambda v: isinstance(v, np.ndarray) and v.dtype != object,
        lambda v: f"{v.dtype}{v.shape}".encode() + np.ascontiguousarray(v).tobytes(),
    ),
    (lambda v: isinstance(v, list | tuple | np.ndarray), list),
    (lambda v: hasattr(v, "__dict__") and type(v).__module__.startswith("strecur"), _of_own),
]
