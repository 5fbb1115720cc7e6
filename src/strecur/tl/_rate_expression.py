"""How well a model of expression predicts sections and genes it was not trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from strecur import metrics
from strecur.engine import Inference
from strecur.models._counts import predict_values
from strecur.models._intervals import fit_errors
from strecur.nn import CountNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lightning_fabric import Fabric

    from strecur.engine import Section
    from strecur.models import ExpressionModel
    from strecur.models._targets import ExpressionTarget
    from strecur.nn import SpotNetwork


def rate_genes(
    genes: Sequence[str], target_NG: np.ndarray, held_out_NG: np.ndarray, codes_N: np.ndarray
) -> pd.DataFrame:
    """Reliability of every gene, as far as the linear baseline tells."""
    own = [codes_N == code for code in np.unique(codes_N)]
    pcc_linear = mean_pcc([target_NG[rows] for rows in own], [held_out_NG[rows] for rows in own])
    return pd.DataFrame(
        {
            "pcc": pcc_linear,
            "pcc_network": np.nan,
            "pcc_linear": pcc_linear,
            "mean": target_NG.mean(axis=0),
            "sd": target_NG.std(axis=0),
        },
        index=pd.Index(genes, name="gene"),
    )


def mean_pcc(truths: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> np.ndarray:
    """Correlation by gene within sections, averaged over the sections where it is defined."""
    return pd.DataFrame(map(metrics.pcc_per_gene, truths, predicted)).mean().to_numpy()


def score(truths: Sequence[np.ndarray], predicted: Sequence[np.ndarray]) -> dict[str, float]:
    """Scores over sections; spots whose truth is NaN do not count."""
    error_NG = np.concatenate(predicted) - np.concatenate(truths)
    pcc = metrics.pcc_top(mean_pcc(truths, predicted))
    rvd = np.mean([metrics.rvd(*pair) for pair in zip(truths, predicted, strict=True)])
    return {"pcc": pcc, "mse": float(np.nanmean(np.square(error_NG))), "rvd": float(rvd)}


def run(
    network: SpotNetwork, judges: Sequence[Section], inference: Inference, fabric: Fabric
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Predict sections of ready features, on the scale of the target and where genes are compared."""
    found = predict_values(network, judges, inference, fabric=fabric, progress=False)
    values = [runs[0].output_DN[-1] for runs in found]
    if isinstance(network, CountNetwork):
        return values, [runs[0].log2_DN[-1] for runs in found]
    return values, values


def validator(
    judges: Sequence[Section], depth: int, fabric: Fabric, scale: ExpressionTarget
) -> Callable[[SpotNetwork], dict[str, float]]:
    """Score a network on the validation sections."""
    truths = [scale.log2(judge.target_N.numpy()) for judge in judges]
    inference = Inference(depth, symmetric=False, keep_steps=False)

    def validate(network: SpotNetwork) -> dict[str, float]:
        found = score(truths, run(network, judges, inference, fabric)[1])
        return {f"validation_{name}": found[name] for name in ("pcc", "mse")}

    return validate


def rate_network(
    model: ExpressionModel, judges: Sequence[Section], linear: Sequence[np.ndarray], fabric: Fabric
) -> None:
    """Add to the model what the validation sections tell of its network, beside what they tell of the baseline."""
    truths = [judge.target_N.numpy() for judge in judges]
    inference = Inference(model.architecture.n_steps, keep_steps=False)
    values, predicted = run(model.network, judges, inference, fabric)
    truth_NG, predicted_NG = np.concatenate(truths), np.concatenate(values)
    known_N = ~np.isnan(truth_NG).any(axis=1)
    model.errors = fit_errors(predicted_NG[known_N], truth_NG[known_N])
    truths = list(map(model.target.log2, truths))
    pcc_network = mean_pcc(truths, predicted)
    model.reliability["pcc_network"] = model.reliability["pcc"] = pcc_network
    model.scores = pd.DataFrame(
        {
            name: score(truths, values) | metrics.pooled_scores(np.concatenate(truths), np.concatenate(values))
            for name, values in (("network", predicted), ("linear", linear))
        }
    )
