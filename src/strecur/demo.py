"""Train on some sections, label a held-out one and plot it: ``python -m strecur.demo``."""

from __future__ import annotations

import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import anndata as ad
import numpy as np
import pandas as pd

import strecur as st

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from strecur.models import DomainModel

SECTION = "section"
CELL_TYPES = {"kind": "cell_types", "cell_type_key": "cell_type"}
"""Features of the sample, which has no genes."""

ARCHITECTURES: dict[str, Literal["feedforward", "trm"]] = {"feedforward": "feedforward", "TRM": "trm"}

SAMPLE_TEST = "BALBc-2"
"""Part of the sample that is held out, from another mouse than the others."""

SAMPLE_EPOCHS = 30
"""Few epochs, so that the demonstration takes about two minutes on two cores. Other data use the default."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demonstration.

    Parameters
    ----------
    arguments
        Command-line arguments. If ``None`` (default), those of the process.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.data is None:
        options.test = options.test or SAMPLE_TEST
        options.epochs = options.epochs or SAMPLE_EPOCHS
    try:
        adata = read_folder(options) if options.data else read_sample(options)
    except ValueError as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)

    st.pp.to_grid(adata, library_key=SECTION)
    in_test = adata.obs[SECTION] == options.test
    annotated, held_out = adata[~in_test].copy(), adata[in_test].copy()
    names = annotated.obs[SECTION].unique()
    if "source" in adata.uns:
        print(adata.uns["source"])
    print(f"{', '.join(names)} ({annotated.n_obs:,} spots) for training, {options.test} for testing", flush=True)
    table, model = compare(annotated, held_out, options)
    draw(held_out, model, options)
    held_out.write_h5ad(options.out / "labelled.h5ad")

    print(f"\n{options.test}, {held_out.n_obs:,} spots, not used in training:\n")
    print(table.to_string(float_format="{:.3f}".format, formatters={"seconds": "{:.0f}".format}))
    print(
        "\nCompare with the linear baseline on your own data too, and prefer it where it scores as well: it is simpler."
    )
    print(f"Figures and the labelled section {options.test} (labelled.h5ad) are in {options.out}")


def make_parser() -> ArgumentParser:
    """Create the parser of the command line."""
    parser = ArgumentParser(
        "python -m strecur.demo", description="Train on annotated sections and label a held-out one."
    )
    parser.add_argument("--out", type=Path, default=Path("strecur_demo"), help="folder for the results")
    parser.add_argument(
        "--data", type=Path, help="folder of .h5ad files, one section each (default: parts of mouse spleen)"
    )
    parser.add_argument("--label", default="domain", help="column of obs with the annotated domains")
    parser.add_argument("--test", metavar="SECTION", help="section to hold out: the name of its file without .h5ad")
    parser.add_argument("--size-factor-key", metavar="COL", help="column of obs with the total counts of every spot")
    parser.add_argument(
        "--epochs", type=positive, help="passes over the training sections (default: that of the package)"
    )
    return parser


def positive(word: str) -> int:
    """Parse a number of at least one."""
    number = int(word)
    if number < 1:
        msg = f"{number} is too few; at least 1 is needed"
        raise ArgumentTypeError(msg)
    return number


def read_sample(options: Namespace) -> AnnData:
    """Load the sample that comes with the package."""
    adata = st.datasets.spleen_sample()
    check_test(options.test, adata.obs[SECTION].cat.categories)
    check_columns(adata, "the sample", options)
    return adata


def read_folder(options: Namespace) -> AnnData:
    """Read the sections of a folder and keep the genes that all of them have."""
    files = sorted(options.data.glob("*.h5ad"))
    if len(files) < 2:
        msg = f"{options.data} holds {len(files)} .h5ad files; at least two are needed, for training and for testing"
        raise ValueError(msg)
    check_test(options.test, [file.stem for file in files])
    if options.out.resolve() == options.data.resolve():
        msg = f"--out is the folder of the sections, {options.data}; choose another folder with --out"
        raise ValueError(msg)
    sections = {}
    for file in files:
        sections[file.stem] = ad.read_h5ad(file)
        check_columns(sections[file.stem], file.name, options)
    return ad.concat(sections, join="inner", label=SECTION, index_unique="-")


def check_test(name: str | None, existing: Sequence[str]) -> None:
    """Raise if the test section does not exist."""
    if name not in existing:
        given = f"there is no section {name!r}" if name else "no section was chosen"
        msg = f"{given}; choose one with --test from {', '.join(existing)}"
        raise ValueError(msg)


def check_columns(adata: AnnData, name: str, options: Namespace) -> None:
    """Raise if a section lacks a column that the options name."""
    for option, column in (("--label", options.label), ("--size-factor-key", options.size_factor_key)):
        if column is not None and column not in adata.obs:
            msg = f"obs of {name} has no column {column!r}; choose one with {option} from {', '.join(adata.obs)}"
            raise ValueError(msg)


def compare(annotated: AnnData, held_out: AnnData, options: Namespace) -> tuple[pd.DataFrame, DomainModel]:
    """Label the held-out section without and with recursion; return a table of scores and the recursive model."""
    rows, linear_seconds = {}, []
    features = {"size_factor_key": options.size_factor_key} if annotated.n_vars else CELL_TYPES
    for name, architecture in ARCHITECTURES.items():
        print(f"\ntraining {name}", flush=True)
        key, begin = f"{architecture}_domains", time.perf_counter()
        model = st.tl.train_domains(
            annotated,
            options.label,
            architecture=architecture,
            features=features,
            training={"max_epochs": options.epochs},
        )
        seconds = time.perf_counter() - begin
        st.tl.trm_domains(held_out, model, key_added=key)
        rows[name] = score(held_out, options.label, key) | {"seconds": seconds}
        # Every training fits the baseline too; the history holds the time of the network alone.
        linear_seconds.append(seconds - model.history["seconds"].iloc[-1])
    linear = score(held_out, options.label, f"{key}_linear") | {"seconds": min(linear_seconds)}
    return pd.DataFrame.from_dict({"linear baseline": linear, **rows}, orient="index"), model


def score(adata: AnnData, label: str, key: str) -> dict[str, float]:
    """Return the scores to print."""
    scores = st.metrics.domain_scores(adata.obs[label], adata.obs[key])
    return {"ARI": scores["ari"], "accuracy": scores["accuracy"], "macro-F1": scores["macro_f1"]}


def draw(held_out: AnnData, model: DomainModel, options: Namespace) -> None:
    """Save the figures of the recursive model."""
    import matplotlib.pyplot as plt

    figures: dict[str, Callable[[], Any]] = {
        "domains": lambda: st.pl.domains(held_out, truth=options.label, linear=True),
        "refinement": lambda: st.pl.refinement(held_out),
        "halt_steps": lambda: st.pl.halt_steps(held_out),
        "confidence": lambda: st.pl.confidence(held_out, truth=options.label),
        "training": lambda: st.pl.training(model),
    }
    for name, plot in figures.items():
        figure = np.ravel(plot())[0].figure
        figure.savefig(options.out / f"{name}.png", dpi=150)
        plt.close(figure)


if __name__ == "__main__":
    import matplotlib

    # Figures are written to files, so no display is needed.
    matplotlib.use("agg")
    main()
