"""Models of domains."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from strecur import metrics
from strecur._arguments import filled
from strecur._settings import settings
from strecur.engine import Answer, Section, predict
from strecur.models.base import NetworkModel, own_fabric
from strecur.models.blend import EQUAL, blend_proba
from strecur.models.calibration import conformal_scores, fit_temperature, negative_log_likelihood, temper
from strecur.models.features.spots import SpotFeatures, features_from_saved, features_to_saved
from strecur.models.io.folders import save_folder
from strecur.models.linear import LinearDomains
from strecur.models.network import Architecture, Backbones, known_to, network_from_saved, network_to_saved
from strecur.models.novelty import SpotNovelty, novelty_from_arrays, novelty_to_arrays, rate_section
from strecur.models.smoothing import smooth, smooth_answers
from strecur.nn import BackboneConfig, DomainHead, SpotNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from strecur.options import Inference, Selection


@dataclass
class DomainModel(NetworkModel):
    """Domains learned from annotated sections: features, network and the linear baseline, in one object.

    Made by :func:`strecur.tl.train_domains`, applied by :func:`strecur.tl.trm_domains`.

    Attributes
    ----------
    labels
        Names of the domains.
    features
        From AnnData to the network's input, fitted on the training sections.
    architecture, backbone
        Configuration of the network.
    network
        The network with its trained weights.
    baseline
        Logistic regression on the same features.
    halting
        Name of the recipe by which the network learned when to stop, or ``None``.
    history
        One row per epoch: epoch, seconds, train_loss, learning_rate and, on validation sections, validation_ari of the
        network; on blocks of the training sections blocks_ari of the network and blocks_log_likelihood of the blend.
    scores
        ARI, accuracy and macro-F1 of answer, network and baseline on the validation sections or blocks; empty without.
    sections
        Sections the model was trained on.
    smoothing
        Nearest spots over which log-probabilities of network and baseline are averaged; 1: none but the spot itself.
    blend
        Weight of the network in the answer; the linear baseline has the rest.
    temperature
        What log-probabilities are divided by to be calibrated; see :func:`strecur.tl.calibrate`.
    conformal_scores
        Probability of the annotated domain of every calibration spot, descending (float32); ``None``: not calibrated.
    coverage
        With ``training={"leave_one_out": True}``, by training section: ``n_spots``, and ``coverage`` and mean
        ``set_size`` of sets for 90 % by a model that was neither trained nor calibrated on it. Empty otherwise.
    novelty
        How strange spots of new sections are; ``None``: not known, with too few training spots.
    halt_threshold
        Probability above which a section has halted; ``None``: that of the recipe. See
        :func:`strecur.tl.calibrate_halting`.
    id
        Random identifier, written beside every result.
    """

    labels: list[str]
    features: SpotFeatures
    architecture: Architecture
    backbone: BackboneConfig
    network: SpotNetwork
    baseline: LinearDomains
    halting: str | None
    history: pd.DataFrame
    scores: pd.DataFrame
    sections: list[str]
    smoothing: int = 1
    blend: float = EQUAL
    temperature: float = 1.0
    conformal_scores: np.ndarray | None = None
    coverage: pd.DataFrame = field(default_factory=pd.DataFrame)
    novelty: SpotNovelty | None = None
    halt_threshold: float | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    selections: ClassVar[tuple[Selection, ...]] = ("converged", "mean", "vote")

    def __repr__(self) -> str:
        return (
            f"DomainModel {self.id}: {self.network_description}\n"
            f"  domains: {', '.join(self.labels)}\n"
            f"  trained on sections: {', '.join(self.sections)}"
        )

    def predict(
        self,
        sections: Sequence[Section],
        inference: Inference | None = None,
        *,
        rng: int = 0,
        keep_steps: bool = True,
        keep_latents: int = 0,
    ) -> list[Answer]:
        """Predict sections whose features are ready, on the device of the settings.

        Parameters
        ----------
        sections
            Features and lattices.
        inference
            Options of the prediction. If ``None`` (default), those of the training.
        rng
            Seed of random starts and noise.
        keep_steps
            Keep the output after every step, not just the last.
        keep_latents
            Number of spots whose latent is kept after every step.

        Returns
        -------
        The answer for each section, smoothed.
        """
        answers = predict(
            self.network,
            sections,
            self._filled(inference),
            seed=rng,
            keep_steps=keep_steps,
            keep_latents=keep_latents,
            fabric=own_fabric(),
            progress=settings.progress,
        )
        return smooth_answers(answers, sections, self.smoothing)

    def predict_linear(self, sections: Sequence[Section]) -> list[np.ndarray]:
        """Predict sections whose features are ready by the linear baseline.

        Parameters
        ----------
        sections
            Features and lattices.

        Returns
        -------
        Smoothed probabilities of each section, spots × domains, float32.
        """
        return [smooth(self.baseline.predict_proba(s.features_NF.numpy()), s, self.smoothing) for s in sections]

    def rate_novelty(self, sections: Sequence[Section], compared: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Rate how strange the spots of sections are whose features are ready.

        Parameters
        ----------
        sections
            Features and lattices.
        compared
            Features of each section in which its spots are compared with those of the training.

        Returns
        -------
        For each section the share of training spots that were less strange than each spot, float32; NaN if not known.
        """
        found = []
        for section, own_NF in zip(sections, compared, strict=True):
            logits_NC = self.baseline.logits(section.features_NF.numpy())
            found.append(rate_section(self.novelty, own_NF, logits_NC, section.lattice.position_N2.numpy()))
        return found

    def answers(
        self, sections: Sequence[Section], inference: Inference, restarts: Sequence[Answer]
    ) -> list[np.ndarray]:
        """Blend what the network and the linear baseline say of sections.

        Parameters
        ----------
        sections
            Features and lattices.
        inference
            Options of the prediction, with ``selection`` and ``blend``.
        restarts
            From :meth:`predict` on these sections.

        Returns
        -------
        Probabilities of each section after each outer step, (depth, spots, domains) float32.
        """
        linear = self.predict_linear(sections)
        weight, selection = filled(inference.blend), filled(inference.selection)
        return [
            blend_proba(answer.combined(selection), linear_NC, weight)
            for answer, linear_NC in zip(restarts, linear, strict=True)
        ]

    def _saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Split the model into JSON values and arrays."""
        features, arrays = features_to_saved(self.features)
        network, weights = network_to_saved(self.network, self.architecture, self.backbone, self.halting)
        config = {
            "kind": "domains",
            "strecur": version("strecur"),
            "id": self.id,
            "labels": self.labels,
            "sections": self.sections,
            "features": features,
            **network,
            "history": self.history.to_dict(orient="list"),
            "scores": self.scores.to_dict(),
            "coverage": self.coverage.to_dict(),
            "smoothing": self.smoothing,
            "blend": self.blend,
            "temperature": self.temperature,
            "halt_threshold": self.halt_threshold,
        }
        if self.conformal_scores is not None:
            arrays["conformal_scores"] = self.conformal_scores
        arrays |= novelty_to_arrays(self.novelty)
        arrays |= {f"baseline.{name}": value for name, value in asdict(self.baseline).items()}
        return config, arrays | weights

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a folder of ``config.json`` and ``weights.safetensors``.

        Parameters
        ----------
        path
            Folder to make.
        overwrite
            Replace a model that is there.

        Raises
        ------
        FileExistsError
            If there is a model and it is not to be replaced, or something else.
        OSError
            If the folder cannot be written; a model that was there is kept.
        """
        config, arrays = self._saved()
        save_folder(path, config, arrays, known_to(self.backbone), overwrite=overwrite)


