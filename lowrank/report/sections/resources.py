"""Parameters, memory, time and throughput."""

from __future__ import annotations

import pandas as pd

from lowrank.report.figure import Figure, Missing, Section
from lowrank.report.plot.forest import Forest, IntervalMark
from lowrank.report.source import ReportSource
from lowrank.report.summary import spread
from lowrank.report.tables import Table

MIB = 2.0**20
SHOWN = (
    ("optimizer_state_bytes", "optimizer state, MiB", MIB),
    ("peak_memory_bytes", "peak memory, MiB", MIB),
    ("tokens_per_second", "tokens a second", 1.0),
)


def build(source: ReportSource) -> Section:
    """Return memory and throughput of each method."""
    section = Section(
        name="resources",
        title="Memory and throughput",
        lead="Weights, gradients and optimizer state are counted from the tensors; peak memory and throughput "
        "are measured, and depend on the machine.",
    )
    runs = source.runs
    panels = []
    for column, label, unit in SHOWN:
        for scale in source.scales:
            panel = forest(source, runs[runs["scale"] == scale], column, label, unit, scale)
            if panel:
                panels.append(panel)
    if not panels:
        section.blocks.append(
            Missing(
                reason="no run has recorded its memory or throughput",
                command="lowrank study run FILE --only train",
            )
        )
        return section
    section.blocks.append(
        Figure(
            name="resources",
            title="Memory and throughput",
            panels=panels,
            caption="Mean over seeds; bars span the seeds.",
            protocol="recorded during training",
            query=source.command("run_costs"),
            table=table(source),
        )
    )
    return section


def forest(
    source: ReportSource, rows: pd.DataFrame, column: str, label: str, unit: float, scale: str
) -> Forest | None:
    """Return one quantity at one scale, or None where no run has it."""
    lines = []
    for style in source.styles(rows["series"]):
        found = spread(pd.to_numeric(rows[rows["series"] == style.key][column]) / unit)
        if found.n:
            lines.append(
                (
                    style.label,
                    [
                        IntervalMark(
                            style,
                            found.mean,
                            found.low,
                            found.high,
                            f"{style.label} at {scale}: {found} {label}",
                        )
                    ],
                )
            )
    return (
        Forest(title=f"{label} · {scale}", rows=lines, x_label=label, limits=(0.0, 0.0))
        if lines
        else None
    )


def table(source: ReportSource) -> Table:
    """Return the means over seeds of everything that is counted or measured."""
    columns = {
        "parameters_total": "parameters",
        "parameters_trainable": "trainable",
        "parameter_bytes": "weights, MiB",
        "gradient_bytes": "gradients, MiB",
        "optimizer_state_bytes": "optimizer state, MiB",
        "peak_memory_bytes": "peak memory, MiB",
        "tokens_per_second": "tokens a second",
        "train_seconds": "training, s",
    }
    lines = []
    for scale in source.scales:
        for style in source.styles():
            rows = source.runs[
                (source.runs["scale"] == scale) & (source.runs["series"] == style.key)
            ]
            values = [cell(rows, column) for column in columns]
            if len(rows):
                rank = rows["rank"].dropna()
                lines.append(
                    (
                        scale,
                        style.key,
                        int(rank.iloc[0]) if len(rank) else None,
                        rows["precision"].iloc[0],
                        *values,
                    )
                )
    frame = pd.DataFrame(
        lines, columns=["scale", "method", "rank", "precision", *columns], dtype=object
    )
    headings = ["scale", "method", "rank", "precision", *columns.values()]
    return Table(
        name="resources",
        title="What each method costs",
        frame=frame,
        headings=headings,
        query=source.command("run_costs"),
        method_column="method",
    )


def cell(rows: pd.DataFrame, column: str) -> float | int | None:
    """Return the mean over seeds: bytes in MiB, counts as integers."""
    found = spread(pd.to_numeric(rows[column]))
    if not found.n:
        return None
    if column.endswith("_bytes"):
        return found.mean / MIB
    return round(found.mean) if column.startswith("parameters") else found.mean
