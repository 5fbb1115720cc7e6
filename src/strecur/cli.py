"""Train, predict and validate from the command line: ``strecur`` or ``python -m strecur``."""

from __future__ import annotations

import json
import logging
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import strecur as st

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from strecur.models import DomainModel, LinearExpressionModel

logger = logging.getLogger("strecur")

FAILED = 1
"""Exit code if some sections could not be predicted."""

WRONG = 2
"""Exit code if the command or its input is wrong."""

TABLE = "sections"
"""Name of the table of sections in the folder of results."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exit with 2 if the command or its input is wrong, and with 1 if some sections failed.

    Parameters
    ----------
    arguments
        Command-line arguments. If ``None`` (default), those of the process.
    """
    parser = make_parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    if options.verbose:
        logger.setLevel(logging.INFO)
    devices = from_torchrun("LOCAL_WORLD_SIZE", 1)
    progress = from_torchrun("RANK", 0) == 0 and not options.quiet
    hardware = {"accelerator": options.accelerator, "precision": options.precision, "devices": devices}
    try:
        if devices > 1 and options.run is not train:
            msg = "torchrun is for training; start processes without it, of which each predicts a part (--shard)"
            raise ValueError(msg)
        with st.settings.override(**hardware, progress=progress):
            code = options.run(options)
    except (KeyError, OSError, TypeError, ValueError) as error:
        logger.info("", exc_info=True)
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"strecur {options.command}: error: {text}", file=sys.stderr)
        sys.exit(WRONG)
    sys.exit(code)


def from_torchrun(name: str, otherwise: int) -> int:
    """Return what ``torchrun`` says about this process."""
    return int(os.environ.get(name, otherwise))


# Commands


def train(options: Namespace) -> int:
    """Train a model on some or all sections, and save it."""
    if options.out.exists() and not options.overwrite:
        msg = f"{options.out} exists; pass --overwrite to replace the model, or choose another folder with --out"
        raise FileExistsError(msg)
    adata = sample(options)
    common: dict[str, Any] = {
        "use_rep": options.use_rep,
        "architecture": options.architecture,
        "backbone": options.backbone,
        "halting": None if options.halting == "none" else options.halting,
        "features": dict(options.features),
        "training": dict(options.training),
        "rng": options.rng,
    }
    given = {name: value for name, value in common.items() if value is not None or name == "halting"}
    model: DomainModel | LinearExpressionModel
    if options.label_key is not None:
        model = st.tl.train_domains(adata, options.label_key, **given)
    else:
        model = st.tl.train_expression(adata, genes=as_genes(options.genes), **given)
    if from_torchrun("RANK", 0) == 0:
        model.save(options.out, overwrite=options.overwrite)
        print(f"{model!r}\nsaved to {options.out}")
    return 0


def predict(options: Namespace) -> int:
    """Predict all sections, one at a time."""
    names = ("coverage", "abstain", "novelty", "rng", "key_added")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    table = st.tl.predict_cohort(
        options.paths,
        st.load_model(options.model),
        options.out,
        library_key=options.library_key,
        predict={**given, "inference": dict(options.inference)},
        shard=options.shard,
        overwrite=options.overwrite,
        table_key=options.table_key,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    part = "" if options.shard is None else f"-{options.shard.replace('/', '-of-')}"
    place = options.out / f"{TABLE}{part}.csv"
    table.to_csv(place, index=False)
    n_failed = int((table["error"] != "").sum())
    print(f"{len(table) - n_failed} of {len(table)} sections are predicted; see {place}")
    return FAILED if n_failed else 0


def validate(options: Namespace) -> int:
    """Cross-validate, and print mean scores by method."""
    adata = sample(options)
    training: dict[str, Any] = {"features": dict(options.features), "training": dict(options.training)}
    training |= {} if options.use_rep is None else {"use_rep": options.use_rep}
    training |= {} if options.label_key is not None else {"genes": as_genes(options.genes)}
    table = st.tl.cross_validate(
        adata,
        options.label_key,
        group_key=options.group_key,
        seeds=options.seeds,
        train=training,
        inference=dict(options.inference),
        path=options.out,
    )
    score = "ari" if options.label_key is not None else "pcc"
    columns = [name for name in (score, "accuracy", "macro_f1") if name in table]
    print(table.groupby("method", sort=False)[columns].mean().to_string(float_format="{:.3f}".format))
    print(f"scores of every group are in {options.out}")
    return 0


def sample(options: Namespace) -> Any:
    """Read the sections to train on."""
    return st.tl.sample_cohort(
        options.paths,
        options.n_sections,
        label_key=options.label_key,
        library_key=options.library_key,
        group_key=options.group_key,
        rng=options.rng,
        table_key=options.table_key,
    )


# Arguments


def make_parser() -> ArgumentParser:
    """Create the parser of the command line."""
    parser = ArgumentParser(
        "strecur",
        description=(
            "Train a model on annotated sections, predict the sections of a cohort one at a time, or cross-validate.\n"
            "The options are arguments of the functions of strecur.tl, where they are described."
        ),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"strecur {version('strecur')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,predict,validate}")
    add_train(add_command(commands, "train", train, "train a model and save it"))
    add_predict(add_command(commands, "predict", predict, "predict sections with a saved model"))
    add_validate(add_command(commands, "validate", validate, "hold out every group of sections once, and score"))
    return parser


def add_command(commands: Any, name: str, run: Callable[..., int], text: str) -> ArgumentParser:
    """Add a command with the options that all commands have."""
    parser: ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=run)
    parser.add_argument("paths", nargs="+", type=Path, help=".h5ad files, .zarr stores, or folders that hold them")
    parser.add_argument("--library-key", metavar="COL", help="column of obs with the section of each spot")
    parser.add_argument("--table-key", metavar="NAME", help="table to use in SpatialData stores with several")
    parser.add_argument("--rng", type=int, default=0, metavar="N", help="seed (default: 0)")
    parser.add_argument("--accelerator", default="auto", metavar="NAME", help="device, such as cpu or cuda")
    parser.add_argument("--precision", metavar="NAME", help="precision, such as 32-true or bf16-mixed")
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")
    parser.add_argument("--verbose", action="store_true", help="log what is done, and errors with their place")
    return parser


