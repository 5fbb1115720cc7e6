"""Small output folders of instruments, with the files and columns that the readers of spatialdata-io read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy import sparse
from shapely.geometry import MultiPolygon, Polygon, mapping
from spatialdata_readers import gradient

if TYPE_CHECKING:
    from pathlib import Path

GENES = [f"g{i}" for i in range(12)]
PIXEL_UM = 0.2125
"""Width of a pixel of a Xenium image."""
HE_TO_FOCUS = np.array([[0.0, -2.0, 720.0], [2.0, 0.0, 16.0], [0.0, 0.0, 1.0]])
"""Alignment of the H&E image of the Xenium folder to its morphology image: a quarter turn, pixels twice as large."""
FIELD = (200, 160)
"""Width and height of a field of view of the CosMx folder."""
FIELD_ORIGINS = {1: (5000.0, 9000.0), 2: (5200.0, 9000.0)}
"""Place of the fields of view of the CosMx folder in global pixels."""
MOSAIC = np.array([[2.0, 0.0, -300.0], [0.0, 2.0, -500.0], [0.0, 0.0, 1.0]])
"""Pixels of the mosaic of the MERSCOPE folder from micrometres."""


def as_picture(width: int, height: int) -> np.ndarray:
    """Return the gradient as rows × columns × channels."""
    return np.moveaxis(gradient(width, height), 0, -1)


def counts_of(n: int, domain: np.ndarray | None = None) -> np.ndarray:
    """Make up counts, spots × genes; each of three domains has four genes of its own."""
    mean = np.ones((n, len(GENES)))
    if domain is not None:
        mean[np.arange(len(GENES)) // 4 == domain[:, None]] = 8.0
    return np.random.default_rng(n).poisson(mean).astype(np.int32)


def write_matrix(path: Path, names: list[str], counts: np.ndarray) -> None:
    """Write counts, spots × genes, as the HDF5 file of 10x Genomics."""
    matrix = sparse.csc_matrix(counts.T)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group, features = file.create_group("matrix"), file.create_group("matrix/features")
        group["barcodes"] = [name.encode() for name in names]
        group["shape"] = np.array(matrix.shape, dtype=np.int32)
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
        features["id"] = [f"ENSG{i:011}".encode() for i in range(len(GENES))]
        features["name"] = [gene.encode() for gene in GENES]
        features["feature_type"] = [b"Gene Expression"] * len(GENES)
        features["genome"] = [b"GRCh38"] * len(GENES)
        file.attrs["library_ids"] = np.array([b"V1"])
        file.attrs["chemistry_description"] = b"Spatial 3' v1"
        file.attrs["software_version"] = b"spaceranger-2.1.0"


def write_downscaled(folder: Path, full: Image.Image, factors: dict[str, float]) -> None:
    """Write the downscaled images of Space Ranger."""
    folder.mkdir(parents=True, exist_ok=True)
    for size, factor in factors.items():
        small = full.resize((int(full.width * factor), int(full.height * factor)), Image.Resampling.BOX)
        small.save(folder / f"tissue_{size}_image.png")


def visium(folder: Path, name: str, *, version: int = 2, n_outside: int = 0) -> Path:
    """Write a section of Visium, domains from left to right, spots 40 pixels apart; the first spots are outside."""
    row, col = (axis.ravel() for axis in np.indices((14, 28)))
    kept = (row + col) % 2 == 0
    order = np.random.default_rng(0).permutation(kept.sum())
    row, col = row[kept][order], col[kept][order]
    names = [f"AAAC{i:04}-1" for i in range(len(row))]
    x, y = np.rint((col + 4) * 20.0).astype(int), np.rint((row + 4) * 20.0 * np.sqrt(3)).astype(int)
    out = folder / name
    write_matrix(out / f"{name}_filtered_feature_bc_matrix.h5", names, counts_of(len(row), col * 3 // 28))
    positions = pd.DataFrame({"barcode": names, "in_tissue": (np.arange(len(row)) >= n_outside).astype(int)})
    positions = positions.assign(array_row=row, array_col=col, pxl_row_in_fullres=y, pxl_col_in_fullres=x)[::-1]
    full = Image.fromarray(as_picture(x.max() + 80, y.max() + 80))
    write_downscaled(out / "spatial", full, {"hires": 0.5, "lowres": 0.125})
    file = "tissue_positions.csv" if version > 1 else "tissue_positions_list.csv"
    positions.to_csv(out / "spatial" / file, index=False, header=version > 1)
    factors = {"spot_diameter_fullres": 26.0, "fiducial_diameter_fullres": 42.0}
    factors |= {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.125}
    (out / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    full.save(out / "image.tif")
    return out


def visium_hd(folder: Path, name: str = "hd") -> Path:
    """Write 320 µm of Visium HD at two pixels per µm: bins of 8 and 16 µm, and segmented cells."""
    out, rng = folder / name, np.random.default_rng(0)
    full = Image.fromarray(as_picture(640, 640))
    common = {"tissue_hires_scalef": 0.5, "tissue_lowres_scalef": 0.125, "microns_per_pixel": 0.5}
    common |= {"fiducial_diameter_fullres": 1200.0, "regist_target_img_scalef": 0.5}
    for size in (8, 16):
        row, col = (axis.ravel() for axis in np.indices((320 // size, 320 // size)))
        names = np.array([f"s_{size:03}um_{r:05}_{c:05}-1" for r, c in zip(row, col, strict=True)])
        where = out / "binned_outputs" / f"square_{size:03}um"
        kept = rng.random(len(row)) < 0.9
        write_matrix(where / "filtered_feature_bc_matrix.h5", list(names[kept]), counts_of(kept.sum()))
        write_downscaled(where / "spatial", full, {"hires": 0.5, "lowres": 0.125})
        positions = pd.DataFrame({"barcode": names, "in_tissue": kept.astype(int), "array_row": row, "array_col": col})
        positions["pxl_row_in_fullres"] = (row + 0.5) * 2.0 * size
        positions["pxl_col_in_fullres"] = (col + 0.5) * 2.0 * size
        positions.to_parquet(where / "spatial" / "tissue_positions.parquet")
        factors = common | {"bin_size_um": float(size), "spot_diameter_fullres": 2.0 * size}
        (where / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    cells = {
        int(number): outline * 2.0 for number, outline in zip(rng.permutation(64), outlines(64, 36.0), strict=True)
    }
    where = out / "segmented_outputs"
    names = [f"cellid_{number:09}-1" for number in sorted(cells)]
    write_matrix(where / "filtered_feature_cell_matrix.h5", names, counts_of(64))
    (where / "spatial").mkdir()
    (where / "spatial" / "scalefactors_json.json").write_text(json.dumps(common))
    features = [
        {"type": "Feature", "geometry": mapping(Polygon(outline)), "properties": {"cell_id": number}}
        for number, outline in cells.items()
    ]
    collection = {"type": "FeatureCollection", "features": features}
    (where / "cell_segmentations.geojson").write_text(json.dumps(collection))
    metadata = {"hd_layout_json": json.dumps({"file_format": "1.0", "transform": np.eye(3).ravel().tolist()})}
    with h5py.File(out / f"{name}_feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps(metadata | {"transform_matrices": {}})
    full.save(out / f"{name}_tissue_image.tif")
    return out


def outlines(n: int, pitch: float) -> np.ndarray:
    """Draw cells of random outline, cells × 8 × 2, each near the site of a square of eight columns."""
    rng = np.random.default_rng(1)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    sites = np.column_stack([np.arange(n) % 8, np.arange(n) // 8])
    centres = (sites + 1.0 + rng.uniform(-0.25, 0.25, (n, 2))) * pitch
    radii = pitch * rng.uniform(0.1, 0.2, (n, 8))
    return centres[:, None] + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def xenium(folder: Path, *, channels: int = 1) -> Path:
    """Write 60 cells of Xenium, as of version 2, with an aligned H&E image."""
    import tifffile
    import zarr

    out, cells = folder / "xenium", outlines(60, 14.0)
    (out / "morphology_focus").mkdir(parents=True)
    specs = {"pixel_size": PIXEL_UM, "analysis_sw_version": "xenium-2.0.0.10", "run_name": "test"}
    (out / "experiment.xenium").write_text(json.dumps(specs))
    prefix = np.random.default_rng(0).choice(2**32, 60, replace=False).astype(np.uint32)
    names = [f"{_letters(number)}-1" for number in prefix]
    centre = np.array([Polygon(outline).centroid.coords[0] for outline in cells])
    write_matrix(out / "cell_feature_matrix.h5", names, counts_of(60))
    area = np.array([Polygon(outline).area for outline in cells])
    table = pd.DataFrame({"cell_id": names, "x_centroid": centre[:, 0], "y_centroid": centre[:, 1]})
    table = table.assign(transcript_counts=12, total_counts=12, cell_area=area, nucleus_area=area / 2)
    table.to_parquet(out / "cells.parquet")
    for kind, rings in (("cell", cells), ("nucleus", (cells + centre[:, None]) / 2)):
        vertices = pd.DataFrame({"cell_id": np.repeat(names, 8), "label_id": np.repeat(np.arange(1, 61), 8)})
        vertices["vertex_x"], vertices["vertex_y"] = rings.reshape(-1, 2).T
        vertices.to_parquet(out / f"{kind}_boundaries.parquet")
    spots = {"transcript_id": np.arange(60), "cell_id": names, "feature_name": np.resize(GENES, 60)}
    spots |= {"x_location": centre[:, 0], "y_location": centre[:, 1], "z_location": 0.0, "qv": 40.0}
    pd.DataFrame(spots).to_parquet(out / "transcripts.parquet")
    side = int(130 / PIXEL_UM)
    mask = labels_of(cells / PIXEL_UM, (side, side))
    with zarr.storage.ZipStore(out / "cells.zarr.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w", zarr_format=2)
        group.create_array("cell_id", data=np.column_stack([prefix, np.ones(60, np.uint32)]))
        columns = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y"]
        columns += ["nucleus_area", "z_level", "nucleus_count"]
        summary = np.column_stack([centre, area, centre, area / 2, np.full(60, 3.0), np.ones(60)])
        group.create_array("cell_summary", data=summary).attrs["column_names"] = columns
        for kind in "01":
            group.create_array(f"masks/{kind}", data=mask)
            group.create_array(f"polygon_sets/{kind}/cell_index", data=np.arange(60, dtype=np.uint32))
    stain = np.random.default_rng(0).integers(0, 4000, (channels, side, side)).astype(np.uint16)
    for channel in range(channels):
        tifffile.imwrite(out / "morphology_focus" / f"morphology_focus_{channel:04}.ome.tif", stain, metadata=None)
    tifffile.imwrite(out / "test_he_image.ome.tif", as_picture(320, 380), photometric="rgb", metadata=None)
    np.savetxt(out / "test_he_imagealignment.csv", HE_TO_FOCUS, delimiter=",")
    return out


def _letters(number: int) -> str:
    """Write the number of a cell as Xenium does: hexadecimal, with the letters a to p as digits."""
    return "".join("abcdefghijklmnop"[int(digit, 16)] for digit in f"{number:08x}")


def labels_of(rings: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Draw outlines in pixels (x, y) as labels 1, 2, … of an image (rows, columns)."""
    from skimage.draw import polygon

    labels = np.zeros(shape, dtype=np.uint32)
    for i, ring in enumerate(rings):
        labels[polygon(ring[:, 1], ring[:, 0], shape)] = i + 1
    return labels


