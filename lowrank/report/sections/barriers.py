"""Barriers: between consecutive checkpoints of one run (CCBH) and between methods (IMBH) with the seed null."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lowrank.report.axes import number
from lowrank.report.charts import Heat
from lowrank.report.figure import Block, Figure, Missing, Note, Section
from lowrank.report.identity import series_key
from lowrank.report.source import Source
from lowrank.report.summary import spread
from lowrank.report.tables import Table
from lowrank.report.trajectories import Quantity, finite, notes, pick, slug, trajectory_figures, words

MOMENTS = 3  # steps at which a matrix is shown


def build(source: Source) -> Section:
    """Both kinds of barrier."""
    section = Section(
        name="barriers",
        title="Barriers",
        lead="Highest loss on the straight line between two checkpoints, minus the mean of its ends (the "
        "published definition, which may be negative).",
    )
    rows = source.aggregates
    consecutive = rows[rows["metric"] == "ccbh"]
    section.blocks += consecutive_figures(source, consecutive)
    section.blocks += trajectory_figures(
        source,
        rows,
        [Quantity("ccbh", "CCBH", level=0.0), Quantity("ccbh_excess", "CCBH over the chord", level=0.0)],
        name="ccbh",
        title="Consecutive-checkpoint barriers over training",
        caption="The excess over the chord is 0 for a straight line.",
    )
    between = rows[rows["metric"].str.startswith("imbh") & rows["reference_method"].notna()]
    section.blocks += matrix_figures(source, between)
    if consecutive.empty:
        section.blocks.append(Missing(reason="no consecutive checkpoints have been interpolated", command="lowrank measure FILE"))
    if between.empty:
        section.blocks.append(Missing(reason="no two methods have been interpolated", command="lowrank measure FILE"))
    return section


def consecutive_figures(source: Source, rows: pd.DataFrame) -> list[Figure]:
    """CCBH as a heat map, method by step."""
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
                    [f"{s.label}, up to step {t}: {number(v)}" for t, v in zip(steps, line, strict=True)]
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
    """A mean, or None where there is none."""
    return float(means[key]) if key in means.index else None


def matrix_figures(source: Source, rows: pd.DataFrame) -> list[Block]:
    """Method by method at a few steps, for each metric and protocol."""
    blocks: list[Block] = []
    for metric, of_metric in sorted(rows.groupby("metric"), key=lambda pair: (len(str(pair[0])), pair[0])):
        for place, (way, part) in enumerate(source.ways(of_metric, "metric")):
            if finite(part).empty:
                continue
            folded = place > 0 or metric != "imbh"
            blocks.append(
                Figure(
                    name=slug(str(metric)) + (f"-{slug(way)}" if place else ""),
                    panels=matrices(source, finite(part)),
                    folded=folded,
                    title=f"Barriers between methods: {words(str(metric)).replace('imbh', 'IMBH')}"
                    + (f" ({way})" if place else ""),
                    caption="Off the diagonal: two methods, same seed. On the diagonal, the null: one method, "
                    "two seeds (empty where the study has one seed).",
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
    """Whether a pair is one method at two seeds."""
    return reference(rows) == rows["series"]


def reference(rows: pd.DataFrame) -> pd.Series[str]:
    """The other series of each pair."""
    names = [series_key(str(m), str(v or "")) for m, v in zip(rows["reference_method"], rows["reference_variant"], strict=True)]
    return pd.Series(names, index=rows.index, dtype=object)


def matrices(source: Source, rows: pd.DataFrame) -> list[Heat]:
    """Symmetric matrices at :data:`MOMENTS` steps of each scale, one colour scale a scale."""
    panels = []
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
                    now.rename(columns={"series": "other", "other": "series"})[["series", "other", "value"]],
                ]
            )
            means = both.groupby(["series", "other"])["value"].mean()
            values = [[cell(means, (a.key, b.key)) for b in styles] for a in styles]
            tips = [
                [f"{a.label} – {b.label}, step {step}: {number(v)}" for b, v in zip(styles, line, strict=True)]
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
                    diverging=limits[0] < -0.25 * limits[1],
                    figures=True,
                    column_styles=styles,
                    cell_height=30.0,
                )
            )
    return panels


def initialisation(rows: pd.DataFrame) -> list[str]:
    """How many pairs start from the same weights."""
    pairs, shared = len(rows), int(rows["shared_initialisation"].sum())
    return [f"{shared} of {pairs} pairs share their initialisation; the others differ by symmetry as well"]


def pair_table(source: Source, rows: pd.DataFrame, name: str) -> Table:
    """Every pair with its barrier."""
    lines = []
    for (scale, series, other, step), group in rows.assign(other=reference(rows)).groupby(
        ["scale", "series", "other", "step"], sort=True
    ):
        found = spread(group["value"])
        if found.n:
            lines.append(
                (scale, series, other, step, found.mean, found.deviation if np.isfinite(found.deviation) else None, found.n)
            )
    frame = pd.DataFrame(
        lines, columns=["scale", "method", "reference", "step", "mean", "standard_deviation", "pairs"], dtype=object
    )
    return Table(
        name=name, title="Barriers between methods", frame=frame, query=source.command("aggregates"), method_column="method"
    )
