"""Models that are trained once and stored in a folder, for several benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import domains
import expression
import pandas as pd

import strecur as st
from strecur.nn import TRMConfig

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    import anndata as ad

    from strecur.models import DomainModel, ExpressionModel

ARCHITECTURES = {
    "trm": "trm",
    "trm, eight steps": TRMConfig(n_steps=8),  # in training, as in the halting studies of the spatial TRM
    "trm, sixteen steps": TRMConfig(n_steps=16),
    "feedforward": "feedforward",
    "trm, random starts": TRMConfig(sigma=(0.1, 0.1), damping=0.05, noise=0.01),  # Equilibrium Reasoners, but for sigma
    "trm, equilibrium": TRMConfig(n_steps=8, sigma=(1.0, 1.0), damping=0.1, noise=0.05),
    "trm, equilibrium, damping 0.9": TRMConfig(n_steps=8, n_latent=1, sigma=(1.0, 1.0), damping=0.9, noise=0.05),
    "trm, equilibrium, strong damping": TRMConfig(n_steps=8, n_latent=1, sigma=(1.0, 1.0), damping=0.5, noise=0.05),
}


@dataclass(frozen=True)
class ModelSpec:
    """How a model is trained, except for the data.

    Attributes
    ----------
    task
        ``"domains"`` or ``"expression"``.
    sections
        Training sections.
    architecture
        Key of ``ARCHITECTURES``.
    halting
        Halting recipe, or ``None``.
    epochs
        Passes over the sections. If ``None``, the default.
    seed
        Seed of the training.
    """

    task: str
    sections: tuple[str, ...]
    architecture: str = "trm"
    halting: str | None = None
    epochs: int | None = None
    seed: int = 0

    @property
    def name(self) -> str:
        """Folder of the model."""
        parts = (self.task, *self.sections, self.architecture, self.halting, self.epochs or "default", self.seed)
        return "_".join(str(part).replace(", ", "-").replace(" ", "-") for part in parts)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every script that uses stored models."""
    parser.add_argument("task", choices=("domains", "expression"))
    parser.add_argument("--data", type=expression.Path, required=True)
    parser.add_argument("--size-factor-key", help="column of obs with library sizes, for domains")
    parser.add_argument("--sections", nargs="+", help="sections to read, for expression")
    parser.add_argument("--encoder", default="efficientnet-lite0")
    parser.add_argument("--patch-px", type=float, default=224)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--train", nargs="+", help="sections to train on; by default all others")
    parser.add_argument("--epochs", type=int, help="by default those of the package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=expression.Path, default=expression.Path("benchmarks/results/embedded"))
    parser.add_argument("--models", type=expression.Path, default=expression.Path("benchmarks/results/models"))


def read(options: argparse.Namespace) -> ad.AnnData:
    """Read the sections of the task."""
    return domains.read_folder(options.data) if options.task == "domains" else expression.read_sections(options)


def of_sections(adata: ad.AnnData, names: Sequence[str]) -> ad.AnnData:
    """Copy some sections."""
    return adata[adata.obs["section"].isin(list(names))].copy()


def trained(adata: ad.AnnData, spec: ModelSpec, options: argparse.Namespace) -> DomainModel | ExpressionModel:
    """Load the model if it is stored, else train and store it; no section is used to choose the weights."""
    folder: Path = options.models / options.data.name / spec.name
    if folder.exists():
        return st.load_model(folder)
    part = of_sections(adata, spec.sections)
    arguments = {
        "architecture": ARCHITECTURES[spec.architecture],
        "halting": spec.halting,
        "training": {"max_epochs": spec.epochs, "validation": None},
        "rng": spec.seed,
    }
    if spec.task == "domains":
        features = {"size_factor_key": options.size_factor_key}
        model = st.tl.train_domains(part, "domain", features=features, **arguments)
    else:
        model = st.tl.train_expression(part, genes=expression.choose_panel(part, options.genes), **arguments)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    print(f"trained {spec.name} in {model.history['seconds'].iloc[-1]:.0f} s", flush=True)
    return model


def read_table(path: Path) -> pd.DataFrame:
    """Read the table of earlier runs; empty if there is none."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def append(table: pd.DataFrame, rows: Sequence[dict[str, object]], path: Path) -> pd.DataFrame:
    """Append rows and write the table."""
    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return table
