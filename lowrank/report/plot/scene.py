"""A drawing as a list of primitives in pixels (y downwards), and its rendering as SVG.

The report has its own small renderer instead of matplotlib's SVG for four reasons: panels are
separate and reflow on a phone; colours are CSS variables, so that both themes work; every mark has
its numbers as a tooltip; and a page of forty panels takes only some hundred kilobytes. PNG files
are made from the same scene (:mod:`.raster`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import groupby

from lowrank.report.plot import theme

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """An open or closed polyline.

    Colours are theme tokens or ``#rrggbb``; an empty colour paints nothing.
    """

    points: tuple[Point, ...]
    closed: bool = False
    stroke: str = ""
    fill: str = ""
    width: float = 1.0
    dash: str = ""
    opacity: float = 1.0
    title: str = ""
    series: str = ""


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A marker of :data:`theme.MARKERS` centred at (x, y), ``size`` pixels across."""

    x: float
    y: float
    shape: str
    color: str
    size: float = 6.0
    title: str = ""
    series: str = ""


@dataclass(frozen=True, kw_only=True)
class Label:
    """One line of text.

    ``anchor`` is start, middle or end; ``y`` is the vertical middle of the line.
    """

    x: float
    y: float
    text: str
    anchor: str = "start"
    size: float = 11.0
    color: str = "muted"
    bold: bool = False
    rotate: bool = False  # a quarter turn, read from below
    series: str = ""


Item = Shape | Mark | Label


@dataclass
class Scene:
    """Items on a canvas of ``width`` by ``height`` pixels; ``label`` is the text for screen
    readers.
    """

    width: float
    height: float
    label: str = ""
    items: list[Item] = field(default_factory=list)

    def add(self, *items: Item) -> None:
        """Draw ``items`` on top of the existing ones."""
        self.items.extend(items)

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        *,
        fill: str,
        title: str = "",
        stroke: str = "",
    ) -> None:
        """Draw a rectangle."""
        corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
        self.add(Shape(points=corners, closed=True, fill=fill, stroke=stroke, title=title))

    def line(
        self, start: Point, end: Point, color: str, width: float = 1.0, dash: str = ""
    ) -> None:
        """Draw a straight line."""
        self.add(Shape(points=(start, end), stroke=color, width=width, dash=dash))

    def svg(self) -> str:
        """Return the scene as an ``<svg>`` element for a page that defines the theme's
        variables.
        """
        box = f"0 0 {number(self.width)} {number(self.height)}"
        return (
            f'<svg viewBox="{box}" role="img" aria-label="{escape(self.label)}">{self.body()}</svg>'
        )

    def body(self) -> str:
        """Return the items as SVG, with those of one series in a group."""
        parts = []
        for series, items in groupby(self.items, key=lambda item: item.series):
            inner = "".join(element(item) for item in items)
            parts.append(f'<g data-series="{escape(series)}">{inner}</g>' if series else inner)
        return "".join(parts)


def outline(mark: Mark) -> tuple[tuple[Point, ...], bool]:
    """Return (points, filled) of a marker; circles have no outline and are drawn as circles."""
    r = mark.size / 2
    units: dict[str, tuple[tuple[Point, ...], bool]] = {
        "square": (((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)), True),
        "triangle": (((0, -1.1), (1.05, 0.8), (-1.05, 0.8)), True),
        "wedge": (((0, 1.1), (1.05, -0.8), (-1.05, -0.8)), True),
        "diamond": (((0, -1.25), (1.05, 0), (0, 1.25), (-1.05, 0)), True),
        "cross": (((-0.9, -0.9), (0.9, 0.9), (0, 0), (-0.9, 0.9), (0.9, -0.9)), False),
        "plus": (((0, -1.1), (0, 1.1), (0, 0), (-1.1, 0), (1.1, 0)), False),
        "star": (
            (
                (0, -1.3),
                (0.35, -0.35),
                (1.25, -0.35),
                (0.5, 0.25),
                (0.8, 1.15),
                (0, 0.6),
                (-0.8, 1.15),
                (-0.5, 0.25),
                (-1.25, -0.35),
                (-0.35, -0.35),
            ),
            True,
        ),
    }
    points, filled = units[mark.shape]
    return tuple((mark.x + r * x, mark.y + r * y) for x, y in points), filled


