"""Metrics that no other chapter shows: a lens added by a file of its own appears here by itself."""

from __future__ import annotations

from lowrank.report.figure import Section
from lowrank.report.source import Source
from lowrank.report.trajectories import Quantity, by_metric, trajectory_figures, words

KNOWN = (
    "sharpness_random",
    "direction_variance",
    "sharpness_pca",
    "sigma_pca",
    "sharpness_trajectory",
    "trajectory_share",
    "ccbh",
    "imbh",
    "effective_rank_",
    "stable_rank_",
    "spectral_gap_",
    "threshold_rank_",
    "delta_norm",
    "activation_",
)


def build(source: Source) -> Section | None:
    """Trajectories of the remaining metrics; None where there are none."""
    rows = source.aggregates
    rest = rows[~rows["metric"].str.startswith(KNOWN)]
    if rest.empty:
        return None
    section = Section(
        name="further",
        title="Further metrics",
        lead="What else has been measured; lowrank metrics defines each.",
    )
    for lens, part in rest.groupby("lens", sort=True):
        quantities = [Quantity(metric, words(metric)) for metric in by_metric(part)]
        section.blocks += trajectory_figures(
            source,
            part,
            quantities,
            name=f"further_{lens}",
            title=f"{str(lens).capitalize()} over training",
        )
    return section
