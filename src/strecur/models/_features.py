from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._anndata import Grid, Sections, read_representation, require
from strecur.models._novelty import FamiliarSections, find_familiar
from strecur.models._representation import RepresentationFeatures, fit_representation
from strecur.pp._expression import ExpressionFeatures, fit_expression_features
from strecur.pp._neighbourhood import neighbourhood_means, physical_positions, standardise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass(frozen=True)
class SpotFeatures:
    """From an AnnData to the columns every model of this package starts from.

    Attributes
    ----------
    source
        Fitted features of expression or of a representation, or the name of a representation in ``obsm`` that is
        taken as it is.
    width
        Columns of the source.
    standardised
        Centre and scale each section by itself.
    neighbours
        Append means over this many nearest spots.
    familiar
        Where the training sections lie.
    """

    source: ExpressionFeatures | RepresentationFeatures | str
    width: int
    standardised: bool
    neighbours: tuple[int, ...]
    familiar: FamiliarSections | None = None

    def transform(self, adata: AnnData, sections: Sections, grid: Grid) -> np.ndarray:
        """Features of every spot, float32, spots × (width · (1 + number of neighbourhoods))."""
        return self.columns(self.representation(adata), sections, grid)

    def views(self, adata: AnnData, sections: Sections, grid: Grid) -> dict[int, np.ndarray]:
        """Features under every symmetry of the lattice, by element; empty if they are the same under all."""
        if not getattr(self.source, "has_views", False):
            return {}
        views = self.source.views(adata, sections, grid)
        return {element: self.columns(values, sections, grid) for element, values in views.items()}

    def columns(self, values: np.ndarray, sections: Sections, grid: Grid) -> np.ndarray:
        """Features made of the representation of every spot."""
        parts = np.empty((len(values), self.width * (1 + len(self.neighbours))), dtype=np.float32)
        for name in sections.names:
            rows = sections.rows(name)
            own = standardise(values[rows]) if self.standardised else values[rows]
            positions = physical_positions(grid.row[rows], grid.col[rows], grid.layout)
            parts[rows] = np.hstack([own, neighbourhood_means(own, positions, self.neighbours)])
        return parts

    def representation(self, adata: AnnData) -> np.ndarray:
        """Representation before standardisation and neighbourhoods."""
        if not isinstance(self.source, str):
            return self.source.transform(adata)
        require(adata.obsm, self.source, where="obsm", hint="The model was trained on this representation.")
        values = read_representation(adata, self.source)
        if values.shape[1] != self.width:
            msg = f"adata.obsm[{self.source!r}] has {values.shape[1]} columns; the model was trained on {self.width}"
            raise ValueError(msg)
        return values

    def novelty(self, values: np.ndarray, sections: Sections) -> list[float]:
        """How far the representation of each section is from the training sections; 1: as they are from each other."""
        if self.familiar is None:
            return [np.nan] * len(sections.names)
        return [self.familiar.novelty(values[sections.rows(name)]) for name in sections.names]

    @property
    def n_columns(self) -> int:
        """Columns of the transformed features."""
        return self.width * (1 + len(self.neighbours))


def fit_features(
    table: AnnData,
    sections: Sections,
    training: Sequence[str],
    *,
    use_rep: str | None,
    standardise: bool,
    neighbours: Sequence[int],
    layer: str | None,
    size_factor_key: str | None,
    **expression: int,
) -> SpotFeatures:
    """Fit the features on the training sections, which are all that is looked at."""
    if use_rep is not None:
        if layer is not None or size_factor_key is not None:
            msg = "use_rep takes a ready representation; layer and size_factor_key are for expression"
            raise ValueError(msg)
        values = read_representation(table, use_rep)
        familiar = find_familiar(values, sections, training)
        return SpotFeatures(use_rep, values.shape[1], standardise, tuple(neighbours), familiar)
    in_training = np.isin(sections.codes, [sections.names.index(name) for name in training])
    part = table[in_training].to_memory() if table.isbacked else table[in_training]
    codes = pd.Index(training).get_indexer(np.array(sections.names)[sections.codes[in_training]])
    own = Sections(codes, list(training))
    source = fit_expression_features(part, own, layer=layer, size_factor_key=size_factor_key, **expression)
    familiar = find_familiar(source.transform(part), own, training)
    return SpotFeatures(source, source.components_GP.shape[1], standardise, tuple(neighbours), familiar)


def fit_image_features(
    table: AnnData,
    sections: Sections,
    training: Sequence[str],
    *,
    use_rep: str,
    n_components: int,
    standardise: bool,
    neighbours: Sequence[int],
    rng: int,
) -> SpotFeatures:
    """Fit the features of a representation on the training sections, which are all that is looked at."""
    rows = np.concatenate([sections.rows(name) for name in training])
    source = fit_representation(table, rows, use_rep, n_components=n_components, rng=rng)
    familiar = find_familiar(source.transform(table), sections, training)
    return SpotFeatures(source, source.components_FP.shape[1], standardise, tuple(neighbours), familiar)


SOURCES = {"expression": ExpressionFeatures, "representation": RepresentationFeatures}


def features_to_saved(features: SpotFeatures) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Split features into JSON values and arrays."""
    values = {"width": features.width, "standardised": features.standardised, "neighbours": list(features.neighbours)}
    arrays = {}
    if features.familiar is not None:
        arrays |= {f"features.{name}": value for name, value in asdict(features.familiar).items()}
    if isinstance(features.source, str):
        return {**values, "use_rep": features.source}, arrays
    (kind,) = [name for name, source in SOURCES.items() if source is type(features.source)]
    fitted = vars(features.source)
    of_source = {name: value for name, value in fitted.items() if isinstance(value, np.ndarray)}
    values[kind] = {name: value for name, value in fitted.items() if name not in of_source}
    return values, arrays | {f"features.source.{name}": value for name, value in of_source.items()}


def features_from_saved(values: dict[str, object], arrays: dict[str, np.ndarray]) -> SpotFeatures:
    """Undo :func:`features_to_saved`."""
    source, prefix = values.get("use_rep"), "features.source."
    for kind in SOURCES.keys() & values.keys():
        own = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
        source = SOURCES[kind](**values[kind], **own)
    familiar = None
    if "features.means_SP" in arrays:
        familiar = FamiliarSections(arrays["features.means_SP"], arrays["features.scale_P"])
    return SpotFeatures(source, values["width"], values["standardised"], tuple(values["neighbours"]), familiar)
