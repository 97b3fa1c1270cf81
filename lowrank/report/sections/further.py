"""Metrics that no other chapter shows: those of an added lens appear here without further code."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from lowrank.report.figure import Figure, Section
from lowrank.report.source import ReportSource
from lowrank.report.trajectories import Quantity, by_metric, trajectory_figures, words


def build(source: ReportSource) -> Section | None:
    """Return trajectories of the remaining metrics; None where there are none."""
    rest = source.shown_in("further")
    if rest.empty:
        return None
    section = Section(
        name="further",
        title="Further metrics",
        lead="What else has been measured; lowrank metrics defines each.",
    )
    section.blocks += by_lens(source, rest, "further")
    return section


def others(source: ReportSource, chapter: str, shown: Collection[str]) -> list[Figure]:
    """Return trajectories of the metrics whose declaration names ``chapter``, without those in
    ``shown``.
    """
    rows = source.shown_in(chapter)
    return by_lens(source, rows[~rows["metric"].isin(shown)], chapter)


def by_lens(source: ReportSource, rows: pd.DataFrame, name: str) -> list[Figure]:
    """Return trajectories of all metrics of ``rows``, one figure for each lens and protocol."""
    figures: list[Figure] = []
    for lens, part in rows.groupby("lens", sort=True):
        quantities = [Quantity(metric, words(metric)) for metric in by_metric(part)]
        figures += trajectory_figures(
            source,
            part,
            quantities,
            name=f"{name}_{lens}",
            title=f"{str(lens).capitalize()} over training",
        )
    return figures
