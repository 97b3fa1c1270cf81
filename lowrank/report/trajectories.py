"""Figures of metrics over training: one panel per metric and scale, one figure per protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowrank.report.figure import Figure
from lowrank.report.plot.charts import XY, Series
from lowrank.report.plot.forest import Forest, IntervalMark
from lowrank.report.source import ReportSource
from lowrank.report.summary import each_over_seeds, over_seeds, spreads
from lowrank.report.tables import Table

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![\w])")


@dataclass(frozen=True)
class Quantity:
    """A metric to plot over training."""

    metric: str
    label: str
    log: bool = False
    level: float | None = None


def trajectory_figures(
    source: ReportSource,
    rows: pd.DataFrame,
    quantities: Sequence[Quantity],
    *,
    name: str,
    title: str,
    caption: str = "",
) -> list[Figure]:
    """Return the figures of ``quantities`` from aggregate ``rows``, one per protocol.

    The figure of the main protocol is open; the others are folded.
    """
    rows = rows[rows["metric"].isin([q.metric for q in quantities])]
    figures: list[Figure] = []
    shown: set[str] = set()
    for place, (protocol, part) in enumerate(source.ways(rows, "metric")):
        panels = [p for q in quantities for p in quantity_panels(source, part, q)]
        if not panels:
            continue
        drawn = set(finite(part)["series"])
        suffix = "" if place == 0 else f"-{slug(protocol)}"
        figures.append(
            Figure(
                name=name + suffix,
                title=title if place == 0 else f"{title} ({protocol})",
                panels=panels,
                caption=caption,
                legend=source.styles(drawn),
                protocol=source.describe(part),
                query=source.command("aggregates"),
                table=trajectory_table(source, part, name + suffix, title),
                notes=notes(part),
                folded=bool(figures)
                and drawn <= shown,  # a figure that shows a method for the first time is open
                columns=len(source.scales)
                if 1 < len(source.scales) <= 3 and len(panels) > len(source.scales)
                else 0,
            )
        )
        shown |= drawn
    return figures


def quantity_panels(
    source: ReportSource, rows: pd.DataFrame, quantity: Quantity
) -> list[XY | Forest]:
    """Return one panel for each scale that has finite values.

    A panel shows curves over the steps, or one row per method if there is only one step.
    """
    panels: list[XY | Forest] = []
    for scale in source.scales:
        part = finite(rows[(rows["metric"] == quantity.metric) & (rows["scale"] == scale)])
        if part["step"].nunique() == 1:
            panels.append(at_one_step(source, part, f"{quantity.label} · {scale}", quantity))
            continue
        series = seed_series(source, part, "step", "value", "standard_error")
        if series:
            panels.append(
                XY(
                    title=f"{quantity.label} · {scale}",
                    series=series,
                    x_label="step",
                    y_label=quantity.label,
                    log_y=quantity.log,
                    level=quantity.level,
                )
            )
    return panels


def at_one_step(source: ReportSource, rows: pd.DataFrame, title: str, quantity: Quantity) -> Forest:
    """Return a panel with one row per method: the mean over seeds and their range.

    With a single seed, the range is the stored standard error.
    """
    lines = []
    for style in source.styles(rows["series"]):
        found = over_seeds(
            rows[rows["series"] == style.key], style, "step", "value", "standard_error"
        )
        if found is not None:
            lines.append(
                (
                    style.label,
                    [IntervalMark(style, found.y[0], found.low[0], found.high[0], found.tips[0])],
                )
            )
    log = quantity.log and bool((rows["value"] > 0).all())
    label = f"{quantity.label}, step {int(rows['step'].iloc[0])}"
    return Forest(
        title=title, rows=lines, x_label=label, level=None if log else quantity.level, log_x=log
    )


def seed_series(
    source: ReportSource, rows: pd.DataFrame, x: str, y: str, error: str = ""
) -> list[Series]:
    """Return the mean over seeds of each method's rows, in the order of identities."""
    return each_over_seeds(rows, source.styles(rows["series"]), x, y, error)