def add_train(parser: ArgumentParser) -> None:
    """Add the options of ``train``."""
    add_learning(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the model")
    parser.add_argument("--architecture", default="trm", metavar="NAME", help="architecture (default: trm)")
    parser.add_argument("--backbone", default="windowed", metavar="NAME", help="backbone (default: windowed)")
    parser.add_argument("--halting", default="auto", metavar="NAME", help="halting recipe, or none (default: auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is there")


def add_predict(parser: ArgumentParser) -> None:
    """Add the options of ``predict``."""
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="folder of the model")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the results")
    parser.add_argument("--shard", metavar="I/N", help="predict the I-th of N parts of the sections, such as 3/16")
    add_options(parser, "inference", "depth=8")
    parser.add_argument("--coverage", type=float, metavar="P", help="also write label sets or intervals")
    parser.add_argument("--abstain", type=float, metavar="P", help="leave spots of lower confidence without domain")
    parser.add_argument("--novelty", type=float, metavar="P", help="leave spots of higher novelty without domain")
    parser.add_argument("--key-added", metavar="KEY", help="name of the results")
    parser.add_argument("--overwrite", action="store_true", help="replace results of another model or other options")


def add_validate(parser: ArgumentParser) -> None:
    """Add the options of ``validate``."""
    add_learning(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="CSV", help="table of scores; it is continued")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds (default: 0 1 2)")
    add_options(parser, "inference", "depth=8")


def add_learning(parser: ArgumentParser) -> None:
    """Add the options of what is learned, and from which sections."""
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--label-key", metavar="COL", help="learn domains: column of obs with the annotation")
    task.add_argument("--genes", nargs="+", metavar="GENE", help="learn expression: number of genes, names or panels")
    parser.add_argument("--n-sections", type=int, metavar="N", help="use N sections, drawn at random (default: all)")
    parser.add_argument("--group-key", metavar="COL", help="column of obs with the donor, or what sections share")
    parser.add_argument("--use-rep", metavar="KEY", help="representation in obsm")
    add_options(parser, "features", "n_components=30")
    add_options(parser, "training", "max_epochs=40")


def add_options(parser: ArgumentParser, name: str, example: str) -> None:
    """Add an argument that takes fields of one of the option objects."""
    text = f"fields of strecur.{name.capitalize()}, such as {example}"
    parser.add_argument(f"--{name}", nargs="+", default=[], type=as_field, metavar="NAME=VALUE", help=text)


def as_field(word: str) -> tuple[str, object]:
    """Read ``name=value``; the value is JSON, or text if it is not."""
    name, sign, value = word.partition("=")
    if not sign:
        msg = f"{word!r}: write NAME=VALUE"
        raise ArgumentTypeError(msg)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, None if value == "none" else value


def as_genes(words: Sequence[str]) -> int | list[str]:
    """Read a number of genes, or names."""
    return int(words[0]) if len(words) == 1 and words[0].isdigit() else list(words)
