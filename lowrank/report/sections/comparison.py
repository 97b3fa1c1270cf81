"""Two studies side by side: differences of what both have, with intervals over seeds."""

from __future__ import annotations

import math

import pandas as pd

from lowrank.predict.features import primary_rows
from lowrank.report.axes import number
from lowrank.report.charts import Estimate, Forest
from lowrank.report.figure import Figure, Missing, Note, Section
from lowrank.report.sections.overview import final_rows
from lowrank.report.source import Source
from lowrank.report.summary import spread, welch
from lowrank.report.tables import Table
from lowrank.report.trajectories import finite

COLUMNS = ["quantity", "scale", "series", "seed", "value"]


def build(source: Source, other: Source) -> Section:
    """Differences this minus other, of the final losses, metrics and scores."""
    section = Section(
        name="comparison",
        title=f"Against {other.name}",
        lead=f"{source.name} minus {other.name} at the last checkpoint of each run, for every scale and method that both have. "
        "Intervals are 95% by Welch's t over seeds; where a side has one seed there is none.",
    )
    table = differences(final_values(source), final_values(other))
    if table.empty:
        section.blocks.append(
            Missing(reason=f"{source.name} and {other.name} have no scale and method in common", command="lowrank study run FILE")
        )
        return section
    section.blocks += [Note(text=comparable(source, other)), figure(source, other, table)]
    return section


def figure(source: Source, other: Source, table: pd.DataFrame) -> Figure:
    """Differences of the losses as a figure, all differences as its table."""
    losses = table[table["quantity"] == "validation loss"]
    panels = [
        Forest(title=scale, rows=rows, x_label="difference of validation loss, nats a token", level=0.0)
        for scale in source.scales
        if (rows := estimates(source, losses[losses["scale"] == scale]))
    ]
    both = [source.name, other.name]
    return Figure(
        name="comparison",
        title="Difference of the final validation loss",
        panels=panels,
        query=f"{source.command('checkpoints')}; {other.command('checkpoints')}",
        protocol="validation loss of both studies",
        caption=f"Below zero, {source.name} has the lower loss.",
        table=Table(
            name="comparison",
            title=f"{source.name} minus {other.name}",
            frame=table.rename(columns={"series": "method"}).astype(object),
            method_column="method",
            query=source.command("aggregates"),
            headings=["quantity", "scale", "method", *both, "difference", "low", "high", "seeds", "seeds, other"],
        ),
    )


def estimates(source: Source, losses: pd.DataFrame) -> list[tuple[str, list[Estimate]]]:
    """One row a method of one scale."""
    rows = []
    for style in source.styles(losses["series"]):
        found = losses[losses["series"] == style.key].iloc[0]
        value, low, high = (math.nan if found[c] is None else float(found[c]) for c in ("difference", "low", "high"))
        tip = f"{style.label} at {found['scale']}: {number(value)} ({number(low)} … {number(high)})"
        rows.append((style.label, [Estimate(style, value, low, high, tip)]))
    return rows


def comparable(source: Source, other: Source) -> str:
    """Whether both were scored on the same text."""
    sets = [set(s.query("evaluation_sets")["sha256"]) for s in (source, other)]
    data = [set(s.runs["dataset_fingerprint"]) for s in (source, other)]
    if sets[0] == sets[1] and data[0] == data[1]:
        return "Both studies have the same data and evaluation set."
    return "The two studies differ in their data or evaluation set, so their losses are not of the same text."


def final_values(source: Source) -> pd.DataFrame:
    """Final loss, main-protocol metrics and mean score of each run, long."""
    final = finite(final_rows(source), "validation_loss") if len(source.checkpoints) else source.checkpoints
    parts = [final.assign(quantity="validation loss", value=final["validation_loss"] if len(final) else [])]
    last = dict(zip(final["run_id"], final["step"], strict=True)) if len(final) else {}
    metrics = source.aggregates
    metrics = metrics[metrics["protocol"].eq(source.preset) & ~metrics["metric"].str.startswith("imbh")]
    metrics = finite(metrics[metrics["step"] == metrics["run_id"].map(last)])
    parts.append(metrics.assign(quantity=metrics["metric"]))
    scores = finite(source.query("downstream"))
    scores = scores[scores["step"] == scores["run_id"].map(last)]
    scores = primary_rows(scores)
    parts += [scores.assign(quantity="score: " + scores["task"].astype(str))]
    return (
        pd.concat([part.reindex(columns=COLUMNS) for part in parts if len(part)])
        if any(len(p) for p in parts)
        else pd.DataFrame(columns=COLUMNS)
    )


def differences(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """One row for each quantity, scale and series of both."""
    by = ["quantity", "scale", "series"]
    right, lines = dict(list(theirs.groupby(by, sort=False))), []
    for key, mine in ours.groupby(by, sort=False):
        if key in right:
            difference, low, high = welch(right[key]["value"], mine["value"])
            a, b = spread(mine["value"]), spread(right[key]["value"])
            ends = (low, high) if math.isfinite(low) else (None, None)
            lines.append((*key, a.mean, b.mean, difference, *ends, a.n, b.n))
    return pd.DataFrame(lines, columns=[*by, "here", "there", "difference", "low", "high", "seeds", "seeds_other"], dtype=object)
