"""Forest charts: one row per entry, a marker with the bar of its interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lowrank.report.plot.axes import Axis, axis_covering, text_width, tick_text
from lowrank.report.plot.charts import TITLE_HEIGHT, WIDTH, Style, centre_inside, titled
from lowrank.report.plot.scene import Label, Mark, Scene, Shape


@dataclass(frozen=True)
class IntervalMark:
    """One value with an interval; equal ends mean that there is none."""

    style: Style
    value: float
    low: float
    high: float
    tip: str


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Values with intervals, in rows over one axis; a row may hold several.

    ``level`` draws a dashed vertical line.
    """

    title: str
    rows: Sequence[tuple[str, Sequence[IntervalMark]]]
    x_label: str
    level: float | None = None
    level_label: str = ""
    log_x: bool = False
    limits: tuple[float, float] | None = None

    def scene(self) -> Scene:
        """Draw the panel."""
        pitch = [max(18.0, 9.0 * len(intervals) + 5) for _, intervals in self.rows]
        top = TITLE_HEIGHT + (16.0 if self.level_label else 6.0)
        bottom = top + sum(pitch)
        scene = titled(self.title, WIDTH, bottom + 42.0, f"{self.title}: {self.x_label}")
        left = 10.0 + max((text_width(name) for name, _ in self.rows), default=0.0)
        drawn = [
            v for _, intervals in self.rows for e in intervals for v in (e.value, e.low, e.high)
        ]
        include = tuple(self.limits or ()) + (() if self.level is None else (self.level,))
        x = axis_covering(drawn, left, WIDTH - 14, log=self.log_x, include=include)
        ticks = x.ticks(5)
        for tick in ticks:
            scene.line((x(tick), top), (x(tick), bottom), "grid")
            scene.add(Label(x=x(tick), y=bottom + 12, text=tick_text(tick, ticks), anchor="middle"))
        if self.level is not None and (self.level > 0 or not self.log_x):
            scene.line(
                (x(self.level), top - 2), (x(self.level), bottom), "axis", width=1.3, dash="4 3"
            )
            if self.level_label:
                end = "end" if x(self.level) > (left + WIDTH) / 2 else "start"
                scene.add(
                    Label(x=x(self.level), y=top - 8, text=self.level_label, anchor=end, size=9.5)
                )
        scene.add(
            Label(
                x=centre_inside((left + WIDTH - 14) / 2, self.x_label),
                y=bottom + 29,
                text=self.x_label,
                anchor="middle",
            )
        )
        y = top
        for (name, intervals), height in zip(self.rows, pitch, strict=True):
            scene.add(Label(x=left - 8, y=y + height / 2, text=name, anchor="end", color="ink"))
            for place, interval in zip(
                row_offsets(len(intervals), y, height), intervals, strict=True
            ):
                draw_interval(scene, interval, x, place)
            y += height
        return scene


def row_offsets(count: int, top: float, height: float) -> Iterable[float]:
    """Return the vertical centres of ``count`` intervals within a row."""
    return (top + height / 2 + (i - (count - 1) / 2) * 9.0 for i in range(count))


def draw_interval(scene: Scene, interval: IntervalMark, x: Axis, y: float) -> None:
    """Draw a marker and its interval."""
    style = interval.style
    if not math.isfinite(interval.value) or (x.log and interval.value <= 0):
        return
    if (
        interval.high > interval.low
        and math.isfinite(interval.low)
        and math.isfinite(interval.high)
    ):
        low = max(interval.low, x.low)
        scene.add(
            Shape(
                points=((x(low), y), (x(interval.high), y)),
                stroke=style.color,
                width=1.6,
                series=style.key,
            )
        )
    scene.add(
        Mark(
            x=x(interval.value),
            y=y,
            shape=style.marker,
            color=style.color,
            size=7,
            title=interval.tip,
            series=style.key,
        )
    )
