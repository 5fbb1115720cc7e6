"""Inputs that are wrong or look so, for every public function, and what has to come of each.

``python tests/bad_inputs.py`` writes the table of docs/errors.md.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import small_world as world
from scipy import sparse

from strecur.nn import WindowedConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Case:
    """One input: a valid call, changed.

    Attributes
    ----------
    call
        Public function.
    wrong
        What is wrong, in words.
    error
        Exception that has to be raised; ``None``: the result is right.
    says
        Phrase of the message that tells what to do, or what the result is.
    change
        Changes the first argument, in place or by returning another.
    options
        Options in place of those of the valid call.
    check
        Tells whether the result is right, from it, the first argument and the result of the valid call.
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


def refused(
    call: str, wrong: str, error: type[Exception], says: str, change: Callable | None = None, **options
) -> None:
    CASES.append(Case(call, wrong, error, says, change, options))


def right(call: str, wrong: str, says: str, check: Callable, change: Callable | None = None, **options) -> None:
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
    values = adata.obs["domain"].astype(object).to_numpy()
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
    *("pp.to_grid", "pp.embed_patches", "pp.fit_stain_reference", "pp.high_mean_high_variance_genes"),
    *("tl.train_domains", "tl.trm_domains", "tl.train_expression", "tl.predict_expression", "tl.calibrate"),
    *("tl.calibrate_expression", "tl.calibrate_halting", "tl.recursion_sweep", "tl.landscape"),
    *("pl.domains", "pl.refinement", "pl.halt_steps", "pl.halt_summary", "pl.confidence", "pl.reliability"),
    *("pl.marker_panel", "pl.gene_scores"),
]
TAKES_ADATA = [*WITH_LIBRARY_KEY, "tl.cluster_latent", "get.expression", "pl.convergence"]
TAKES_MODEL = [
    *("tl.trm_domains", "tl.predict_expression", "tl.calibrate", "tl.calibrate_expression", "tl.calibrate_halting"),
    *("tl.recursion_sweep", "tl.landscape"),
]
WRITES = ["pp.to_grid", "pp.embed_patches", "tl.trm_domains", "tl.predict_expression", "tl.cluster_latent"]
OF_DOMAINS = ["tl.trm_domains", "tl.calibrate", "tl.calibrate_halting", "tl.recursion_sweep", "tl.landscape"]
OF_EXPRESSION = ["tl.train_expression", "tl.predict_expression", "tl.calibrate_expression"]

for name in TAKES_ADATA:
    refused(name, "an array in place of the object", TypeError, "expected an AnnData", lambda adata: np.ones((3, 2)))
    refused(name, "an object without spots", ValueError, "no spots", first_spots(0))
    refused(name, "`table_key` for an AnnData", ValueError, "leave it out for an AnnData", table_key="table")
for name in WITH_LIBRARY_KEY:
    refused(name, "a misspelt `library_key`", KeyError, "there are ['section'", library_key="sektion")
    refused(name, "a list as `library_key`", TypeError, "library_key names the column", library_key=["section"])
    refused(name, "spots without a section", ValueError, "every spot needs a section", missing_section)
for name in WRITES:
    refused(name, "a slash in `key_added`", ValueError, "use letters, digits", key_added="a/b")
    refused(name, "a number as `key_added`", ValueError, "is not a legal key", key_added=1)
    refused(name, "`key_added` names other data", ValueError, "choose another key_added", key_added="spatial")
for name in TAKES_MODEL:
    refused(name, "a path in place of the model", TypeError, "load it with strecur.load_model", model="model/")
    refused(name, "a negative `rng`", ValueError, "at least 0", rng=-1) if name != "tl.calibrate_halting" else None
for name in ("tl.trm_domains", "tl.calibrate"):
    refused(name, "a model of expression", TypeError, "strecur.tl.train_domains", model=world.expression_model)
for name in ("tl.predict_expression", "tl.calibrate_expression"):
    refused(name, "a model of domains", TypeError, "strecur.tl.train_expression", model=world.domain_model)
for name in [*OF_DOMAINS, "tl.train_domains", *OF_EXPRESSION, "pl.domains", "pl.refinement", "pl.confidence"]:
    refused(name, "no lattice", KeyError, "Run strecur.pp.to_grid", drop("obsm", "grid"), **({"img": False} if name.startswith("pl") else {}))
for name in OF_DOMAINS[:2]:
    refused(name, "a lattice of three columns", ValueError, "spots × 2 (row, column)", put("obsm", "grid", lambda a: np.ones((a.n_obs, 3))))
    refused(name, "NaN in the lattice", ValueError, "Run strecur.pp.to_grid", poke("obsm", "grid", 0, NAN))
    refused(name, "a lattice without layout", ValueError, "Run strecur.pp.to_grid", put("uns", "grid", {}))
    refused(name, "sections joined without a new lattice", ValueError, "Several sections need library_key", library_key=None)
    refused(name, "genes of another panel", ValueError, "of the model's", other_panel)
    refused(name, "logarithms in place of counts", ValueError, "pass raw counts", with_x(lambda x: x.log1p()))
    refused(name, "negative counts", ValueError, "pass raw counts", with_value(-1))
    refused(name, "NaN in `X`", ValueError, "pass raw counts", with_value(NAN))
    refused(name, "no `X`", ValueError, "name a layer", lambda a: setattr(a, "X", None))
for name in ("tl.trm_domains", "tl.calibrate", "tl.landscape"):
    refused(name, "`depth` of a half step", TypeError, "pass a whole number", depth=2.5)
    refused(name, "`depth=0`", ValueError, "at least one", depth=0)
    refused(name, "`breadth=0`", ValueError, "at least one", breadth=0)
for name in ("tl.calibrate", "tl.train_domains", "tl.recursion_sweep", "tl.landscape"):
    refused(name, "a misspelt `label_key`", KeyError, "label_key names the column", label_key="layer")
