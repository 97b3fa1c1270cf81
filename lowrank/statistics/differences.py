"""Differences of two methods' downstream scores, with intervals over seeds and items."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from lowrank.errors import UsageError
from lowrank.statistics.multiple import FEWEST

UNEQUAL = 0.05
"""P value of Bartlett's test below which methods do not share one variance over seeds."""


@dataclass(frozen=True)
class SeedVariance:
    """How far a method's score moves from seed to seed, pooled over methods.

    ``variance`` is that of one method's score on one seed, without what the methods of a seed have
    in common; ``freedom`` its degrees of freedom, (methods - 1) (seeds - 1). ``equal_p`` is the p
    value of Bartlett's test that all methods have the same variance, nan where it cannot be made.
    """

    variance: float
    freedom: int
    equal_p: float

    @property
    def usable(self) -> bool:
        """Whether the methods may share this variance."""
        return self.freedom > 0 and not self.equal_p < UNEQUAL


@dataclass(frozen=True)
class ItemErrors:
    """A difference on the same items, by seed, with what the items add to its variance.

    ``per_seed`` are means over tasks, one for each seed. ``items`` is the variance of their mean
    over clusters of items (common to all seeds), ``cells`` that over single seeds of single
    clusters, which the variance over items and that over seeds both hold.
    """

    per_seed: NDArray[np.float64]
    items: float
    cells: float


@dataclass(frozen=True)
class Interval:
    """A difference with its interval over seeds and items.

    ``freedom`` are the degrees of freedom of Student's t, ``p`` the two-sided p value of no
    difference. ``pooled`` says whether the variance over seeds is the pooled one. Where
    ``conclusive`` is false no statement may rest on the interval, and ``reason`` says why.
    """

    difference: float
    low: float
    high: float
    standard_error: float
    freedom: float
    p: float
    seeds: int
    pooled: bool
    conclusive: bool
    reason: str | None = None


def pooled_seed_variance(scores: ArrayLike) -> SeedVariance:
    """Return the variance over seeds that all methods share.

    Args:
        scores: means over tasks (methods, seeds), of methods that all have the same seeds.

    Returns:
        The mean square of what remains of the scores after the effects of methods and seeds. What
        seeds do to all methods alike, as their order of the data does, is no part of it.

    Raises:
        UsageError: a table without two methods and two seeds, or with values that are not finite.
    """
    y = np.asarray(scores, dtype=float)
    if y.ndim != 2 or min(y.shape) < 2 or not np.isfinite(y).all():
        raise UsageError(
            "the variance over seeds needs finite scores of at least two methods on the same two "
            "seeds; leave out methods or seeds that are not complete"
        )
    left = y - y.mean(axis=1, keepdims=True) - y.mean(axis=0) + y.mean()
    freedom = (y.shape[0] - 1) * (y.shape[1] - 1)
    spread = float((left**2).sum())
    testable = y.shape[0] > 2 and y.shape[1] > 2 and (left.var(axis=1) > 0).all()
    equal = float(stats.bartlett(*left).pvalue) if testable else math.nan
    return SeedVariance(spread / freedom, freedom, equal)


def item_errors(
    differences: ArrayLike,
    tasks: Iterable[Hashable],
    clusters: Iterable[Hashable] | None = None,
) -> ItemErrors:
    """Return the difference by seed and its variance over items, every task counting the same.

    Args:
        differences: score of one method minus that of the other on the same item (seeds, items).
        tasks: task of each item.
        clusters: items of one task that depend on each other, such as questions on one text, have
            the same label; None: all are independent.

    Raises:
        UsageError: values that are not finite; make each seed answer the same items.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 2 or not d.size or not np.isfinite(d).all():
        raise UsageError(
            "differences need a finite value for each seed and item; keep items that all seeds answer"
        )
    of_task = pd.factorize(pd.Series(list(tasks), dtype=object))[0]
    labels = range(d.shape[1]) if clusters is None else clusters
    of_cluster = pd.factorize(pd.Series(list(labels), dtype=object))[0]
    per_seed, items, cells = np.zeros(len(d)), 0.0, 0.0
    count = of_task.max() + 1
    for task in range(count):
        own = d[:, of_task == task]
        per_seed += own.mean(axis=1) / count
        members = pd.factorize(of_cluster[of_task == task])[0]
        groups = members.max() + 1
        left = (own - own.mean()) / (own.shape[1] * count)
        sums = np.stack([np.bincount(members, row, groups) for row in left]) / len(d)
        items += unbiased(sums.sum(axis=0))
        cells += unbiased(sums.ravel())
    return ItemErrors(per_seed, items, cells)


def unbiased(parts: NDArray[np.float64]) -> float:
    """Return the variance of a sum of independent parts that add up to zero; 0 for one part."""
    n = len(parts)
    return float((parts**2).sum()) * n / (n - 1) if n > 1 else 0.0


def difference_interval(
    found: ItemErrors, shared: SeedVariance | None = None, level: float = 0.95
) -> Interval:
    """Return the difference of two methods, mean over tasks, with its interval.

    One run's luck moves all of its tasks, so that seeds count once each, by their mean over tasks:
    the variance of the mean over seeds, plus that over items, minus what both hold. The variance
    over seeds is the pooled one of all methods (twice that of one method) unless Bartlett's test
    finds that they differ; then it is that of the two methods' own differences, with one degree of
    freedom less than there are seeds. Student's t has Welch and Satterthwaite's degrees of freedom.

    Args:
        found: the difference by seed, from :func:`item_errors`.
        shared: the pooled variance, from :func:`pooled_seed_variance` of all methods with these
            seeds; None: the two methods' own.
        level: confidence level.

    Returns:
        The interval; nan ends for one seed. Fewer than three seeds are not conclusive.
    """
    seeds, difference = len(found.per_seed), float(found.per_seed.mean())
    pooled = shared is not None and shared.usable
    error, freedom = errors_of(found, shared if pooled else None)
    p = 2 * float(special.stdtr(freedom, -abs(difference) / error)) if error > 0 else math.nan
    reach = float(special.stdtrit(freedom, (1 + level) / 2)) * error if freedom > 0 else math.nan
    few = seeds < FEWEST["seeds"]
    return Interval(
        difference=difference,
        low=difference - reach,
        high=difference + reach,
        standard_error=error,
        freedom=freedom,
        p=p,
        seeds=seeds,
        pooled=pooled,
        conclusive=not few,
        reason=f"{seeds} of the {FEWEST['seeds']} seeds that a statement needs" if few else None,
    )


def errors_of(found: ItemErrors, shared: SeedVariance | None) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of a difference; (nan, 0) for one seed without a
    pooled variance.
    """
    seeds = len(found.per_seed)
    if shared is not None:
        over_seeds, freedom = 2 * shared.variance / seeds, float(shared.freedom)
    elif seeds > 1:
        # of few seeds that lie together by chance: it holds at least the noise of single answers
        over_seeds = max(float(found.per_seed.var(ddof=1)) / seeds, found.cells)
        freedom = seeds - 1.0
    else:
        return math.nan, 0.0
    variance = over_seeds + max(found.items - found.cells, 0.0)
    known = (variance / over_seeds) ** 2 if over_seeds > 0 else 1.0
    return math.sqrt(variance), freedom * known
