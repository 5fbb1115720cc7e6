"""Where not to trust a model of domains: unseen domains, and sections that hold a part of the tissue.

    python benchmarks/novelty.py unseen --data ../shared/data/dlpfc --size-factor-key sum_umi
    python benchmarks/novelty.py unseen --data ../shared/data/spleen
    python benchmarks/novelty.py scores --data ../shared/data/starmap_mpfc
    python benchmarks/novelty.py parts --data ../shared/data/dlpfc --size-factor-key sum_umi --network
    python benchmarks/novelty.py parts --data ../shared/data/starmap_mpfc --cell-types

``unseen`` leaves each domain in turn out of the training sections (its spots are removed) and holds one section out:
the area under the ROC curve with which the novelty of its spots tells that domain from the others, and the share of
spots of known domains above the levels .95 and .99. The rows ``none`` leave no domain out. ``scores`` compares the
three scores that novelty is made of, and their maximum, in neighbourhoods of several sizes. ``parts`` cuts the section
held out, and compares the accuracy in each part with that of the same spots in the whole section: centred and scaled by
itself, always by its domains, by default (cell types by the moments of the training), and with the features of the
whole section, of which only the network notices that they are cut. ``--cell-types`` takes the column of cell types
instead of the counts. Features, linear baseline and novelty are those of ``train_domains``; the network is trained with
the defaults if ``--network`` is given (one training per section), otherwise for one pass and not looked at.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import strecur as st
from strecur._anndata import read_section_data
from strecur.models import novelty
from strecur.models.features.alignment import RING, DomainMoments
from strecur.models.features.neighbourhood import neighbourhood_means
from strecur.models.features.spots import SpotFeatures
from strecur.models.sections import engine_sections

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    import anndata as ad

    from strecur._anndata import SectionData

sys.path.insert(0, str(Path(__file__).parent))
from depth import read_sections

MIN_SPOTS = 20

SCORES = ("distance", "relative distance", "energy")
LOOKED_AT = ((19,), (91,), (301,), (19, 91), (91, 301), (19, 91, 301))


def train(adata: ad.AnnData, kind: str, options: argparse.Namespace) -> st.models.DomainModel:
    """Train with the defaults, or for one pass if no network is wanted."""
    network = getattr(options, "network", False)
    return st.tl.train_domains(
        adata,
        "domain",
        architecture="trm" if network else "feedforward",
        features={"kind": kind, "size_factor_key": options.size_factor_key},
        training={} if network else {"max_epochs": 1, "validation": None},
        rng=options.seed,
    )


@dataclass(frozen=True)
class Case:
    """A section to look at, and a domain that the training sections lack.

    Attributes
    ----------
    test, left_out
        Name of the section; domain, or ``"none"``.
    training, held_out
        Tables of the training sections without the domain, and of the section.
    known_N, unseen_N
        Which spots of the section are of the other domains, and of the one left out.
    """

    test: str
    left_out: str
    training: ad.AnnData
    held_out: ad.AnnData
    known_N: np.ndarray
    unseen_N: np.ndarray

    def auroc(self, score_N: np.ndarray) -> float:
        """Area under the ROC curve with which a score tells the domain left out from the others."""
        both_N = self.known_N | self.unseen_N
        return roc_auc_score(self.unseen_N[both_N], score_N[both_N]) if self.unseen_N.any() else np.nan


def leave_out(adata: ad.AnnData, tests: list[str] | None) -> Iterator[Case]:
    """Hold each section out, and leave no domain and each domain in turn out of the others."""
    domain, section = adata.obs["domain"].astype(object), adata.obs["section"].astype(str)
    for test in tests or section.unique():
        held_out = adata[(section == test).to_numpy()].copy()
        for left_out in ["none", *sorted(domain.dropna().unique())]:
            unseen_N = (held_out.obs["domain"] == left_out).to_numpy()
            if left_out == "none" or unseen_N.sum() >= MIN_SPOTS:
                training = adata[((section != test) & (domain != left_out)).to_numpy()].copy()
                known_N = held_out.obs["domain"].notna().to_numpy() & ~unseen_N
                yield Case(test, left_out, training, held_out, known_N, unseen_N)


def unseen(adata: ad.AnnData, kind: str, options: argparse.Namespace) -> pd.DataFrame:
    """Score the novelty of the spots of domains that were left out of the training."""
    rows = []
    for case in leave_out(adata, options.test):
        st.tl.trm_domains(case.held_out, train(case.training, kind, options))
        novelty_N = case.held_out.obs["trm_domains_novelty"].to_numpy()
        doubt_N = 1 - case.held_out.obs["trm_domains_confidence"].to_numpy()
        row = {"test": case.test, "left out": case.left_out}
        row |= {"auroc": case.auroc(novelty_N), "auroc of 1 - confidence": case.auroc(doubt_N)}
        for level in (0.95, 0.99):
            row[f"false at {level}"] = (novelty_N[case.known_N] > level).mean()
            row[f"found at {level}"] = (novelty_N[case.unseen_N] > level).mean() if case.unseen_N.any() else np.nan
        rows.append(row)
        print({k: round(float(v), 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    return pd.DataFrame(rows)


def scores(adata: ad.AnnData, kind: str, options: argparse.Namespace) -> pd.DataFrame:
    """Compare the scores that novelty is made of, and the neighbourhoods in which they look."""
    rows = []
    for case in leave_out(adata, options.test):
        for looked_at in LOOKED_AT:

            def columns(width: int, sizes: Sequence[int], n_spots: int, looked_at: Sequence[int] = looked_at) -> Any:
                leading = np.arange(min(novelty.COMPONENTS, width))
                return np.concatenate([(1 + list(sizes).index(size)) * width + leading for size in looked_at])

            with mock.patch.object(novelty, "compared_columns", columns):
                model = train(case.training, kind, options)
            if model.novelty is None:
                continue
            data = read_section_data(case.held_out, None)
            inputs = model.features.inputs(data)
            (section,) = engine_sections(data, inputs)
            features_NF, position_N2 = inputs.compared_NF, section.lattice.position_N2.numpy()
            fitted, logits_NC = model.novelty, model.baseline.logits(inputs.columns_NF)
            raw_NK = novelty.strangeness(fitted.domains, fitted.background, features_NF[:, fitted.columns_S], logits_NC)
            score_NK = (novelty.smoothed(raw_NK, position_N2) - fitted.centre_K) / fitted.spread_K
            row = {"test": case.test, "left out": case.left_out, "spots": "+".join(map(str, looked_at))}
            row |= {name: case.auroc(score_NK[:, k]) for k, name in enumerate(SCORES)}
            row["largest of two"], row["largest"] = (
                case.auroc(score_NK[:, :2].max(axis=1)),
                case.auroc(score_NK.max(axis=1)),
            )
            novelty_N = fitted.rate(features_NF, logits_NC, position_N2)
            rows.append(row | {"false at 0.95": (novelty_N[case.known_N] > 0.95).mean()})
        print(case.test, case.left_out, flush=True)
    return pd.DataFrame(rows)


def cuts(adata: ad.AnnData) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield kind, name and spots of parts of a section."""
    x, y = (axis < np.median(axis) for axis in adata.obsm["spatial"][:, :2].T)
    yield "whole", "whole", np.ones(adata.n_obs, dtype=bool)
    for name, half in (("left", x), ("right", ~x), ("upper", y), ("lower", ~y)):
        yield "half", name, half
    for name, quarter in (("upper left", x & y), ("lower right", ~x & ~y)):
        yield "quarter", name, quarter
    domain = adata.obs["domain"].astype(object)
    names = sorted(domain.dropna().unique())
    for size in (1, 2, 3):
        for start in range(0, len(names) - size + 1, size):
            chosen = names[start : start + size]
            yield f"{size} domain{'s' * (size > 1)}", " ".join(chosen), domain.isin(chosen).to_numpy()


