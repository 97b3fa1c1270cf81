"""Two studies side by side: differences of what both have, with intervals."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from lowrank.predict.features import primary_rows
from lowrank.report.figure import Block, Figure, Missing, Note, Section
from lowrank.report.plot.axes import number
from lowrank.report.plot.forest import Forest, IntervalMark
from lowrank.report.sections.overview import final_rows
from lowrank.report.source import ReportSource, of_pairs
from lowrank.report.summary import spread, welch
from lowrank.report.tables import Table
from lowrank.report.trajectories import finite

LOSS, SCORE = "validation loss", "mean score"
COLUMNS = ["quantity", "scale", "series", "seed", "value", "error", "protocol"]
SHOWN = (  # quantity, title, unit, what a value below zero means
    (LOSS, "Difference of the final validation loss", "nats per token", "has the lower loss"),
    (SCORE, "Difference of the mean downstream score", "mean over tasks", "has the lower score"),
)
DEVIATES = 1.959963984540054  # half width of a 95% interval, in standard errors


def build(source: ReportSource, other: ReportSource) -> Section:
    """Return the differences, this study minus the other, of final losses, metrics and scores."""
    section = Section(
        name="comparison",
        title=f"Against {other.name}",
        lead=f"{source.name} minus {other.name} at the last checkpoint of each run, for every scale and method that both have. "
        "Intervals are 95%: by Welch's t over seeds where both sides have several, else from the standard errors that were stored "
        "with the values (over items, directions or texts), where there are any.",
    )
    table = differences(final_values(source), final_values(other))
    if table.empty:
        section.blocks.append(
            Missing(
                reason=f"{source.name} and {other.name} have no scale and method in common",
                command="lowrank study run FILE",
            )
        )
        return section
    section.blocks.append(Note(text=comparable(source, other, table)))
    section.blocks += [*figures(source, other, table), full_table(source, other, table)]
    return section


def figures(source: ReportSource, other: ReportSource, table: pd.DataFrame) -> list[Block]:
    """Return figures of the differences of loss and mean score, one panel per scale."""
    found: list[Block] = []
    for quantity, title, unit, below in SHOWN:
        rows = table[table["quantity"] == quantity]
        panels = [
            Forest(title=scale, rows=lines, x_label=f"difference, {unit}", level=0.0)
            for scale in source.scales
            if (lines := estimates(source, rows[rows["scale"] == scale]))
        ]
        if panels:
            asked = "checkpoints" if quantity == LOSS else "downstream"
            found.append(
                Figure(
                    name="comparison_" + quantity.split()[1],
                    title=title,
                    panels=panels,
                    query=f"{source.command(asked)}; {other.command(asked)}",
                    protocol=f"{quantity} of both studies"
                    + (
                        ""
                        if rows["same_protocol"].all()
                        else "; not under one protocol for all methods: see the table"
                    ),
                    caption=f"Below zero, {source.name} {below}.",
                )
            )
    return found


def full_table(source: ReportSource, other: ReportSource, table: pd.DataFrame) -> Table:
    """Return a table of every difference."""
    return Table(
        name="comparison",
        title=f"{source.name} minus {other.name}",
        frame=table.rename(columns={"series": "method"}).astype(object),
        method_column="method",
        query=source.command("aggregates"),
        headings=[
            *(
                "quantity",
                "scale",
                "method",
                source.name,
                other.name,
                "difference",
                "low",
                "high",
                "interval from",
            ),
            *("seeds", "seeds, other", "same protocol"),
        ],
    )


def estimates(source: ReportSource, rows: pd.DataFrame) -> list[tuple[str, list[IntervalMark]]]:
    """Return one row per method of one scale."""
    lines = []
    for style in source.styles(rows["series"]):
        found = rows[rows["series"] == style.key].iloc[0]
        value, low, high = (
            math.nan if found[c] is None else float(found[c]) for c in ("difference", "low", "high")
        )
        span = (
            f" ({number(low)} … {number(high)}, from {found['interval']})"
            if math.isfinite(low)
            else ""
        )
        tip = f"{style.label} at {found['scale']}: {number(value)}{span}"
        lines.append((style.label, [IntervalMark(style, value, low, high, tip)]))
    return lines


def comparable(source: ReportSource, other: ReportSource, table: pd.DataFrame) -> str:
    """Return whether both were scored on the same text, and which quantities were measured in the
    same way.
    """
    data = [set(s.runs["dataset_fingerprint"]) for s in (source, other)]
    losses = table[table["quantity"] == LOSS]["same_protocol"].all()
    if data[0] == data[1] and losses:
        text = "Both studies have the same data and evaluation set."
    else:
        text = "The two studies differ in their data or evaluation set, so their losses are not of the same text."
    differ = sorted(set(table[~table["same_protocol"].astype(bool)]["quantity"]) - {LOSS})
    return text + (f" Measured under different protocols: {', '.join(differ)}." if differ else "")


def final_values(source: ReportSource) -> pd.DataFrame:
    """Return final loss, metrics of the main protocol and scores of each run in long form, each
    with its stored error and protocol.
    """
    if not len(source.checkpoints):
        return pd.DataFrame(columns=COLUMNS)
    final = finite(final_rows(source), "validation_loss")
    last = dict(zip(final["run_id"], final["step"], strict=True))
    sets = source.query("evaluation_sets").set_index("evaluation_set_id")["sha256"]
    scored = final["evaluation_set_id"].map(sets)
    losses = final.assign(
        quantity=LOSS, value=final["validation_loss"], error=math.nan, protocol=scored
    )
    hashes = source.query("protocols").set_index("protocol_id")["parameters_hash"]
    metrics = source.aggregates[~of_pairs(source.aggregates)]
    metrics = finite(main(source, metrics, "metric"))
    scores = main(source, primary_rows(finite(source.query("downstream"))), "task")
    parts = [losses]
    for rows, names in (
        (metrics, metrics["metric"]),
        (scores, "score: " + scores["task"].astype(str)),
    ):
        rows = rows.assign(
            quantity=names,
            error=rows["standard_error"].astype(float),
            protocol=rows["protocol_id"].map(hashes),
        )
        parts.append(rows[rows["step"] == rows["run_id"].map(last)])
    return pd.concat([part[COLUMNS] for part in [*parts, mean_scores(parts[-1])] if len(part)])


def main(source: ReportSource, rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """Return the rows of the study's main protocol, the newest of its name."""
    return source.ways(rows, key)[0][1] if len(rows) else rows


