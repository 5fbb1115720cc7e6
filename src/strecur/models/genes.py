"""Choose the genes that a model of expression predicts."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING

import pandas as pd

from strecur._anndata import find_genes
from strecur._arguments import as_names, meant
from strecur._genes import clean_genes
from strecur._panels import count_named, name_genes, read_panels
from strecur.pp import high_mean_high_variance_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData


def only_counts(table: AnnData, rows: np.ndarray, layer: str | None) -> AnnData:
    """Copy the counts of some spots, and nothing else that is large."""
    from anndata import AnnData

    part = table[rows]
    counts = {"X": part.X} if layer is None else {"layers": {layer: part.layers[layer]}}
    return AnnData(**counts, obs=part.obs, var=part.var)


def count_genes(genes: int | str | Sequence[str], extra_genes: str | Sequence[str]) -> int:
    """Return the number of genes to predict, at most."""
    named = [] if isinstance(genes, Integral) else as_names("genes", genes)
    chosen = int(genes) if isinstance(genes, Integral) else 0
    return chosen + count_named([*named, *as_names("extra_genes", extra_genes)])


def choose_genes(
    training: AnnData,
    genes: int | str | Sequence[str],
    extra_genes: str | Sequence[str],
    *,
    library_key: str | None,
    layer: str | None,
) -> list[str]:
    """Return the genes to predict: as named, members of panels, or chosen on the training sections."""
    if isinstance(genes, Integral):
        return high_mean_high_variance_genes(
            training, int(genes), library_key=library_key, extra_genes=extra_genes, layer=layer
        )
    wanted = list(dict.fromkeys([*as_names("genes", genes), *as_names("extra_genes", extra_genes)]))
    if not wanted:
        msg = "genes is empty; name at least one, or give a number"
        raise ValueError(msg)
    wanted = name_genes("genes", wanted, training.var)
    require_distinct(wanted)
    _, missing = find_genes(training, wanted)
    if missing:
        hint = meant(missing[0], [*read_panels(), *training.var_names])
        msg = f"genes {missing} are not in adata.var_names{hint} (such as {list(training.var_names[:5])})"
        raise KeyError(msg)
    return wanted


def require_distinct(genes: Sequence[str]) -> None:
    """Raise if two names are versions of one gene."""
    named = pd.Series(genes).groupby(clean_genes(genes)).agg(list)
    twice = named[named.map(len) > 1]
    if len(twice):
        msg = f"{twice.iloc[0]} are versions of one gene; name it once"
        raise ValueError(msg)
