"""scANVI: trained on annotated sections, spot by spot, and then fitted to the section without its labels."""

from __future__ import annotations

import anndata as ad
import pandas as pd
import scanpy as sc
import scvi
from common import read_arguments, write_labels

EPOCHS = {"scvi": 60, "scanvi": 20, "query": 40}
UNKNOWN = "unknown"

options = read_arguments()
scvi.settings.seed = options.seed
train = ad.concat({path.stem: ad.read_h5ad(path) for path in options.train}, label="section", index_unique="-")
sc.pp.highly_variable_genes(train, n_top_genes=3000, flavor="cell_ranger", batch_key="section", inplace=True)
train = train[:, train.var["highly_variable"]].copy()
train.obs["domain"] = pd.Categorical(train.obs["domain"].astype(object).where(train.obs["domain"].notna(), UNKNOWN))
query = ad.read_h5ad(options.section)[:, train.var_names].copy()
query.obs["section"], query.obs["domain"] = options.section.stem, UNKNOWN

cpu = {"accelerator": "cpu", "enable_progress_bar": False}
scvi.model.SCVI.setup_anndata(train, batch_key="section", labels_key="domain")
model = scvi.model.SCVI(train, n_layers=2, n_latent=30)
model.train(max_epochs=EPOCHS["scvi"], **cpu)
model = scvi.model.SCANVI.from_scvi_model(model, unlabeled_category=UNKNOWN)
model.train(max_epochs=EPOCHS["scanvi"], **cpu)
model = scvi.model.SCANVI.load_query_data(query, model)
model.train(max_epochs=EPOCHS["query"], plan_kwargs={"weight_decay": 0.0}, **cpu)
write_labels(options, query.obs_names, model.predict())
