"""From the sections of a table to the columns that networks and linear models read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from strecur._anndata import SectionData, Sections, read_representation, require
from strecur._arguments import filled
from strecur._geometry import physical_positions
from strecur.models.features.alignment import DomainMoments, fit_moments
from strecur.models.features.cell_types import CellTypeFeatures, fit_cell_type_features
from strecur.models.features.expression import ExpressionFeatures, fit_expression_features
from strecur.models.features.intensities import IntensityFeatures, fit_intensity_features
from strecur.models.features.lattices import TrainingLattices, read_lattices
from strecur.models.features.neighbourhood import moments, neighbourhood_means
from strecur.models.features.representation import (
    RepresentationFeatures,
    column_names,
    fit_representation,
    read_columns,
)
from strecur.models.gaussians import Gaussians
from strecur.models.novelty import FamiliarSections, find_familiar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData

    from strecur.options import Features


TINY = np.float32(1e-6)


@dataclass(frozen=True)
class Inputs:
    """Features of the spots of some sections.

    Attributes
    ----------
    columns_NF
        Features of every spot, float32.
    views
        Features under every symmetry of the lattice, by element of ``strecur._geometry.ELEMENTS``; empty if they are
        the same under all.
    averaged_NF
        Mean over the views, which is what linear models read.
    compared_NF
        Features in which spots are compared with those of the training, to tell novel ones.
    novelty
        Distance of each section from the training sections; 1: as far as these are from one another.
    """

    columns_NF: np.ndarray
    views: Mapping[int, np.ndarray]
    averaged_NF: np.ndarray
    compared_NF: np.ndarray
    novelty: list[float]


@dataclass(frozen=True)
class SpotFeatures:
    """Fitted features: a source, standardised, with means over neighbourhoods.

    Attributes
    ----------
    source
        Fitted features of expression, intensities, cell types or a representation, or the name of a representation in
        ``obsm`` that is taken as it is.
    width
        Columns of the source.
    standardised
        Centre and scale the columns: of cell types by the training sections, of others each section by itself.
    neighbours
        Append means over this many nearest spots.
    familiar
        Means of the training sections.
    lattices
        Lattices of the training sections; ``None`` for models of earlier versions.
    domains
        Moments of the domains in training, by which sections that hold a part of them are centred and scaled; ``None``:
        every section by its own. Cell types need none.
    names
        Names of the columns of a representation that is taken as it is; empty if they had none.
    weight_P
        What the columns are multiplied by after they were centred and scaled; ``None``: all are alike.
    """

    source: ExpressionFeatures | IntensityFeatures | CellTypeFeatures | RepresentationFeatures | str
    width: int
    standardised: bool
    neighbours: tuple[int, ...]
    familiar: FamiliarSections | None = None
    lattices: TrainingLattices | None = None
    domains: DomainMoments | None = None
    names: Sequence[str] = field(default_factory=list)
    weight_P: np.ndarray | None = None

    @property
    def n_columns(self) -> int:
        """Columns of the features."""
        return self.width * (1 + len(self.neighbours))

    @property
    def of_cell_types(self) -> bool:
        """Whether the columns are shares of cell types."""
        return isinstance(self.source, CellTypeFeatures)

    @property
    def use_rep(self) -> str | None:
        """Representation in ``obsm`` whose missing spots take no part; ``None`` for features of expression."""
        return self.source.use_rep if isinstance(self.source, RepresentationFeatures) else None

    def inputs(self, data: SectionData) -> Inputs:
        """Compute the features of all spots; warn if their lattice differs from those of the training."""
        if self.lattices is not None:
            self.lattices.warn_of_differences(data)
        if isinstance(self.source, CellTypeFeatures):
            self.source.report_unknown(data.table)
        values = self.representation(data.table)
        views = self.views(data)
        columns = views[0] if views else self.columns(values, data)
        averaged = average(columns, views)
        return Inputs(columns, views, averaged, self.compared(averaged), self.novelty(values, data))

    def views(self, data: SectionData) -> dict[int, np.ndarray]:
        """Compute the features under every symmetry of the lattice; empty if they are the same under all."""
        if not isinstance(self.source, RepresentationFeatures) or not self.source.has_views:
            return {}
        views = self.source.views(data.table, data.sections, data.grid)
        return {element: self.columns(values, data) for element, values in views.items()}

    def columns(self, values: np.ndarray, data: SectionData) -> np.ndarray:
        """Standardise the representation of every spot, and append the means of its neighbourhoods."""
        columns = np.empty((len(values), self.n_columns), dtype=np.float32)
        for name in data.names:
            rows, grid = data.rows(name), data.grid
            own, positions = values[rows], physical_positions(grid.row[rows], grid.col[rows], grid.layout)
            if self.standardised:
                centre, scale = self.moments(own, positions)
                own = (own - centre) / scale
                own = own if self.weight_P is None else own * self.weight_P
            columns[rows] = np.hstack([own, neighbourhood_means(own, positions, self.neighbours)])
        return columns

    def compared(self, columns: np.ndarray) -> np.ndarray:
        """Return the features in which spots are compared with those of the training.

        All components of an embedding count alike.
        """
        if self.weight_P is None:
            return columns
        return columns / np.tile(np.maximum(self.weight_P, TINY), 1 + len(self.neighbours))

    def moments(self, values: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return centre and scale of a section.

        Shares of cell types mean the same in every section, so they are those of the training.
        """
        if self.of_cell_types and self.familiar is not None:
            return self.familiar.means_SP.mean(axis=0), self.familiar.scale_P
        return moments(values) if self.domains is None else self.domains.of_section(values, positions)

    def with_domains(self, data: SectionData, training: Sequence[str], target_N: np.ndarray) -> SpotFeatures:
        """Return features that know the moments of the domains of the training sections.

        Parameters
        ----------
        data
            Sections, among them those of the training.
        training
            Names of the training sections.
        target_N
            Domain of every spot, -1 where there is none.
        """
        if not self.standardised or self.of_cell_types:
            return self
        grid, values = data.grid, self.representation(data.table)
        positions = physical_positions(grid.row, grid.col, grid.layout)
        return replace(self, domains=fit_moments(values, positions, target_N, [data.rows(name) for name in training]))

    def representation(self, adata: AnnData) -> np.ndarray:
        """Read the representation, before standardisation and neighbourhoods."""
        if not isinstance(self.source, str):
            return self.source.transform(adata)
        require(adata.obsm, self.source, where="obsm", hint="The model was trained on this representation.")
        values = read_columns(adata, self.source, self.names)
        if values.shape[1] != self.width:
            msg = f"adata.obsm[{self.source!r}] has {values.shape[1]} columns; the model was trained on {self.width}"
            raise ValueError(msg)
        return values

    def novelty(self, values: np.ndarray, data: SectionData) -> list[float]:
        """Compute the distance of each section from the training sections; NaN if it is not known."""
        if self.familiar is None:
            return [np.nan] * len(data.names)
        return [self.familiar.novelty(values[data.rows(name)]) for name in data.names]