def trajectory_table(source: ReportSource, rows: pd.DataFrame, name: str, title: str) -> Table:
    """Return mean and spread over seeds in long form: metric, scale, method, step."""
    order = {style.key: place for place, style in enumerate(source.styles())}
    by = ["metric", "scale", "series", "step"]
    found = spreads(rows, by, "value").merge(
        spreads(rows, by, "standard_error")[[*by, "mean", "n"]],
        on=by,
        how="left",
        suffixes=("", "_of_error"),
    )
    # the stored standard error belongs to one value, not to a mean over seeds
    found["error"] = found["mean_of_error"].where((found["n"] == 1) & (found["n_of_error"] == 1))
    found["place"] = [
        (m, source.scales.index(s), order.get(a, 99), t)
        for m, s, a, t in found[by].itertuples(index=False, name=None)
    ]
    frame = found.sort_values("place")[[*by, "mean", "deviation", "error", "n"]].astype(object)
    frame = frame.where(frame.notna(), None)
    frame.columns = pd.Index(
        [
            "metric",
            "scale",
            "method",
            "step",
            "mean",
            "standard_deviation",
            "standard_error",
            "seeds",
        ]
    )
    return Table(
        name=name,
        title=title,
        frame=frame,
        query=source.command("aggregates"),
        method_column="method",
    )


def notes(rows: pd.DataFrame) -> list[str]:
    """Return the remarks stored with the values, whom they concern, and the number of non-finite
    values.

    The reason for a missing value is reported for the series that have no value at all, if there
    are any: the other series of a pair has values from other pairs. Remarks that differ only in
    their numbers are merged, with the range of the numbers.
    """
    found: list[str] = []
    with_value = rows[rows["value_kind"] != "absent"]
    valued = set(zip(with_value["series"], with_value["metric"], strict=True))
    marked = rows[rows["note"].fillna("") != ""]
    kinds = [marked["note"].str.replace(NUMBER, "#", regex=True), marked["value_kind"] == "absent"]
    for (_, absent), group in marked.groupby(kinds, sort=False):
        note = merged(list(dict.fromkeys(group["note"])))
        pairs = list(dict.fromkeys(zip(group["series"], group["metric"], strict=True)))
        without = [pair for pair in pairs if pair not in valued]
        who = ", ".join(
            dict.fromkeys(series for series, _ in (without if absent and without else pairs))
        )
        what = ", ".join(dict.fromkeys(map(words, sorted(set(group["metric"])))))
        found.append(f"{who}: no {what}; {note}" if absent else f"{who} ({what}): {note}")
    broken = rows[~rows["value_kind"].isin(["finite", "absent"])]
    if len(broken):
        who = ", ".join(f"{series} ({len(group)})" for series, group in broken.groupby("series"))
        found.append(f"{len(broken)} values are not finite and not drawn: {who}")
    return found


def merged(texts: Sequence[str]) -> str:
    """Return texts that differ only in numbers as one, with ``low to high`` for numbers that
    differ.
    """
    numbers = [
        sorted(set(column), key=float)
        for column in zip(*(NUMBER.findall(text) for text in texts), strict=True)
    ]
    spans = iter(
        column[0] if len(column) == 1 else f"{column[0]} to {column[-1]}" for column in numbers
    )
    return NUMBER.sub(lambda _: next(spans), texts[0])


def finite(rows: pd.DataFrame, column: str = "value") -> pd.DataFrame:
    """Return the rows whose ``column`` is a finite number."""
    return rows[np.isfinite(rows[column].astype(float))]


def pick(values: Sequence[int], count: int) -> list[int]:
    """Return ``count`` of the distinct values, sorted and evenly spread, including both ends."""
    ordered = sorted(set(values))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def slug(text: str) -> str:
    """Return ``text`` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def words(metric: str) -> str:
    """Return a metric's name for people."""
    text = re.sub("_dw$", " ΔW", re.sub("_w$", " W", metric)).replace("_", " ")
    return re.sub(r"\b(pca|cka|ccbh|imbh|l2)\b", lambda found: found[0].upper(), text)


def by_metric(rows: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """Return the rows of each metric, sorted by the metric's name."""
    return {str(metric): part for metric, part in rows.groupby("metric", sort=True)}
