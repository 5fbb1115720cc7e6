"""Seeded synthetic sections: layered tissue whose domains need spatial context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from strecur._arguments import check_whole
from strecur.datasets._anatomy import LOST, MARGIN, draw_anatomy, draw_field, draw_positions
from strecur.datasets._histology import draw_histology

if TYPE_CHECKING:
    from anndata import AnnData

PITCH = 100.0
"""Distance between neighbouring spots in full-resolution pixels, as on a Visium slide with pixels of 1 µm."""

SPOT_DIAMETER = 55.0
HIRES_SCALE = 0.25

N_PATTERNS = 6
"""Number of patterns of cell composition that vary within domains."""

SECTIONS_PER_DONOR = 2

SITES_PER_LAYER = 4
"""Smallest number of rows or columns of sites per layer."""

UNLABELLED = 0.015
"""Share of spots without a label."""

# Standard deviations (for markers: the upper limit) of the terms of a gene's log mean.
DOMAIN_EFFECT = 1.05
PATTERN_EFFECT = 0.35
CELLULARITY_EFFECT = 0.5
DONOR_EFFECT = 0.25
SECTION_EFFECT = 0.12
DEPTH_EFFECT = 0.35

PATTERN_SCALE = 3.0
"""Distance in pitches over which a pattern varies."""

OWN_MIXTURE = 1.5
"""Variation of the cell composition between spots, relative to that over the section."""


@dataclass(frozen=True)
class Genes:
    """Parameters of each gene: log mean, log changes by domain, cell pattern and cellularity, and dispersion."""

    base: np.ndarray
    domains: np.ndarray
    patterns: np.ndarray
    cellularity: np.ndarray
    dispersion: np.ndarray


def synthetic_sections(
    *,
    n_sections: int = 3,
    n_rows: int = 36,
    n_cols: int = 40,
    n_genes: int = 400,
    n_domains: int = 5,
    layout: Literal["hex", "square", "irregular"] = "hex",
    image: bool = False,
    rng: int | np.random.Generator = 0,
) -> AnnData:
    """Simulate sections of a layered tissue with known domains.

    Layers are curved and differ between sections in rotation, bend and thickness; the outline is irregular and has
    holes. Genes depend on the domain, on patterns of cell composition that vary within domains, and on the cellularity
    of the tissue, which is also visible in the image; donors and sections have batch effects. Single spots are so noisy
    that domains cannot be predicted well without spatial context.

    Parameters
    ----------
    n_sections
        Number of sections, named ``"S1"``, ``"S2"``, …, two from each donor ``"D1"``, ``"D2"``, …. A section does not
        depend on the number of sections.
    n_rows, n_cols
        Number of rows and columns of sites of each section; about 70% of the sites have a spot.
    n_genes
        Number of genes.
    n_domains
        Number of layers, named ``"L1"``, ``"L2"``, … from the surface down. Every section has all of them.
    layout
        ``"hex"`` (Visium), ``"square"`` (ST, binned Visium HD) or ``"irregular"`` (cells, without array coordinates).
    image
        Simulate an H&E-like image of each section; it does not change the counts.
    rng
        Seed or generator; the global random state is not used.

    Returns
    -------
    AnnData with ``X`` raw counts (CSR float32, spots × genes) and

    ``obs``
        ``section``, ``donor``, ``domain`` (categorical; missing for a few spots), ``cellularity`` (float32; the hidden
        factor shared by genes and image), ``array_row`` and ``array_col`` (not for irregular).
    ``var``
        ``marker_of`` (categorical; domain of which the gene is a marker, or missing),
        ``follows_cellularity`` (bool).
    ``obsm["spatial"]``
        Coordinates (x, y) in full-resolution pixels of 1 µm; neighbouring spots are 100 pixels apart.
    ``uns["spatial"][section]``
        ``scalefactors`` (``spot_diameter_fullres``, ``tissue_hires_scalef``) and, with ``image``, ``images["hires"]``
        (uint8, height × width × 3).

    Raises
    ------
    ValueError
        If a number is too small, or ``layout`` is not one of the above.

    Examples
    --------
    >>> import strecur as st
    >>> adata = st.datasets.synthetic_sections(n_sections=2, n_rows=14, n_cols=14, n_domains=3)
    >>> adata.obs["section"].cat.categories.to_list()
    ['S1', 'S2']
    """
    _check_sizes(n_sections=n_sections, n_rows=n_rows, n_cols=n_cols, n_genes=n_genes, n_domains=n_domains)
    if layout not in ("hex", "square", "irregular"):
        msg = f"layout={layout!r} is not one of ['hex', 'square', 'irregular']"
        raise ValueError(msg)
    if not isinstance(rng, np.random.Generator):
        check_whole("rng", rng, least=0)
    shared, *own = np.random.default_rng(rng).spawn(1 + n_sections)
    genes = _draw_genes(shared, n_genes, n_domains)
    # Row by row, so that further donors do not change the first ones.
    donor_shifts = shared.normal(0, DONOR_EFFECT, (-(-n_sections // SECTIONS_PER_DONOR), n_genes))

    parts, spatial = [], {}
    for i, generator in enumerate(own):
        name, donor = f"S{i + 1}", i // SECTIONS_PER_DONOR
        part, picture = _draw_section(generator, genes, donor_shifts[donor], (n_rows, n_cols), layout, image=image)
        part.obs.insert(0, "section", name)
        part.obs.insert(1, "donor", f"D{donor + 1}")
        part.obs_names = [f"{name}_{spot}" for spot in part.obs_names]
        parts.append(part)
        scales = {"spot_diameter_fullres": SPOT_DIAMETER, "tissue_hires_scalef": HIRES_SCALE}
        spatial[name] = {"scalefactors": scales} | ({"images": {"hires": picture}} if image else {})

    adata = ad.concat(parts)
    adata.var = _gene_table(genes, n_domains)
    names = [f"L{d + 1}" for d in range(n_domains)]
    adata.obs["domain"] = pd.Categorical.from_codes(adata.obs["domain"].to_numpy(), names)
    for column in ("section", "donor"):
        # In their order of simulation: "S10" comes after "S9".
        adata.obs[column] = pd.Categorical(adata.obs[column], adata.obs[column].unique())
    adata.uns["spatial"] = spatial
    return adata


def _check_sizes(**sizes: int) -> None:
    least = {"n_sections": 1, "n_rows": 12, "n_cols": 12, "n_genes": 20, "n_domains": 2}
    for name, value in sizes.items():
        check_whole(name, value, least=-np.inf)
        if value < least[name]:
            msg = f"{name}={value} is too small; at least {least[name]} is needed"
            raise ValueError(msg)
    most = min(sizes["n_rows"], sizes["n_cols"]) // SITES_PER_LAYER
    if sizes["n_domains"] > most:
        sites = f"{sizes['n_rows']} × {sizes['n_cols']} sites"
        msg = f"n_domains={sizes['n_domains']} layers do not fit on {sites}; at most {most} do"
        raise ValueError(msg)


def _draw_genes(rng: np.random.Generator, n_genes: int, n_domains: int) -> Genes:
    base = rng.normal(-1.2, 1.1, n_genes)
    domains = np.zeros((n_domains, n_genes))
    marker_of = np.where(np.arange(n_genes) < 0.3 * n_genes, np.arange(n_genes) % n_domains, -1)
    marker_of = rng.permutation(marker_of)
    for domain in range(n_domains):
        mine = marker_of == domain
        domains[domain, mine] = rng.uniform(0.3, DOMAIN_EFFECT, mine.sum())
        # Markers are also expressed, at half the effect, in one of the adjacent layers.
        beside = np.clip(domain + rng.choice([-1, 1], mine.sum()), 0, n_domains - 1)
        domains[beside, np.flatnonzero(mine)] = np.maximum(domains[beside, mine], 0.5 * domains[domain, mine])
    patterns = rng.normal(0, PATTERN_EFFECT, (N_PATTERNS, n_genes)) * (rng.random((N_PATTERNS, n_genes)) < 0.3)
    cellularity = np.where(rng.random(n_genes) < 0.2, rng.normal(0, CELLULARITY_EFFECT, n_genes), 0.0)
    return Genes(base, domains, patterns, cellularity, dispersion=rng.gamma(4, 0.5, n_genes))


def _gene_table(genes: Genes, n_domains: int) -> pd.DataFrame:
    strongest = np.where(genes.domains.any(axis=0), genes.domains.argmax(axis=0), -1)
    return pd.DataFrame(
        {
            "marker_of": pd.Categorical.from_codes(strongest, [f"L{d + 1}" for d in range(n_domains)]),
            "follows_cellularity": genes.cellularity != 0,
        },
        index=[f"gene{g + 1:04d}" for g in range(len(genes.base))],
    )


def _draw_section(
    rng: np.random.Generator,
    genes: Genes,
    donor_shift: np.ndarray,
    size: tuple[int, int],
    layout: str,
    *,
    image: bool,
) -> tuple[AnnData, np.ndarray | None]:
    """Simulate the spots of one section, with domains as codes, and its image."""
    sites, xy = draw_positions(rng, size, layout)
    anatomy = draw_anatomy(rng, xy.max(axis=0), len(genes.domains))
    kept = anatomy.in_tissue(xy) & (rng.random(len(xy)) >= LOST)
    sites, xy = sites[kept], xy[kept]
    depth = anatomy.depth(xy)
    borders = np.quantile(depth, np.cumsum(anatomy.thickness)[:-1])
    domain = np.digitize(depth, borders)
    cellularity = anatomy.cellularity(xy)
    patterns = np.column_stack([draw_field(rng, anatomy.extent, PATTERN_SCALE)(xy) for _ in range(N_PATTERNS)])
    counts = _draw_counts(rng, genes, domain, cellularity=cellularity, patterns=patterns, donor_shift=donor_shift)

    label = np.where(rng.random(len(xy)) < UNLABELLED, -1, domain)
    obs = pd.DataFrame({"domain": label, "cellularity": cellularity.astype(np.float32)})
    if layout == "irregular":
        obs.index = [f"cell{i + 1}" for i in range(len(xy))]
    else:
        obs["array_row"], obs["array_col"] = sites.T
        obs.index = [f"{row}x{col}" for row, col in sites]
    part = ad.AnnData(counts, obs=obs, obsm={"spatial": (xy + MARGIN) * PITCH})
    # Last, so that the image does not change anything else.
    return part, draw_histology(rng, anatomy, borders, PITCH * HIRES_SCALE, MARGIN) if image else None


def _draw_counts(
    rng: np.random.Generator,
    genes: Genes,
    domain: np.ndarray,
    *,
    cellularity: np.ndarray,
    patterns: np.ndarray,
    donor_shift: np.ndarray,
) -> sparse.csr_matrix:
    """Draw negative binomial counts, spots × genes, given domain, cellularity and smooth patterns of every spot."""
    n_spots, n_genes = len(domain), len(genes.base)
    # The cell composition of a spot is partly that of its surroundings and partly its own.
    mixture = (patterns + rng.normal(0, OWN_MIXTURE, patterns.shape)) / np.hypot(1, OWN_MIXTURE)
    log_mean = genes.base + donor_shift + rng.normal(0, SECTION_EFFECT, n_genes)
    log_mean = log_mean + genes.domains[domain] + mixture @ genes.patterns + np.outer(cellularity, genes.cellularity)
    library_size = rng.lognormal(rng.normal(0, SECTION_EFFECT), DEPTH_EFFECT, n_spots)
    rate = np.exp(log_mean) * library_size[:, None] * rng.gamma(genes.dispersion, 1 / genes.dispersion, log_mean.shape)
    return sparse.csr_matrix(rng.poisson(rate), dtype=np.float32)
