from __future__ import annotations

from itertools import product

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgba
from scipy.special import softmax

from strecur import metrics, pl


@pytest.fixture
def swept() -> pd.DataFrame:
    """Return a sweep of two sections: the score is blocks + latent steps, ten more in the second section."""
    rows = [
        {
            "section": name,
            "n_steps": depth,
            "n_deep": deep,
            "n_latent": n,
            "n_blocks": depth * deep,
            "layer_evaluations": 2 * depth * deep * (n + 1),
            "residual": 1 / (depth * deep),
            "ari": depth * deep + n + 10 * (name == "b"),
            "accuracy": 0.5,
        }
        for name, depth, deep, n in product("ab", (1, 2, 4), (1, 2), (1, 3))
    ]
    return pd.DataFrame(rows).astype({"section": "category"})


@pytest.fixture
def explored() -> pd.DataFrame:
    """Return a landscape of three restarts and four steps in which the second restart converges first, and is right."""
    residual = np.array([[4.0, 3, 2, 2], [5, 1, 0.5, 0.1], [6, 6, 6, 6]])
    ari = np.array([[0.1, 0.2, 0.3, 0.3], [0.4, 0.5, 0.6, 0.7], [0, 0, 0, 0.05]])
    restart, step = (axis.ravel() for axis in np.indices(residual.shape))
    converged = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]])
    part = pd.DataFrame(
        {
            "restart": restart,
            "step": step + 1,
            "residual": residual.ravel(),
            "converged": converged.ravel(),
            "pc1": step * 1.0,
            "pc2": restart * 1.0,
            "ari": ari.ravel(),
        }
    )
    return pd.concat([part.assign(section="a"), part.assign(section="b", ari=0.0)]).astype({"section": "category"})


@pytest.fixture
def judged(hex_sections):
    """Return predictions with probabilities as honest as they can be, and label sets."""
    rng = np.random.default_rng(0)
    names = list(hex_sections.obs["trm_domains"].cat.categories)
    proba = softmax(rng.normal(0, 2, (hex_sections.n_obs, len(names))), axis=1).astype(np.float32)
    drawn = (rng.random((len(proba), 1)) > proba.cumsum(axis=1)).sum(axis=1)
    hex_sections.obs["layer"] = pd.Categorical.from_codes(np.where(rng.random(len(drawn)) < 0.1, -1, drawn), names)
    hex_sections.obsm["trm_domains_proba"] = proba
    hex_sections.obsm["trm_domains_set"] = proba >= 0.3
    hex_sections.uns["trm_domains"] |= {"categories": names}
    hex_sections.uns["trm_domains"]["params"]["coverage"] = 0.9
    return hex_sections


@pytest.fixture
def many(make):
    """Return six sections of three patients that halt at steps 2 to 4, with a score that falls with it."""
    adata = make("square", sections=tuple("abcdef"), size=6)
    table = adata.uns["trm_domains"]["sections"]
    table["halt_step"] = [2, 2, 2, 3, 3, 4]
    table["mean_confidence"] = [0.9, 0.8, 0.85, 0.6, 0.5, 0.3]
    adata.obs["patient"] = adata.obs["sample"].map(dict(zip("abcdef", "XXYYZZ", strict=True)))
    adata.obs["split"] = adata.obs["sample"].map(dict.fromkeys("abcd", "training") | dict.fromkeys("ef", "test"))
    return adata


def lines(ax) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in ax.lines}


def test_a_sweep_draws_means_over_sections_by_blocks_and_by_work(swept):
    by_blocks, by_work, residual = pl.recursion_sweep(swept)
    assert lines(by_blocks) == {"1": [(k, k + 6) for k in (1, 2, 4, 8)], "3": [(k, k + 8) for k in (1, 2, 4, 8)]}
    assert lines(by_work)["3"] == [(8 * k, k + 8) for k in (1, 2, 4, 8)]
    assert lines(residual)["1"] == [(k, 1 / k) for k in (1, 2, 4, 8)]
    band = by_blocks.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (2, 19)
    assert [ax.get_ylabel() for ax in (by_blocks, by_work, residual)] == ["ARI", "ARI", "residual"]
    assert [t.get_text() for t in residual.get_legend().get_texts()] == ["1", "3"]
    assert [t.get_text() for t in by_blocks.get_xticklabels()] == ["1", "2", "4", "8"]


def test_a_sweep_without_scores_and_with_a_named_one(swept):
    assert pl.recursion_sweep(swept, score="accuracy")[0].get_ylabel() == "accuracy"
    only = pl.recursion_sweep(swept.drop(columns=["ari", "accuracy"]))
    assert only.get_ylabel() == "residual"
    with pytest.raises(KeyError, match=r"'pcc'.*there are.*'ari'"):
        pl.recursion_sweep(swept, score="pcc")
    with pytest.raises(KeyError, match=r"n_blocks.*strecur.tl.recursion_sweep"):
        pl.recursion_sweep(swept.drop(columns="n_blocks"))


