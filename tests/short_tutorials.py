"""Make tutorials short: parts of real sections and one epoch. The tests run this in the first cell of a notebook."""

from __future__ import annotations

import functools

import numpy as np

import strecur as st

N_SPOTS = 900
"""Spots that are kept of each section."""


def shorten() -> None:
    """Replace the data set by a part of each section, and long trainings by one epoch."""
    st.datasets.dlpfc = part_of(st.datasets.dlpfc)
    st.tl.train_domains = one_epoch(st.tl.train_domains)


def part_of(load):
    """Keep the spots of each section that are nearest to a line through its layers."""

    @functools.wraps(load)
    def loaded(*args, **kwargs):
        adata = load(*args, **kwargs)
        y = adata.obsm["spatial"][:, 1]
        kept = np.zeros(adata.n_obs, dtype=bool)
        for rows in adata.obs.groupby("section", observed=True).indices.values():
            distance = np.abs(y[rows] - np.quantile(y[rows], 0.6))
            kept[rows[np.argsort(distance)[:N_SPOTS]]] = True
        return adata[kept].copy()

    return loaded


def one_epoch(train):
    """Train for one epoch where the notebook leaves the number to the package."""

    @functools.wraps(train)
    def trained(*args, training=None, **kwargs):
        return train(*args, training={"max_epochs": 1} | dict(training or {}), **kwargs)

    return trained
