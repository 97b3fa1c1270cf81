"""Summarise values over seeds: means and spreads, as figures and tables show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from lowrank.report.plot.axes import number
from lowrank.report.plot.charts import Series, Style


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
    """Return the spread of the finite ``values``; without any, nan and n = 0."""
    kept = np.asarray(values, dtype=float)
    kept = kept[np.isfinite(kept)]
    if not kept.size:
        return Spread(math.nan, math.nan, math.nan, math.nan, 0)
    deviation = float(kept.std(ddof=1)) if kept.size > 1 else math.nan
    return Spread(
        float(kept.mean()), deviation, float(kept.min()), float(kept.max()), int(kept.size)
    )


def spreads(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Return the columns of :class:`Spread` for each group of rows.

    Rows whose ``value`` is not finite are ignored.
    """
    rows = frame[np.isfinite(frame[value].to_numpy(dtype=float))]
    grouped = rows.assign(**{value: rows[value].astype(float)}).groupby(list(by), sort=True)[value]
    found: pd.DataFrame = grouped.agg(
        mean="mean", deviation="std", low="min", high="max", n="size"
    ).reset_index()
    return found


def over_seeds(frame: pd.DataFrame, style: Style, x: str, y: str, error: str = "") -> Series | None:
    """Return one series: the mean over seeds at each ``x``, with a band from lowest to highest.

    With a single seed and an ``error`` column, the band is one standard error on both sides.
    Returns None if there is no finite value.
    """
    found = spreads(frame, [x], y)
    margins = dict(zip(frame[x], frame[error].astype(float), strict=True)) if error else {}
    return None if found.empty else series_of(found, margins, style, x)


def each_over_seeds(
    frame: pd.DataFrame, styles: Sequence[Style], x: str, y: str, error: str = ""
) -> list[Series]:
    """Return :func:`over_seeds` for the rows of each style, which its key in ``series`` marks.

    All of them are grouped at once, which takes a fraction of the time. Styles without a finite
    value are left out.
    """
    found = dict(iter(spreads(frame, ["series", x], y).groupby("series", sort=False)))
    margins: dict[str, dict[float, float]] = {}
    if error:
        errors = frame[error].astype(float)
        for key, at, margin in zip(frame["series"], frame[x], errors, strict=True):
            margins.setdefault(key, {})[at] = margin
    return [
        series_of(found[style.key], margins.get(style.key, {}), style, x)
        for style in styles
        if style.key in found
    ]


def series_of(found: pd.DataFrame, margins: Mapping[float, float], style: Style, x: str) -> Series:
    """Return the series of means in ``found``, rows of :func:`spreads` by ``x``.

    The band goes from the lowest to the highest seed; with a single seed it is the margin on both
    sides that ``margins`` has for this ``x``, if any.
    """
    lows, highs, tips = [], [], []
    for at, mean, low, high, n in found[[x, "mean", "low", "high", "n"]].itertuples(
        index=False, name=None
    ):
        margin = margins.get(at, math.nan) if n == 1 else math.nan
        lows.append(mean - margin if math.isfinite(margin) else low)
        highs.append(mean + margin if math.isfinite(margin) else high)
        spread_text = f" (seeds {number(low)} … {number(high)}, n={n})" if n > 1 else ""
        error_text = f" ± {number(margin, 2)}" if math.isfinite(margin) else ""
        tips.append(
            f"{style.label}, {x.replace('_', ' ')} {number(at)}: {number(mean, 5)}{error_text}{spread_text}"
        )
    return Series(
        style=style,
        x=[float(v) for v in found[x]],
        y=list(found["mean"]),
        low=lows,
        high=highs,
        tips=tips,
    )


def quantile(total: float, variances: ArrayLike, freedoms: ArrayLike, level: float = 0.95) -> float:
    """Return Student's t quantile for a sum of variances, some of which are estimated.

    ``total`` is the sum, ``variances`` are its estimated parts and ``freedoms`` their degrees of
    freedom. The effective degrees of freedom are Welch and Satterthwaite's; parts of the total
    without an estimate, or without a degree of freedom, count as known.
    """
    few, own = np.asarray(variances, dtype=float), np.asarray(freedoms, dtype=float)
    kept = (few > 0) & (own > 0)
    uncertain = float((few[kept] ** 2 / own[kept]).sum())
    freedom = total**2 / uncertain if uncertain else math.inf
    return float(stats.t.ppf((1 + level) / 2, freedom))


def welch(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Return (difference of means second - first, low, high) of Welch's t interval.

    The ends are nan if a side has fewer than two values.
    """
    a, b = (np.asarray(v, dtype=float) for v in (first, second))
    difference = float(b.mean() - a.mean())
    if min(a.size, b.size) < 2:
        return difference, math.nan, math.nan
    parts = np.array([a.var(ddof=1) / a.size, b.var(ddof=1) / b.size])
    error = math.sqrt(parts.sum())
    if error == 0:
        return difference, difference, difference
    reach = quantile(parts.sum(), parts, [a.size - 1, b.size - 1], level) * error
    return difference, difference - reach, difference + reach
