"""Test an installed strecur: data files of the wheel, and the shortest run of both tasks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import strecur as st
from strecur.nn import WindowedConfig

st.settings.accelerator, st.settings.precision, st.settings.progress = "cpu", "32-true", False
SMALL = {
    "backbone": WindowedConfig(width=32, n_heads=2),
    "features": {"n_components": 6, "neighbours": (7,)},
    "training": {"max_epochs": 2, "validation": None},
}

assert "site-packages" in st.__file__, f"not the installed package: {st.__file__}"
assert (Path(st.__file__).parent / "py.typed").is_file()
assert st.datasets.read_split("her2st-b1-v1").shape == (36, 1)
assert st.datasets.read_split("dlpfc-donors-v1").shape == (12, 3)
assert len(st.datasets.read_genes("her2st-300-training-v1")) == 300

adata = st.datasets.synthetic_sections(n_sections=3, n_rows=14, n_cols=14, n_genes=60, n_domains=3, image=True)
st.pp.to_grid(adata, library_key="section")
annotated, new = (adata[mask].copy() for mask in (adata.obs["section"] != "S3", adata.obs["section"] == "S3"))
model = st.tl.train_domains(annotated, "domain", **SMALL)
st.tl.trm_domains(new, model)
assert new.obs["trm_domains"].notna().all()
st.pl.domains(new, show=False)

with tempfile.TemporaryDirectory() as folder:
    model.save(f"{folder}/model")
    again = st.tl.trm_domains(new, st.load_model(f"{folder}/model"), copy=True)
np.testing.assert_allclose(again.obsm["trm_domains_proba"], new.obsm["trm_domains_proba"], atol=1e-5)

for part in (annotated, new):
    st.pp.embed_patches(part, encoder="texture", patches={"px": 128})
expression = st.tl.train_expression(annotated, genes=list(adata.var_names[:5]), **SMALL)
st.tl.predict_expression(new, expression)
assert st.get.expression(new).shape == (new.n_obs, 5)
print(f"strecur {st.__version__} works from {Path(st.__file__).parent}")