for name in ("tl.train_domains", "tl.train_expression"):
    refused(name, "an unknown architecture", ValueError, "choose one of", architecture="cnn")
    refused(name, "an unknown backbone", ValueError, "choose one of", backbone="resnet")
    refused(name, "a halting recipe of the other task", ValueError, "choose one of", halting="pcc" if "dom" in name else "loss_proxy")
    refused(name, "halting without a global token", ValueError, "choose halting=None, or n_global=1", halting="random_k", backbone=WindowedConfig(n_global=0))
    refused(name, "a list as halting recipe", ValueError, "choose one of", halting=["random_k"])
    refused(name, "`max_epochs=0`", ValueError, "at least one", max_epochs=0)
    refused(name, "`max_minutes=0`", ValueError, "must be positive", max_minutes=0)
    refused(name, "`max_minutes` NaN", ValueError, "pass a finite number", max_minutes=NAN)
    refused(name, "`n_components=0`", ValueError, "at least one", n_components=0)
    refused(name, "one number as `neighbours`", TypeError, "pass a list of whole numbers", neighbours=19)
    refused(name, "means over zero neighbours", ValueError, "neighbours[0]=0: at least one", neighbours=(0,))
    refused(name, "`tile=0`", ValueError, "at least one", tile=0)
    refused(name, "`rng` that is no seed", TypeError, "pass a whole number", rng="0")
    refused(name, "an unknown accelerator", ValueError, "accelerator='abacus'", accelerator="abacus")
    refused(name, "an unknown precision", ValueError, "precision='7-bit'", precision="7-bit")
    refused(name, "two devices in one process", ValueError, "torchrun", devices=2)
    refused(name, "`devices=0`", ValueError, "at least one", devices=0)
    refused(name, "an unknown validation section", ValueError, "are not among the sections", validation="S9")
    refused(name, "all sections for validation", ValueError, "none is left to train on", validation=["S1", "S2", "S3"] if "dom" in name else ["S1", "S2"])
    refused(name, "an unknown layer", KeyError, "is not in adata.layers", layer="raw")
    refused(name, "augmentation that cannot draw", TypeError, "strecur.engine.Augmentation", augmentation=0.3)

# pp.to_grid

refused("pp.to_grid", "an unknown layout", ValueError, "is not one of", layout="triangle")
refused("pp.to_grid", "square for a hexagonal array", ValueError, "Leave layout out", layout="square")
refused("pp.to_grid", "less than a site per cell", ValueError, "at least 1 is needed", cells_per_pitch=0.5)
refused("pp.to_grid", "words as `cells_per_pitch`", TypeError, "pass a number", cells_per_pitch="1.5")
refused("pp.to_grid", "a missing key of the coordinates", KeyError, "spatial_key names the coordinates", no_array, spatial_key="xy")
refused("pp.to_grid", "NaN in coordinates", ValueError, "leave them out first", each(no_array, poke("obsm", "spatial", 0, NAN)))
refused("pp.to_grid", "infinite coordinates", ValueError, "leave them out first", each(no_array, poke("obsm", "spatial", 0, INF)))
refused("pp.to_grid", "coordinates of three columns", ValueError, "choose two columns", each(no_array, put("obsm", "spatial", lambda a: np.ones((a.n_obs, 3)))))
refused("pp.to_grid", "the same beside an array", ValueError, "choose two columns", put("obsm", "spatial", lambda a: np.ones((a.n_obs, 3))))
refused("pp.to_grid", "words as coordinates", ValueError, "choose its numeric columns", each(no_array, put("obsm", "spatial", lambda a: np.full((a.n_obs, 2), "x"))))
refused("pp.to_grid", "two spots at one place", ValueError, "keep one spot of each position", each(no_array, poke("obsm", "spatial", 0, 300.0), poke("obsm", "spatial", 1, 300.0)))
refused("pp.to_grid", "several sections without `library_key`", ValueError, "pass library_key='section'", library_key=None)
refused("pp.to_grid", "a slash in the name of a section", ValueError, "rename them without '/'", put("obs", "section", "a/b"), library_key="section")
refused("pp.to_grid", "sections 1 and '1'", ValueError, ".astype(str)", put("obs", "section", lambda a: pd.Series([1, "1"] * a.n_obs, dtype=object)[: a.n_obs].to_numpy()))
refused("pp.to_grid", "one spot light years away", ValueError, "extremely far from the others", each(no_array, poke("obsm", "spatial", 0, 1e15)), layout="irregular")
refused("pp.to_grid", "random places for a lattice", ValueError, "try layout='auto' or 'irregular'", each(no_array, put("obsm", "spatial", lambda a: np.random.default_rng(0).random((a.n_obs, 2)))), layout="hex")
right("pp.to_grid", "one spot in all", "a lattice of one site", unique_sites, first_spots(1))
right("pp.to_grid", "a section of one spot", "a site for every spot", unique_sites, each(no_array, one_spot_section))
right("pp.to_grid", "names of spots that are not unique", "the same lattice", same_keys("grid"), same_names)
right("pp.to_grid", "array positions with NaN", "the coordinates are used, with a warning", unique_sites, lambda a: put("obs", "array_row", a.obs["array_row"].where(np.arange(a.n_obs) > 0))(a))
right("pp.to_grid", "no genes and no `X`", "the same lattice", same_keys("grid"), lambda a: a[:, []].copy())
right("pp.to_grid", "read-only arrays", "the same lattice", same_keys("grid"), read_only)
right("pp.to_grid", "coordinates in a DataFrame", "a lattice", unique_sites, each(no_array, put("obsm", "spatial", lambda a: pd.DataFrame(a.obsm["spatial"], index=a.obs_names, columns=["x", "y"]))))
right("pp.to_grid", "sections named by numbers", "the same lattice", same_keys("grid"), put("obs", "section", lambda a: a.obs["section"].cat.codes.to_numpy()))

# pp.embed_patches, pp.fit_stain_reference and pp.tile_image

