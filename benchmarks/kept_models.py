"""Models of a benchmark that are trained once and kept, so that one script after the other can look at them."""

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

ARCHITECTURES = {
    "trm": "trm",
    "trm, eight steps": TRMConfig(n_steps=8),  # in training, as in the paper's studies of halting
    "feedforward": "feedforward",
    "trm, random starts": TRMConfig(sigma=(0.1, 0.1), damping=0.05, noise=0.01),  # as paper 003 trains, but for σ
}


@dataclass(frozen=True)
class Training:
    """What makes a model, beside the data.

    Attributes
    ----------
    task
        ``"domains"`` or ``"expression"``.
    sections
        Training sections.
    architecture
        Key of ``ARCHITECTURES``.
    halting
        Recipe, or ``None``.
    epochs
        Passes over the sections; ``None``: the default.
    seed
        Of the training.
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
    """Arguments of every script that uses kept models."""
    parser.add_argument("task", choices=("domains", "expression"))
    parser.add_argument("--data", type=expression.Path, required=True)
    parser.add_argument("--size-factor-key", help="of domains")
    parser.add_argument("--sections", nargs="+", help="of expression")
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
    """Sections of the task, on their lattice."""
    return domains.read_folder(options.data) if options.task == "domains" else expression.read_sections(options)


def of_sections(adata: ad.AnnData, names: Sequence[str]) -> ad.AnnData:
    """Copy of some sections."""
    return adata[adata.obs["section"].isin(list(names))].copy()


def trained(
    adata: ad.AnnData, training: Training, options: argparse.Namespace
) -> st.models.DomainModel | st.models.ExpressionModel:
    """Load the model if it is kept, else train and keep it; no section is used to choose the weights."""
    folder: Path = options.models / options.data.name / training.name
    if folder.exists():
        return st.load_model(folder)
    part = of_sections(adata, training.sections)
    settings = {
        "library_key": "section",
        "architecture": ARCHITECTURES[training.architecture],
        "halting": training.halting,
        "max_epochs": training.epochs,
        "rng": training.seed,
        "validation": None,
        "progress": False,
    }
    if training.task == "domains":
        model = st.tl.train_domains(part, "domain", size_factor_key=options.size_factor_key, **settings)
    else:
        model = st.tl.train_expression(part, genes=expression.choose_panel(part, options.genes), **settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    print(f"trained {training.name} in {model.history['seconds'].iloc[-1]:.0f} s", flush=True)
    return model


def read_table(path: Path) -> pd.DataFrame:
    """What was computed before; nothing if there is no table."""
    return pd.read_csv(path) if path.exists() else pd.DataFrame()


def append(table: pd.DataFrame, rows: Sequence[dict[str, object]], path: Path) -> pd.DataFrame:
    """Add rows and write the table."""
    table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False)
    return table
