"""Annotated domains as integers, and what becomes of a spot's domain from step to step."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur._anndata import Sections

logger = logging.getLogger("strecur")

UNLABELLED = -1


def encode_labels(values: pd.Series, label_key: str) -> tuple[list[str], np.ndarray]:
    """Domains in their order and the index of each spot's domain, -1 where unlabelled."""
    present = set(values.dropna())
    if len(present) < 2:
        msg = f"adata.obs[{label_key!r}] names {len(present)} domain(s) {sorted(present)}; at least two are needed"
        raise ValueError(msg)
    labels = sorted(present)
    return labels, pd.Index(labels).get_indexer(values).astype(np.int64)


def keep_trained_labels(
    labels: list[str], target: np.ndarray, sections: Sections, training: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """Drop domains that no training section has; their spots count as unlabelled."""
    rows = np.concatenate([sections.rows(name) for name in training])
    present = np.unique(target[rows][target[rows] >= 0])
    dropped = [label for i, label in enumerate(labels) if i not in present]
    if dropped:
        logger.warning("domains %s are in no training section and cannot be learned", dropped)
    if len(present) < 2:
        msg = f"the training sections {list(training)} hold {len(present)} domain(s); at least two are needed"
        raise ValueError(msg)
    renumber = np.full(len(labels) + 1, UNLABELLED)
    renumber[present] = np.arange(len(present))
    return [labels[i] for i in present], renumber[target]


def settling_steps(steps_ND: np.ndarray) -> np.ndarray:
    """First step (from 1) after which a spot's answer equals the last one."""
    differs = steps_ND != steps_ND[:, -1:]
    last_change = np.where(differs.any(axis=1), steps_ND.shape[1] - differs[:, ::-1].argmax(axis=1), 0)
    return (last_change + 1).astype(np.int32)
