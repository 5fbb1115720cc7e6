"""SpatialLeiden: Leiden clustering of expression and neighbourhood, with the resolution chosen by number of domains."""

from __future__ import annotations

import scanpy as sc
from common import lattice_neighbours, read_arguments, read_normalised, write_labels
from spatialleiden import search_resolution

options = read_arguments()
adata = read_normalised(options)
sc.pp.pca(adata, n_comps=50, random_state=options.seed)
sc.pp.neighbors(adata, random_state=options.seed)
adata.obsp["spatial_connectivities"] = lattice_neighbours(adata)
seed = {"random_state": options.seed}
search_resolution(adata, options.domains, latent_kwargs=dict(seed), spatial_kwargs={**seed, "directed": (False, False)})
write_labels(options, adata.obs_names, adata.obs["spatialleiden"])
