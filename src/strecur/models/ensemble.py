"""Several networks trained from different random numbers, whose predictions are averaged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strecur.engine import Answer, predict
from strecur.models.counts import as_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric

    from strecur.engine import Prediction, Section
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
    restarts: list[list[Prediction]] = [[] for _ in sections]
    for network in networks:
        answers = predict(
            network,
            sections,
            inference,
            seed=seed,
            keep_steps=keep_steps,
            keep_latents=keep_latents,
            fabric=fabric,
            progress=progress,
        )
        for own, answer in zip(restarts, answers, strict=True):
            own.extend(as_values(network, answer).restarts)
    return [Answer(section.name, tuple(own)) for section, own in zip(sections, restarts, strict=True)]
