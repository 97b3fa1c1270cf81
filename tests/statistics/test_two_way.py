"""The error of a mean over directions and rows of text: closed forms and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lowrank.errors import UsageError
from lowrank.statistics import two_way_error


def test_a_table_that_differs_in_rows_alone_has_the_error_of_its_rows() -> None:
    rows = np.random.default_rng(0).normal(size=12)
    found = two_way_error(np.tile(rows, (50, 1)))
    assert found.value == pytest.approx(rows.mean())
    assert found.rows_error == pytest.approx(rows.std(ddof=1) / math.sqrt(12))
    assert found.standard_error == found.rows_error
    assert found.directions_error == pytest.approx(0, abs=1e-12)
    assert found.freedom == pytest.approx(11)


def test_directions_and_rows_add_up_and_single_cells_count_once() -> None:
    x = np.random.default_rng(1).normal(size=(7, 9))
    x += 2 * np.random.default_rng(2).normal(size=(7, 1)) + np.random.default_rng(3).normal(size=9)
    found = two_way_error(x)
    a, b = x.mean(axis=1).var(ddof=1) / 7, x.mean(axis=0).var(ddof=1) / 9
    assert found.standard_error**2 == pytest.approx(a + b - x.var(ddof=1) / 63)
    assert found.directions_error**2 == pytest.approx(a)
    assert found.freedom == pytest.approx(found.standard_error**4 / (a**2 / 6 + b**2 / 8))


def test_weights_are_those_of_a_ratio_of_sums() -> None:
    x = np.random.default_rng(1).normal(size=(4, 5))
    weights = np.array([1, 1, 2, 3, 1])
    found = two_way_error(x, weights)
    assert found.value == pytest.approx((x * weights).sum() / (4 * weights.sum()))
    jackknife = [
        np.average(np.delete(x, i, axis=1).mean(axis=0), weights=np.delete(weights, i))
        for i in range(5)
    ]
    by_jackknife = 4 / 5 * ((np.array(jackknife) - np.mean(jackknife)) ** 2).sum()
    assert found.rows_error**2 == pytest.approx(by_jackknife, rel=0.5)


def test_noise_of_cells_alone_never_makes_the_error_smaller_than_one_side() -> None:
    for seed in range(20):
        found = two_way_error(np.random.default_rng(seed).normal(size=(5, 6)))
        assert found.standard_error >= max(found.directions_error, found.rows_error)


def test_the_interval_covers_where_text_matters_as_much_as_directions() -> None:
    """Over directions alone, as stored, an interval covers about 70 of 100 here."""
    both, alone = [], []
    for seed in range(400):
        generator = np.random.default_rng(seed)
        x = generator.normal(size=(10, 1)) + generator.normal(size=(1, 10))
        found = two_way_error(x + generator.normal(size=(10, 10)))
        low, high = found.interval()
        both.append(low <= 0 <= high)
        alone.append(abs(found.value) <= 1.96 * found.directions_error)
    assert 0.92 < np.mean(both) < 0.98
    assert np.mean(alone) < 0.87


@pytest.mark.parametrize("table", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, 2.0], [1.0, math.nan]]])
def test_a_table_without_two_of_each_is_refused(table: list[list[float]]) -> None:
    with pytest.raises(UsageError, match="at least two directions and two rows"):
        two_way_error(table)
