from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur._anndata import check_key, open_table, read_sections, write
from strecur._settings import settings
from strecur.engine import Inference
from strecur.tl._checks import check_dense_size
from strecur.tl._embedded import input_of, read_embedded
from strecur.tl._reasoning import describe_sections
from strecur.tl._sections import join, make_sections

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur.models import ExpressionModel


def predict_expression(
    adata: AnnData | SpatialData,
    model: ExpressionModel,
    *,
    library_key: str | None = None,
    depth: int | None = None,
    symmetric: bool = True,
    key_added: str = "trm_expression",
    accelerator: str | None = None,
    precision: str | None = None,
    progress: bool | None = None,
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Predict expression of every spot from its histology, with nothing fitted on the sections predicted.

    Parameters
    ----------
    adata
        Spots of one or several sections. They need ``obsm["grid"]`` from :func:`strecur.pp.to_grid` and the embedding
        the model was trained on, made by :func:`strecur.pp.embed_patches`, but no genes: they may come from
        :func:`strecur.pp.tile_image`.
    model
        From :func:`train_expression` or :func:`strecur.load_model`.
    library_key
        Column of ``obs`` that tells sections apart.
    depth
        Outer steps to think for; not given: as many as in training.
    symmetric
        Average the predictions over the views of the lattice that look alike (flips; on square lattices also turns),
        each with the features of the patches turned so, if the model was trained on them.
    key_added
        Name of the results.
    accelerator
        Device family as in Lightning (``"cpu"``, ``"cuda"``, …); not given: ``settings.accelerator``.
    precision
        Precision as in Lightning; not given: bf16 where the device is faster with it.
    progress
        Show a progress bar; not given: ``settings.progress``.
    copy
        Return a changed copy instead of changing ``adata``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``, or with ``copy=True`` the AnnData. Writes, with ``key`` for ``key_added``:

    ``obsm[key]``
        Predicted expression on the scale of the training target (float32, spots × genes). Spots whose embedding is
        NaN, such as those outside the image, have NaN.
    ``obsm[f"{key}_linear"]``
        The same by the linear baseline.
    ``uns[key]``
        ``params``, ``var_names`` (the genes), ``target`` (their scale), ``model`` (its id), ``reliability`` (a table of
        how well each gene is predicted; see :class:`~strecur.models.ExpressionModel`) and ``sections`` (a table of
        n_spots, n_predicted, novelty and, of a network, n_steps, halt_step, halt_probability and residual by section).

    Raises
    ------
    KeyError
        If the lattice or the embedding is missing.
    ValueError
        If the embedding is of another encoder or width, or ``depth`` is below 1.
    """
    check_key(key_added)
    if depth is not None and depth < 1:
        msg = f"depth={depth}: at least one outer step is needed"
        raise ValueError(msg)
    table = open_table(adata, table_key=table_key, copy=copy)
    embedded = read_embedded(table, model.features.source.use_rep, library_key)
    sections, grid = embedded.sections, embedded.grid
    columns, views, averaged, novelty = input_of(model.features, embedded)
    linear_NG = model.baseline.predict(averaged)
    predicted_NG, by_section = linear_NG, pd.DataFrame(index=pd.Index(sections.names, name="section"))
    params = {}
    if model.network is not None:
        check_dense_size(model.backbone, sections, sections.names)
        inference = Inference(depth or model.architecture.n_steps, symmetric=symmetric, keep_steps=False)
        restarts = model.predict(
            make_sections(columns, sections, grid, sections.names, views=views),
            inference,
            accelerator=accelerator or settings.accelerator,
            precision=precision or settings.precision,
            progress=settings.progress if progress is None else progress,
        )
        predicted_NG = join(sections, [runs[0].output_DN[-1] for runs in restarts], axis=0)
        threshold = model.network.recipe.threshold if model.halting else 0.5
        by_section = describe_sections(sections, restarts, threshold).drop(columns="n_spots")
        params = {"depth": inference.depth, "symmetric": symmetric}
    by_section.insert(0, "n_predicted", np.bincount(sections.codes, minlength=len(sections.names)))
    by_section["novelty"] = novelty
    if library_key is not None:
        params["library_key"] = library_key
    write(
        table,
        obsm={key_added: embedded.spread(predicted_NG), f"{key_added}_linear": embedded.spread(linear_NG)},
        uns={
            key_added: {
                "params": params,
                "var_names": list(model.genes),
                "target": model.target.scale,
                "model": model.id,
                "reliability": model.reliability.copy(),
                "sections": with_all_sections(table, library_key, by_section),
            }
        },
    )
    return table if copy else None


def with_all_sections(table: AnnData, library_key: str | None, by_section: pd.DataFrame) -> pd.DataFrame:
    """Add how many spots there are, and the sections of which no spot was predicted."""
    sections = read_sections(table, library_key)
    by_section = by_section.reindex(pd.Index(sections.names, name="section"))
    by_section["n_predicted"] = by_section["n_predicted"].fillna(0).astype(int)
    by_section.insert(0, "n_spots", np.bincount(sections.codes, minlength=len(sections.names)))
    return by_section
