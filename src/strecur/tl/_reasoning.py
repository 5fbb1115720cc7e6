"""Tables of the steps by which a network came to its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from strecur._arguments import filled
from strecur.nn.halting import halt_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur._anndata import SectionData
    from strecur.engine import Answer
    from strecur.models.base import NetworkModel
    from strecur.options import Inference


def describe_answers(data: SectionData, answers: Sequence[Answer], inference: Inference) -> pd.DataFrame:
    """Return size, steps, halting (NaN for a model without it) and residual of the best restart of each section."""
    chosen = [answer.best for answer in answers]
    halt_DS = np.stack([run.halt_probability_D for run in chosen], axis=1)
    threshold = filled(inference.halt_threshold)
    steps = halt_steps(torch.from_numpy(halt_DS), threshold=threshold, min_steps=inference.min_steps).numpy()
    return pd.DataFrame(
        {
            "n_spots": list(data.sizes().values()),
            "n_steps": [run.n_steps for run in chosen],
            "halt_step": np.where(np.isnan(halt_DS[-1]), np.nan, steps),
            "halt_probability": halt_DS[-1],
            "residual": [run.residual for run in chosen],
        },
        index=pd.Index(data.names, name="section"),
    )


def residual_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """Return the residual by section, restart and outer step (from 1)."""
    rows = [
        {"section": answer.section, "restart": i, "step": d + 1, "residual": float(value)}
        for answer in answers
        for i, run in enumerate(answer.restarts)
        for d, value in enumerate(run.residual_D)
    ]
    return pd.DataFrame(rows).astype({"section": "category"})


def slide_tokens(model: NetworkModel, answers: Sequence[Answer], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the global tokens of the first restart, (sections, tokens, width), NaN for a section that is not there.

    There is no entry for a network without tokens, or whose tokens do not see the spots.
    """
    # of the first restart, since networks of an ensemble have tokens of their own
    tokens = {answer.section: filled(answer.restarts[0].tokens_MD) for answer in answers}
    shape = next(iter(tokens.values())).shape
    if not shape[0] or not model.backbone.sees_other_spots:
        return {}
    missing = np.full(shape, np.nan, dtype=np.float32)
    return {"slide_tokens": np.stack([tokens.get(name, missing) for name in names])}


def settling_steps(steps_ND: np.ndarray) -> np.ndarray:
    """Return the first step (from 1) after which a spot's answer equals the last one."""
    differs = steps_ND != steps_ND[:, -1:]
    last_change = np.where(differs.any(axis=1), steps_ND.shape[1] - differs[:, ::-1].argmax(axis=1), 0)
    return (last_change + 1).astype(np.int32)
