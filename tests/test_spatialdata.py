"""SpatialData goes in everywhere: objects as readers give them, images by element, results to disk and into plots."""

from __future__ import annotations

import calls
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import spatialdata as sd
from anndata import AnnData
from spatialdata_readers import PIXEL_UM, visium, visium_hd, xenium

import strecur as st
from strecur import pl
from strecur.nn import WindowedConfig

mpl.use("Agg")

MEANS = st.pp.Encoder("means", lambda patches: patches.mean(axis=(1, 2)), 3, size=8)
RUN = {"library_key": "region"}
SMALL = {"backbone": WindowedConfig(width=32, n_heads=2, window=4, n_global=1), "neighbours": (7,), "max_epochs": 1}


@pytest.fixture(scope="module")
def _visium():
    sections = [visium(name) for name in ("S1", "S2")]
    return sd.concatenate(sections, region_key="region", instance_key="spot_id", concatenate_tables=True)


def with_spare_table(sdata):
    """Return the object with a copy of its table, and another that annotates nothing."""
    tables = {"table": sdata["table"].copy(), "spare": AnnData(obsm={"spatial": np.eye(3)[:, :2]})}
    return sd.SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables=tables)


@pytest.fixture
def two(_visium):
    """Return two Visium sections in one object, free to be changed."""
    return with_spare_table(_visium)


@pytest.fixture(scope="module")
def done(_visium):
    """Return the sections with the results of every tool, each called with the whole object, and the models."""
    sdata = with_spare_table(_visium)
    where = {"table_key": "table"}
    st.pp.to_grid(sdata, library_key="region", **where)
    domains = calls.train_domains(sdata, "domain", **RUN, **SMALL, **where, n_components=6, validation=None)
    calls.trm_domains(sdata, domains, **RUN, **where)
    st.tl.cluster_latent(sdata, 3, library_key="region", **where)
    st.tl.suggest_annotation(sdata, domains, n=3, **where)
    images = {name: f"{name}_full_image" for name in ("S1", "S2")}
    options = {"encoder": MEANS, "patches": {"px": 80}, "library_key": "region", "views": 8}
    st.pp.embed_patches(sdata, images, **options, **where)
    genes = list(sdata["table"].var_names[:5])
    expression = calls.train_expression(sdata, **RUN, **SMALL, **where, genes=genes, n_components=3, n_networks=1)
    calls.predict_expression(sdata, expression, **RUN, **where)
    return sdata, domains, expression


def test_results_are_those_of_the_table_alone(two, done):
    sdata, domains, _ = done
    alone = two["table"].copy()
    st.pp.to_grid(alone, library_key="region")
    calls.trm_domains(alone, domains, **RUN)
    np.testing.assert_array_equal(sdata["table"].obsm["trm_domains_proba"], alone.obsm["trm_domains_proba"])
    assert alone.uns["grid"]["layout"] == "hex"
    assert set(sdata["spare"].obsm) == {"spatial"}  # the other table is as it was


def test_what_only_looks_takes_it_too(done):
    sdata, domains, expression = done
    where = {"table_key": "table"}
    quick = {**RUN, **where}
    sweep = calls.recursion_sweep(sdata, domains, **quick, label_key="domain", depths=(1,), n_latent=(1,), n_deep=(1,))
    assert set(sweep["section"]) == {"S1", "S2"}
    assert set(calls.landscape(sdata, domains, **quick, depth=2, breadth=2)["section"]) == {"S1", "S2"}
    calls.calibrate(sdata, domains, "domain", **quick)
    calls.calibrate_halting(sdata, domains, **quick, depth=2)
    calls.calibrate_expression(sdata, expression, **quick)
    options = {"architectures": "feedforward", "seeds": (0,), "groups": ["S2"]}
    train = calls.grouped("train_domains", **SMALL, n_components=6, validation=None)
    table = st.tl.cross_validate(sdata, "domain", **quick, **options, train=train)
    assert set(table["method"]) == {"feedforward", "feedforward, network alone", "linear", "linear, single spots"}
    panel = st.pp.high_mean_high_variance_genes(sdata, 10, library_key="region", **where)
    assert len(panel) == 10
    found = st.get.expression(sdata, **where)
    assert list(found.obs_names) == list(sdata["table"].obs_names)
    assert found.n_vars == 5


@pytest.mark.parametrize(
    "draw",
    [
        pl.domains,
        pl.refinement,
        pl.confidence,
        pl.halt_steps,
        pl.halt_summary,
        pl.convergence,
        lambda *a, **k: pl.reliability(*a, truth="domain", **k),
        lambda *a, **k: pl.confusion(*a, truth="domain", **k),
        pl.gene_scores,
        pl.slide_tokens,
        pl.suggestions,
        lambda sdata, **k: pl.marker_panel(sdata, list(sdata["table"].var_names[:2]), library_id="S1", **k),
    ],
)
def test_plots_take_it(done, draw):
    assert draw(done[0], table_key="table") is not None
    with pytest.raises(KeyError, match=r"\['table', 'spare'\]|\['spare', 'table'\]"):
        draw(done[0], table_key="nonsense")
    plt.close("all")


