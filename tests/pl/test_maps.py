from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

from strecur import pl
from strecur.pl._colors import PALETTE, UNLABELLED, category_colors, missing_colors
from strecur.pl._scale import round_length


def spots(ax):
    """Return the one collection of spots on a map."""
    (collection,) = ax.collections
    return collection


def colors(ax):
    """Return the colour that every spot is drawn in."""
    spots(ax).update_scalarmappable()
    return np.array([to_hex(c).upper() for c in spots(ax).get_facecolor()])


def pixels(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)


def snapshot(adata):
    return adata.obs.copy(), {k: np.array(v) for k, v in adata.obsm.items()}, set(adata.uns)


def test_one_patch_per_spot_in_the_colour_of_its_label(hex_sections):
    axes = pl.domains(hex_sections, truth="layer")
    names = hex_sections.obs["trm_domains"].cat.categories
    by_name = dict(zip(names, hex_sections.uns["trm_domains_colors"], strict=True))
    for i, section in enumerate(("a", "b")):
        rows = (hex_sections.obs["sample"] == section).to_numpy()
        for ax, column in zip(axes[2 * i : 2 * i + 2], ("layer", "trm_domains"), strict=True):
            assert len(spots(ax).get_offsets()) == rows.sum()
            wanted = hex_sections.obs[column][rows].astype(object).map(by_name).fillna(UNLABELLED)
            assert list(colors(ax)) == list(wanted)


def test_order_of_rows_does_not_matter(hex_sections):
    shuffled = hex_sections[np.random.default_rng(0).permutation(hex_sections.n_obs)].copy()
    before, after = (pl.domains(adata, library_id="a") for adata in (hex_sections, shuffled))
    by_place = [dict(zip(map(tuple, spots(ax).get_offsets()), colors(ax), strict=True)) for ax in (before, after)]
    assert by_place[0] == by_place[1]


def test_hexagons_have_physical_proportions_and_rows_run_downwards(make):
    ax = pl.domains(make("hex", sections=("a",)))
    assert ax.get_aspect() == 1
    assert ax.yaxis_inverted()
    assert not ax.xaxis_inverted()
    xy = np.asarray(spots(ax).get_offsets())
    near = np.sort(np.linalg.norm(xy[:, None] - xy[None], axis=2), axis=1)[:, 1:7]
    inner = (near[:, 5] < 2.01).sum()
    assert inner == 36
    assert near[:, 0] == pytest.approx(2)


