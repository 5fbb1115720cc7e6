"""Annotation as shapes elements of SpatialData, in the coordinate systems of the spots."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from anndata import AnnData
from geopandas import GeoDataFrame
from shapely.geometry import Point, box
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale
from spatialdata_readers import PIXEL_UM, visium, visium_hd, xenium

import strecur as st

HALVES = {"left": (0, 0, 720, 3000), "right": (720, 0, 3000, 3000)}


def halves(factor: float = 1.0, system: str = "S1", **columns) -> GeoDataFrame:
    """Return two rectangles that together cover a Visium section, in pixels times ``factor``."""
    shapes = [box(*(factor * value for value in corners)) for corners in HALVES.values()]
    frame = GeoDataFrame(columns or {"label": list(HALVES)}, geometry=shapes)
    return ShapesModel.parse(frame, transformations={system: Identity()})


def wanted(table: AnnData) -> list[str]:
    return np.where(table.obsm["spatial"][:, 0] < 720, "left", "right").tolist()


def test_shapes_in_the_units_of_the_spots():
    sdata = visium("S1")
    sdata["halves"] = halves()
    st.pp.read_annotation(sdata, "halves")
    assert sdata["table"].obs["annotation"].tolist() == wanted(sdata["table"])


def test_shapes_drawn_on_the_downscaled_image():
    sdata = visium("S1")
    sdata["halves"] = halves(0.25, "S1_downscaled_hires")
    st.pp.read_annotation(sdata, "halves")
    assert sdata["table"].obs["annotation"].tolist() == wanted(sdata["table"])


def test_transformed_shapes():
    """Shapes turned by a quarter, which their transformation turns back."""
    sdata = visium("S1")
    turn = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = GeoDataFrame({"label": list(HALVES)}, geometry=halves().geometry.affine_transform([0, 1, -1, 0, 0, 0]))
    back = Affine(turn, input_axes=("x", "y"), output_axes=("x", "y"))
    sdata["halves"] = ShapesModel.parse(turned, transformations={"S1": back})
    st.pp.read_annotation(sdata, "halves")
    assert sdata["table"].obs["annotation"].tolist() == wanted(sdata["table"])


def test_labels_in_a_table_that_annotates_the_shapes():
    """As napari-spatialdata stores them: class, annotator and colour of each shape."""
    sdata = visium("S1")
    sdata["drawn"] = halves(note=["", ""])
    obs = pd.DataFrame(
        {"class": ["right", "left"], "annotator": "anna", "id": [1, 0], "region": "drawn"}, index=["a", "b"]
    )
    obs["region"] = obs["region"].astype("category")
    sdata["drawn_table"] = TableModel.parse(AnnData(obs=obs), region="drawn", region_key="region", instance_key="id")
    st.pp.read_annotation(sdata, "drawn", annotator_key="annotator", table_key="table")
    assert sdata["table"].obs["annotation"].tolist() == wanted(sdata["table"])


def test_sections_of_one_object():
    sections = [visium(name) for name in ("S1", "S2")]
    sdata = sd.concatenate(sections, region_key="region", instance_key="spot_id", concatenate_tables=True)
    sdata["on_S2"] = halves(system="S2")
    st.pp.read_annotation(sdata, {"S2": "on_S2"}, library_key="region", table_key="table")
    table = sdata["table"]
    second = (table.obs["region"] == "S2").to_numpy()
    assert table.obs["annotation"].isna().tolist() == (~second).tolist()
    assert table.obs["annotation"][second].tolist() == wanted(table[second])
    with pytest.raises(ValueError, match=r"in the coordinate systems \['S2'\], the spots in \['S1', "):
        st.pp.read_annotation(sdata, {"S1": "on_S2"}, library_key="region", table_key="table")


def test_cells_that_annotate_labels():
    """Cells of Xenium are labels in pixels; the annotation is in µm."""
    sdata = xenium()
    frame = GeoDataFrame({"label": ["left", "right"]}, geometry=[box(0, 0, 50, 200), box(50, 0, 200, 200)])
    to_pixels = Scale([1 / PIXEL_UM, 1 / PIXEL_UM], axes=("x", "y"))
    sdata["halves"] = ShapesModel.parse(frame, transformations={"global": to_pixels})
    st.pp.read_annotation(sdata, "halves")
    x = sdata["table"].obsm["spatial"][:, 0]
    clear = np.abs(x - 50) > 1
    assert sdata["table"].obs["annotation"][clear].tolist() == np.where(x < 50, "left", "right")[clear].tolist()


def test_circles():
    sdata = visium("S1")
    frame = GeoDataFrame({"label": ["follicle"], "radius": [160.0]}, geometry=[Point(700, 700)])
    sdata["round"] = ShapesModel.parse(frame, transformations={"S1": Identity()})
    st.pp.read_annotation(sdata, "round")
    away = np.linalg.norm(sdata["table"].obsm["spatial"] - 700, axis=1)
    assert sdata["table"].obs["annotation"].notna().tolist() == (away < 160).tolist()


def test_a_file_for_a_spatialdata(tmp_path):
    """Polygons of a file are in the units of the coordinates; cells without any have the centroids of their shapes."""
    sdata = visium_hd()
    st.pp.to_grid(sdata, table_key="cell_segmentations")
    table = sdata["cell_segmentations"]
    table.obs["side"] = np.where(table.obsm["spatial"][:, 0] < 130, "left", "right")
    st.get.write_annotation(sdata, tmp_path / "a.geojson", "side", table_key="cell_segmentations")
    st.pp.read_annotation(sdata, tmp_path / "a.geojson", table_key="cell_segmentations")
    assert table.obs["annotation"].tolist() == table.obs["side"].tolist()


def test_elements_take_no_scale():
    sdata = visium("S1")
    sdata["halves"] = halves()
    with pytest.raises(ValueError, match="is for polygons without transformation"):
        st.pp.read_annotation(sdata, "halves", scale="um")


def test_names_that_do_not_exist():
    sdata = visium("S1")
    with pytest.raises(FileNotFoundError, match=r"no file 'halfs', nor such shapes; there are \['S1'\]"):
        st.pp.read_annotation(sdata, "halfs")
    sdata["halves"] = halves()
    sdata["alone"] = TableModel.parse(AnnData(obs=pd.DataFrame(index=["a"]), obsm={"spatial": np.zeros((1, 2))}))
    with pytest.raises(ValueError, match="the table annotates no element"):
        st.pp.read_annotation(sdata, "halves", table_key="alone")


@pytest.mark.parametrize(
    ("make", "table_key"), [(lambda: visium("S1"), "table"), (visium_hd, "square_016um"), (xenium, "table")]
)
def test_outlines_come_back_as_shapes(make, table_key, tmp_path):
    """Outlines lie on the spots in every coordinate system, also after writing and reading."""
    sdata = make()
    table = sdata[table_key]
    st.pp.to_grid(sdata, table_key=table_key)
    x = table.obsm["spatial"][:, 0]
    table.obs["side"] = pd.Categorical(np.where(x < np.median(x), "left", "right"))
    sdata["sides"] = st.get.outlines(sdata, "side", table_key=table_key)
    region = sdata[table.uns["spatialdata_attrs"]["region"]]
    systems = sd.transformations.get_transformation(region, get_all=True)
    assert set(sd.transformations.get_transformation(sdata["sides"], get_all=True)) == set(systems)
    for system in systems:
        centres = sd.get_centroids(region, coordinate_system=system).compute()
        shapes = sd.transform(sdata["sides"], to_coordinate_system=system)
        centres = centres.loc[table.obs[table.uns["spatialdata_attrs"]["instance_key"]]]
        inside = shapes.geometry.iloc[0].buffer(1e-6).contains([Point(p) for p in centres[["x", "y"]].to_numpy()])
        assert (np.asarray(inside) == (table.obs["side"] == "left").to_numpy()).all(), system
    stored = sd.SpatialData(shapes={"sides": sdata["sides"]})
    stored.write(tmp_path / "s.zarr")
    sdata["again"] = sd.read_zarr(tmp_path / "s.zarr")["sides"]
    st.pp.read_annotation(sdata, "again", table_key=table_key)
    assert table.obs["annotation"].tolist() == table.obs["side"].tolist()
