"""Predicted expression as SpatialData and as tiles for QuPath."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import shapely
import spatialdata as sd
from shapely.geometry import shape
from spatialdata.transformations import get_transformation
from toy_slides import tissue

import strecur as st

if TYPE_CHECKING:
    from anndata import AnnData

PITCH = 40


def predicted(layout: str = "square") -> AnnData:
    """A slide with made-up predictions of three genes; one tile has none."""
    slide = st.pp.tile_image(tissue(), pitch_px=PITCH, mpp=0.5, layout=layout, section="A")
    values = np.random.default_rng(0).normal(size=(slide.n_obs, 3)).astype(np.float32)
    values[4] = np.nan
    slide.obsm["trm_expression"] = values
    slide.uns["trm_expression"] = {"var_names": ["ERBB2", "GNAS", "MKI67"], "target": "log2"}
    slide.obs["trm_expression_novelty"] = np.where(np.isnan(values[:, 0]), np.nan, 0.25)
    return slide


def features(slide: AnnData, path, **options) -> list[dict]:
    st.get.write_expression(slide, path, **options)
    found = json.loads(path.read_text())
    assert found["type"] == "FeatureCollection"
    return found["features"]


@pytest.mark.parametrize(("layout", "area"), [("square", 1.0), ("hex", np.sqrt(3) / 2)])
def test_every_predicted_spot_is_a_tile_with_its_values(tmp_path, layout, area):
    slide = predicted(layout)
    found = features(slide, tmp_path / "tiles.geojson")
    kept = np.flatnonzero(np.arange(slide.n_obs) != 4)
    assert len(found) == len(kept)
    assert {feature["properties"]["objectType"] for feature in found} == {"tile"}
    cells = [shape(feature["geometry"]) for feature in found]
    centres = np.array([[cell.centroid.x, cell.centroid.y] for cell in cells])
    np.testing.assert_allclose(centres, slide.obsm["spatial"][kept], atol=1e-6)
    np.testing.assert_allclose([cell.area for cell in cells], area * PITCH**2)
    measured = [feature["properties"]["measurements"] for feature in found]
    assert list(measured[0]) == ["ERBB2", "GNAS", "MKI67", "Novelty"]
    values = np.array([[m[gene] for gene in ("ERBB2", "GNAS", "MKI67")] for m in measured])
    np.testing.assert_allclose(values, slide.obsm["trm_expression"][kept], atol=1e-4)
    assert {m["Novelty"] for m in measured} == {0.25}


def test_tiles_of_a_square_lattice_touch_and_do_not_overlap(tmp_path):
    cells = [shape(feature["geometry"]) for feature in features(predicted(), tmp_path / "tiles.geojson")]
    assert shapely.union_all(cells).area == pytest.approx(sum(cell.area for cell in cells))


def test_genes_and_units_are_chosen(tmp_path):
    slide = predicted()
    found = features(slide, tmp_path / "tiles.json", genes="MKI67", scale="um")
    assert list(found[0]["properties"]["measurements"]) == ["MKI67", "Novelty"]
    cell = shape(found[0]["geometry"])
    assert cell.area == pytest.approx((PITCH / 2) ** 2)  # pixels are half a micrometre wide
    np.testing.assert_allclose([cell.centroid.x, cell.centroid.y], slide.obsm["spatial"][0] / 2)


def test_spatialdata_has_table_tiles_and_image(tmp_path):
    slide = predicted()
    st.get.spatialdata(slide).write(tmp_path / "slide.zarr")
    sdata = sd.read_zarr(tmp_path / "slide.zarr")
    table = sdata["table"]
    np.testing.assert_array_equal(table.X, slide.obsm["trm_expression"])
    assert table.var_names.tolist() == ["ERBB2", "GNAS", "MKI67"]
    shapes, joined = sd.join_spatialelement_table(
        sdata=sdata, spatial_element_names="A", table_name="table", how="left"
    )
    centres = np.column_stack([shapes["A"].centroid.x, shapes["A"].centroid.y])
    np.testing.assert_allclose(centres, joined.obsm["spatial"])
    assert sdata.coordinate_systems == ["A"]
    image = sdata["A_hires_image"]
    corner = get_transformation(image, "A").to_affine_matrix(("x", "y"), ("x", "y")) @ [image.sizes["x"], 0, 1]
    np.testing.assert_allclose(corner[:2], [512, 0])


def test_each_section_is_a_coordinate_system():
    both = predicted()
    both.obs["section"] = np.where(both.obsm["spatial"][:, 0] < 250, "left", "right")
    sdata = st.get.spatialdata(both, library_key="section")
    assert sorted(sdata.coordinate_systems) == ["left", "right"]
    assert {name: len(sdata[name]) for name in sdata.shapes} == both.obs["section"].value_counts().to_dict()
    assert not sdata.images, "the image of A is of neither"


def test_several_sections_need_a_choice(tmp_path):
    both = predicted()
    both.obs["section"] = np.where(both.obsm["spatial"][:, 0] < 250, "left", "right")
    with pytest.raises(ValueError, match=r"choose one with library_id: \['left', 'right'\]"):
        st.get.write_expression(both, tmp_path / "tiles.geojson", library_key="section")
    found = features(both, tmp_path / "tiles.geojson", library_key="section", library_id="right")
    assert len(found) in {(both.obs["section"] == "right").sum(), (both.obs["section"] == "right").sum() - 1}
