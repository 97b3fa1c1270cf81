"""Choosing features: those whose correlation with the target has the same sign at every size, the
strongest first.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from lowrank.predict.crossval import Floats, Selection

KEPT = 8  # as many as the published predictor has


def correlations(features: pd.DataFrame, target: Floats, sizes: ArrayLike) -> pd.DataFrame:
    """Return one row per feature: its correlation with the target at each size, their mean, and
    whether all signs agree.

    A size at which a feature or the target is constant gives no correlation and does not count.
    """
    labels = np.asarray(sizes, dtype=object)
    X = features.to_numpy(dtype=float)
    table = pd.DataFrame(
        {
            str(size): columnwise(X[labels == size], target[labels == size])
            for size in dict.fromkeys(labels)
        },
        index=features.columns,
    )
    by_size = table.to_numpy()
    known = np.isfinite(by_size)
    positive, negative = (by_size > 0).sum(axis=1), (by_size < 0).sum(axis=1)
    table["pooled"] = columnwise(X, target)
    table["mean"] = np.where(
        known.any(axis=1),
        np.where(known, by_size, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1),
        np.nan,
    )
    table["consistent"] = known.any(axis=1) & (np.maximum(positive, negative) == known.sum(axis=1))
    return table


def columnwise(X: Floats, y: Floats) -> Floats:
    """Return Pearson's correlation of each column of X (rows, columns) with y; nan where one of the
    two is constant.
    """
    if len(y) < 2:
        return np.full(X.shape[1], np.nan)
    moves = (np.ptp(X, axis=0) > 0) & (np.ptp(y) > 0)
    X, y = X - X.mean(axis=0), y - y.mean()
    scale = np.sqrt((X**2).sum(axis=0) * (y @ y))
    found: Floats = np.where(moves, X.T @ y / np.where(moves, scale, 1.0), np.nan)
    return found


def consistent(
    features: pd.DataFrame, target: Floats, sizes: ArrayLike, keep: int = KEPT
) -> list[str]:
    """Return the ``keep`` features of consistent sign with the largest mean |r|, or only the
    strongest where no sign is consistent.
    """
    table = correlations(features, target, sizes)
    table["strength"] = table["mean"].abs().fillna(-1.0)
    order = table.sort_values(["consistent", "strength"], ascending=False, kind="stable")
    chosen = list(order.index[order["consistent"]][:keep])
    return chosen or list(order.index[:1])


def nested(sizes: ArrayLike, fixed: tuple[str, ...] = (), keep: int = KEPT) -> Selection:
    """Return a selection for :func:`~lowrank.predict.crossval.cross_validate` that uses training
    rows only.

    ``sizes`` are those of all rows; columns named ``fixed`` are always used, the others compete.
    """
    labels = np.asarray(sizes, dtype=object)

    def select(features: pd.DataFrame, target: Floats, rows: NDArray[np.intp]) -> list[str]:
        rivals = [
            name for name in features.columns if name not in fixed and features[name].nunique() > 1
        ]
        chosen = consistent(features[rivals], target, labels[rows], keep) if rivals else []
        return [*(name for name in features.columns if name in fixed), *chosen]

    return select