def test_results_are_written_read_and_drawn_by_spatialdata_plot(done, tmp_path):
    images = {name: image for name, image in done[0].images.items() if "lowres" in name}  # the large ones take long
    sdata = sd.SpatialData(images=images, shapes=dict(done[0].shapes), tables=dict(done[0].tables))
    sdata.write(tmp_path / "results.zarr")
    again = sd.read_zarr(tmp_path / "results.zarr")
    before, after = sdata["table"], again["table"]
    assert list(before.obs["trm_domains"]) == list(after.obs["trm_domains"])
    for key in ("grid", "trm_domains_proba", "X_patch_d4", "trm_expression"):
        np.testing.assert_array_equal(before.obsm[key], after.obsm[key])
    pl.domains(again, table_key="table")
    assert st.get.expression(again, table_key="table").n_vars == 5
    pytest.importorskip("spatialdata_plot")
    figure, ax = plt.subplots()
    again.pl.render_shapes("S1", color="trm_domains", table_name="table").pl.show(coordinate_systems="S1", ax=ax)
    drawn = max(len(collection.get_paths()) for collection in ax.collections)  # the others are those of the legend
    assert drawn == (after.obs["region"] == "S1").sum()
    plt.close(figure)


def expected_colours(pixels, shape):
    """Red and green that the gradient has at some pixels (x, y)."""
    height, width = shape
    return 255 * np.column_stack([pixels[:, 0] / (width - 1), pixels[:, 1] / (height - 1)])


@pytest.mark.parametrize("size", ["full", "hires", "lowres"])
def test_visium_images_are_found_by_element_at_their_scale(two, size):
    """Spots and image are both in several coordinate systems, and the full image has several scales."""
    images = {name: f"{name}_{size}_image" for name in ("S1", "S2")}
    st.pp.embed_patches(two, images, encoder=MEANS, patches={"px": 200}, library_key="region", table_key="table")
    table, factor = two["table"], {"full": 1.0, "hires": 0.25, "lowres": 0.0625}[size]
    for name in images:
        rows = np.flatnonzero(table.obs["region"] == name)
        element = two[images[name]]
        shape = (element["scale0"]["image"] if size == "full" else element).shape[1:]
        wanted = expected_colours(table.obsm["spatial"][rows] * factor, shape)
        edge = 255 - 255 * 120 / np.array(shape)[::-1] * factor
        inner = ((wanted > 255 - edge) & (wanted < edge)).all(axis=1)
        assert inner.sum() > 40
        away = np.abs(table.obsm["X_patch"][rows][:, :2] - wanted)[inner]
        assert away.max() < 255 / min(shape) + 1
    scales = table.uns["X_patch"]["sections"]["scale"]
    assert scales.to_list() == pytest.approx([factor] * 2)


def test_stain_and_messages(two):
    with pytest.raises(KeyError, match=r"and the image elements \['S1_full_image'"):
        st.pp.embed_patches(two, encoder=MEANS, patches={"px": 80}, library_key="region", table_key="table")
    images = {name: f"{name}_hires_image" for name in ("S1", "S2")}
    reference = st.pp.fit_stain_reference(two, images, library_key="region", table_key="table")
    assert reference["sections"] == ["S1", "S2"]


@pytest.mark.parametrize("size", [8, 16])
def test_visium_hd_has_a_table_for_every_size_of_bin(size):
    sdata = visium_hd()
    with pytest.raises(KeyError, match="square_008um"):
        st.pp.to_grid(sdata)
    key = f"square_{size:03}um"
    st.pp.to_grid(sdata, table_key=key)
    table = sdata[key]
    assert table.uns["grid"]["layout"] == "square"
    assert table.uns["grid"]["spacing"]["section"] == pytest.approx(2 * size)
    np.testing.assert_array_equal(table.obsm["grid"], table.obs[["array_row", "array_col"]])
    st.pp.embed_patches(sdata, "hd_hires_image", encoder=MEANS, patches={"px": 32}, table_key=key)
    away = table.obsm["X_patch"][:, :2] - expected_colours(table.obsm["spatial"] * 0.5, (160, 160))
    inner = (np.abs(table.obsm["spatial"] - 160) < 120).all(axis=1)
    assert np.abs(away[inner]).max() < 3