def cosmx(folder: Path, name: str = "Run1") -> Path:
    """Write two fields of view of CosMx, side by side; the numbers of their cells and their coordinates repeat.

    The rows of the files of a field run against its coordinates.
    """
    import tifffile

    out, (width, height) = folder / "cosmx", FIELD
    (out / "CellComposite").mkdir(parents=True)
    (out / "CellLabels").mkdir()
    counts, cells = [], []
    for field, origin in FIELD_ORIGINS.items():
        rings = outlines(48, 22.0) * (1.0 if field == 1 else 0.97)
        centre = np.array([Polygon(ring).centroid.coords[0] for ring in rings])
        number = np.arange(1, 49)
        own = pd.DataFrame({"fov": field, "cell_ID": number, "Area": 300, "CenterX_local_px": centre[:, 0]})
        own["CenterY_local_px"] = centre[:, 1]
        own["CenterX_global_px"], own["CenterY_global_px"] = (centre + origin).T
        cells.append(own)
        values = np.vstack([np.full(len(GENES), 99), counts_of(48)])  # cell 0 is what lies in no cell
        table = pd.DataFrame(values, columns=GENES)
        table.insert(0, "cell_ID", np.arange(49))
        table.insert(0, "fov", field)
        counts.append(table)
        picture, labels = as_picture(width, height), labels_of(rings, (height, width))
        Image.fromarray(picture[::-1]).save(out / "CellComposite" / f"CellComposite_F{field:03}.png")
        tifffile.imwrite(out / "CellLabels" / f"CellLabels_F{field:03}.tif", labels[::-1].astype(np.uint16))
    pd.concat(counts).to_csv(out / f"{name}_exprMat_file.csv", index=False)
    pd.concat(cells).to_csv(out / f"{name}_metadata_file.csv", index=False)
    places = pd.DataFrame(FIELD_ORIGINS, index=["x_global_px", "y_global_px"]).T.rename_axis("fov")
    places.to_csv(out / f"{name}_fov_positions_file.csv")
    return out


