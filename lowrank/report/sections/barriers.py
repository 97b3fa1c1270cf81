"""Barriers between consecutive checkpoints of one run (CCBH) and between methods (IMBH), with the
seed null.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lowrank.report.figure import Block, Figure, Missing, Note, Section
from lowrank.report.identity import series_key
from lowrank.report.plot.axes import number
from lowrank.report.plot.charts import XY, Heat, Series, Style
from lowrank.report.sections.further import others
from lowrank.report.source import ReportSource, of_pairs
from lowrank.report.summary import spread
from lowrank.report.tables import Table
from lowrank.report.trajectories import (
    Quantity,
    finite,
    notes,
    pick,
    slug,
    trajectory_figures,
    words,
)

MOMENTS = 3  # steps at which a matrix is shown


def build(source: ReportSource) -> Section:
    """Return the chapter with both kinds of barrier."""
    section = Section(
        name="barriers",
        title="Barriers",
        lead="Highest loss strictly between two checkpoints on the straight line through their weights, minus the mean loss of its "
        "two ends (the published definition, which may be negative): between consecutive checkpoints of one run (CCBH) and between "
        "two methods at one step (IMBH). The excess counts only what rises above the chord from end to end.",
    )
    rows = source.aggregates
    consecutive = rows[rows["metric"] == "ccbh"]
    section.blocks += consecutive_figures(source, consecutive)
    section.blocks += trajectory_figures(
        source,
        rows,
        [Quantity("ccbh", "CCBH", level=0.0)],
        name="ccbh",
        title="Consecutive-checkpoint barriers over training",
        caption="Mean over seeds; the band spans the seeds, or one standard error over examples where there is one seed.",
    )
    excess = trajectory_figures(
        source,
        rows,
        [Quantity("ccbh_excess", "excess over the chord", level=0.0)],
        name="ccbh_excess",
        title="Consecutive-checkpoint barriers over the chord",
        caption="0 where the loss does not rise above the straight line between its values at the two ends.",
    )
    section.blocks += [replace(figure, folded=True) for figure in excess]
    section.blocks += line_figures(source)
    section.blocks += others(source, "barriers", ("ccbh", "ccbh_excess"))
    between = rows[of_pairs(rows) & rows["reference_method"].notna()]
    section.blocks += matrix_figures(source, between)
    if consecutive.empty:
        section.blocks.append(
            Missing(
                reason="no consecutive checkpoints have been interpolated",
                command="lowrank measure FILE",
            )
        )
    if between.empty:
        section.blocks.append(
            Missing(reason="no two methods have been interpolated", command="lowrank measure FILE")
        )
    return section


def line_figures(source: ReportSource) -> list[Block]:
    """Return figures of the loss along the lines: of consecutive checkpoints over training, and
    between two methods at the end.
    """
    curves = source.query("curves")
    curves = finite(curves[curves["curve"].isin(["ccbh", "imbh"])], "mean")
    blocks: list[Block] = []
    for place, (way, part) in enumerate(source.ways(curves[curves["curve"] == "ccbh"], "curve")):
        panels = [
            XY(title=scale, series=series, x_label="step", y_label="loss, nats per token")
            for scale in source.scales
            if (
                series := [
                    s for style in source.styles(part["series"]) for s in path(part, style, scale)
                ]
            )
        ]
        blocks.append(
            Figure(
                name="ccbh_lines" + (f"-{slug(way)}" if place else ""),
                title="Loss from checkpoint to checkpoint" + (f" ({way})" if place else ""),
                panels=panels,
                legend=source.styles(part["series"]),
                caption="Each piece of a curve is the loss along the straight line from one checkpoint (a marker) to the next, "
                f"seed {int(part['seed'].min())}. A bump between two markers is a barrier.",
                protocol=source.describe(part),
                query=source.command("curves"),
                folded=place > 0,
            )
        )
    for place, (way, part) in enumerate(source.ways(curves[curves["curve"] == "imbh"], "curve")):
        blocks += between_figure(source, part, way, suffix=f"-{slug(way)}" if place else "")
    return blocks


def path(rows: pd.DataFrame, style: Style, scale: str) -> list[Series]:
    """Return the loss of one method along all its lines against the step, and the checkpoints on
    it; nothing where there is none.
    """
    mine = rows[(rows["series"] == style.key) & (rows["scale"] == scale)]
    mine = mine[mine["run_id"] == mine["run_id"].min()].sort_values(["step", "position"])
    if mine.empty:
        return []
    at = mine["reference_step"] + mine["offset_value"] * (mine["step"] - mine["reference_step"])
    ends = mine["offset_value"].isin([0.0, 1.0])
    line = Series(
        style=style, x=[float(v) for v in at], y=[float(v) for v in mine["mean"]], markers=False
    )
    tips = [
        f"{style.label}, step {number(s)}: {number(v)}"
        for s, v in zip(at[ends], mine.loc[ends, "mean"], strict=True)
    ]
    stops = Series(
        style=style,
        x=[float(v) for v in at[ends]],
        y=[float(v) for v in mine.loc[ends, "mean"]],
        tips=tips,
        line=False,
    )
    return [line, stops]


def between_figure(source: ReportSource, rows: pd.DataFrame, way: str, suffix: str) -> list[Block]:
    """Return a figure of the loss along the lines from the baseline to every other method at the
    last step, one panel per scale.
    """
    names = reference(rows)
    flipped = rows["series"] == source.baseline
    rows = rows.assign(
        other=names.where(~flipped, rows["series"]), mover=rows["series"].where(~flipped, names)
    )
    rows = rows.assign(place=rows["offset_value"].where(~flipped, 1.0 - rows["offset_value"]))
    rows = rows[
        (rows["other"] == source.baseline)
        & (rows["mover"] != source.baseline)
        & (rows["seed"] == rows["reference_seed"])
    ]
    rows = rows[rows["step"] == rows.groupby("scale")["step"].transform("max")]
    panels = []
    for scale in source.scales:
        mine = rows[rows["scale"] == scale]
        series = []
        for style in source.styles(mine["mover"]):
            means = mine[mine["mover"] == style.key].groupby("place")["mean"].mean()
            tips = [
                f"{style.label}, {number(a)} of the way: {number(v)}"
                for a, v in zip(means.index, means, strict=True)
            ]
            series.append(
                Series(style=style, x=[float(a) for a in means.index], y=list(means), tips=tips)
            )
        if series:
            x_label = f"α: 0 is {source.baseline}, 1 the method"
            panels.append(
                XY(title=scale, series=series, x_label=x_label, y_label="loss, nats per token")
            )
    if not panels:
        return []
    return [
        Figure(
            name=f"imbh_lines{suffix}",
            title=f"Loss from {source.baseline} to the other methods"
            + (f" ({way})" if suffix else ""),
            panels=panels,
            legend=source.styles(rows["mover"]),
            caption="At the last step, mean over seeds. How far a curve stands above its ends is the barrier.",
            protocol=source.describe(rows),
            query=source.command("curves"),
            folded=bool(suffix),
        )
    ]


def consecutive_figures(source: ReportSource, rows: pd.DataFrame) -> list[Figure]:
    """Return heat maps of CCBH, method by step."""
    figures = []
    for place, (way, rows_of_way) in enumerate(source.ways(rows, "metric")):
        part = finite(rows_of_way)
        panels = []
        for scale in source.scales:
            mine = part[part["scale"] == scale]
            if len(mine):
                styles, steps = source.styles(mine["series"]), sorted(set(mine["step"]))
                means = mine.groupby(["series", "step"])["value"].mean()
                values = [[cell(means, (style.key, step)) for step in steps] for style in styles]
                tips = [
                    [
                        f"{s.label}, up to step {t}: {number(v)}"
                        for t, v in zip(steps, line, strict=True)
                    ]
                    for s, line in zip(styles, values, strict=True)
                ]
                panels.append(
                    Heat(
                        title=scale,
                        rows=[s.label for s in styles],
                        columns=[str(s) for s in steps],
                        values=values,
                        tips=tips,
                        x_label="step of the later checkpoint",
                        diverging=True,
                        figures=True,
                    )
                )
        if panels:
            suffix = f"-{slug(way)}" if place else ""
            figures.append(
                Figure(
                    name=f"ccbh_map{suffix}",
                    title="CCBH by method and step" + (f" ({way})" if place else ""),
                    panels=panels,
                    caption="Barrier between each checkpoint and the one before, mean over seeds.",
                    protocol=source.describe(part),
                    query=source.command("aggregates"),
                    folded=place > 0,
                )
            )
    return figures


def cell(means: pd.Series[float], key: tuple[Any, ...]) -> float | None:
    """Return a mean, or None where there is none."""
    return float(means[key]) if key in means.index else None


def matrix_figures(source: ReportSource, rows: pd.DataFrame) -> list[Block]:
    """Return matrices of method by method at a few steps, for each metric and protocol."""
    blocks: list[Block] = []
    for metric, of_metric in sorted(
        rows.groupby("metric"), key=lambda pair: (len(str(pair[0])), pair[0])
    ):
        for place, (way, part) in enumerate(source.ways(of_metric, "metric")):
            if finite(part).empty:
                continue
            folded = place > 0 or metric != "imbh"
            blocks.append(
                Figure(
                    name=slug(str(metric)) + (f"-{slug(way)}" if place else ""),
                    panels=matrices(source, finite(part)),
                    columns=MOMENTS,
                    folded=folded,
                    title=f"Barriers between methods: {words(str(metric))}"
                    + (f" ({way})" if place else ""),
                    caption="Off the diagonal: two methods, same seed. On the diagonal, the null: one method, two seeds (empty "
                    "where a scale has one seed). A barrier between methods distinguishes them only as far as it exceeds the null.",
                    protocol=source.describe(part),
                    query=source.command("aggregates"),
                    notes=[*notes(part), *initialisation(part)],
                    table=pair_table(source, part, slug(str(metric))),
                    legend=source.styles([*part["series"], *reference(part)]),
                )
            )
            if metric == "imbh" and place == 0 and not is_null(finite(part)).any():
                blocks.append(
                    Note(
                        text="The diagonal is empty: a second seed gives the null (add it under seeds: in the "
                        "study file, then lowrank study run FILE)."
                    )
                )
    return blocks


def is_null(rows: pd.DataFrame) -> pd.Series[bool]:
    """Return whether a pair is one method at two seeds."""
    return reference(rows) == rows["series"]


def reference(rows: pd.DataFrame) -> pd.Series[str]:
    """Return the other series of each pair."""
    names = [
        series_key(str(m), str(v or ""))
        for m, v in zip(rows["reference_method"], rows["reference_variant"], strict=True)
    ]
    return pd.Series(names, index=rows.index, dtype=object)


def matrices(source: ReportSource, rows: pd.DataFrame) -> list[Heat]:
    """Return symmetric matrices at :data:`MOMENTS` steps of each scale; those of one scale share
    range and colours.
    """
    panels = []
    ranges = rows.groupby("scale")["value"].agg(["min", "max"])
    diverging = bool((ranges["min"] < -0.25 * ranges["max"]).any())
    for scale in source.scales:
        mine = rows[rows["scale"] == scale].assign(other=lambda r: reference(r))
        if mine.empty:
            continue
        styles = source.styles([*mine["series"], *mine["other"]])
        limits = (float(mine["value"].min()), float(mine["value"].max()))
        for step in pick(list(mine["step"]), MOMENTS):
            now = mine[mine["step"] == step]
            both = pd.concat(
                [
                    now[["series", "other", "value"]],
                    now.rename(columns={"series": "other", "other": "series"})[
                        ["series", "other", "value"]
                    ],
                ]
            )
            means = both.groupby(["series", "other"])["value"].mean()
            values = [[cell(means, (a.key, b.key)) for b in styles] for a in styles]
            tips = [
                [
                    f"{a.label} – {b.label}, step {step}: {number(v)}"
                    for b, v in zip(styles, line, strict=True)
                ]
                for a, line in zip(styles, values, strict=True)
            ]
            panels.append(
                Heat(
                    title=f"{scale}, step {step}",
                    rows=[s.label for s in styles],
                    columns=[s.label for s in styles],
                    values=values,
                    tips=tips,
                    limits=limits,
                    diverging=diverging,
                    figures=True,
                    column_styles=styles,
                    cell_height=30.0,
                )
            )
    return panels


def initialisation(rows: pd.DataFrame) -> list[str]:
    """Return a sentence that states how many pairs start from the same weights."""
    pairs, shared = len(rows), int(rows["shared_initialisation"].sum())
    return [
        f"{shared} of {pairs} pairs share their initialisation; the others differ by symmetry as well"
    ]


def pair_table(source: ReportSource, rows: pd.DataFrame, name: str) -> Table:
    """Return a table of every pair with its barrier."""
    lines = []
    for (scale, series, other, step), group in rows.assign(other=reference(rows)).groupby(
        ["scale", "series", "other", "step"], sort=True
    ):
        found = spread(group["value"])
        if found.n:
            lines.append(
                (
                    scale,
                    series,
                    other,
                    step,
                    found.mean,
                    found.deviation if np.isfinite(found.deviation) else None,
                    found.n,
                )
            )
    frame = pd.DataFrame(
        lines,
        columns=["scale", "method", "reference", "step", "mean", "standard_deviation", "pairs"],
        dtype=object,
    )
    return Table(
        name=name,
        title="Barriers between methods",
        frame=frame,
        query=source.command("aggregates"),
        method_column="method",
    )
