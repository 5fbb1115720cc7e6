"""From the answer of a network to counts, where that is what the model predicts."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from strecur.engine import Prediction, predict
from strecur.nn import CountNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from lightning_fabric import Fabric

    from strecur.engine import Inference, Section
    from strecur.nn import SpotNetwork


def predict_values(
    network: SpotNetwork, sections: Sequence[Section], inference: Inference, *, fabric: Fabric, progress: bool
) -> list[list[Prediction]]:
    """Predict sections on the scale of the target; a network of counts generates the most probable ones."""
    found = predict(network, sections, inference, fabric=fabric, progress=progress)
    if not isinstance(network, CountNetwork):
        return found
    return [[replace(run, output_DN=most_probable_counts(network, run.output_DN)) for run in runs] for runs in found]


def most_probable_counts(network: CountNetwork, condition_DNC: np.ndarray) -> np.ndarray:
    """Counts of all genes after each outer step, (depth, N, G) float32."""
    steps = [network.head.decode(on_device(network, condition_NC)).counts_NG for condition_NC in condition_DNC]
    return torch.stack(steps).float().cpu().numpy()


def spread_of_counts(
    network: CountNetwork,
    sections: Sequence[Section],
    inference: Inference,
    n_samples: int,
    *,
    fabric: Fabric,
) -> list[np.ndarray]:
    """Draw counts and return, for every section, the standard deviation of log2(count + 1); (N, G) float32.

    Draws depend on the seed, the name of the section and the number of the sample, and on nothing else.
    """
    found = predict(network, sections, inference, fabric=fabric, progress=False)
    spreads = []
    for section, (run, *_) in zip(sections, found, strict=True):
        condition_NC, drawn = on_device(network, run.output_DN[-1]), []
        for i in range(n_samples):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{inference.seed}/{section.name}/{i}".encode()))
            drawn.append(network.head.sample(condition_NC, generator).counts_NG.float().add(1).log2().cpu())
        spreads.append(torch.stack(drawn).std(dim=0, correction=0).numpy())
    return spreads


def on_device(network: CountNetwork, values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).to(network.head.order_G.device)
