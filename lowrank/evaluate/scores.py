"""From the harness's samples to scores: the task's own metrics, margin, and bits per byte, each the
mean of its items.

For an item with answer a and other choices c, log-likelihoods ℓ in nats and sizes s in bytes:

* ``margin`` = ℓ(a)/s(a) − max_c ℓ(c)/s(c), nats a byte; above 0 exactly where ``acc_norm`` is right
  (for ASCII text);
* ``bits_per_byte`` = −ℓ(a) / (s(a) ln 2).

Several right answers: the likeliest counts. Standard errors are s/√n over independent items, and
take together those that depend on each other (see :func:`standard_error`); of a group, whose score
is the plain mean over its members, the root of the members' summed squares over their number.
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
    """One metric of one task: value, standard error (None for fewer than two items), and its items
    by their hash.
    """

    metric: str
    value: float
    standard_error: float | None
    n: int
    chance: float | None
    items: dict[str, float] = field(repr=False, default_factory=dict)


def scores(task: LoadedTask, metrics: Sequence[str], results: Mapping[str, Any]) -> list[Score]:
    """All metrics of a task from what the harness returned."""
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
            items[_free(items, answers.key)] = value
    chances = [_chance(metric, answers) for rows in by_member.values() for answers, _ in rows]
    chance = (
        None if None in chances else math.fsum(c for c in chances if c is not None) / len(chances)
    )
    return Score(metric, math.fsum(means) / len(means), error, len(items), chance, items)


def _free(taken: Mapping[str, float], key: str) -> str:
    """``key``, or with a number where a data set holds the same item twice."""
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key}-{number}"
    return free


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
    """The score of a uniform guess on an item: 0 for a margin, and for f1 and bits none."""
    if metric == "margin":
        return 0.0
    return len(answers.right) / len(answers.sizes) if metric in ("acc", "acc_norm", "em") else None


def standard_error(values: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Of the mean of ``values``, of which those of one cluster may depend on each other; s/√n where
    each stands alone.

    With sums e_c of the deviations in each of G clusters: √(G/(G−1) Σ e_c²) / n. None for fewer
    than two clusters.
    """
    n, mean = len(values), math.fsum(values) / len(values)
    sums: dict[str, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    if len(sums) < 2:
        return None
    return math.sqrt(math.fsum(e * e for e in sums.values()) * len(sums) / (len(sums) - 1)) / n


def _check_against_harness(task: LoadedTask, found: Score, results: Mapping[str, Any]) -> None:
    """Our mean of a metric that the harness computes must be the harness's."""
    own = [results["results"][name].get(f"{found.metric},none") for name in task.members]
    if None in own:
        return
    theirs = math.fsum(own) / len(own)
    if not math.isclose(theirs, found.value, rel_tol=1e-9, abs_tol=1e-12):
        raise EvaluationError(
            f"the task '{task.name}' has a fault: {found.metric} is {found.value} here and {theirs} in the harness"
        )