def mean_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over tasks of each run, with its error from those of the tasks."""
    if scores.empty:
        return scores
    grouped = scores.assign(square=scores["error"] ** 2).groupby(
        ["scale", "series", "seed", "protocol"], as_index=False
    )
    found = grouped.agg(
        value=("value", "mean"),
        square=("square", lambda v: v.sum(skipna=False)),
        tasks=("value", "size"),
    )
    return found.assign(quantity=SCORE, error=np.sqrt(found["square"]) / found["tasks"])


def differences(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each quantity, scale and series of both."""
    by = ["quantity", "scale", "series"]
    right, lines = dict(list(theirs.groupby(by, sort=False))), []
    for key, mine in ours.groupby(by, sort=False):
        if key in right:
            a, b = spread(mine["value"]), spread(right[key]["value"])
            difference, low, high, whence = interval(right[key], mine)
            same = set(mine["protocol"]) == set(right[key]["protocol"])
            lines.append((*key, a.mean, b.mean, difference, low, high, whence, a.n, b.n, same))
    columns = [
        *by,
        "here",
        "there",
        "difference",
        "low",
        "high",
        "interval",
        "seeds",
        "seeds_other",
        "same_protocol",
    ]
    return pd.DataFrame(lines, columns=columns, dtype=object)


def interval(
    first: pd.DataFrame, second: pd.DataFrame
) -> tuple[float, float | None, float | None, str | None]:
    """Return (difference of means second - first, low, high, basis of the interval); None where no
    interval can be computed.
    """
    difference, low, high = welch(first["value"], second["value"])
    if math.isfinite(low):
        return difference, low, high, "seeds"
    # seeds share items, directions and texts: the error of their mean is taken as that of one
    error = math.hypot(
        float(first["error"].mean(skipna=False)), float(second["error"].mean(skipna=False))
    )
    if not math.isfinite(error):
        return difference, None, None, None
    return difference, difference - DEVIATES * error, difference + DEVIATES * error, "stored errors"
