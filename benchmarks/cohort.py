"""Many sections in files: time of each, memory, and a prediction that is killed and goes on.

    python benchmarks/cohort.py --out cohort --sections 1000          # make, train on a sample, predict all
    python benchmarks/cohort.py --out cohort --sections 1000 --kill   # the same, and predict again with interruptions

Sections of about 5,000 spots are made from a few synthetic ones by drawing a part of their counts, and written
compressed. The network is small (``--width``), so that files, features and neighbourhoods take most of the time; memory
is measured in a process that does nothing but predict. Of seconds, there are those of the processor and those on the
clock; on a busy machine only the former tell something.
"""

from __future__ import annotations

import argparse
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import strecur as st
from strecur.nn import WindowedConfig

N_BASES, N_ROWS, N_GENES, N_DOMAINS = 8, 84, 400, 5
KILLS = 2


def make_cohort(folder: Path, n_sections: int) -> list[Path]:
    """Write the sections that are not there yet."""
    files = [folder / f"s{i:04}.h5ad" for i in range(n_sections)]
    missing = [(i, file) for i, file in enumerate(files) if not file.exists()]
    if not missing:
        return files
    folder.mkdir(parents=True, exist_ok=True)
    whole = st.datasets.synthetic_sections(
        n_sections=N_BASES, n_rows=N_ROWS, n_cols=N_ROWS, n_genes=N_GENES, n_domains=N_DOMAINS
    )
    bases = [whole[whole.obs["section"] == name].copy() for name in whole.obs["section"].unique()]
    for i, file in missing:
        rng, adata = np.random.default_rng(i), bases[i % N_BASES].copy()
        share_G = rng.uniform(0.4, 0.9) * rng.uniform(0.7, 1.0, adata.n_vars)  # depth of the section, batch effect
        adata.X.data = rng.binomial(adata.X.data.astype(int), share_G[adata.X.indices]).astype(np.float32)
        adata.X.eliminate_zeros()
        adata.obs["section"] = file.stem
        fresh = file.with_suffix(".part")
        adata.write_h5ad(fresh, compression="gzip")
        fresh.replace(file)
    return files


def train(folder: Path, place: Path, options: argparse.Namespace) -> None:
    """Train on a sample of the cohort, and save the model."""
    start = time.process_time()
    sample = st.tl.sample_cohort(folder, options.n_sampled, label_key="domain")
    network = WindowedConfig(width=options.width, n_heads=2, n_global=1)
    model = st.tl.train_domains(sample, "domain", backbone=network, training={"max_epochs": options.epochs})
    model.save(place)
    names = ", ".join(model.sections)
    print(f"trained on {names} ({sample.n_obs:,} spots): {time.process_time() - start:.0f} s of one thread", flush=True)


def measure(files: list[Path], model: Path, out: Path, every: int) -> pd.DataFrame:
    """Predict all sections, and record time and memory after every few."""
    trained, rows = st.load_model(model), []
    for first in range(0, len(files), every):
        part = files[first : first + every]
        start, cpu = time.perf_counter(), time.process_time()
        table = st.tl.predict_cohort(part, trained, out)
        rows.append(
            {
                "sections": first + len(part),
                "spots": int(table["n_spots"].sum()),
                "cpu_s_per_section": (time.process_time() - cpu) / len(part),
                "wall_s_per_section": (time.perf_counter() - start) / len(part),
                "rss_gb": current_gb(),
                "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            }
        )
        print(
            pd.DataFrame(rows).tail(1).to_string(header=first == 0, index=False, float_format="{:.2f}".format),
            flush=True,
        )
    return pd.DataFrame(rows)


def current_gb() -> float:
    """Memory of this process now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e6


def kill_and_resume(folder: Path, model: Path, out: Path, n_sections: int) -> None:
    """Predict by the command line, killed at a third and at two thirds, until it ends by itself."""
    command = [
        sys.executable,
        "-m",
        "strecur",
        "predict",
        str(folder),
        "--model",
        str(model),
        "--out",
        str(out),
        "--quiet",
    ]
    predicted = []
    for i in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wanted = (i + 1) * n_sections // (KILLS + 1)
        while process.poll() is None and len(list(out.glob("*.h5ad"))) < wanted:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        predicted.append(len(list(out.glob("*.h5ad"))))
        print(f"killed (exit code {code}) with {predicted[-1]} of {n_sections} sections predicted", flush=True)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.h5ad")}
    subprocess.run(command, check=True)
    again = [path.name for path, stamp in before.items() if path.stat().st_mtime_ns != stamp]
    print(f"predicted again although they were there: {again}; left over: {[p.name for p in out.glob('.*')]}")


def compare(first: Path, second: Path) -> None:
    """Compare all results of two folders bit for bit."""
    names = [sorted(path.name for path in place.glob("*.h5ad")) for place in (first, second)]
    assert names[0] == names[1], "the folders hold results of different sections"
    for name in names[0]:
        one, two = ad.read_h5ad(first / name), ad.read_h5ad(second / name)
        pd.testing.assert_frame_equal(one.obs, two.obs)
        for key in one.obsm:
            np.testing.assert_array_equal(one.obsm[key], two.obsm[key])
    print(f"{len(names[0])} sections: the results of the killed and the uninterrupted run are equal, bit for bit")


def score(out: Path) -> None:
    """Print how many domains are right; results hold the annotation too."""
    scores = []
    for path in sorted(out.glob("*.h5ad")):
        obs = ad.read_h5ad(path, backed="r").obs
        scores.append({name: st.metrics.domain_scores(obs["domain"], obs[key])["ari"] for name, key in KEYS.items()})
    print(pd.DataFrame(scores).describe().loc[["mean", "min", "max"]].to_string(float_format="{:.3f}".format))


KEYS = {"ARI of the answer": "trm_domains", "of the linear model": "trm_domains_linear"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of sections, model and results")
    parser.add_argument("--sections", type=int, default=1000, help="number of sections")
    parser.add_argument("--every", type=int, default=100, help="sections between two measurements")
    parser.add_argument("--width", type=int, default=32, help="width of the network")
    parser.add_argument("--n-sampled", type=int, default=4, help="sections to train on")
    parser.add_argument("--epochs", type=int, default=15, help="passes over them")
    parser.add_argument("--kill", action="store_true", help="also kill a prediction, resume it, and compare")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder, model, out = options.out / "sections", options.out / "model", options.out / "results"
    st.settings.progress = False
    if options.measure:
        measure(sorted(folder.glob("*.h5ad"))[: options.sections], model, out, options.every)
        return
    files = make_cohort(folder, options.sections)
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{len(files)} sections in files of {size / len(files):.1f} MB on average", flush=True)
    if not model.exists():
        train(folder, model, options)
    subprocess.run([sys.executable, *sys.argv, "--measure"], check=True)
    score(out)
    if options.kill:
        killed = options.out / "killed"
        kill_and_resume(folder, model, killed, len(files))
        compare(out, killed)


if __name__ == "__main__":
    main()
