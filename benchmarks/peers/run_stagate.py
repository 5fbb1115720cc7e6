"""STAGATE (stagate-modern): its embedding, clustered by a tied Gaussian mixture instead of mclust (R)."""

from __future__ import annotations

import numpy as np
import STAGATE_pyG as stagate
from common import read_arguments, read_normalised, tied_mixture, write_labels
from scipy.spatial import cKDTree

options = read_arguments()
adata = read_normalised(options)
adata.var["highly_variable"] = True
spacing = np.median(cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], k=2)[0][:, 1])
stagate.Cal_Spatial_Net(adata, rad_cutoff=1.2 * spacing)
adata = stagate.train_STAGATE(adata, random_seed=options.seed, device="cpu")
write_labels(options, adata.obs_names, tied_mixture(adata.obsm["STAGATE"], options.domains, options.seed))
