"""Linear baselines on the features of the networks, shown beside every result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strecur.models.features.components import fit_components

MAX_FOLDS = 5
PENALTY = 0.1

SPARSE = 0.5
"""If a smaller share of the spots is labelled, domains have equal weight: strokes do not tell how large a domain is."""

PENALTIES = (10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4)

N_AXES = 64
"""Axes of expression that are shrunk one by one; what is left is mostly noise, and is shrunk together."""

TINY = 1e-9


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
    """Ridge regression of every gene, shrunk or not.

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


@dataclass(frozen=True)
class AxisShrinkage:
    """Factors by which predicted expression is shrunk along the principal axes of measured expression.

    Genes vary together, and ridge regression, which fits each gene by itself, does not know it: along axes that the
    features do not tell, its predictions are noise.

    Attributes
    ----------
    mean_G, sd_G
        Mean and spread of each gene over the training spots; axes are those of genes in units of their spread.
    axes_GK
        Principal axes, genes × axes.
    share_K
        Share that is kept of a prediction along each axis, from 0 to 1.
    rest
        Share that is kept of what lies along none of them.
    """

    mean_G: np.ndarray
    sd_G: np.ndarray
    axes_GK: np.ndarray
    share_K: np.ndarray
    rest: float

    def apply(self, values_NG: np.ndarray) -> np.ndarray:
        """Shrink predictions, spots × genes float32."""
        shrunk_NG = self._shrink((values_NG - self.mean_G) / self.sd_G) * self.sd_G + self.mean_G
        return shrunk_NG.astype(np.float32)

    def of(self, model: LinearExpression) -> LinearExpression:
        """Return the regression whose predictions are those of ``model``, shrunk."""
        weight_FG = self._shrink(model.weight_FG / self.sd_G) * self.sd_G
        return LinearExpression(np.ascontiguousarray(weight_FG, dtype=np.float32), self.apply(model.bias_G))

    def _shrink(self, values: np.ndarray) -> np.ndarray:
        return self.rest * values + (values @ self.axes_GK * (self.share_K - self.rest)) @ self.axes_GK.T


def fit_shrinkage(
    held_out_NG: np.ndarray, target_NG: np.ndarray, groups_N: np.ndarray, rng: int = 0
) -> tuple[AxisShrinkage, np.ndarray]:
    """Find how far predictions of held-out groups are right along each axis of expression.

    The share of an axis is the slope of the measured on the predicted values within groups, as in the *curds and whey*
    of Breiman and Friedman (1997).

    Parameters
    ----------
    held_out_NG
        Predictions of every spot by a model that saw no spot of its group.
    target_NG
        Measured values, spots × genes.
    groups_N
        Group of every spot; at least two.
    rng
        Seed of the principal components.

    Returns
    -------
    The factors, and the predictions of every spot shrunk by shares that were found without its group. The axes are
    those of all spots.
    """
    mean_G, sd_G = target_NG.mean(axis=0), target_NG.std(axis=0)
    sd_G = np.where(sd_G > TINY, sd_G, 1).astype(np.float32)
    axes_GK = principal_axes((target_NG - mean_G) / sd_G, N_AXES, rng)
    groups = np.unique(groups_N)
    sums = [products(held_out_NG[groups_N == g] / sd_G, target_NG[groups_N == g] / sd_G, axes_GK) for g in groups]
    common_2K, shrunk_NG = np.sum(sums, axis=0), np.empty_like(held_out_NG)

    def factors(sums_2K: np.ndarray) -> AxisShrinkage:
        share_K = np.clip(sums_2K[0] / np.maximum(sums_2K[1], TINY), 0, 1).astype(np.float32)
        return AxisShrinkage(mean_G, sd_G, axes_GK, share_K[:-1], float(share_K[-1]))

    for group, own_2K in zip(groups, sums, strict=True):
        shrunk_NG[groups_N == group] = factors(common_2K - own_2K).apply(held_out_NG[groups_N == group])
    return factors(common_2K), shrunk_NG


def principal_axes(values_NG: np.ndarray, n_axes: int, rng: int) -> np.ndarray:
    """Return principal axes, genes × axes; none if there is a single gene."""
    if min(values_NG.shape) < 2:
        return np.empty((values_NG.shape[1], 0), dtype=np.float32)
    return fit_components(values_NG, n_axes, rng)[1]


def products(predicted_NG: np.ndarray, measured_NG: np.ndarray, axes_GK: np.ndarray) -> np.ndarray:
    """Return, along each axis and (last) along none, the sums of predicted · measured and of predicted², centred."""
    predicted_NG, measured_NG = (values - values.mean(axis=0) for values in (predicted_NG, measured_NG))
    along_NK, measured_NK = predicted_NG @ axes_GK, measured_NG @ axes_GK
    pairs = (along_NK * measured_NK, predicted_NG * measured_NG), (np.square(along_NK), np.square(predicted_NG))
    by_axis = [(along.sum(axis=0, dtype=float), whole.sum(dtype=float)) for along, whole in pairs]
    return np.array([[*along_K, max(whole - along_K.sum(), 0)] for along_K, whole in by_axis])


@dataclass(frozen=True)
class TunedRidge:
    """Ridge regression whose penalty and shrinkage were found on groups of spots that were held out.

    Attributes
    ----------
    penalty
        Penalty of the regression.
    shrinkage
        How its predictions are shrunk.
    held_out_NG
        Shrunk predictions of every spot without its group.
    """

    penalty: float
    shrinkage: AxisShrinkage
    held_out_NG: np.ndarray

    def fit(self, features_NF: np.ndarray, target_NG: np.ndarray) -> LinearExpression:
        """Fit on all of some spots."""
        return self.shrinkage.of(fit_linear_expression(features_NF, target_NG, self.penalty))


def tune_ridge(features_NF: np.ndarray, target_NG: np.ndarray, groups_N: np.ndarray, rng: int = 0) -> TunedRidge:
    """Find penalty and shrinkage of ridge regression; arguments as in :func:`choose_penalty`, and a seed."""
    penalty, predicted_NG = choose_penalty(features_NF, target_NG, groups_N)
    return TunedRidge(penalty, *fit_shrinkage(predicted_NG, target_NG, groups_N, rng))
