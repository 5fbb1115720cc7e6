"""Label sections with other published methods, and score them like those of the package.

    python benchmarks/peers.py --data ../shared/data/dlpfc --size-factor-key sum_umi --cache ~/.cache/strecur-peers

Each method runs in its own virtual environment, which is created in the cache folder at its first use. All but scANVI
cluster the section itself and are given the number of its domains; scANVI is trained on the other sections, and then
fitted to the section without its labels. Rows that are already in the table are not computed again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import anndata as ad
import pandas as pd

import strecur as st

FOLDER = Path(__file__).parent / "peers"
INSTALL = {
    "spatialleiden": ["spatialleiden", "scanpy"],
    "cellcharter": ["cellcharter"],
    "spagcn": ["SpaGCN", "setuptools<81"],
    "graphst": ["GraphST", "POT", "scikit-misc", "torch", "scanpy"],
    "stagate": ["stagate-modern", "scanpy"],
    "scanvi": ["scvi-tools"],
}
SUPERVISED = ("scanvi",)
SCORES = ["ari", "nmi", "accuracy", "macro_f1"]


def python_of(name: str, cache: Path) -> Path:
    """Return the interpreter of a method; create its environment if it does not exist."""
    folder = cache / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        print(f"installing {name} in {folder}", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *INSTALL[name]], check=True)
    return python


def label(
    name: str, section: Path, others: list[Path], n_domains: int, *, seed: int, options: argparse.Namespace
) -> pd.Series:
    """Run one method on one section."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "labels.csv"
        command = [python_of(name, options.cache), FOLDER / f"run_{name}.py", section, out]
        command += ["--domains", n_domains, "--seed", seed]
        if options.size_factor_key:
            command += ["--size-factor-key", options.size_factor_key]
        if name in SUPERVISED:
            command += ["--train", *others]
        own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run([str(part) for part in command], check=True, env=own, stdout=subprocess.DEVNULL)
        return pd.read_csv(out, index_col="spot", dtype=str)["label"]


def run(name: str, section: Path, others: list[Path], seed: int, options: argparse.Namespace) -> dict[str, object]:
    """Label and score a section; clusters have no names, so only scores of partitions apply to them."""
    truth = ad.read_h5ad(section, backed="r").obs["domain"]
    python_of(name, options.cache)  # not part of the time
    start, before = time.perf_counter(), os.times()
    found = label(name, section, others, truth.nunique(), seed=seed, options=options).reindex(truth.index)
    seconds, after = time.perf_counter() - start, os.times()
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    scores = st.metrics.domain_scores(truth, found)
    kept = SCORES if name in SUPERVISED else SCORES[:2]
    about = {"group": section.stem, "seed": seed, "method": name, "n_found": found.nunique()}
    return {**about, **{key: scores[key] for key in kept}, "seconds": seconds, "cpu_seconds": cpu_seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--methods", nargs="+", choices=INSTALL, default=list(INSTALL))
    parser.add_argument("--test", nargs="+", help="sections to label; by default all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers.csv"))
    options = parser.parse_args()

    options.cache = options.cache.expanduser().absolute()
    sections = sorted(options.data.glob("*.h5ad"))
    table = pd.read_csv(options.out, dtype={"group": str}) if options.out.exists() else pd.DataFrame()
    for name in options.methods:
        for section in sections:
            for seed in options.seeds:
                wanted = {"data": options.data.name, "method": name, "group": section.stem, "seed": seed}
                if options.test and section.stem not in options.test:
                    continue
                if len(table) and (table[list(wanted)] == pd.Series(wanted)).all(axis=1).any():
                    continue
                others = [other for other in sections if other != section]
                try:
                    row = run(name, section, others, seed, options) | wanted
                except subprocess.CalledProcessError as error:
                    print(f"{name} failed on {section.stem}: {error}", file=sys.stderr, flush=True)
                    continue
                table = pd.concat([table, pd.DataFrame([row])], ignore_index=True)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                table.to_csv(options.out, index=False)
                print(pd.Series(row).to_frame().T.to_string(index=False), flush=True)
    own = table[table["data"] == options.data.name]
    by_section = own.pivot_table(index="method", columns="group", values="ari")
    means = own.groupby("method")[["ari", "nmi", "seconds", "cpu_seconds"]].mean()
    print(by_section.join(means).sort_values("ari").round(3).to_string())


if __name__ == "__main__":
    main()
