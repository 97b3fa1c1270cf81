"""When random directions are enough, and what the interval of their mean covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lowrank.statistics import enough, mean_interval, stopping_count


def plain_count(values: np.ndarray, target: float, fewest: int) -> int | None:
    for n in range(fewest, len(values) + 1):
        part = values[:n]
        if part.std(ddof=1) / math.sqrt(n) <= target * abs(part.mean()):
            return n
    return None


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_stops_at_the_first_small_error(seed: int) -> None:
    values = 1e6 + 2e5 * np.random.default_rng(seed).normal(size=400)
    expected = plain_count(values, 0.02, 30)
    assert expected is not None
    assert stopping_count(values) == expected
    assert not enough(values[: expected - 1])
    assert enough(values[:expected])


def test_equal_values_stop_at_the_first_look_and_wild_ones_never() -> None:
    assert stopping_count(np.ones(40)) == 30
    assert stopping_count(np.ones(29)) is None
    assert stopping_count(np.tile([1.0, -1.0], 500)) is None
    assert stopping_count(np.ones(5), fewest=1) == 2


def test_the_interval_is_that_of_t() -> None:
    values = np.random.default_rng(0).normal(size=8)
    mean, low, high = mean_interval(values)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval()
    assert mean == values.mean()
    assert (low, high) == pytest.approx(expected)
    assert math.isnan(mean_interval([1.0])[1])


def test_stopping_costs_no_coverage() -> None:
    """Stopping from ten on covers 90 to 92% by a normal interval where the deviation is 0.1."""
    covered = []
    for seed in range(600):
        values = 1 + 0.1 * np.random.default_rng(seed).normal(size=600)
        _, low, high = mean_interval(values[: stopping_count(values)])
        covered.append(low <= 1 <= high)
    assert 0.93 < np.mean(covered) < 0.97
