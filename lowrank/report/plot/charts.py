"""Kinds of panel, each turning data into a scene.

:class:`XY` shows curves and points, :class:`Heat` a matrix of colours; estimates with intervals in
rows are in :mod:`lowrank.report.plot.forest`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lowrank.report.plot import theme
from lowrank.report.plot.axes import Axis, axis_covering, number, text_width, tick_text
from lowrank.report.plot.scene import Label, Mark, Scene, Shape

WIDTH = 360.0
TITLE_HEIGHT = 26.0
MANY_POINTS = 60  # a curve with more points has no markers


@dataclass(frozen=True, kw_only=True)
class Style:
    """The appearance of one series in a report; ``color`` is a theme token or a hex colour."""

    key: str
    label: str
    color: str
    marker: str = "circle"
    dash: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """The points of one series in order of x, with an optional band; ``tips`` are the tooltips."""

    style: Style
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    tips: Sequence[str] = ()
    line: bool = True
    markers: bool = True

    def finite(self) -> list[int]:
        """Return the indices of points with finite coordinates."""
        return [
            i
            for i, (x, y) in enumerate(zip(self.x, self.y, strict=True))
            if math.isfinite(x) and math.isfinite(y)
        ]


@dataclass(frozen=True, kw_only=True)
class XY:
    """Curves or points over two axes.

    ``level`` draws a dashed horizontal line, ``diagonal`` the line y = x.
    """

    title: str
    series: Sequence[Series]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    level: float | None = None
    diagonal: bool = False
    height: float = 240.0

    def scene(self) -> Scene:
        """Draw the panel."""
        scene = titled(
            self.title, WIDTH, self.height, f"{self.title}: {self.y_label} over {self.x_label}"
        )
        y_values = [v for s in self.series for part in (s.y, s.low, s.high) for v in part]
        x_values = [v for s in self.series for v in s.x]
        if self.diagonal:
            x_values = y_values = [*x_values, *y_values]
        log_y = self.log_y and any(v > 0 for v in y_values)
        bottom = self.height - 40.0
        y = axis_covering(
            y_values,
            bottom,
            TITLE_HEIGHT + 8,
            log=log_y,
            include=() if self.level is None else (self.level,),
        )
        ticks = y.ticks(5)
        left = 24.0 + max((text_width(tick_text(t, ticks)) for t in ticks), default=20.0)
        x = axis_covering(x_values, left, WIDTH - 12, log=self.log_x, pad=0.03)
        draw_axes(scene, x, y, self.x_label, self.y_label)
        if self.level is not None:
            scene.line((x.start, y(self.level)), (x.end, y(self.level)), "axis", dash="4 3")
        if self.diagonal:
            scene.line((x(x.low), y(x.low)), (x(x.high), y(x.high)), "axis", dash="4 3")
        for series in self.series:
            draw_band(scene, series, x, y)
        for series in self.series:
            draw_series(scene, series, x, y)
        return scene


def centre_inside(x: float, text: str) -> float:
    """Return the position nearest to ``x`` at which ``text``, centred, stays inside the panel."""
    half = text_width(text) / 2 + 6
    return max(half, min(x, WIDTH - half)) if 2 * half < WIDTH else WIDTH / 2


def titled(title: str, width: float, height: float, label: str) -> Scene:
    """Return an empty panel with its title."""
    scene = Scene(width, height, label)
    scene.add(Label(x=2, y=12, text=title, size=12.5, color="ink", bold=True))
    return scene


def draw_axes(scene: Scene, x: Axis, y: Axis, x_label: str, y_label: str) -> None:
    """Draw grid lines, tick labels and axis labels."""
    ticks = y.ticks(5)
    for tick in ticks:
        scene.line((x.start, y(tick)), (x.end, y(tick)), "grid")
        scene.add(Label(x=x.start - 6, y=y(tick), text=tick_text(tick, ticks), anchor="end"))
    ticks = x.ticks(6)
    for tick in ticks:
        scene.line((x(tick), y.start), (x(tick), y.start + 4), "axis")
        scene.add(Label(x=x(tick), y=y.start + 13, text=tick_text(tick, ticks), anchor="middle"))
    scene.line((x.start, y.start), (x.end, y.start), "axis")
    scene.add(
        Label(
            x=centre_inside((x.start + x.end) / 2, x_label),
            y=y.start + 29,
            text=x_label,
            anchor="middle",
        )
    )
    scene.add(Label(x=8, y=(y.start + y.end) / 2, text=y_label, anchor="middle", rotate=True))


def drawable(series: Series, y: Axis) -> list[int]:
    """Return the indices of finite points that the axis can show."""
    return [i for i in series.finite() if series.y[i] > 0 or not y.log]


def draw_band(scene: Scene, series: Series, x: Axis, y: Axis) -> None:
    """Draw the band between ``low`` and ``high``."""
    kept = [
        i
        for i in drawable(series, y)
        if series.low and math.isfinite(series.low[i]) and math.isfinite(series.high[i])
    ]
    kept = [i for i in kept if series.low[i] > 0 or not y.log]
    if len(kept) < 2 or all(series.low[i] == series.high[i] for i in kept):
        return
    upper = [(x(series.x[i]), y(series.high[i])) for i in kept]
    lower = [(x(series.x[i]), y(series.low[i])) for i in reversed(kept)]
    scene.add(
        Shape(
            points=(*upper, *lower),
            closed=True,
            fill=series.style.color,
            opacity=0.16,
            series=series.style.key,
        )
    )


def draw_series(scene: Scene, series: Series, x: Axis, y: Axis) -> None:
    """Draw the line and the markers of a series.

    Rows without a value are not part of the series, so the line runs straight across a gap.
    """
    style, kept = series.style, drawable(series, y)
    points = tuple((x(series.x[i]), y(series.y[i])) for i in kept)
    if series.line and len(points) > 1:
        scene.add(
            Shape(points=points, stroke=style.color, width=1.8, dash=style.dash, series=style.key)
        )
    if not series.markers or len(points) > MANY_POINTS:
        return
    size = 6.5 if len(points) <= 25 else 4.5
    for i, (px, py) in zip(kept, points, strict=True):
        if not series.line and series.low:
            spread = Shape(
                points=((px, y(series.low[i])), (px, y(series.high[i]))),
                stroke=style.color,
                width=1.2,
                series=style.key,
            )
            scene.add(spread)
        tip = series.tips[i] if series.tips else f"{style.label}: {number(series.y[i])}"
        scene.add(
            Mark(
                x=px,
                y=py,
                shape=style.marker,
                color=style.color,
                size=size,
                title=tip,
                series=style.key,
            )
        )


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A matrix of colours: ``values[row][column]``, None if absent.

    ``diverging`` centres the colour scale on zero.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    tips: Sequence[Sequence[str]]
    x_label: str = ""
    y_label: str = ""
    limits: tuple[float, float] | None = None
    diverging: bool = False
    log: bool = False  # logarithmic colours for positive values; 0 gets the lowest colour
    figures: bool = False  # write the numbers into the cells where they fit
    column_styles: Sequence[Style] = ()  # columns are labelled with these methods' markers
    cell_height: float = 20.0

    def scene(self) -> Scene:
        """Draw the panel."""
        cell = (
            max(self.cell_height, 150.0 / max(1, len(self.rows)))
            if len(self.rows) < 8
            else max(9.0, min(self.cell_height, 190.0 / len(self.rows)))
        )
        left = (
            12.0
            + (14.0 if self.y_label else 0.0)
            + max((text_width(r) for r in self.rows), default=0.0)
        )
        top, height = TITLE_HEIGHT + 2.0, cell * len(self.rows)
        scene = titled(
            self.title,
            WIDTH,
            top + height + (72.0 if self.x_label else 58.0),
            f"{self.title}: heat map",
        )
        width = (WIDTH - 8 - left) / max(1, len(self.columns))
        ramp = self.ramp()
        for r, row in enumerate(self.values):
            for c, value in enumerate(row):
                self.cell(
                    scene,
                    (left + c * width, top + r * cell, width, cell),
                    value,
                    self.tips[r][c],
                    ramp,
                )
        self.names(scene, left, top, width, cell)
        self.key(scene, ramp, left, top + height + (46.0 if self.x_label else 32.0))
        return scene

    def ramp(self) -> theme.Ramp:
        """Return the colour scale over the finite values."""
        finite = [v for row in self.values for v in row if v is not None and math.isfinite(v)] or [
            0.0
        ]
        low, high = self.limits or (min(finite), max(finite))
        if self.log:
            positive = [v for v in (*finite, low) if v > 0]
            return (
                theme.Ramp(theme.CIVIDIS, min(positive), high, log=True)
                if positive
                else theme.Ramp(theme.CIVIDIS, low, high)
            )
        if self.diverging:
            reach = max(abs(low), abs(high)) or 1.0
            return theme.Ramp(theme.DIVERGING, -reach, reach)
        return theme.Ramp(theme.CIVIDIS, low, high)

    def cell(
        self,
        scene: Scene,
        box: tuple[float, float, float, float],
        value: float | None,
        tip: str,
        ramp: theme.Ramp,
    ) -> None:
        """Draw one cell; an absent value leaves it empty, a non-finite one is written by name."""
        x, y, w, h = box
        absent = value is None
        fill = "void" if value is None or not math.isfinite(value) else ramp.color(value)
        gap = 0.6 if min(w, h) > 6 else 0.15
        scene.rect(x + gap, y + gap, w - 2 * gap, h - 2 * gap, fill=fill, title=tip)
        text = "" if absent else number(value, 3 if w > 34 else 2)
        if self.figures and text and h >= 13 and text_width(text, 9.5) < w - 2:
            color = theme.text_on(fill) if fill.startswith("#") else "muted"
            scene.add(
                Label(x=x + w / 2, y=y + h / 2, text=text, anchor="middle", size=9.5, color=color)
            )

    def names(self, scene: Scene, left: float, top: float, width: float, cell: float) -> None:
        """Draw row and column names, thinned where they would overlap."""
        every = max(1, math.ceil(12.0 / cell))
        for r, name in enumerate(self.rows):
            if r % every == 0:
                scene.add(Label(x=left - 6, y=top + (r + 0.5) * cell, text=name, anchor="end"))
        bottom = top + cell * len(self.rows)
        need = max((text_width(c, 10.5) for c in self.columns), default=0.0) + 6
        every = max(1, math.ceil(need / width)) if width else 1
        for c, style in enumerate(self.column_styles):
            scene.add(
                Mark(
                    x=left + (c + 0.5) * width,
                    y=bottom + 12,
                    shape=style.marker,
                    color=style.color,
                    size=8,
                    title=style.label,
                )
            )
        for c, name in enumerate(self.columns if not self.column_styles else ()):
            if c % every == 0:
                scene.add(
                    Label(
                        x=left + (c + 0.5) * width,
                        y=bottom + 12,
                        text=name,
                        anchor="middle",
                        size=10.5,
                    )
                )
        if self.x_label:
            scene.add(
                Label(x=(left + WIDTH - 8) / 2, y=bottom + 28, text=self.x_label, anchor="middle")
            )
        if self.y_label:
            scene.add(
                Label(x=8, y=(top + bottom) / 2, text=self.y_label, anchor="middle", rotate=True)
            )

    def key(self, scene: Scene, ramp: theme.Ramp, left: float, y: float) -> None:
        """Draw the colour scale with its end values."""
        span, pieces = min(150.0, WIDTH - 8 - left - 110.0), 40
        start = left + 52
        for i in range(pieces):
            scene.rect(
                start + span * i / pieces,
                y,
                span / pieces + 0.3,
                7,
                fill=ramp.shade((i + 0.5) / pieces),
            )
        scene.add(Label(x=start - 6, y=y + 3.5, text=number(ramp.low, 3), anchor="end", size=10))
        scene.add(Label(x=start + span + 6, y=y + 3.5, text=number(ramp.high, 3), size=10))
