"""Parts of two CODEX sections of mouse spleen (Goltsev et al. 2018), which come with the package."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

SOURCE = (
    "CODEX of mouse spleen (Goltsev et al. 2018): position, published cell type and compartment of cells, from "
    "github.com/huBioinfo/CytoCommunity (9dab5f1, MIT licence); squares of 1,200 pixels in which the shares of the "
    "compartments are close to those of the whole section"
)


def spleen_sample() -> AnnData:
    """Load three small squares of mouse spleen with published cell types and compartments.

    4,260 cells of two mice: two squares of BALBc-1 and one of BALBc-2. Nothing is downloaded.

    Returns
    -------
    AnnData without genes and

    ``obs``
        ``section`` (``"BALBc-1 A"``, ``"BALBc-1 B"``, ``"BALBc-2"``), ``cell_type`` (published types) and ``domain``
        (``red pulp``, ``PALS``, ``marginal zone``, ``B-zone``; a few cells have none).
    ``obsm["spatial"]``
        (x, y) in pixels.
    ``uns["source"]``
        Origin and licence.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.spleen_sample()
    >>> adata.obs["section"].cat.categories.to_list()
    ['BALBc-1 A', 'BALBc-1 B', 'BALBc-2']
    """
    from anndata import AnnData

    with (files("strecur.datasets") / "files" / "spleen.csv.gz").open("rb") as packed:
        table = pd.read_csv(packed, compression="gzip")
    table.index = table["section"] + "_" + table.groupby("section").cumcount().astype(str)
    obs = table[["section", "cell_type", "domain"]].astype("category")
    return AnnData(obs=obs, obsm={"spatial": table[["x", "y"]].to_numpy(dtype=float)}, uns={"source": SOURCE})
