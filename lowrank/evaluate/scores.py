"""Scores from the harness's samples: the task's metrics, margin, and bits per byte, each the mean
over items.

For an item with answer a and other choices c, log-likelihoods ℓ in nats and sizes s in bytes:

* ``margin`` = ℓ(a)/s(a) − max_c ℓ(c)/s(c) in nats per byte; above 0 exactly where ``acc_norm`` is
  right (for ASCII text);
* ``bits_per_byte`` = −ℓ(a) / (s(a) ln 2).

Of several right answers the likeliest one counts. Standard errors are s/√n over independent items,
and clustered over those that depend on each other (see :func:`standard_error`). The score of a
group is the plain mean over its members, and its standard error the root of the members' summed
squares divided by their number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lowrank.evaluate.errors import EvaluationError
from lowrank.evaluate.harness import Answers, LoadedTask


@dataclass(frozen=True)
class Score:
    """One metric of one task.

    ``standard_error`` is None for fewer than two items, ``chance`` the score of a uniform guess,
    ``items`` the values of ``n`` items by key.
    """

    metric: str
    value: float
    standard_error: float | None
    n: int
    chance: float | None
    items: dict[str, float] = field(repr=False, default_factory=dict)


def scores(task: LoadedTask, metrics: Sequence[str], results: Mapping[str, Any]) -> list[Score]:
    """Return the scores of a task from the results of :func:`lowrank.evaluate.harness.run`.

    Raises :class:`EvaluationError` where a mean differs from the harness's.
    """
    by_member = {
        name: [
            (task.answers[name, sample["doc_id"]], sample) for sample in results["samples"][name]
        ]
        for name in task.members
    }
    made = [_score(metric, by_member) for metric in metrics]
    for found in made:
        _check_against_harness(task, found, results)
    return made


def _score(
    metric: str, by_member: Mapping[str, Sequence[tuple[Answers, Mapping[str, Any]]]]
) -> Score:
    values = {
        name: [_value(metric, answers, sample) for answers, sample in rows]
        for name, rows in by_member.items()
    }
    means = [math.fsum(found) / len(found) for found in values.values()]
    errors = [
        standard_error(found, [answers.cluster for answers, _ in rows])
        for found, rows in zip(values.values(), by_member.values(), strict=True)
    ]
    known = [error for error in errors if error is not None]
    error = (
        math.sqrt(math.fsum(e * e for e in known)) / len(errors)
        if len(known) == len(errors)
        else None
    )
    items: dict[str, float] = {}
    for name, rows in by_member.items():
        for (answers, _), value in zip(rows, values[name], strict=True):
            items[_unused_key(items, answers.key)] = value
    chances = [_chance(metric, answers) for rows in by_member.values() for answers, _ in rows]
    chance = (
        None if None in chances else math.fsum(c for c in chances if c is not None) / len(chances)
    )
    return Score(metric, math.fsum(means) / len(means), error, len(items), chance, items)


def _unused_key(taken: Mapping[str, float], key: str) -> str:
    """Return ``key``, with a number appended where a data set holds the same item twice."""
    number, unused = 1, key
    while unused in taken:
        number += 1
        unused = f"{key}-{number}"
    return unused


def _value(metric: str, answers: Answers, sample: Mapping[str, Any]) -> float:
    if metric not in ("margin", "bits_per_byte"):
        return float(sample[metric])
    likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    per_byte = [
        likelihood / size for likelihood, size in zip(likelihoods, answers.sizes, strict=True)
    ]
    best = max(per_byte[i] for i in answers.right)
    if metric == "bits_per_byte":
        return -best / math.log(2)
    return best - max(
        (value for i, value in enumerate(per_byte) if i not in answers.right), default=best
    )


def _chance(metric: str, answers: Answers) -> float | None:
    """Return the score of a uniform guess on an item: 0 for a margin, None for f1 and bits."""
    if metric == "margin":
        return 0.0
    return len(answers.right) / len(answers.sizes) if metric in ("acc", "acc_norm", "em") else None


def standard_error(values: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Return the cluster-robust standard error of the mean of ``values``.

    With sums e_c of the deviations in each of G clusters it is √(G/(G−1) Σ e_c²) / n, which is s/√n
    where each cluster has one value. None for fewer than two clusters.
    """
    n, mean = len(values), math.fsum(values) / len(values)
    sums: dict[str, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    if len(sums) < 2:
        return None
    return math.sqrt(math.fsum(e * e for e in sums.values()) * len(sums) / (len(sums) - 1)) / n


def _check_against_harness(task: LoadedTask, found: Score, results: Mapping[str, Any]) -> None:
    """Raise :class:`EvaluationError` where the harness computes another mean of the metric."""
    means = [results["results"][name].get(f"{found.metric},none") for name in task.members]
    if None in means:
        return
    theirs = math.fsum(means) / len(means)
    if not math.isclose(theirs, found.value, rel_tol=1e-9, abs_tol=1e-12):
        raise EvaluationError(
            f"the task '{task.name}' has a fault: {found.metric} is {found.value} here and {theirs} in the harness"
        )
