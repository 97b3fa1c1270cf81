"""Render a scene as PNG and PDF with matplotlib, from the same primitives as the SVG."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from lowrank.report.plot import theme
from lowrank.report.plot.scene import Label, Mark, Scene, Shape, outline

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

SCALE = 2.0  # pixels of the PNG for a pixel of the scene
POINTS = 72.0  # per inch; a pixel of the scene is a point
# Levels below compress as fast, higher ones save 15% of the bytes for a third more time.
COMPRESSION = 3


def draw(scene: Scene) -> Figure:
    """Build a matplotlib figure of ``scene`` in the light theme, a point for each of its pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import Affine2D

    figure = Figure(
        figsize=(scene.width / POINTS, scene.height / POINTS),
        dpi=POINTS * SCALE,
        facecolor=theme.LIGHT["paper"],
    )
    FigureCanvasAgg(figure)
    inches = Affine2D().translate(0, -scene.height).scale(1 / POINTS, -1 / POINTS)
    place = inches + figure.dpi_scale_trans
    for order, item in enumerate(scene.items):
        figure.add_artist(artist(item, place, order), clip=False)
    return figure


def png(figure: Figure) -> bytes:
    """Encode a figure of :func:`draw` as PNG, at twice the size of the scene."""
    import numpy as np
    from PIL import Image

    canvas: Any = figure.canvas
    canvas.draw()
    out = BytesIO()
    # The paper is opaque: without the alpha channel a quarter less is encoded.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(
        out, format="png", dpi=(figure.dpi, figure.dpi), compress_level=COMPRESSION
    )
    return out.getvalue()


def pdf(figure: Figure) -> bytes:
    """Encode a figure of :func:`draw` as PDF, with its texts as text.

    The same figure gives the same bytes: they hold no date.
    """
    out = BytesIO()
    figure.savefig(out, format="pdf", metadata={"CreationDate": None})
    return out.getvalue()


def artist(item: Shape | Mark | Label, place: Transform, order: int) -> Any:
    """Make the matplotlib artist of a primitive; ``place`` maps the scene onto the figure."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.text import Text

    if isinstance(item, Label):
        return Text(
            item.x,
            item.y,
            item.text,
            color=color(item.color),
            fontsize=item.size,
            va="center",
            rotation=90 if item.rotate else 0,
            ha={"start": "left", "middle": "center", "end": "right"}[item.anchor],
            transform=place,
            zorder=order,
            fontweight="bold" if item.bold else "normal",
            rotation_mode="anchor",
            parse_math=False,
        )
    if isinstance(item, Mark):
        if item.shape == "circle":
            path = Path.circle((item.x, item.y), item.size / 2)
            return PathPatch(
                path, facecolor=color(item.color), edgecolor="none", transform=place, zorder=order
            )
        points, filled = outline(item)
        item = Shape(
            points=points,
            closed=filled,
            fill=item.color if filled else "",
            stroke="" if filled else item.color,
            width=1.6,
        )
    vertices = [*item.points, item.points[0]] if item.closed else list(item.points)
    dashes = (
        (0, [float(part) / max(item.width, 1.0) for part in item.dash.split()])
        if item.dash
        else "-"
    )
    return PathPatch(
        Path(vertices, closed=item.closed),
        facecolor=color(item.fill),
        edgecolor=color(item.stroke),
        linewidth=item.width if item.stroke else 0,
        linestyle=dashes,
        alpha=item.opacity,
        transform=place,
        zorder=order,
        joinstyle="round",
        capstyle="butt",
    )


def color(token: str) -> str:
    """Return the hex value of a token in the light theme; 'none' paints nothing."""
    return "none" if not token else theme.LIGHT.get(token, token)