@pytest.mark.parametrize("layout", ["hex", "square"])
@pytest.mark.parametrize("inches", [1.3, 6.1])
def test_lattice_is_filled_without_gaps_at_any_size(make, layout, inches):
    adata = make(layout, sections=("a",), size=20)
    adata.obs["trm_domains"] = pd.Categorical(["L1"] * adata.n_obs)
    figure, ax = plt.subplots(figsize=(inches, inches))
    pl.domains(adata, ax=ax)
    image = pixels(figure)
    # the middle of the map, free of its ragged margin, title and legend
    box = ax.get_window_extent()
    top = image.shape[0] - int(box.y1)
    h, w = int(box.height), int(box.width)
    middle = image[top + h // 5 : top + 4 * h // 5, int(box.x0) + w // 5 : int(box.x0) + 4 * w // 5]
    assert middle.size > 300
    assert np.abs(middle - middle[0, 0]).max() <= 3


def test_neighbouring_spots_do_not_overlap(make):
    adata = make("square", sections=("a",), size=10, missing=0)
    adata.obs["trm_domains"] = pd.Categorical(np.where(adata.obsm["grid"].sum(1) % 2, "odd", "even"))
    image = pixels(pl.domains(adata).figure)
    counts = [(np.abs(image - [int(c[i : i + 2], 16) for i in (1, 3, 5)]).sum(-1) == 0).sum() for c in PALETTE[:2]]
    # the legend adds the same area to both
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def test_square_lattice_and_cells(make):
    square = pl.domains(make("square", sections=("a",)))
    xy = np.asarray(spots(square).get_offsets())
    assert np.array_equal(np.unique(xy[:, 1]), np.arange(8))
    adata = make("irregular", sections=("a",))
    cells = pl.domains(adata)
    assert np.allclose(np.asarray(spots(cells).get_offsets()), adata.obsm["spatial"])
    assert cells.yaxis_inverted()
    assert cells.get_aspect() == 1


def test_large_square_lattice_becomes_an_image(make, monkeypatch):
    monkeypatch.setattr("strecur.pl._spots.RASTER_SPOTS", 50)
    adata = make("square", sections=("a",))
    adata.obs.loc[adata.obs_names[5], "trm_domains"] = None
    hole = adata[np.arange(adata.n_obs) != 9].copy()
    ax = pl.domains(hole)
    (image,) = ax.images
    assert not ax.collections
    pixel = np.asarray(image.get_array())
    assert pixel.shape == (8, 8, 4)
    assert pixel[1, 1, 3] == 0
    assert to_hex(pixel[0, 5] / 255).upper() == UNLABELLED
    by_name = dict(zip(hole.obs["trm_domains"].cat.categories, hole.uns["trm_domains_colors"], strict=True))
    assert to_hex(pixel[7, 3] / 255).upper() == by_name[hole.obs["trm_domains"].iloc[-5]]
    assert image.get_extent() == [-0.5, 7.5, 7.5, -0.5]
    # a few spots far apart are not drawn as an image, which would be huge
    adata.obsm["grid"] = adata.obsm["grid"] * 1000
    assert not pl.domains(adata).images


def test_tissue_image_lies_under_the_spots(hex_sections, with_image):
    with_image(hex_sections, "a")
    on_image, on_lattice = pl.domains(hex_sections, alpha=0.6)
    rows = (hex_sections.obs["sample"] == "a").to_numpy()
    assert len(on_image.images) == 1
    assert not on_lattice.images
    assert np.allclose(np.asarray(spots(on_image).get_offsets()), hex_sections.obsm["spatial"][rows] * 0.1)
    radius = spots(on_image).get_paths()[0].vertices.max()
    assert radius == pytest.approx(60 * 0.1 / 2)
    assert spots(on_image).get_alpha() == 0.6
    assert on_image.yaxis_inverted()
    assert not pl.domains(hex_sections, img=False)[0].images


def test_image_is_not_shifted_by_cropping(make, with_image):
    adata = with_image(make("hex", sections=("a",)), "a")
    whole = adata.uns["spatial"]["a"]["images"]["hires"]
    ax = pl.domains(adata)
    (image,) = ax.images
    part = np.asarray(image.get_array())
    left, _, _, top = image.get_extent()
    x, y = int(left + 0.5), int(top + 0.5)
    assert x > 0
    assert np.array_equal(part, whole[y : y + part.shape[0], x : x + part.shape[1]])


def test_the_only_image_belongs_to_the_only_section(make, with_image):
    adata = with_image(make("hex", sections=("a",), library_key=None), "V10_slide")
    assert len(pl.domains(adata).images) == 1


def test_several_maps_of_a_section_share_one_panel_of_tissue(hex_sections, with_image):
    with_image(hex_sections, "a")
    axes = pl.domains(hex_sections, truth="layer")
    titles = [ax.get_title() for ax in axes]
    assert titles == ["a\nH&E", "a\nannotation", "a\npredicted domains", "", "b\nannotation", "b\npredicted domains"]
    assert [len(ax.images) for ax in axes] == [1, 0, 0, 0, 0, 0]
    assert not axes[0].collections
    assert not axes[3].axison  # section b has no image
    assert len(pl.domains(hex_sections, truth="layer", img=False)) == 4
    with pytest.raises(ValueError, match=r"2 sections × 3 tissue image and maps"):
        pl.domains(hex_sections, truth="layer", ax=axes[:4])


def scale_bars(axes):
    """Length in axis units and label of the scale bar of each panel that has one."""
    bars = [child for ax in np.ravel(axes) for child in ax.get_children() if isinstance(child, AnchoredSizeBar)]
    return [(bar.size_bar.get_children()[0].get_width(), bar.txt_label.get_text()) for bar in bars]


def test_scale_bar_of_visium(make, with_image):
    adata = make("hex", size=40)
    # 40 spots of 100 µm: a third is 1.3 mm; on a lattice with doubled columns, 100 µm are two units
    assert scale_bars(pl.domains(adata, truth="layer")) == [(20.0, "1 mm")] * 2
    # spots 200 pixels apart, in an image of a tenth of the pixels
    adata.obsm["spatial"] = adata.obsm["grid"][:, ::-1] * [100, 100 * np.sqrt(3)] + 300
    with_image(adata, "a", scale=0.1)
    assert scale_bars(pl.domains(adata, truth="layer")) == [(pytest.approx(200), "1 mm"), (20.0, "1 mm")]


def test_scale_bar_needs_a_known_scale(make):
    adata = make("irregular", sections=("a",), size=20)
    assert scale_bars(pl.domains(adata)) == []
    adata.uns["spatial"] = {"a": {"scalefactors": {"microns_per_pixel": 0.5}}}
    # 20 cells at 100 units of half a micrometre, about 1,000 µm in all
    assert scale_bars(pl.domains(adata)) == [(400.0, "200 µm")]
    square = make("square", sections=("a",), size=20)
    assert scale_bars(pl.domains(square)) == []
    square.uns["grid"]["spacing"] = {"a": 32.0}
    square.uns["spatial"] = {"a": {"scalefactors": {"microns_per_pixel": 0.5}}}
    assert scale_bars(pl.domains(square)) == [(6.25, "100 µm")]


@pytest.mark.parametrize(("largest", "length"), [(1.0, 1), (1.99, 1), (2.0, 2), (0.7, 0.5), (999, 500), (1e4, 1e4)])
def test_scale_bars_have_round_lengths(largest, length):
    assert round_length(largest) == pytest.approx(length)


def test_text_of_vector_graphics_stays_text_and_spots_stay_paths(hex_sections, tmp_path):
    with mpl.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        figure = pl.domains(hex_sections, truth="layer")[0].figure
        figure.savefig(tmp_path / "maps.svg")
        figure.savefig(tmp_path / "maps.pdf")
    drawn = (tmp_path / "maps.svg").read_text(encoding="utf-8")
    for text in ("predicted domains", "annotation", "200 µm", "unlabelled"):
        assert f">{text}</text>" in drawn
    assert "<image" not in drawn
    document = (tmp_path / "maps.pdf").read_bytes()
    assert b"/Subtype /Type0" in document or b"/Subtype /TrueType" in document
    assert b"/Subtype /Type3" not in document


def test_image_needs_no_lattice(make, with_image):
    adata = with_image(make("hex", sections=("a",)), "a")
    del adata.obsm["grid"]
    assert pl.domains(adata).images


def test_existing_colours_win_and_truth_shares_them(hex_sections):
    chosen = ["#111111", "#222222", "#333333", "#444444"]
    hex_sections.uns["trm_domains_colors"] = np.array(chosen)
    hex_sections.uns["layer_colors"] = ["red", "green", "blue", "black"]
    truth, prediction = pl.domains(hex_sections, truth="layer", library_id="b")
    assert set(colors(prediction)) <= set(chosen)
    assert set(colors(truth)) <= {*chosen, UNLABELLED}
    assert list(hex_sections.uns["trm_domains_colors"]) == chosen


def test_colours_of_the_annotation_are_kept_when_the_prediction_has_none(hex_sections):
    hex_sections.uns["layer_colors"] = ["red", "green", "blue", "black"]
    pl.domains(hex_sections, truth="layer")
    assert hex_sections.uns["trm_domains_colors"] == ["#FF0000", "#008000", "#0000FF", "#000000"]


def test_label_unknown_to_the_model_gets_a_colour_of_its_own(hex_sections):
    hex_sections.obs["layer"] = hex_sections.obs["layer"].cat.rename_categories({"L4": "new"})
    axes = pl.domains(hex_sections, truth="layer")
    new = colors(axes[0])[-1]
    assert new not in hex_sections.uns["trm_domains_colors"]
    assert len(hex_sections.uns["trm_domains_colors"]) == 4
    assert [t.get_text() for t in axes[0].figure.legends[0].get_texts()] == [
        "L1",
        "L2",
        "L3",
        "L4",
        "new",
        "unlabelled",
    ]


def test_colour_of_a_label_does_not_depend_on_the_section_drawn(hex_sections):
    a = pl.domains(hex_sections, library_id="a")
    view = hex_sections[hex_sections.obs["sample"] == "a"]
    assert np.array_equal(colors(a), colors(pl.domains(view)))


def test_palette_is_distinct_and_continues():
    assert len(set(PALETTE)) == 20
    assert UNLABELLED not in PALETTE
    names = [f"n{i}" for i in range(150)]
    adata = SimpleNamespace(obs=pd.DataFrame(index=["x"]), uns={})
    many = category_colors(adata, "k", names)
    assert list(many.values())[:20] == list(PALETTE)
    assert len(many) == 150


@pytest.mark.parametrize("missing", ["nan", "None", "Unknown"])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_colours_of_scanpy_have_one_for_categories_that_stand_for_missing_labels(missing, place):
    names = ["L1", "L2", "L3"]
    categories = [*names[:place], missing, *names[place:]]
    adata = SimpleNamespace(obs=pd.DataFrame({"k": pd.Categorical(categories, categories=categories)}), is_view=False)
    stored = {"L1": "#111111", "L2": "#222222", "L3": "#333333", missing: "#FFFFFF"}
    adata.uns = {"k_colors": [stored[name] for name in categories]}
    assert category_colors(adata, "k", names) == {name: stored[name] for name in names}
    adata.uns = {}
    written = missing_colors(adata, "k", {name: stored[name] for name in names})["k_colors"]
    assert written == [stored[name] if name in names else UNLABELLED for name in categories]


@pytest.mark.parametrize("column", [["L2", "L10", "L1"] * 2, pd.Categorical(["L10", "L2", "L1"] * 2), [10, 2, 1] * 2])
def test_colours_belong_to_the_categories_that_anndata_makes(column):
    """Text is made categorical in natural order, whatever the order of the legend."""
    adata = ad.AnnData(obs=pd.DataFrame({"k": column}, index=list("abcdef")))
    made = adata.copy()
    made.strings_to_categoricals()
    names = [str(name) for name in made.obs["k"].astype("category").cat.categories]
    adata.uns["k_colors"] = ["#111111", "#222222", "#333333"]
    assert category_colors(adata, "k", names) == dict(zip(names, adata.uns["k_colors"], strict=True))


def test_colours_as_a_mapping_and_as_tuples():
    obs = pd.DataFrame({"k": pd.Categorical(["b", "a"])}, index=["x", "y"])
    adata = SimpleNamespace(obs=obs, uns={"k_colors": {"b": "red", "a": "blue"}}, is_view=False)
    assert category_colors(adata, "k", ["a", "b"]) == {"a": "#0000FF", "b": "#FF0000"}
    assert missing_colors(adata, "k", {}) == {}
    adata.uns = {"k_colors": np.array([[0, 0, 1.0], [1.0, 0, 0]])}
    assert category_colors(adata, "k", ["a", "b"]) == {"a": "#0000FF", "b": "#FF0000"}


def test_colours_of_other_categories_are_not_used(caplog):
    obs = pd.DataFrame({"k": pd.Categorical(["c", "d"])}, index=["x", "y"])
    adata = SimpleNamespace(obs=obs, uns={"k_colors": ["red", "green", "blue"]}, is_view=False)
    assert list(category_colors(adata, "k", ["c", "d"]).values()) == list(PALETTE[:2])
    assert "3 colours for the 2 categories" in caplog.text
    adata.uns["k_colors"] = ["red", "no colour"]
    with pytest.raises(ValueError, match="'no colour', which is not a colour"):
        category_colors(adata, "k", ["c", "d"])


@pytest.mark.parametrize("text_of_pandas_3", [False, True])
def test_unlabelled_spots_are_in_the_legend_with_every_type_of_text(hex_sections, text_of_pandas_3):
    with pd.option_context("future.infer_string", text_of_pandas_3):
        hex_sections.obs["mine"] = pd.Series(hex_sections.obs["layer"].astype(object).to_list()).to_numpy()
        hex_sections.obs["mine"] = hex_sections.obs["mine"].astype("str" if text_of_pandas_3 else object)
        hex_sections.obs.loc[hex_sections.obs_names[:3], "mine"] = None
        axes = pl.domains(hex_sections, "mine", library_key="sample")
    assert axes[0].figure.legends[0].get_texts()[-1].get_text() == "unlabelled"


def test_legend_titles_and_scores(hex_sections):
    axes = pl.domains(hex_sections, truth="layer", linear=True)
    assert len(axes) == 6
    assert [ax.get_title() for ax in axes[:3]] == ["a\nannotation", "a\npredicted domains", "a\nlinear baseline"]
    assert axes[0].get_xlabel() == ""
    assert axes[1].get_xlabel().startswith("ARI 0.")
    (legend,) = axes[0].figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["L1", "L2", "L3", "L4", "unlabelled"]
    handles = [to_hex(p.get_facecolor()).upper() for p in legend.get_patches()]
    assert handles == [*hex_sections.uns["trm_domains_colors"], UNLABELLED]


@pytest.mark.parametrize("n_labels", [4, 20])
@pytest.mark.parametrize("prefix", ["L", "invasive carcinoma with lymphocytic infiltrate "])
def test_nothing_is_cut_off_or_covered(make, n_labels, prefix):
    adata = make("hex", size=20, n_labels=n_labels)
    for column in ("layer", "trm_domains"):
        adata.obs[column] = adata.obs[column].cat.rename_categories(lambda name: name.replace("L", prefix))
    axes = pl.domains(adata, truth="layer")
    figure = axes[0].figure
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x1 <= figure.bbox.x1 + 1
    assert legend.y0 >= -1
    assert legend.y1 <= figure.bbox.y1 + 1
    for ax in axes:
        box = ax.get_tightbbox()
        assert not box.overlaps(legend)
        assert box.y1 <= figure.bbox.y1 + 1
        assert ax.get_window_extent().width > 100


def test_clusters_have_no_accuracy(hex_sections):
    # the names of clusters have no meaning, so that only the partition can be compared
    clusters = hex_sections.obs["layer"].cat.codes.replace({-1: 3}).to_numpy()
    hex_sections.obs["cluster"] = pd.Categorical((clusters + 1) % 4)
    truth, cluster = pl.domains(hex_sections, "cluster", truth="layer", library_key="sample", library_id="a")
    assert cluster.get_xlabel() == "ARI 1.00"
    assert not set(colors(truth)) & set(colors(cluster))


def test_sections_without_library_key(make):
    ax = pl.domains(make("square", sections=("a",), library_key=None), img=False)
    assert ax.get_title() == "predicted domains"


def test_the_library_key_of_the_lattice_is_used(hex_sections):
    hex_sections.uns["trm_domains"]["params"] = {}
    hex_sections.obs["cell_type"] = hex_sections.obs["layer"]
    for key, title in (("trm_domains", "predicted domains"), ("cell_type", "cell type")):
        axes = pl.domains(hex_sections, key)
        assert [ax.get_title() for ax in axes] == [f"a\n{title}", f"b\n{title}"]
    assert len(pl.refinement(hex_sections)) == 12
    assert [t.get_text() for t in pl.halt_steps(hex_sections)[-1].get_yticklabels()] == ["a", "b"]


def test_the_library_key_of_the_result_comes_before_that_of_the_lattice(hex_sections):
    hex_sections.obs["slide"] = hex_sections.obs["sample"].map({"a": "x", "b": "y"})
    hex_sections.uns["trm_domains"]["params"] = {"library_key": "slide"}
    titles = [ax.get_title().partition("\n")[0] for ax in pl.domains(hex_sections)]
    assert titles == ["x", "y"]
    titles = [ax.get_title().partition("\n")[0] for ax in pl.domains(hex_sections, library_key="sample")]
    assert titles == ["a", "b"]
    # a column that was removed since is not used
    del hex_sections.obs["slide"]
    titles = [ax.get_title().partition("\n")[0] for ax in pl.domains(hex_sections)]
    assert titles == ["a", "b"]


def test_library_id_chooses_and_orders(hex_sections):
    axes = pl.domains(hex_sections, library_id=["b", "a"])
    assert [ax.get_title() for ax in axes] == ["b\npredicted domains", "a\npredicted domains"]
    with pytest.raises(KeyError, match=r"\['c'\].*there are \['a', 'b'\]"):
        pl.domains(hex_sections, library_id="c")


def test_given_axes_are_used(hex_sections):
    figure, ax = plt.subplots(1, 2)
    assert pl.domains(hex_sections, library_id="a", ax=ax[1]) is ax[1]
    assert ax[1].get_legend() is not None
    assert not ax[0].collections
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match=r"4 panels \(2 sections × 2 maps\), but ax holds 2"):
        pl.domains(hex_sections, truth="layer", ax=ax)