def element(item: Item) -> str:
    """Return one item as an SVG element."""
    if isinstance(item, Label):
        return text_element(item)
    if isinstance(item, Mark):
        if item.shape == "circle":
            shape = f'<circle cx="{number(item.x)}" cy="{number(item.y)}" r="{number(item.size / 2)}" style="fill:{paint(item.color)}"'
            return close(shape, "circle", item.title)
        points, filled = outline(item)
        color = {"fill": item.color} if filled else {"stroke": item.color, "width": 1.6}
        item = Shape(points=points, closed=filled, title=item.title, series=item.series, **color)  # type: ignore[arg-type]
    return shape_element(item)


def shape_element(item: Shape) -> str:
    """Return a polyline as an SVG path."""
    steps = " ".join(f"{number(x)} {number(y)}" for x, y in item.points)
    style = f"fill:{paint(item.fill)}"
    if item.stroke:
        style += f";stroke:{paint(item.stroke)};stroke-width:{number(item.width)}"
    if item.dash:
        style += f";stroke-dasharray:{item.dash}"
    if item.opacity < 1:
        style += f";opacity:{number(item.opacity)}"
    return close(
        f'<path d="M{steps}{"Z" if item.closed else ""}" style="{style}"', "path", item.title
    )


def text_element(item: Label) -> str:
    """Return a line of text; its baseline is a third of the font size below the middle."""
    x, y = number(item.x), number(item.y + 0.35 * item.size)
    anchor = "" if item.anchor == "start" else f' text-anchor="{item.anchor}"'
    weight = ' font-weight="600"' if item.bold else ""
    place = f'x="{x}" y="{y}"'
    if item.rotate:
        place = f'transform="translate({number(item.x + 0.35 * item.size)} {number(item.y)}) rotate(-90)"'
    return f'<text {place} font-size="{number(item.size)}"{anchor}{weight} style="fill:{paint(item.color)}">{escape(item.text)}</text>'


def close(opened: str, tag: str, title: str) -> str:
    """Return the element closed, with its tooltip inside."""
    return f"{opened}><title>{escape(title)}</title></{tag}>" if title else f"{opened}/>"


def paint(color: str) -> str:
    """Return a theme token as a CSS variable, and a hex colour unchanged."""
    if not color:
        return "none"
    return color if color.startswith("#") else f"var(--{color})"


def number(value: float) -> str:
    """Return a coordinate rounded to a tenth of a pixel, or finer if it is small."""
    return (
        f"{value:.2f}".rstrip("0").rstrip(".")
        if abs(value) < 3
        else f"{value:.1f}".rstrip("0").rstrip(".")
    )


def standalone(scene: Scene) -> str:
    """Return the scene as a standalone SVG file in the light theme."""
    style = f":root{{{theme.css_variables(theme.LIGHT)}}}text{{font-family:{theme.FONT}}}path,polyline{{stroke-linejoin:round}}"
    size = f'width="{number(scene.width)}" height="{number(scene.height)}" viewBox="0 0 {number(scene.width)} {number(scene.height)}"'
    paper = f'<rect width="100%" height="100%" style="fill:{paint("paper")}"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    label = f"<title>{escape(scene.label)}</title><style>{escape(style, quote=False)}</style>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{head}{label}{paper}{scene.body()}</svg>\n'


def stack(
    groups: Iterable[Sequence[Scene]], columns: int, gap: float, top: float, label: str
) -> Scene:
    """Return panels in rows on one canvas, with ``top`` pixels free above.

    Each group begins a new row of at most ``columns`` panels.
    """
    rows = [group[i : i + columns] for group in groups for i in range(0, len(group), columns)]
    width = max((sum(p.width for p in row) + gap * (len(row) - 1) for row in rows), default=0.0)
    sheet, y = Scene(width, 0.0, label), top
    for row in rows:
        x = 0.0
        for panel in row:
            sheet.add(*(moved(item, x, y) for item in panel.items))
            x += panel.width + gap
        y += max(panel.height for panel in row) + gap
    sheet.height = y
    return sheet


def moved(item: Item, dx: float, dy: float) -> Item:
    """Return a copy of ``item`` moved by (dx, dy)."""
    if isinstance(item, Shape):
        return replace(item, points=tuple((x + dx, y + dy) for x, y in item.points))
    return replace(item, x=item.x + dx, y=item.y + dy)