def test_a_landscape_shows_paths_residuals_and_what_selection_is_worth(explored):
    axes = pl.landscape(explored, library_id="a")
    paths, residuals, scored, selected = axes
    (pieces,) = (c for c in paths.collections if len(c.get_paths()) == 9)
    # three pieces of three restarts, coloured by the step they lead to
    assert pieces.get_array().tolist() == [2, 3, 4] * 3
    assert pieces.get_segments()[3].tolist() == [[0, 1], [1, 1]]
    ends = paths.collections[1].get_offsets()
    assert ends.tolist() == [[3, 0], [3, 1], [3, 2]]
    assert scored.collections[1].get_array().tolist() == [0.3, 0.7, 0.05]
    (image,) = residuals.images
    assert image.get_array().tolist()[1] == [5, 1, 0.5, 0.1]
    assert image.origin == "lower"
    (image,) = selected.images
    # one restart: the first; two or three: the second, once it changes less
    assert image.get_array().tolist() == [[0.1, 0.2, 0.3, 0.3], [0.1, 0.5, 0.6, 0.7], [0.1, 0.5, 0.6, 0.7]]
    assert [ax.get_title() for ax in axes] == [
        *("a\npaths of the restarts", "residual", "ARI on the way", "ARI of the most converged")
    ]


def test_a_landscape_of_chosen_sections_and_without_score(explored):
    assert len(pl.landscape(explored)) == 8
    both = pl.landscape(explored, library_id=["b", "a"])
    assert both[0].get_title().startswith("b")
    # colours mean the same in all sections
    assert both[2].collections[0].get_clim() == both[6].collections[0].get_clim() == (0, 0.7)
    assert len(pl.landscape(explored.drop(columns="ari"), library_id="a")) == 2
    with pytest.raises(KeyError, match=r"'c'.*there are \['a', 'b'\]"):
        pl.landscape(explored, library_id="c")
    with pytest.raises(KeyError, match=r"strecur.tl.landscape"):
        pl.landscape(explored.drop(columns="pc1"))


def test_convergence_marks_the_restart_that_is_chosen(hex_sections):
    traces = {("a", 0): [1, 0.5, 0.4, 0.3], ("a", 1): [2, 0.3, 0.2, 0.1], ("b", 0): [1, 0.1, 0.01, np.nan]}
    rows = [
        {"section": name, "restart": restart, "step": k + 1, "residual": value}
        for (name, restart), values in traces.items()
        for k, value in enumerate(values)
    ]
    hex_sections.uns["trm_domains"]["residuals"] = pd.DataFrame(rows).astype({"section": "category"})
    first, second = pl.convergence(hex_sections)
    drawn = {to_hex(line.get_color()): list(line.get_ydata()) for line in first.lines}
    assert drawn == {to_hex("0.75"): traces["a", 0], to_hex("#0072B2"): traces["a", 1]}
    assert first.get_ylim() == second.get_ylim()
    assert first.get_yscale() == "log"
    assert [ax.get_title() for ax in (first, second)] == ["a", "b"]
    assert np.array_equal(second.lines[0].get_ydata(), traces["b", 0], equal_nan=True)
    assert pl.convergence(hex_sections, library_id="b").get_title() == "b"
    with pytest.raises(KeyError, match=r"'z'.*there are"):
        pl.convergence(hex_sections, library_id="z")
    del hex_sections.uns["trm_domains"]["residuals"]
    with pytest.raises(KeyError, match=r"residuals.*strecur.tl.trm_domains"):
        pl.convergence(hex_sections)


def test_reliability_is_the_error_of_the_metrics(judged):
    ax, sets = pl.reliability(judged, truth="layer")
    names = judged.uns["trm_domains"]["categories"]
    error = metrics.expected_calibration_error(judged.obs["layer"], judged.obsm["trm_domains_proba"], names)
    assert ax.get_title() == f"calibration error {error:.3f}"
    # shares of all annotated spots
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1)
    known = judged.obs["layer"].cat.codes >= 0
    x, y = ax.collections[0].get_offsets().T
    confidence = judged.obsm["trm_domains_proba"].max(axis=1)[known]
    highest = confidence >= np.floor(confidence.max() * 15) / 15
    right = judged.obsm["trm_domains_proba"].argmax(axis=1)[known] == judged.obs["layer"].cat.codes[known]
    assert x[-1] == pytest.approx(confidence[highest].mean())
    assert y[-1] == pytest.approx(right[highest].mean())

    covered = judged.obsm["trm_domains_set"][known, judged.obs["layer"].cat.codes[known]]
    assert sets.get_title() == f"{covered.mean():.1%} covered (90% wanted)"
    heights = np.array([bar.get_height() for bar in sets.patches]).reshape(2, -1)
    assert heights[0].sum() == pytest.approx(covered.mean())
    assert heights.sum() == pytest.approx(1)


