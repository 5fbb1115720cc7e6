"""From the answer of a network to counts, where that is what the model predicts."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from strecur.engine import Prediction, predict
from strecur.nn import CountNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning_fabric import Fabric

    from strecur.engine import Inference, Section
    from strecur.nn import SpotNetwork


@dataclass(frozen=True)
class CountPrediction(Prediction):
    """What one restart of a network says of the counts of one section; its output are the predicted ones.

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


def predict_values(
    network: SpotNetwork, sections: Sequence[Section], inference: Inference, *, fabric: Fabric, progress: bool
) -> list[list[Prediction]]:
    """Predict sections on the scale of the target; a network of counts generates them."""
    found = predict(network, sections, inference, fabric=fabric, progress=progress)
    if not isinstance(network, CountNetwork):
        return found
    return [[as_counts(network, run) for run in runs] for runs in found]


def as_counts(network: CountNetwork, run: Prediction) -> CountPrediction:
    """Generate counts from the conditions after each outer step."""
    steps = [network.head.decode(on_device(network, condition_NC)) for condition_NC in run.output_DN]
    counts_DN = np.stack([on_cpu(step.counts_NG) for step in steps])
    log2_DN = np.stack([on_cpu(step.log2_NG) for step in steps])
    return CountPrediction(**(vars(run) | {"output_DN": counts_DN, "log2_DN": log2_DN}))


def draw_counts(
    network: CountNetwork,
    sections: Sequence[Section],
    inference: Inference,
    n_samples: int,
    temperature: float,
    *,
    fabric: Fabric,
) -> list[Draws]:
    """Draw the counts of every section several times.

    Draws depend on the seed, the name of the section and the number of the sample, and on nothing else.
    """
    found = predict(network, sections, inference, fabric=fabric, progress=False)
    drawn = []
    for section, (run, *_) in zip(sections, found, strict=True):
        condition_NC, samples = on_device(network, run.output_DN[-1]), []
        for i in range(n_samples):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{inference.seed}/{section.name}/{i}".encode()))
            sample = network.head.sample(condition_NC, generator, temperature=temperature)
            samples.append(on_cpu(sample.counts_NG))
        drawn.append(Draws(samples[0], np.std(np.log2(np.stack(samples) + 1), axis=0)))
    return drawn


def on_device(network: CountNetwork, values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).to(network.head.order_G.device)


def on_cpu(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
