"""Downstream scores by category, with standard errors and chance levels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from lowrank.predict.features import primary_rows
from lowrank.report.figure import Block, Figure, Missing, Section
from lowrank.report.identity import series_key
from lowrank.report.plot.axes import number
from lowrank.report.plot.charts import XY, Style
from lowrank.report.plot.forest import Forest, IntervalMark
from lowrank.report.source import ReportSource
from lowrank.report.summary import quantile
from lowrank.report.tables import Table
from lowrank.report.trajectories import finite, seed_series, slug


def build(source: ReportSource) -> Section:
    """Return means by category at the last step, the mean over tasks during training, and every
    task.
    """
    section = Section(
        name="downstream",
        title="Downstream",
        lead="Zero-shot scores through lm-evaluation-harness: each answer is scored by the likelihood that the model gives it. The "
        "dashed line is chance; bars are one standard error over the items of the tasks.",
    )
    scores = finite(source.query("downstream"))
    if scores.empty:
        section.blocks.append(
            Missing(
                reason="no checkpoint has been evaluated downstream",
                command="lowrank evaluate FILE",
            )
        )
        return section
    for place, (way, rows) in enumerate(source.ways(scores, "task")):
        section.blocks += protocol_blocks(source, rows, way, folded=place > 0)
    return section


def protocol_blocks(
    source: ReportSource, rows: pd.DataFrame, way: str, *, folded: bool
) -> list[Block]:
    """Return all figures and tables of one protocol."""
    main, suffix = primary_rows(rows), f"-{slug(way)}" if folded else ""
    last = main[main["step"] == main.groupby("run_id")["step"].transform("max")]
    common: dict[str, Any] = {
        "protocol": source.describe(rows),
        "query": source.command("downstream"),
        "folded": folded,
    }
    label = f" ({way})" if folded else ""
    blocks: list[Block] = [
        Figure(
            name=f"downstream{suffix}",
            title=f"Scores by category at the last checkpoint{label}",
            panels=category_panels(source, last),
            columns=min(3, max(2, len(source.scales))),
            caption="Unweighted mean over the tasks of a category and over seeds, ± one standard error.",
            table=score_table(source, last, f"downstream{suffix}"),
            **common,
        )
    ]
    blocks += paired_figure(source, last, suffix, common, label)
    means = main.groupby(["series", "scale", "seed", "run_id", "step"], as_index=False)[
        "value"
    ].mean()
    panels = [
        XY(title=scale, series=series, x_label="step", y_label="mean over tasks")
        for scale in source.scales
        if (series := seed_series(source, means[means["scale"] == scale], "step", "value"))
    ]
    blocks.append(
        Figure(
            name=f"downstream_training{suffix}",
            title=f"Mean over tasks during training{label}",
            panels=panels,
            legend=source.styles(means["series"]),
            caption="Unweighted mean over all tasks, mean over seeds; the band spans the seeds.",
            **common,
        )
    )
    others = rows[rows["step"] == rows.groupby("run_id")["step"].transform("max")]
    if len(others) > len(last):
        blocks.append(beyond_accuracy(source, others, f"downstream_all{suffix}"))
    return blocks


def paired_figure(
    source: ReportSource, last: pd.DataFrame, suffix: str, common: dict[str, Any], label: str
) -> list[Figure]:
    """Return differences to the baseline on the same items; nothing where no single items are
    stored.

    ``last`` has the primary scores at the last step, which determine the metrics that are shown.
    """
    rows = against_baseline(source, last)
    if rows.empty:
        return []
    panels = [
        Forest(
            title=scale,
            rows=[
                (s.label, [difference(part[part["series"] == s.key], s)])
                for s in source.styles(part["series"])
            ],
            x_label=f"score minus that of {source.baseline}, mean over tasks",
            level=0.0,
        )
        for scale in source.scales
        if len(part := rows[rows["scale"] == scale])
    ]
    query = source.command("downstream_methods", method="METHOD", reference=source.baseline)
    return [
        Figure(
            name=f"downstream_against{suffix}",
            title=f"Against {source.baseline} on the same items{label}",
            panels=panels,
            caption="At the last checkpoint, mean over tasks, with 95% intervals from the paired differences over items and, where "
            "there are several, seeds: what makes an item easy or hard for both methods cancels. Few seeds widen them.",
            table=paired_table(
                source, rows, f"downstream_against{suffix}".replace("-", "_"), query
            ),
            **{**common, "query": query},
        )
    ]


def against_baseline(source: ReportSource, last: pd.DataFrame) -> pd.DataFrame:
    """Return the differences of every other series to the baseline, task by task, of primary
    metrics only.
    """
    known = last[["protocol_id", "task", "metric", "category"]].drop_duplicates()
    if source.baseline not in set(last["series"]):
        return known.iloc[:0]
    (method, variant), *others = source.recipes
    given = {"reference": method, "reference_variant": variant}
    found = [
        source.query("downstream_methods", method=m, variant=v, **given).assign(
            series=series_key(m, v)
        )
        for m, v in others
    ]
    found = [rows for rows in found if len(rows)]
    return (
        pd.concat(found).merge(known, on=["protocol_id", "task", "metric"])
        if found
        else known.iloc[:0]
    )


def paired_table(source: ReportSource, rows: pd.DataFrame, name: str, query: str) -> Table:
    """Return a table of each task's difference with its errors."""
    headings = {
        "scale": "scale",
        "category": "category",
        "task": "task",
        "metric": "metric",
        "series": "method",
        "seeds": "seeds",
        "n": "items",
        "mean": "score",
        "reference_mean": source.baseline,
        "difference": "difference",
        "items_error": "error over items",
        "seeds_error": "error over seeds",
        "standard_error": "error",
    }
    frame = rows[list(headings)]
    return Table(
        name=name,
        title=f"Differences to {source.baseline} on the same items",
        frame=frame.astype(object).where(frame.notna(), None),
        method_column="series",
        headings=list(headings.values()),
        query=query,
    )