refused("pp.embed_patches", "an unknown encoder type", TypeError, "strecur.pp.Encoder", encoder=5)
refused("pp.embed_patches", "an encoder of wrong width", ValueError, "expected", encoder=world.Encoder("bad", lambda x: x.mean(axis=(1, 2)), 5, size=16))
refused("pp.embed_patches", "an encoder that returns NaN", ValueError, "returned NaN", encoder=world.Encoder("bad", lambda x: np.full((len(x), 3), NAN), 3, size=16))
refused("pp.embed_patches", "weights for an encoder without", ValueError, "takes none", encoder="texture", checkpoint_path="weights.bin")
refused("pp.embed_patches", "`patch_um` and `patch_px`", ValueError, "not both", patch_um=100)
refused("pp.embed_patches", "an unknown scale", ValueError, "give patch_px, or mpp", patch_px=None, patch_um=100)
refused("pp.embed_patches", "a patch of no size", ValueError, "must be positive", patch_px=0)
refused("pp.embed_patches", "an infinite patch", ValueError, "pass a finite number", patch_px=INF)
refused("pp.embed_patches", "words as `mpp`", TypeError, "pass a number", mpp="0.5")
refused("pp.embed_patches", "a negative `mpp`", ValueError, "must be positive", mpp=-0.5)
refused("pp.embed_patches", "`mpp` without one section", KeyError, "has no entry for section", mpp={"S1": 0.5})
refused("pp.embed_patches", "`views=3`", ValueError, "1 or 8", views=3)
refused("pp.embed_patches", "`batch_size=0`", ValueError, "at least one", batch_size=0)
refused("pp.embed_patches", "one image for three sections", ValueError, "pass a mapping", image=world.image)
refused("pp.embed_patches", "an image of an unknown section", KeyError, "which are not sections", image=lambda: {"S9": world.image()})
refused("pp.embed_patches", "a file that does not exist", FileNotFoundError, "does not exist", image=lambda: {"S1": "slide.tif"})
refused("pp.embed_patches", "no image at all", KeyError, "Pass image=", drop("uns", "spatial"), image=None)
refused("pp.embed_patches", "channels first", ValueError, "np.moveaxis", image=lambda: {n: np.moveaxis(p, -1, 0) for n, p in world.images().items()})
refused("pp.embed_patches", "an image of five channels", ValueError, "expected grey, RGB or RGBA", image=lambda: {"S1": np.zeros((300, 300, 5), np.uint8)})
refused("pp.embed_patches", "an image without pixels", ValueError, "expected grey, RGB or RGBA", image=lambda: {"S1": np.zeros((0, 300, 3), np.uint8)})
refused("pp.embed_patches", "an image of words", ValueError, "expected numbers", image=lambda: {"S1": np.full((300, 300, 3), "x")})
refused("pp.embed_patches", "NaN in the image", ValueError, "negative or non-finite", image=nan_images)
refused("pp.embed_patches", "values beyond 16 bits", ValueError, "convert it to 8 bits", image=images_as(np.int64, 1e4))
refused("pp.embed_patches", "a tiny image", ValueError, "Is it the image of this section", image=lambda: {"S1": np.full((2, 2, 3), 200, np.uint8)})
refused("pp.embed_patches", "x and y swapped and shifted", ValueError, "are x and y swapped", put("obsm", "spatial", lambda a: a.obsm["spatial"][:, ::-1] + 3000))
refused("pp.embed_patches", "no coordinates at all", ValueError, "has coordinates", poke("obsm", "spatial", slice(None), NAN))
refused("pp.embed_patches", "a negative `image_scale`", ValueError, "must be positive", image_scale=-1)
refused("pp.embed_patches", "a misspelt `spatial_key`", KeyError, "spatial_key names the spot coordinates", spatial_key="xy")
refused("pp.embed_patches", "coordinates of one column", ValueError, "spots × 2", put("obsm", "spatial", lambda a: np.ones((a.n_obs, 1))))
refused("pp.embed_patches", "a stain reference of other making", ValueError, "pp.fit_stain_reference", stain_reference=lambda: {"stains": []})
refused("pp.embed_patches", "a stain reference without file", FileNotFoundError, "does not exist", stain_reference="stain.json")
right("pp.embed_patches", "a spot without coordinates", "NaN for this spot alone", lambda _r, a, e: np.isnan(a.obsm["X_patch"]).all(axis=1).sum() == 1, poke("obsm", "spatial", 0, NAN))
right("pp.embed_patches", "an image in grey", "the grey in all channels", lambda _r, a, e: np.allclose(a.obsm["X_patch"], a.obsm["X_patch"][:, :1]), image=gray_images)
right("pp.embed_patches", "an image with alpha", "the same features", same_keys("X_patch"), image=alpha_images)
right("pp.embed_patches", "an image of 0 to 1", "the same features", same_keys("X_patch", atol=1), image=images_as(np.float32, 1 / 255))
right("pp.embed_patches", "images of one section only", "NaN for the others", lambda _r, a, e: np.array_equal(np.isnan(a.obsm["X_patch"][:, 0]), a.obs["section"] != "S1"), image=lambda: {"S1": world.image()})

refused("pp.fit_stain_reference", "an unknown section", KeyError, "there are images for", sections=["S9"])
refused("pp.fit_stain_reference", "no section", ValueError, "choose some of", sections=[])
refused("pp.fit_stain_reference", "glass without tissue", ValueError, "too few stained pixels", black_and_white)
refused("pp.fit_stain_reference", "no image", KeyError, "Pass image=", drop("uns", "spatial"))
right("pp.fit_stain_reference", "the name of one section", "a reference of it", has(lambda r: r["sections"] == ["S1"]), sections="S1")

