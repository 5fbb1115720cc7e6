from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from strecur import pl
from strecur.pl._colors import UNLABELLED


def colors(ax):
    spots = ax.collections[0]
    spots.update_scalarmappable()
    return np.array([to_hex(c).upper() for c in spots.get_facecolor()])


def values(ax):
    (spots,) = ax.collections
    return np.ma.filled(spots.get_array(), np.nan)


def test_refinement_draws_every_step(hex_sections):
    steps = hex_sections.obsm["trm_domains_steps"]
    axes = pl.refinement(hex_sections, library_id="b")
    rows = (hex_sections.obs["sample"] == "b").to_numpy()
    by_code = np.array([*hex_sections.uns["trm_domains_colors"]])
    assert len(axes) == steps.shape[1]
    for k, ax in enumerate(axes):
        assert np.array_equal(colors(ax), by_code[steps[rows, k]])
    assert [ax.get_title() for ax in axes] == [f"step {k}" for k in range(1, 6)] + ["step 6 (final)"]
    assert axes[0].get_title(loc="left") == "b\n"
    changed = np.mean(steps[rows, 1] != steps[rows, 0])
    assert axes[1].get_xlabel() == f"{changed:.1%} changed"
    assert axes[0].get_xlabel() == ""


def test_refinement_marks_the_spots_whose_label_changed(hex_sections):
    steps = hex_sections.obsm["trm_domains_steps"]
    rows = (hex_sections.obs["sample"] == "b").to_numpy()
    first, second, *_ = pl.refinement(hex_sections, library_id="b")
    assert len(first.collections) == 1
    spots, rings = (np.asarray(drawn.get_offsets()) for drawn in second.collections)
    assert np.array_equal(rings, spots[(steps[:, 1] != steps[:, 0])[rows]])
    assert 0 < len(rings) < len(spots)
    (legend,) = first.figure.legends
    assert legend.get_texts()[-1].get_text() == "label changed"


def test_refinement_is_a_grid_in_which_every_section_starts_a_row(hex_sections):
    axes = pl.refinement(hex_sections)
    places = [(ax.get_subplotspec().rowspan.start, ax.get_subplotspec().colspan.start) for ax in axes]
    assert places[:6] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert places[6:] == [(row + 2, col) for row, col in places[:6]]
    hex_sections.obsm["trm_domains_steps"] = hex_sections.obsm["trm_domains_steps"][:, 1:]
    axes = pl.refinement(hex_sections)
    assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]


def test_refinement_adds_the_result_where_it_differs_from_the_last_step(hex_sections):
    hex_sections.obs.loc[hex_sections.obs_names[-1], "trm_domains"] = "L1"
    assert [ax.get_title() for ax in pl.refinement(hex_sections, library_id="b")][-2:] == ["step 6", "final"]
    assert pl.refinement(hex_sections, library_id="a")[-1].get_title() == "step 6 (final)"


def test_refinement_of_several_sections_and_missing_answers(hex_sections):
    hex_sections.obsm["trm_domains_steps"][0] = -1
    hex_sections.obs.loc[hex_sections.obs_names[0], "trm_domains"] = None
    axes = pl.refinement(hex_sections)
    assert len(axes) == 12
    assert {colors(ax)[0] for ax in axes[:6]} == {UNLABELLED}
    assert axes[0].figure.legends[0].get_texts()[-2].get_text() == "unlabelled"


def test_refinement_raises_for_codes_of_dropped_categories(hex_sections):
    hex_sections.obs["trm_domains"] = hex_sections.obs["trm_domains"].where(hex_sections.obs["trm_domains"] != "L1")
    hex_sections.obs["trm_domains"] = hex_sections.obs["trm_domains"].cat.remove_unused_categories()
    with pytest.raises(ValueError, match=r"refers to 4 labels but .* has 3 categories"):
        pl.refinement(hex_sections)
    hex_sections.uns["trm_domains"]["categories"] = ["L1", "L2", "L3", "L4"]
    assert pl.refinement(hex_sections, library_id="b")