def difference(rows: pd.DataFrame, style: Style) -> IntervalMark:
    """Return the mean difference over tasks with a 95% interval; tasks have separate items, so
    their errors are taken as independent.
    """
    tasks = rows.set_index("task")[["difference", "standard_error", "items_error", "seeds"]].astype(
        float
    )
    # The part of the variance that comes from seeds.
    between = (tasks["standard_error"] ** 2 - tasks["items_error"] ** 2).clip(lower=0)
    mean, total = float(tasks["difference"].mean()), float((tasks["standard_error"] ** 2).sum())
    reach = (
        quantile(total, between.to_numpy(), tasks["seeds"].to_numpy() - 1)
        * math.sqrt(total)
        / len(tasks)
    )
    low, high = (mean - reach, mean + reach) if np.isfinite(reach) else (mean, mean)
    counts = f"{len(tasks)} tasks, {int(rows['seeds'].max())} seeds"
    tip = f"{style.label}: {number(mean, 3)} ({number(low, 3)} … {number(high, 3)}; {counts})"
    return IntervalMark(style, mean, low, high, tip)


def category_panels(source: ReportSource, rows: pd.DataFrame) -> list[Forest]:
    """Return one panel for each scale and category, and the mean over all tasks where there are
    several categories.
    """
    panels = []
    groups = [(str(c), g) for c, g in rows.groupby("category", sort=True)]
    groups += [("all tasks", rows)] if len(groups) > 1 else []
    for category, of_category in groups:
        for scale in [s for s in source.scales if s in set(of_category["scale"])]:
            group = of_category[of_category["scale"] == scale]
            lines = [
                (s.label, [estimate(group[group["series"] == s.key], s, category)])
                for s in source.styles(group["series"])
            ]
            chance = group.drop_duplicates("task")["chance"].astype(float)
            level = float(chance.mean()) if chance.notna().all() and len(chance) else None
            metrics = ", ".join(dict.fromkeys(group["metric"]))
            panels.append(
                Forest(
                    title=f"{category.replace('_', ' ')} · {scale}",
                    rows=lines,
                    x_label=metrics,
                    level=level,
                    level_label="chance",
                )
            )
    return panels


