"""Two published methods for expression, on features instead of images: a transformer over spots, and retrieval.

They are in the style of HisToGene and BLEEP, but not the original programs: instead of training an image encoder, they
take the features that every method of ``benchmarks/expression.py`` takes, and the transformer is narrower. None of
their settings was tuned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from baselines import retrieve
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

if TYPE_CHECKING:
    from collections.abc import Sequence

PASSES = 200
BATCH = 256
N_RETRIEVED = 50


class SpotTransformer(nn.Module):
    """Attention between all spots of a section (HisToGene): features plus embeddings of row and column."""

    def __init__(self, n_features: int, n_genes: int, *, width: int = 256, n_layers: int = 4, side: int = 256) -> None:
        super().__init__()
        self.features = nn.Linear(n_features, width)
        self.row, self.col = nn.Embedding(side, width), nn.Embedding(side, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False)
        self.genes = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_genes))

    def forward(self, features_NF: Tensor, cell_N2: Tensor) -> Tensor:
        h_ND = self.features(features_NF) + self.row(cell_N2[:, 0]) + self.col(cell_N2[:, 1])
        return self.genes(self.layers(h_ND[None])[0])


class Projection(nn.Module):
    """Projection head of BLEEP."""

    def __init__(self, n_features: int, width: int = 256) -> None:
        super().__init__()
        self.first = nn.Linear(n_features, width)
        self.second = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.Dropout(0.1))
        self.norm = nn.LayerNorm(width)

    def forward(self, x_NF: Tensor) -> Tensor:
        projected_ND = self.first(x_NF)
        return self.norm(projected_ND + self.second(projected_ND))


def contrastive_loss(image_ND: Tensor, spot_ND: Tensor) -> Tensor:
    """Soft cross-entropy in both directions; spots with a similar image or similar expression share the target."""
    logits_NN = spot_ND @ image_ND.T
    target_NN = ((image_ND @ image_ND.T + spot_ND @ spot_ND.T) / 2).softmax(dim=-1)
    return (cross_entropy(logits_NN, target_NN) + cross_entropy(logits_NN.T, target_NN.T)) / 2


def predict_by_transformer(
    train: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], query: tuple[np.ndarray, np.ndarray], seed: int
) -> np.ndarray:
    """Train on sections given as (features, cells, log counts); predict one given as (features, cells)."""
    torch.manual_seed(seed)
    log_NG = np.concatenate([log for *_, log in train])
    mean_G, sd_G = log_NG.mean(axis=0), log_NG.std(axis=0) + 1e-6
    sections = [tuple(map(torch.from_numpy, (x, cell, (log - mean_G) / sd_G))) for x, cell, log in train]
    network = SpotTransformer(train[0][0].shape[1], log_NG.shape[1])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4)
    for _ in range(PASSES):
        for i in torch.randperm(len(sections)).tolist():
            features, cell, target = sections[i]
            optimizer.zero_grad()
            mse_loss(network(features, cell), target).backward()
            optimizer.step()
    network.eval()
    with torch.inference_mode():
        found = network(*map(torch.from_numpy, query)).numpy()
    return found * sd_G + mean_G


def predict_by_contrast(features_NF: np.ndarray, log_NG: np.ndarray, query_MF: np.ndarray, seed: int) -> np.ndarray:
    """Learn a joint space of features and expression; average the training spots that are nearest in it."""
    torch.manual_seed(seed)
    features, log = torch.from_numpy(features_NF), torch.from_numpy(log_NG)
    of_image, of_spot = Projection(features.shape[1]), Projection(log.shape[1])
    parameters = [*of_image.parameters(), *of_spot.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-3)
    for _ in range(PASSES):
        for rows in torch.randperm(len(features)).split(BATCH):
            optimizer.zero_grad()
            contrastive_loss(of_image(features[rows]), of_spot(log[rows])).backward()
            optimizer.step()
    of_image.eval(), of_spot.eval()
    with torch.inference_mode():
        spots, queries = of_spot(log).numpy(), of_image(torch.from_numpy(query_MF)).numpy()
    return retrieve(spots, log_NG, queries, N_RETRIEVED)
