"""Uncertainty of a fit: intervals that respect runs, and a test of what geometry adds to
the loss.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.preprocessing import StandardScaler

from lowrank.predict.crossval import Floats

RESAMPLES = 2000
PERMUTATIONS = 199
ROUNDING = 1e-12  # gains closer than this are equal: they differ by the order of summation


def bootstrap_pearson(
    target: ArrayLike,
    predicted: ArrayLike,
    clusters: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a percentile interval of the pooled Pearson correlation; clusters (runs) are drawn
    with replacement.

    Rows of one run are not independent, so runs are the unit that is resampled. The fits themselves
    are not repeated: the interval is about the rows that were predicted. Both ends are nan for
    fewer than three clusters.
    """
    y, p, labels = (
        np.asarray(target, dtype=float),
        np.asarray(predicted, dtype=float),
        np.asarray(clusters, dtype=object),
    )
    members = [np.flatnonzero(labels == cluster) for cluster in dict.fromkeys(labels)]
    if len(members) < 3:
        return float("nan"), float("nan")
    y, p = y - y.mean(), p - p.mean()
    moments = np.array(
        [
            [
                len(rows),
                y[rows].sum(),
                p[rows].sum(),
                *(y[rows] @ y[rows], p[rows] @ p[rows], y[rows] @ p[rows]),
            ]
            for rows in members
        ]
    )
    drawn = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    counts = np.stack([np.bincount(row, minlength=len(members)) for row in drawn])
    n, sum_y, sum_p, yy, pp, yp = (counts @ moments).T
    scatter = (yy - sum_y**2 / n) * (pp - sum_p**2 / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(scatter > 0, (yp - sum_y * sum_p / n) / np.sqrt(scatter), np.nan)
    tail = 100 * (1 - level) / 2
    low, high = np.nanpercentile(found, [tail, 100 - tail])
    return float(low), float(high)


def permutation_p(
    base: pd.DataFrame,
    added: pd.DataFrame,
    target: Floats,
    groups: ArrayLike,
    clusters: ArrayLike,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Return the p value of the hypothesis that ``added`` predicts nothing of the target beyond
    ``base``.

    The statistic is the gain in pooled out-of-fold R² of a linear model when ``added`` joins
    ``base``. The residuals of the target's linear regression on ``base`` are exchanged between runs
    (Freedman and Lane 1983): all features keep their places, with their dependence on one another
    and on the groups. Complete runs are exchanged, row k of one for row k of the other, which keeps
    the dependence within a run, and only runs with equally many rows, so that every exchange is a
    permutation. The p value is (1 + number of permutations that gain at least as much) / (1 +
    permutations).
    """
    labels, runs = np.asarray(groups, dtype=object), np.asarray(clusters, dtype=object)
    known, y = base.to_numpy(dtype=float), np.asarray(target, dtype=float)
    explained = LinearRegression().fit(known, y).predict(known)
    generator = np.random.default_rng(seed)
    orders = [np.arange(len(runs)), *(exchange(runs, generator) for _ in range(permutations))]
    targets = explained[:, None] + (y - explained)[np.stack(orders, axis=1)]
    both = np.hstack([known, added.to_numpy(dtype=float)])
    gain = out_of_fold_r2(both, targets, labels) - out_of_fold_r2(known, targets, labels)
    return float(1 + (gain[1:] >= gain[0] - ROUNDING).sum()) / (1 + permutations)


def out_of_fold_r2(features: Floats, targets: Floats, groups: NDArray[np.object_]) -> Floats:
    """Return the pooled out-of-fold R² of least squares for many targets (rows, targets) on the
    same features (rows, columns).

    Each is the figure that :func:`~lowrank.predict.crossval.cross_validate` returns for that
    target.
    """
    residual = np.empty_like(targets)
    for train, test in LeaveOneGroupOut().split(features, groups=groups):
        scaler = StandardScaler().fit(features[train])
        model = LinearRegression().fit(scaler.transform(features[train]), targets[train])
        residual[test] = targets[test] - model.predict(scaler.transform(features[test]))
    total: Floats = 1.0 - (residual**2).sum(axis=0) / ((targets - targets.mean(axis=0)) ** 2).sum(
        axis=0
    )
    return total


def exchange(runs: NDArray[np.object_], generator: np.random.Generator) -> NDArray[np.intp]:
    """Return, for each row, the row whose residual it gets: runs with equally many rows are
    permuted, positions within them kept.
    """
    members = [np.flatnonzero(runs == run) for run in dict.fromkeys(runs)]
    source = np.empty(len(runs), dtype=np.intp)
    for length in sorted({len(rows) for rows in members}):
        alike = [rows for rows in members if len(rows) == length]
        for own, other in zip(alike, generator.permutation(len(alike)), strict=True):
            source[own] = alike[other]
    return source