def test_halt_steps_maps_histogram_and_sections(hex_sections):
    axes = pl.halt_steps(hex_sections)
    settled = hex_sections.obs["trm_domains_settling_step"].to_numpy()
    assert len(axes) == 4
    for ax, section in zip(axes, "ab", strict=False):
        assert np.array_equal(values(ax), settled[(hex_sections.obs["sample"] == section).to_numpy()])
    share = [bar.get_height() for bar in axes[2].patches]
    assert share == pytest.approx([np.mean(settled == k) for k in range(1, 7)])
    # one colour per step, the same on the maps and in the histogram
    steps = dict(zip(values(axes[0]).astype(int), colors(axes[0]), strict=True))
    bars = [to_hex(bar.get_facecolor()).upper() for bar in axes[2].patches]
    assert len(set(bars)) == 6
    assert all(bars[step - 1] == color for step, color in steps.items())
    assert list(axes[3].lines[0].get_xdata()) == list(hex_sections.uns["trm_domains"]["sections"]["halt_step"])
    assert [t.get_text() for t in axes[3].get_yticklabels()] == ["a", "b"]


def test_halt_steps_colour_bar_has_one_tick_per_step(hex_sections):
    axes = pl.halt_steps(hex_sections)
    (bar,) = axes[1].child_axes
    assert list(bar.get_yticks()) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("plot", [pl.halt_steps, pl.confidence])
def test_maps_of_one_row_share_their_upper_edge_with_the_colour_bar(make, plot):
    adata = make("hex", size=16)
    # the second section is lower than the first
    adata = adata[(adata.obs["sample"] == "a") | (adata.obsm["grid"][:, 0] < 10)].copy()
    axes = plot(adata)
    axes[0].figure.canvas.draw()
    tops = [ax.get_window_extent().y1 for ax in (*axes[:2], *axes[1].child_axes)]
    assert tops == pytest.approx([tops[0]] * 3, abs=0.5)


def test_halt_steps_of_chosen_sections_in_their_order(hex_sections):
    axes = pl.halt_steps(hex_sections, library_id=["b", "a"])
    halted = hex_sections.uns["trm_domains"]["sections"]["halt_step"]
    assert list(axes[-1].lines[0].get_xdata()) == [halted["b"], halted["a"]]
    hex_sections.uns["trm_domains"]["sections"] = hex_sections.uns["trm_domains"]["sections"].loc[["b"]]
    with pytest.raises(KeyError, match=r"\['a'\] are not in .* there are \['b'\]"):
        pl.halt_steps(hex_sections)


def test_missing_settling_steps_are_grey_and_not_counted(hex_sections):
    settled = hex_sections.obs["trm_domains_settling_step"].astype("Int64")
    settled.iloc[0] = pd.NA
    hex_sections.obs["trm_domains_settling_step"] = settled
    axes = pl.halt_steps(hex_sections)
    assert colors(axes[0])[0] == UNLABELLED
    assert sum(bar.get_height() for bar in axes[2].patches) == pytest.approx(1)


def test_halt_steps_without_library_key_and_with_one_step(make):
    adata = make("square", sections=("a",), library_key=None)
    adata.obs["trm_domains_settling_step"] = 1
    adata.obsm["trm_domains_steps"] = adata.obsm["trm_domains_steps"][:, :1]
    adata.uns["trm_domains"]["sections"]["halt_step"] = 1
    axes = pl.halt_steps(adata)
    assert len(axes) == 3
    assert len(axes[1].patches) == 1


def test_confidence_scale_is_fixed(hex_sections):
    hex_sections.obs["trm_domains_confidence"] = np.linspace(0.4, 0.6, hex_sections.n_obs, dtype=np.float32)
    axes = pl.confidence(hex_sections)
    assert len(axes) == 2
    for ax in axes:
        assert ax.collections[0].get_clim() == (0, 1)
    (bar,) = axes[1].child_axes
    assert bar.get_ylim() == (0, 1)


