"""How many random directions are enough, and the interval of a mean that was stopped by them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RELATIVE_ERROR = 0.02
FEWEST = 30
"""Directions before the first look.

With 10, stopping at a deviation that is small by chance costs up to four points of coverage.
"""


def stopping_count(
    values: ArrayLike, relative_error: float = RELATIVE_ERROR, fewest: int = FEWEST
) -> int | None:
    """Return after how many values a sequence is stopped, or None where it is to go on.

    The rule looks after each value from the ``fewest``-th on, and stops where the standard error of
    the mean is at most ``relative_error`` times the absolute mean. An interval of the values up to
    there by :func:`mean_interval` covers as stated in ``docs/inference.md``: 94 to 96% of 95% where
    many eigenvalues share the trace, 91 to 93% where one of them holds a fifth of it, since the
    values are then skewed.
    """
    means, errors = running(np.asarray(values, dtype=float))
    stops = errors <= relative_error * np.abs(means)
    stops[: max(fewest, 2) - 1] = False
    return int(np.argmax(stops)) + 1 if stops.any() else None


def enough(values: ArrayLike, relative_error: float = RELATIVE_ERROR, fewest: int = FEWEST) -> bool:
    """Return whether the values so far are enough by the rule of :func:`stopping_count`."""
    return stopping_count(values, relative_error, fewest) is not None


def running(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean of the first n values and its standard error, for each n; the error of one
    value is inf.
    """
    n = np.arange(1, len(values) + 1)
    offset = values[:1].sum()  # a constant of the size of the values keeps the squares exact
    centred = values - offset
    means = centred.cumsum() / n
    squares = np.maximum((centred**2).cumsum() - n * means**2, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        errors = np.where(n > 1, np.sqrt(squares / (n - 1) / n), np.inf)
    return means + offset, errors


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Return (mean, low, high) by Student's t; nan ends for a single value."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if x.size < 2:
        return mean, math.nan, math.nan
    reach = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return mean, mean - reach, mean + reach
