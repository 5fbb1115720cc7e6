"""Fit of regular lattices (hex or square) to spot coordinates."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from strecur.pp.grid.placement import Placement, site_ids

NEIGHBOURS = {"hex": 6, "square": 4}
STEPS = {"hex": np.array([[1, 0], [0, 1], [-1, 1]]), "square": np.array([[1, 0], [0, 1]])}
"""Half of the steps to the nearest sites, in units of the two lattice vectors."""

MIN_ORDER = 0.15
"""Bond-orientational order (0 to 1) below which spots do not form a lattice; jitter and warps lower it."""

REACH = 1.25
"""Neighbours are at most this many times the typical nearest distance away (the next shell is at 1.41 or 1.73)."""

MAX_STRETCH = 1.25
"""How much longer one step of a lattice may be than another."""

TOLERANCE = 0.45
"""A neighbour may miss the position that the lattice predicts by this many pitches; at 0.5 steps become ambiguous."""

NEARBY = 6
"""Number of nearest spots that determine where the lattice lies locally."""

MIN_AGREEMENT = 0.95
"""Share of neighbouring spots that must be exactly one lattice step apart."""

MAX_MISS = 0.25
"""Root mean square deviation of steps, in pitches, that jitter and warps may cause; unordered spots have 0.32."""


MAX_STRAY = 0.01
"""Share of spots that may fall on the site of another one, to which they do not belong; one may in any section."""


class NoLatticeError(ValueError):
    """Spots do not form the lattice that was asked for."""


def bond_order(xy: np.ndarray, layout: str) -> tuple[complex, int, float]:
    """Return the summed bond order exp(i k θ) over neighbour vectors, their number and their median length."""
    fold = NEIGHBOURS[layout]
    distance, neighbour = cKDTree(xy).query(xy, k=min(fold + 1, len(xy)))
    near = distance[:, 1:] < REACH * np.median(distance[:, 1])
    vectors = (xy[neighbour[:, 1:]] - xy[:, None])[near]
    angle = np.arctan2(vectors[:, 1], vectors[:, 0])
    return np.exp(1j * fold * angle).sum(), len(angle), float(np.median(distance[:, 1:][near]))


def likely_layout(sections: list[np.ndarray]) -> str:
    """Return the layout with the higher bond-orientational order over all sections, irregular if neither has any."""
    order = {}
    for layout in ("square", "hex"):
        sums, counts, _ = zip(*(bond_order(xy, layout) for xy in sections), strict=True)
        order[layout] = np.abs(sums).sum() / sum(counts)
    if max(order.values()) < MIN_ORDER:
        return "irregular"
    return "hex" if order["hex"] > order["square"] + 1e-9 else "square"


def fit_lattice(xy: np.ndarray, layout: str) -> Placement:
    """Place spots on the hex or square lattice that fits them.

    Neighbouring spots are joined by lattice steps, and indices are summed along a minimum spanning tree, which
    tolerates smooth warps. Pieces that are not connected are then placed by least squares over the whole section.

    Parameters
    ----------
    xy
        Coordinates, spots × 2, sorted and without duplicates.
    layout
        ``"hex"`` or ``"square"``.

    Returns
    -------
    The placement, hex with doubled columns.

    Raises
    ------
    NoLatticeError
        If the spots do not form this lattice; the message is the reason.
    """
    if len(xy) == 1:
        return Placement(np.zeros((1, 2), dtype=np.int64), np.nan, np.zeros(1))
    tree = cKDTree(xy)
    basis = _refine(tree, _first_basis(xy, layout), layout)
    source, target, step = _bonds(tree, basis, layout)
    index = _sum_steps(xy, basis, layout, source, target)
    index = _join_pieces(xy, basis, index, _pieces(len(xy), source, target))
    basis, origin, index = _correct_single_spots(xy, basis, index)
    pitch = _pitch(basis, layout)

    shared_sites = len(index) - len(np.unique(site_ids(index)))
    if shared_sites > max(MAX_STRAY * len(index), 1):
        msg = f"{shared_sites} spots fall on the site of another spot of a {layout} lattice"
        raise NoLatticeError(msg)
    index = _with_own_sites(xy, basis, origin, index)
    if not _is_regular(basis, layout):
        msg = f"neighbouring spots are not equally far apart in the directions of a {layout} lattice"
        raise NoLatticeError(msg)
    agreement = _agreement(tree, pitch, layout, index)
    if agreement < MIN_AGREEMENT:
        msg = f"only {agreement:.0%} of neighbouring spots are one step of a {layout} lattice apart"
        raise NoLatticeError(msg)
    miss = np.linalg.norm(xy[target] - xy[source] - step @ basis, axis=1) / pitch
    if len(miss) and np.sqrt(np.mean(miss**2)) > MAX_MISS:
        msg = f"steps between neighbouring spots miss those of a {layout} lattice by {np.sqrt(np.mean(miss**2)):.2f}"
        raise NoLatticeError(msg)
    displacement = np.linalg.norm(xy - index @ basis - origin, axis=1) / pitch
    return Placement(_to_rows_and_cols(index, layout), pitch, displacement)


def _first_basis(xy: np.ndarray, layout: str) -> np.ndarray:
    order, _, pitch = bond_order(xy, layout)
    period = 2 * np.pi / NEIGHBOURS[layout]
    angle = np.angle(order) / NEIGHBOURS[layout]
    # The range of angles ends away from 0, 30 and 45 degrees, where rounding would choose between equal lattices.
    if angle < -period / 2 + np.deg2rad(8):
        angle += period
    angles = np.array([angle, angle + (np.pi / 3 if layout == "hex" else np.pi / 2)])
    return pitch * np.column_stack([np.cos(angles), np.sin(angles)])


def _pitch(basis: np.ndarray, layout: str) -> float:
    return float(np.linalg.norm(STEPS[layout] @ basis, axis=1).mean())


def _bonds(tree: cKDTree, basis: np.ndarray, layout: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs (source, target) of spots that are one lattice step apart, and that step."""
    found = []
    for step in STEPS[layout]:
        reach = TOLERANCE * _pitch(basis, layout)
        distance, target = tree.query(tree.data + step @ basis, distance_upper_bound=reach)
        source = np.flatnonzero(np.isfinite(distance))
        source = source[target[source] != source]
        found.append((source, target[source], np.broadcast_to(step, (len(source), 2))))
    source, target, step = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return source, target, step


