from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from strecur._anndata import (
    check_free,
    check_key,
    find_library_key,
    find_spatial_key,
    open_table,
    read_representation,
    read_sections,
    read_xy,
    require,
    write,
)
from strecur._arguments import check_number, check_whole
from strecur._tissue import find_background

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture
    from spatialdata import SpatialData

METHODS = ("kmeans", "gmm")
CANDIDATES = range(2, 11)
N_SUBSAMPLES = 5
SUBSAMPLE_SHARE = 0.8
# More spots than these make a clustering no more certain.
MAX_SUBSAMPLE = 10_000
EQUALLY_STABLE = 0.01


def cluster_latent(
    adata: AnnData | SpatialData,
    n_domains: int | None = None,
    *,
    use_rep: str = "trm_domains_latent",
    spatial_weight: float = 0.0,
    library_key: str | None = None,
    spatial_key: str | None = None,
    method: Literal["kmeans", "gmm"] = "kmeans",
    rng: int = 0,
    key_added: str = "latent_domains",
    copy: bool = False,
    table_key: str | None = None,
) -> AnnData | None:
    """Cluster the spots of sections by their latent, for tissues with domains the model was not trained on.

    The latent of each spot is scaled to length one. All sections are clustered together, so a cluster means the same in
    each of them.

    Parameters
    ----------
    adata
        Spots of one or several sections; with the latent from :func:`trm_domains`, or another representation.
    n_domains
        Number of clusters, at least 2. If ``None`` (default), the number from 2 to 10 with the most stable clusters:
        for each, five random subsamples of 80 % of the spots are clustered and all spots assigned to the clusters of
        each; the mean adjusted Rand index between these assignments is the stability. Among numbers within .01 of the
        best, the largest is taken.
    use_rep
        Representation in ``obsm`` to cluster.
    spatial_weight
        Append the coordinates of the spots, centred in each section and scaled to a root mean square distance of
        this from its centre; the latents have length one. 0 leaves them out. This favours compact domains, and assumes
        that domains have similar positions in all sections.
    library_key
        Column of ``obs`` with the section of each spot. If ``None`` (default), the one given to
        :func:`strecur.pp.to_grid`.
    spatial_key
        Key of ``obsm`` with the coordinates (x, y) of the spots. If
        ``None`` (default), the one given to :func:`strecur.pp.to_grid`, else ``"spatial"``.
    method
        k-means, or a Gaussian mixture whose components have one common covariance.
    rng
        Seed; the same seed gives the same clusters.
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
        Cluster of each spot (categorical), ``"0"`` being the largest; missing outside the tissue.
    ``uns[key]``
        ``params`` and ``stability`` (a table of n_domains and stability, one row per number that was tried).

    Raises
    ------
    KeyError
        If the representation, the coordinates or ``library_key`` is missing.
    ValueError
        If ``n_domains`` is below 2 or there are too few spots for it, or an option is not one of those above.

    Notes
    -----
    Spatial Tiny Recursive Model, Table 5 (k-means on the latent, with and without coordinates).

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> st.pp.to_grid(adata, library_key="section")
    >>> model = st.tl.train_domains(adata, "domain", training={"max_epochs": 1})
    >>> st.tl.trm_domains(adata, model)
    >>> st.tl.cluster_latent(adata, 3)
    >>> adata.obs["latent_domains"].cat.categories.to_list()
    ['0', '1', '2']
    """
    check_key(key_added)
    if method not in METHODS:
        msg = f"method={method!r}; choose one of {list(METHODS)}"
        raise ValueError(msg)
    check_number("spatial_weight", spatial_weight)
    check_whole("rng", rng, least=0)
    if spatial_weight < 0:
        msg = f"spatial_weight={spatial_weight} must not be negative"
        raise ValueError(msg)
    table = open_table(adata, table_key=table_key, copy=copy)
    check_free(table, key_added, default="latent_domains")
    library_key, spatial_key = find_library_key(table, library_key), find_spatial_key(table, spatial_key)
    inside = ~find_background(table)
    part = table if inside.all() else table[inside]
    candidates = choose_candidates(n_domains, part.n_obs)
    features = unit_length(read_representation(part, use_rep))
    if spatial_weight:
        features = np.hstack([features, spatial_weight * read_places(part, library_key, spatial_key)])
    stability = [measure_stability(features, n, method, rng) for n in candidates]
    n_domains = most_stable(candidates, stability)
    codes = np.full(table.n_obs, -1)
    codes[inside] = by_size(make_clusterer(n_domains, method, rng).fit(features).predict(features))
    params = {
        "n_domains": n_domains,
        "use_rep": use_rep,
        "spatial_weight": spatial_weight,
        "spatial_key": spatial_key,
        "method": method,
        "rng": rng,
    }
    if library_key is not None:
        params["library_key"] = library_key
    record = {"params": params, "stability": pd.DataFrame({"n_domains": list(candidates), "stability": stability})}
    names = [str(i) for i in range(n_domains)]
    write(table, obs={key_added: pd.Categorical.from_codes(codes, names)}, uns={key_added: record})
    return table if copy else None


