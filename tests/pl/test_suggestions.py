from __future__ import annotations

import numpy as np
import pytest
from matplotlib.patches import Circle

from strecur import pl


@pytest.fixture
def with_places(hex_sections):
    """Two sections with suggested places: two in a, one in b."""
    ranks = np.full(hex_sections.n_obs, np.nan, dtype=np.float32)
    of_b = np.flatnonzero(hex_sections.obs["sample"] == "b")
    ranks[[9, 10, 17]], ranks[[40, 41]], ranks[of_b[[20, 21, 28]]] = 1, 3, 2
    hex_sections.obs["suggestions"] = ranks
    weights = np.linspace(0, 0.8, hex_sections.n_obs)
    weights[:8] = np.nan
    hex_sections.obs["suggestions_weight"] = weights
    hex_sections.uns["suggestions"] = {"params": {"library_key": "sample"}}
    return hex_sections


def circles(ax):
    return [patch for patch in ax.patches if isinstance(patch, Circle)]


def test_places_are_circled_and_numbered_on_the_map_of_their_section(with_places):
    first, second = pl.suggestions(with_places)
    assert [ax.get_title() for ax in (first, second)] == ["a\n2 places to annotate", "b\n1 place to annotate"]
    assert [[text.get_text() for text in ax.texts] for ax in (first, second)] == [["1", "3"], ["2"]]
    assert [len(circles(ax)) for ax in (first, second)] == [2, 1]
    # the circle holds the spots of its place and few others
    offsets = first.collections[0].get_offsets()
    inside = np.hypot(*(offsets - circles(first)[0].center).T) < circles(first)[0].radius
    assert inside[[9, 10, 17]].all()
    assert inside.sum() < 10
    shown = first.collections[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown)[:10], [True] * 8 + [False] * 2)
    np.testing.assert_allclose(shown[8:], with_places.obs["suggestions_weight"][8:64])


def test_missing_suggestions_name_the_call(hex_sections):
    with pytest.raises(KeyError, match=r"Run strecur.tl.suggest_annotation"):
        pl.suggestions(hex_sections)