def _refine(tree: cKDTree, basis: np.ndarray, layout: str) -> np.ndarray:
    """Average the lattice vectors over all bonds, then find the bonds again with them."""
    for _ in range(3):
        source, target, step = _bonds(tree, basis, layout)
        if np.linalg.matrix_rank(step) < 2:
            return basis
        basis = np.linalg.lstsq(step.astype(float), tree.data[target] - tree.data[source], rcond=None)[0]
    return basis


def _is_regular(basis: np.ndarray, layout: str) -> bool:
    """Tell whether the lattice vectors have about the lengths and the angle of the layout."""
    diagonals = np.array([[1, 1], [1, -1]])
    groups = [STEPS["hex"]] if layout == "hex" else [STEPS["square"], diagonals]
    lengths = [np.linalg.norm(group @ basis, axis=1) for group in groups]
    return all(length.max() < MAX_STRETCH * length.min() for length in lengths)


def _sum_steps(xy: np.ndarray, basis: np.ndarray, layout: str, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Sum lattice steps from one spot of each connected piece along the least deviating tree."""
    n = len(xy)
    steps = np.concatenate([STEPS[layout], -STEPS[layout]])
    _, miss = _nearest_step(xy[target] - xy[source], steps, basis)
    bonds = sparse.coo_matrix((1 + miss / _pitch(basis, layout), (source, target)), shape=(n, n)).tocsr()
    tree = csgraph.minimum_spanning_tree(bonds).tocoo()
    # A node beyond the spots is tied to one spot of each piece, so that a single search reaches all of them.
    roots = np.unique(_pieces(n, source, target), return_index=True)[1]
    ends = np.concatenate([tree.row, np.full(len(roots), n)]), np.concatenate([tree.col, roots])
    search = sparse.coo_matrix((np.ones(len(ends[0])), ends), shape=(n + 1, n + 1)).tocsr()
    _, parent = csgraph.breadth_first_order(search, n, directed=False)
    parent[n] = n

    index = np.zeros((n + 1, 2), dtype=np.int64)
    inner = np.flatnonzero(parent[:n] != n)
    index[inner] = steps[_nearest_step(xy[inner] - xy[parent[inner]], steps, basis)[0]]
    while (parent != n).any():
        index += index[parent]
        parent = parent[parent]
    return index[:n]


def _nearest_step(vectors: np.ndarray, steps: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the lattice step nearest to each vector, and by how much they differ."""
    miss = np.stack([np.linalg.norm(vectors - step @ basis, axis=1) for step in steps])
    return miss.argmin(axis=0), miss.min(axis=0)


def _pieces(n: int, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    bonds = sparse.coo_matrix((np.ones(len(source)), (source, target)), shape=(n, n))
    return csgraph.connected_components(bonds, directed=False)[1]


def _join_pieces(xy: np.ndarray, basis: np.ndarray, index: np.ndarray, piece: np.ndarray) -> np.ndarray:
    """Shift connected pieces by whole sites to continue the largest one, the closest pieces first."""
    index = index.copy()
    placed = piece == np.bincount(piece).argmax()
    while not placed.all():
        away = _residual(xy, basis, index, placed)[2]
        distance, nearest = _nearest(cKDTree(xy[placed]), xy[~placed], NEARBY)
        expected = np.median(away[placed][nearest], axis=1)
        waiting = piece[~placed]
        gap = np.full(piece.max() + 1, np.inf)
        np.minimum.at(gap, waiting, distance[:, 0])
        contact = distance[:, 0] <= 1.5 * gap[waiting]
        spots = np.maximum(np.bincount(waiting[contact], minlength=len(gap)), 1)
        differ = (away[~placed] - expected)[contact]
        shift = [np.bincount(waiting[contact], differ[:, axis], minlength=len(gap)) / spots for axis in (0, 1)]
        ready = gap <= 1.5 * gap.min()
        joining = ready[piece] & ~placed
        index[joining] += _nearest_site(np.column_stack(shift), basis)[piece[joining]]
        placed |= joining
    return index


def _correct_single_spots(
    xy: np.ndarray, basis: np.ndarray, index: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Move spots that disagree with their surroundings by whole sites, fitting the lattice again each time."""
    _, nearest = _nearest(cKDTree(xy), xy, NEARBY + 1)
    for _ in range(10):
        basis, origin, away = _residual(xy, basis, index, np.ones(len(xy), dtype=bool))
        shift = _nearest_site(away - np.median(away[nearest], axis=1), basis)
        if not shift.any():
            break
        index = index + shift
    return basis, origin, index


def _with_own_sites(xy: np.ndarray, basis: np.ndarray, origin: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Give spots that share a site the nearest free one, but the spot that is closest to it."""
    index = index.copy()
    miss = np.linalg.norm(xy - index @ basis - origin, axis=1)
    closest_first = np.argsort(miss, kind="stable")
    first = np.unique(site_ids(index)[closest_first], return_index=True)[1]
    taken = set(map(tuple, index[closest_first[first]].tolist()))
    steps = np.stack(np.meshgrid(np.arange(-9, 10), np.arange(-9, 10)), axis=-1).reshape(-1, 2)
    for spot in np.delete(closest_first, first):
        sites = [site for site in (index[spot] + steps).tolist() if tuple(site) not in taken]
        away = np.linalg.norm(np.array(sites) @ basis + origin - xy[spot], axis=1)
        index[spot] = sites[int(away.argmin())]
        taken.add(tuple(index[spot].tolist()))
    return index


def _residual(
    xy: np.ndarray, basis: np.ndarray, index: np.ndarray, placed: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the lattice to the placed spots; return basis, origin and how far every spot is from its site, in steps."""
    basis, origin = _least_squares(index[placed], xy[placed], basis)
    return basis, origin, (xy - origin) @ np.linalg.pinv(basis) - index


def _nearest_site(position: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return the lattice site nearest to positions given in steps: a corner of the cell they fall into."""
    corners = np.floor(position).astype(np.int64)[:, None] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    distance = np.linalg.norm((corners - position[:, None]) @ basis, axis=2)
    return corners[np.arange(len(corners)), distance.argmin(axis=1)]


def _nearest(tree: cKDTree, xy: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return tree.query(xy, k=np.arange(1, min(k, tree.n) + 1))


def _least_squares(index: np.ndarray, xy: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit ``xy = index @ basis + origin``; spots on one line keep the given basis."""
    if np.linalg.matrix_rank(index - index[0]) == 2:
        centred = index - index.mean(axis=0)
        basis = np.linalg.lstsq(centred, xy - xy.mean(axis=0), rcond=None)[0]
    return basis, xy.mean(axis=0) - index.mean(axis=0) @ basis


def _agreement(tree: cKDTree, pitch: float, layout: str, index: np.ndarray) -> float:
    """Return the share of spots with a close neighbour whose closest one is exactly one step away."""
    distance, nearest = tree.query(tree.data, k=2)
    close = np.flatnonzero(distance[:, 1] < REACH * pitch)
    difference = index[nearest[close, 1]] - index[close]
    if layout == "hex":  # (1, -1) and (-1, 1) are steps, (1, 1) and (-1, -1) are not
        one_step = (np.abs(difference).max(axis=1, initial=0) == 1) & (np.abs(difference.sum(axis=1)) <= 1)
    else:
        one_step = np.abs(difference).sum(axis=1) == 1
    return float(one_step.mean()) if len(close) else 1.0


def _to_rows_and_cols(index: np.ndarray, layout: str) -> np.ndarray:
    """Turn indices along the lattice vectors into (row, col) from zero; hex gets doubled columns of even parity."""
    row = index[:, 1] - index[:, 1].min()
    if layout == "square":
        return np.column_stack([row, index[:, 0] - index[:, 0].min()])
    col = 2 * index[:, 0] + row
    return np.column_stack([row, col - (col.min() - col.min() % 2)])


def place_few(xy: np.ndarray, layout: str) -> Placement:
    """Place a handful of spots that do not form a lattice on fine sites of the layout, in their true arrangement."""
    distance, _ = cKDTree(xy).query(xy, k=2)
    # Sites are closer together than any two spots, so that no two spots share one.
    pitch = distance[:, 1].min() / 1.6
    rise = np.sqrt(3) / 2 if layout == "hex" else 1.0
    row = np.rint((xy[:, 1] - xy[:, 1].min()) / (rise * pitch)).astype(np.int64)
    lean = row % 2 / 2 if layout == "hex" else 0.0
    col = (xy[:, 0] - xy[:, 0].min()) / pitch
    site = np.rint(col - lean)
    miss = np.hypot((site + lean) - col, rise * row - (xy[:, 1] - xy[:, 1].min()) / pitch)
    col = (2 * (site + lean) if layout == "hex" else site).astype(np.int64)
    return Placement(np.column_stack([row, col]), float(pitch), miss)