def test_missing_keys_name_the_call(hex_sections):
    with pytest.raises(KeyError, match=r"strecur.tl.trm_domains\(adata, model, key_added='other'\)"):
        pl.domains(hex_sections, "other")
    with pytest.raises(KeyError, match=r"'annotation' is not in adata.obs; there are"):
        pl.domains(hex_sections, truth="annotation")
    del hex_sections.obs["trm_domains_linear"]
    with pytest.raises(KeyError, match=r"trm_domains_linear.*trm_domains"):
        pl.domains(hex_sections, linear=True)
    del hex_sections.obsm["grid"]
    with pytest.raises(KeyError, match=r"strecur.pp.to_grid"):
        pl.domains(hex_sections)
    assert "trm_domains_colors" not in hex_sections.uns


def test_only_colours_are_added(hex_sections):
    obs, obsm, uns = snapshot(hex_sections)
    rc = dict(mpl.rcParams)
    pl.domains(hex_sections, truth="layer", linear=True)
    pd.testing.assert_frame_equal(hex_sections.obs, obs)
    assert all(np.array_equal(hex_sections.obsm[key], value) for key, value in obsm.items())
    assert set(hex_sections.uns) - uns == {"trm_domains_colors"}
    assert dict(mpl.rcParams) == rc


def test_view_stays_a_view(hex_sections):
    view = hex_sections[hex_sections.obs["sample"] == "b"]
    pl.domains(view)
    assert view.is_view
    assert "trm_domains_colors" not in view.uns


