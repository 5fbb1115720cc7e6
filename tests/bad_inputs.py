"""Invalid and unusual inputs of every public function, with the error or result of each.

The page on errors of the documentation is made from it (``page``).
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import small_world as world
from scipy import sparse

from strecur.nn import WindowedConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anndata import AnnData

NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """One input: a valid call, changed.

    Attributes
    ----------
    call
        Public function.
    wrong
        Description of the input.
    error
        Exception that must be raised. If ``None``, the call succeeds.
    says
        Phrase of the message that names the fix, or description of the result.
    change
        Changes the first argument, in place or by returning another.
    options
        Options in place of those of the valid call.
    check
        Checks the result, from it, the first argument and the result of the valid call.
    """

    call: str
    wrong: str
    error: type[Exception] | None
    says: str
    change: Callable | None = None
    options: dict[str, object] = field(default_factory=dict)
    check: Callable | None = None

    def arguments(self) -> tuple[object, dict[str, object]]:
        """First argument and options."""
        first, options = world.valid(self.call)
        if self.change is not None:
            changed = self.change(first)
            first = first if changed is None else changed
        return first, options | {name: world.made_now(value) for name, value in self.options.items()}


CASES: list[Case] = []


def raises(call: str, wrong: str, error: type[Exception], says: str, change: Callable | None = None, **options) -> None:
    CASES.append(Case(call, wrong, error, says, change, options))


def succeeds(call: str, wrong: str, says: str, check: Callable, change: Callable | None = None, **options) -> None:
    CASES.append(Case(call, wrong, None, says, change, options, check))


# Changes


def put(slot: str, key: str, value: object) -> Callable:
    def change(adata: AnnData) -> None:
        entries = getattr(adata, slot)
        entries[key] = value(adata) if callable(value) else value

    return change


def drop(slot: str, key: str) -> Callable:
    return lambda adata: getattr(adata, slot).__delitem__(key)


def with_x(make: Callable) -> Callable:
    def change(adata: AnnData) -> None:
        adata.X = make(adata.X)

    return change


def each(*changes: Callable) -> Callable:
    def change(adata: AnnData) -> object:
        for one in changes:
            found = one(adata)
            adata = adata if found is None else found
        return adata

    return change


def poke(slot: str, key: str, place: object, value: object) -> Callable:
    """Change single numbers of an entry of ``obsm``."""

    def change(adata: AnnData) -> None:
        values = np.array(getattr(adata, slot)[key], dtype=float)
        values[place] = value
        getattr(adata, slot)[key] = values

    return change


def first_spots(n: int) -> Callable:
    return lambda adata: adata[:n].copy()


def forget_sections(adata: AnnData) -> None:
    """Remove the column of sections that the lattice remembers."""
    del adata.uns["grid"]["params"]["library_key"]


def no_array(adata: AnnData) -> None:
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])


def missing_section(adata: AnnData) -> None:
    adata.obs["section"] = adata.obs["section"].where(np.arange(adata.n_obs) > 0)


def one_spot_section(adata: AnnData) -> AnnData:
    """Leave one spot of the first section."""
    first = np.flatnonzero(adata.obs["section"] == "S1")[1:]
    return adata[np.setdiff1d(np.arange(adata.n_obs), first)].copy()


def dense(matrix: object) -> np.ndarray:
    return matrix.toarray() if sparse.issparse(matrix) else np.array(matrix)


def with_value(value: float) -> Callable:
    def make(matrix: object) -> np.ndarray:
        matrix = dense(matrix)
        matrix[0, 0] = value
        return matrix

    return with_x(make)


def same_names(adata: AnnData) -> None:
    adata.obs_names = ["spot"] * adata.n_obs


def same_genes(adata: AnnData) -> None:
    adata.var_names = [*adata.var_names[:-1], adata.var_names[0]]


def empty_spot(matrix: object) -> np.ndarray:
    matrix = dense(matrix)
    matrix[3] = 0
    return matrix


def empty_gene(matrix: object) -> np.ndarray:
    matrix = dense(matrix)
    matrix[:, 3] = 0
    return matrix


def seldom(adata: AnnData) -> None:
    """Give one spot a domain of its own."""
    values = adata.obs["domain"].astype(object).to_numpy(copy=True)
    values[5] = "alone"
    adata.obs["domain"] = pd.Categorical(values)


def as_numbers(adata: AnnData) -> None:
    adata.obs["domain"] = adata.obs["domain"].cat.codes.astype(float).replace(-1, np.nan)


def as_bools(adata: AnnData) -> None:
    adata.obs["domain"] = (adata.obs["domain"] == "L1").to_numpy()


def unused_category(adata: AnnData) -> None:
    adata.obs["domain"] = adata.obs["domain"].cat.add_categories(["never"])


def read_only(adata: AnnData) -> None:
    adata.X = dense(adata.X)
    for values in (adata.X, *adata.obsm.values()):
        values.setflags(write=False)


def sparse_obsm(key: str) -> Callable:
    return lambda adata: adata.obsm.__setitem__(key, sparse.csr_matrix(adata.obsm[key]))


def other_panel(adata: AnnData) -> None:
    adata.var_names = [f"other{i}" for i in range(adata.n_vars)]


def gray(picture: np.ndarray) -> np.ndarray:
    return picture.mean(axis=-1).astype(np.uint8)


def gray_images() -> dict[str, np.ndarray]:
    return {name: gray(picture) for name, picture in world.images().items()}


def alpha_images() -> dict[str, np.ndarray]:
    return {name: np.dstack([p, np.full(p.shape[:2], 255, np.uint8)]) for name, p in world.images().items()}


def images_as(dtype: type, factor: float = 1.0) -> Callable:
    return lambda: {name: (picture * factor).astype(dtype) for name, picture in world.images().items()}


def nan_images() -> dict[str, np.ndarray]:
    return {name: np.full(picture.shape, NAN) for name, picture in world.images().items()}


def black_and_white(adata: AnnData) -> None:
    for entry in adata.uns["spatial"].values():
        entry["images"]["hires"] = np.full_like(entry["images"]["hires"], 255)


def wrong_axes() -> object:
    return [1, 2]


def no_axes() -> object:
    import matplotlib.pyplot as plt

    return plt.figure().subplots(1, 7)


def subset_of_labels(adata: AnnData) -> AnnData:
    """Keep the spots of the last domain, which drops the categories of the others, so that steps name none that is left."""
    kept = adata[adata.obs["trm_domains"] == adata.obs["trm_domains"].cat.categories[-1]].copy()
    del kept.uns["trm_domains"]["categories"], kept.obsm["trm_domains_proba"]
    return kept


def file(name: str, text: str) -> Callable:
    """Return a function that writes a file and returns its path."""

    def write() -> Path:
        path = world.scratch() / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def geojson(name: str, *features: tuple[str, object, dict]) -> Callable:
    """Write a FeatureCollection from type and coordinates of each geometry, and properties."""
    entries = [
        {"type": "Feature", "geometry": {"type": kind, "coordinates": xy}, "properties": properties}
        for kind, xy, properties in features
    ]
    return file(name, json.dumps({"type": "FeatureCollection", "features": entries}))


def rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[list[float]]]:
    return [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]]


# Right results


def same_keys(key: str, *, atol: float = 1e-4) -> Callable:
    """Check that the numbers under ``obsm[key]`` are those of the valid call."""

    def check(_result: object, adata: AnnData, expected: AnnData) -> bool:
        return np.allclose(adata.obsm[key], expected.obsm[key], atol=atol, equal_nan=True)

    return check


def finite(key: str) -> Callable:
    return lambda _result, adata, _expected: bool(np.isfinite(adata.obsm[key]).all())


def unique_sites(_result: object, adata: AnnData, _expected: object) -> bool:
    keys = pd.DataFrame(np.column_stack([adata.obsm["grid"], adata.obs["section"].astype("category").cat.codes]))
    return not keys.duplicated().any()


def equals(wanted: object) -> Callable:
    def check(result: object, _first: object, expected: object) -> bool:
        found = wanted(expected) if callable(wanted) else wanted
        return bool(np.allclose(np.asarray(result, dtype=float), np.asarray(found, dtype=float), equal_nan=True))

    return check


def has(test: Callable) -> Callable:
    return lambda result, _first, _expected: bool(test(result))


def as_expected(result: object, _first: object, expected: object) -> bool:
    return world.fingerprint(result) == world.fingerprint(expected)


# fmt: off

# What every function that takes sections has in common

WITH_LIBRARY_KEY = [
    *("pp.read_annotation", "get.annotation", "get.outlines", "get.write_annotation", "get.write_expression"),
    *("get.spatialdata", "pp.to_grid", "pp.embed_patches", "pp.fit_stain_reference", "pp.high_mean_high_variance_genes"),
    *("tl.train_domains", "tl.trm_domains", "tl.train_expression", "tl.predict_expression", "tl.calibrate"),
    *("tl.calibrate_expression", "tl.calibrate_halting", "tl.recursion_sweep", "tl.landscape"),
    *("pl.domains", "pl.refinement", "pl.halt_steps", "pl.halt_summary", "pl.confidence", "pl.reliability"),
    *("pl.marker_panel", "pl.gene_scores", "pl.confusion", "pl.suggestions", "tl.suggest_annotation"),
    "pl.slide_tokens",
]
TAKES_ADATA = [*WITH_LIBRARY_KEY, "tl.cluster_latent", "get.expression", "pl.convergence"]
TAKES_MODEL = [
    *("tl.trm_domains", "tl.predict_expression", "tl.calibrate", "tl.calibrate_expression", "tl.calibrate_halting"),
    *("tl.recursion_sweep", "tl.landscape", "tl.suggest_annotation"),
]
WRITES = [
    *("pp.to_grid", "pp.read_annotation", "pp.embed_patches", "tl.trm_domains", "tl.predict_expression"),
    "tl.cluster_latent",
]
OF_DOMAINS = ["tl.trm_domains", "tl.calibrate", "tl.calibrate_halting", "tl.recursion_sweep", "tl.landscape"]
OF_EXPRESSION = ["tl.train_expression", "tl.predict_expression", "tl.calibrate_expression"]

for name in TAKES_ADATA:
    raises(name, "an array in place of the object", TypeError, "expected an AnnData", lambda adata: np.ones((3, 2)))
    raises(name, "an object without spots", ValueError, "no spots", first_spots(0))
    raises(name, "`table_key` for an AnnData", ValueError, "leave it out for an AnnData", table_key="table")
for name in WITH_LIBRARY_KEY:
    raises(name, "a misspelt `library_key`", KeyError, "there are ['section'", library_key="sektion")
    raises(name, "a list as `library_key`", TypeError, "library_key names the column", library_key=["section"])
    raises(name, "spots without a section", ValueError, "every spot needs a section", missing_section)
for name in WRITES:
    raises(name, "a slash in `key_added`", ValueError, "use letters, digits", key_added="a/b")
    raises(name, "a number as `key_added`", ValueError, "is not a legal key", key_added=1)
    raises(name, "`key_added` names other data", ValueError, "choose another key_added", key_added="spatial")
for name in TAKES_MODEL:
    raises(name, "a path in place of the model", TypeError, "load it with strecur.load_model", model="model/")
    raises(name, "a negative `rng`", ValueError, "at least 0", rng=-1) if name != "tl.calibrate_halting" else None
for name in ("tl.trm_domains", "tl.calibrate"):
    raises(name, "a model of expression", TypeError, "strecur.tl.train_domains", model=world.expression_model)
for name in ("tl.predict_expression", "tl.calibrate_expression"):
    raises(name, "a model of domains", TypeError, "strecur.tl.train_expression", model=world.domain_model)
for name in [*OF_DOMAINS, "tl.train_domains", *OF_EXPRESSION, "pl.domains", "pl.refinement", "pl.confidence"]:
    raises(name, "no lattice", KeyError, "Run strecur.pp.to_grid", drop("obsm", "grid"), **({"img": False} if name.startswith("pl") else {}))
for name in OF_DOMAINS[:2]:
    raises(name, "a lattice of three columns", ValueError, "spots × 2 (row, column)", put("obsm", "grid", lambda a: np.ones((a.n_obs, 3))))
    raises(name, "NaN in the lattice", ValueError, "Run strecur.pp.to_grid", poke("obsm", "grid", 0, NAN))
    raises(name, "a lattice without layout", ValueError, "Run strecur.pp.to_grid", put("uns", "grid", {}))
    raises(name, "sections joined without a new lattice", ValueError, "Several sections need library_key", forget_sections, library_key=None)
    raises(name, "genes of another panel", ValueError, "of the model's", other_panel)
    raises(name, "logarithms in place of counts", ValueError, "pass raw counts", with_x(lambda x: x.log1p()))
    raises(name, "negative counts", ValueError, "pass raw counts", with_value(-1))
    raises(name, "NaN in `X`", ValueError, "pass raw counts", with_value(NAN))
    raises(name, "no `X`", ValueError, "name a layer", lambda a: setattr(a, "X", None))
for name in ("tl.trm_domains", "tl.calibrate", "tl.landscape"):
    raises(name, "`depth=2.5`", TypeError, "pass a whole number", depth=2.5)
    raises(name, "`depth=0`", ValueError, "at least one", depth=0)
    raises(name, "`breadth=0`", ValueError, "at least one", breadth=0)
for name in ("tl.trm_domains", "tl.predict_expression", "tl.calibrate", "tl.calibrate_expression"):
    raises(name, "a misspelt option", TypeError, "did you mean 'depth'", inference={"depths": 3})
    raises(name, "a number as `inference`", TypeError, "pass a strecur.Inference, or a mapping", inference=8)
for name in ("tl.calibrate", "tl.train_domains", "tl.recursion_sweep", "tl.landscape"):
    raises(name, "a misspelt `label_key`", KeyError, "label_key names the column", label_key="layer")
for name in ("tl.train_domains", "tl.train_expression"):
    raises(name, "an unknown architecture", ValueError, "choose one of", architecture="cnn")
    raises(name, "an unknown backbone", ValueError, "choose one of", backbone="resnet")
    raises(name, "a halting recipe of the other task", ValueError, "choose one of", halting="pcc" if "dom" in name else "loss_proxy")
    raises(name, "halting with `n_global=0`", ValueError, "choose halting=None, or n_global=1", halting="random_k", backbone=WindowedConfig(n_global=0))
    raises(name, "a list as halting recipe", ValueError, "choose one of", halting=["random_k"])
    raises(name, "`max_epochs=0`", ValueError, "at least one", max_epochs=0)
    raises(name, "`max_minutes=0`", ValueError, "must be positive", max_minutes=0)
    raises(name, "`max_minutes` NaN", ValueError, "pass a finite number", max_minutes=NAN)
    raises(name, "`n_components=0`", ValueError, "at least one", n_components=0)
    raises(name, "one number as `neighbours`", TypeError, "pass a list of whole numbers", neighbours=19)
    raises(name, "`neighbours=(0,)`", ValueError, "neighbours[0]=0: at least one", neighbours=(0,))
    raises(name, "`tile=0`", ValueError, "at least one", tile=0)
    raises(name, "text as `rng`", TypeError, "pass a whole number", rng="0")
    raises(name, "an unknown `settings.accelerator`", ValueError, "accelerator='abacus'", accelerator="abacus")
    raises(name, "an unknown `settings.precision`", ValueError, "precision='7-bit'", precision="7-bit")
    raises(name, "`settings.devices=2` in one process", ValueError, "torchrun", devices=2)
    raises(name, "`settings.devices=0`", ValueError, "devices=0", devices=0)
    raises(name, "an unknown validation section", ValueError, "are not among the sections", validation="S9")
    raises(name, "all sections for validation", ValueError, "none is left to train on", validation=["S1", "S2", "S3"] if "dom" in name else ["S1", "S2"])
    raises(name, "an unknown layer", KeyError, "is not in adata.layers", layer="raw")
    raises(name, "an augmentation that is not callable", TypeError, "strecur.engine.Augmentation", augmentation=0.3)
    raises(name, "a misspelt option", TypeError, "did you mean 'max_epochs'", training={"max_epoch": 3})
    raises(name, "an option of another object", TypeError, "max_epochs is an option of strecur.Training", features={"max_epochs": 3})
    raises(name, "an argument among the options", TypeError, "rng is an argument of the function itself", training={"rng": 3})

# pp.to_grid

raises("pp.to_grid", "an unknown layout", ValueError, "is not one of", layout="triangle")
raises("pp.to_grid", '`layout="square"` for a hexagonal array', ValueError, "Leave layout out", layout="square")
raises("pp.to_grid", "`cells_per_pitch` below 1", ValueError, "at least 1 is needed", cells_per_pitch=0.5)
raises("pp.to_grid", "text as `cells_per_pitch`", TypeError, "pass a number", cells_per_pitch="1.5")
raises("pp.to_grid", "a missing key of the coordinates", KeyError, "spatial_key names the coordinates", no_array, spatial_key="xy")
raises("pp.to_grid", "NaN in coordinates", ValueError, "leave them out first", each(no_array, poke("obsm", "spatial", 0, NAN)))
raises("pp.to_grid", "infinite coordinates", ValueError, "leave them out first", each(no_array, poke("obsm", "spatial", 0, INF)))
raises("pp.to_grid", "coordinates of three columns", ValueError, "choose two columns", each(no_array, put("obsm", "spatial", lambda a: np.ones((a.n_obs, 3)))))
raises("pp.to_grid", "the same beside an array", ValueError, "choose two columns", put("obsm", "spatial", lambda a: np.ones((a.n_obs, 3))))
raises("pp.to_grid", "text as coordinates", ValueError, "choose its numeric columns", each(no_array, put("obsm", "spatial", lambda a: np.full((a.n_obs, 2), "x"))))
raises("pp.to_grid", "two spots at one place of a lattice", ValueError, "correct these coordinates", each(no_array, poke("obsm", "spatial", 0, 300.0), poke("obsm", "spatial", 1, 300.0)))
raises("pp.to_grid", "several sections without `library_key`", ValueError, "pass library_key='section'", library_key=None)
raises("pp.to_grid", "a slash in the name of a section", ValueError, "rename them without '/'", put("obs", "section", "a/b"), library_key="section")
raises("pp.to_grid", "sections 1 and '1'", ValueError, ".astype(str)", put("obs", "section", lambda a: pd.Series([1, "1"] * a.n_obs, dtype=object)[: a.n_obs].to_numpy()))
raises("pp.to_grid", "one spot extremely far from the others", ValueError, "extremely far from the others", each(no_array, poke("obsm", "spatial", 0, 1e15)), layout="irregular")
raises("pp.to_grid", "random positions on a hexagonal lattice", ValueError, "try layout='auto' or 'irregular'", each(no_array, put("obsm", "spatial", lambda a: np.random.default_rng(0).random((a.n_obs, 2)))), layout="hex")
succeeds("pp.to_grid", "one spot in all", "a lattice of one site", unique_sites, first_spots(1))
succeeds("pp.to_grid", "a section of one spot", "a site for every spot", unique_sites, each(no_array, one_spot_section))
succeeds("pp.to_grid", "names of spots that are not unique", "the same lattice", same_keys("grid"), same_names)
succeeds("pp.to_grid", "array positions with NaN", "the coordinates are used, with a warning", unique_sites, lambda a: put("obs", "array_row", a.obs["array_row"].where(np.arange(a.n_obs) > 0))(a))
succeeds("pp.to_grid", "no genes and no `X`", "the same lattice", same_keys("grid"), lambda a: a[:, []].copy())
succeeds("pp.to_grid", "read-only arrays", "the same lattice", same_keys("grid"), read_only)
succeeds("pp.to_grid", "coordinates in a DataFrame", "a lattice", unique_sites, each(no_array, put("obsm", "spatial", lambda a: pd.DataFrame(a.obsm["spatial"], index=a.obs_names, columns=["x", "y"]))))
succeeds("pp.to_grid", "sections named by numbers", "the same lattice", same_keys("grid"), put("obs", "section", lambda a: a.obs["section"].cat.codes.to_numpy()))

# pp.embed_patches, pp.fit_stain_reference and pp.tile_image

raises("pp.embed_patches", "an unknown encoder type", TypeError, "strecur.pp.Encoder", encoder=5)
raises("pp.embed_patches", "an encoder with another width than it declares", ValueError, "expected", encoder=world.Encoder("bad", lambda x: x.mean(axis=(1, 2)), 5, size=16))
raises("pp.embed_patches", "an encoder that returns NaN", ValueError, "returned NaN", encoder=world.Encoder("bad", lambda x: np.full((len(x), 3), NAN), 3, size=16))
raises("pp.embed_patches", "`um` and `px`", ValueError, "not both", um=100)
raises("pp.embed_patches", "a size in µm without a scale", ValueError, 'or patches={"px"', px=None, um=100)
raises("pp.embed_patches", "a patch size of 0", ValueError, "must be positive", px=0)
raises("pp.embed_patches", "an infinite patch size", ValueError, "pass a finite number", px=INF)
raises("pp.embed_patches", "text as `mpp`", TypeError, "pass a number", mpp="0.5")
raises("pp.embed_patches", "a negative `mpp`", ValueError, "must be positive", mpp=-0.5)
raises("pp.embed_patches", "`mpp` without one section", KeyError, "has no entry for section", mpp={"S1": 0.5})
raises("pp.embed_patches", "`views=3`", ValueError, "1 or 8", views=3)
raises("pp.embed_patches", "`batch_size=0`", ValueError, "at least one", batch_size=0)
raises("pp.embed_patches", "one image for three sections", ValueError, "pass a mapping", image=world.image)
raises("pp.embed_patches", "an image of an unknown section", KeyError, "which are not sections", image=lambda: {"S9": world.image()})
raises("pp.embed_patches", "a file that does not exist", FileNotFoundError, "does not exist", image=lambda: {"S1": "slide.tif"})
raises("pp.embed_patches", "no image at all", KeyError, "Pass image=", drop("uns", "spatial"), image=None)
raises("pp.embed_patches", "channels first", ValueError, "np.moveaxis", image=lambda: {n: np.moveaxis(p, -1, 0) for n, p in world.images().items()})
raises("pp.embed_patches", "an image of five channels", ValueError, "expected grey, RGB or RGBA", image=lambda: {"S1": np.zeros((300, 300, 5), np.uint8)})
raises("pp.embed_patches", "an image without pixels", ValueError, "expected grey, RGB or RGBA", image=lambda: {"S1": np.zeros((0, 300, 3), np.uint8)})
raises("pp.embed_patches", "text in place of pixels", ValueError, "expected numbers", image=lambda: {"S1": np.full((300, 300, 3), "x")})
raises("pp.embed_patches", "NaN in the image", ValueError, "non-finite values", image=nan_images)
raises("pp.embed_patches", "values beyond 16 bits", ValueError, "convert it to 8 bits", image=images_as(np.int64, 1e4))
raises("pp.embed_patches", "a tiny image", ValueError, "Is it the image of this section", image=lambda: {"S1": np.full((2, 2, 3), 200, np.uint8)})
raises("pp.embed_patches", "x and y swapped and shifted", ValueError, "are x and y swapped", put("obsm", "spatial", lambda a: a.obsm["spatial"][:, ::-1] + 3000))
raises("pp.embed_patches", "no coordinates at all", ValueError, "has coordinates", poke("obsm", "spatial", slice(None), NAN))
raises("pp.embed_patches", "a negative `image_scale`", ValueError, "must be positive", image_scale=-1)
raises("pp.embed_patches", "a misspelt `spatial_key`", KeyError, "spatial_key names the spot coordinates", spatial_key="xy")
raises("pp.embed_patches", "coordinates of one column", ValueError, "spots × 2", put("obsm", "spatial", lambda a: np.ones((a.n_obs, 1))))
raises("pp.embed_patches", "a mapping that is not a stain reference", ValueError, "pp.fit_stain_reference", stain_reference=lambda: {"stains": []})
raises("pp.embed_patches", "a stain reference that does not exist", FileNotFoundError, "does not exist", stain_reference="stain.json")
succeeds("pp.embed_patches", "a spot without coordinates", "NaN for this spot only", lambda _r, a, e: np.isnan(a.obsm["X_patch"]).all(axis=1).sum() == 1, poke("obsm", "spatial", 0, NAN))
succeeds("pp.embed_patches", "an image in grey", "the grey in all channels", lambda _r, a, e: np.allclose(a.obsm["X_patch"], a.obsm["X_patch"][:, :1]), image=gray_images)
succeeds("pp.embed_patches", "an image with alpha", "the same features", same_keys("X_patch"), image=alpha_images)
succeeds("pp.embed_patches", "an image of 0 to 1", "the same features", same_keys("X_patch", atol=1), image=images_as(np.float32, 1 / 255))
succeeds("pp.embed_patches", "images of one section only", "NaN for the others", lambda _r, a, e: np.array_equal(np.isnan(a.obsm["X_patch"][:, 0]), a.obs["section"] != "S1"), image=lambda: {"S1": world.image()})

raises("pp.load_encoder", "a number as name", TypeError, "pass the name of an encoder", name=5)
raises("pp.load_encoder", "weights for an encoder that takes none", ValueError, "takes none", checkpoint_path="weights.bin")
raises("pp.load_encoder", "weights that do not exist", FileNotFoundError, "there is no", name="uni", checkpoint_path="weights.bin")

raises("pp.fit_stain_reference", "an unknown section", KeyError, "there are images for", sections=["S9"])
raises("pp.fit_stain_reference", "no section", ValueError, "choose some of", sections=[])
raises("pp.fit_stain_reference", "glass without tissue", ValueError, "too few stained pixels", black_and_white)
raises("pp.fit_stain_reference", "no image", KeyError, "Pass image=", drop("uns", "spatial"))
succeeds("pp.fit_stain_reference", "the name of one section", "a reference of it", has(lambda r: r["sections"] == ["S1"]), sections="S1")

raises("pp.tile_image", "no pitch", ValueError, "give either pitch_um", pitch_px=None)
raises("pp.tile_image", "`pitch_um` without `mpp`", ValueError, "needs mpp", pitch_px=None, pitch_um=100)
raises("pp.tile_image", "`mpp=0`", ValueError, "must be positive", pitch_px=None, pitch_um=100, mpp=0)
raises("pp.tile_image", "`pitch_um` and `pitch_px`", ValueError, "give either", pitch_um=100)
raises("pp.tile_image", "an infinite pitch", ValueError, "pass a finite number", pitch_px=INF)
raises("pp.tile_image", "text as `pitch_px`", TypeError, "pass a number", pitch_px="25")
raises("pp.tile_image", "a pitch below one pixel", ValueError, "at least 1", pitch_px=0.1)
raises("pp.tile_image", "a pitch larger than the image", ValueError, "check pitch and mpp", pitch_px=10_000)
raises("pp.tile_image", "an unknown layout", ValueError, "either 'hex' or 'square'", layout="irregular")
raises("pp.tile_image", "`min_tissue` above 1", ValueError, "lower min_tissue", min_tissue=1.5)
raises("pp.tile_image", "a slash in the name of the section", ValueError, "section='a/b' is not a legal key", section="a/b")
raises("pp.tile_image", "`library_key` that is taken", ValueError, "choose another", library_key="array_row")
raises("pp.tile_image", "`thumbnail_px=0`", ValueError, "at least one", thumbnail_px=0)
raises("pp.tile_image", "a file that does not exist", FileNotFoundError, "does not exist", lambda _image: "slide.tif")
raises("pp.tile_image", "no image", ValueError, "expected grey, RGB or RGBA", lambda _image: np.zeros(3))
raises("pp.tile_image", "a list as image", ValueError, "expected grey, RGB or RGBA", lambda _image: [None])

raises("pp.tile_image", "a negative `mpp`", ValueError, "must be positive", mpp=-0.5)

raises("pp.read_hest", "a folder without sections", FileNotFoundError, "holds 'st' and 'patches'", lambda folder: folder / "st")
raises("pp.read_hest", "an unknown section", FileNotFoundError, "there are ['S1']", sections=["S2"])
raises("pp.read_hest", "no section", FileNotFoundError, "sections is empty", sections=[])
raises("pp.read_hest", "a number as `sections`", TypeError, "pass names", sections=3)
raises("pp.read_hest", "a number as encoder", TypeError, "is neither a name, nor a function", encoder=3)
raises("pp.read_hest", "`batch_size=0`", ValueError, "at least one", batch_size=0)
raises("pp.read_hest", "a slash in `use_rep`", ValueError, "not a legal key", use_rep="a/b")
raises("pp.read_wsidata", "an AnnData", TypeError, "open the slide with wsidata.open_wsi", lambda _wsi: world.raw())
raises("pp.read_wsidata", "a slide without `mpp`", ValueError, "call wsi.set_mpp", lambda w: w.attrs["slide_properties"].update(mpp=None))
raises("pp.read_wsidata", "features that do not exist", KeyError, "lazyslide.tl.feature_extraction", feature_key="uni")
raises("pp.read_wsidata", "misspelt tiles", KeyError, "did you mean 'tiles'", tile_key="tile")
raises("pp.read_wsidata", "tiles without features", ValueError, "extract them again", lambda w: w.tables.update(toy_tiles=w.tables["toy_tiles"][:5]))
raises("pp.read_wsidata", "a slash in the name of the section", ValueError, "not a legal key", section="a/b")
raises("pp.read_wsidata", "a slash in `use_rep`", ValueError, "not a legal key", use_rep="a/b")

# pp.high_mean_high_variance_genes

PANEL = "pp.high_mean_high_variance_genes"
raises(PANEL, "more genes than exist", ValueError, "genes are highly variable", n_genes=1000)
raises(PANEL, "`n_genes=0`", ValueError, "at least one", n_genes=0)
raises(PANEL, "`n_genes=2.5`", TypeError, "pass a whole number", n_genes=2.5)
raises(PANEL, "`cutoff=0`", ValueError, "at least one", cutoff=0)
raises(PANEL, "`n_top_genes=0`", ValueError, "at least one", n_top_genes=0)
raises(PANEL, "an unknown extra gene", KeyError, "are not in adata.var_names", extra_genes=["TP53"])
raises(PANEL, "one unknown extra gene as text", KeyError, "['TP53'] are not in", extra_genes="TP53")
raises(PANEL, "a misspelt column of symbols", KeyError, "is not in adata.var", gene_symbols="symbol")
raises(PANEL, "names of genes that are not unique", ValueError, "var_names_make_unique", same_genes)
raises(PANEL, "logarithms in place of counts", ValueError, "pass raw counts", with_x(lambda x: x.log1p()))
raises(PANEL, "infinite counts", ValueError, "pass raw counts", with_value(INF))
raises(PANEL, "no counts at all", ValueError, "no gene varies", with_x(lambda x: x * 0))
succeeds(PANEL, "a section of one spot", "a panel of the other sections", has(lambda r: len(r) == 10), one_spot_section)
raises(PANEL, "text as counts", ValueError, "numbers are needed", put("layers", "words", lambda a: np.full(a.shape, "x")), layer="words")
succeeds(PANEL, "spots and genes without counts", "a panel", has(lambda r: len(r) == 10), with_x(lambda x: empty_gene(empty_spot(x))))
succeeds(PANEL, "read-only arrays", "the same panel", as_expected, read_only)

# tl.train_domains

TRAIN = "tl.train_domains"
raises(TRAIN, "one domain only", ValueError, "at least two are needed", put("obs", "domain", "L1"))
raises(TRAIN, "no label at all", ValueError, "at least two are needed", put("obs", "domain", NAN))
raises(TRAIN, "continuous values as labels", ValueError, "domains are categories", put("obs", "domain", lambda a: np.random.default_rng(0).random(a.n_obs)))
raises(TRAIN, "`label_key=None`", TypeError, "label_key names the column", label_key=None)
raises(TRAIN, "`smoothing=0`", ValueError, "smoothing=0", smoothing=0)
raises(TRAIN, "`layer` beside a representation", ValueError, "are for expression", put("layers", "raw", lambda a: a.X), use_rep="spatial", layer="raw")
raises(TRAIN, "NaN in the representation", ValueError, "leave them out", poke("obsm", "spatial", 0, NAN), use_rep="spatial")
raises(TRAIN, "text as representation", ValueError, "choose its numeric columns", put("obsm", "X_own", lambda a: np.full((a.n_obs, 2), "x")), use_rep="X_own")
raises(TRAIN, "library sizes of zero", ValueError, "must be positive and finite", put("obs", "total", 0), size_factor_key="total")
raises(TRAIN, "text as library sizes", ValueError, "must be positive and finite", put("obs", "total", "many"), size_factor_key="total")
raises(TRAIN, "non-integer counts", ValueError, "pass raw counts", with_value(0.5))
raises(TRAIN, "two spots on one site", ValueError, "run strecur.pp.to_grid again", lambda a: a.obsm["grid"].__setitem__(1, a.obsm["grid"][0]))
raises(TRAIN, "`n_genes=0`", ValueError, "at least one", n_genes=0)
succeeds(TRAIN, "a domain of one spot", "it is learned as well", has(lambda m: "alone" in m.labels), seldom, max_epochs=1)
succeeds(TRAIN, "numbers as labels, some missing", "labels without decimals", has(lambda m: m.labels == ["0", "1", "2"]), as_numbers, max_epochs=1)
succeeds(TRAIN, "boolean labels", "two domains", has(lambda m: m.labels == ["False", "True"]), as_bools, max_epochs=1)
succeeds(TRAIN, "a category that no spot has", "it is not a label", has(lambda m: m.labels == ["L1", "L2", "L3"]), unused_category, max_epochs=1)
succeeds(TRAIN, "one gene twice", "its counts are summed", has(lambda m: len(m.features.source.genes) == 39), same_genes, max_epochs=1)
succeeds(TRAIN, "a sparse representation", "it is used", has(lambda m: m.features.width == 2), sparse_obsm("spatial"), use_rep="spatial", max_epochs=1)

# tl.trm_domains

APPLY = "tl.trm_domains"
raises(APPLY, "an unknown selection", ValueError, "choose one of", selection="best")
raises(APPLY, "negative `noise`", ValueError, "must not be negative", noise=-1.0)
raises(APPLY, "NaN as `noise`", ValueError, "pass a finite number", noise=NAN)
raises(APPLY, "`halt_threshold=1`", ValueError, "between 0 and 1", halt_threshold=1.0)
raises(APPLY, "`coverage=1.5`", ValueError, "between 0 and 1", coverage=1.5)
raises(APPLY, "text as `coverage`", TypeError, "pass a number", coverage="90%")
raises(APPLY, "`coverage` of a model that is not calibrated", ValueError, "run strecur.tl.calibrate", model=world.domain_model, coverage=0.9)
raises(APPLY, "`abstain=1`", ValueError, "below 1", abstain=1.0)
raises(APPLY, "`breadth=2` for a network with one state", ValueError, "architecture='trm'", model=world._one_state, breadth=2)
raises(APPLY, "an unknown `settings.accelerator`", ValueError, "accelerator='abacus'", accelerator="abacus")
raises(APPLY, "`key_added` names the annotation", ValueError, "choose another key_added", key_added="domain")
succeeds(APPLY, "a section of one spot", "a domain for every spot", finite("trm_domains_proba"), one_spot_section)
succeeds(APPLY, "one spot in all", "a domain", finite("trm_domains_proba"), first_spots(1))
succeeds(APPLY, "a spot without counts", "a domain for every spot", finite("trm_domains_proba"), with_x(empty_spot))
succeeds(APPLY, "names of spots that are not unique", "the same probabilities", same_keys("trm_domains_proba"), same_names)
succeeds(APPLY, "genes in another order", "the same probabilities", same_keys("trm_domains_proba"), lambda a: a[:, ::-1].copy())
succeeds(APPLY, "dense integers in place of sparse floats", "the same probabilities", same_keys("trm_domains_proba"), with_x(lambda x: dense(x).astype(np.int64)))
succeeds(APPLY, "read-only arrays", "the same probabilities", same_keys("trm_domains_proba"), read_only)
succeeds(APPLY, "counts only where there are some", "the same probabilities", same_keys("trm_domains_proba"), with_x(sparse.csc_matrix))

# tl.calibrate, tl.calibrate_halting, tl.recursion_sweep and tl.landscape

raises("tl.calibrate", "no label known to the model", ValueError, "has a domain that the model knows", put("obs", "domain", "X"))
raises("tl.calibrate", "an unknown selection", ValueError, "choose one of", selection="best")
succeeds("tl.calibrate", "some labels missing", "the annotated spots are used", has(lambda t: np.isfinite(t.to_numpy()).all()), lambda a: put("obs", "domain", a.obs["domain"].where(np.arange(a.n_obs) % 2 == 0))(a))
raises("tl.calibrate_halting", "`quantile=1`", ValueError, "below 1", quantile=1.0)
raises("tl.calibrate_halting", "text as `quantile`", TypeError, "pass a number", quantile="half")
raises("tl.calibrate_halting", "`depth=0`", ValueError, "at least one", depth=0)
raises("tl.calibrate_halting", "a model without halting", ValueError, "train it with halting", model=world._count_model)
for name in ("tl.calibrate_halting", "tl.recursion_sweep", "tl.landscape"):
    raises(name, "a linear model", TypeError, "a linear model has no recursion", model=world._linear_model)
for name in ("tl.recursion_sweep", "tl.landscape"):
    raises(name, "a network with one state", ValueError, "architecture='trm'", model=world._one_state)
raises("tl.recursion_sweep", "an empty `depths`", ValueError, "at least one number", depths=())
raises("tl.recursion_sweep", "one depth without a list", TypeError, "pass a list of whole numbers", depths=3)
raises("tl.recursion_sweep", "a depth of zero", ValueError, "depths[0]=0: at least one", depths=(0, 1))
raises("tl.recursion_sweep", "`n_latent=(1.5,)`", TypeError, "pass a whole number", n_latent=(1.5,))
raises("tl.landscape", "`depth=1`", ValueError, "at least two steps", depth=1)
raises("tl.landscape", "`n_spots=0`", ValueError, "at least one", n_spots=0)

# tl.train_expression, tl.predict_expression and tl.calibrate_expression

TRAIN_X = "tl.train_expression"
raises(TRAIN_X, "a missing embedding", KeyError, "Run strecur.pp.embed_patches", use_rep="X_uni")
raises(TRAIN_X, "unknown genes", KeyError, "are not in adata.var_names", genes=["TP53"])
raises(TRAIN_X, "no genes", ValueError, "name at least one", genes=[])
raises(TRAIN_X, "`genes=2.5`", TypeError, "pass names", genes=2.5)
raises(TRAIN_X, "two versions of one Ensembl id", ValueError, "name it once", lambda a: setattr(a, "var_names", ["ENSG01.1", "ENSG01.2", *a.var_names[2:]]), genes=["ENSG01.1", "ENSG01.2"])
raises(TRAIN_X, "an object without genes", ValueError, "has no genes", lambda a: a[:, []].copy())
raises(TRAIN_X, "an unknown scale", ValueError, "choose one of", target="log10")
raises(TRAIN_X, "library sizes with a target that does not use them", ValueError, "log2_normalised", put("obs", "total", 1), size_factor_key="total")
raises(TRAIN_X, "no counts at all", ValueError, "at least 2", with_x(lambda x: x * 0))
raises(TRAIN_X, "negative counts", ValueError, "pass raw counts", with_value(-1))
raises(TRAIN_X, "NaN for all spots", ValueError, "is NaN for all", poke("obsm", "X_patch", slice(None), NAN))
raises(TRAIN_X, "NaN in some features of a spot", ValueError, "leave them out", poke("obsm", "X_patch", (0, 0), NAN))
raises(TRAIN_X, "text as embedding", ValueError, "choose its numeric columns", put("obsm", "X_patch", lambda a: np.full((a.n_obs, 2), "x")))
raises(TRAIN_X, "views of another width", ValueError, "expected spots × 8", put("obsm", "X_patch_d4", lambda a: np.ones((a.n_obs, 8, 2))))
succeeds(TRAIN_X, "a gene without counts", "it has no correlation", has(lambda m: np.isnan(m.reliability.loc["g3", "pcc"])), with_x(empty_gene), max_epochs=1)
succeeds(TRAIN_X, "one gene as text", "a model of it", has(lambda m: m.genes == ["g1"]), genes="g1", max_epochs=1)
succeeds(TRAIN_X, "one gene named twice", "it is predicted once", has(lambda m: m.genes == ["g1", "g2"]), genes=["g1", "g2", "g1"], max_epochs=1)

PREDICT = "tl.predict_expression"
raises(PREDICT, "an embedding of another encoder", ValueError, "Run strecur.pp.embed_patches", lambda a: a.uns["X_patch"].update(encoder="uni"))
raises(PREDICT, "an embedding of other weights", ValueError, "with the same weights", lambda a: a.uns["X_patch"].update(probe=np.ones(12)))
raises(PREDICT, "an embedding of another width", ValueError, "columns; the model was trained on", lambda a: a.obsm.__setitem__("X_patch", a.obsm["X_patch"][:, :5]))
raises(PREDICT, "no views of the patches", KeyError, "views=8", drop("obsm", "X_patch_d4"))
raises(PREDICT, "a missing embedding", KeyError, "Run strecur.pp.embed_patches", drop("obsm", "X_patch"))
raises(PREDICT, '`selection="vote"`', ValueError, "choose one of", selection="vote")
raises(PREDICT, "`n_samples=1`", ValueError, "0 or at least 2", model=world._count_model, n_samples=1)
raises(PREDICT, "`temperature=0`", ValueError, "must be positive", model=world._count_model, n_samples=2, temperature=0.0)
raises(PREDICT, "`n_samples` for a model of log expression", ValueError, "architecture='genar'", n_samples=3)
raises(PREDICT, "`coverage` of a model that is not calibrated", ValueError, "calibrate_expression", model=world.expression_model, coverage=0.9)
raises(PREDICT, "`stop_early` for a model without halting", ValueError, "trained without halting", model=world._count_model, stop_early=True)
succeeds(PREDICT, "a spot without embedding", "NaN for this spot only", lambda _r, a, e: np.isnan(a.obsm["trm_expression"]).all(axis=1).sum() == 1, each(poke("obsm", "X_patch", 0, NAN), poke("obsm", "X_patch_d4", 0, NAN)))
succeeds(PREDICT, "an object without genes", "the same prediction", same_keys("trm_expression"), lambda a: a[:, []].copy())
succeeds(PREDICT, "one spot in all", "a prediction", finite("trm_expression"), first_spots(1))
raises("tl.calibrate_expression", "a linear model", ValueError, "only networks are calibrated", model=world._linear_model)
raises("tl.calibrate_expression", "a gene that is not measured", ValueError, "calibrate on sections that have all", lambda a: a[:, 1:].copy())
raises("tl.calibrate_expression", "no counts", ValueError, "no spot has counts", with_x(lambda x: x * 0))

# tl.cluster_latent

CLUSTER = "tl.cluster_latent"
raises(CLUSTER, "one cluster", ValueError, "at least 2", n_domains=1)
raises(CLUSTER, "`n_domains=2.5`", TypeError, "pass a whole number", n_domains=2.5)
raises(CLUSTER, "more clusters than spots", ValueError, "too few for", first_spots(3))
raises(CLUSTER, "an unknown method", ValueError, "choose one of", method="leiden")
raises(CLUSTER, "a negative weight", ValueError, "must not be negative", spatial_weight=-1)
raises(CLUSTER, "NaN as weight", ValueError, "pass a finite number", spatial_weight=NAN)
raises(CLUSTER, "a missing latent", KeyError, "use_rep names a representation", use_rep="X_pca")
raises(CLUSTER, "NaN in the latent", ValueError, "leave them out", poke("obsm", "trm_domains_latent", 0, NAN))
raises(CLUSTER, "coordinates that are missing", KeyError, "spatial_key names the coordinates", spatial_weight=1.0, spatial_key="xy")
raises(CLUSTER, "NaN in coordinates", ValueError, "leave out spatial_weight", poke("obsm", "spatial", 0, NAN), spatial_weight=1.0)
raises(CLUSTER, "a misspelt `library_key`", KeyError, "there are ['section'", spatial_weight=1.0, library_key="sektion")
raises(CLUSTER, "`key_added` names the annotation", ValueError, "choose another key_added", key_added="domain")
succeeds(CLUSTER, "a latent of zeros in one spot", "clusters of all spots", lambda _r, a, e: bool(a.obs["latent_domains"].notna().all()), poke("obsm", "trm_domains_latent", 0, 0.0))

# tl.suggest_annotation

SUGGEST = "tl.suggest_annotation"
raises(SUGGEST, "missing predictions", KeyError, "Run strecur.tl.trm_domains", drop("obsm", "trm_domains_proba"))
raises(SUGGEST, "predictions of another model", ValueError, "another model", lambda a: a.uns["trm_domains"].update(model="x"))
raises(SUGGEST, "`n=0`", ValueError, "at least one", n=0)
raises(SUGGEST, "`n_spots=0`", ValueError, "at least one", n_spots=0)
raises(SUGGEST, "a misspelt `label_key`", KeyError, "there are", label_key="sum")
raises(SUGGEST, "a complete annotation", ValueError, "nothing to suggest", put("obs", "some", "L1"))
raises(SUGGEST, "`key_added` names the annotation", ValueError, "choose another key_added", key_added="domain")
succeeds(SUGGEST, "one spot without annotation", "it is suggested", lambda _r, a, e: int(a.obs["suggestions"].notna().sum()) == 1, put("obs", "some", lambda a: np.where(np.arange(a.n_obs) == 7, None, "L1")))

# get and pl

READ, ALONE = "pp.read_annotation", {"annotator_key": None}
TUMOUR = {"classification": {"name": "tumour"}}
WHOLE = rectangle(0, 0, 5000, 5000)
HERE = geojson("here.geojson", ("Polygon", WHOLE, TUMOUR))


def of_first(make: Callable) -> Callable:
    """Return the annotation of the first section."""
    return lambda: {"S1": make()}


raises(READ, "a number as source", TypeError, "pass a Loupe CSV", source=5)
raises(READ, "a file that does not exist", FileNotFoundError, "there is no file", source="nowhere.csv")
raises(READ, "a file of an unknown form", ValueError, "is of a form that is not known (.xml)", source=file("a.xml", "<a/>"))
raises(READ, "an empty table", ValueError, "is empty; a table has a header", source=file("empty.csv", ""))
raises(READ, "a table without header", ValueError, "its first line has to name the columns", source=file("headless.csv", "AAACAAGTATCTCCCA-1,tumour\n"))
raises(READ, "a table with a header only", ValueError, "but no rows", source=file("header.csv", "Barcode,label\n"))
raises(READ, "a table with several columns that may be labels", ValueError, "name the one with the labels: label_key", source=file("two.csv", "Barcode,a,b\nS1_1x5,x,y\n"), **ALONE)
raises(READ, "a column of labels that does not exist", KeyError, "there are ['label']", label_key="layer")
raises(READ, "a column of annotators that does not exist", KeyError, "there are ['barcode'", annotator_key="who")
raises(READ, "a table of other spots", ValueError, "adata.obs_names are ['S1_1x5'", source=file("other.csv", "Barcode,label\nAAACAAGTATCTCCCA-1,tumour\n"), **ALONE)
raises(READ, "a table of other sections", ValueError, "expected ['S1', 'S2', 'S3']", source=lambda: world.annotation().assign(section="S9"))
raises(READ, "two labels for one spot", ValueError, "name their column with annotator_key", source=file("twice.csv", "Barcode,label\nS1_1x5,x\nS1_1x5,y\n"), **ALONE)
raises(READ, "names of spots that repeat", ValueError, "obs_names_make_unique", same_names)
raises(READ, "a section that does not exist", KeyError, "For several annotators", source=lambda: {"anna": world.annotation()})
raises(READ, "an empty mapping", ValueError, "source is empty", source=lambda: {})
raises(READ, "an empty list", ValueError, "an empty list is no annotation", source=lambda: [])
raises(READ, "polygons for several sections", ValueError, "pass a mapping {section: source}", source=HERE, **ALONE)
raises(READ, "an empty GeoJSON", ValueError, "is empty; export the annotations again", source=of_first(file("empty.geojson", "")), **ALONE)
raises(READ, "a damaged GeoJSON", ValueError, "is not valid JSON", source=of_first(file("cut.geojson", '{"type": ')), **ALONE)
raises(READ, "JSON of another kind", ValueError, "is JSON, but not GeoJSON", source=of_first(file("other.json", '{"scale": 1}')), **ALONE)
raises(READ, "a GeoJSON without features", ValueError, "were the annotations selected", source=of_first(geojson("none.geojson")), **ALONE)
raises(READ, "polygons without class", ValueError, "each has no label", source=of_first(geojson("plain.geojson", ("Polygon", WHOLE, {}))), **ALONE)
raises(READ, "points in place of polygons", ValueError, "each is not a polygon with an area", source=of_first(geojson("points.geojson", ("Point", [1, 2], TUMOUR))), **ALONE)
raises(READ, "a property of labels that does not exist", KeyError, "there are ['classification']", source=of_first(HERE), label_key="layer", **ALONE)
raises(READ, "polygons of another place", ValueError, "check that they belong to this section", source=of_first(geojson("away.geojson", ("Polygon", rectangle(9e6, 9e6, 9.1e6, 9.1e6), TUMOUR))), **ALONE)
raises(READ, "polygons in pixels of a downscaled image", ValueError, "with scale='hires'", source=of_first(geojson("hires.geojson", ("Polygon", rectangle(80, 75, 250, 260), TUMOUR))), **ALONE)
raises(READ, "a scale of 0", ValueError, "scale=0 must be positive", scale=0)
raises(READ, "a unit that does not exist", ValueError, "one of ['um', 'hires', 'lowres']", scale="mm")
raises(READ, "a unit whose scale is not known", ValueError, "only ['hires']", source=of_first(HERE), scale="um", **ALONE)
raises(READ, "a scale for other sections", KeyError, "scale has no entry for section 'S1'", source=of_first(HERE), scale={"S2": 1.0}, **ALONE)
raises(READ, "a negative `border`", ValueError, "border=-1 must not be negative", border=-1)
raises(READ, "a `border` as wide as the section", ValueError, "leaves none", border=100)
raises(READ, "polygons for spots without coordinates", KeyError, "spatial_key names", drop("obsm", "spatial"), source=of_first(HERE), **ALONE)
raises(READ, "`key_added` names a column of the user", ValueError, "choose another key_added", key_added="domain")
succeeds(READ, "annotators who agree on nothing in some spots", "these spots are missing", lambda _r, a, _e: a.uns["annotation"]["sections"]["n_disputed"].sum() == (a.obs["annotation_agreement"].eq(0.5) & a.obs["annotation"].isna()).sum() > 0)
succeeds(READ, "one polygon around a section", "all spots of that section have its class", lambda _r, a, _e: (a.obs["annotation"].eq("tumour") == (a.obs["section"] == "S1")).all(), source=of_first(HERE), **ALONE)

for name in ("get.annotation", "get.outlines", "get.write_annotation"):
    raises(name, "a missing column of labels", KeyError, "strecur.pp.read_annotation", key="layer")
for name in ("get.outlines", "get.write_annotation"):
    raises(name, "several sections and no `library_id`", ValueError, "choose one with library_id: ['S1', 'S2', 'S3']", library_id=None)
    raises(name, "a section that does not exist", KeyError, "there are ['S1', 'S2', 'S3']", library_id="S9")
    raises(name, "no lattice", KeyError, "Run strecur.pp.to_grid", drop("obsm", "grid"))
    raises(name, "no label in the section", ValueError, "is missing for all", put("obs", "empty", lambda a: pd.Categorical([None] * a.n_obs, ["x"])), key="empty")
    raises(name, "spots without coordinates", KeyError, "spatial_key names", drop("obsm", "spatial"))
for name in ("get.write_expression", "get.spatialdata"):
    raises(name, "a missing prediction", KeyError, "Run strecur.tl.predict_expression", key="expression")
    raises(name, "no lattice", KeyError, "Run strecur.pp.to_grid", drop("obsm", "grid"))
    raises(name, "spots without coordinates", KeyError, "spatial_key names", drop("obsm", "spatial"))
raises("get.write_expression", "a section that does not exist", KeyError, "is not a section", library_id="S9")
raises("get.write_expression", "a gene that was not predicted", KeyError, "was not predicted", genes=["g1", "ERBB2"])
raises("get.write_expression", "a suffix of another program", ValueError, "has to be .geojson", path="tiles.csv")
raises("get.write_expression", "a unit that does not exist", ValueError, "one of ['um', 'hires', 'lowres']", scale="mm")
raises("get.write_expression", "no prediction at all", ValueError, "has a prediction", poke("obsm", "trm_expression", slice(None), NAN))
raises("get.spatialdata", "a name of a section that SpatialData cannot store", ValueError, "not a legal key", put("obs", "section", lambda a: ["a/b"] * a.n_obs))
raises("get.annotation", "a column of many different numbers", ValueError, "domains are categories", key="cellularity")
raises("get.write_annotation", "a suffix of another program", ValueError, ".csv (Loupe Browser) or .geojson (QuPath)", path="domains.svg")
raises("get.write_annotation", "a unit that does not exist", ValueError, "one of ['um', 'hires', 'lowres']", scale="mm")
raises("get.write_annotation", "a unit whose scale is not known", ValueError, "only ['hires']", scale="um")
raises("get.expression", "a missing prediction", KeyError, "Run strecur.tl.predict_expression", key="expression")
raises("get.expression", "a missing record in `uns`", KeyError, "Run strecur.tl.predict_expression", drop("uns", "trm_expression"))
raises("get.expression", "a prediction with columns removed", ValueError, "Run strecur.tl.predict_expression", lambda a: a.obsm.__setitem__("trm_expression", a.obsm["trm_expression"][:, :2]))
for name in (
    "pl.domains",
    "pl.refinement",
    "pl.halt_steps",
    "pl.halt_summary",
    "pl.confidence",
    "pl.reliability",
    "pl.confusion",
    "pl.convergence",
):
    raises(name, "a missing result", KeyError, "Run strecur.tl.trm_domains", key="domains")
    raises(name, "an unknown section", KeyError, "there are", library_id="S9")
    raises(name, "numbers in place of axes", TypeError, "pass matplotlib axes", ax=wrong_axes)
    raises(name, "the wrong number of axes", ValueError, "ax holds 7", ax=no_axes)
for name in ("pl.domains", "pl.confidence", "pl.reliability", "pl.confusion"):
    raises(name, "a misspelt `truth`", KeyError, "there are", truth="layer")
raises("pl.domains", "no linear baseline", KeyError, "Run strecur.tl.trm_domains", drop("obs", "trm_domains_linear"))
raises("pl.domains", "spots outside the image", ValueError, "check spatial_key and the scale factors", put("obsm", "spatial", lambda a: a.obsm["spatial"] + 1e6))
raises("pl.domains", "`alpha` above 1", ValueError, "between 0 and 1", alpha=5)
raises("pl.refinement", "a subset that lost categories", ValueError, "use the whole object", subset_of_labels)
raises("pl.refinement", "steps that are missing", KeyError, "Run strecur.tl.trm_domains", drop("obsm", "trm_domains_steps"))
raises("pl.halt_summary", "a column that varies in a section", ValueError, "must be constant in each section", color="domain")
raises("pl.halt_summary", "a score that needs the truth", ValueError, "truth=...", score="ari")
raises("pl.halt_summary", "an unknown score", KeyError, "need truth=...", score="speed")
raises("pl.halt_summary", "a model without halting", ValueError, "without halting", lambda a: a.uns["trm_domains"]["sections"].__setitem__("halt_step", NAN))
raises("pl.confusion", "no annotated spot", ValueError, "is annotated", put("obs", "domain", NAN))
raises("pl.reliability", "no annotated spot", ValueError, "is annotated", put("obs", "domain", NAN))
raises("pl.reliability", "`n_bins=0`", ValueError, "at least one", n_bins=0)
for name in ("pl.recursion_sweep", "pl.landscape"):
    raises(name, "a list in place of the table", TypeError, "expected a table from strecur.tl", lambda _table: [1, 2])
    raises(name, "a table without rows", ValueError, "has no rows", lambda table: table[:0])
    raises(name, "a table without a column", KeyError, "It is made with strecur.tl", lambda table: table.drop(columns="residual"))
    raises(name, "an unknown score", KeyError, "there are", score="speed")
raises("pl.landscape", "an unknown section", KeyError, "there are", library_id="S9")
raises("pl.marker_panel", "no genes", ValueError, "pass a list of names", genes=lambda: [])
raises("pl.marker_panel", "unknown genes", KeyError, "predicted are", genes=lambda: ["TP53"])
raises("pl.marker_panel", "numbers as genes", TypeError, "pass names", genes=3)
raises("pl.marker_panel", "`genes_per_row=0`", ValueError, "at least one", genes_per_row=0)
raises("pl.marker_panel", "a missing prediction", KeyError, "Run strecur.tl.predict_expression", key="expression")
raises("pl.marker_panel", "a layer of logarithms", ValueError, "pass raw counts", put("layers", "log", lambda a: a.X.log1p()), layer="log")
raises("pl.gene_scores", "a missing prediction", KeyError, "Run strecur.tl.predict_expression", key="expression")
raises("pl.gene_scores", "genes that are not predicted", KeyError, "has g0", genes=["TP53"])
raises("pl.gene_scores", "no measured gene", ValueError, "nothing to compare with", other_panel)
raises("pl.gene_scores", "`n_label=-1`", ValueError, "at least 0", n_label=-1)
raises("pl.slide_tokens", "a missing result", KeyError, "Run strecur.tl.predict_expression", key="expression")
raises("pl.slide_tokens", "a network without global tokens", KeyError, "Only networks with global tokens", lambda a: a.uns["trm_domains"].__delitem__("slide_tokens"))
raises("pl.slide_tokens", "one section", ValueError, "at least 2 are needed", library_id="S1")
raises("pl.slide_tokens", "an unknown section", KeyError, "there are", library_id="S9")
raises("pl.slide_tokens", "a column that varies in a section", ValueError, "must be constant in each section", color="domain")
raises("pl.slide_tokens", "numbers in place of axes", TypeError, "pass matplotlib axes", ax=wrong_axes)
raises("pl.slide_tokens", "the wrong number of axes", ValueError, "ax holds 7", ax=no_axes)
raises("pl.training", "text in place of the model", TypeError, "expected a fitted model", lambda _model: "model")
raises("pl.training", "a history without epochs", ValueError, "has no epochs", lambda model: model.history[:0])
raises("pl.training", "a history without a column", KeyError, "there are", lambda model: model.history.drop(columns="train_loss"))

# metrics

TWO = ["domain_scores", "expression_scores", "pcc_per_gene", "rvd", "rvd_std", "gene_structure", "moran_structure"]
TWO += ["pooled_scores", "negative_binomial_log_likelihood", "zero_scores", "library_size_correlation"]
for name in TWO:
    raises(f"metrics.{name}", "a prediction of fewer spots", ValueError, "must match", predicted=lambda: np.ones((3, 6)))
for name in TWO[1:]:
    raises(f"metrics.{name}", "single values NaN", ValueError, "leave those genes out", lambda x: x.__setitem__((0, 0), NAN))
    raises(f"metrics.{name}", "text in place of numbers", ValueError, "expected numbers", lambda x: x.astype(str) + "x")
for name in ("expression_scores", "pcc_per_gene", "pooled_scores"):
    succeeds(f"metrics.{name}", "a spot of NaN", "it is left out", has(lambda r: np.isfinite(list(r.values()) if isinstance(r, dict) else r).all()), lambda x: x.__setitem__(0, NAN))
for name in ("metrics.confusion_table", "metrics.scores_by_domain"):
    raises(name, "`labels` without a predicted one", ValueError, "lacks the predicted domains", labels=lambda: ["a"])
    raises(name, "a domain twice in `labels`", ValueError, "twice", labels=lambda: ["a", "b", "c", "a"])
    raises(name, "probabilities in place of labels", ValueError, "one label per spot", predicted=lambda: np.ones((30, 3)))
raises("metrics.domain_scores", "probabilities in place of labels", ValueError, "one label per spot", predicted=lambda: np.ones((30, 3)))
succeeds("metrics.domain_scores", "a single label", "an adjusted Rand index of 0", has(lambda r: r["ari"] == 0), predicted=lambda: ["a"] * 30)
succeeds("metrics.domain_scores", "no label at all", "NaN, and no spots", has(lambda r: np.isnan(r["ari"]) and r["n_spots"] == 0), lambda x: x.where(x == "never"))
succeeds("metrics.domain_scores", "1.0 beside '1'", "the same label", has(lambda r: r["accuracy"] == 1), lambda x: pd.Series([1.0, 2.0, NAN]), predicted=lambda: ["1", "2", "2"])
raises("metrics.expected_calibration_error", "logits", ValueError, "expected probabilities", proba=lambda: 5 * world.probabilities() - 1)
raises("metrics.expected_calibration_error", "a column too many", ValueError, "expected spots × 2 labels", labels=lambda: ["a", "b"])
raises("metrics.expected_calibration_error", "no bins", ValueError, "at least one", n_bins=0)
raises("metrics.path_dependence", "one row without a table", ValueError, "sections × restarts", lambda x: x[0])
raises("metrics.path_dependence", "text in place of numbers", ValueError, "expected numbers", lambda x: x.astype(str) + "x")
succeeds("pl.slide_tokens", "a section that was not predicted", "the others are drawn", lambda ax, *_: len(ax.texts) == 2, lambda a: a.uns["trm_domains"]["slide_tokens"].__setitem__(0, NAN))
succeeds("pl.gene_scores", "one gene as text", "it is named", has(lambda ax: [t.get_text() for t in ax.texts] == ["g1"]), genes="g1")
raises("metrics.pcc_top", "`k=0`", ValueError, "at least one", k=0)
raises("metrics.pcc_top", "`k=-1`", ValueError, "at least one", k=-1)
succeeds("metrics.pcc_top", "`k` above the number of genes", "the mean of all", equals(0.3), k=100)
succeeds("metrics.pcc_per_gene", "a constant gene", "NaN for it", has(lambda r: np.isnan(r[0]) and np.isfinite(r[1:]).all()), lambda x: x.__setitem__((slice(None), 0), 1.0))
raises("metrics.moran_structure", "a graph of fewer spots", ValueError, "expected spots × spots", graph=lambda: np.ones((3, 3)))
raises("metrics.moran_structure", "no graph", ValueError, "expected spots × spots", graph=lambda: None)
raises("metrics.lattice_graph", "an unknown layout", ValueError, "there are", layout="auto")
raises("metrics.lattice_graph", "three columns", ValueError, "spots × 2", lambda x: np.ones((5, 3)))
raises("metrics.lattice_graph", "NaN", ValueError, "spots × 2", lambda x: np.where(x == 0, NAN, x))
raises("metrics.lattice_graph", "sections of fewer spots", ValueError, "pass one per spot", sections=lambda: ["a"])
raises("metrics.depth_normalised", "a negative sum", ValueError, "must be positive", target_sum=-1.0)
raises("metrics.depth_normalised", "one row without a table", ValueError, "expected spots × genes", lambda x: x[0])
succeeds("metrics.depth_normalised", "a spot without counts", "NaN for it", has(lambda r: np.isnan(r[0]).all() and np.isfinite(r[1:]).all()), lambda x: x.__setitem__(0, 0.0))
for name in ("negative_binomial_log_likelihood", "zero_scores", "library_size_correlation", "moment_dispersion"):
    raises(f"metrics.{name}", "logarithms in place of counts", ValueError, "counts must be whole numbers", lambda x: np.log2(x + 1))
raises("metrics.negative_binomial_log_likelihood", "a negative dispersion", ValueError, "see moment_dispersion", dispersion=-1.0)
raises("metrics.negative_binomial_log_likelihood", "a dispersion of fewer genes", ValueError, "see moment_dispersion", dispersion=lambda: np.ones(2))
raises("metrics.negative_binomial_log_likelihood", "`min_mean=0`", ValueError, "must be positive", min_mean=0.0)

# datasets, models and settings

SYNTHETIC = "datasets.synthetic_sections"
raises(SYNTHETIC, "no sections", ValueError, "at least 1 is needed", n_sections=0)
raises(SYNTHETIC, "`n_rows=12.5`", TypeError, "pass a whole number", n_rows=12.5)
raises(SYNTHETIC, "more domains than fit", ValueError, "at most 3 do", n_domains=9)
raises(SYNTHETIC, "an unknown layout", ValueError, "is not one of", layout="triangle")
raises(SYNTHETIC, "a negative seed", ValueError, "at least 0", rng=-1)
raises(SYNTHETIC, "text as `rng`", TypeError, "pass a whole number", rng="seed")
# Cross-validation

CROSS, BENCHMARK = "tl.cross_validate", "pl.benchmark"
raises(CROSS, "expression without an embedding", KeyError, "'X_patch' is not in adata.obsm", label_key=None)
raises(CROSS, "a column of labels that does not exist", KeyError, "there are", label_key="layer")
raises(CROSS, "a library_key that does not exist", KeyError, "there are", library_key="slide")
raises(CROSS, "a group_key that does not exist", KeyError, "there are", group_key="clinic")
raises(CROSS, "one group alone", ValueError, "smaller groups", lambda adata: adata.obs.__setitem__("donor", "D1"), group_key="donor", groups=None)
raises(CROSS, "a group that does not exist", KeyError, "there are ['S1', 'S2', 'S3']", groups=["S9"])
raises(CROSS, "an unknown argument in `train`", ValueError, "train cannot hold ['epochs']", train={"epochs": 3})
raises(CROSS, "`rng` in `train`", ValueError, "arguments of cross_validate itself", train={"rng": 3})
raises(CROSS, "an unknown option of features in `train`", TypeError, "did you mean 'n_genes'", train={"features": {"genes_": 3}})
raises(CROSS, "`coverage` in `inference`", TypeError, "coverage is an argument of the function itself", inference={"coverage": 0.9})
raises(CROSS, "no seed", ValueError, "at least one is needed", seeds=())
raises(CROSS, "repeated seeds", ValueError, "each once", seeds=(1, 1))
raises(CROSS, '`"linear"` among the architectures', ValueError, "without being asked for", architectures=("trm", "linear"))
raises(BENCHMARK, "a score that is not in the table", KeyError, "there are", score="nmi")
raises(BENCHMARK, "a table without methods", KeyError, "strecur.tl.cross_validate", lambda table: table.drop(columns="method"))
raises(BENCHMARK, "an empty table", ValueError, "no rows", lambda table: table.iloc[:0])
raises(BENCHMARK, "several axes", ValueError, "1 panels", ax=no_axes)

# Cohorts in files

SAMPLE, COHORT = "tl.sample_cohort", "tl.predict_cohort"
for name in (SAMPLE, COHORT):
    raises(name, "a path that does not exist", FileNotFoundError, "nowhere does not exist", lambda _paths: "nowhere")
    raises(name, "a folder without sections", ValueError, "holds no .h5ad files", lambda _paths: world.empty_folder())
    raises(name, "a file of another kind", ValueError, "is neither an .h5ad file nor", lambda _paths: file("notes.txt", "")())
    raises(name, "a damaged file", ValueError, "is damaged or no .h5ad file", lambda _paths: file("damaged.h5ad", "")())
    raises(name, "no path", ValueError, "paths is empty", lambda _paths: [])
    raises(name, "an AnnData in place of paths", TypeError, "pass the path of a file or folder", lambda _paths: world.sections())
    raises(name, "a file twice", ValueError, "more than once", lambda paths: [*paths, paths[0]])
    raises(name, "a library_key that does not exist", KeyError, "there are", library_key="slide")
    raises(name, "a table of an AnnData", ValueError, "table_key is for SpatialData", table_key="table")
raises(SAMPLE, "no sections", ValueError, "at least one", n_sections=0)
raises(SAMPLE, "a column of labels that does not exist", KeyError, "is not a column of obs in any file", label_key="layer")
raises(SAMPLE, "a group_key that does not exist", KeyError, "there are", group_key="clinic")
raises(SAMPLE, "a group_key that differs within sections", ValueError, "every section belongs to one group", group_key="domain")
succeeds(SAMPLE, "more sections than there are", "all of them", lambda found, _paths, wanted: found.n_obs == wanted.n_obs, n_sections=9)
raises(COHORT, "text as `model`", TypeError, "strecur.load_model", model="my_model")
raises(COHORT, "a part of no whole", ValueError, "from '1/16' to '16/16'", shard="17/16")
raises(COHORT, "a number as `shard`", ValueError, "from '1/16' to '16/16'", shard=3)
raises(COHORT, "an unknown argument in `predict`", ValueError, "did you mean 'abstain'?", predict={"abstian": 0.5})
raises(COHORT, "an unknown option of inference in `predict`", TypeError, "did you mean 'depth'?", predict={"inference": {"deph": 3}})
raises(COHORT, "`coverage` of a model that is not calibrated", ValueError, "strecur.tl.calibrate", model=world.domain_model, predict={"coverage": 0.9})
raises(COHORT, "the folder of the sections as `folder`", FileExistsError, "is not a result of strecur.tl.predict_cohort", folder=world.scratch)
raises(COHORT, "genes of another panel in all sections", ValueError, "none of the 1 sections could be predicted", lambda _paths: world.other_panel_file())

# Public sections and protocols

for name, known in (("dlpfc", "151507"), ("her2st", "A1"), ("mob", "Rep1")):
    raises(f"datasets.{name}", "a section that does not exist", ValueError, f"{name} has ['{known}'", sections=["Z9"])
    raises(f"datasets.{name}", "no section", ValueError, "empty", sections=[])
    raises(f"datasets.{name}", "a section twice", ValueError, "repeated", sections=[known, known])
raises("datasets.read_split", "a split that does not exist", KeyError, "her2st-b1-v1", name="her2st")
raises("datasets.read_genes", "a gene list that does not exist", KeyError, "her2st-300-training-v1", name="her2st")

raises("load_model", "a folder that does not exist", FileNotFoundError, "model.save(path) writes a folder with both", lambda _path: "nowhere")
raises("load_model", "a number as path", TypeError, "path of a model folder", lambda _path: 5)

# fmt: on


def outcome(case: Case) -> str:
    return case.says if case.error is None else f"`{case.error.__name__}`: … {case.says} …"


HEADER = """# Errors

Arguments and data are checked before anything is computed or written. The message names the fix:

- `KeyError`: something is not in the object; the message lists what is, and the call that makes it.
- `ValueError`: a value or the data are out of range or do not fit together.
- `TypeError`: an argument has the wrong type, or an option does not exist.
- `FileNotFoundError`, `FileExistsError`, `OSError`: a file is missing, exists already or is damaged.

An error leaves the AnnData and the model unchanged. The tables list the {n} inputs that the tests try: {n_raising} raise
this error, with this phrase in the message; {n_valid} are unusual but valid.
"""


def page() -> str:
    """Return the page of the documentation, in Markdown."""
    kinds = Counter(case.error is None for case in CASES)
    lines = [HEADER.format(n=len(CASES), n_raising=kinds[False], n_valid=kinds[True])]
    order = [*world.VALID, *world.NEEDS_FILES]
    for call in sorted(dict.fromkeys(case.call for case in CASES), key=order.index):
        lines += [f"## `{call}`", "", "| input | result |", "| --- | --- |"]
        lines += [f"| {case.wrong} | {outcome(case)} |" for case in CASES if case.call == call]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
