"""Uncertainty of a fit: intervals that respect runs, and a test of what geometry adds to
the loss.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from sklearn.linear_model import LinearRegression

from lowrank.predict.crossval import Floats
from lowrank.predict.exchange import DRAWN, Exchange, out_of_fold_r2, squared_errors

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


def jackknife_pearson(
    target: ArrayLike,
    predicted: ArrayLike,
    clusters: Iterable[Hashable],
    *,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return an interval of the pooled Pearson correlation that leaves out one cluster at a time.

    The pseudo-values of Fisher's transform have one degree of freedom less than there are clusters.
    With whole methods as clusters it covers what it states, where methods have something in common
    too (``docs/inference.md``); the bootstrap over runs does not. nan for fewer than four clusters,
    or where a correlation does not exist or is 1.
    """
    y, p = (np.asarray(v, dtype=float) for v in (target, predicted))
    of = pd.factorize(pd.Series(list(clusters), dtype=object))[0]
    n = int(of.max(initial=-1)) + 1
    if n < 4:
        return math.nan, math.nan
    y, p = y - y.mean(), p - p.mean()
    sums = np.stack([np.bincount(of, v, n) for v in (np.ones(len(y)), y, p, y * y, p * p, y * p)])
    whole = sums.sum(axis=1, keepdims=True)
    count, sum_y, sum_p, yy, pp, yp = np.hstack([whole, whole - sums])
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (yy - sum_y**2 / count) * (pp - sum_p**2 / count)
        transformed = np.arctanh((yp - sum_y * sum_p / count) / np.sqrt(spread))
    if not np.isfinite(transformed).all():
        return math.nan, math.nan
    pseudo = n * transformed[0] - (n - 1) * transformed[1:]
    reach = stats.t.ppf((1 + level) / 2, n - 1) * pseudo.std(ddof=1) / math.sqrt(n)
    return float(np.tanh(transformed[0] - reach)), float(np.tanh(transformed[0] + reach))


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


FEWEST_PERMUTATIONS = 20
"""Distinct permutations below which no p value can reach 5%."""
TIE = 1e-10
"""Relative difference of two statistics below which they are equal: another order of the same sums.
"""


@dataclass(frozen=True)
class PermutationTest:
    """What a permutation test found, or why it could not be made.

    ``p`` is None where the test cannot be made, and ``reason`` then says why. ``permutations`` are
    those that were compared, the observed order among them; ``distinct`` is how many there are.
    ``rows`` and ``methods`` are those of both models, without the rows that were left out.
    ``statistic`` is the out-of-fold squared error without the added features over that with them.
    """

    p: float | None
    permutations: int
    distinct: int
    testable: bool
    reason: str | None
    rows: int
    methods: int
    statistic: float | None = None