def test_any_labels_and_spatialdata(hex_sections):
    hex_sections.obs["cluster"] = (np.arange(hex_sections.n_obs) % 12).astype(int)
    axes = pl.domains(SimpleNamespace(tables={"table": hex_sections}), "cluster", library_key="sample")
    assert [t.get_text() for t in axes[0].figure.legends[0].get_texts()] == [str(i) for i in range(12)]


def test_show(hex_sections, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert pl.domains(hex_sections, library_id="a") is not None
    assert not shown
    assert pl.domains(hex_sections, show=True) is None
    assert shown == [1]


def test_plotting_imports_neither_torch_nor_pyplot():
    code = (
        "import sys, strecur.pl; sys.exit(int(any(m in sys.modules for m in ('torch', 'matplotlib.pyplot', 'scanpy'))))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_colours_in_bytes_and_lists_that_are_too_short(caplog):
    obs = pd.DataFrame({"k": pd.Categorical(["a", "b", "c"])})
    adata = SimpleNamespace(obs=obs, uns={"k_colors": np.array([b"#ff0000", b"#00ff00", b"#0000ff"])}, is_view=False)
    assert list(category_colors(adata, "k", ["a", "b", "c"]).values()) == ["#FF0000", "#00FF00", "#0000FF"]
    adata.uns["k_colors"] = ["red"]
    assert list(category_colors(adata, "k", ["a", "b", "c"]).values()) == list(PALETTE[:3])
    assert "has 1 colours for the 3 categories of obs['k'] and is not used" in caplog.text


@pytest.mark.parametrize("library_id", [2, [2], "2", 2.0, np.int64(2)])
def test_sections_that_are_numbers_are_chosen_by_number(make, library_id):
    adata = make("square", sections=("a", "b"), size=8)
    adata.obs["sample"] = (adata.obs["sample"] == "b").astype(int) + 1
    ax = pl.domains(adata, library_id=library_id)
    assert len(spots(ax).get_offsets()) == (adata.obs["sample"] == 2).sum()