refused("pp.tile_image", "no pitch", ValueError, "give either pitch_um", pitch_px=None)
refused("pp.tile_image", "`pitch_um` without `mpp`", ValueError, "needs mpp", pitch_px=None, pitch_um=100)
refused("pp.tile_image", "two pitches", ValueError, "give either", pitch_um=100)
refused("pp.tile_image", "an infinite pitch", ValueError, "pass a finite number", pitch_px=INF)
refused("pp.tile_image", "words as pitch", TypeError, "pass a number", pitch_px="25")
refused("pp.tile_image", "a pitch below one pixel", ValueError, "at least 1", pitch_px=0.1)
refused("pp.tile_image", "a pitch larger than the image", ValueError, "check pitch and mpp", pitch_px=10_000)
refused("pp.tile_image", "an unknown layout", ValueError, "either 'hex' or 'square'", layout="irregular")
refused("pp.tile_image", "more tissue than there is", ValueError, "lower min_tissue", min_tissue=1.5)
refused("pp.tile_image", "a slash in the name of the section", ValueError, "section='a/b' is not a legal key", section="a/b")
refused("pp.tile_image", "`library_key` that is taken", ValueError, "choose another", library_key="array_row")
refused("pp.tile_image", "`thumbnail_px=0`", ValueError, "at least one", thumbnail_px=0)
refused("pp.tile_image", "a file that does not exist", FileNotFoundError, "does not exist", lambda _image: "slide.tif")
refused("pp.tile_image", "no image", ValueError, "expected grey, RGB or RGBA", lambda _image: np.zeros(3))
refused("pp.tile_image", "nothing", ValueError, "expected grey, RGB or RGBA", lambda _image: [None])

# pp.high_mean_high_variance_genes

PANEL = "pp.high_mean_high_variance_genes"
refused(PANEL, "more genes than there are", ValueError, "genes are highly variable", n_genes=1000)
refused(PANEL, "`n_genes=0`", ValueError, "at least one", n_genes=0)
refused(PANEL, "half a gene", TypeError, "pass a whole number", n_genes=2.5)
refused(PANEL, "`cutoff=0`", ValueError, "at least one", cutoff=0)
refused(PANEL, "`n_top_genes=0`", ValueError, "at least one", n_top_genes=0)
refused(PANEL, "an unknown extra gene", KeyError, "are not in adata.var_names", extra_genes=["TP53"])
refused(PANEL, "one unknown extra gene as text", KeyError, "['TP53'] are not in", extra_genes="TP53")
refused(PANEL, "a misspelt column of symbols", KeyError, "is not in adata.var", gene_symbols="symbol")
refused(PANEL, "names of genes that are not unique", ValueError, "var_names_make_unique", same_genes)
refused(PANEL, "logarithms in place of counts", ValueError, "pass raw counts", with_x(lambda x: x.log1p()))
refused(PANEL, "infinite counts", ValueError, "pass raw counts", with_value(INF))
refused(PANEL, "a section of one spot", ValueError, "at least 2 are needed", one_spot_section)
refused(PANEL, "no counts at all", ValueError, "at least 2 are needed", with_x(lambda x: x * 0))
refused(PANEL, "words as counts", ValueError, "numbers are needed", put("layers", "words", lambda a: np.full(a.shape, "x")), layer="words")
right(PANEL, "spots and genes without counts", "a panel", has(lambda r: len(r) == 10), with_x(lambda x: empty_gene(empty_spot(x))))
right(PANEL, "read-only arrays", "the same panel", as_expected, read_only)

# tl.train_domains

TRAIN = "tl.train_domains"
refused(TRAIN, "one domain only", ValueError, "at least two are needed", put("obs", "domain", "L1"))
refused(TRAIN, "no label at all", ValueError, "at least two are needed", put("obs", "domain", NAN))
refused(TRAIN, "measurements as labels", ValueError, "domains are categories", put("obs", "domain", lambda a: np.random.default_rng(0).random(a.n_obs)))
refused(TRAIN, "no name as `label_key`", TypeError, "label_key names the column", label_key=None)
refused(TRAIN, "smoothing over no spot", ValueError, "smoothing=0", smoothing=0)
refused(TRAIN, "`layer` beside a representation", ValueError, "are for expression", put("layers", "raw", lambda a: a.X), use_rep="spatial", layer="raw")
refused(TRAIN, "NaN in the representation", ValueError, "leave them out", poke("obsm", "spatial", 0, NAN), use_rep="spatial")
refused(TRAIN, "words as representation", ValueError, "choose its numeric columns", put("obsm", "X_own", lambda a: np.full((a.n_obs, 2), "x")), use_rep="X_own")
refused(TRAIN, "library sizes of zero", ValueError, "must be positive and finite", put("obs", "total", 0), size_factor_key="total")
refused(TRAIN, "words as library sizes", ValueError, "must be positive and finite", put("obs", "total", "many"), size_factor_key="total")
refused(TRAIN, "non-integer counts", ValueError, "pass raw counts", with_value(0.5))
refused(TRAIN, "two spots on one site", ValueError, "run strecur.pp.to_grid again", lambda a: a.obsm["grid"].__setitem__(1, a.obsm["grid"][0]))
refused(TRAIN, "`n_genes=0`", ValueError, "at least one", n_genes=0)
right(TRAIN, "a domain of one spot", "it is learned as well", has(lambda m: "alone" in m.labels), seldom, max_epochs=1)
right(TRAIN, "numbers as labels, some missing", "labels without decimals", has(lambda m: m.labels == ["0", "1", "2"]), as_numbers, max_epochs=1)
right(TRAIN, "yes and no as labels", "two domains", has(lambda m: m.labels == ["False", "True"]), as_bools, max_epochs=1)
right(TRAIN, "a category that no spot has", "it is no label", has(lambda m: m.labels == ["L1", "L2", "L3"]), unused_category, max_epochs=1)
right(TRAIN, "one gene twice", "its counts are summed", has(lambda m: len(m.features.source.genes) == 39), same_genes, max_epochs=1)
right(TRAIN, "a sparse representation", "it is used", has(lambda m: m.features.width == 2), sparse_obsm("spatial"), use_rep="spatial", max_epochs=1)

# tl.trm_domains