def average(columns: np.ndarray, views: Mapping[int, np.ndarray]) -> np.ndarray:
    """Average features over the symmetries of the lattice."""
    if not views:
        return columns
    total = np.zeros_like(columns)
    for values in views.values():
        total += values
    return total / len(views)


def fit_domain_features(
    data: SectionData, training: Sequence[str], use_rep: str | None, options: Features, rng: int
) -> SpotFeatures:
    """Fit features of their kind, or of a representation as it is, on the training sections alone."""
    neighbours, lattices = tuple(options.neighbours or ()), read_lattices(data, training)
    if use_rep is not None:
        if options.layer is not None or options.size_factor_key is not None:
            msg = "use_rep takes a ready representation; layer and size_factor_key are for expression"
            raise ValueError(msg)
        if options.kind != "counts":
            msg = f"use_rep takes a ready representation, and kind={options.kind!r} makes one; leave one of them out"
            raise ValueError(msg)
        values = read_representation(data.table, use_rep)
        familiar = find_familiar(values, data.sections, training)
        names = column_names(data.table, use_rep)
        width = values.shape[1]
        return SpotFeatures(use_rep, width, options.standardise, neighbours, familiar, lattices, names=names)
    in_training = data.within(training)
    table = data.table
    part = table[in_training].to_memory() if table.isbacked else table[in_training]
    codes = pd.Index(training).get_indexer(np.array(data.names)[data.sections.codes[in_training]])
    own = Sections(codes, list(training))
    source = fit_source(part, own, options, rng)
    values = source.transform(part)
    familiar = find_familiar(values, own, training)
    return SpotFeatures(source, values.shape[1], options.standardise, neighbours, familiar, lattices)


