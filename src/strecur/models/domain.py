from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import pandas as pd

from strecur.engine import Inference, Prediction, Section, predict
from strecur.engine.fit import make_fabric
from strecur.models._features import SpotFeatures, features_from_saved, features_to_saved
from strecur.models._network import Architecture, Backbone, network_from_saved, network_to_saved, to_json
from strecur.models._smoothing import smooth, smooth_restarts
from strecur.models._storage import load_folder, save_folder
from strecur.models.linear import LinearDomains
from strecur.nn import DomainHead, SpotNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np


@dataclass
class DomainModel:
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
        One row per epoch: epoch, seconds, train_loss, learning_rate and, with a validation section, validation_ari.
    scores
        ARI, accuracy and macro-F1 of model and baseline on the validation sections; empty without one.
    sections
        Sections the model was trained on.
    smoothing
        Nearest spots over which log-probabilities of network and baseline are averaged; 1: none but the spot itself.
    temperature
        What log-probabilities are divided by to be calibrated; see :func:`strecur.tl.calibrate`.
    conformal_scores
        Probability of the annotated domain of every calibration spot, descending (float32); ``None``: not calibrated.
    halt_threshold
        Probability above which a section has halted; ``None``: that of the recipe. See
        :func:`strecur.tl.calibrate_halting`.
    id
        Random identifier, written beside every result.
    """

    labels: list[str]
    features: SpotFeatures
    architecture: Architecture
    backbone: Backbone
    network: SpotNetwork
    baseline: LinearDomains
    halting: str | None
    history: pd.DataFrame
    scores: pd.DataFrame
    sections: list[str]
    smoothing: int = 1
    temperature: float = 1.0
    conformal_scores: np.ndarray | None = None
    halt_threshold: float | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    def __repr__(self) -> str:
        n_parameters = sum(p.numel() for p in self.network.parameters())
        architecture, backbone = to_json(self.architecture)["name"], to_json(self.backbone)["name"]
        return (
            f"DomainModel {self.id}: {architecture} over a {backbone} backbone, {n_parameters:,} parameters\n"
            f"  domains: {', '.join(self.labels)}\n"
            f"  trained on sections: {', '.join(self.sections)}"
        )

    def predict(
        self,
        sections: Sequence[Section],
        inference: Inference | None = None,
        *,
        accelerator: str = "auto",
        precision: str | None = None,
        progress: bool = False,
    ) -> list[list[Prediction]]:
        """Predict sections of ready features.

        Parameters
        ----------
        sections
            Features and lattices.
        inference
            Depth, breadth and the like; not given: as many outer steps as in training, once.
        accelerator, precision
            As in Lightning.
        progress
            Show a progress bar.

        Returns
        -------
        The restarts of each section, smoothed.
        """
        restarts = predict(
            self.network,
            sections,
            inference or Inference(self.architecture.n_steps),
            fabric=make_fabric(accelerator, 1, precision),
            progress=progress,
        )
        return smooth_restarts(restarts, sections, self.smoothing)

    def predict_linear(self, sections: Sequence[Section]) -> list[np.ndarray]:
        """Predict sections of ready features by the linear baseline.

        Parameters
        ----------
        sections
            Features and lattices.

        Returns
        -------
        Smoothed probabilities of each section, spots × domains, float32.
        """
        return [smooth(self.baseline.predict_proba(s.features_NF.numpy()), s, self.smoothing) for s in sections]

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
            "smoothing": self.smoothing,
            "temperature": self.temperature,
            "halt_threshold": self.halt_threshold,
        }
        if self.conformal_scores is not None:
            arrays["conformal_scores"] = self.conformal_scores
        arrays |= {f"baseline.{name}": value for name, value in asdict(self.baseline).items()}
        save_folder(path, config, arrays | weights, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> DomainModel:
        """Read a model written by :meth:`save`, onto the CPU.

        Parameters
        ----------
        path
            Folder of the model.

        Returns
        -------
        The model.

        Raises
        ------
        ModelFolderError
            If the folder is damaged, incomplete, of another kind or format, or no model.
        """
        config, arrays = load_folder(path, "domains")
        features = features_from_saved(config["features"], arrays)
        return cls(
            labels=config["labels"],
            features=features,
            **network_from_saved(config, arrays, features.n_columns, DomainHead, len(config["labels"])),
            baseline=LinearDomains(arrays["baseline.weight_FC"], arrays["baseline.bias_C"]),
            history=pd.DataFrame(config["history"]),
            scores=pd.DataFrame(config["scores"]),
            sections=config["sections"],
            smoothing=config.get("smoothing", 1),
            temperature=config["temperature"],
            conformal_scores=arrays.get("conformal_scores"),
            halt_threshold=config["halt_threshold"],
            id=config["id"],
        )
