"""Tables of how a network came to its answer, one row per section or step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from strecur.engine.restarts import most_converged
from strecur.nn.halting import halt_steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strecur._anndata import Sections
    from strecur.engine import Prediction

MIN_HALT_STEPS = 2


def describe_sections(
    sections: Sections, restarts: Sequence[Sequence[Prediction]], halt_threshold: float
) -> pd.DataFrame:
    """One row per section: size, steps run, halting (NaN for a model without it) and residual of the best restart."""
    chosen = [runs[most_converged(runs)] for runs in restarts]
    halt_DS = np.stack([run.halt_probability_D for run in chosen], axis=1)
    steps = halt_steps(torch.from_numpy(halt_DS), threshold=halt_threshold, min_steps=MIN_HALT_STEPS).numpy()
    return pd.DataFrame(
        {
            "n_spots": [len(sections.rows(name)) for name in sections.names],
            "n_steps": [run.n_steps for run in chosen],
            "halt_step": np.where(np.isnan(halt_DS[-1]), np.nan, steps),
            "halt_probability": halt_DS[-1],
            "residual": [run.residual for run in chosen],
        },
        index=pd.Index(sections.names, name="section"),
    )


def means_by_section(sections: Sections, values_N: np.ndarray) -> list[float]:
    """Mean over the spots of each section."""
    return [float(np.mean(values_N[sections.rows(name)])) for name in sections.names]


def residual_table(sections: Sections, restarts: Sequence[Sequence[Prediction]]) -> pd.DataFrame:
    """Residual by section, restart and outer step (from 1)."""
    rows = [
        {"section": name, "restart": i, "step": d + 1, "residual": float(value)}
        for name, runs in zip(sections.names, restarts, strict=True)
        for i, run in enumerate(runs)
        for d, value in enumerate(run.residual_D)
    ]
    return pd.DataFrame(rows).astype({"section": "category"})
