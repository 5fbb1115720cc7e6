"""Models of expression."""

from __future__ import annotations

import uuid
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from strecur._settings import settings
from strecur.models.base import NetworkModel, own_fabric
from strecur.models.blend import EQUAL
from strecur.models.calibration import ExpressionErrors
from strecur.models.counts import Draws, draw_counts
from strecur.models.ensemble import predict_ensemble
from strecur.models.features.spots import SpotFeatures, features_from_saved, features_to_saved
from strecur.models.io.folders import save_folder
from strecur.models.linear import LinearExpression
from strecur.models.network import (
    Architecture,
    Backbones,
    known_to,
    network_from_saved,
    network_to_saved,
    network_weights,
    restore_network,
)
from strecur.models.novelty import SpotNovelty, novelty_from_arrays, novelty_to_arrays
from strecur.models.targets import ExpressionTarget
from strecur.nn import BackboneConfig, CountNetwork, ExpressionHead, SpotNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData

    from strecur.engine import Answer, Section
    from strecur.options import Inference, Selection


@dataclass(kw_only=True)
class LinearExpressionModel:
    """Expression learned from histology by ridge regression.

    Made by :func:`strecur.tl.train_expression` with ``architecture="linear"``, applied by
    :func:`strecur.tl.predict_expression`.

    Attributes
    ----------
    target
        Genes and the scale they are predicted on.
    features
        From the embedding of the patches to the input of the model, fitted on the training sections.
    baseline
        Ridge regression on these features, shrunk along axes of expression that they do not predict.
    reliability
        How well each gene is predicted on spots that were held out, indexed by gene. Correlation of prediction and
        measurement over the spots of a section: ``pcc`` of the answer and ``pcc_network`` of the network, on the
        validation sections, on the training sections left out in turn (``training={"leave_one_out": True}``), or on
        those of :func:`strecur.tl.calibrate_expression`; ``pcc_linear`` of the linear model on training sections that
        it was not fitted on (quarters of the section if there is only one). If no section was held out from the
        network, ``pcc_network`` is NaN, and ``pcc`` is that of the linear model. ``mean`` and ``sd`` over the training
        spots.
    sections
        Sections the model was trained on.
    errors
        Errors on sections the model was not trained on, for intervals; ``None`` before a calibration.
    novelty
        How strange the patches of new sections are; ``None``: not known, with too few training spots.
    id
        Random identifier, written beside every result.
    """

    target: ExpressionTarget
    features: SpotFeatures
    baseline: LinearExpression
    reliability: pd.DataFrame
    sections: list[str]
    errors: ExpressionErrors | None = None
    novelty: SpotNovelty | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def genes(self) -> list[str]:
        """Genes that are predicted."""
        return self.target.genes

    @property
    def encoder(self) -> Mapping[str, Any]:
        """Name, width, stain reference and patch sizes of the encoder that made the patches, as far as known."""
        return getattr(self.features.source, "record", {})

    @property
    def description(self) -> str:
        """Kind of model."""
        return "ridge regression"

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__} {self.id}: {self.description}\n"
            f"  {len(self.genes)} genes as {self.target.scale}: {', '.join(self.genes[:5])}, …\n"
            f"  encoder: {self.encoder.get('encoder', 'unknown')}\n"
            f"  trained on sections: {', '.join(self.sections)}"
        )

    def rated(self, blend: float | None = None) -> pd.DataFrame:
        """Return the reliability of an answer with some weight of the network.

        Parameters
        ----------
        blend
            Weight of the network in the answer. If ``None`` (default), that of the model.

        Returns
        -------
        Copy of ``reliability``, with the correlation of such an answer in ``pcc``: NaN if it was not measured.
        """
        table, own = self.reliability.copy(), getattr(self, "blend", 0.0)
        if blend is not None and blend != own:
            table["pcc"] = table["pcc_network"] if blend == 1 else table["pcc_linear"] if blend == 0 else np.nan
        return table

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

    def _saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Split the model into JSON values and arrays."""
        features, arrays = features_to_saved(self.features)
        config = {
            "kind": "expression",
            "strecur": version("strecur"),
            "id": self.id,
            "target": asdict(self.target),
            "sections": self.sections,
            "features": features,
            "reliability": self.reliability.to_dict(orient="list"),
            "history": {},
            "scores": {},
            "halt_threshold": None,
        }
        if self.errors is not None:
            fitted = {name: value for name, value in asdict(self.errors).items() if value is not None}
            arrays |= {f"errors.{name}": value for name, value in fitted.items()}
        arrays |= novelty_to_arrays(self.novelty)
        return config, arrays | {f"baseline.{name}": value for name, value in asdict(self.baseline).items()}

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a folder of ``config.json`` and ``weights.safetensors``.

        Parameters
        ----------
        path
            Folder to create.
        overwrite
            Replace a model that is there.

        Raises
        ------
        FileExistsError
            If there is a model and ``overwrite`` is false, or something else.
        OSError
            If the folder cannot be written; a model that was there is kept.
        """
        config, arrays = self._saved()
        save_folder(path, config, arrays, known_to(getattr(self, "backbone", None)), overwrite=overwrite)