APPLY = "tl.trm_domains"
refused(APPLY, "an unknown selection", ValueError, "choose one of", selection="best")
refused(APPLY, "negative noise", ValueError, "must not be negative", noise=-1.0)
refused(APPLY, "noise NaN", ValueError, "pass a finite number", noise=NAN)
refused(APPLY, "`halt_threshold=1`", ValueError, "between 0 and 1", halt_threshold=1.0)
refused(APPLY, "`coverage=1.5`", ValueError, "between 0 and 1", coverage=1.5)
refused(APPLY, "words as `coverage`", TypeError, "pass a number", coverage="90%")
refused(APPLY, "`coverage` of a model that is not calibrated", ValueError, "run strecur.tl.calibrate", model=world.domain_model, coverage=0.9)
refused(APPLY, "`abstain=1`", ValueError, "below 1", abstain=1.0)
refused(APPLY, "restarts of a network with one state", ValueError, "architecture='trm'", model=lambda: world._one_state(), breadth=2)
refused(APPLY, "an unknown accelerator", ValueError, "accelerator='abacus'", accelerator="abacus")
refused(APPLY, "`key_added` names the annotation", ValueError, "choose another key_added", key_added="domain")
right(APPLY, "a section of one spot", "a domain for every spot", finite("trm_domains_proba"), one_spot_section)
right(APPLY, "one spot in all", "a domain", finite("trm_domains_proba"), first_spots(1))
right(APPLY, "a spot without counts", "a domain for every spot", finite("trm_domains_proba"), with_x(empty_spot))
right(APPLY, "names of spots that are not unique", "the same probabilities", same_keys("trm_domains_proba"), same_names)
right(APPLY, "genes in another order", "the same probabilities", same_keys("trm_domains_proba"), lambda a: a[:, ::-1].copy())
right(APPLY, "dense integers in place of sparse floats", "the same probabilities", same_keys("trm_domains_proba"), with_x(lambda x: dense(x).astype(np.int64)))
right(APPLY, "read-only arrays", "the same probabilities", same_keys("trm_domains_proba"), read_only)
right(APPLY, "counts only where there are some", "the same probabilities", same_keys("trm_domains_proba"), with_x(sparse.csc_matrix))

# tl.calibrate, tl.calibrate_halting, tl.recursion_sweep and tl.landscape

refused("tl.calibrate", "no label that the model knows", ValueError, "has a domain that the model knows", put("obs", "domain", "X"))
refused("tl.calibrate", "an unknown selection", ValueError, "choose one of", selection="best")
right("tl.calibrate", "some labels missing", "the annotated spots are used", has(lambda t: np.isfinite(t.to_numpy()).all()), lambda a: put("obs", "domain", a.obs["domain"].where(np.arange(a.n_obs) % 2 == 0))(a))
refused("tl.calibrate_halting", "`quantile=1`", ValueError, "below 1", quantile=1.0)
refused("tl.calibrate_halting", "words as `quantile`", TypeError, "pass a number", quantile="half")
refused("tl.calibrate_halting", "`depth=0`", ValueError, "at least one", depth=0)
refused("tl.calibrate_halting", "a model without halting", ValueError, "train it with halting", model=lambda: world._linear_model())
for name in ("tl.recursion_sweep", "tl.landscape"):
    refused(name, "a network with one state", ValueError, "architecture='trm'", model=lambda: world._one_state())
refused("tl.recursion_sweep", "no depth", ValueError, "at least one number", depths=())
refused("tl.recursion_sweep", "one depth without a list", TypeError, "pass a list of whole numbers", depths=3)
refused("tl.recursion_sweep", "a depth of zero", ValueError, "depths[0]=0: at least one", depths=(0, 1))
refused("tl.recursion_sweep", "halves of latent steps", TypeError, "pass a whole number", n_latent=(1.5,))
refused("tl.landscape", "`depth=1`", ValueError, "at least two steps", depth=1)
refused("tl.landscape", "`n_spots=0`", ValueError, "at least one", n_spots=0)

# tl.train_expression, tl.predict_expression and tl.calibrate_expression

TRAIN_X = "tl.train_expression"
refused(TRAIN_X, "a missing embedding", KeyError, "Run strecur.pp.embed_patches", use_rep="X_uni")
refused(TRAIN_X, "unknown genes", KeyError, "are not in adata.var_names", genes=["TP53"])
refused(TRAIN_X, "no genes", ValueError, "name at least one", genes=[])
refused(TRAIN_X, "half a gene", TypeError, "pass names", genes=2.5)
refused(TRAIN_X, "one gene by two versions", ValueError, "name it once", lambda a: setattr(a, "var_names", ["ENSG01.1", "ENSG01.2", *a.var_names[2:]]), genes=["ENSG01.1", "ENSG01.2"])
refused(TRAIN_X, "an object without genes", ValueError, "has no genes", lambda a: a[:, []].copy())
refused(TRAIN_X, "an unknown scale", ValueError, "choose one of", target="log10")
refused(TRAIN_X, "library sizes for a scale without", ValueError, "log2_normalised", put("obs", "total", 1), size_factor_key="total")
refused(TRAIN_X, "no counts at all", ValueError, "at least 2", with_x(lambda x: x * 0))
refused(TRAIN_X, "negative counts", ValueError, "pass raw counts", with_value(-1))
refused(TRAIN_X, "NaN for all spots", ValueError, "is NaN for all", poke("obsm", "X_patch", slice(None), NAN))
refused(TRAIN_X, "NaN in some features of a spot", ValueError, "leave them out", poke("obsm", "X_patch", (0, 0), NAN))
refused(TRAIN_X, "words as embedding", ValueError, "choose its numeric columns", put("obsm", "X_patch", lambda a: np.full((a.n_obs, 2), "x")))
refused(TRAIN_X, "views of another width", ValueError, "expected spots × 8", put("obsm", "X_patch_d4", lambda a: np.ones((a.n_obs, 8, 2))))
right(TRAIN_X, "a gene without counts", "it has no correlation", has(lambda m: np.isnan(m.reliability.loc["g3", "pcc"])), with_x(empty_gene), max_epochs=1)
right(TRAIN_X, "one gene as text", "a model of it", has(lambda m: m.genes == ["g1"]), genes="g1", max_epochs=1)
right(TRAIN_X, "one gene named twice", "it is predicted once", has(lambda m: m.genes == ["g1", "g2"]), genes=["g1", "g2", "g1"], max_epochs=1)

