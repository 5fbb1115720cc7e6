"""SpaGCN without histology, as in its tutorial; ``X`` is dense, because it uses ``.A`` of sparse matrices."""

from __future__ import annotations

import random

import numpy as np
import SpaGCN
import torch
from common import read_arguments, read_normalised, write_labels

options = read_arguments()
adata = read_normalised(options, n_genes=None)
adata.X = adata.X.toarray()
x, y = adata.obs["array_row"].tolist(), adata.obs["array_col"].tolist()
adjacency = SpaGCN.calculate_adj_matrix(x=x, y=y, histology=False)
length = SpaGCN.search_l(0.5, adjacency, start=0.01, end=1000, tol=0.01, max_run=100)
seeds = {"r_seed": options.seed, "t_seed": options.seed, "n_seed": options.seed}
schedule = {"tol": 5e-3, "lr": 0.05}
resolution = SpaGCN.search_res(
    adata, adjacency, length, options.domains, start=0.7, step=0.1, max_epochs=20, max_run=10, **schedule, **seeds
)
for set_seed in (random.seed, torch.manual_seed, np.random.seed):
    set_seed(options.seed)
model = SpaGCN.SpaGCN()
model.set_l(length)
model.train(adata, adjacency, init_spa=True, init="louvain", res=resolution, max_epochs=200, **schedule)
labels, _ = model.predict()
lattice = SpaGCN.calculate_adj_matrix(x=x, y=y, histology=False)
refined = SpaGCN.refine(sample_id=adata.obs_names.tolist(), pred=labels.tolist(), dis=lattice, shape="hexagon")
write_labels(options, adata.obs_names, refined)