@dataclass(kw_only=True, repr=False)
class ExpressionModel(LinearExpressionModel, NetworkModel):
    """Expression learned from histology: features, network and the linear baseline, in one object.

    Made by :func:`strecur.tl.train_expression`, applied by :func:`strecur.tl.predict_expression`. Has the attributes
    of :class:`LinearExpressionModel`, and those below.

    Attributes
    ----------
    architecture, backbone
        Configuration of the network.
    network
        The network with its trained weights; of an ensemble the first.
    halting
        Name of the recipe by which the network learned when to stop, or ``None``.
    history
        One row per epoch: epoch, seconds, train_loss, learning_rate and, on validation sections, validation_pcc,
        validation_r2 and validation_mse; on blocks of the training sections blocks_r2 and blocks_pcc; for an ensemble
        also network, from 0.
    scores
        Scores of network and baseline on the validation sections; empty without one.
    blend
        Weight of the network in the answer; the ridge regression has the rest. 1 for models of counts.
    halt_threshold
        Halt probability above which a section stops, set by :func:`strecur.tl.calibrate_halting`; ``None``: that of
        the recipe.
    further_networks
        The other networks of an ensemble (:attr:`strecur.Training.n_networks`).
    """

    architecture: Architecture
    backbone: BackboneConfig
    network: SpotNetwork
    halting: str | None
    history: pd.DataFrame
    scores: pd.DataFrame
    blend: float = EQUAL
    halt_threshold: float | None = None
    further_networks: list[SpotNetwork] = field(default_factory=list)
    selections: ClassVar[tuple[Selection, ...]] = ("mean", "converged")

    @property
    def networks(self) -> list[SpotNetwork]:
        """All networks, whose predictions are averaged."""
        return [self.network, *self.further_networks]

    @property
    def description(self) -> str:
        """Number of networks, architecture, backbone and number of parameters of each."""
        several = f"{len(self.networks)} networks, each " if self.further_networks else ""
        return several + self.network_description

    def predict(
        self,
        sections: Sequence[Section],
        inference: Inference | None = None,
        *,
        rng: int = 0,
        keep_steps: bool = False,
        keep_latents: int = 0,
    ) -> list[Answer]:
        """Predict sections whose features are ready with the network, on the device of the settings.

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
        The answer for each section; the restarts of an ensemble are those of its networks, one after the other.
        """
        return predict_ensemble(
            self.networks,
            sections,
            self._filled(inference),
            fabric=own_fabric(),
            seed=rng,
            keep_steps=keep_steps,
            keep_latents=keep_latents,
            progress=settings.progress,
        )

    def draw_counts(self, sections: Sequence[Section], inference: Inference, *, rng: int = 0) -> list[Draws]:
        """Draw samples of the counts; only for models of counts.

        Parameters
        ----------
        sections
            Features and lattices.
        inference
            Options of the prediction, with ``n_samples`` and ``temperature``.
        rng
            Seed of the samples, which depend on nothing else but the section.

        Returns
        -------
        For each section the first sample and the standard deviation of log2(count + 1) over the samples, spots × genes
        float32 (``first_NG``, ``spread_NG``).
        """
        assert isinstance(self.network, CountNetwork)
        return draw_counts(self.network, sections, self._filled(inference), seed=rng, fabric=own_fabric())

    def _saved(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Split the model into JSON values and arrays."""
        config, arrays = super()._saved()
        network, weights = network_to_saved(self.network, self.architecture, self.backbone, self.halting)
        own = {
            "history": self.history.to_dict(orient="list"),
            "scores": self.scores.to_dict(),
            "blend": self.blend,
            "halt_threshold": self.halt_threshold,
        }
        for i, member in enumerate(self.further_networks, start=1):
            weights |= network_weights(member, i)
        if self.further_networks:
            own["n_networks"] = len(self.networks)
        return config | own | network, arrays | weights


def expression_from_saved(
    config: Mapping[str, Any], arrays: Mapping[str, np.ndarray], backbones: Backbones
) -> LinearExpressionModel:
    """Undo ``model._saved()``."""
    features = features_from_saved(config["features"], arrays)
    target = ExpressionTarget(**config["target"])
    errors = {k.removeprefix("errors."): v for k, v in arrays.items() if k.startswith("errors.")}
    common: dict[str, Any] = {
        "target": target,
        "features": features,
        "baseline": LinearExpression(arrays["baseline.weight_FG"], arrays["baseline.bias_G"]),
        "reliability": pd.DataFrame(config["reliability"], index=pd.Index(target.genes, name="gene")),
        "sections": config["sections"],
        "errors": ExpressionErrors(**errors) if errors else None,
        "novelty": novelty_from_arrays(arrays),
        "id": config["id"],
    }
    if "architecture" not in config:
        return LinearExpressionModel(**common)
    sizes = features.n_columns, ExpressionHead, len(target.genes)
    first = network_from_saved(config, arrays, backbones, *sizes)
    parts = first["architecture"], first["backbone"], first["halting"]
    further = [restore_network(arrays, *parts, *sizes, member=i) for i in range(1, config.get("n_networks", 1))]
    return ExpressionModel(
        **common,
        **first,
        further_networks=further,
        history=pd.DataFrame(config["history"]),
        scores=pd.DataFrame(config["scores"]),
        blend=config.get("blend", 1.0),
        halt_threshold=config["halt_threshold"],
    )
