"""Render a scene as PNG with matplotlib's Agg canvas, from the same primitives as the SVG."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from lowrank.report.plot import theme
from lowrank.report.plot.scene import Label, Mark, Scene, Shape, outline

SCALE = 2.0  # pixels of the picture per pixel of the scene


def png(scene: Scene) -> bytes:
    """Return the scene as PNG in the light theme on white, at twice its size."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi = 72.0 * SCALE  # a scene pixel is a point
    figure = Figure(
        figsize=(scene.width / 72.0, scene.height / 72.0), dpi=dpi, facecolor=theme.LIGHT["paper"]
    )
    FigureCanvasAgg(figure)
    for order, item in enumerate(scene.items):
        figure.add_artist(artist(item, scene, order), clip=False)
    out = BytesIO()
    figure.savefig(
        out, format="png", dpi=dpi, metadata={"Software": None}, pil_kwargs={"compress_level": 4}
    )
    return out.getvalue()


def artist(item: Shape | Mark | Label, scene: Scene, order: int) -> Any:
    """Return an item of the scene as a matplotlib artist in pixels of the picture."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.text import Text
    from matplotlib.transforms import Affine2D

    place = Affine2D().scale(SCALE, -SCALE).translate(0, scene.height * SCALE)
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
    """Return the hex value of a token in the light theme, or 'none' for an empty token."""
    return "none" if not token else theme.LIGHT.get(token, token)
