"""Axes: where the ticks are, what they say, and how a number is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MINUS = "\u2212"


@dataclass(frozen=True)
class Axis:
    """A scale from data to pixels; ``start`` may be greater than ``end`` (y axes)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of ``value``."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About ``count`` round values inside the axis."""
        return (
            log_ticks(self.low, self.high, count)
            if self.log
            else linear_ticks(self.low, self.high, count)
        )


def fit(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    pad: float = 0.05,
    include: Sequence[float] = (),
) -> Axis:
    """An axis that holds the finite ``values`` (positive ones, if logarithmic) with a margin."""
    kept = [v for v in (*values, *include) if math.isfinite(v) and (v > 0 or not log)]
    low, high = (min(kept), max(kept)) if kept else (1.0, 10.0) if log else (0.0, 1.0)
    if log:
        if high / low < 1.2:
            low, high = low / 1.2, high * 1.2
        margin = (high / low) ** pad
        return Axis(low / margin, high * margin, start, end, log=True)
    if high - low < 1e-12 * max(1.0, abs(high)):
        reach = abs(high) * 0.1 or 1.0
        low, high = low - reach, high + reach
    margin = (high - low) * pad
    return Axis(low - margin, high + margin, start, end)


def linear_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten, thinned or filled with 2 and 5 to about ``count``."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [m * 10.0**d for d in decades for m in steps if low <= m * 10.0**d <= high]
        if len(ticks) >= min(3, count):
            break
    else:
        return [t for t in linear_ticks(low, high, count) if t > 0]
    stride = math.ceil(len(ticks) / max(1, count + 1))
    return ticks[::stride]


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick's label with the digits that tell the ticks apart; small ones of one axis are all
    written as powers of ten.
    """
    if value == 0:
        return "0"
    size, smallest = abs(value), min((abs(t) for t in ticks if t), default=abs(value))
    if size >= 1e6:
        return trim(f"{value / 1e6:.2f}") + "M"
    if size >= 1e4:
        return trim(f"{value / 1e3:.1f}") + "k"
    if size < 1e-3 or (smallest < 1e-3 and size < 0.1):
        return exponent(value, 1).replace(f"{MINUS}1×", MINUS).removeprefix("1×")
    gaps = [abs(b - a) for a, b in pairwise(ticks) if b != a]
    digits = max(0, -math.floor(math.log10(min([*gaps, size]) * 1.0001)))
    text = f"{value:.{min(6, digits + 1)}f}"
    return trim(text).replace("-", MINUS)


def number(value: float | None, digits: int = 4) -> str:
    """A value for people: ``digits`` significant digits, non-finite values by name, absent ones as
    a dash.
    """
    if value is None:
        return "–"
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "∞" if value > 0 else MINUS + "∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10 ** max(digits, 4):
        return f"{value:,.0f}".replace(",", "\u2009").replace("-", MINUS)
    if size < 1e-3:
        return exponent(value, max(1, digits - 2))
    size = float(f"{size:.{digits - 1}e}")  # 0.00996 to two digits is 0.010, not 0.0100
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:.{places}f}".replace("-", MINUS)


def exponent(value: float, digits: int) -> str:
    """Scientific notation with a real multiplication sign: 3.1×10⁻⁵."""
    mantissa, power = f"{value:.{digits}e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{trim(mantissa)}×10{raised}".replace("-", MINUS)


def trim(text: str) -> str:
    """Without trailing zeros behind the point."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def text_width(text: str, size: float = 11.0) -> float:
    """Estimated width in pixels of ``text`` in a common sans-serif face."""
    return 0.6 * size * len(text)
