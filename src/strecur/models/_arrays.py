"""Which arrays belong to a model, told from its configuration before any of them is read or made."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from strecur.models._intervals import LEVELS, N_BINS
from strecur.models._network import PREFIX, build_network, from_json
from strecur.models._schema import SchemaError, require, shown
from strecur.nn import DomainHead, ExpressionHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

MAX_NETWORK_BYTES = 8 * 2**30

Shape = tuple[int | str, ...]


def check_arrays(config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse arrays that are missing, unknown, or of another shape than the configuration needs.

    Sizes that the configuration does not tell are letters, which are to mean the same everywhere.
    """
    expected = expected_shapes(config)
    optional = optional_shapes(config)
    for group in optional:
        if group.keys() & shapes.keys():
            expected |= group
    missing, unknown = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    require(not missing, f"weights: {shown(missing)} missing")
    require(not unknown, f"weights: {shown(unknown)} unknown")
    sizes: dict[str, int] = {}
    for name, wanted in expected.items():
        found = shapes[name]
        fits = len(found) == len(wanted) and all(
            size == (sizes.setdefault(want, size) if isinstance(want, str) else want)
            for size, want in zip(found, wanted, strict=True)
        )
        require(fits, f"weights: {name} has shape {found}; the configuration needs {wanted}")


def expected_shapes(config: Mapping[str, object]) -> dict[str, Shape]:
    """Arrays that a model of this configuration has."""
    features = config["features"]
    width = features["width"]
    n_columns = width * (1 + len(features["neighbours"]))
    n_outputs = len(config["labels"] if config["kind"] == "domains" else config["target"]["genes"])
    letter = "C" if config["kind"] == "domains" else "G"
    found: dict[str, Shape] = {
        f"baseline.weight_F{letter}": (n_columns, n_outputs),
        f"baseline.bias_{letter}": (n_outputs,),
    }
    if "expression" in features:
        n_genes = len(features["expression"]["genes"])
        found |= {"features.source.mean_G": (n_genes,), "features.source.components_GP": (n_genes, width)}
    if "representation" in features:
        found |= {f"features.source.{name}": ("F",) for name in ("mean_F", "scale_F")}
        found["features.source.components_FP"] = ("F", width)
    if "architecture" in config:
        network = outline(config, n_columns, n_outputs)
        found |= {f"{PREFIX}{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    return found


def optional_shapes(config: Mapping[str, object]) -> list[dict[str, Shape]]:
    """Arrays that come together or not at all."""
    width = config["features"]["width"]
    groups: list[dict[str, Shape]] = [{"features.means_SP": ("S", width), "features.scale_P": (width,)}]
    if config["kind"] == "domains":
        n_columns, n_domains = width * (1 + len(config["features"]["neighbours"])), len(config["labels"])
        start = {"weight_FO": (n_columns, n_domains), "bias_O": (n_domains,)}
        start = {f"{PREFIX}linear_start.{name}": shape for name, shape in start.items()}
        return [*groups, {"conformal_scores": ("N",)}, start]
    n_genes = len(config["target"]["genes"])
    errors = {
        "errors.edge_EG": (N_BINS - 1, n_genes),
        "errors.error_BQG": (N_BINS, len(LEVELS), n_genes),
        "errors.count_BG": (N_BINS, n_genes),
    }
    return [*groups, errors]


def outline(config: Mapping[str, object], n_columns: int, n_outputs: int) -> nn.Module:
    """Build the network without its numbers, and refuse one that would not fit into memory."""
    head = DomainHead if config["kind"] == "domains" else ExpressionHead
    try:
        architecture, backbone = from_json(config["architecture"]), from_json(config["backbone"])
        with torch.device("meta"):
            network = build_network(
                n_columns, architecture, backbone, head, n_outputs, halting=config["halting"], seed=0
            )
    except (ValueError, TypeError, AttributeError, RuntimeError, LookupError, ArithmeticError) as error:
        msg = f"architecture and backbone make no network: {shown(str(error))}"
        raise SchemaError(msg) from error
    n_bytes = sum(part.numel() * part.element_size() for part in [*network.parameters(), *network.buffers()])
    require(n_bytes <= MAX_NETWORK_BYTES, f"the network would take {n_bytes:,} bytes; at most {MAX_NETWORK_BYTES:,} do")
    return network
