"""Axes: positions of ticks, their labels, and the formatting of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

MINUS = "\u2212"


@dataclass(frozen=True)
class Axis:
    """A mapping from data to pixels; ``start`` may be greater than ``end`` (y axes)."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of ``value``."""
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """Return about ``count`` round values inside the axis."""
        return (
            log_ticks(self.low, self.high, count)
            if self.log
            else linear_ticks(self.low, self.high, count)
        )


def axis_covering(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    pad: float = 0.05,
    include: Sequence[float] = (),
) -> Axis:
    """Return an axis that covers the finite ``values`` with a margin of the fraction ``pad``.

    A logarithmic axis covers only the positive values. ``include`` holds further values to cover.
    """
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
    """Return multiples of 1, 2, 2.5 or 5 times a power of ten."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) + 0.0 for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Return powers of ten, thinned, or complemented by multiples, to about ``count`` values."""
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
    """Return a tick's label, with enough digits to distinguish the ticks.

    If the ticks of an axis are small, all are written as powers of ten.
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
    """Return a value as text for people, with ``digits`` significant digits.

    Non-finite values are written by name, missing ones as a dash.
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
    """Return scientific notation with a real multiplication sign: 3.1×10⁻⁵."""
    mantissa, power = f"{value:.{digits}e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{trim(mantissa)}×10{raised}".replace("-", MINUS)


def trim(text: str) -> str:
    """Return ``text`` without trailing zeros after the decimal point."""
    return text.rstrip("0").rstrip(".") if "." in text else text


def text_width(text: str, size: float = 11.0) -> float:
    """Return the estimated width of ``text`` in pixels, in a common sans-serif font."""
    return 0.6 * size * len(text)
