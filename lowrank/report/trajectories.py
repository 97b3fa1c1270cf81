"""Figures of metrics over training: one panel for each metric and scale, one figure for each protocol."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lowrank.report.charts import XY, Series
from lowrank.report.figure import Figure
from lowrank.report.source import Source
from lowrank.report.summary import over_seeds, spreads
from lowrank.report.tables import Table


@dataclass(frozen=True)
class Quantity:
    """A metric to plot over training."""

    metric: str
    label: str
    log: bool = False
    level: float | None = None


def trajectory_figures(
    source: Source, rows: pd.DataFrame, quantities: Sequence[Quantity], *, name: str, title: str, caption: str = ""
) -> list[Figure]:
    """The figures of ``quantities`` among aggregate ``rows``: the main protocol open, the others folded."""
    rows = rows[rows["metric"].isin([q.metric for q in quantities])]
    figures: list[Figure] = []
    for place, (way, part) in enumerate(source.ways(rows, "metric")):
        panels = [p for q in quantities for p in quantity_panels(source, part, q)]
        if not panels:
            continue
        suffix = "" if place == 0 else f"-{slug(way)}"
        figures.append(
            Figure(
                name=name + suffix,
                title=title if place == 0 else f"{title} ({way})",
                panels=panels,
                caption=caption,
                legend=source.styles(part.loc[np.isfinite(part["value"]), "series"]),
                protocol=source.describe(part),
                query=source.command("aggregates"),
                table=trajectory_table(source, part, name + suffix, title),
                notes=notes(part),
                folded=bool(figures),
                columns=len(source.scales) if 1 < len(source.scales) <= 3 and len(panels) > len(source.scales) else 0,
            )
        )
    return figures


def quantity_panels(source: Source, rows: pd.DataFrame, quantity: Quantity) -> list[XY]:
    """One panel for each scale that has finite values."""
    panels = []
    for scale in source.scales:
        part = rows[(rows["metric"] == quantity.metric) & (rows["scale"] == scale)]
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


def seed_series(source: Source, rows: pd.DataFrame, x: str, y: str, error: str = "") -> list[Series]:
    """Mean over seeds of each method's rows, in the order of identities."""
    found = (over_seeds(rows[rows["series"] == style.key], style, x, y, error) for style in source.styles(rows["series"]))
    return [series for series in found if series is not None]


def trajectory_table(source: Source, rows: pd.DataFrame, name: str, title: str) -> Table:
    """Mean and spread over seeds, long: metric, scale, method, step."""
    order = {style.key: place for place, style in enumerate(source.styles())}
    by = ["metric", "scale", "series", "step"]
    found = spreads(rows, by, "value").merge(
        spreads(rows, by, "standard_error")[[*by, "mean", "n"]], on=by, how="left", suffixes=("", "_of_error")
    )
    # the stored standard error is that of one value, not of a mean over seeds
    found["error"] = found["mean_of_error"].where((found["n"] == 1) & (found["n_of_error"] == 1))
    found["place"] = [
        (m, source.scales.index(s), order.get(a, 99), t) for m, s, a, t in found[by].itertuples(index=False, name=None)
    ]
    frame = found.sort_values("place")[[*by, "mean", "deviation", "error", "n"]].astype(object)
    frame = frame.where(frame.notna(), None)
    frame.columns = pd.Index(["metric", "scale", "method", "step", "mean", "standard_deviation", "standard_error", "seeds"])
    return Table(name=name, title=title, frame=frame, query=source.command("aggregates"), method_column="method")


def notes(rows: pd.DataFrame) -> list[str]:
    """Reasons and remarks that came with the values, who they are about, and how many values are not finite."""
    found: list[str] = []
    marked = rows[rows["note"].fillna("") != ""]
    for (note, kind), group in marked.groupby(["note", marked["value_kind"] == "absent"], sort=False):
        who = ", ".join(dict.fromkeys(group["series"]))
        what = ", ".join(sorted(set(group["metric"])))
        found.append(f"{who}: no {what}, {note}" if kind else f"{who} ({what}): {note}")
    broken = rows[~rows["value_kind"].isin(["finite", "absent"])]
    if len(broken):
        who = ", ".join(f"{series} ({len(group)})" for series, group in broken.groupby("series"))
        found.append(f"{len(broken)} values are not finite and not drawn: {who}")
    return found


def finite(rows: pd.DataFrame, column: str = "value") -> pd.DataFrame:
    """Rows whose ``column`` is a finite number."""
    return rows[np.isfinite(rows[column].astype(float))]


def pick(values: Sequence[int], count: int) -> list[int]:
    """``count`` of the sorted distinct values, evenly spread, both ends among them."""
    ordered = sorted(set(values))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (count - 1))] for i in range(count)]


def slug(text: str) -> str:
    """``text`` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()


def words(metric: str) -> str:
    """A metric's name for people."""
    return metric.replace("_dw", " ΔW").replace("_w", " W").replace("_", " ")


def by_metric(rows: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """Rows of each metric, sorted by name."""
    return {str(metric): part for metric, part in rows.groupby("metric", sort=True)}
