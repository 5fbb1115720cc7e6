"""Splits and gene lists of published protocols, and gene panels, shipped as text."""

from __future__ import annotations

from importlib.resources import files
from typing import IO

import pandas as pd

from strecur._panels import read_panels


def read_split(name: str) -> pd.DataFrame:
    """Read which sections train and which are held out, in every fold of a published protocol.

    Parameters
    ----------
    name
        ``"dlpfc-sections-v1"`` (every section held out once), ``"dlpfc-donors-v1"`` (every donor held out once),
        ``"her2st-b1-v1"`` (B1 for test, B6 for validation, 34 for training), ``"her2st-four-sections-v1"`` (B1, B6, C1
        and D1 held out in turn) or ``"her2st-patients-v1"`` (every patient held out once). The split of a name never
        changes; a new version has a new number.

    Returns
    -------
    DataFrame of strings, sections × folds: ``"train"``, ``"validation"`` or ``"test"``. The role of
    each spot in a fold is ``adata.obs["section"].map(split["B1"])``.

    Raises
    ------
    KeyError
        If there is no such split; the message lists all.

    Examples
    --------
    >>> import strecur as st
    >>> split = st.datasets.read_split("dlpfc-donors-v1")
    >>> list(split.columns), list(split.index[split["Br8100"] == "test"])
    (['Br5292', 'Br5595', 'Br8100'], ['151673', '151674', '151675', '151676'])
    """
    with _open("splits", name, ".tsv") as text:
        return pd.read_csv(text, sep="\t", comment="#", index_col=0, dtype=str).rename(index=str)


def read_genes(name: str) -> list[str]:
    """Read the genes of a published protocol, or of a panel.

    Parameters
    ----------
    name
        ``"her2st-300-training-v1"``: 300 genes of high mean and high variance, chosen on the 34 training sections of
        ``"her2st-b1-v1"``; ``"her2st-300-all-v1"``: the same on all 36 sections, as in the notebook of Stem, which
        includes the test section. Both were computed with :func:`strecur.pp.high_mean_high_variance_genes` by
        ``benchmarks/her2st_genes.py``. Or a panel of :func:`gene_panels`, such as ``"breast"``.

    Returns
    -------
    Gene symbols, in alphabetical order for protocols.

    Raises
    ------
    KeyError
        If there is no such list; the message lists all.

    Examples
    --------
    >>> import strecur as st
    >>> st.datasets.read_genes("her2st-300-training-v1")[:3]
    ['A2M', 'ACTB', 'ACTG1']
    """
    if (panel := read_panels().get(name)) is not None:
        return list(panel.genes)
    with _open("genes", name, ".txt") as text:
        return [line for line in map(str.strip, text) if line and not line.startswith("#")]


def gene_panels() -> pd.DataFrame:
    """List the gene panels that :func:`strecur.tl.train_expression` accepts by name, with their sources.

    Returns
    -------
    DataFrame indexed by the name of the panel, with ``n_genes``, ``description``, ``source`` and ``doi``.
    :func:`read_genes` returns the genes of a panel, as human symbols.

    Examples
    --------
    >>> import strecur as st
    >>> panels = st.datasets.gene_panels()
    >>> int(panels.loc["breast", "n_genes"]), panels.loc["breast", "doi"]
    (50, '10.1200/JCO.2008.18.1370')
    """
    rows = [(p.name, len(p.genes), p.description, p.source, p.doi) for p in read_panels().values()]
    return pd.DataFrame(rows, columns=["name", "n_genes", "description", "source", "doi"]).set_index("name")


def _open(kind: str, name: str, suffix: str) -> IO[str]:
    folder = files("strecur.datasets") / "files" / kind
    names = sorted(entry.name.removesuffix(suffix) for entry in folder.iterdir() if entry.name.endswith(suffix))
    if name not in names:
        names += read_panels() if kind == "genes" else []
        msg = f"{name!r} is not one of the {kind}; there are {names}"
        raise KeyError(msg)
    return (folder / f"{name}{suffix}").open(encoding="utf-8")