def fit_source(
    part: AnnData, sections: Sections, options: Features, rng: int
) -> ExpressionFeatures | IntensityFeatures | CellTypeFeatures:
    """Fit features of one kind on the training sections, which ``part`` must hold and nothing else."""
    if options.kind == "intensities":
        return fit_intensity_features(part, options, rng)
    if options.kind == "cell_types":
        return fit_cell_type_features(part, options)
    return fit_expression_features(part, sections, options, rng)


def fit_image_features(
    data: SectionData, training: Sequence[str], use_rep: str, options: Features, rng: int
) -> SpotFeatures:
    """Fit principal components of a representation on the training sections alone.

    Standardised components keep the spread that they have over the training spots. With the same spread, the last ones,
    which are mostly noise, would weigh as much as the first.
    """
    rows = np.concatenate([data.rows(name) for name in training])
    source = fit_representation(data.table, rows, use_rep, n_components=filled(options.n_components), rng=rng)
    values = source.transform(data.table)
    familiar = find_familiar(values, data.sections, training)
    width = source.components_FP.shape[1]
    neighbours, lattices = tuple(options.neighbours or ()), read_lattices(data, training)
    weight_P = relative_spread(source.usual(data.table)[rows]) if options.standardise else None
    return SpotFeatures(source, width, options.standardise, neighbours, familiar, lattices, weight_P=weight_P)


def relative_spread(values_NP: np.ndarray) -> np.ndarray:
    """Return the standard deviations of columns, divided by their root mean square; constant columns are alike."""
    spread_P = values_NP.std(axis=0, dtype=np.float64)
    total = np.sqrt(np.square(spread_P).mean())
    return (spread_P / total if total > 0 else np.ones_like(spread_P)).astype(np.float32)


SOURCES = {
    "expression": ExpressionFeatures,
    "intensities": IntensityFeatures,
    "cell_types": CellTypeFeatures,
    "representation": RepresentationFeatures,
}


def features_to_saved(features: SpotFeatures) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Split features into JSON values and arrays."""
    values: dict[str, Any] = {"width": features.width, "standardised": features.standardised}
    values["neighbours"] = list(features.neighbours)
    if features.lattices is not None:
        values["lattices"] = {k: list(v) if k != "layout" else v for k, v in vars(features.lattices).items()}
    arrays: dict[str, np.ndarray] = {}
    if features.familiar is not None:
        arrays |= {f"features.{name}": value for name, value in asdict(features.familiar).items()}
    if features.weight_P is not None:
        arrays["features.weight_P"] = features.weight_P
    if features.domains is not None:
        saved = {**vars(features.domains), **vars(features.domains.surroundings)}
        del saved["surroundings"]
        arrays |= {f"features.domains.{name}": np.atleast_1d(value) for name, value in saved.items()}
    if isinstance(features.source, str):
        return {**values, "use_rep": features.source, "names": list(features.names)}, arrays
    (kind,) = [name for name, source in SOURCES.items() if source is type(features.source)]
    fitted = vars(features.source)
    of_source = {name: value for name, value in fitted.items() if isinstance(value, np.ndarray)}
    values[kind] = {name: value for name, value in fitted.items() if name not in of_source}
    return values, arrays | {f"features.source.{name}": value for name, value in of_source.items()}


def features_from_saved(values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> SpotFeatures:
    """Undo :func:`features_to_saved`."""
    source: Any = values.get("use_rep")
    prefix = "features.source."
    for kind in SOURCES.keys() & values.keys():
        own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        source = SOURCES[kind](**values[kind], **own)
    familiar = None
    if "features.means_SP" in arrays:
        familiar = FamiliarSections(arrays["features.means_SP"], arrays["features.scale_P"])
    lattices = None
    if "lattices" in values:
        saved = values["lattices"]
        lattices = TrainingLattices(saved["layout"], tuple(saved["pitch"]), tuple(saved["pitch_um"]))
    domains = None
    prefix = "features.domains."
    own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    if own:
        surroundings = Gaussians(own.pop("mean_CF"), own.pop("whiten_FF"))
        domains = DomainMoments(surroundings=surroundings, limit=own.pop("limit").item(), **own)
    neighbours = tuple(values["neighbours"])
    return SpotFeatures(
        source,
        values["width"],
        values["standardised"],
        neighbours,
        familiar,
        lattices,
        domains,
        names=values.get("names", []),
        weight_P=arrays.get("features.weight_P"),
    )
