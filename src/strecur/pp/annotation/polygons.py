"""Annotation as polygons: QuPath, napari and SpatialData."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from strecur._labels import clean_labels
from strecur.pp.annotation.tables import choose_column, require_column

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from geopandas import GeoDataFrame
    from shapely.geometry.base import BaseGeometry

NAPARI_COLUMNS = {"index", "shape-type", "vertex-index", "axis-0", "axis-1"}
ELLIPSE_CORNERS = 64


@dataclass(frozen=True)
class Regions:
    """Labelled polygons.

    Attributes
    ----------
    polygons
        One row each: ``geometry``, ``label``, ``annotator``, ``color`` (hex or ``None``) and ``name``.
    skipped
        Name of each entry that is not used, and why.
    """

    polygons: pd.DataFrame
    skipped: list[tuple[str, str]]


def collect(geometries: Sequence[BaseGeometry], columns: Mapping[str, Sequence[object]]) -> Regions:
    """Return the entries that are polygons with a label; outlines that cross themselves are mended."""
    import shapely

    frame = pd.DataFrame({"geometry": np.array(list(geometries), dtype=object), **columns})
    frame["label"] = clean_labels(frame["label"])
    frame["geometry"] = [_polygons_of(shapely.make_valid(geometry)) for geometry in frame["geometry"]]
    area = np.array([0.0 if geometry is None else geometry.area for geometry in frame["geometry"]])
    unlabelled = frame["label"].isna().to_numpy()
    skipped = [(name, "is not a polygon with an area") for name in frame["name"][area == 0]]
    skipped += [(name, "has no label") for name in frame["name"][unlabelled & (area > 0)]]
    return Regions(frame[(area > 0) & ~unlabelled].reset_index(drop=True), skipped)


def _polygons_of(geometry: BaseGeometry) -> BaseGeometry | None:
    """Return the polygons in a geometry, without its lines and points."""
    import shapely

    parts = [part for part in shapely.get_parts(geometry) if part.geom_type in {"Polygon", "MultiPolygon"}]
    return shapely.union_all(parts) if parts else None


def join(parts: Sequence[Regions]) -> Regions:
    """Return the polygons of several files together."""
    frames = [part.polygons for part in parts]
    return Regions(pd.concat(frames, ignore_index=True), [entry for part in parts for entry in part.skipped])


# QuPath


def read_geojson(path: Path, *, label_key: str | None, annotator_key: str | None, annotator: str) -> Regions:
    """Read the annotations of a GeoJSON file as QuPath exports them: a FeatureCollection, or a list of features."""
    kept, skipped = [], []
    for position, feature in enumerate(_features_of(path)):
        properties = feature.get("properties")
        properties = properties if isinstance(properties, Mapping) else {}
        kind = properties.get("objectType", "annotation")
        name = str(properties.get("name") or f"{path.name}: {kind} {position + 1}")
        geometry = _geometry_of(feature.get("geometry"))
        if geometry is None:
            skipped.append((name, "has no valid geometry"))
        elif kind != "annotation":
            skipped.append((name, f"is of type {kind!r}; export annotations only"))
        else:
            kept.append((geometry, properties, name))
    for argument, key in (("label_key", label_key), ("annotator_key", annotator_key)):
        if key is not None and not any(key in _flat(properties) for _, properties, _ in kept):
            there = sorted({name for _, properties, _ in kept for name in _flat(properties)})
            require_column(there, key, label=f"the properties of {path.name}", argument=argument)
    regions = collect(
        [geometry for geometry, _, _ in kept],
        {
            "label": [_class_of(p) if label_key is None else _flat(p).get(label_key) for _, p, _ in kept],
            "annotator": [
                annotator if annotator_key is None else str(_flat(p).get(annotator_key, "")) for _, p, _ in kept
            ],
            "color": [_color_of(p.get("classification")) for _, p, _ in kept],
            "name": [name for _, _, name in kept],
        },
    )
    return Regions(regions.polygons, skipped + regions.skipped)


def _features_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        what = "is empty" if not text.strip() else f"is not valid JSON ({error})"
        msg = f"{path.name} {what}; export the annotations again: in QuPath File > Export objects as GeoJSON"
        raise ValueError(msg) from error
    if isinstance(content, Mapping):
        content = content.get("features", [content] if content.get("type") == "Feature" else None)
    if not isinstance(content, list) or not all(isinstance(entry, Mapping) for entry in content):
        msg = f"{path.name} is JSON, but not GeoJSON: it is neither a FeatureCollection nor a list of features"
        raise ValueError(msg)
    if not content:
        msg = f"{path.name} has no features; were the annotations selected for the export?"
        raise ValueError(msg)
    return content


def _geometry_of(geometry: Any) -> BaseGeometry | None:
    """Return the geometry of a feature, ``None`` if it has none or a damaged one."""
    import shapely.geometry

    try:
        return shapely.geometry.shape(geometry)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, shapely.errors.ShapelyError):
        return None


def _class_of(properties: Mapping[str, Any]) -> object:
    """Return the class of a QuPath object; a derived class is written ``"Tumor: Positive"``."""
    found = properties.get("classification")
    if isinstance(found, Mapping):
        names = found.get("names")
        found = found.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else None)
    return found if isinstance(found, str) else None


def _color_of(classification: object) -> str | None:
    """Return the colour of a class as hex; earlier versions of QuPath write one whole number, signed."""
    if not isinstance(classification, Mapping):
        return None
    color = classification.get("color")
    if isinstance(classification.get("colorRGB"), int):
        color = list((classification["colorRGB"] & 0xFFFFFF).to_bytes(3, "big"))
    if not isinstance(color, list) or len(color) < 3 or not all(isinstance(c, int) and 0 <= c < 256 for c in color):
        return None
    return "#{:02X}{:02X}{:02X}".format(*color[:3])


def _flat(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the properties together with those inside of ``metadata`` and ``measurements``."""
    inner = [properties.get(key) for key in ("metadata", "measurements")]
    return {**{k: v for part in inner if isinstance(part, Mapping) for k, v in part.items()}, **properties}


