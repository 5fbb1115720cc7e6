"""A network that says the same everywhere is noticed; a section that is the same everywhere is no collapse."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from strecur.models import domain_task, expression_task
from strecur.models.domain_task import DomainTask
from strecur.models.expression_task import ExpressionTask
from strecur.models.sections import CHECKED_SPOTS, smallest_sections


def section(target):
    target_N = torch.as_tensor(np.asarray(target))
    return SimpleNamespace(features_NF=torch.zeros(len(target_N), 1), target_N=target_N)


SMALL = section([0] * 48 + [1] * 2)
LARGE = section([0, 1, -1] * 40)


def collapsed(monkeypatch, sections, proba):
    """Judge a network of domains whose probabilities are a function of section and target."""

    def predict(_network, some, *_args, **_options):
        found = [np.stack([proba(own, int(target)) for target in own.target_N]) for own in some]
        return [SimpleNamespace(best=SimpleNamespace(output_DN=proba_NC[None])) for proba_NC in found]

    monkeypatch.setattr(domain_task, "predict", predict)
    return DomainTask("domain", None).has_collapsed(None, sections, 1, None)


def test_a_section_of_one_domain_is_no_collapse(monkeypatch):
    """The network names the frequent domain in all of the small section, and is right elsewhere."""

    def right_elsewhere(own, target):
        return np.array([0.4, 0.6]) if own is LARGE and target == 1 else np.array([0.9, 0.1])

    assert not collapsed(monkeypatch, [LARGE, SMALL], right_elsewhere)


def test_rare_domains_that_are_told_but_not_named_yet_are_no_collapse(monkeypatch):
    rare = section([0] * 80 + [1] * 20)
    assert not collapsed(monkeypatch, [rare], lambda _own, target: np.array([[0.95, 0.05], [0.55, 0.45]][target]))
    assert collapsed(monkeypatch, [rare], lambda _own, target: np.array([[0.81, 0.19], [0.79, 0.21]][target]))


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_one_answer_everywhere_is_a_collapse(monkeypatch, share):
    assert collapsed(monkeypatch, [LARGE, SMALL], lambda _own, _target: np.array([share, 1 - share]))


def test_answers_no_better_than_the_frequencies_are_a_collapse(monkeypatch):
    assert collapsed(monkeypatch, [LARGE, SMALL], lambda _own, target: np.eye(2)[1 - max(target, 0)] * 0.98 + 0.01)


def test_sections_without_two_domains_tell_nothing(monkeypatch):
    assert not collapsed(monkeypatch, [section([0, 0, -1])], lambda _own, _target: np.array([1.0, 0.0]))


@pytest.mark.parametrize(("varies", "expected"), [(0.0, True), (1.0, False)])
def test_expression_that_varies_in_one_section_only_is_no_collapse(monkeypatch, varies, expected):
    rng = np.random.default_rng(0)
    flat, lively = section(np.full((40, 3), 2.0)), section(rng.normal(size=(60, 3)))

    def run(_networks, some, *_args):
        return SimpleNamespace(values=[own.target_N.numpy() * varies for own in some])

    monkeypatch.setattr(expression_task, "run", run)
    assert ExpressionTask.has_collapsed(None, None, [lively, flat], 1, None) == expected


def test_the_smallest_sections_are_looked_at_until_there_are_enough_spots():
    sizes = [CHECKED_SPOTS, 10, CHECKED_SPOTS - 20, 20]
    sections = [section(np.zeros(size, dtype=int)) for size in sizes]
    assert [len(own.features_NF) for own in smallest_sections(sections)] == [10, 20, CHECKED_SPOTS - 20]
    assert [len(own.features_NF) for own in smallest_sections(sections[:1] * 3)] == [CHECKED_SPOTS]
