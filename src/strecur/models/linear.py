"""Linear baselines on the features of the networks, shown beside every result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_FOLDS = 5
PENALTY = 0.1

SPARSE = 0.5
"""If a smaller share of the spots is labelled, domains have equal weight: strokes do not tell how large a domain is."""

PENALTIES = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4)


@dataclass(frozen=True)
class LinearDomains:
    """Multinomial logistic regression.

    Attributes
    ----------
    weight_FC
        Weights, features × domains.
    bias_C
        Intercepts.
    """

    weight_FC: np.ndarray
    bias_C: np.ndarray

    def logits(self, features_NF: np.ndarray) -> np.ndarray:
        """Logits of the domains, spots × domains, float32."""
        return features_NF @ self.weight_FC + self.bias_C

    def predict_proba(self, features_NF: np.ndarray) -> np.ndarray:
        """Probabilities of the domains, spots × domains, float32."""
        from scipy.special import softmax

        return softmax(self.logits(features_NF), axis=1).astype(np.float32)


def is_sparse(target_N: np.ndarray) -> bool:
    """Return whether few of the spots are labelled (target ≥ 0)."""
    return float((target_N >= 0).mean()) < SPARSE


def fit_linear_domains(
    features_NF: np.ndarray, target_N: np.ndarray, n_domains: int, *, equal_weight: bool
) -> LinearDomains:
    """Fit on the labelled spots (target ≥ 0), every one of the ``n_domains`` being present.

    Domains weigh as much as they have spots, or equally with ``equal_weight``, as is better with few labels.
    """
    from sklearn.linear_model import LogisticRegression

    labelled = target_N >= 0
    model = LogisticRegression(C=PENALTY, max_iter=500, class_weight="balanced" if equal_weight else None)
    model.fit(features_NF[labelled], target_N[labelled])
    weight, bias = model.coef_, model.intercept_
    if n_domains == 2:
        weight, bias = np.vstack([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return LinearDomains(np.ascontiguousarray(weight.T, dtype=np.float32), bias.astype(np.float32))


@dataclass(frozen=True)
class LinearExpression:
    """Ridge regression of every gene.

    Attributes
    ----------
    weight_FG
        Weights, features × genes.
    bias_G
        Intercepts.
    """

    weight_FG: np.ndarray
    bias_G: np.ndarray

    def predict(self, features_NF: np.ndarray) -> np.ndarray:
        """Expression on the scale of the training target, spots × genes, float32."""
        return (features_NF @ self.weight_FG + self.bias_G).astype(np.float32)


def fit_linear_expression(features_NF: np.ndarray, target_NG: np.ndarray, penalty: float) -> LinearExpression:
    """Fit ridge regression on spots with target."""
    from sklearn.linear_model import Ridge

    fitted = Ridge(penalty).fit(features_NF, target_NG)
    weight_FG = np.ascontiguousarray(np.reshape(fitted.coef_, (target_NG.shape[1], -1)).T)  # of one gene it is flat
    return LinearExpression(weight_FG.astype(np.float32), np.reshape(fitted.intercept_, -1).astype(np.float32))


def choose_penalty(features_NF: np.ndarray, target_NG: np.ndarray, groups_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Find the penalty of ridge regression that predicts groups best which were held out.

    Parameters
    ----------
    features_NF
        Spots × features.
    target_NG
        Spots × genes.
    groups_N
        Section of every spot. At least two; more than five are held out several at a time.

    Returns
    -------
    The penalty, and predictions of every spot by a model that saw no spot of its group (spots × genes, float32).
    """
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold, cross_val_predict

    folds = GroupKFold(min(MAX_FOLDS, len(np.unique(groups_N))))
    best_error, penalty, held_out_NG = np.inf, PENALTIES[0], target_NG
    for candidate in PENALTIES:
        predicted_NG = cross_val_predict(Ridge(candidate), features_NF, target_NG, groups=groups_N, cv=folds)
        predicted_NG = predicted_NG.reshape(target_NG.shape)  # of one gene it is flat
        error = np.square(predicted_NG - target_NG).mean()
        if error < best_error:
            best_error, penalty, held_out_NG = error, candidate, predicted_NG
    return penalty, held_out_NG.astype(np.float32)
