"""Make tutorials short: parts of real sections and one epoch. The tests run this in the first cell of a notebook."""

from __future__ import annotations

import functools

import numpy as np

import strecur as st

N_SPOTS = {"dlpfc": 900, "her2st": 50, "spleen_sample": 150}
"""Spots that are kept of each section."""


def shorten() -> None:
    """Replace data sets by parts of their sections, long trainings by one epoch, and the encoder by a simple one."""
    st.datasets.dlpfc = part_of(st.datasets.dlpfc, N_SPOTS["dlpfc"])
    st.datasets.her2st = part_of(st.datasets.her2st, N_SPOTS["her2st"])
    st.datasets.spleen_sample = part_of(st.datasets.spleen_sample, N_SPOTS["spleen_sample"])
    st.tl.train_domains = one_epoch(st.tl.train_domains)
    st.pp.embed_patches = by_pixels(st.pp.embed_patches)


def part_of(load, n_spots):
    """Keep the spots of each section that are nearest to a line through its layers."""

    @functools.wraps(load)
    def loaded(*args, **kwargs):
        adata = load(*args, **kwargs)
        y = adata.obsm["spatial"][:, 1]
        kept = np.zeros(adata.n_obs, dtype=bool)
        for rows in adata.obs.groupby("section", observed=True).indices.values():
            distance = np.abs(y[rows] - np.quantile(y[rows], 0.6))
            kept[rows[np.argsort(distance)[:n_spots]]] = True
        return adata[kept].copy()

    return loaded


def one_epoch(train):
    """Train for one epoch where the notebook leaves the number to the package."""

    @functools.wraps(train)
    def trained(*args, training=None, **kwargs):
        return train(*args, training={"max_epochs": 1} | dict(training or {}), **kwargs)

    return trained


def by_pixels(embed):
    """Embed one view by the pixels of the patch, shrunk: the encoder of the notebook takes long."""
    pixels = st.pp.Encoder("pixels", lambda patches: patches.reshape(len(patches), -1), 8 * 8 * 3, size=8)

    @functools.wraps(embed)
    def embedded(*args, encoder=None, views=None, **kwargs):
        return embed(*args, encoder=pixels, views=1, **kwargs)

    return embedded