def test_confidence_of_right_and_wrong_spots(hex_sections):
    hex_sections.obs["trm_domains_confidence"] = np.float32(0.9)
    wrong = hex_sections.obs["layer"].astype(object) != hex_sections.obs["trm_domains"].astype(object)
    wrong &= hex_sections.obs["layer"].notna()
    hex_sections.obs.loc[wrong, "trm_domains_confidence"] = 0.1
    axes = pl.confidence(hex_sections, truth="layer", library_id="a")
    assert len(axes) == 2
    in_a = hex_sections.obs["sample"] == "a"
    n_wrong = int((wrong & in_a).sum())
    n_right = int((in_a & hex_sections.obs["layer"].notna()).sum()) - n_wrong
    assert [t.get_text() for t in axes[1].get_legend().get_texts()] == [
        f"right ({n_right} spots)",
        f"wrong ({n_wrong} spots)",
    ]
    right, error = (patch.get_xy() for patch in axes[1].patches)
    assert right[right[:, 1] > 0.99, 0].min() > 0.8
    assert error[error[:, 1] > 0.99, 0].max() < 0.2


def test_confidence_without_annotated_spots(hex_sections):
    hex_sections.obs["layer"] = None
    assert len(pl.confidence(hex_sections, truth="layer")) == 4


@pytest.mark.parametrize(
    ("plot", "missing"),
    [
        (pl.refinement, "trm_domains_steps"),
        (pl.halt_steps, "trm_domains_settling_step"),
        (pl.confidence, "trm_domains_confidence"),
    ],
)
def test_missing_results_name_the_call_and_nothing_else_changes(hex_sections, plot, missing):
    obs, uns, rc = hex_sections.obs.copy(), set(hex_sections.uns), dict(mpl.rcParams)
    plot(hex_sections)
    pd.testing.assert_frame_equal(hex_sections.obs, obs)
    assert set(hex_sections.uns) - uns <= {"trm_domains_colors"}
    assert dict(mpl.rcParams) == rc
    (hex_sections.obsm if missing in hex_sections.obsm else hex_sections.obs).pop(missing)
    with pytest.raises(KeyError, match=rf"{missing}.*strecur.tl.trm_domains\(adata, model, key_added='trm_domains'\)"):
        plot(hex_sections)


@pytest.mark.parametrize(("plot", "n"), [(pl.refinement, 6), (pl.halt_steps, 3), (pl.confidence, 1)])
def test_given_axes(hex_sections, plot, n):
    figure, axes = plt.subplots(1, n, squeeze=False, layout="constrained")
    drawn = plot(hex_sections, library_id="a", ax=axes)
    assert list(np.ravel(drawn)) == list(axes[0])
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match=f"but ax holds {n}"):
        plot(hex_sections, ax=axes)


@pytest.mark.parametrize("depth", [2, 16])
def test_titles_stay_inside_the_figure(make, depth):
    adata = make("hex", sections=("a_long_name_of_a_section", "b"))
    adata.obsm["trm_domains_steps"] = np.repeat(adata.obsm["trm_domains_steps"][:, -1:], depth, axis=1)
    for axes in (pl.refinement(adata), pl.halt_steps(adata), pl.confidence(adata, truth="layer")):
        figure = axes[0].figure
        figure.canvas.draw()
        for ax in axes:
            box = ax.get_tightbbox()
            assert box.x0 >= -1
            assert box.x1 <= figure.bbox.x1 + 1
            assert box.y0 >= -1
            assert box.y1 <= figure.bbox.y1 + 1
        # a section's name may run along its row of steps, nothing else may touch its neighbour
        for ax in axes:
            ax.set_title("", loc="left")
        boxes = [ax.get_tightbbox() for ax in axes]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_results_read_back_from_disk_draw_the_same(hex_sections, tmp_path):
    import anndata as ad

    hex_sections.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    for plot in (pl.domains, pl.refinement, pl.halt_steps, pl.confidence):
        before, after = plot(hex_sections, library_id="a"), plot(again, library_id="a")
        assert np.array_equal(colors(np.ravel(before)[0]), colors(np.ravel(after)[0]))


def test_real_visium_section(data_dir):
    import anndata as ad

    adata = ad.read_h5ad(data_dir / "dlpfc" / "151673.h5ad")[:, :1].copy()
    adata.obsm["grid"] = adata.obs[["array_row", "array_col"]].to_numpy(dtype=np.int32)
    adata.uns["grid"] = {"params": {}, "layout": "hex"}
    ax = pl.domains(adata, "domain", library_key="section")
    assert len(ax.collections[0].get_offsets()) == adata.n_obs
    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    # Visium's capture area is square, and so is the tissue on it, within 20 %
    assert (bottom - top) / (right - left) == pytest.approx(1.1, rel=0.2)