def test_reliability_of_one_section_without_sets(judged):
    del judged.obsm["trm_domains_set"]
    whole, part = pl.reliability(judged, truth="layer"), pl.reliability(judged, truth="layer", library_id="b", n_bins=5)
    assert len(part.patches) <= 5
    assert whole.get_title() != part.get_title()
    # a domain that the model does not know counts as a wrong answer
    judged.obs["other"] = "tumour"
    accuracies = pl.reliability(judged, truth="other").collections[0].get_offsets()[:, 1]
    assert (accuracies == 0).all()
    judged.obs["none"] = None
    with pytest.raises(ValueError, match=r"no spot of the sections .* is annotated"):
        pl.reliability(judged, truth="none")
    with pytest.raises(KeyError, match="nothing"):
        pl.reliability(judged, truth="nothing")
    del judged.obsm["trm_domains_proba"]
    with pytest.raises(KeyError, match="trm_domains_proba"):
        pl.reliability(judged, truth="layer")


def test_halt_steps_of_many_sections(many):
    steps, scores = pl.halt_summary(many, color="patient", split="split")
    tops = {}
    for bar in steps.patches:
        step = round(bar.get_x() + bar.get_width() / 2)
        tops[step] = max(tops.get(step, 0), bar.get_y() + bar.get_height())
    assert tops == {1: 0, 2: 3, 3: 2, 4: 1}
    training, test = (c for c in reversed(scores.collections) if len(c.get_offsets()))
    assert training.get_offsets().tolist() == [[2, 0.9], [2, 0.8], [2, 0.85], [3, 0.6]]
    assert test.get_offsets().tolist() == [[3, 0.5], [4, 0.3]]
    assert scores.get_title() == "rank correlation -0.93"
    # patients keep their colour in both panels
    x, y = (to_rgba(color) for color in training.get_facecolors()[[0, 2]])
    assert x != y
    assert {tuple(bar.get_facecolor()) for bar in steps.patches} >= {x, y}
    assert [t.get_text() for t in scores.get_legend().get_texts()] == ["test", "training"]
    assert [t.get_text() for t in scores.figure.legends[0].get_texts()] == ["X", "Y", "Z"]


def test_halt_steps_against_a_score_of_the_annotation(many):
    _, scores = pl.halt_summary(many, score="ari", truth="layer", library_id=["f", "a"])
    (points,) = (c.get_offsets().tolist() for c in scores.collections if len(c.get_offsets()))
    for (step, value), name in zip(points, "fa", strict=True):
        part = many[many.obs["sample"] == name]
        assert step == part.uns["trm_domains"]["sections"].loc[name, "halt_step"]
        assert value == metrics.domain_scores(part.obs["layer"], part.obs["trm_domains"])["ari"]
    assert scores.get_ylabel() == "ARI"
    assert scores.get_legend() is None


HALTING = {
    "score": ({"score": "pcc"}, KeyError, r"'pcc'.*mean_confidence.*'ari'.*need truth"),
    "truth": ({"score": "ari"}, ValueError, "truth=..."),
    "mixed": ({"color": "trm_domains"}, ValueError, r"differs within the sections \['a'"),
    "column": ({"split": "fold"}, KeyError, "fold"),
    "axes": ({"ax": [None]}, TypeError, "pass matplotlib axes"),
}


@pytest.mark.parametrize("case", HALTING)
def test_bad_input_of_halt_steps_is_named(case, many):
    options, error, message = HALTING[case]
    with pytest.raises(error, match=message):
        pl.halt_summary(many, **options)


def test_a_model_that_cannot_halt_has_no_halt_steps(many):
    many.uns["trm_domains"]["sections"]["halt_step"] = np.nan
    with pytest.raises(ValueError, match="trained without halting"):
        pl.halt_summary(many)


def test_given_axes_and_nothing_else_changes(swept, explored, judged, many):
    _, axes = plt.subplots(1, 11)
    before = judged.obs.copy(), set(judged.uns), set(many.uns)
    assert list(pl.recursion_sweep(swept, ax=axes[:3])) == list(axes[:3])
    assert list(pl.landscape(explored, library_id="a", ax=axes[3:7])) == list(axes[3:7])
    assert list(pl.reliability(judged, truth="layer", ax=axes[7:9])) == list(axes[7:9])
    assert list(pl.halt_summary(many, color="patient", ax=axes[9:])) == list(axes[9:])
    assert len(plt.get_fignums()) == 1
    pd.testing.assert_frame_equal(judged.obs, before[0])
    assert (set(judged.uns), set(many.uns)) == before[1:]
    with pytest.raises(ValueError, match="8 panels"):
        pl.landscape(explored, ax=axes)
    assert pl.recursion_sweep(swept, show=True) is None


def test_nothing_leaves_its_figure(swept, explored, judged, many):
    for axes in (
        pl.recursion_sweep(swept),
        pl.landscape(explored),
        pl.reliability(judged, truth="layer"),
        pl.halt_summary(many, color="patient", split="split"),
    ):
        figure = axes[0].figure
        figure.canvas.draw()
        boxes = [ax.get_tightbbox() for ax in axes]
        for box in boxes:
            assert box.x0 >= -1
            assert box.x1 <= figure.bbox.x1 + 1
            assert box.y0 >= -1
            assert box.y1 <= figure.bbox.y1 + 1
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