class CentredByItself(SpotFeatures):
    """Features of which each section is centred by itself or by its domains, those of cell types too."""

    of_cell_types = False


class ByDomains(DomainMoments):
    """Moments of the domains for every section, also for those that have all domains."""

    def of_section(self, values_NP: np.ndarray, positions_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means_NS = neighbourhood_means(values_NP[:, : self.surroundings.mean_CF.shape[1]], positions_N2, (RING,))
        return self.match(values_NP, means_NS)


@dataclass(frozen=True)
class OfTheWhole(SpotFeatures):
    """Features that the spots have in the whole section, so that only windows and global tokens see less.

    Attributes
    ----------
    known
        Features by name of the spot.
    """

    known: pd.DataFrame = field(default_factory=pd.DataFrame)

    def columns(self, values: np.ndarray, data: SectionData) -> np.ndarray:
        return self.known.loc[data.table.obs_names].to_numpy()


def treatments(model: st.models.DomainModel, training: ad.AnnData) -> dict[str, SpotFeatures]:
    """Return the features of a model with the ways to centre a section."""
    data = read_section_data(training, None)
    target_N = pd.Index(model.labels).get_indexer(training.obs["domain"])
    by_itself = replace(CentredByItself(**vars(model.features)), domains=None)
    domains = by_itself.with_domains(data, data.names, target_N).domains
    by_domains = replace(by_itself, domains=domains and ByDomains(**vars(domains)))
    return {"by itself": by_itself, "by its domains": by_domains, "default": model.features}


def parts(adata: ad.AnnData, kind: str, options: argparse.Namespace) -> pd.DataFrame:
    """Compare the accuracy in parts of a section with that of the same spots in the whole section."""
    section, rows = adata.obs["section"].astype(str), []
    for test in options.test or section.unique():
        held_out = adata[(section == test).to_numpy()].copy()
        training = adata[(section != test).to_numpy()].copy()
        model = train(training, kind, options)
        models = {k: replace(model, features=v) for k, v in treatments(model, training).items()}
        columns_NF = model.features.inputs(read_section_data(held_out, None)).columns_NF
        own = OfTheWhole(**vars(model.features), known=pd.DataFrame(columns_NF, index=held_out.obs_names))
        models["features of the whole"] = replace(model, features=own)
        keys = {"linear": "trm_domains_linear"}
        if options.network:
            keys |= {"network": "trm_domains_network", "answer": "trm_domains"}
        whole: dict[str, np.ndarray] = {}
        for shape, cut, inside in cuts(held_out):
            if inside.sum() < MIN_SPOTS:
                continue
            part = held_out[inside].copy()
            truth = part.obs["domain"].astype(object)
            known = truth.notna().to_numpy()
            for treatment, candidate in models.items():
                st.tl.trm_domains(part, candidate)
                for method, key in keys.items():
                    right = (part.obs[key].astype(object) == truth).to_numpy()
                    if shape == "whole" and treatment == "by itself":
                        whole[method] = right
                    row = {"test": test, "kind": shape, "cut": cut, "treatment": treatment, "method": method}
                    row |= {"accuracy": right[known].mean(), "in the whole": whole[method][inside][known].mean()}
                    row["ari"] = adjusted_rand_score(truth[known], part.obs[key].astype(object)[known])
                    rows.append(row)
        found = pd.DataFrame([row for row in rows if row["test"] == test])
        found["difference"] = found["accuracy"] - found["in the whole"]
        print(
            test, found.groupby(["method", "treatment", "kind"], sort=False)["difference"].mean().round(3), flush=True
        )
    table = pd.DataFrame(rows)
    table["difference"] = table["accuracy"] - table["in the whole"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["unseen", "scores", "parts"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size-factor-key")
    parser.add_argument("--cell-types", action="store_true", help="cell types in place of counts")
    parser.add_argument("--test", nargs="+", help="sections to hold out; by default each in turn")
    parser.add_argument("--network", action="store_true", help="train the network too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    adata, kind = read_sections(options.data)
    kind = "cell_types" if options.cell_types else kind
    if options.what == "unseen":
        table = unseen(adata, kind, options)
        print(table.drop(columns="test").groupby("left out").mean().round(3).to_string())
        print("mean over domains:", table.groupby("left out")["auroc"].mean().mean().round(3))
    elif options.what == "scores":
        table = scores(adata, kind, options)
        unseen_only = table[table["left out"] != "none"].drop(columns="test")
        print(unseen_only.groupby(["spots", "left out"]).mean().groupby("spots").mean().round(3).to_string())
        complete = table[table["left out"] == "none"]
        print(complete.groupby("spots")["false at 0.95"].mean().round(3).to_string())
    else:
        table = parts(adata, kind, options)
        means = table.pivot_table(
            index=["method", "treatment"], columns="kind", values=["accuracy", "difference"], sort=False
        )
        print(means.round(3).to_string())
        whole = table[table["kind"] == "whole"]
        print(whole.pivot_table(index="method", columns="treatment", values="ari", sort=False).round(3).to_string())
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / f"novelty_{options.what}_{options.data.stem}.csv", index=False)


if __name__ == "__main__":
    with st.settings.override(progress=False):
        main()