def estimate(rows: pd.DataFrame, style: Style, what: str) -> IntervalMark:
    """Return the mean over tasks and seeds; seeds share the items of a task, so their errors are
    taken as common to them.
    """
    by_task = rows.groupby("task")
    means, errors = by_task["value"].mean(), by_task["standard_error"].mean()
    mean = float(means.mean())
    error = math.sqrt(float((errors**2).sum())) / len(errors) if errors.notna().all() else math.nan
    low, high = (mean - error, mean + error) if np.isfinite(error) else (mean, mean)
    tip = f"{style.label}, {what}: {number(mean)} ± {number(error, 2)} ({len(means)} tasks, {rows['seed'].nunique()} seeds)"
    return IntervalMark(style, mean, low, high, tip)


def score_table(source: ReportSource, rows: pd.DataFrame, name: str) -> Table:
    """Return a table of every task at the last step: one row per task and scale, one column per
    method.
    """
    columns = [s.key for s in source.styles(rows["series"])]
    lines = []
    for scale in source.scales:
        for (category, task), group in rows[rows["scale"] == scale].groupby(
            ["category", "task"], sort=True
        ):
            scores = [with_error(group[group["series"] == key]) for key in columns]
            chance = float(group["chance"].astype(float).iloc[0])
            lines.append(
                (
                    scale,
                    category,
                    task,
                    group["metric"].iloc[0],
                    int(group["n"].iloc[0]),
                    chance if np.isfinite(chance) else None,
                    *scores,
                )
            )
    frame = pd.DataFrame(
        lines,
        columns=["scale", "category", "task", "metric", "items", "chance", *columns],
        dtype=object,
    )
    return Table(
        name=name,
        title="Downstream scores by task",
        frame=frame,
        query=source.command("downstream"),
        digits=3,
    )


def with_error(rows: pd.DataFrame) -> str | None:
    """Return the mean over seeds ± mean standard error as text."""
    if rows.empty:
        return None
    error = float(rows["standard_error"].astype(float).mean())
    return f"{float(rows['value'].mean()):.3f}" + (f" ± {error:.3f}" if np.isfinite(error) else "")


def beyond_accuracy(source: ReportSource, rows: pd.DataFrame, name: str) -> Figure:
    """Return a figure of the other metrics of the tasks, as points by method."""
    extra = rows[~rows.index.isin(primary_rows(rows).index)]
    panels = []
    for (metric, scale), group in extra.groupby(["metric", "scale"], sort=True):
        lines = [
            (s.label, [estimate(group[group["series"] == s.key], s, str(metric))])
            for s in source.styles(group["series"])
        ]
        panels.append(
            Forest(title=f"{metric} · {scale}", rows=lines, x_label=f"{metric}, mean over tasks")
        )
    columns = [
        "scale",
        "task",
        "metric",
        "filter",
        "series",
        "seed",
        "step",
        "value",
        "standard_error",
        "n",
        "task_version",
        "harness_version",
    ]
    frame = rows[columns].astype(object).where(rows[columns].notna(), None)
    table = Table(
        name=slug(name).replace("-", "_"),
        title="All downstream metrics",
        frame=frame,
        query=source.command("downstream"),
        method_column="series",
    )
    return Figure(
        name=name,
        title="Other metrics of the tasks",
        panels=panels,
        caption="Mean over tasks and seeds ± one standard error.",
        query=source.command("downstream"),
        protocol=source.describe(rows),
        folded=True,
        table=table,
    )
