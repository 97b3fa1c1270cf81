"""The standard error of a mean over a table of directions and rows of text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lowrank.errors import UsageError


@dataclass(frozen=True)
class TwoWayError:
    """A mean over directions and rows of text, with its errors.

    ``directions_error`` and ``rows_error`` are the errors were the other side fixed; each holds the
    noise of single cells, which ``standard_error`` counts once. ``freedom`` is Welch and
    Satterthwaite's number of degrees of freedom.
    """

    value: float
    standard_error: float
    directions_error: float
    rows_error: float
    freedom: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the ends of the interval by Student's t."""
        reach = float(stats.t.ppf((1 + level) / 2, self.freedom)) * self.standard_error
        return self.value - reach, self.value + reach


def two_way_error(table: ArrayLike, weights: ArrayLike | None = None) -> TwoWayError:
    """Return the mean of a (directions, rows) table, and its error over directions and text.

    Both sides are samples: other directions and other text would have given another mean. The
    variance is that over directions plus that over rows minus that over single cells, which both of
    them hold (two-way clustering: Cameron, Gelbach and Miller, 2011); where noise makes that
    smaller than one of the two, it is the larger one.

    Args:
        table: for sharpness the mean increase of the loss along a direction on a row of text
            (directions, rows).
        weights: of the rows, such as their numbers of tokens; equal where None. The mean is then
            a ratio of sums, and its variance that of the linearised ratio.

    Raises:
        UsageError: fewer than two directions or rows, or values that are not finite.
    """
    x = np.asarray(table, dtype=float)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise UsageError(
            "the error over directions and text needs a table of finite values of at least two "
            "directions and two rows"
        )
    count, rows = x.shape
    w = np.ones(rows) if weights is None else np.asarray(weights, dtype=float)
    w = w / w.sum()
    value = float((x @ w).mean())
    parts = (x - value) * w / count  # what each cell adds to the error of the mean
    by_direction = float((parts.sum(axis=1) ** 2).sum()) * count / (count - 1)
    by_row = float((parts.sum(axis=0) ** 2).sum()) * rows / (rows - 1)
    by_cell = float((parts**2).sum()) * x.size / (x.size - 1)
    variance = max(by_direction + by_row - by_cell, by_direction, by_row)
    uncertain = by_direction**2 / (count - 1) + by_row**2 / (rows - 1)
    return TwoWayError(
        value=value,
        standard_error=float(np.sqrt(variance)),
        directions_error=float(np.sqrt(by_direction)),
        rows_error=float(np.sqrt(by_row)),
        freedom=variance**2 / uncertain if uncertain > 0 else float("inf"),
    )