def domains_from_saved(
    config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], backbones: Backbones
) -> DomainModel:
    """Undo :meth:`DomainModel.save`."""
    features, n_domains = features_from_saved(config["features"], arrays), len(config["labels"])
    return DomainModel(
        labels=config["labels"],
        features=features,
        **network_from_saved(config, arrays, backbones, features.n_columns, DomainHead, n_domains),
        baseline=LinearDomains(arrays["baseline.weight_FC"], arrays["baseline.bias_C"]),
        history=pd.DataFrame(config["history"]),
        scores=pd.DataFrame(config["scores"]),
        coverage=pd.DataFrame(config.get("coverage", {})),
        sections=config["sections"],
        smoothing=config.get("smoothing", 1),
        blend=config.get("blend", 1.0),
        temperature=config["temperature"],
        conformal_scores=arrays.get("conformal_scores"),
        novelty=novelty_from_arrays(arrays),
        halt_threshold=config["halt_threshold"],
        id=config["id"],
    )


def calibrate_domains(model: DomainModel, proba_NC: np.ndarray, target_N: np.ndarray) -> pd.DataFrame:
    """Fit temperature and conformal scores on the spots with a label; return the scores before and after."""
    labelled = target_N >= 0
    proba_NC, target_N = proba_NC[labelled], target_N[labelled]
    model.temperature = fit_temperature(proba_NC, target_N)
    tempered_NC = temper(proba_NC, model.temperature)
    model.conformal_scores = conformal_scores(tempered_NC, target_N)
    truth = np.array(model.labels, dtype=object)[target_N]
    rows = [
        {
            "nll": negative_log_likelihood(values_NC, target_N),
            "ece": metrics.expected_calibration_error(truth, values_NC, model.labels),
        }
        for values_NC in (proba_NC, tempered_NC)
    ]
    return pd.DataFrame(rows, index=["before", "after"])
