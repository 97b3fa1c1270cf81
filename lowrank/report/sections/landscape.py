"""Loss landscapes: curves along directions, sharpness and direction variance over training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lowrank.report.figure import Figure, Missing, Section
from lowrank.report.plot import theme
from lowrank.report.plot.axes import number
from lowrank.report.plot.charts import XY, Series, Style
from lowrank.report.sections.further import others
from lowrank.report.source import ReportSource
from lowrank.report.tables import Table
from lowrank.report.trajectories import Quantity, finite, pick, slug, trajectory_figures, words

CURVES = "landscape_"
CURVE_NAMES = {
    "landscape_random": "random directions",
    "landscape_trajectory_1": "direction of training",
    "landscape_trajectory_2": "second direction of training",
}
RANDOM = (
    Quantity("sharpness_random", "sharpness, random directions"),
    Quantity("direction_variance", "direction variance", log=True),
)
ALONG_TRAINING = tuple(
    quantity
    for k in (1, 2)
    for quantity in (
        Quantity(f"sharpness_trajectory_{k}", f"sharpness, component {k}"),
        Quantity(f"trajectory_share_{k}", f"share of component {k}"),
    )
)


def build(source: ReportSource) -> Section:
    """Return the curves, after the metrics that are computed from them."""
    section = Section(
        name="landscape",
        title="Loss landscape",
        lead="Loss around a checkpoint, walked along straight lines through its weights: random directions, the principal "
        "directions of the weights themselves (PCA k moves each matrix along its σₖ uₖ vₖᵀ), and the direction that training took. "
        "Sharpness is the mean rise of the loss over both sides of a line; direction variance, how much those rises differ.",
    )
    curves = source.query("curves")
    curves = finite(curves[curves["curve"].str.startswith(CURVES)], "mean")
    for curve, rows in sorted(
        curves.groupby("curve"),
        key=lambda pair: (not str(pair[0]).endswith("random"), len(str(pair[0])), str(pair[0])),
    ):
        shown: set[str] = set()
        for place, (way, part) in enumerate(source.ways(rows, "curve")):
            suffix = slug(way) if place else ""
            section.blocks += curve_figures(
                source, part, str(curve), suffix, folded=place > 0 and set(part["series"]) <= shown
            )
            shown |= set(part["series"])
    section.blocks.sort(key=lambda block: isinstance(block, Figure) and block.folded)
    section.blocks[:0] = trajectory_figures(
        source,
        source.aggregates,
        RANDOM,
        name="sharpness",
        title="Sharpness and direction variance over training",
        caption="Mean over seeds; the band spans the seeds, or one standard error over directions where there is one seed.",
    )
    principal = source.aggregates[source.aggregates["metric"].str.match(r"(sharpness|sigma)_pca")]
    section.blocks += trajectory_figures(
        source,
        principal,
        principal_quantities(principal),
        name="sharpness_pca",
        title="Sharpness along principal directions, and σ₁",
        caption="A single direction has no standard error; the band spans the seeds.",
    )
    section.blocks += trajectory_figures(
        source,
        source.aggregates,
        ALONG_TRAINING,
        name="sharpness_trajectory",
        title="Along the direction of training",
        caption="The direction is the principal component of a run's checkpoints; its share is that of their squared movement.",
    )
    shown = {*(q.metric for q in (*RANDOM, *ALONG_TRAINING)), *principal["metric"]}
    section.blocks += others(source, "landscape", shown)
    if section.empty:
        section.blocks.append(
            Missing(reason="no landscape has been measured", command="lowrank measure FILE")
        )
    return section


def principal_quantities(rows: pd.DataFrame) -> list[Quantity]:
    """Return the sharpness along each measured k, in ascending order, then σ."""
    names = sorted(
        set(rows["metric"]), key=lambda name: (name.startswith("sigma"), len(name), name)
    )
    return [Quantity(name, words(name), log=name.startswith("sharpness")) for name in names]


def last_panels(source: ReportSource, last: pd.DataFrame) -> list[XY]:
    """Return a panel per scale with the curve of each method at its last step."""
    return [
        XY(
            title=scale,
            series=series,
            x_label="offset α along the direction",
            y_label="loss − loss at 0",
        )
        for scale in source.scales
        if (series := method_series(source, last[last["scale"] == scale]))
    ]


def evolution_panels(source: ReportSource, rows: pd.DataFrame) -> list[list[XY]]:
    """Return by scale a panel per method with a curve per step."""
    return [
        [
            XY(
                title=f"{style.label} · {scale}",
                series=series,
                x_label="offset α",
                y_label="loss − loss at 0",
                height=210,
            )
            for style in source.styles(rows["series"])
            if (
                series := step_series(
                    rows[(rows["scale"] == scale) & (rows["series"] == style.key)]
                )
            )
        ]
        for scale in source.scales
    ]


def curve_figures(
    source: ReportSource, rows: pd.DataFrame, curve: str, suffix: str, *, folded: bool
) -> list[Figure]:
    """Return the curve of all methods at the last step, and of each method over training;
    ``suffix`` distinguishes other protocols.
    """
    seed = int(rows["seed"].min())
    rows = rows[rows["seed"] == seed]
    name = slug(curve).replace("-", "_") + (f"-{suffix}" if suffix else "")
    what = CURVE_NAMES.get(curve) or words(curve.removeprefix(CURVES)).replace(
        "PCA", "principal direction"
    )
    what += f" ({rows['protocol'].iloc[0]})" if suffix else ""
    common: dict[str, Any] = {"protocol": source.describe(rows), "query": source.command("curves")}
    last = rows[rows["step"] == rows.groupby("run_id")["step"].transform("max")]
    table = curve_table(source, last, name)
    band = (
        "The band is one standard error over directions." if rows["variance"].notna().any() else ""
    )
    title = f"Landscape at the last checkpoint: {what}"
    figures = [
        Figure(
            name=name,
            title=title,
            panels=last_panels(source, last),
            legend=source.styles(last["series"]),
            table=table,
            folded=folded,
            caption=f"Loss relative to the unperturbed checkpoint, seed {seed}. {band}",
            **common,
        )
    ]
    by_scale = evolution_panels(source, rows)
    evolution = [panel for panels in by_scale for panel in panels]
    if rows["step"].nunique() == 1:
        return figures  # one step: there is no evolution to show
    figures.append(
        Figure(
            name=f"{name}_steps",
            title=f"Landscape over training: {what}",
            panels=evolution,
            rows=[len(panels) for panels in by_scale if panels],
            caption=f"One line per checkpoint, relative to its own loss at offset 0, seed {seed}. {band}",
            folded=folded or not curve.endswith("random"),
            **common,
            legend=step_legend(evolution),
        )
    )
    return figures


def method_series(source: ReportSource, rows: pd.DataFrame) -> list[Series]:
    """Return one series per method, with its loss at offset 0 subtracted."""
    found = []
    for style in source.styles(rows["series"]):
        part = rows[rows["series"] == style.key].sort_values("offset_value")
        found.append(curve_series(part, style, centre(part)))
    return found


def centre(rows: pd.DataFrame) -> float:
    """Return the loss nearest to offset 0."""
    return float(rows["mean"].iloc[int(rows["offset_value"].abs().argmin())])


def step_series(rows: pd.DataFrame) -> list[Series]:
    """Return one series per checkpoint, at most :data:`theme.STEPS` of them."""
    steps, found = pick(list(rows["step"]), theme.STEPS), []
    for place, step in enumerate(steps):
        shade = round(place * (theme.STEPS - 1) / max(1, len(steps) - 1))
        style = Style(key=f"step {step}", label=f"step {step}", color=f"step{shade}")
        part = rows[rows["step"] == step].sort_values("offset_value")
        found.append(curve_series(part, style, centre(part)))
    return found


def curve_series(rows: pd.DataFrame, style: Style, zero: float) -> Series:
    """Return a curve with its standard error over directions."""
    y = rows["mean"].astype(float).to_numpy() - zero
    error = np.sqrt(
        rows["variance"].astype(float).to_numpy()
        / np.maximum(rows["n"].fillna(1).astype(float).to_numpy() - 1, 1)
    )
    tips = [
        f"{style.label}, α {number(a)}: loss {number(v, 5)}"
        + (f" ± {number(e, 2)}" if np.isfinite(e) else "")
        for a, v, e in zip(rows["offset_value"], rows["mean"], error, strict=True)
    ]
    x = [float(v) for v in rows["offset_value"]]
    return Series(style=style, x=x, y=list(y), low=list(y - error), high=list(y + error), tips=tips)


def step_legend(panels: list[XY]) -> list[Style]:
    """Return the shades of the steps, where all panels show the same ones."""
    sets = [[series.style for series in panel.series] for panel in panels]
    return sets[0] if sets and all(styles == sets[0] for styles in sets) else []


def curve_table(source: ReportSource, rows: pd.DataFrame, name: str) -> Table:
    """Return a table of the points of the curves at the last step."""
    columns = ["scale", "series", "step", "offset_value", "mean", "variance", "n"]
    return Table(
        name=name,
        title="Points of the curves",
        frame=rows[columns].astype(object).where(rows[columns].notna(), None),
        method_column="series",
        headings=[
            "scale",
            "method",
            "step",
            "offset",
            "mean loss",
            "variance over directions",
            "directions",
        ],
        query=source.command("curves"),
    )