def test_cells_without_coordinates_take_the_centroids_of_their_shapes(tmp_path):
    """Segmented cells of Visium HD: outlines in another order than the table, and no obsm["spatial"]."""
    sdata = visium_hd()
    table = sdata["cell_segmentations"]
    assert "spatial" not in table.obsm
    centroids = sdata["hd_cell_segmentations"].centroid
    wanted = np.column_stack([centroids.x[table.obs["cell_id"]], centroids.y[table.obs["cell_id"]]])
    st.pp.embed_patches(sdata, "hd_hires_image", encoder=MEANS, patches={"px": 16}, table_key="cell_segmentations")
    away = table.obsm["X_patch"][:, :2] - expected_colours(wanted * 0.5, (160, 160))
    assert np.abs(away).max() < 3
    before = set(table.obsm)
    copied = st.pp.to_grid(sdata, table_key="cell_segmentations", copy=True)
    assert set(table.obsm) == before
    st.pp.to_grid(sdata, table_key="cell_segmentations")
    np.testing.assert_allclose(table.obsm["spatial"], wanted)
    np.testing.assert_array_equal(copied.obsm["grid"], table.obsm["grid"])
    assert table.uns["grid"]["layout"] == "irregular"
    sdata.write(tmp_path / "hd.zarr")
    np.testing.assert_array_equal(sd.read_zarr(tmp_path / "hd.zarr")["cell_segmentations"].obsm["grid"],
                                  table.obsm["grid"])  # fmt: skip


def test_a_cell_without_shape_has_no_place():
    sdata = visium_hd()
    sdata["cell_segmentations"].obs["cell_id"] = (
        sdata["cell_segmentations"].obs["cell_id"].replace("cellid_000000000-1", "lost")
    )
    with pytest.raises(ValueError, match="NaN or infinite values for 1 spots"):
        st.pp.to_grid(sdata, table_key="cell_segmentations")
    assert "spatial" not in sdata["cell_segmentations"].obsm


def test_without_coordinates_and_shapes_there_is_no_place():
    sdata = visium_hd()
    del sdata["cell_segmentations"].uns["spatialdata_attrs"]
    with pytest.raises(KeyError, match="spatial_key names the coordinates"):
        st.pp.to_grid(sdata, table_key="cell_segmentations")


def test_xenium_cells_have_coordinates_in_micrometres_and_images_in_pixels():
    sdata = xenium()
    st.pp.to_grid(sdata)
    table = sdata["table"]
    assert table.uns["grid"]["layout"] == "irregular"
    st.pp.embed_patches(sdata, "he_image", encoder=MEANS, patches={"px": 6.8})
    assert table.uns["X_patch"]["sections"]["scale"].item() == pytest.approx(0.5 / PIXEL_UM)
    side = sdata["he_image"]["scale0"]["image"].shape[1]
    away = table.obsm["X_patch"][:, :2] - expected_colours(table.obsm["spatial"] / PIXEL_UM / 2, (side, side))
    # grey levels are rounded down in the image, in its coarser levels and in patches; one pixel is one grey level
    assert np.abs(away + 1.25).max() < 1.25


def test_bins_may_annotate_labels_too():
    """As with annotate_table_by_labels: coordinates stay those of the squares, labels are a raster of the bins."""
    from spatialdata.models import Labels2DModel, TableModel
    from spatialdata.transformations import Scale

    sdata = visium_hd()
    table = sdata["square_016um"].copy()
    raster = np.zeros((10, 10), dtype=np.int32)
    table.obs["label"] = table.obs["location_id"] + 1
    raster[table.obs["array_row"], table.obs["array_col"]] = table.obs["label"]
    scale = {"hd": Scale([32.0, 32.0], axes=("x", "y"))}
    sdata["bins"] = Labels2DModel.parse(raster, dims=("y", "x"), transformations=scale)
    table.obs["region"] = "bins"
    table.obs["region"] = table.obs["region"].astype("category")
    del table.uns["spatialdata_attrs"]
    sdata["table"] = TableModel.parse(table, region="bins", region_key="region", instance_key="label")
    st.pp.embed_patches(sdata, "hd_hires_image", encoder=MEANS, patches={"px": 32}, table_key="table")
    assert sdata["table"].uns["X_patch"]["sections"]["scale"].item() == pytest.approx(0.5)


def test_cells_that_annotate_labels_without_any_outline():
    sdata = xenium()
    del sdata.shapes["cell_boundaries"]
    with pytest.raises(ValueError, match=r"units of obsm\['spatial'\] are unknown.*'cell_labels'"):
        st.pp.embed_patches(sdata, "he_image", encoder=MEANS, patches={"px": 6.8})
    sdata["table"].obsm["spatial"] /= PIXEL_UM  # now in pixels of the labels
    st.pp.embed_patches(sdata, "he_image", encoder=MEANS, patches={"px": 32})
    assert sdata["table"].uns["X_patch"]["sections"]["scale"].item() == pytest.approx(0.5)


def test_images_of_another_place_are_refused():
    from spatialdata.transformations import Identity, set_transformation

    sdata = visium("S1")
    set_transformation(sdata["S1_hires_image"], {"elsewhere": Identity()}, set_all=True)
    with pytest.raises(ValueError, match=r"coordinate systems \['elsewhere'\], the spots are in \['S1'"):
        st.pp.embed_patches(sdata, "S1_hires_image", encoder=MEANS, patches={"px": 80})


def test_image_elements_can_be_tiled():
    sdata = visium("S1")
    slide = st.pp.tile_image(sdata["S1_full_image"], pitch_px=100, min_tissue=0.0)
    assert slide.n_obs > 50
