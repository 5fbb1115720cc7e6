from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING

import pandas as pd

from strecur.engine import Inference, Prediction, Section
from strecur.engine.fit import make_fabric
from strecur.models._counts import Draws, draw_counts, predict_values
from strecur.models._features import SpotFeatures, features_from_saved, features_to_saved
from strecur.models._intervals import ExpressionErrors
from strecur.models._network import Architecture, Backbone, network_from_saved, network_to_saved, to_json
from strecur.models._storage import load_folder, save_folder
from strecur.models._targets import ExpressionTarget
from strecur.models.linear import LinearExpression
from strecur.nn import ExpressionHead, SpotNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from anndata import AnnData


@dataclass
class ExpressionModel:
    """Expression learned from histology: features, network and the linear baseline, in one object.

    Made by :func:`strecur.tl.train_expression`, applied by :func:`strecur.tl.predict_expression`.

    Attributes
    ----------
    target
        Genes and the scale they are predicted on.
    features
        From the embedding of the patches to the network's input, fitted on the training sections.
    architecture, backbone
        Configuration of the network; ``None`` if the model is the linear baseline alone.
    network
        The network with its trained weights, or ``None``.
    baseline
        Ridge regression on the same features.
    halting
        Name of the recipe by which the network learned when to stop, or ``None``.
    reliability
        How well each gene is predicted where the model was not trained, indexed by gene. Correlation of prediction and
        measurement over the spots of a section: ``pcc_network`` on the validation sections (NaN without one),
        ``pcc_linear`` of the baseline on training sections that it was not fitted on (parts of the section, if there
        is one alone), and ``pcc``, the former or else the latter. ``mean`` and ``sd`` over the training spots.
    history
        One row per epoch: epoch, seconds, train_loss, learning_rate and, with a validation section, validation_pcc and
        validation_mse.
    scores
        Scores of network and baseline on the validation sections; empty without one.
    sections
        Sections the model was trained on.
    errors
        How far predictions were off on sections it was not trained on, for intervals; ``None`` before a calibration.
    halt_threshold
        Halt probability from which a section stops, placed by :func:`strecur.tl.calibrate_halting`; ``None``: that of
        the recipe.
    id
        Random identifier, written beside every result.
    """

    target: ExpressionTarget
    features: SpotFeatures
    architecture: Architecture | None
    backbone: Backbone | None
    network: SpotNetwork | None
    baseline: LinearExpression
    halting: str | None
    reliability: pd.DataFrame
    history: pd.DataFrame
    scores: pd.DataFrame
    sections: list[str]
    errors: ExpressionErrors | None = None
    halt_threshold: float | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def genes(self) -> list[str]:
        """Genes that are predicted."""
        return self.target.genes

    @property
    def encoder(self) -> Mapping[str, object]:
        """Name, width, stain reference and patch sizes of the encoder that made the patches, as far as known."""
        return self.features.source.record

    def __repr__(self) -> str:
        what = "ridge regression"
        if self.network is not None:
            n_parameters = sum(p.numel() for p in self.network.parameters())
            architecture, backbone = to_json(self.architecture)["name"], to_json(self.backbone)["name"]
            what = f"{architecture} over a {backbone} backbone, {n_parameters:,} parameters"
        return (
            f"ExpressionModel {self.id}: {what}\n"
            f"  {len(self.genes)} genes as {self.target.scale}: {', '.join(self.genes[:5])}, …\n"
            f"  encoder: {self.encoder.get('encoder', 'unknown')}\n"
            f"  trained on sections: {', '.join(self.sections)}"
        )

    def measure(self, adata: AnnData) -> np.ndarray:
        """Bring the measured counts of spots to the scale of the predictions.

        Parameters
        ----------
        adata
            Spots with counts.

        Returns
        -------
        Spots × genes, float32; NaN for genes that the object lacks, and for spots without counts if the scale needs a
        library size.
        """
        return self.target.measure(adata)

    def predict(
        self,
        sections: Sequence[Section],
        inference: Inference | None = None,
        *,
        accelerator: str = "auto",
        precision: str | None = None,
        progress: bool = False,
    ) -> list[list[Prediction]]:
        """Let the network predict sections of ready features.

        Parameters
        ----------
        sections
            Features and lattices.
        inference
            Depth and the like; not given: as many outer steps as in training, of which the last is kept.
        accelerator, precision
            As in Lightning.
        progress
            Show a progress bar.

        Returns
        -------
        The restarts of each section.
        """
        return predict_values(
            self.network,
            sections,
            inference or Inference(self.architecture.n_steps, keep_steps=False),
            fabric=make_fabric(accelerator, 1, precision),
            progress=progress,
        )

    def draw_counts(
        self,
        sections: Sequence[Section],
        inference: Inference,
        n_samples: int,
        *,
        temperature: float = 1.0,
        accelerator: str = "auto",
        precision: str | None = None,
    ) -> list[Draws]:
        """Let a model of counts draw them several times.

        Parameters
        ----------
        sections
            Features and lattices.
        inference
            Depth and the like; its seed decides the draws, which depend on nothing but the section besides.
        n_samples
            Number of draws.
        temperature
            Above 0; below 1 draws closer to the most probable counts.
        accelerator, precision
            As in Lightning.

        Returns
        -------
        For each section the first draw and the standard deviation of log2(count + 1) over the draws, spots × genes
        float32 (``first_NG``, ``spread_NG``).
        """
        fabric = make_fabric(accelerator, 1, precision)
        return draw_counts(self.network, sections, inference, n_samples, temperature, fabric=fabric)

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
        config = {
            "kind": "expression",
            "strecur": version("strecur"),
            "id": self.id,
            "target": asdict(self.target),
            "sections": self.sections,
            "features": features,
            "reliability": self.reliability.to_dict(orient="list"),
            "history": self.history.to_dict(orient="list"),
            "scores": self.scores.to_dict(),
            "halt_threshold": self.halt_threshold,
        }
        if self.errors is not None:
            arrays |= {f"errors.{name}": value for name, value in asdict(self.errors).items()}
        arrays |= {f"baseline.{name}": value for name, value in asdict(self.baseline).items()}
        if self.network is not None:
            network, weights = network_to_saved(self.network, self.architecture, self.backbone, self.halting)
            config, arrays = config | network, arrays | weights
        save_folder(path, config, arrays, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> ExpressionModel:
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
        config, arrays = load_folder(path, "expression")
        features = features_from_saved(config["features"], arrays)
        target = ExpressionTarget(**config["target"])
        network = dict.fromkeys(("network", "architecture", "backbone", "halting"))
        if "architecture" in config:
            network = network_from_saved(config, arrays, features.n_columns, ExpressionHead, len(target.genes))
        errors = {k.removeprefix("errors."): v for k, v in arrays.items() if k.startswith("errors.")}
        return cls(
            target=target,
            features=features,
            **network,
            baseline=LinearExpression(arrays["baseline.weight_FG"], arrays["baseline.bias_G"]),
            reliability=pd.DataFrame(config["reliability"], index=pd.Index(target.genes, name="gene")),
            history=pd.DataFrame(config["history"]),
            scores=pd.DataFrame(config["scores"]),
            sections=config["sections"],
            errors=ExpressionErrors(**errors) if errors else None,
            halt_threshold=config["halt_threshold"],
            id=config["id"],
        )