PREDICT = "tl.predict_expression"
refused(PREDICT, "an embedding of another encoder", ValueError, "Run strecur.pp.embed_patches", lambda a: a.uns["X_patch"].update(encoder="uni"))
refused(PREDICT, "an embedding of other weights", ValueError, "with the same weights", lambda a: a.uns["X_patch"].update(probe=np.ones(12)))
refused(PREDICT, "an embedding of another width", ValueError, "columns; the model was trained on", lambda a: a.obsm.__setitem__("X_patch", a.obsm["X_patch"][:, :5]))
refused(PREDICT, "no views of the patches", KeyError, "views=8", drop("obsm", "X_patch_d4"))
refused(PREDICT, "a missing embedding", KeyError, "Run strecur.pp.embed_patches", drop("obsm", "X_patch"))
refused(PREDICT, "a selection of domains", ValueError, "choose one of", selection="vote")
refused(PREDICT, "one sample", ValueError, "0 or at least 2", model=lambda: world._count_model(), n_samples=1)
refused(PREDICT, "samples at no temperature", ValueError, "must be positive", model=lambda: world._count_model(), n_samples=2, temperature=0.0)
refused(PREDICT, "samples of a model without counts", ValueError, "architecture='genar'", n_samples=3)
refused(PREDICT, "`coverage` of a model that is not calibrated", ValueError, "calibrate_expression", model=world.expression_model, coverage=0.9)
refused(PREDICT, "stopping early without halting", ValueError, "trained without halting", model=lambda: world._count_model(), stop_early=True)
right(PREDICT, "a spot without embedding", "NaN for this spot alone", lambda _r, a, e: np.isnan(a.obsm["trm_expression"]).all(axis=1).sum() == 1, each(poke("obsm", "X_patch", 0, NAN), poke("obsm", "X_patch_d4", 0, NAN)))
right(PREDICT, "an object without genes", "the same prediction", same_keys("trm_expression"), lambda a: a[:, []].copy())
right(PREDICT, "one spot in all", "a prediction", finite("trm_expression"), first_spots(1))
refused("tl.calibrate_expression", "a linear model", ValueError, "only networks are calibrated", model=lambda: world._linear_model())
refused("tl.calibrate_expression", "a gene that was not measured", ValueError, "calibrate on sections that have all", lambda a: a[:, 1:].copy())
refused("tl.calibrate_expression", "no counts", ValueError, "no spot has counts", with_x(lambda x: x * 0))

# tl.cluster_latent

CLUSTER = "tl.cluster_latent"
refused(CLUSTER, "one cluster", ValueError, "at least 2", n_domains=1)
refused(CLUSTER, "half a cluster", TypeError, "pass a whole number", n_domains=2.5)
refused(CLUSTER, "more clusters than spots", ValueError, "too few for", first_spots(3))
refused(CLUSTER, "an unknown method", ValueError, "choose one of", method="leiden")
refused(CLUSTER, "a negative weight", ValueError, "must not be negative", spatial_weight=-1)
refused(CLUSTER, "a weight NaN", ValueError, "pass a finite number", spatial_weight=NAN)
refused(CLUSTER, "a missing latent", KeyError, "use_rep names a representation", use_rep="X_pca")
refused(CLUSTER, "NaN in the latent", ValueError, "leave them out", poke("obsm", "trm_domains_latent", 0, NAN))
refused(CLUSTER, "coordinates that are missing", KeyError, "spatial_key names the coordinates", spatial_weight=1.0, spatial_key="xy")
refused(CLUSTER, "NaN in coordinates", ValueError, "leave out spatial_weight", poke("obsm", "spatial", 0, NAN), spatial_weight=1.0)
refused(CLUSTER, "a misspelt `library_key`", KeyError, "there are ['section'", spatial_weight=1.0, library_key="sektion")
refused(CLUSTER, "`key_added` names the annotation", ValueError, "choose another key_added", key_added="domain")
right(CLUSTER, "a latent of zeros in one spot", "clusters of all spots", lambda _r, a, e: bool(a.obs["latent_domains"].notna().all()), poke("obsm", "trm_domains_latent", 0, 0.0))

# get and pl

refused("get.expression", "a missing prediction", KeyError, "Run strecur.tl.predict_expression", key="expression")
refused("get.expression", "a lost record", KeyError, "Run strecur.tl.predict_expression", drop("uns", "trm_expression"))
refused("get.expression", "a prediction cut by hand", ValueError, "Run strecur.tl.predict_expression", lambda a: a.obsm.__setitem__("trm_expression", a.obsm["trm_expression"][:, :2]))
for name in (
    "pl.domains",
    "pl.refinement",
    "pl.halt_steps",
    "pl.halt_summary",
    "pl.confidence",
    "pl.reliability",
    "pl.convergence",
):
    refused(name, "a missing result", KeyError, "Run strecur.tl.trm_domains", key="domains")
    refused(name, "an unknown section", KeyError, "there are", library_id="S9")
    refused(name, "numbers in place of axes", TypeError, "pass matplotlib axes", ax=wrong_axes)
    refused(name, "the wrong number of axes", ValueError, "ax holds 7", ax=no_axes)
for name in ("pl.domains", "pl.confidence", "pl.reliability"):
    refused(name, "a misspelt `truth`", KeyError, "there are", truth="layer")
refused("pl.domains", "no linear baseline", KeyError, "Run strecur.tl.trm_domains", drop("obs", "trm_domains_linear"))
refused("pl.domains", "spots outside the image", ValueError, "check spatial_key and the scale factors", put("obsm", "spatial", lambda a: a.obsm["spatial"] + 1e6))
refused("pl.domains", "opacity above one", ValueError, "between 0 and 1", alpha=5)
refused("pl.refinement", "steps of categories that were dropped", ValueError, "use the whole object", subset_of_labels)
refused("pl.refinement", "steps that are missing", KeyError, "Run strecur.tl.trm_domains", drop("obsm", "trm_domains_steps"))
refused("pl.halt_summary", "a column that varies in a section", ValueError, "must be constant in each section", color="domain")
refused("pl.halt_summary", "a score that needs the truth", ValueError, "truth=...", score="ari")
refused("pl.halt_summary", "an unknown score", KeyError, "need truth=...", score="speed")
refused("pl.halt_summary", "a model that cannot halt", ValueError, "without halting", lambda a: a.uns["trm_domains"]["sections"].__setitem__("halt_step", NAN))
refused("pl.reliability", "no annotated spot", ValueError, "is annotated", put("obs", "domain", NAN))
refused("pl.reliability", "`n_bins=0`", ValueError, "at least one", n_bins=0)
for name in ("pl.recursion_sweep", "pl.landscape"):
    refused(name, "something else than a table", TypeError, "expected a table from strecur.tl", lambda _table: [1, 2])
    refused(name, "a table without rows", ValueError, "has no rows", lambda table: table[:0])
    refused(name, "a table without a column", KeyError, "It is made with strecur.tl", lambda table: table.drop(columns="residual"))
    refused(name, "an unknown score", KeyError, "there are", score="speed")