# napari


def read_layer(
    layer: tuple[Sequence[np.ndarray], Mapping[str, Any]],
    *,
    label_key: str | None,
    annotator_key: str | None,
    annotator: str,
) -> Regions:
    """Read the data of a napari shapes layer: vertices (…, y, x) of each shape, and ``shape_type`` and ``features``.

    Without features, the name of the layer is the label of all shapes.
    """
    import shapely

    data, meta = layer[0], layer[1]
    name = str(meta.get("name", "Shapes"))
    kinds = meta.get("shape_type", "polygon")
    kinds = [kinds] * len(data) if isinstance(kinds, str) else list(kinds)
    given = meta.get("features")
    features = pd.DataFrame(given if given is not None and len(given) else meta.get("properties", {}))
    features = features.reset_index(drop=True)
    if not len(data):
        msg = f"the shapes layer {name!r} has no shapes"
        raise ValueError(msg)
    if annotator_key is not None:
        require_column(list(features), annotator_key, label=f"the features of {name!r}", argument="annotator_key")
    columns = [key for key in features if key != annotator_key]
    labels = [name] * len(data)
    if columns or label_key is not None:
        labels = features[choose_column(columns, label_key, label=f"layer {name!r}")].tolist()
    outlines = [_outline(np.asarray(points, dtype=float), str(kind)) for points, kind in zip(data, kinds, strict=True)]
    return collect(
        [shapely.Polygon() if xy is None else shapely.Polygon(xy) for xy in outlines],
        {
            "label": labels,
            "annotator": [annotator] * len(data) if annotator_key is None else features[annotator_key].astype(str),
            "color": [None] * len(data),
            "name": [f"{name}: {kind} {position}" for position, kind in enumerate(kinds)],
        },
    )


def layer_of_table(frame: pd.DataFrame, name: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Turn the CSV of a shapes layer into the data of a layer; columns that napari does not write are features."""
    axes = [key for key in frame if str(key).startswith("axis-")]
    shapes = frame.groupby(pd.to_numeric(frame["index"]), sort=True)
    first = shapes.first()
    features = first.drop(columns=[*axes, "index", "shape-type", "vertex-index"])
    data = [shape[axes].to_numpy(dtype=float) for _, shape in shapes]
    return data, {"name": name, "shape_type": first["shape-type"].tolist(), "features": features}


def _outline(points: np.ndarray, kind: str) -> np.ndarray | None:
    """Return the vertices (x, y) of a shape, ``None`` for lines and paths; napari has the last two axes (y, x)."""
    xy = points[:, [-1, -2]]
    if kind not in {"polygon", "rectangle", "ellipse"} or len(xy) < 3:
        return None
    if kind != "ellipse":
        return xy
    # the corners of the rectangle around it
    angle = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)[:, None]
    centre, across, along = xy.mean(axis=0), (xy[1] - xy[0]) / 2, (xy[3] - xy[0]) / 2
    return centre + np.cos(angle) * across + np.sin(angle) * along


# SpatialData and geopandas


def read_shapes(
    shapes: GeoDataFrame, *, label_key: str | None, annotator_key: str | None, annotator: str, label: str
) -> Regions:
    """Read polygons or circles with a column of labels."""
    if shapes.empty:
        msg = f"{label} has no shapes"
        raise ValueError(msg)
    circles = "radius" in shapes and (shapes.geom_type == "Point").all()
    columns = [str(key) for key in shapes if key not in ("geometry", "radius", annotator_key)]
    wanted = choose_column(columns, label_key, label=label)
    if annotator_key is not None:
        require_column(list(shapes), annotator_key, label=label, argument="annotator_key")
    return collect(
        list(shapes.buffer(shapes["radius"]) if circles else shapes.geometry),
        {
            "label": shapes[wanted].tolist(),
            "annotator": [annotator] * len(shapes) if annotator_key is None else shapes[annotator_key].astype(str),
            "color": [None] * len(shapes),
            "name": [f"{label}: {name}" for name in shapes.index],
        },
    )
