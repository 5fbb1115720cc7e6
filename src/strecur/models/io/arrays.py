"""Which arrays belong to a model, told from its configuration before any of them is read or made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from strecur.models.calibration import LEVELS, N_BINS
from strecur.models.io.schema import SchemaError, require, shown
from strecur.models.network import PREFIX, architecture_from_json, backbone_from_json, build_network, prefix_of
from strecur.models.novelty import LEVELS as NOVELTY_LEVELS
from strecur.nn import DomainHead, ExpressionHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from strecur.models.network import Backbones

MAX_NETWORK_BYTES = 8 * 2**30

Shape = tuple[int | str, ...]


def check_arrays(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], backbones: Backbones) -> None:
    """Raise if arrays are missing, unknown, or of another shape than the configuration needs.

    Sizes that the configuration does not tell are letters, which are to mean the same everywhere.
    """
    expected = expected_shapes(config, backbones)
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


def expected_shapes(config: Mapping[str, Any], backbones: Backbones) -> dict[str, Shape]:
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
    if "intensities" in features:
        n_markers = len(features["intensities"]["markers"])
        by_marker = ("cofactor_M", "low_M", "high_M", "mean_M", "scale_M")
        found |= {f"features.source.{name}": (n_markers,) for name in by_marker}
        found["features.source.components_MP"] = (n_markers, width)
    if "representation" in features:
        found |= {f"features.source.{name}": ("F",) for name in ("mean_F", "scale_F")}
        found["features.source.components_FP"] = ("F", width)
    if "architecture" in config:
        network = outline(config, backbones, n_columns, n_outputs)
        of_network = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        for member in range(config.get("n_networks", 1)):
            found |= {f"{prefix_of(member)}{name}": shape for name, shape in of_network.items()}
    return found


def optional_shapes(config: Mapping[str, Any]) -> list[dict[str, Shape]]:
    """Arrays that come together or not at all."""
    width = config["features"]["width"]
    groups: list[dict[str, Shape]] = [
        {"features.means_SP": ("S", width), "features.scale_P": (width,)},
        {"features.weight_P": (width,)},
    ]
    n_groups, n_scores = (len(config["labels"]), 3) if config["kind"] == "domains" else (1, 1)
    groups.append(
        {
            "novelty.columns_S": ("columns",),
            "novelty.domains.mean_CF": (n_groups, "columns"),
            "novelty.domains.whiten_FF": ("columns", "columns"),
            "novelty.background.mean_CF": (1, "columns"),
            "novelty.background.whiten_FF": ("columns", "columns"),
            "novelty.centre_K": (n_scores,),
            "novelty.spread_K": (n_scores,),
            "novelty.quantiles_L": (len(NOVELTY_LEVELS),),
            "novelty.excess": (1,),
        }
    )
    if config["kind"] == "domains":
        groups.append(
            {
                **{f"features.domains.{name}_P": (width,) for name in ("centre", "scale")},
                **{f"features.domains.{name}_CP": (n_groups, width) for name in ("mean", "variance")},
                "features.domains.mean_CF": (n_groups, "leading"),
                "features.domains.whiten_FF": ("leading", "leading"),
                "features.domains.limit": (1,),
            }
        )
        n_columns, n_domains = width * (1 + len(config["features"]["neighbours"])), len(config["labels"])
        start: dict[str, Shape] = {"weight_FO": (n_columns, n_domains), "bias_O": (n_domains,)}
        linear_start: dict[str, Shape] = {f"{PREFIX}linear_start.{name}": shape for name, shape in start.items()}
        groups += [{"conformal_scores": ("N",)}, linear_start]
        return groups
    n_genes = len(config["target"]["genes"])
    errors: dict[str, Shape] = {
        "errors.edge_EG": (N_BINS - 1, n_genes),
        "errors.error_BQG": (N_BINS, len(LEVELS), n_genes),
        "errors.count_BG": (N_BINS, n_genes),
    }
    return [*groups, errors, {"errors.spread_G": (n_genes,)}]


def outline(config: Mapping[str, Any], backbones: Backbones, n_columns: int, n_outputs: int) -> nn.Module:
    """Build the network on the meta device; raise if it would not fit into memory."""
    head = DomainHead if config["kind"] == "domains" else ExpressionHead
    try:
        architecture = architecture_from_json(config["architecture"])
        backbone = backbone_from_json(config["backbone"], backbones)
        with torch.device("meta"):
            network = build_network(
                n_columns, architecture, backbone, head, n_outputs, halting=config["halting"], seed=0
            )
    except (ValueError, TypeError, AttributeError, RuntimeError, LookupError, ArithmeticError) as error:
        msg = f"architecture and backbone make no network: {shown(str(error))}"
        raise SchemaError(msg) from error
    n_bytes = sum(part.numel() * part.element_size() for part in [*network.parameters(), *network.buffers()])
    n_bytes *= config.get("n_networks", 1)
    require(n_bytes <= MAX_NETWORK_BYTES, f"the network would take {n_bytes:,} bytes; at most {MAX_NETWORK_BYTES:,} do")
    return network
