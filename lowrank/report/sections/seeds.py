"""Variability over seeds."""

from __future__ import annotations

import pandas as pd

from lowrank.report.figure import Figure, Missing, Section
from lowrank.report.plot.axes import number
from lowrank.report.plot.charts import Style
from lowrank.report.plot.forest import Forest, IntervalMark
from lowrank.report.sections.overview import final_rows
from lowrank.report.sections.perplexity import evaluation
from lowrank.report.source import ReportSource, of_pairs
from lowrank.report.summary import spread
from lowrank.report.tables import Table
from lowrank.report.trajectories import finite


def build(source: ReportSource) -> Section:
    """Return each seed's final loss, and the variation of every metric over seeds."""
    section = Section(
        name="seeds",
        title="Variability over seeds",
        lead="How much of a difference between methods a second training run would explain.",
    )
    final = (
        finite(final_rows(source), "validation_loss")
        if len(source.checkpoints)
        else source.checkpoints
    )
    counts = source.runs.groupby("scale")["seed"].nunique()
    if not (counts > 1).any():
        section.blocks.append(
            Missing(
                reason="no scale has two seeds, so the variation over seeds is unknown",
                command="lowrank study run FILE   (after seeds: [0, 1, 2] in the study file)",
            )
        )
        return section
    single = [scale for scale in source.scales if counts[scale] < 2]
    panels = []
    for scale in [s for s in source.scales if s not in single]:
        rows = final[final["scale"] == scale]
        lines = [
            (s.label, estimates(rows[rows["series"] == s.key], s))
            for s in source.styles(rows["series"])
        ]
        if lines:
            panels.append(
                Forest(title=scale, rows=lines, x_label="final validation loss, nats per token")
            )
    section.blocks.append(
        Figure(
            name="seeds",
            title="Final validation loss, seed by seed",
            panels=panels,
            protocol=evaluation(source),
            query=source.command("checkpoints"),
            caption="One marker per seed."
            + (f" Not shown, for they have one seed: {', '.join(single)}." if single else ""),
            table=table(source, final),
        )
    )
    return section


def estimates(rows: pd.DataFrame, style: Style) -> list[IntervalMark]:
    """Return one estimate for each seed, without an interval."""
    found = []
    for seed, value in zip(rows["seed"], rows["validation_loss"], strict=True):
        found.append(
            IntervalMark(
                style,
                float(value),
                float(value),
                float(value),
                f"{style.label}, seed {seed}: {number(float(value), 5)}",
            )
        )
    return found


def table(source: ReportSource, final: pd.DataFrame) -> Table:
    """Return mean, deviation, lowest and highest over seeds of the final loss and of every metric
    at the last step.
    """
    rows, ends = source.aggregates, dict(zip(final["run_id"], final["step"], strict=True))
    # a barrier between two runs belongs to the pair
    rows = rows[rows["protocol"].eq(source.preset) & ~of_pairs(rows)]
    last = rows[rows["step"] == rows["run_id"].map(ends)]
    losses = final.assign(metric="validation_loss", value=final["validation_loss"])
    both = pd.concat(
        [
            losses[["metric", "scale", "series", "value"]],
            last[["metric", "scale", "series", "value"]],
        ]
    )
    lines = []
    for (metric, scale, series), group in both.groupby(["metric", "scale", "series"], sort=False):
        found = spread(group["value"])
        if found.n > 1:
            lines.append(
                (metric, scale, series, found.mean, found.deviation, found.low, found.high, found.n)
            )
    frame = pd.DataFrame(
        lines,
        columns=[
            "metric",
            "scale",
            "method",
            "mean",
            "standard_deviation",
            "lowest",
            "highest",
            "seeds",
        ],
        dtype=object,
    )
    return Table(
        name="seeds",
        title="Spread over seeds at the last checkpoint",
        frame=frame,
        query=source.command("aggregates"),
        method_column="method",
    )
