"""Colours, markers and fonts of the report as tokens.

The page maps a token to a CSS variable, a picture to a hex value. Line colours are Okabe and Ito's
palette for colour-blind readers, lightened for the dark theme where the contrast requires it; the
first slot is the text colour of the page. Every slot also has a distinct marker, so that nothing
depends on colour alone. Heat maps use cividis (Nuñez, Anderton, Renslow 2018) and, around zero, a
blue-to-orange scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LIGHT = {
    "paper": "#ffffff",
    "raised": "#f6f7f9",
    "ink": "#1b1f27",
    "muted": "#5c6473",
    "grid": "#e3e6ec",
    "axis": "#9aa2b1",
    "accent": "#0b5fa5",
    "warn": "#a8320a",
    "void": "#eceef2",
    "slot0": "#1b1f27",
    "slot1": "#0072b2",
    "slot2": "#d98200",
    "slot3": "#009e73",
    "slot4": "#c25c97",
    "slot5": "#c94f00",
    "slot6": "#3fa3dc",
    "slot7": "#a89a00",
    "step0": "#b3c2d3",
    "step1": "#86a3c3",
    "step2": "#4f7fae",
    "step3": "#2a5c8f",
    "step4": "#0b3763",
}
DARK = {
    "paper": "#14171d",
    "raised": "#1c2029",
    "ink": "#e8ebf1",
    "muted": "#a2abbb",
    "grid": "#2c323d",
    "axis": "#667085",
    "accent": "#6cb6f5",
    "warn": "#ff9b73",
    "void": "#252a34",
    "slot0": "#f2f4f8",
    "slot1": "#3d9be0",
    "slot2": "#f0b040",
    "slot3": "#22c795",
    "slot4": "#e39ac4",
    "slot5": "#ef7f45",
    "slot6": "#8fd0f7",
    "slot7": "#e8dd55",
    "step0": "#46566d",
    "step1": "#5f7fa3",
    "step2": "#7fa6d0",
    "step3": "#abcbec",
    "step4": "#e3effc",
}
SLOTS = 8  # number of distinct styles of methods
STEPS = 5  # shades of one colour, early to late
MARKERS = ("circle", "square", "triangle", "diamond", "wedge", "cross", "plus", "star")
DASHES = ("", "5 3", "1.5 2.5", "7 2 1.5 2")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"

CIVIDIS = (
    "#00224e",
    "#123570",
    "#3b496c",
    "#575d6d",
    "#707173",
    "#8a8678",
    "#a59c74",
    "#c3b369",
    "#e1cc55",
    "#fee838",
)
DIVERGING = (
    "#08519c",
    "#3f83bd",
    "#85b4d6",
    "#c6dcea",
    "#f2f1ee",
    "#f7d9b9",
    "#ecb070",
    "#d07c2a",
    "#8f4a06",
)


@dataclass(frozen=True)
class Ramp:
    """A continuous colour scale over [low, high]; both are positive if it is logarithmic."""

    stops: tuple[str, ...]
    low: float
    high: float
    log: bool = False

    def color(self, value: float) -> str:
        """Return the hex colour of ``value``; values outside the range get the end colours."""
        if self.log and value <= 0:
            return self.stops[0]
        low, high, value = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
        return self.shade(0.5 if high <= low else min(1.0, max(0.0, (value - low) / (high - low))))

    def shade(self, share: float) -> str:
        """Return the hex colour at the fraction ``share`` (0 … 1) of the scale."""
        place = share * (len(self.stops) - 1)
        left = min(int(place), len(self.stops) - 2)
        return blend(self.stops[left], self.stops[left + 1], place - left)


def blend(first: str, second: str, share: float) -> str:
    """Return the colour at the fraction ``share`` between two hex colours, in sRGB."""
    a, b = channels(first), channels(second)
    return "#" + "".join(f"{round(x + (y - x) * share):02x}" for x, y in zip(a, b, strict=True))


def channels(color: str) -> tuple[int, int, int]:
    """Return red, green and blue of ``#rrggbb``, each 0 … 255."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def luminance(color: str) -> float:
    """Return the relative luminance of WCAG 2, from 0 (black) to 1 (white)."""
    linear = [
        c / 3294.6 if c <= 10.31 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels(color)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_on(color: str) -> str:
    """Return the text colour, dark or white, that is easier to read on ``color``."""
    return "#ffffff" if luminance(color) < 0.22 else "#14171d"


def css_variables(theme: dict[str, str]) -> str:
    """Return the tokens of a theme as CSS custom properties."""
    return "".join(f"--{name}:{value};" for name, value in theme.items())
