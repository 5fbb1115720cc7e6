"""GraphST: its embedding, reduced to 20 components and clustered by a tied Gaussian mixture instead of mclust (R)."""

from __future__ import annotations

import anndata as ad
import torch
from common import read_arguments, tied_mixture, write_labels
from GraphST.GraphST import GraphST
from sklearn.decomposition import PCA

options = read_arguments()
adata = ad.read_h5ad(options.section)  # GraphST normalises counts itself
adata.var_names_make_unique()
adata = GraphST(adata, device=torch.device("cpu"), random_seed=options.seed).train()
latent = PCA(n_components=20, random_state=options.seed).fit_transform(adata.obsm["emb"])
write_labels(options, adata.obs_names, tied_mixture(latent, options.domains, options.seed))
