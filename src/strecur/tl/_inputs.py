"""What the tools share: the sections of an object as a model reads them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from strecur._anndata import open_table, read_section_data
from strecur.models import DomainModel, ExpressionModel, LinearExpressionModel
from strecur.models.features.representation import EMBED
from strecur.models.plan import plan_inference
from strecur.models.sections import engine_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import SectionData
    from strecur.engine import Section
    from strecur.models.features.spots import Inputs
    from strecur.options import Inference

MAKERS = {
    DomainModel: "strecur.tl.train_domains",
    ExpressionModel: "strecur.tl.train_expression",
    LinearExpressionModel: "strecur.tl.train_expression",
}


@dataclass(frozen=True)
class ModelInput:
    """Sections of an object for a model, in the order of their names, and how it is run on them."""

    data: SectionData
    inputs: Inputs
    sections: list[Section]
    inference: Inference


def read_input(
    adata: AnnData | SpatialData,
    model: DomainModel | ExpressionModel,
    inference: Inference,
    *,
    library_key: str | None,
    table_key: str | None,
) -> ModelInput:
    """Read the sections of an object for a model; nothing is changed."""
    table = open_table(adata, table_key=table_key, read_only=True)
    data = read_section_data(table, library_key, use_rep=model.features.use_rep, hint=EMBED)
    inference = plan_inference(model, inference, data.sizes(), data.grid.layout)
    inputs = model.features.inputs(data)
    return ModelInput(data, inputs, engine_sections(data, inputs), inference)


def require_model(model: object, *kinds: type) -> None:
    """Raise unless this is a model of one of these kinds."""
    if not isinstance(model, kinds):
        wanted = " or ".join(dict.fromkeys(MAKERS[kind] for kind in kinds))
        hint = "; load it with strecur.load_model" if isinstance(model, str) else ""
        if isinstance(model, LinearExpressionModel) and ExpressionModel in kinds:
            hint = "; a linear model has no recursion"
        msg = f"expected a model from {wanted}, got {type(model).__name__}{hint}"
        raise TypeError(msg)


def recorded(inference: Inference) -> dict[str, Any]:
    """Return the options of a prediction as they are stored in ``uns``; ``None`` cannot be stored."""
    return {name: value for name, value in asdict(inference).items() if value is not None}