def merscope(folder: Path, region: str = "region_0") -> Path:
    """Write 60 cells of MERSCOPE and mosaics of two planes: that of plane 2 grows with x, that of plane 3 with y."""
    import tifffile
    from geopandas import GeoDataFrame

    out, cells = folder / "202305011200_run" / region, outlines(60, 12.0) + np.array([200.0, 300.0])
    (out / "images").mkdir(parents=True)
    names = [str(1108834247646119 * 10**20 + 7 * i) for i in range(60)]  # too large for 64 bits, as real ones
    centre = np.array([Polygon(outline).centroid.coords[0] for outline in cells])
    table = pd.DataFrame(counts_of(60), columns=GENES, index=pd.Index(names, name="cell"))
    table.assign(**{"Blank-1": 0, "Blank-2": 1}).to_csv(out / "cell_by_gene.csv")
    obs = pd.DataFrame(index=pd.Index(names, name="EntityID"))
    obs = obs.assign(fov=np.arange(60) // 16, volume=900.0, center_x=centre[:, 0], center_y=centre[:, 1])
    for side, reduce in (("min", np.min), ("max", np.max)):
        obs[f"{side}_x"], obs[f"{side}_y"] = reduce(cells, axis=1).T
    obs.to_csv(out / "cell_metadata.csv")
    planes = [
        {"EntityID": name, "ZIndex": z, "Geometry": MultiPolygon([Polygon(outline)])}
        for z in (0, 1)
        for name, outline in zip(names, cells, strict=True)
    ]
    shuffled = np.random.default_rng(0).permutation(len(planes))
    boundaries = GeoDataFrame([planes[i] for i in shuffled], geometry="Geometry")
    boundaries.to_parquet(out / "cell_boundaries.parquet")
    genes = {"gene": np.resize(GENES, 60), "global_x": centre[:, 0], "global_y": centre[:, 1], "global_z": 0.0}
    pd.DataFrame(genes).to_csv(out / "detected_transcripts.csv")
    np.savetxt(out / "images" / "micron_to_mosaic_pixel_transform.csv", MOSAIC)
    red, green, _ = gradient(340, 320)
    for plane, values in ((2, red), (3, green)):
        tifffile.imwrite(out / "images" / f"mosaic_DAPI_z{plane}.tif", values.astype(np.uint16) * 257)
    return out