refused("pl.landscape", "an unknown section", KeyError, "there are", library_id="S9")
refused("pl.marker_panel", "no genes", ValueError, "pass a list of names", genes=lambda: [])
refused("pl.marker_panel", "unknown genes", KeyError, "predicted are", genes=lambda: ["TP53"])
refused("pl.marker_panel", "numbers as genes", TypeError, "pass names", genes=3)
refused("pl.marker_panel", "no genes in a row", ValueError, "at least one", genes_per_row=0)
refused("pl.marker_panel", "a missing prediction", KeyError, "Run strecur.tl.predict_expression", key="expression")
refused("pl.marker_panel", "a layer without counts", ValueError, "pass raw counts", put("layers", "log", lambda a: a.X.log1p()), layer="log")
refused("pl.gene_scores", "a missing prediction", KeyError, "Run strecur.tl.predict_expression", key="expression")
refused("pl.gene_scores", "genes that are not predicted", KeyError, "has g0", genes=["TP53"])
refused("pl.gene_scores", "nothing measured", ValueError, "nothing to compare with", other_panel)
refused("pl.gene_scores", "a negative number of names", ValueError, "at least 0", n_label=-1)
refused("pl.training", "something without history", TypeError, "expected a fitted model", lambda _model: "model")
refused("pl.training", "a history without epochs", ValueError, "has no epochs", lambda model: model.history[:0])
refused("pl.training", "a history without a column", KeyError, "there are", lambda model: model.history.drop(columns="train_loss"))

# metrics

TWO = ["domain_scores", "expression_scores", "pcc_per_gene", "rvd", "rvd_std", "gene_structure", "moran_structure"]
TWO += ["pooled_scores", "negative_binomial_log_likelihood", "zero_scores", "library_size_correlation"]
for name in TWO:
    refused(f"metrics.{name}", "a prediction of fewer spots", ValueError, "must match", predicted=lambda: np.ones((3, 6)))
for name in TWO[1:]:
    refused(f"metrics.{name}", "single values NaN", ValueError, "leave those genes out", lambda x: x.__setitem__((0, 0), NAN))
    refused(f"metrics.{name}", "words in place of numbers", ValueError, "expected numbers", lambda x: x.astype(str) + "x")
for name in ("expression_scores", "pcc_per_gene", "pooled_scores"):
    right(f"metrics.{name}", "a spot of NaN", "it is left out", has(lambda r: np.isfinite(list(r.values()) if isinstance(r, dict) else r).all()), lambda x: x.__setitem__(0, NAN))
refused("metrics.domain_scores", "probabilities in place of labels", ValueError, "one label per spot", predicted=lambda: np.ones((30, 3)))
right("metrics.domain_scores", "one label only", "an adjusted Rand index of 0", has(lambda r: r["ari"] == 0), predicted=lambda: ["a"] * 30)
right("metrics.domain_scores", "no label at all", "NaN, and no spots", has(lambda r: np.isnan(r["ari"]) and r["n_spots"] == 0), lambda x: x.where(x == "never"))
right("metrics.domain_scores", "1.0 beside '1'", "the same label", has(lambda r: r["accuracy"] == 1), lambda x: pd.Series([1.0, 2.0, NAN]), predicted=lambda: ["1", "2", "2"])
refused("metrics.expected_calibration_error", "logits", ValueError, "expected probabilities", proba=lambda: 5 * world.probabilities() - 1)
refused("metrics.expected_calibration_error", "a column too many", ValueError, "expected spots × 2 labels", labels=lambda: ["a", "b"])
refused("metrics.expected_calibration_error", "no bins", ValueError, "at least one", n_bins=0)
refused("metrics.path_dependence", "one row without a table", ValueError, "sections × restarts", lambda x: x[0])
refused("metrics.path_dependence", "words", ValueError, "expected numbers", lambda x: x.astype(str) + "x")
right("pl.gene_scores", "one gene as text", "it is named", has(lambda ax: [t.get_text() for t in ax.texts] == ["g1"]), genes="g1")
refused("metrics.pcc_top", "the best zero", ValueError, "at least one", k=0)
refused("metrics.pcc_top", "the best minus one", ValueError, "at least one", k=-1)
right("metrics.pcc_top", "more than there are", "the mean of all", equals(0.3), k=100)
right("metrics.pcc_per_gene", "a constant gene", "NaN for it", has(lambda r: np.isnan(r[0]) and np.isfinite(r[1:]).all()), lambda x: x.__setitem__((slice(None), 0), 1.0))
refused("metrics.moran_structure", "a graph of fewer spots", ValueError, "expected spots × spots", graph=lambda: np.ones((3, 3)))
refused("metrics.moran_structure", "no graph", ValueError, "expected spots × spots", graph=lambda: None)
refused("metrics.lattice_graph", "an unknown layout", ValueError, "there are", layout="auto")
refused("metrics.lattice_graph", "three columns", ValueError, "spots × 2", lambda x: np.ones((5, 3)))
refused("metrics.lattice_graph", "NaN", ValueError, "spots × 2", lambda x: np.where(x == 0, NAN, x))
refused("metrics.lattice_graph", "sections of fewer spots", ValueError, "pass one per spot", sections=lambda: ["a"])
refused("metrics.depth_normalised", "a negative sum", ValueError, "must be positive", target_sum=-1.0)
refused("metrics.depth_normalised", "one row without a table", ValueError, "expected spots × genes", lambda x: x[0])
right("metrics.depth_normalised", "a spot without counts", "NaN for it", has(lambda r: np.isnan(r[0]).all() and np.isfinite(r[1:]).all()), lambda x: x.__setitem__(0, 0.0))
for name in ("negative_binomial_log_likelihood", "zero_scores", "library_size_correlation", "moment_dispersion"):
    refused(f"metrics.{name}", "logarithms in place of counts", ValueError, "counts must be whole numbers", lambda x: np.log2(x + 1))