def permutation_test(
    base: pd.DataFrame,
    added: pd.DataFrame,
    target: ArrayLike,
    *,
    groups: Iterable[Hashable],
    methods: Iterable[Hashable],
    cells: Iterable[Hashable],
    sizes: Iterable[Hashable],
    fixed: ArrayLike | None = None,
    permutations: int = DRAWN,
    seed: int = 0,
) -> PermutationTest:
    """Test whether the features ``added`` say something about the target that ``base`` does not.

    The statistic is the pooled out-of-fold squared error of least squares on ``base`` over that on
    ``base`` and ``added``, leaving out one of ``groups`` at a time. Under the null hypothesis the
    target is a linear function of ``base``, an effect of each size, and a part of each method that
    has nothing to do with ``added``. That part is estimated by the residuals of a fit of ``base``
    and size dummies with the slopes that hold within methods, and is exchanged between whole
    methods (Freedman and Lane, 1983): all checkpoints of a method move together, each to the same
    cell of the other method. Size dummies are in this null fit alone: a predictor cannot use them
    for a size that it has not seen.

    Args:
        base: features of the smaller model (rows, columns), the loss.
        added: features that are tested (rows, columns).
        target: values to predict (rows).
        groups: what cross-validation leaves out, a label for each row.
        methods: method of each row, the unit that is exchanged.
        cells: what a row is within its method (size, seed, step), a label for each row; methods
            are exchanged only with methods that have the same cells.
        sizes: size of each row.
        fixed: True for rows whose features are fixed by definition (a reference against itself);
            they leave both models.
        permutations: how many are drawn, beside the observed order, where there are more than
            5,040 distinct ones; all are used otherwise.
        seed: of the drawn permutations.

    Returns:
        The share of permutations, the observed order among them, whose statistic is at least the
        observed one. Fewer than 20 distinct permutations, or fewer than two groups, give no p value
        but the reason.

    Raises:
        PredictError: two rows of one method have the same cell.
    """
    kept = ~np.asarray(fixed, dtype=bool) if fixed is not None else np.ones(len(base), dtype=bool)
    X, Z, y = (np.asarray(v, dtype=float)[kept] for v in (base, added, target))
    folds, method, cell, size = (codes(v, kept) for v in (groups, methods, cells, sizes))
    exchange = Exchange.of(method, cell)
    shown = {"distinct": exchange.distinct, "rows": len(y), "methods": len(exchange.own)}
    reason = shortage(exchange, folds)
    if reason is not None:
        return PermutationTest(None, 0, testable=False, reason=reason, **shown)
    explained = null_fit(X, y, size, method)
    sources = exchange.sources(permutations, np.random.default_rng(seed))
    errors = [
        squared_errors(features, explained, y - explained, folds, exchange, sources)
        for features in (X, np.hstack([X, Z]))
    ]
    ratio = errors[0] / errors[1]
    p = float(np.mean(ratio >= ratio[0] * (1 - TIE)))
    return PermutationTest(
        p, len(sources), testable=True, reason=None, statistic=float(ratio[0]), **shown
    )


def shortage(exchange: Exchange, folds: NDArray[np.intp]) -> str | None:
    """Return why no test can be made, or None."""
    if folds.max(initial=0) < 1:
        return "leaving one group out needs at least two groups"
    if exchange.distinct >= FEWEST_PERMUTATIONS:
        return None
    return (
        f"cannot be tested: of {len(exchange.own)} methods at most {exchange.largest} have the same "
        f"sizes, seeds and steps, which makes {exchange.distinct} distinct permutations; "
        f"{FEWEST_PERMUTATIONS} are needed, that is, four methods with the same checkpoints"
    )


def codes(labels: Iterable[Hashable], kept: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Return a number from 0 for each kept label, equal for equal labels."""
    numbers: dict[Hashable, int] = {}
    chosen = (label for label, keep in zip(labels, kept, strict=True) if keep)
    return np.array([numbers.setdefault(label, len(numbers)) for label in chosen], dtype=np.intp)


def null_fit(
    base: Floats, target: Floats, sizes: NDArray[np.intp], methods: NDArray[np.intp]
) -> Floats:
    """Return the part of the target that ``base`` and the sizes explain, slopes taken within
    methods.

    Slopes that also fit what methods have in common would take from the residuals what no
    permutation of them lacks, and the test would reject too often. Where the rows of a method do
    not differ, or not otherwise than sizes do, the slopes are those of all rows.
    """
    common = np.hstack([base - base.mean(axis=0), indicators(sizes)[:, 1:]])
    within = np.hstack([common, indicators(methods)])
    if np.linalg.matrix_rank(within) < within.shape[1]:
        within = np.hstack([common, np.ones((len(target), 1))])
    coefficients = np.linalg.lstsq(within, target, rcond=None)[0]
    explained: Floats = common @ coefficients[: common.shape[1]]
    return explained


def indicators(numbers: NDArray[np.intp]) -> Floats:
    """Return one column of 0 and 1 for each number."""
    found: Floats = (numbers[:, None] == np.unique(numbers)).astype(float)
    return found
