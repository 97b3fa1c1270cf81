"""The contents of a report section: figures made of panels, tables, notes, and what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

from lowrank.report.plot.axes import text_width
from lowrank.report.plot.charts import XY, Heat, Style
from lowrank.report.plot.forest import Forest
from lowrank.report.plot.scene import Label, Mark, Scene, Shape, stack
from lowrank.report.tables import Table

Panel = XY | Heat | Forest
COLUMNS = 3


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Panels under one title.

    ``protocol`` and ``query`` are printed beneath them; ``table`` holds the numbers.
    """

    name: str
    title: str
    panels: Sequence[Panel]
    caption: str = ""
    legend: Sequence[Style] = ()
    protocol: str = ""
    query: str = ""
    table: Table | None = None
    notes: Sequence[str] = ()
    folded: bool = False  # collapsed on the page: another protocol of the figure before it
    columns: int = 0  # panels side by side on a wide page; 0: chosen by their number
    rows: Sequence[
        int
    ] = ()  # how many panels each group has, where every group begins a row of its own

    @property
    def across(self) -> int:
        """Number of panels side by side on a wide page."""
        if self.columns:
            return min(self.columns, COLUMNS)
        return 2 if len(self.panels) == 4 else min(COLUMNS, max(1, len(self.panels)))

    @cached_property
    def scenes(self) -> list[Scene]:
        """The panels as drawings."""
        return [panel.scene() for panel in self.panels]

    @property
    def groups(self) -> list[list[Scene]]:
        """The drawings in their groups; a single group if ``rows`` is empty."""
        scenes = iter(self.scenes)
        return [list(islice(scenes, count)) for count in self.rows or (len(self.scenes),)]

    def sheet(self) -> Scene:
        """Return title, legend and all panels on one canvas, for image files."""
        sheet = stack(self.groups, self.across, 14.0, 56.0 if self.legend else 34.0, self.title)
        sheet.add(Label(x=2, y=14, text=self.title, size=15, color="ink", bold=True))
        x = 4.0
        for style in self.legend:
            sheet.add(
                *key_items(style, x, 38.0), Label(x=x + 32, y=38, text=style.label, color="ink")
            )
            x += 44 + text_width(style.label)
        sheet.width = max(sheet.width, x)
        return sheet


def key_items(style: Style, x: float, y: float) -> list[Shape | Mark]:
    """Return the legend sample of a style: a line with its marker, 26 pixels wide."""
    line = Shape(points=((x, y), (x + 26, y)), stroke=style.color, width=1.8, dash=style.dash)
    return [line, Mark(x=x + 13, y=y, shape=style.marker, color=style.color, size=7.5)]


def key_svg(style: Style) -> str:
    """Return the legend sample of a style as a small SVG for the page."""
    sample = Scene(28, 14, style.label)
    sample.add(*key_items(style, 1, 7))
    return sample.svg()


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph; ``warning`` highlights it."""

    text: str
    warning: bool = False


@dataclass(frozen=True, kw_only=True)
class Missing:
    """The reason why there is nothing to show, and the command that would change this."""

    reason: str
    command: str


Block = Figure | Table | Note | Missing


@dataclass(kw_only=True)
class Section:
    """One chapter of the report."""

    name: str
    title: str
    lead: str = ""
    blocks: list[Block] = field(default_factory=list)

    @property
    def missing(self) -> list[Missing]:
        """The missing parts of the section."""
        return [b for b in self.blocks if isinstance(b, Missing)]

    @property
    def empty(self) -> bool:
        """Whether the section contains only notes and missing parts."""
        return not any(isinstance(b, Figure | Table) for b in self.blocks)
