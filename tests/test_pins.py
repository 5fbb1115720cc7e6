"""Fingerprints of small trainings and predictions of every architecture, backbone and task, taken before a redesign.

``python tests/test_pins.py`` writes them anew. They hold for one processor and one thread.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
import torch
from toy_histology import join, make_section

import strecur as st
from strecur.nn import (
    DenseConfig,
    FeedforwardConfig,
    GenARConfig,
    HierarchicalConfig,
    HistConfig,
    TRMConfig,
    UniversalConfig,
    WindowedConfig,
)

FILE = Path(__file__).parent / "fixtures" / "pins.json"

FEATURES = {"n_genes", "n_components", "neighbours", "standardise", "layer", "size_factor_key", "target"}
TRAINING = {"tile", "validation", "max_epochs", "max_minutes", "checkpoint", "augmentation", "smoothing"}
INFERENCE = {"depth", "breadth", "selection", "noise", "symmetric", "stop_early", "halt_threshold"}
INFERENCE |= {"n_samples", "temperature"}
NEW = hasattr(st, "Features")


def train(verb, adata, *first, **options):
    if NEW:
        features = {k: options.pop(k) for k in FEATURES & options.keys()}
        training = {k: options.pop(k) for k in TRAINING & options.keys()}
        options |= {"features": features, "training": training}
    with quiet():
        return verb(adata, *first, library_key="section", **({} if NEW else HARDWARE), **options)


def apply(verb, adata, *first, **options):
    if NEW:
        inference = {k: options.pop(k) for k in INFERENCE & options.keys()}
        options |= {"inference": inference} if inference else {}
    with quiet():
        return verb(adata, *first, library_key="section", **({} if NEW else HARDWARE), **options)


HARDWARE = {"accelerator": "cpu", "precision": "32-true", "progress": False}


def quiet():
    return st.settings.override(accelerator="cpu", precision="32-true", progress=False)


SMALL = {"width": 32, "n_heads": 2}
BACKBONES = {
    "windowed": WindowedConfig(**SMALL, window=4, n_global=2),
    "dense": DenseConfig(**SMALL),
    "hierarchical": HierarchicalConfig(**SMALL, window=4, n_levels=2, n_global=2),
    "hist": HistConfig(**SMALL, window=4, encoder_depths=(1, 1), decoder_depths=(1,)),
}
ARCHITECTURES = {
    "trm": TRMConfig(),
    "trm, equilibrium": TRMConfig(n_latent=2, n_deep=2, n_steps=3, sigma=(1.0, 0.5), damping=0.1, noise=0.05),
    "universal": UniversalConfig(n_repeats=3),
    "feedforward": FeedforwardConfig(),
}
COUNTS = GenARConfig(width=24, n_heads=2, n_layers=1, condition_width=24, n_groups=2, spots_per_step=16)
TINY = {"n_components": 6, "neighbours": (7,), "max_epochs": 2}


@cache
def _layers(layout, n_sections, side):
    adata = st.datasets.synthetic_sections(
        n_sections=n_sections, n_rows=side, n_cols=side, n_genes=50, n_domains=3, layout=layout
    )
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1)).ravel() + 1
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_rep"] = np.log1p(adata.X.toarray())[:, :9].astype(np.float32)
    st.pp.to_grid(adata, library_key="section")
    return adata


def layers(layout="hex", n_sections=3, side=12):
    return deepcopy(_layers(layout, n_sections, side))


@cache
def _stained(*seeds):
    return join(*(make_section(f"S{seed}", seed) for seed in seeds))


def stained(*seeds):
    return deepcopy(_stained(*seeds))


# What is pinned: name -> function that returns values


def domains(adata, **options):
    predict = options.pop("predict", {})
    model = train(st.tl.train_domains, adata, "domain", **{**TINY, "backbone": BACKBONES["windowed"], **options})
    apply(st.tl.trm_domains, adata, model, **predict)
    return [model_values(model), results(adata, "trm_domains")]


def expression(adata, new, **options):
    predict = options.pop("predict", {})
    options = {**TINY, "neighbours": (9,), "backbone": BACKBONES["windowed"], "genes": 6, **options}
    model = train(st.tl.train_expression, adata, **options)
    apply(st.tl.predict_expression, new, model, **predict)
    return [model_values(model), results(new, "trm_expression")]


def model_values(model):
    history, none = getattr(model, "history", pd.DataFrame()), pd.DataFrame()
    values = {"baseline": vars(model.baseline), "history": history.drop(columns="seconds", errors="ignore")}
    values |= {"scores": getattr(model, "scores", none), "halting": getattr(model, "halt_threshold", None)}
    values |= {"sections": list(model.sections)}
    if getattr(model, "network", None) is not None:
        values["network"] = {name: tensor.numpy() for name, tensor in model.network.state_dict().items()}
    for name in ("temperature", "conformal_scores", "smoothing", "reliability", "labels", "genes"):
        values[name] = getattr(model, name, None)
    if getattr(model, "errors", None) is not None:
        values["errors"] = vars(model.errors)
    return values


def results(adata, key):
    found = {f"obs {name}": adata.obs[name] for name in adata.obs if name.startswith(key)}
    found |= {f"obsm {name}": np.asarray(adata.obsm[name]) for name in adata.obsm if name.startswith(key)}
    record = adata.uns[key]
    names = ("sections", "residuals", "reliability", "var_names", "categories", "target", "target_sum")
    return found | {name: record[name] for name in names if name in record}


def resumed(**options):
    folder = mkdtemp()
    first = domains(layers(), checkpoint=folder, **{**options, "max_epochs": 3})
    return [first, domains(layers(), checkpoint=folder, **{**options, "max_epochs": 3})]


def calibrated():
    adata = layers()
    model = train(st.tl.train_domains, adata, "domain", **TINY, backbone=BACKBONES["windowed"])
    tables = [apply(st.tl.calibrate, adata, model, "domain", breadth=2, selection="vote")]
    with quiet():
        rest = {} if NEW else HARDWARE
        tables.append(st.tl.calibrate_halting(adata, model, library_key="section", depth=3, **rest))
        few = {"depths": (1, 2), "n_latent": (1, 2), "n_deep": (1, 2), "library_key": "section", **rest}
        tables.append(st.tl.recursion_sweep(adata, model, label_key="domain", **few))
        few = {"depth": 3, "breadth": 2, "n_spots": 20, "noise": 0.1, "library_key": "section", **rest}
        tables.append(st.tl.landscape(adata, model, label_key="domain", **few))
    apply(st.tl.trm_domains, adata, model, depth=4, breadth=2, selection="mean", coverage=0.8, abstain=0.4, noise=0.1)
    return [*tables, model_values(model), results(adata, "trm_domains")]


def halted():
    adata = layers()
    model = train(st.tl.train_domains, adata, "domain", **TINY, backbone=BACKBONES["windowed"], halting="random_k")
    options = {"depth": 5, "stop_early": True, "halt_threshold": 0.001, "breadth": 2, "selection": "vote"}
    apply(st.tl.trm_domains, adata, model, **options)
    return [results(adata, "trm_domains")]


def calibrated_expression():
    model = train(
        st.tl.train_expression, stained(1, 2), **{**TINY, "neighbours": (9,)}, backbone=BACKBONES["windowed"], genes=5
    )
    table = apply(st.tl.calibrate_expression, stained(3), model, breadth=2)
    new = stained(4)
    apply(st.tl.predict_expression, new, model, breadth=2, coverage=0.8, symmetric=False)
    return [table, model_values(model), results(new, "trm_expression")]


def cross_validated(**options):
    with quiet():
        few = {"library_key": "section", "seeds": (0,), "groups": ["S3"]}
        training = {"backbone": BACKBONES["windowed"], **options}
        if not NEW:
            training |= TINY
            task = {"task": "expression" if "genes" in options else "domains"}
            adata = stained(1, 2, 3) if "genes" in options else layers()
            label = {} if "genes" in options else {"label_key": "domain"}
            table = st.tl.cross_validate(
                adata, **task, **few, **label, **HARDWARE, architectures=("trm",), training=training
            )
        else:
            training |= {"features": {"n_components": 6, "neighbours": (7,)}, "training": {"max_epochs": 2}}
            adata = stained(1, 2, 3) if "genes" in options else layers()
            label = None if "genes" in options else "domain"
            table = st.tl.cross_validate(adata, label, **few, architectures=("trm",), train=training)
    return [table.drop(columns=["train_seconds", "predict_seconds", "peak_memory_gb"])]


def outside(*seeds):
    adata = stained(*seeds)
    adata.obsm["X_patch"][:7] = np.nan
    return adata


PINS = {f"domains {a} {b}": (domains, lambda a=a, b=b: {"adata": layers(), "architecture": ARCHITECTURES[a], "backbone": BACKBONES[b]})
        for a in ARCHITECTURES for b in BACKBONES}  # fmt: skip
PINS |= {f"expression {a} {b}": (expression, lambda a=a, b=b: {"adata": stained(1, 2), "new": stained(3), "architecture": ARCHITECTURES[a], "backbone": BACKBONES[b]})
         for a in ARCHITECTURES for b in BACKBONES}  # fmt: skip
DOMAIN_OPTIONS = {
    "as named": {"architecture": "trm", "backbone": "windowed", "max_epochs": 1},
    "universal, dense as named": {"architecture": "universal", "backbone": "dense", "max_epochs": 1},
    "feedforward, hierarchical as named": {"architecture": "feedforward", "backbone": "hierarchical", "max_epochs": 1},
    "hist": {"architecture": "hist", "backbone": BACKBONES["hist"]},
    "weighted_bce": {"halting": "weighted_bce"},
    "random_k": {"halting": "random_k"},
    "no halting": {"halting": None},
    "tiles": {"tile": 8, "halting": None, "backbone": WindowedConfig(**SMALL, window=2, n_global=0)},
    "representation": {"use_rep": "X_rep"},
    "not standardised": {"standardise": False, "neighbours": ()},
    "normalised": {"layer": "counts", "size_factor_key": "total", "n_genes": 20},
    "smoothing": {"smoothing": 7},
    "seed": {"rng": 3},
}
PINS |= {f"domains: {n}": (domains, lambda o=o: {"adata": layers(), **o}) for n, o in DOMAIN_OPTIONS.items()}
PINS["domains: square"] = (domains, lambda: {"adata": layers("square")})
PINS["domains: irregular"] = (domains, lambda: {"adata": layers("irregular")})
PINS["domains: irregular as named"] = (
    domains,
    lambda: {"adata": layers("irregular"), "backbone": "windowed", "max_epochs": 1},
)
PINS["domains: validation"] = (domains, lambda: {"adata": layers(n_sections=4), "max_epochs": 6})
PINS["domains: many spots"] = (domains, lambda: {"adata": layers(side=26), "max_epochs": 1})
PINS["domains: checkpoint"] = (resumed, dict)
PINS["domains: calibrated"] = (calibrated, dict)
PINS["domains: halted"] = (halted, dict)
PINS["domains: cross-validated"] = (cross_validated, dict)
EXPRESSION_OPTIONS = {
    "as named": {"architecture": "trm", "backbone": "windowed", "max_epochs": 1},
    "universal as named": {"architecture": "universal", "max_epochs": 1},
    "hist": {"architecture": "hist", "backbone": BACKBONES["hist"]},
    "linear": {"architecture": "linear", "predict": {"coverage": 0.8}},
    "genar": {"architecture": COUNTS, "backbone": "windowed", "predict": {"n_samples": 3, "temperature": 0.8}},
    "genar in a recursion": {"architecture": GenARConfig(**{**vars(COUNTS), "recursion": TRMConfig()})},
    **{recipe: {"halting": recipe} for recipe in ("pcc", "rvd", "mse", "gene_pcc", "random_k")},
    "normalised": {"target": "log2_normalised"},
    "not standardised": {"standardise": False},
    "more genes": {"genes": 4, "extra_genes": ["g7"]},
    "seed": {"rng": 3},
}
PINS |= {
    f"expression: {n}": (expression, lambda o=o: {"adata": stained(1, 2), "new": stained(3), **o})
    for n, o in EXPRESSION_OPTIONS.items()
}
PINS["expression: one section"] = (expression, lambda: {"adata": stained(1), "new": stained(3)})
PINS["expression: validation"] = (
    expression,
    lambda: {"adata": stained(1, 2, 4, 5), "new": stained(3), "max_epochs": 6, "predict": {"coverage": 0.9}},
)
PINS["expression: missing patches"] = (expression, lambda: {"adata": outside(1, 2), "new": outside(3)})
PINS["expression: calibrated"] = (calibrated_expression, dict)
PINS["expression: cross-validated"] = (cross_validated, lambda: {"genes": 5})


def fingerprint(name):
    torch.set_num_threads(1)
    make, options = PINS[name]
    total = hashlib.sha256()
    feed(total, make(**options()))
    return total.hexdigest()[:16]


def feed(total, value):
    if isinstance(value, dict):
        for key in sorted(value):
            total.update(key.encode())
            feed(total, value[key])
    elif isinstance(value, pd.DataFrame):
        feed(total, [list(map(str, value.index)), {str(name): value[name] for name in value}])
    elif isinstance(value, pd.Series):
        feed(total, value.astype(str).to_numpy().tolist() if value.dtype.kind not in "fiub" else value.to_numpy())
    elif isinstance(value, np.ndarray) and value.dtype != object:
        total.update(f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, list | tuple | np.ndarray):
        for entry in value:
            feed(total, entry)
    else:
        total.update(repr(value).encode())


def machine():
    return f"{platform.processor() or platform.machine()}, torch {torch.__version__}"


@pytest.mark.parametrize("name", sorted(PINS))
def test_a_redesign_changes_no_bit(name):
    known = json.loads(FILE.read_text())
    if known["machine"] != machine():
        pytest.skip("fingerprints are of another machine")
    assert fingerprint(name) == known[name]


if __name__ == "__main__":
    wanted = sys.argv[1:] or sorted(PINS)
    found = {name: fingerprint(name) for name in wanted}
    if sys.argv[1:]:
        print(json.dumps(found, indent=1))
    else:
        FILE.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
