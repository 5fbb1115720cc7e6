"""Which annotation belongs to which section and annotator, and what form it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from strecur._elements import centroids, region_of, transformations_of
from strecur.pp.annotation.locate import locate
from strecur.pp.annotation.polygons import (
    NAPARI_COLUMNS,
    Regions,
    join,
    layer_of_table,
    read_geojson,
    read_layer,
    read_shapes,
)
from strecur.pp.annotation.tables import match_spots, read_table, split_table
from strecur.pp.annotation.units import known_scales, scale_of
from strecur.pp.image.cutting import read_coordinates

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

    from strecur._anndata import Sections

FORMS = "a Loupe CSV, another table (.csv, .tsv, .txt), a QuPath .geojson or the .csv of a napari shapes layer"


class Keys(NamedTuple):
    """Names of columns and properties."""

    label: str | None
    annotator: str | None
    section: str | None
    spatial: str


@dataclass
class Found:
    """What is read of one section or of all.

    Attributes
    ----------
    votes
        Tables with ``row`` (position in the object), ``label`` and ``annotator``.
    unmatched
        Section, entry and reason of all that could not be used.
    colors
        Colour of each label that has one.
    n_overlapping
        Number of spots in polygons of different labels.
    """

    votes: list[pd.DataFrame] = field(default_factory=list)
    unmatched: list[tuple[str, str, str]] = field(default_factory=list)
    colors: dict[str, str] = field(default_factory=dict)
    n_overlapping: int = 0


def split_by_section(source: object, sections: Sections) -> dict[str | None, object]:
    """Return the annotation of each section; under ``None`` the one of all."""
    if not isinstance(source, Mapping):
        return {sections.names[0] if len(sections.names) == 1 else None: source}
    unknown = sorted({str(name) for name in source} - set(sections.names))
    if unknown:
        msg = (
            f"source names {unknown}, which are not sections; there are {sections.names}. For several annotators "
            "pass {section: {annotator: source}}"
        )
        raise KeyError(msg)
    if not source:
        msg = f"source is empty; give the annotation of at least one of the sections {sections.names}"
        raise ValueError(msg)
    return {str(name): value for name, value in source.items()}


def read_section(
    data: AnnData | SpatialData,
    table: AnnData,
    sections: Sections,
    name: str | None,
    source: object,
    *,
    keys: Keys,
    scale: Any,
) -> Found:
    """Read all that annotates a section, or all sections if ``name`` is ``None``."""
    rows = np.arange(table.n_obs) if name is None else sections.rows(name)
    found = Found()
    drawn: dict[str | None, list[Regions]] = {}
    for annotator, piece in _pieces(source):
        form, system = _open(data, table, rows, piece)
        if isinstance(form, pd.DataFrame) and not hasattr(form, "geometry"):
            _add_table(found, form, table, sections, name, keys=keys, annotator=annotator, label=_describe(piece))
            continue
        if name is None:
            msg = (
                f"polygons for {len(sections.names)} sections; pass a mapping {{section: source}} for some of "
                f"{sections.names}"
            )
            raise ValueError(msg)
        drawn.setdefault(system, []).append(_regions(form, piece, keys, annotator))
    for system, parts in drawn.items():
        assert name is not None
        regions, factor, known = join(parts), 1.0, {}
        if system is None:
            xy = read_coordinates(data, table, keys.spatial)[rows]
            known = known_scales(table, name, rows, xy, alone=len(sections.names) == 1)
            factor = scale_of(scale, name, known)
        else:
            if (scale.get(name, 1.0) if isinstance(scale, Mapping) else scale) != 1.0:
                msg = f"scale={scale!r} is for polygons without transformation; shapes elements have one of their own"
                raise ValueError(msg)
            xy = centroids(data, table, rows, system=system)
        _add_regions(found, regions, xy, rows, name, factor=factor, known=known)
    return found


def describe(source: object) -> list[str]:
    """Return the names of all files and elements, for the record."""
    if isinstance(source, Mapping):
        return [f"{name}: {text}" for name, value in source.items() for text in describe(value)]
    return [_describe(piece) for piece in (source if isinstance(source, list) else [source])]


def _pieces(source: object) -> list[tuple[str, object]]:
    """Return annotator and source of each piece; without several annotators their name is empty."""
    if not isinstance(source, Mapping):
        source = {"": source}
    values = {str(annotator): value if isinstance(value, list) else [value] for annotator, value in source.items()}
    pieces = [(annotator, piece) for annotator, value in values.items() for piece in value]
    if not pieces:
        msg = f"an empty list is no annotation; pass {FORMS}"
        raise ValueError(msg)
    return pieces


def _describe(piece: object) -> str:
    return str(piece) if isinstance(piece, str | Path) else type(piece).__name__


def _open(data: Any, table: AnnData, rows: np.ndarray, piece: Any) -> tuple[Any, str | None]:
    """Return a table, shapes, the data of a napari layer or a path, and the coordinate system of shapes elements."""
    if hasattr(piece, "as_layer_data_tuple"):
        piece = piece.as_layer_data_tuple()
    if isinstance(piece, pd.DataFrame):
        return piece, None
    if isinstance(piece, tuple) and len(piece) >= 2 and isinstance(piece[1], Mapping):
        return piece, None
    if not isinstance(piece, str | Path):
        msg = f"source is {type(piece).__name__}; pass {FORMS}, a DataFrame, a layer or the name of a shapes element"
        raise TypeError(msg)
    shapes = list(getattr(data, "shapes", {}))
    if piece in shapes:
        return _shapes_in_system(data, table, rows, str(piece))
    path = Path(piece)
    if not path.is_file():
        msg = f"there is no file {str(piece)!r}" + (f", nor such shapes; there are {shapes}" if shapes else "")
        raise FileNotFoundError(msg)
    suffix = path.suffix.lower()
    if suffix in {".geojson", ".json"}:
        return path, None
    if suffix not in {".csv", ".tsv", ".txt"}:
        msg = f"{path.name} is of a form that is not known ({path.suffix or 'no suffix'}); pass {FORMS}"
        raise ValueError(msg)
    frame = read_table(path)
    return (layer_of_table(frame, path.stem) if set(frame) >= NAPARI_COLUMNS else frame), None


def _shapes_in_system(sdata: SpatialData, table: AnnData, rows: np.ndarray, name: str) -> tuple[GeoDataFrame, str]:
    """Return a shapes element, with the columns of tables that annotate it, in a coordinate system of the spots."""
    import spatialdata as sd

    spots = transformations_of(sdata[region_of(sdata, table, rows)])
    own = transformations_of(sdata[name])
    system = next((system for system in own if system in spots), None)
    if system is None:
        msg = f"shapes {name!r} are in the coordinate systems {list(own)}, the spots in {list(spots)}; align them first"
        raise ValueError(msg)
    shapes = sd.transform(sd.to_polygons(sdata.shapes[name]), to_coordinate_system=system)
    for annotating in sorted(sd.get_element_annotators(sdata, name)):
        _, joined = sd.join_spatialelement_table(
            sdata=sdata, spatial_element_names=[name], table_name=annotating, how="inner"
        )
        attributes = joined.uns["spatialdata_attrs"]
        columns = joined.obs.drop(columns=[attributes["region_key"]]).set_index(attributes["instance_key"])
        shapes = shapes.join(columns[[key for key in columns if key not in shapes]])
    return shapes, system


def _regions(form: Any, piece: object, keys: Keys, annotator: str) -> Regions:
    """Read polygons from what was opened."""
    names: dict[str, Any] = {"label_key": keys.label, "annotator_key": keys.annotator, "annotator": annotator}
    if isinstance(form, Path):
        return read_geojson(form, **names)
    if isinstance(form, tuple):
        return read_layer(form, **names)
    return read_shapes(form, **names, label=_describe(piece))


def _add_table(
    found: Found,
    frame: pd.DataFrame,
    table: AnnData,
    sections: Sections,
    name: str | None,
    *,
    keys: Keys,
    annotator: str,
    label: str,
) -> None:
    """Add the labels of a table, section by section if it has a column of them."""
    named = {"label_key": keys.label, "annotator_key": keys.annotator, "library_key": keys.section}
    votes = split_table(frame, **named, annotator=annotator, label=label)
    known = votes["section"].isin(sections.names if name is None else [name]) if "section" in votes else None
    if known is not None and not known.any():
        msg = (
            f"{label} has the sections {sorted(votes['section'].unique())} in its column {keys.section!r}; expected "
            f"{sections.names if name is None else [name]}"
        )
        raise ValueError(msg)
    if known is None:
        parts = [(name, votes)]
    else:
        parts = [(str(section), part) for section, part in votes[known].groupby("section")]
        found.unmatched += [(name or "", spot, "is in another section") for spot in votes["spot"][~known]]
    for section, part in parts:
        rows = np.arange(table.n_obs) if section is None else sections.rows(section)
        row = match_spots(part["spot"], table, rows, label=label)
        found.unmatched += [(section or "", spot, "is not in the object") for spot in part["spot"][row < 0].unique()]
        used = part.assign(row=row)[(row >= 0) & part["label"].notna().to_numpy()]
        found.votes.append(used[["row", "label", "annotator"]])


def _add_regions(
    found: Found,
    regions: Regions,
    xy: np.ndarray,
    rows: np.ndarray,
    name: str,
    *,
    factor: float,
    known: dict[str, float],
) -> None:
    """Add the labels of the spots in polygons."""
    found.unmatched += [(name, entry, reason) for entry, reason in regions.skipped]
    if regions.polygons.empty:
        reasons = sorted({reason for _, reason in regions.skipped})
        each = " or ".join(reasons)
        msg = f"section {name!r}: none of the {len(regions.skipped)} shapes is a labelled polygon; each {each}"
        raise ValueError(msg)
    located = locate(regions, xy, scale=factor, known=known, section=name)
    found.unmatched += [(name, entry, reason) for entry, reason in located.empty]
    found.votes.append(located.votes.assign(row=rows[located.votes["row"]]))
    found.n_overlapping += located.n_overlapping
    colored = regions.polygons.dropna(subset="color")
    found.colors |= dict(zip(colored["label"], colored["color"], strict=True))
