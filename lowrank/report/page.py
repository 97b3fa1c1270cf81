"""Render sections into one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lowrank import __version__
from lowrank.report.figure import Figure, Section, key_svg
from lowrank.report.plot import theme
from lowrank.report.plot.charts import Style
from lowrank.report.plot.scene import Scene
from lowrank.report.tables import Table


def html(
    *,
    title: str,
    lead: str,
    facts: Sequence[tuple[str, str]],
    styles: Sequence[Style],
    sections: Sequence[Section],
    footer: str,
) -> str:
    """Return the report as one HTML document.

    All texts are escaped; only drawings, style sheet and script are inserted as they are.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=False, lstrip_blocks=True
    )
    template = environment.from_string(resource("page.html"))
    return template.render(
        title=f"{title} · lowrank",
        heading=title,
        lead=lead,
        facts=facts,
        styles=styles,
        sections=sections,
        footer=footer,
        version=__version__,
        style=Markup(stylesheet()),
        script=Markup(resource("page.js")),
        keys={style.key: sample(style) for style in styles},
        sample=sample,
        svg=svg,
        kind=kind,
        marked=marked,
    )


def resource(name: str) -> str:
    """Return the text of a file next to this module."""
    return files("lowrank.report").joinpath(name).read_text(encoding="utf-8")


def stylesheet() -> str:
    """Return the CSS variables of the themes, followed by the rules of the page."""
    light, dark = theme.css_variables(theme.LIGHT), theme.css_variables(theme.DARK)
    return (
        f":root{{--font:{theme.FONT};{light}color-scheme:light}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}color-scheme:dark}}}}"
        f"@media screen{{:root[data-theme=dark]{{{dark}color-scheme:dark}}}}\n"
        + resource("page.css")
    )


def svg(scene: Scene) -> Markup:
    """Return a panel as inline SVG; the scene escapes its texts."""
    return Markup(scene.svg())


def sample(style: Style) -> Markup:
    """Return the legend sample of a style."""
    return Markup(key_svg(style))


def kind(block: Any) -> str:
    """Return the class name of a block, for the template."""
    return type(block).__name__


def marked(table: Table) -> int:
    """Return the index of the column whose cells show their method's marker, or -1 for none."""
    columns = [str(c) for c in table.frame.columns]
    return columns.index(table.method_column) if table.method_column in columns else -1


def figures(sections: Sequence[Section]) -> list[Figure]:
    """Return all figures of the report."""
    return [block for section in sections for block in section.blocks if isinstance(block, Figure)]


def tables(sections: Sequence[Section]) -> list[Table]:
    """Return all tables of the report, including those under figures."""
    found = []
    for section in sections:
        for block in section.blocks:
            table = block.table if isinstance(block, Figure) else block
            if isinstance(table, Table):
                found.append(table)
    return found