refused("metrics.negative_binomial_log_likelihood", "a negative dispersion", ValueError, "see moment_dispersion", dispersion=-1.0)
refused("metrics.negative_binomial_log_likelihood", "a dispersion of fewer genes", ValueError, "see moment_dispersion", dispersion=lambda: np.ones(2))
refused("metrics.negative_binomial_log_likelihood", "`min_mean=0`", ValueError, "must be positive", min_mean=0.0)

# datasets, models and settings

SYNTHETIC = "datasets.synthetic_sections"
refused(SYNTHETIC, "no sections", ValueError, "at least 1 is needed", n_sections=0)
refused(SYNTHETIC, "half a row", TypeError, "pass a whole number", n_rows=12.5)
refused(SYNTHETIC, "more layers than fit", ValueError, "at most 3 do", n_domains=9)
refused(SYNTHETIC, "an unknown layout", ValueError, "is not one of", layout="triangle")
refused(SYNTHETIC, "a negative seed", ValueError, "at least 0", rng=-1)
refused(SYNTHETIC, "words as seed", TypeError, "pass a whole number", rng="seed")
# Cross-validation

CROSS, BENCHMARK = "tl.cross_validate", "pl.benchmark"
refused(CROSS, "an unknown task", ValueError, "choose one of ['domains', 'expression']", task="cells")
refused(CROSS, "domains without a column of labels", ValueError, "needs label_key", label_key=None)
refused(CROSS, "a column of labels that does not exist", KeyError, "there are", label_key="layer")
refused(CROSS, "labels for expression", ValueError, "is for task='domains'", task="expression")
refused(CROSS, "a library_key that does not exist", KeyError, "there are", library_key="slide")
refused(CROSS, "a group_key that does not exist", KeyError, "there are", group_key="clinic")
refused(CROSS, "one group alone", ValueError, "smaller groups", lambda adata: adata.obs.__setitem__("donor", "D1"), group_key="donor", groups=None)
refused(CROSS, "a group that does not exist", KeyError, "there are ['S1', 'S2', 'S3']", groups=["S9"])
refused(CROSS, "an argument that the verb does not have", ValueError, "training cannot hold ['epochs']", training={"epochs": 3})
refused(CROSS, "the seed among the arguments of training", ValueError, "arguments of cross_validate itself", training={"rng": 3})
refused(CROSS, "an argument of prediction that changes no score", ValueError, "prediction cannot hold", prediction={"coverage": 0.9})
refused(CROSS, "no seed", ValueError, "at least one is needed", seeds=())
refused(CROSS, "a seed twice", ValueError, "each once", seeds=(1, 1))
refused(CROSS, "the linear model among the networks", ValueError, "without being asked for", architectures=("trm", "linear"))
refused(BENCHMARK, "a score that is not in the table", KeyError, "there are", score="nmi")
refused(BENCHMARK, "a table without methods", KeyError, "strecur.tl.cross_validate", lambda table: table.drop(columns="method"))
refused(BENCHMARK, "an empty table", ValueError, "no rows", lambda table: table.iloc[:0])
refused(BENCHMARK, "several axes", ValueError, "1 panels", ax=no_axes)

# Public sections and protocols

for name, known in (("dlpfc", "151507"), ("her2st", "A1"), ("mob", "Rep1")):
    refused(f"datasets.{name}", "a section that does not exist", ValueError, f"{name} has ['{known}'", sections=["Z9"])
    refused(f"datasets.{name}", "no section", ValueError, "empty", sections=[])
    refused(f"datasets.{name}", "a section twice", ValueError, "repeated", sections=[known, known])
refused("datasets.read_split", "a split that does not exist", KeyError, "her2st-b1-v1", name="her2st")
refused("datasets.read_genes", "a gene list that does not exist", KeyError, "her2st-300-training-v1", name="her2st")

refused("load_model", "a folder that does not exist", FileNotFoundError, "written by model.save(path)", lambda _path: "nowhere")
refused("load_model", "a number as path", TypeError, "path of a model folder", lambda _path: 5)

# fmt: on


def outcome(case: Case) -> str:
    return f"right: {case.says}" if case.error is None else f"`{case.error.__name__}`: … {case.says} …"


HEADER = """# Errors

What is wrong is refused before anything is computed or written, with a message that names the fix:

- `KeyError`: something is not in the object; the message lists what is, and the call that makes it.
- `ValueError`: a value or the data are out of range or do not fit together.
- `TypeError`: an argument is of the wrong kind.
- `FileNotFoundError`, `FileExistsError`, `OSError`: a file is missing, in the way or damaged.

After an error the AnnData and the model are as they were. The tables list {n} inputs that are tried in every run of the
tests: {n_refused} are refused with this error and this phrase in the message, {n_right} only look wrong and give a right
result. `python tests/bad_inputs.py` makes this page.
"""


def page() -> str:
    """Write the page of the documentation."""
    kinds = Counter(case.error is None for case in CASES)
    lines = [HEADER.format(n=len(CASES), n_refused=kinds[False], n_right=kinds[True])]
    order = [*world.VALID, *world.NEEDS_FILES]
    for call in sorted(dict.fromkeys(case.call for case in CASES), key=order.index):
        lines += [f"## `{call}`", "", "| input | what comes of it |", "| --- | --- |"]
        lines += [f"| {case.wrong} | {outcome(case)} |" for case in CASES if case.call == call]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
