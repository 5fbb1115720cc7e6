"""Synthetic sections keep what their description promises."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import scale

import strecur as st

LAYOUTS = ("hex", "square", "irregular")
SMALL = {"n_rows": 20, "n_cols": 22, "n_genes": 60, "n_domains": 3}


def draw(**options):
    return st.datasets.synthetic_sections(**SMALL | options)


def one(adata, name):
    return adata[adata.obs["section"] == name].copy()


def assert_same(a, b):
    """Compare everything but the picture."""
    pd.testing.assert_frame_equal(a.obs, b.obs, check_categorical=False)
    pd.testing.assert_frame_equal(a.var, b.var)
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    np.testing.assert_array_equal(a.obsm["spatial"], b.obsm["spatial"])


@pytest.fixture(scope="module")
def default():
    return st.datasets.synthetic_sections()


@pytest.fixture(scope="module")
def pictured():
    return draw(n_sections=2, image=True, n_rows=30, n_cols=30)


def test_the_same_seed_draws_the_same():
    adata = draw(image=True)
    again = draw(image=True, rng=np.random.default_rng(0))
    assert_same(adata, again)
    for name in ("S1", "S3"):
        pictures = [x.uns["spatial"][name]["images"]["hires"] for x in (adata, again)]
        np.testing.assert_array_equal(*pictures)
    other = draw(rng=1)
    assert adata.shape != other.shape or (adata.X != other.X).nnz > 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_section_does_not_depend_on_how_many_there_are(layout):
    few, many = draw(n_sections=1, layout=layout), draw(n_sections=5, layout=layout)
    assert_same(few, one(many, "S1"))
    assert_same(one(draw(n_sections=4, layout=layout), "S4"), one(many, "S4"))


def test_an_image_does_not_change_the_rest(pictured):
    assert_same(draw(n_sections=2, n_rows=30, n_cols=30), pictured)


def test_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 the state that must not change
    draw(image=True, n_sections=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_lattice_is_what_to_grid_finds(layout):
    adata = draw(layout=layout)
    st.pp.to_grid(adata, library_key="section")
    assert adata.uns["grid"]["layout"] == layout
    if layout == "irregular":
        assert "array_row" not in adata.obs
        assert adata.uns["grid"]["sections"]["mean_displacement"].max() < 0.5
        return
    row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
    np.testing.assert_array_equal(adata.obsm["grid"], np.column_stack([row, col]))
    if layout == "hex":
        assert ((row + col) % 2 == 0).all()
    for name in adata.obs["section"].cat.categories:
        spatial = one(adata, name).obsm["spatial"]
        distance = cKDTree(spatial).query(spatial, k=7)[0][:, 1:]
        np.testing.assert_allclose(distance[:, 0], 100)
        neighbours = 6 if layout == "hex" else 4
        assert ((distance < 101).sum(axis=1) == neighbours).mean() > 0.5


def test_counts_are_counts(default):
    assert default.X.dtype == np.float32
    assert default.X.format == "csr"
    assert (default.X.data == np.round(default.X.data)).all()
    assert default.X.data.min() >= 1
    assert 0.05 < default.X.nnz / np.prod(default.shape) < 0.9


def test_sections_and_donors(default):
    assert default.obs["section"].cat.categories.tolist() == ["S1", "S2", "S3"]
    donors = default.obs.groupby("section", observed=True)["donor"].unique()
    assert [list(d) for d in donors] == [["D1"], ["D1"], ["D2"]]
    assert default.obs_names.is_unique
    means = {name: np.log(np.asarray(one(default, name).X.mean(axis=0)).ravel() + 0.01) for name in donors.index}
    within, between = (np.std(means["S2"] - means[name]) for name in ("S1", "S3"))
    assert between > 1.3 * within > 0.1


def test_many_sections_are_in_order():
    adata = st.datasets.synthetic_sections(n_sections=11, n_rows=12, n_cols=12, n_genes=20, n_domains=2)
    assert adata.obs["section"].cat.categories.tolist() == [f"S{i}" for i in range(1, 12)]
    assert adata.obs["donor"].cat.categories.tolist() == [f"D{i}" for i in range(1, 7)]


def test_every_section_has_all_domains_and_a_few_spots_have_none(default):
    assert default.obs["domain"].cat.categories.tolist() == ["L1", "L2", "L3", "L4", "L5"]
    shares = pd.crosstab(default.obs["section"], default.obs["domain"], normalize="index")
    assert shares.shape == (3, 5)
    assert shares.to_numpy().min() > 0.08
    assert 0.005 < default.obs["domain"].isna().mean() < 0.03


def test_domains_are_layers_in_order(default):
    for name in default.obs["section"].cat.categories:
        section = one(default, name)
        y = pd.Series(section.obsm["spatial"][:, 1], index=section.obs_names)
        middle = y.groupby(section.obs["domain"], observed=True).mean()
        assert middle.is_monotonic_increasing
        # Layers are curved or tilted: straight horizontal cuts would not give them.
        assert np.corrcoef(y, section.obs["domain"].cat.codes)[0, 1] < 0.985


@pytest.mark.parametrize("seed", range(3))
def test_tissue_has_holes_and_an_irregular_outline(seed):
    adata = st.datasets.synthetic_sections(layout="square", n_genes=20, rng=seed)
    for name in adata.obs["section"].cat.categories:
        section = one(adata, name)
        spots = np.zeros((36, 40), dtype=bool)
        spots[section.obs["array_row"], section.obs["array_col"]] = True
        assert 0.6 < spots.mean() < 0.8
        holes, n = ndimage.label(ndimage.binary_fill_holes(spots) & ~spots)
        # Lost spots make holes of one site.
        assert max(ndimage.sum(holes > 0, holes, range(1, n + 1))) >= 3
        steps = [
            np.abs(np.diff(view[6:-6].argmax(axis=1))).sum() for view in (spots, spots[:, ::-1], spots.T, spots[::-1].T)
        ]
        assert min(steps) >= 3, "no side is straight"


def test_surroundings_help(default):
    """Single spots are noisy; the mean over a spot and its two rings of neighbours is not."""
    section = default.obs["section"].astype(str).to_numpy()
    target, labelled = default.obs["domain"].cat.codes.to_numpy(), default.obs["domain"].notna().to_numpy()
    logs = default.X.log1p()
    pca = PCA(50, random_state=0).fit(logs[section != "S3"].toarray())
    alone, around = np.empty((default.n_obs, 50)), np.empty((default.n_obs, 50))
    for name in np.unique(section):
        rows = section == name
        alone[rows] = scale(pca.transform(logs[rows].toarray()).astype(float))
        xy = default.obsm["spatial"][rows]
        around[rows] = alone[rows][cKDTree(xy).query(xy, k=19)[1]].mean(axis=1)
    accuracy = {}
    for name, features in {"alone": alone, "around": around}.items():
        train, test = (section != "S3") & labelled, (section == "S3") & labelled
        probe = LogisticRegression(C=0.1, max_iter=500).fit(features[train], target[train])
        accuracy[name] = probe.score(features[test], target[test])
    assert 0.55 < accuracy["alone"] < 0.75
    assert 0.85 < accuracy["around"] < 0.96


def test_markers_mark_their_domain(default):
    by_domain = np.vstack(
        [default[default.obs["domain"] == d].X.mean(axis=0) for d in default.obs["domain"].cat.categories]
    )
    marked = default.var["marker_of"].notna().to_numpy()
    assert 0.25 < marked.mean() < 0.35
    highest = default.obs["domain"].cat.categories[np.asarray(by_domain).argmax(axis=0)]
    assert (highest[marked] == default.var["marker_of"][marked]).mean() > 0.7


def test_cellularity_is_in_the_genes_and_in_the_picture(pictured):
    for name, slide in pictured.uns["spatial"].items():
        section, picture = one(pictured, name), slide["images"]["hires"]
        assert picture.dtype == np.uint8
        assert picture[:20, :20].mean() > 245
        per_pixel = slide["scalefactors"]["tissue_hires_scalef"]
        x, y = np.round(section.obsm["spatial"] * per_pixel).astype(int).T
        half = 12
        patches = [picture[b - half : b + half, a - half : a + half] for a, b in zip(x, y, strict=True)]
        colour = np.median([patch.reshape(-1, 3) for patch in patches], axis=(0, 1))
        assert colour[0] > colour[2] > colour[1], "tissue is pink"
        dark = pd.Series([(patch[..., 0] < 160).mean() for patch in patches], index=section.obs_names)
        by_domain = dark.groupby(section.obs["domain"], observed=True)
        assert by_domain.mean()["L2"] > 1.5 * by_domain.mean()["L1"]
        within = dark - by_domain.transform("mean")
        assert within.corr(section.obs["cellularity"]) > 0.6
    follows = pictured.var["follows_cellularity"].to_numpy()
    total = np.asarray(pictured.X.sum(axis=1))
    share = (pictured.X / total).tocsc()
    strength = [abs(np.corrcoef(share[:, [g]].toarray().ravel(), pictured.obs["cellularity"])[0, 1]) for g in range(60)]
    assert np.mean(np.array(strength)[follows]) > 2 * np.mean(np.array(strength)[~follows])


def test_without_image_there_are_only_scale_factors(default):
    assert set(default.uns["spatial"]["S1"]) == {"scalefactors"}
    assert default.uns["spatial"]["S1"]["scalefactors"] == {"spot_diameter_fullres": 55.0, "tissue_hires_scalef": 0.25}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_h5ad_round_trip(layout, tmp_path):
    adata = draw(layout=layout, image=True, n_sections=2)
    adata.write_h5ad(tmp_path / "sections.h5ad")
    again = ad.read_h5ad(tmp_path / "sections.h5ad")
    assert_same(adata, again)
    pictures = [x.uns["spatial"]["S2"]["images"]["hires"] for x in (adata, again)]
    np.testing.assert_array_equal(*pictures)


@pytest.mark.parametrize("seed", range(5))
def test_the_smallest_sections_are_whole(seed):
    adata = st.datasets.synthetic_sections(n_rows=12, n_cols=12, n_genes=20, n_domains=3, rng=seed)
    assert pd.crosstab(adata.obs["section"], adata.obs["domain"]).to_numpy().min() >= 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_sections": 0}, "n_sections=0 is too small; at least 1"),
        ({"n_rows": 3}, "n_rows=3 is too small"),
        ({"n_genes": 2}, "n_genes=2 is too small"),
        ({"n_domains": 1}, "n_domains=1 is too small"),
        ({"n_domains": 10}, "n_domains=10 layers do not fit on 36 × 40 sites; at most 9"),
        ({"layout": "hexagonal"}, "layout='hexagonal' is not one of .*'irregular'"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        st.datasets.synthetic_sections(**options)