def choose_candidates(n_domains: int | None, n_spots: int) -> Sequence[int]:
    """Return the numbers of clusters to try."""
    if n_domains is not None:
        check_whole("n_domains", n_domains, least=2)
    candidates = CANDIDATES if n_domains is None else [n_domains]
    if int(SUBSAMPLE_SHARE * n_spots) < max(candidates):
        msg = f"{n_spots} spots are too few for up to {max(candidates)} clusters"
        raise ValueError(msg)
    return candidates


def unit_length(values: np.ndarray) -> np.ndarray:
    """Scale each row to length one; a row of zeros does not change."""
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(length > 0, length, 1.0)


def read_places(table: AnnData, library_key: str | None, spatial_key: str) -> np.ndarray:
    """Return coordinates centred in each section and scaled to a root mean square distance of one from its centre."""
    require(table.obsm, spatial_key, where="obsm", hint="spatial_key names the coordinates (x, y) of the spots")
    sections = read_sections(table, library_key)
    xy = read_xy(table, spatial_key)
    if xy.ndim != 2 or xy.shape[1] < 2 or not np.isfinite(xy).all():
        msg = f"adata.obsm[{spatial_key!r}] is not finite coordinates of all spots, spots × 2; leave out spatial_weight"
        raise ValueError(msg)
    xy = xy[:, :2]
    places = np.empty_like(xy)
    for name in sections.names:
        rows = sections.rows(name)
        centred = xy[rows] - xy[rows].mean(axis=0)
        radius = np.sqrt(np.square(centred).sum(axis=1).mean())
        places[rows] = centred / (radius if radius > 0 else 1.0)
    return places


def make_clusterer(n_domains: int, method: str, rng: int) -> KMeans | GaussianMixture:
    """Return the clustering method."""
    if method == "kmeans":
        from sklearn.cluster import KMeans

        return KMeans(n_domains, n_init=10, random_state=rng)
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(n_domains, covariance_type="tied", n_init=3, random_state=rng)


def measure_stability(features: np.ndarray, n_domains: int, method: str, rng: int) -> float:
    """Return the mean adjusted Rand index between clusterings of random subsamples, over all spots."""
    from sklearn.metrics import adjusted_rand_score

    draw = np.random.default_rng(rng)
    size = min(int(SUBSAMPLE_SHARE * len(features)), MAX_SUBSAMPLE)
    assigned = []
    for seed in range(N_SUBSAMPLES):
        rows = draw.choice(len(features), size, replace=False)
        assigned.append(make_clusterer(n_domains, method, seed).fit(features[rows]).predict(features))
    return float(np.mean([adjusted_rand_score(a, b) for a, b in combinations(assigned, 2)]))


def most_stable(candidates: Sequence[int], stability: Sequence[float]) -> int:
    """Return the largest number of clusters that is practically as stable as the best."""
    return max(n for n, value in zip(candidates, stability, strict=True) if value >= max(stability) - EQUALLY_STABLE)


def by_size(codes: np.ndarray) -> np.ndarray:
    """Renumber clusters from the largest to the smallest."""
    order = np.argsort(-np.bincount(codes), kind="stable")
    return np.argsort(order)[codes]
