"""Simulated studies with a known truth, one for each seed, and what each interval or test makes of
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from lowrank.predict.inference import bootstrap_pearson, jackknife_pearson, permutation_test
from lowrank.statistics import (
    ItemErrors,
    difference_interval,
    holm,
    item_errors,
    mean_interval,
    pooled_seed_variance,
    stopping_count,
    two_way_error,
)

Floats = NDArray[np.float64]
Z = 1.959963984540054  # 95% of a normal distribution
GEOMETRY = 8  # features
TASKS, ITEMS = 7, 500
ITEM_SD, DIFFICULTY = 0.08, 0.4  # deviation of a method on an item; range of the items' difficulty


# Geometry beyond loss


def geometry_study(
    generator: np.random.Generator,
    methods: int,
    *,
    size_sd: float = 0.0,
    slope: float = 0.0,
    reference: bool = False,
    method_sd: float = 0.02,
) -> pd.DataFrame:
    """Simulate a study of 3 sizes, 2 seeds and 4 steps: loss, geometry ``g0`` … and score.

    ``reference``: the first two features of method 0 are 1 and 0 by definition.
    """
    axes = np.meshgrid(*(np.arange(n) for n in (methods, 3, 2, 4)), indexing="ij")
    shape, normal = axes[0].shape, generator.normal

    def parts(method: float, run: float, row: float) -> Floats:
        found: Floats = (
            method * normal(size=(methods, 1, 1, 1))
            + run * normal(size=(methods, 3, 2, 1))
            + row * normal(size=shape)
        )
        return found

    of_size = normal(size=(2 + GEOMETRY, 1, 3, 1, 1))
    loss = 5 - 0.5 * axes[1] + 0.8 / (1 + axes[3]) + parts(0.1, 0.02, 0.02)
    columns = dict(zip(["m", "k", "s", "t"], axes, strict=True)) | {"loss": loss}
    for i in range(GEOMETRY):
        linked = normal() * (loss - loss.mean()) / loss.std()
        columns[f"g{i}"] = parts(1.0, 0.4, 0.4) + (size_sd > 0) * of_size[i] + linked
    effects = parts(method_sd, 0.005, 0.005) + size_sd * of_size[-1]
    columns["score"] = -0.06 * loss + effects + slope * columns["g0"]
    frame = pd.DataFrame({name: column.ravel() for name, column in columns.items()})
    if reference:
        frame.loc[frame["m"] == 0, ["g0", "g1"]] = 1.0, 0.0
    return frame


def permutation_study(seed: int, methods: int, truth: dict[str, Any]) -> list[float]:
    """Return the p value of each scheme in one study; nan where it cannot be tested."""
    frame = geometry_study(np.random.default_rng([1, methods, seed]), methods, **truth)
    m, k, s, t = (frame[name].to_numpy() for name in "mkst")
    base, added = frame[["loss"]], frame[[f"g{i}" for i in range(GEOMETRY)]]
    found = (
        permutation_test(
            base,
            added,
            frame["score"],
            groups=groups.tolist(),
            methods=m.tolist(),
            cells=((k * 2 + s) * 4 + t).tolist(),
            sizes=k.tolist(),
            fixed=(m == 0) & truth.get("reference", False),
            permutations=99,
        )
        for groups in (m, k, (m * 3 + k) * 2 + s, s)
    )
    return [math.nan if test.p is None else test.p for test in found]


# Differences of downstream scores


def answers(
    generator: np.random.Generator, methods: int, seeds: int, truth: SeedEffects, shifts: Floats
) -> Floats:
    """Simulate right and wrong answers (methods, seeds, tasks, items)."""
    of_item = DIFFICULTY * (generator.random((1, 1, TASKS, ITEMS)) - 0.5)
    of_item = of_item + ITEM_SD * generator.normal(size=(methods, 1, TASKS, ITEMS))
    chance = 0.5 + of_item + truth.draw(generator, methods, seeds)
    chance = chance + shifts[:, None, None, None]
    return (generator.random(chance.shape) < chance).astype(float)


@dataclass(frozen=True)
class SeedEffects:
    """Deviations over seeds of a method's probability of a right answer: ``common`` to its tasks,
    and ``by_task``; ``ratio`` times these for method 1.
    """

    common: float = 0.0
    by_task: float = 0.0
    ratio: float = 1.0

    def draw(self, generator: np.random.Generator, methods: int, seeds: int) -> Floats:
        """Return effects (methods, seeds, tasks, 1), with what a seed does to all methods alike."""
        deviation = np.where(np.arange(methods) == 1, self.ratio, 1.0)[:, None, None, None]
        found = self.common * generator.normal(size=(methods, seeds, 1, 1))
        found = found + self.by_task * generator.normal(size=(methods, seeds, TASKS, 1))
        order = 0.02 * generator.normal(size=(1, seeds, 1, 1))
        return np.asarray(deviation * found + order)

    def noise(self) -> float:
        """Return the mean variance of a single answer given its chance."""
        of_item = DIFFICULTY**2 / 12 + ITEM_SD**2
        return 0.25 - of_item - 0.02**2 - self.common**2 - self.by_task**2

    def variance(self, seeds: int, methods: int) -> Floats:
        """Return the variance of each difference to method 0, which the oracle knows."""
        squares = 1 + np.where(np.arange(1, methods) == 1, self.ratio, 1.0) ** 2
        over_seeds = squares * (self.common**2 + self.by_task**2 / TASKS) / seeds
        n = TASKS * ITEMS
        return np.asarray(over_seeds + 2 * ITEM_SD**2 / n + 2 * self.noise() / (n * seeds))


def means_of_answers(
    generator: np.random.Generator, methods: int, seeds: int, truth: SeedEffects, shifts: Floats
) -> tuple[Floats, list[list[ItemErrors]]]:
    """Return (scores by method and seed, a list of errors by task for each difference).

    From the distribution of sums over :data:`ITEMS` answers, normal, instead of single answers.
    """
    noise = truth.noise()
    y = 0.5 + truth.draw(generator, methods, seeds)[..., 0] + shifts[:, None, None]
    y = y + ITEM_SD / math.sqrt(ITEMS) * generator.normal(size=(methods, 1, TASKS))
    y = y + math.sqrt(noise / ITEMS) * generator.normal(size=y.shape)
    of_cell = 2 * noise / (ITEMS * seeds)
    of_item, freedom = of_cell + 2 * ITEM_SD**2 / ITEMS, ITEMS - 1
    found = []
    for method in range(1, methods):
        known = generator.chisquare(freedom, size=(2, TASKS)) / freedom
        known *= np.array([[of_item], [of_cell]])
        found.append(
            [ItemErrors((y[method] - y[0])[:, t], known[0, t], known[1, t]) for t in range(TASKS)]
        )
    return y.mean(axis=2), found


def single_answers(
    generator: np.random.Generator, methods: int, seeds: int, truth: SeedEffects, shifts: Floats
) -> tuple[Floats, list[list[ItemErrors]]]:
    """Return what :func:`means_of_answers` does, from single answers."""
    y = answers(generator, methods, seeds, truth, shifts)
    one = np.zeros(ITEMS)
    errors = [
        [item_errors((y[m] - y[0])[:, t], one) for t in range(TASKS)] for m in range(1, methods)
    ]
    return y.mean(axis=(2, 3)), errors


def over_tasks(tasks: list[ItemErrors]) -> ItemErrors:
    """Return the mean over tasks, whose items are independent."""
    return ItemErrors(
        np.mean([t.per_seed for t in tasks], axis=0),
        sum(t.items for t in tasks) / TASKS**2,
        sum(t.cells for t in tasks) / TASKS**2,
    )


def apart(tasks: list[ItemErrors]) -> float:
    """Return half the width of the interval that takes tasks as independent, for comparison."""
    seeds = len(tasks[0].per_seed)
    items = sum(t.items for t in tasks)
    between = np.array([max(t.per_seed.var(ddof=1) / seeds - t.cells, 0.0) for t in tasks])
    total, uncertain = items + float(between.sum()), float((between**2).sum()) / (seeds - 1)
    freedom = total**2 / uncertain if uncertain > 0 else math.inf
    return float(special.stdtrit(freedom, 0.975)) * math.sqrt(total) / TASKS


def difference_study(
    seed: int,
    methods: int,
    seeds: int,
    truth: SeedEffects,
    shift: float = 0.0,
    single: bool = False,
) -> list[float]:
    """Return for the difference of method 1 whether the three intervals cover and their half-widths
    over the oracle's, the same as means over five methods, and whether Holm's correction over all
    methods finds a difference of method 1, and any other.
    """
    generator = np.random.default_rng([2, methods, seeds, seed])
    shifts = shift * (np.arange(methods) == 1)
    draw = single_answers if single else means_of_answers
    scores, errors = draw(generator, methods, seeds, truth, shifts)
    shared, reach = pooled_seed_variance(scores), Z * np.sqrt(truth.variance(seeds, methods))
    found, p = [], []
    for method, tasks in enumerate(errors, 1):
        whole = over_tasks(tasks)
        mine = difference_interval(whole, shared)
        p.append(mine.p)
        if method > 5:  # enough for a mean
            continue
        own = difference_interval(whole)
        error = abs(mine.difference - shifts[method])
        halves = [(i.high - i.low) / 2 for i in (mine, own)] + [apart(tasks)]
        found.append([error <= h for h in halves] + [h / reach[method - 1] for h in halves])
    seen = [q is not None and q <= 0.05 for q in holm(p)]
    return [*found[0], *np.mean(found, axis=0), seen[0], any(seen[1:])]


# Sharpness over directions and text, and when directions are enough


def sharpness_study(seed: int, directions: int, rows: int, row_sd: float) -> list[float]:
    """Return (covered, width) over both sides and over directions alone, and the estimate's error.

    The increase of the loss along a Gaussian direction on a row is a weighted sum of 200 squares;
    eigenvalues fall as 1/i, and rows differ by a lognormal factor and in each eigenvalue by half.
    """
    generator = np.random.default_rng([3, directions, rows, seed])
    eigenvalues = 1 / np.arange(1, 201)
    eigenvalues /= eigenvalues.sum()
    factor = np.exp(row_sd * generator.normal(size=(rows, 1)) - row_sd**2 / 2)
    of_row = eigenvalues * factor * (1 + 0.5 * generator.normal(size=(rows, 200)))
    table = generator.normal(size=(directions, 200)) ** 2 @ of_row.T
    found = two_way_error(table)
    low, high = found.interval()
    alone = Z * found.directions_error
    return [
        low <= 1 <= high,
        (high - low) / 2,
        abs(found.value - 1) <= alone,
        alone,
        found.value - 1,
    ]


def budget_study(seed: int, deviation: float, spike: bool, fewest: int) -> list[float]:
    """Return (covered, half-width, error, directions) of a mean stopped at an error of 2%."""
    generator = np.random.default_rng([4, fewest, seed])
    n = 4000
    values = 1 + deviation * generator.normal(size=n)
    if spike:  # one eigenvalue holds a fifth of the trace
        values = 0.8 * values + 0.2 * generator.normal(size=n) ** 2
    count = stopping_count(values, 0.02, fewest) or n
    mean, low, high = mean_interval(values[:count])
    return [low <= 1 <= high, (high - low) / 2, mean - 1, count]


# Pearson's correlation of predictions


def pearson_study(seed: int, methods: int, runs: int, method_share: float) -> list[float]:
    """Return (covered, half-width) of the bootstrap over runs, that over methods and the jackknife
    over methods, and the estimate's error, for a true correlation of 0.8; three rows for each run.
    """
    generator = np.random.default_rng([5, methods, runs, seed])
    shares = np.array([method_share, 0.8 - method_share, 0.2])
    sizes = [(methods, 1, 1), (methods, runs, 1), (methods, runs, 3)]
    both = sum(
        math.sqrt(share) * generator.normal(size=(2, *size))
        for share, size in zip(shares, sizes, strict=True)
    )
    y, noise = np.asarray(both).reshape(2, -1)
    p = 0.8 * y + 0.6 * noise
    of_run = np.repeat(np.arange(methods * runs), 3)
    found: list[float] = []
    of_method = (of_run // runs).tolist()
    for low, high in (
        bootstrap_pearson(y, p, of_run, resamples=500),
        bootstrap_pearson(y, p, of_method, resamples=500),
        jackknife_pearson(y, p, of_method),
    ):
        found += [low <= 0.8 <= high, (high - low) / 2]
    return [*found, float(np.corrcoef(y, p)[0, 1]) - 0.8]
