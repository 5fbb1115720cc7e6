"""Counts from the conditions that a network of counts predicts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from strecur._arguments import filled
from strecur.engine import Prediction, predict
from strecur.nn import CountNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric

    from strecur.engine import Answer, Section
    from strecur.nn import SpotNetwork
    from strecur.options import Inference


@dataclass(frozen=True)
class CountPrediction(Prediction):
    """Predicted counts of one section by one restart, in place of conditions.

    Attributes
    ----------
    log2_DN
        Mean of log2(count + 1) over the predicted distributions after each outer step, (depth, N, G) float32.
    """

    log2_DN: np.ndarray | None = None


@dataclass(frozen=True)
class Draws:
    """Counts of a section drawn several times.

    Attributes
    ----------
    first_NG
        The first draw, float32.
    spread_NG
        Standard deviation of log2(count + 1) over the draws, float32.
    """

    first_NG: np.ndarray
    spread_NG: np.ndarray


def as_values(network: SpotNetwork, answer: Answer) -> Answer:
    """Return an answer on the scale of the target; a network of counts generates them."""
    if not isinstance(network, CountNetwork):
        return answer
    return replace(answer, restarts=tuple(as_counts(network, run) for run in answer.restarts))


def as_counts(network: CountNetwork, run: Prediction) -> CountPrediction:
    """Generate counts from the conditions after each outer step."""
    steps = [network.head.decode(on_device(network, condition_NC)) for condition_NC in run.output_DN]
    counts_DN = np.stack([on_cpu(step.counts_NG) for step in steps])
    log2_DN = np.stack([on_cpu(step.log2_NG) for step in steps])
    return CountPrediction(**(vars(run) | {"output_DN": counts_DN, "log2_DN": log2_DN}))


def draw_counts(
    network: CountNetwork, sections: Sequence[Section], inference: Inference, *, seed: int, fabric: Fabric
) -> list[Draws]:
    """Draw the counts of every section several times.

    Draws depend on the seed, the name of the section and the number of the sample, and on nothing else.
    """
    answers = predict(network, sections, inference, seed=seed, keep_steps=False, fabric=fabric, progress=False)
    drawn = []
    for section, answer in zip(sections, answers, strict=True):
        condition_NC, samples = on_device(network, answer.restarts[0].output_DN[-1]), []
        for i in range(inference.n_samples):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{section.name}/{i}".encode()))
            sample = network.head.sample(condition_NC, generator, temperature=inference.temperature)
            samples.append(on_cpu(sample.counts_NG))
        drawn.append(Draws(samples[0], np.std(np.log2(np.stack(samples) + 1), axis=0)))
    return drawn


def log2_of(run: Prediction) -> np.ndarray:
    """Return the mean of log2(count + 1) after each outer step, of a prediction of counts."""
    assert isinstance(run, CountPrediction)
    return filled(run.log2_DN)


def on_device(network: CountNetwork, values: np.ndarray) -> torch.Tensor:
    """Move values to the device of a network."""
    return torch.from_numpy(values).to(network.head.order_G.device)


def on_cpu(values: torch.Tensor) -> np.ndarray:
    """Move values to the CPU."""
    return values.float().cpu().numpy()
