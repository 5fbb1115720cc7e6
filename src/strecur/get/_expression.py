"""Predicted expression as an AnnData."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur import _anndata

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

BESIDE = ("_network", "_linear", "_log2", "_sample")


def expression(adata: AnnData | SpatialData, key: str = "trm_expression", *, table_key: str | None = None) -> AnnData:
    """Return predicted expression as a separate AnnData, for use with scanpy and squidpy.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`strecur.tl.predict_expression`.
    key
        The ``key_added`` of that call, or ``f"{key}_network"`` and ``f"{key}_linear"`` for the parts of the answer. For
        models of counts, also ``f"{key}_log2"`` for the mean of log2(count + 1) and ``f"{key}_sample"`` for sampled
        counts.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    A new AnnData of the same spots and the predicted genes:

    - ``X``: predictions, float32 on the scale of the training target with NaN for spots without prediction; int32 for
      predicted counts of all spots, which scanpy can normalise;
    - ``var``: reliability of every gene;
    - ``uns["target"]``: scale of the predictions;
    - ``obs``, ``obsm["spatial"]`` (and the coordinates of the lattice, if they have another key), ``obsm["grid"]``,
      their entries in ``uns``, the colours of categories and the elements of SpatialData that the spots annotate: as in
      ``adata``.

    Raises
    ------
    KeyError
        If there are no such results; the message lists what exists.
    ValueError
        If the number of columns differs from the number of genes.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=12, n_cols=12, n_domains=2, image=True)
    >>> def colour(patches):
    ...     return patches.mean(axis=(1, 2))
    >>> st.pp.to_grid(adata, library_key="section")
    >>> st.pp.embed_patches(adata, encoder=colour, mpp=1.0)
    >>> model = st.tl.train_expression(adata, genes=5, training={"max_epochs": 1})
    >>> st.tl.predict_expression(adata, model)
    >>> st.get.expression(adata).n_vars
    5
    """
    from anndata import AnnData

    table = _anndata.open_table(adata, table_key=table_key, read_only=True)
    hint = "Run strecur.tl.predict_expression(adata, model, key_added=...) first."
    _anndata.require(table.obsm, key, where="obsm", hint=hint)
    described = key if key in table.uns else next((key.removesuffix(s) for s in BESIDE if key.endswith(s)), key)
    _anndata.require(table.uns, described, where="uns", hint=hint)
    record = table.uns[described]
    _anndata.require(record, "var_names", where=f"uns[{described!r}]", hint=hint)
    genes = pd.Index(map(str, record["var_names"]))
    reliability = record.get("reliability", pd.DataFrame(index=genes))
    target = str(record.get("target", "log2"))
    if target == "counts" and key not in {described, f"{described}_network", f"{described}_sample"}:
        target = "log2"  # the scale of the linear baseline and the mean of a model of counts
    values = np.asarray(table.obsm[key])
    if values.shape != (table.n_obs, len(genes)):
        msg = f"obsm[{key!r}] has shape {values.shape}, but {len(genes)} genes were predicted. {hint}"
        raise ValueError(msg)
    places = dict.fromkeys(["spatial", _anndata.find_spatial_key(table, None), "grid"])
    beside = (*places, "spatialdata_attrs", *(f"{column}_colors" for column in table.obs))
    carried = [name for name in beside if name in table.uns]
    return AnnData(
        values.astype(np.int32 if values.dtype.kind in "iu" else np.float32),
        obs=table.obs.copy(),
        var=reliability.reindex(genes),
        obsm={name: np.array(table.obsm[name]) for name in places if name in table.obsm},
        uns={name: table.uns[name] for name in carried} | {"target": target},
    )
