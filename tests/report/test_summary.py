"""Intervals against scipy's and the normal distribution's, findings in words, and the digits of
errors.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lowrank.report.plot.charts import Style
from lowrank.report.sections.downstream import difference
from lowrank.report.sections.overview import added
from lowrank.report.summary import quantile, welch
from lowrank.report.tables import Table

NORMAL = stats.norm.ppf(0.975)


@pytest.mark.parametrize(
    ("first", "second"), [((1.0, 2.0), (3.0, 3.5, 5.0)), ((0.1, 0.4, 0.3, 0.2), (0.1, 0.9))]
)
def test_welch_matches_scipy(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    interval = stats.ttest_ind(second, first, equal_var=False).confidence_interval()
    assert welch(first, second) == pytest.approx(
        (np.mean(second) - np.mean(first), interval.low, interval.high), rel=1e-12
    )


def paired(seeds: int, items_error: float, standard_error: float) -> float:
    """Return half the width of the interval of one task's difference."""
    row = {
        "task": "t",
        "difference": 0.25,
        "standard_error": standard_error,
        "items_error": items_error,
        "seeds": seeds,
    }
    found = difference(pd.DataFrame([row]), Style(key="a", label="a", color="c0"))
    assert found.value == 0.25
    assert found.high - 0.25 == pytest.approx(0.25 - found.low)
    return found.high - 0.25


@pytest.mark.parametrize("seeds", [2, 3])
def test_variance_over_seeds_alone_has_the_degrees_of_freedom_of_the_seeds(seeds: int) -> None:
    assert paired(seeds, 0.0, 0.1) == pytest.approx(0.1 * stats.t.ppf(0.975, seeds - 1))


@pytest.mark.parametrize("seeds", [1, 2])
def test_variance_over_items_alone_gives_a_normal_interval(seeds: int) -> None:
    assert paired(seeds, 0.1, 0.1) == pytest.approx(0.1 * NORMAL)


def test_variance_over_seeds_and_items_gives_an_interval_in_between() -> None:
    assert 0.1 * NORMAL < paired(2, 0.09, 0.1) < 0.1 * stats.t.ppf(0.975, 1)


def test_a_rounding_error_of_a_single_seed_does_not_widen_the_interval() -> None:
    assert paired(1, math.sqrt(0.01 - 1e-18), 0.1) == pytest.approx(0.1 * NORMAL)


def test_many_small_uncertain_variances_count_almost_as_known() -> None:
    assert quantile(1000.0, np.ones(1000), np.ones(1000)) == pytest.approx(NORMAL, rel=2e-3)


def test_geometry_that_does_not_help_is_reported_so_whatever_its_p() -> None:
    assert "p = 0.045" in added(0.82, 0.87, 0.045, 90)
    said = added(0.87, 0.82, 0.045, 90)
    assert "does not improve the prediction" in said
    assert "0.045" not in said


def test_errors_are_shown_with_two_digits_and_stored_completely() -> None:
    frame = pd.DataFrame({"mean": [5.28312345], "standard_deviation": [0.0051661234], "n": [2]})
    table = Table(name="t", title="t", frame=frame)
    assert table.cells() == [["5.283", "0.0052", "2"]]
    assert math.isclose(float(table.csv().splitlines()[1].split(",")[1]), 0.0051661234)
