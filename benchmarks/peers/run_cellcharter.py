"""CellCharter: components of expression averaged over rings of neighbours, clustered by a Gaussian mixture.

Its tutorials use components of scVI; here they are principal components.
"""

from __future__ import annotations

import cellcharter as cc
import scanpy as sc
from common import lattice_neighbours, read_arguments, read_normalised, write_labels

options = read_arguments()
adata = read_normalised(options)
sc.pp.pca(adata, n_comps=50, random_state=options.seed)
adata.obsp["spatial_connectivities"] = lattice_neighbours(adata)
cc.gr.aggregate_neighbors(adata, n_layers=4, use_rep="X_pca", out_key="X_cellcharter")
cpu = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
model = cc.tl.Cluster(options.domains, random_state=options.seed, trainer_params=cpu)
model.fit(adata, use_rep="X_cellcharter")
write_labels(options, adata.obs_names, model.predict(adata, use_rep="X_cellcharter"))
