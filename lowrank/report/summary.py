"""Numbers over seeds: means and spreads as figures and tables show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from lowrank.report.axes import number
from lowrank.report.charts import Series, Style


@dataclass(frozen=True)
class Spread:
    """Mean of n seeds, their sample standard deviation (nan for one), lowest and highest."""

    mean: float
    deviation: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return number(self.mean) + (f" ± {number(self.deviation, 2)}" if self.n > 1 else "")


def spread(values: Sequence[float] | pd.Series[float]) -> Spread:
    """The spread of finite values; without any, nan and n = 0."""
    kept = np.asarray(values, dtype=float)
    kept = kept[np.isfinite(kept)]
    if not kept.size:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    deviation = float(kept.std(ddof=1)) if kept.size > 1 else math.nan
    return Spread(float(kept.mean()), deviation, float(kept.min()), float(kept.max()), int(kept.size))


def over_seeds(frame: pd.DataFrame, style: Style, x: str, y: str, error: str = "") -> Series | None:
    """One series of a frame's rows: the mean over seeds at each ``x`` with the band of lowest to highest.

    With a single seed and an ``error`` column, the band is one standard error on both sides.
    """
    rows = frame[np.isfinite(frame[y].astype(float)) & np.isfinite(frame[x].astype(float))]
    if rows.empty:
        return None
    xs, ys, lows, highs, tips = [], [], [], [], []
    for at, group in rows.groupby(x, sort=True):
        found = spread(group[y])
        low, high = found.low, found.high
        margin = float(group[error].astype(float).iloc[0]) if error and found.n == 1 else math.nan
        if math.isfinite(margin):
            low, high = found.mean - margin, found.mean + margin
        xs.append(float(at))  # type: ignore[arg-type]
        ys.append(found.mean)
        lows.append(low)
        highs.append(high)
        tips.append(tip(style.label, x, float(at), found, margin))  # type: ignore[arg-type]
    return Series(style=style, x=xs, y=ys, low=lows, high=highs, tips=tips)


def tip(label: str, x: str, at: float, found: Spread, margin: float) -> str:
    """The tooltip of a point."""
    spread_text = f" (seeds {number(found.low)} … {number(found.high)}, n={found.n})" if found.n > 1 else ""
    error_text = f" ± {number(margin, 2)}" if math.isfinite(margin) else ""
    return f"{label}, {x.replace('_', ' ')} {number(at)}: {number(found.mean, 5)}{error_text}{spread_text}"


def welch(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(difference of means second - first, low, high) by Welch's t; nan ends where a side has fewer than two values."""
    a, b = (np.asarray(v, dtype=float) for v in (first, second))
    difference = float(b.mean() - a.mean())
    if min(a.size, b.size) < 2:
        return difference, math.nan, math.nan
    interval = stats.ttest_ind(b, a, equal_var=False).confidence_interval(level)
    return difference, float(interval.low), float(interval.high)
