"""Cross-validation that leaves out groups: every prediction comes from a fit that has not seen its
group.

Figures of merit are pooled: computed once over the out-of-fold predictions of all rows, not
averaged over folds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.linear_model import LinearRegression, Ridge, RidgeCV
from sklearn.model_selection import GroupKFold, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from lowrank.errors import LowrankError, UnknownNameError

MODELS = ("linear", "ridge")
PENALTIES = tuple(float(p) for p in np.logspace(-2, 4, 13))
FEWEST = 3  # rows of a fold for a meaningful correlation; that of two points is always 1 or -1
INNER_FOLDS = 5  # at most, in the search for the penalty
Floats = NDArray[np.float64]
Selection = Callable[[pd.DataFrame, Floats, NDArray[np.intp]], list[str]]
"""``select(features of the training rows, their target, their positions)`` → names of the columns
to use.
"""


class PredictError(LowrankError):
    """Features, target or groups that no predictor can be cross-validated on."""


@dataclass(frozen=True)
class CrossValidation:
    """Out-of-fold predictions of all rows and their figures of merit; figures are nan where they do
    not exist.

    ``predicted`` and ``fold`` (the group that was left out) are in the order of the rows. ``r2`` is
    1 - Σ(y - ŷ)²/Σ(y - ȳ)² of the out-of-fold predictions, ``r2_in_sample`` that of one fit to all
    rows. ``ranking_accuracy`` is the share of pairs of rows whose order is predicted, ties counting
    a half. ``per_fold`` holds for each group: rows, pearson (nan below three rows), rmse and, where
    they were selected, the features.
    """

    predicted: Floats
    fold: NDArray[np.object_]
    pearson: float
    r2: float
    r2_in_sample: float
    spearman: float = float("nan")
    ranking_accuracy: float = float("nan")
    per_fold: dict[str, dict[str, Any]] = field(default_factory=dict)


def cross_validate(
    features: ArrayLike | pd.DataFrame,
    target: ArrayLike,
    groups: ArrayLike,
    model: str = "linear",
    *,
    select: Selection | None = None,
    inner_groups: ArrayLike | None = None,
) -> CrossValidation:
    """Leave one group out, fit on the others, predict it; for each group.

    ``features`` (rows, columns) are standardised with the mean and deviation of each training fold.
    ``model`` is ``linear`` (least squares) or ``ridge``, whose penalty is chosen inside each
    training fold by a grouped cross-validation over its own ``inner_groups`` (runs, say; else
    ``groups``). ``select`` chooses columns inside each training fold.

    Raises PredictError for fewer than two groups, a constant column, values that are not finite, or
    no column.
    """
    frame, y, labels = checked(features, target, groups)
    inner = np.asarray(inner_groups if inner_groups is not None else labels, dtype=object)
    if model not in MODELS:
        raise UnknownNameError("predictor model", model, MODELS)
    predicted, per_fold = np.full(len(y), np.nan), {}
    for train, test in LeaveOneGroupOut().split(frame, y, labels):
        columns, fitted = fit(frame.iloc[train], y[train], inner[train], model, select, train)
        predicted[test] = fitted.predict(frame.iloc[test][columns].to_numpy())
        per_fold[str(labels[test[0]])] = {
            "rows": len(test),
            "pearson": correlation(y[test], predicted[test])
            if len(test) >= FEWEST
            else float("nan"),
            "rmse": float(np.sqrt(np.mean((y[test] - predicted[test]) ** 2))),
            **({"features": columns} if select else {}),
        }
    columns, on_all = fit(frame, y, inner, model, select, np.arange(len(y)))
    return CrossValidation(
        predicted=predicted,
        fold=labels,
        pearson=correlation(y, predicted),
        r2=r2(y, predicted),
        r2_in_sample=r2(y, on_all.predict(frame[columns].to_numpy())),
        spearman=rank_correlation(y, predicted),
        ranking_accuracy=ranking_accuracy(y, predicted),
        per_fold=per_fold,
    )


def checked(
    features: ArrayLike | pd.DataFrame, target: ArrayLike, groups: ArrayLike
) -> tuple[pd.DataFrame, Floats, NDArray[np.object_]]:
    """Return the inputs as a frame and arrays; raise PredictError, one sentence, where they cannot
    be used.
    """
    frame = (
        features.reset_index(drop=True)
        if isinstance(features, pd.DataFrame)
        else pd.DataFrame(two_dimensional(features))
    )
    frame.columns = [str(c) for c in frame.columns]
    y, labels = np.asarray(target, dtype=float), np.asarray(groups, dtype=object)
    if not len(frame) == len(y) == len(labels):
        raise PredictError(
            f"features, target and groups must have the same rows, not {len(frame)}, {len(y)} and {len(labels)}"
        )
    if not frame.shape[1]:
        raise PredictError("there is no feature to predict from")
    found = list(dict.fromkeys(labels))
    if len(found) < 2:
        raise PredictError(
            f"leaving one group out needs at least two groups; there is {f'only {found[0]!r}' if found else 'none'}"
        )
    broken = [name for name in frame.columns if not np.isfinite(frame[name].astype(float)).all()]
    if broken or not np.isfinite(y).all():
        what, values = (
            (f"the feature '{broken[0]}'", frame[broken[0]].astype(float))
            if broken
            else ("the target", pd.Series(y))
        )
        raise PredictError(
            f"{what} is not finite in {int((~np.isfinite(values)).sum())} of {len(y)} rows; exclude them first"
        )
    constant = [name for name in frame.columns if frame[name].nunique() == 1]
    if constant:
        raise PredictError(
            f"the feature '{constant[0]}' has the same value in all {len(frame)} rows and predicts nothing; leave it out"
        )
    return frame.astype(float), y, labels


def two_dimensional(features: ArrayLike) -> Floats:
    """Return an array (rows, columns); one dimension becomes one column."""
    array = np.asarray(features, dtype=float)
    return array[:, None] if array.ndim == 1 else array


def fit(
    frame: pd.DataFrame,
    y: Floats,
    inner: NDArray[np.object_],
    model: str,
    select: Selection | None,
    rows: NDArray[np.intp],
) -> tuple[list[str], Any]:
    """Return (columns used, fitted estimator) of a fit to training rows only."""
    columns = select(frame, y, rows) if select else list(frame.columns)
    X = frame[columns].to_numpy()
    estimator, options = estimator_for(model, inner)
    return columns, estimator.fit(X, y, **options)


def estimator_for(model: str, inner: NDArray[np.object_]) -> tuple[BaseEstimator, dict[str, Any]]:
    """Return a new estimator and the keyword arguments of its ``fit``. Where all rows are of one
    inner group, the penalty of a ridge is chosen by leaving out single rows.
    """
    if model == "linear":
        return make_pipeline(StandardScaler(), LinearRegression()), {}
    if len(set(inner)) < 2:
        return make_pipeline(StandardScaler(), RidgeCV(PENALTIES)), {}
    return make_pipeline(StandardScaler(), GroupedRidge()), {"groupedridge__groups": inner}


class GroupedRidge(RegressorMixin, BaseEstimator):
    """Ridge regression whose penalty is chosen by cross-validation over groups of rows.

    All penalties of a fold come from one eigendecomposition, which makes the search a hundred times
    cheaper than a grid of fits. ``alpha_`` is the chosen penalty and ``estimator_`` scikit-learn's
    ridge with it.
    """

    def __init__(self, penalties: tuple[float, ...] = PENALTIES) -> None:
        self.penalties = penalties

    def fit(self, X: Floats, y: Floats, groups: ArrayLike) -> GroupedRidge:
        """Choose the penalty with the least squared error on left-out groups, then
        fit to all rows.
        """
        splits = GroupKFold(min(INNER_FOLDS, len(set(np.asarray(groups).tolist())))).split(
            X, y, groups
        )
        errors = sum(self._errors(X[train], y[train], X[test], y[test]) for train, test in splits)
        self.alpha_ = self.penalties[int(np.argmin(errors))]
        self.estimator_ = Ridge(self.alpha_).fit(X, y)
        return self

    def predict(self, X: Floats) -> Floats:
        """Return the predictions of the fit to all rows."""
        predicted: Floats = self.estimator_.predict(X)
        return predicted

    def _errors(self, X: Floats, y: Floats, X_left: Floats, y_left: Floats) -> Floats:
        """Return the sum of squared errors on the left-out rows for each penalty."""
        centre, mean = X.mean(axis=0), y.mean()
        values, vectors = np.linalg.eigh((X - centre).T @ (X - centre))
        moments = vectors.T @ ((X - centre).T @ (y - mean))
        weights = vectors @ (
            moments[:, None] / (np.clip(values, 0, None)[:, None] + np.asarray(self.penalties))
        )
        errors: Floats = ((mean + (X_left - centre) @ weights - y_left[:, None]) ** 2).sum(axis=0)
        return errors


def correlation(y: Floats, predicted: Floats) -> float:
    """Return Pearson's correlation; nan for fewer than two rows or a constant side."""
    if len(y) < 2 or np.ptp(y) == 0 or np.ptp(predicted) == 0:
        return float("nan")
    return float(np.corrcoef(y, predicted)[0, 1])


def rank_correlation(y: Floats, predicted: Floats) -> float:
    """Return Spearman's correlation; nan where Pearson's of the ranks is."""
    return correlation(stats.rankdata(y), stats.rankdata(predicted)) if len(y) > 1 else float("nan")


def r2(y: Floats, predicted: Floats) -> float:
    """Return 1 minus the ratio of the residual to the total sum of squares; nan for a constant
    target.
    """
    total = float(((y - y.mean()) ** 2).sum())
    return 1.0 - float(((y - predicted) ** 2).sum()) / total if total > 0 else float("nan")


def ranking_accuracy(y: Floats, predicted: Floats) -> float:
    """Return the share of pairs with different targets whose order is predicted; a tie of
    predictions counts as a half.
    """
    upper = np.triu_indices(len(y), 1)
    truth = np.sign(y[:, None] - y[None, :])[upper]
    guess = np.sign(predicted[:, None] - predicted[None, :])[upper]
    differ = truth != 0
    if not differ.any():
        return float("nan")
    return float(np.mean(np.where(guess[differ] == 0, 0.5, guess[differ] == truth[differ])))
