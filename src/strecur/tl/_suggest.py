from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from strecur._anndata import (
    check_free,
    check_key,
    find_library_key,
    open_table,
    read_array,
    read_labels,
    read_section_data,
    require,
    write,
)
from strecur._arguments import check_whole
from strecur._geometry import physical_positions
from strecur.models import DomainModel
from strecur.tl._inputs import require_model

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from strecur._anndata import SectionData
    from strecur.models.features.spots import SpotFeatures

logger = logging.getLogger("strecur")

NOVEL = 0.95
"""Novelty from which on a spot counts as novel, since this share of the training spots is below it."""

LEAST_WEIGHT = 0.5
"""Weight of a suggested place at least, relative to the mean of its cluster."""

MAX_CLUSTERED = 50_000
"""Centres of more places than these make the clusters no better."""


def suggest_annotation(
    adata: AnnData | SpatialData,
    model: DomainModel,
    n: int = 10,
    *,
    label_key: str | None = None,
    n_spots: int = 7,
    key: str = "trm_domains",
    library_key: str | None = None,
    rng: int = 0,
    key_added: str = "suggestions",
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Suggest which places to annotate next, so that few labels teach the model most.

    A place is a spot and its nearest neighbours. Uncertain or novel places have a larger weight. All places are divided
    into ``n`` clusters of similar features by weighted k-means. From each, the place is suggested that is most typical
    among those with at least half of the mean weight. Such places differ from one another, while the most uncertain
    spots lie along a few borders.

    Annotate the suggested places, train again on all annotated spots, and repeat.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the results of :func:`trm_domains` for all of them, also for those with
        some annotation.
    model
        The model that made these results.
    n
        Number of places.
    label_key
        Column of ``obs`` with the annotation so far. Spots with a label are not suggested. If ``None`` (default), no
        spot counts as annotated.
    n_spots
        Number of spots of a place, the spot in its centre included: 7 are a spot and its ring on a hexagonal lattice.
    key
        The ``key_added`` of :func:`trm_domains`.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    rng
        Seed; the same seed gives the same places.
    key_added
        Name of the results.
    copy
        Return a changed copy instead of changing ``adata``.
    table_key
        Table to use if ``adata`` is a SpatialData with several.

    Returns
    -------
    ``None``, or with ``copy=True`` the AnnData. Writes, with ``key`` for ``key_added``:

    ``obs[key]``
        Rank of the place that a spot belongs to, from 1, the place that stands for most uncertainty (float32); NaN
        outside of the suggested places.
    ``obs[f"{key}_weight"]``
        Uncertainty of each spot, from 0 to 1: 1 minus the difference between its two largest probabilities, or its
        novelty if that is larger (float32); NaN for annotated spots and outside the tissue.
    ``uns[key]``
        ``params``; ``places``, a table with one row per place by rank: ``spot`` (name of the spot in the centre),
        ``section``, ``label`` (its predicted domain), ``n_spots`` to annotate, their mean ``weight``, and ``share`` of
        the weight of all places in the cluster that it stands for; and ``sections``, a table in the order in which
        sections need annotation, by the mean ``weight`` of their spots without it, with ``n_spots``, ``n_annotated``
        and ``n_places``.

    Raises
    ------
    KeyError
        If a result of :func:`trm_domains` or ``label_key`` is missing.
    ValueError
        If the results were made with another model, or all spots are annotated.

    Notes
    -----
    Zhdanov, *Diverse mini-batch active learning* (2019), with places instead of single spots; the weight of a place in
    k-means is the squared mean over its spots, with 0 for annotated ones. Above a novelty of 0.95
    (``obs["trm_domains_novelty"]``, if there is one), the weight of a spot rises to 1 at a novelty of 1.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> adata.obs["mine"] = adata.obs["domain"].where(adata.obs_names.isin(adata.obs_names[::20]))
    >>> model = st.tl.train_domains(adata, "mine", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> st.tl.suggest_annotation(adata, model, n=3, label_key="mine")
    >>> adata.uns["suggestions"]["places"].index.to_list()
    [1, 2, 3]
    """
    check_key(key_added)
    require_model(model, DomainModel)
    for name, value in (("n", n), ("n_spots", n_spots)):
        check_whole(name, value)
    check_whole("rng", rng, least=0)
    table = open_table(adata, table_key=table_key, copy=copy)
    check_free(table, key_added, default="suggestions")
    require_results(table, model, key)
    data = read_section_data(table, library_key)
    labels = None if label_key is None else read_labels(data.table, label_key)
    open_N = np.ones(len(data.spot_N), dtype=bool) if labels is None else labels.isna().to_numpy(copy=True)
    weight_N = weigh_spots(data, key)
    open_N &= np.isfinite(weight_N)
    if not open_N.any():
        msg = f"all spots are annotated in adata.obs[{label_key!r}]; there is nothing to suggest"
        raise ValueError(msg)
    place_NK = find_places(data, n_spots)
    features_NF = place_features(model.features, data, place_NK)
    order_N = lattice_order(data)
    candidates = order_N[open_N[order_N]]
    places = choose_places(np.where(open_N, weight_N, 0), features_NF, place_NK, candidates, n, rng)

    rank_N = np.full(len(weight_N), np.nan, dtype=np.float32)
    for rank, centre in reversed(list(enumerate(places.index, 1))):
        rank_N[place_NK[centre][open_N[place_NK[centre]]]] = rank
    params = {"n": n, "n_spots": n_spots, "key": key, "model": model.id, "rng": rng, "label_key": label_key}
    params["library_key"] = find_library_key(table, library_key)
    record = {
        "params": {name: value for name, value in params.items() if value is not None},
        "places": describe_places(data, places, rank_N, weight_N, key),
        "sections": describe_sections(data, open_N, weight_N, places),
    }
    obs = {"": rank_N, "_weight": np.where(open_N, weight_N, np.nan)}
    write(
        table,
        obs={f"{key_added}{name}": data.spread(values) for name, values in obs.items()},
        uns={key_added: record},
    )
    return table if copy else None


def require_results(table: AnnData, model: DomainModel, key: str) -> None:
    """Raise unless the results ``key`` exist and were made with this model."""
    hint = f"Run strecur.tl.trm_domains(adata, model, key_added={key!r}) first."
    require(table.uns, key, where="uns", hint=hint)
    require(table.obs, key, where="obs", hint=hint)
    require(table.obsm, f"{key}_proba", where="obsm", hint=hint)
    if table.uns[key].get("model") != model.id:
        msg = f"the results {key!r} were made with another model. {hint}"
        raise ValueError(msg)


def weigh_spots(data: SectionData, key: str) -> np.ndarray:
    """Return the uncertainty of every spot, or its novelty if that is larger, from 0 to 1."""
    weight_N = uncertainty(read_array(data.table, f"{key}_proba"))
    if f"{key}_novelty" not in data.table.obs:
        return weight_N
    novelty_N = data.table.obs[f"{key}_novelty"].to_numpy(dtype=float)
    return np.fmax(weight_N, np.clip((novelty_N - NOVEL) / (1 - NOVEL), 0, 1))


def uncertainty(proba_NC: np.ndarray) -> np.ndarray:
    """Return 1 minus the difference between the two largest probabilities; NaN stays NaN."""
    second_N, first_N = np.partition(proba_NC, -2, axis=1)[:, -2:].T
    return 1 - (first_N - second_N)


def lattice_order(data: SectionData) -> np.ndarray:
    """Return the positions of the spots by section and lattice site, which do not depend on the order of the table."""
    return np.lexsort((data.grid.col, data.grid.row, data.sections.codes))


def find_places(data: SectionData, n_spots: int) -> np.ndarray:
    """Return the nearest spots of every spot in its section, itself first; in smaller sections it fills the rest."""
    place_NK = np.repeat(np.arange(len(data.spot_N))[:, None], n_spots, axis=1)
    order_N, grid = lattice_order(data), data.grid
    for code in range(len(data.names)):
        rows = order_N[data.sections.codes[order_N] == code]
        position_N2 = physical_positions(grid.row[rows], grid.col[rows], grid.layout)
        nearest = cKDTree(position_N2).query(position_N2, k=np.arange(1, min(n_spots, len(rows)) + 1))[1]
        place_NK[rows, : nearest.shape[1]] = rows[nearest]
    return place_NK


def place_features(features: SpotFeatures, data: SectionData, place_NK: np.ndarray) -> np.ndarray:
    """Return the features of the place around every spot: means, without the noise of single spots."""
    columns_NF, width = features.inputs(data).averaged_NF, features.width
    if features.neighbours:
        return columns_NF[:, width : 2 * width]
    return np.mean([columns_NF[spot_N] for spot_N in place_NK.T], axis=0)


def choose_places(
    weight_N: np.ndarray, features_NF: np.ndarray, place_NK: np.ndarray, candidates: np.ndarray, n: int, rng: int
) -> pd.Series:
    """Choose one place for each cluster of places with similar features.

    Parameters
    ----------
    weight_N
        Weight of every spot, 0 if it is annotated.
    features_NF
        Features of the place around every spot.
    place_NK
        Spots of the place around every spot.
    candidates
        Positions of the spots that can be annotated.
    n
        Number of places.
    rng
        Seed.

    Returns
    -------
    Share of the weight that the cluster of each place has, by the spot in its centre, from the largest to the smallest.
    Fewer than ``n`` if there are not as many that do not overlap.
    """
    from sklearn.cluster import KMeans

    # the square favours uncertain places over the many that are almost certain; equal if all are certain
    weight_N = weight_N[place_NK].mean(axis=1) ** 2 + 1e-9
    part = candidates
    if len(part) > MAX_CLUSTERED:
        part = np.random.default_rng(rng).choice(candidates, MAX_CLUSTERED, replace=False)
    n_clusters = min(n, len(np.unique(features_NF[part], axis=0)))
    clusters = KMeans(n_clusters, n_init=3, random_state=rng).fit(features_NF[part], sample_weight=weight_N[part])
    cluster_N = clusters.predict(features_NF[candidates])
    total_C = np.bincount(cluster_N, weights=weight_N[candidates], minlength=n_clusters)
    taken_N, chosen = np.zeros(len(weight_N), dtype=bool), {}
    for cluster in np.argsort(-total_C, kind="stable"):
        own = candidates[cluster_N == cluster]
        # places that are typical of a cluster may be certain
        usual = np.average(weight_N[own], weights=weight_N[own])
        free = own[~taken_N[place_NK[own]].any(axis=1)]
        free = free[weight_N[free] >= LEAST_WEIGHT * usual]
        if len(free):
            distance = np.linalg.norm(features_NF[free] - clusters.cluster_centers_[cluster], axis=1)
            centre = int(free[np.argmin(distance)])
            taken_N[place_NK[centre]] = True
            chosen[centre] = total_C[cluster] / total_C.sum()
    if len(chosen) < n:
        logger.warning("only %d places are suggested; there are no others that do not overlap", len(chosen))
    return pd.Series(chosen, dtype=float)


def describe_places(
    data: SectionData, places: pd.Series, rank_N: np.ndarray, weight_N: np.ndarray, key: str
) -> pd.DataFrame:
    """Return a table of the suggested places, by rank."""
    ranks = range(1, len(places) + 1)
    own = [rank_N == rank for rank in ranks]
    return pd.DataFrame(
        {
            "spot": data.table.obs_names[places.index].to_numpy(dtype=object),
            "section": np.array(data.names, dtype=object)[data.sections.codes[places.index]],
            "label": [label or "" for label in read_labels(data.table, key).iloc[places.index]],
            "n_spots": [int(spots.sum()) for spots in own],
            "weight": [float(weight_N[spots].mean()) for spots in own],
            "share": places.to_numpy(),
        },
        index=pd.Index(ranks, name="rank"),
    )


def describe_sections(data: SectionData, open_N: np.ndarray, weight_N: np.ndarray, places: pd.Series) -> pd.DataFrame:
    """Return a table of the sections, from the one that needs annotation most."""
    chosen = np.bincount(data.sections.codes[places.index], minlength=len(data.names))
    rows = {}
    for name, n_places in zip(data.names, chosen, strict=True):
        spots = data.rows(name)
        own = spots[open_N[spots]]
        mean = float(weight_N[own].mean()) if len(own) else np.nan
        rows[name] = {
            "weight": mean,
            "n_spots": len(spots),
            "n_annotated": len(spots) - len(own),
            "n_places": int(n_places),
        }
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("section")
    return table.sort_values("weight", ascending=False, kind="stable")
