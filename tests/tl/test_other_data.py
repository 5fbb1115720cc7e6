"""New data that differ from those of the training: spots outside the tissue, other lattices, other coordinates."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import calls
import numpy as np
import pandas as pd
import pytest
import small_world as world
from toy_histology import train as train_on_patches

import strecur as st
from strecur._tissue import find_background
from strecur.nn import WindowedConfig

if TYPE_CHECKING:
    from anndata import AnnData


def with_background() -> tuple[object, object]:
    """A section alone, and the same among spots outside the tissue."""
    inside = world.sections()
    inside = inside[inside.obs["section"] == "S1"].copy()
    whole = world.sections()
    whole.obs["in_tissue"] = (whole.obs["section"] == "S1").astype(int)
    whole.obs["section"] = "S1"
    whole.obs["array_row"] += 100 * (whole.obs["in_tissue"] == 0) * (1 + np.arange(whole.n_obs))
    for adata in (inside, whole):
        adata.obsm.pop("spatial")
        adata.uns.pop("spatial")
        st.pp.to_grid(adata, library_key="section")
    return inside, whole


@pytest.mark.parametrize("kind", [int, bool, "category"])
def test_spots_outside_the_tissue_get_no_result_and_change_none(kind, caplog):
    inside, whole = with_background()
    whole.obs["in_tissue"] = whole.obs["in_tissue"].astype(kind)
    options = {"inference": {"breadth": 2}, "coverage": 0.9}
    for adata in (inside, whole):
        st.tl.trm_domains(adata, world.calibrated(), **options)
    assert "lie outside the tissue" in caplog.text
    here = np.isin(whole.obs_names, inside.obs_names)
    assert 0 < here.sum() < whole.n_obs
    for slot in ("obs", "obsm"):
        for key in [k for k in getattr(inside, slot) if k.startswith("trm_domains")]:
            found, expected = getattr(whole, slot)[key], getattr(inside, slot)[key]
            assert found.dtype == expected.dtype, key
            np.testing.assert_array_equal(np.asarray(found[here]), np.asarray(expected))
    assert whole.obs["trm_domains"][~here].isna().all()
    assert np.isnan(whole.obsm["trm_domains_proba"][~here]).all()
    assert (whole.obsm["trm_domains_steps"][~here] == -1).all()
    assert (whole.obs["trm_domains_settling_step"][~here] == 0).all()
    assert not whole.obsm["trm_domains_set"][~here].any()
    st.tl.cluster_latent(whole, 2)
    assert whole.obs["latent_domains"][~here].isna().all()
    assert whole.obs["latent_domains"][here].notna().all()
    for plot in (st.pl.domains, st.pl.refinement, st.pl.halt_steps):
        plot(whole)


@pytest.mark.parametrize("values", [[1, 0], [True, False], ["1", "0"], ["True", "False"], [1.0, 0.0], ["1.0", "0.0"]])
def test_every_type_of_in_tissue_is_read(values):
    adata = world.sections()[:2].copy()
    adata.obs["in_tissue"] = values
    assert find_background(adata).tolist() == [False, True]
    adata.obs["in_tissue"] = adata.obs["in_tissue"].astype("category")
    assert find_background(adata).tolist() == [False, True]


def test_spots_outside_the_tissue_are_not_learned_from():
    inside, whole = with_background()
    options = {"features": {"n_components": 4, "neighbours": (7,)}, "training": {"max_epochs": 1}}
    options["backbone"] = world.NETWORK["backbone"]
    models = [st.tl.train_domains(adata, "domain", **options) for adata in (inside, whole)]
    for adata, model in zip((inside, whole), models, strict=True):
        st.tl.trm_domains(adata, model)
    here = np.isin(whole.obs_names, inside.obs_names)
    np.testing.assert_allclose(whole.obsm["trm_domains_proba"][here], inside.obsm["trm_domains_proba"], atol=1e-5)


def test_no_spot_inside_the_tissue_is_refused():
    adata = world.sections()
    adata.obs["in_tissue"] = 0
    with pytest.raises(ValueError, match="none of the .* spots is inside the tissue"):
        st.tl.trm_domains(adata, world.domain_model())


def square(scale: float = 100.0, um: float | None = None):
    adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_genes=40, n_domains=3, layout="square")
    adata.obsm["spatial"] = adata.obsm["spatial"] * scale / 100
    if um is not None:
        adata.uns["spatial"] = {name: {"scalefactors": {"microns_per_pixel": um}} for name in ("S1", "S2")}
    st.pp.to_grid(adata, library_key="section")
    return adata


@cache
def trained_on(scale: float, um: float | None) -> st.models.DomainModel:
    options = {"backbone": world.NETWORK["backbone"], "features": {"n_components": 4, "neighbours": ()}}
    return st.tl.train_domains(square(scale, um), "domain", **options, training={"max_epochs": 1, "validation": None})


def test_a_model_says_that_the_layout_differs(caplog):
    st.tl.trm_domains(world.sections(), world.domain_model())
    assert not caplog.text
    adata = square()
    adata.var_names = world.sections().var_names
    st.tl.trm_domains(adata, world.domain_model())
    assert "trained on lattices of layout 'hex', and this one is 'square'" in caplog.text


@pytest.mark.parametrize(
    ("trained", "new", "warns"),
    [
        ((100, None), (100, None), False),
        ((100, None), (200, None), True),
        ((100, None), (40, None), True),
        ((100, 0.5), (200, 0.25), False),
        ((100, 0.5), (100, 1.0), True),
        ((100, 0.5), (110, 0.5), False),
    ],
)
def test_a_model_says_that_bins_have_another_size(trained, new, warns, caplog, tmp_path):
    trained_on(*trained).save(tmp_path / "model")
    model = st.load_model(tmp_path / "model")
    caplog.clear()
    st.tl.trm_domains(square(*new), model)
    assert ("bins of another size" in caplog.text) == warns


def test_every_function_takes_the_coordinates_of_the_lattice():
    """The array of a section is turned against its image; the coordinates have another key than "spatial"."""
    adata = world.pair()
    results = []
    for key in ("spatial", "on_slide"):
        given = adata.copy()
        given.obsm[key] = given.obsm.pop("spatial")
        st.pp.to_grid(given, library_key="section", spatial_key=key)
        model = world.expression_model()
        st.tl.predict_expression(given, model)
        found = st.get.expression(given)
        assert key in found.obsm
        st.pl.marker_panel(given, [model.genes[0]], img=False, library_id="S1")
        results.append(given.obsm["trm_expression"])
    np.testing.assert_array_equal(*results)


def test_annotation_and_patches_lie_where_the_lattice_does(tmp_path):
    """Without spatial_key, all functions use the coordinates the lattice was made of."""
    adata = world.sections()
    adata = adata[adata.obs["section"] == "S1"].copy()
    adata.obs = adata.obs.drop(columns=["array_row", "array_col"])
    adata.obsm["own"] = adata.obsm.pop("spatial")
    adata.obsm["spatial"] = adata.obsm["own"][::-1] * 3 + 1000
    st.pp.to_grid(adata, spatial_key="own")
    image = np.random.default_rng(0).integers(0, 255, (*(adata.obsm["own"].max(axis=0)[::-1].astype(int) + 50), 3))
    by_key = {}
    for key in (None, "own", "spatial"):
        given = {} if key is None else {"spatial_key": key}
        path = tmp_path / f"{key}.geojson"
        st.get.write_annotation(adata, path, "domain", **given)
        outlines = st.get.outlines(adata, "domain", **given)
        own = adata.copy()
        st.pp.read_annotation(own, tmp_path / "None.geojson", scale=1.0 if key != "spatial" else 3.0, **given)
        by_key[key] = path.read_text(), outlines.total_bounds.tolist(), own.obs["annotation"].tolist()
    assert by_key[None] == by_key["own"]
    assert by_key[None][:2] != by_key["spatial"][:2]
    encoder = {"encoder": lambda patches: patches.mean(axis=(1, 2)), "patches": {"px": 8}}
    found = [
        st.pp.embed_patches(adata, image.astype(np.uint8), **encoder, **given, copy=True).obsm["X_patch"]
        for given in ({}, {"spatial_key": "own"})
    ]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ValueError, match="image"):
        st.pp.embed_patches(adata, image.astype(np.uint8), **encoder, spatial_key="spatial")


def with_table(adata: AnnData, key: str) -> AnnData:
    """Make a representation a table with named columns."""
    names = [f"latent {i}" for i in range(adata.obsm[key].shape[1])]
    adata.obsm[key] = pd.DataFrame(np.asarray(adata.obsm[key]), adata.obs_names, names)
    return adata


def test_named_columns_of_a_representation_are_read_by_name(sections, tmp_path):
    sections.obsm["X_latent"] = np.random.default_rng(0).normal(size=(sections.n_obs, 8)).astype(np.float32)
    sections.obsm["X_latent"] += sections.obs["domain"].astype("category").cat.codes.to_numpy()[:, None] * np.arange(8)
    sections = with_table(sections, "X_latent")
    small = WindowedConfig(width=32, n_heads=2, window=4, n_global=1)
    model = calls.train_domains(sections, "domain", use_rep="X_latent", backbone=small, max_epochs=1)
    model.save(tmp_path / "model")
    found = []
    for order in (slice(None), slice(None, None, -1)):
        new = sections.copy()
        new.obsm["X_latent"] = new.obsm["X_latent"].iloc[:, order]
        st.tl.trm_domains(new, st.load_model(tmp_path / "model"))
        found.append(new.obsm["trm_domains_proba"])
    np.testing.assert_array_equal(*found)
    new.obsm["X_latent"] = new.obsm["X_latent"].rename(columns={"latent 0": "batch"})
    with pytest.raises(ValueError, match=r"other columns than in training.*'batch', 'latent 0'"):
        st.tl.trm_domains(new, model)


def test_named_columns_of_embeddings_are_read_by_name(pair):
    del pair.obsm["X_patch_d4"]
    model = train_on_patches(with_table(pair, "X_patch"))
    found = []
    for order in (slice(None), slice(None, None, -1)):
        new = pair.copy()
        new.obsm["X_patch"] = new.obsm["X_patch"].iloc[:, order]
        st.tl.predict_expression(new, model)
        found.append(new.obsm["trm_expression"])
    np.testing.assert_array_equal(*found)
