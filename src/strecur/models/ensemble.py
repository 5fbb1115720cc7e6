"""Several networks trained from different random numbers, whose predictions are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strecur.engine import Answer
from strecur.models.counts import predict_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric

    from strecur.engine import Section
    from strecur.nn import SpotNetwork
    from strecur.options import Inference


def predict_ensemble(
    networks: Sequence[SpotNetwork],
    sections: Sequence[Section],
    inference: Inference,
    *,
    fabric: Fabric,
    seed: int = 0,
    keep_steps: bool = False,
    keep_latents: int = 0,
    progress: bool = False,
) -> list[Answer]:
    """Predict sections with each network; every answer has the restarts of all networks, one network after the other.

    Each network halts by itself.
    """
    found = [
        predict_values(
            network,
            sections,
            inference,
            fabric=fabric,
            seed=seed,
            keep_steps=keep_steps,
            keep_latents=keep_latents,
            progress=progress,
        )
        for network in networks
    ]
    return [
        Answer(section.name, tuple(run for answer in answers for run in answer))
        for section, *answers in zip(sections, *found, strict=True)
    ]
