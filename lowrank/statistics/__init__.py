"""Intervals, errors and corrections whose coverage has been simulated (``docs/inference.md``)."""

from lowrank.statistics.differences import (
    Interval,
    ItemErrors,
    SeedVariance,
    difference_interval,
    item_errors,
    pooled_seed_variance,
)
from lowrank.statistics.multiple import corrected, holm, too_few
from lowrank.statistics.stopping import enough, mean_interval, stopping_count
from lowrank.statistics.two_way import TwoWayError, two_way_error

__all__ = [
    "Interval",
    "ItemErrors",
    "SeedVariance",
    "TwoWayError",
    "corrected",
    "difference_interval",
    "enough",
    "holm",
    "item_errors",
    "mean_interval",
    "pooled_seed_variance",
    "stopping_count",
    "too_few",
    "two_way_error",
]
