"""How sure: intervals that respect runs, and a test of what geometry adds to the loss."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import LeaveOneGroupOut

from lowrank.predict.crossval import Floats

RESAMPLES = 2000
PERMUTATIONS = 199


def bootstrap_pearson(
    target: ArrayLike, predicted: ArrayLike, clusters: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the pooled Pearson correlation, whole clusters (runs) drawn with replacement.

    Rows of one run are not independent, so runs are the unit that is resampled. The fits themselves are not
    repeated: the interval is about the rows that were predicted. nan for fewer than three clusters.
    """
    y, p, labels = np.asarray(target, dtype=float), np.asarray(predicted, dtype=float), np.asarray(clusters, dtype=object)
    members = [np.flatnonzero(labels == cluster) for cluster in dict.fromkeys(labels)]
    if len(members) < 3:
        return float("nan"), float("nan")
    y, p = y - y.mean(), p - p.mean()
    moments = np.array(
        [[len(rows), y[rows].sum(), p[rows].sum(), *(y[rows] @ y[rows], p[rows] @ p[rows], y[rows] @ p[rows])] for rows in members]
    )
    drawn = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    counts = np.stack([np.bincount(row, minlength=len(members)) for row in drawn])
    n, sum_y, sum_p, yy, pp, yp = (counts @ moments).T
    spread = (yy - sum_y**2 / n) * (pp - sum_p**2 / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(spread > 0, (yp - sum_y * sum_p / n) / np.sqrt(spread), np.nan)
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
    """P value of: the features ``added`` say nothing about the target that ``base`` does not.

    Statistic: the out-of-fold R² of both feature sets together. Under the hypothesis, what ``added`` holds beyond its
    linear regression on ``base`` can be exchanged between runs; whole runs are exchanged, row k of one for row k of
    the other, so that the dependence within a run stays (after Freedman and Lane 1983). Linear model;
    (1 + how many permutations do at least as well) / (1 + permutations).
    """
    labels, runs = np.asarray(groups, dtype=object), np.asarray(clusters, dtype=object)
    known, extra = base.to_numpy(dtype=float), added.to_numpy(dtype=float)
    explained = LinearRegression().fit(known, extra).predict(known)
    generator = np.random.default_rng(seed)
    orders = [np.arange(len(runs)), *(exchange(runs, generator) for _ in range(permutations))]
    blocks = np.stack([np.hstack([known, explained + (extra - explained)[order]]) for order in orders])
    scores = out_of_fold_r2(blocks, np.asarray(target, dtype=float), labels)
    return float(1 + (scores[1:] >= scores[0]).sum()) / (1 + permutations)


def out_of_fold_r2(blocks: Floats, target: Floats, groups: NDArray[np.object_]) -> Floats:
    """Pooled out-of-fold R² of least squares for many feature blocks (blocks, rows, columns) at once.

    The same figure as :func:`~lowrank.predict.crossval.cross_validate`'s, by batched normal equations on features that
    are standardised in each training fold.
    """
    residual = np.zeros((len(blocks), len(target)))
    for train, test in LeaveOneGroupOut().split(target, target, groups):
        X, mean = blocks[:, train], target[train].mean()
        centre, deviation = X.mean(axis=1, keepdims=True), X.std(axis=1, keepdims=True)
        deviation[deviation == 0] = 1.0
        X, left = (X - centre) / deviation, (blocks[:, test] - centre) / deviation
        gram = np.swapaxes(X, 1, 2) @ X
        weights = np.linalg.pinv(gram, rcond=1e-13, hermitian=True) @ (np.swapaxes(X, 1, 2) @ (target[train] - mean)[:, None])
        residual[:, test] = target[test] - mean - (left @ weights)[..., 0]
    total: Floats = 1.0 - (residual**2).sum(axis=1) / ((target - target.mean()) ** 2).sum()
    return total


def exchange(runs: NDArray[np.object_], generator: np.random.Generator) -> NDArray[np.intp]:
    """For each row, the row whose residual it gets: runs permuted, positions within them kept (cyclic where lengths differ)."""
    members = [np.flatnonzero(runs == run) for run in dict.fromkeys(runs)]
    source = np.empty(len(runs), dtype=np.intp)
    for own, other in zip(members, generator.permutation(len(members)), strict=True):
        theirs = members[other]
        source[own] = theirs[np.arange(len(own)) % len(theirs)]
    return source
