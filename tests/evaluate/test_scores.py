"""Margin, bits per byte, chance and standard errors in closed form."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lowrank.evaluate.errors import EvaluationError
from lowrank.evaluate.harness import Answers, LoadedTask
from lowrank.evaluate.scores import scores, standard_error


def loaded(
    *members: list[tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...], float]],
) -> tuple[LoadedTask, dict[str, Any]]:
    """Return a task, or a group, whose items have (log-likelihoods, right answers, sizes, acc)."""
    names = [f"m{i}" for i in range(len(members))]
    answers, samples = {}, {}
    for name, items in zip(names, members, strict=True):
        for number, (_, right, sizes, _) in enumerate(items):
            answers[name, number] = Answers(f"{name}-{number}", right, sizes)
        samples[name] = [
            {"doc_id": n, "filtered_resps": [(ll, False) for ll in lls], "acc": acc}
            for n, (lls, _, _, acc) in enumerate(items)
        ]
    results = {
        name: {"acc,none": sum(s["acc"] for s in samples[name]) / len(samples[name])}
        for name in names
    }
    task = LoadedTask("t", {name: SimpleNamespace() for name in names}, "1", answers)  # type: ignore[misc]
    return task, {"samples": samples, "results": results}


def test_margin_and_bits_per_byte() -> None:
    task, results = loaded([((-4.0, -9.0), (0,), (2, 3), 1.0), ((-6.0, -2.0), (0,), (3, 2), 0.0)])
    acc, margin, bits = scores(task, ["acc", "margin", "bits_per_byte"], results)
    assert (acc.value, acc.chance, acc.n) == (0.5, 0.5, 2)
    assert acc.standard_error == pytest.approx(0.5)
    assert margin.items == pytest.approx({"m0-0": -2.0 + 3.0, "m0-1": -2.0 + 1.0})
    assert margin.value == pytest.approx(0.0)
    assert margin.chance == 0.0
    assert bits.items == pytest.approx({"m0-0": 2.0 / math.log(2), "m0-1": 2.0 / math.log(2)})
    assert bits.chance is None
    assert bits.standard_error == pytest.approx(0.0, abs=1e-12)


def test_of_several_right_answers_the_likeliest_counts() -> None:
    task, results = loaded([((-4.0, -1.0, -3.0), (0, 2), (1, 1, 1), 0.0)])
    margin, bits = scores(task, ["margin", "bits_per_byte"], results)
    assert margin.value == pytest.approx(-2.0)
    assert bits.value == pytest.approx(3.0 / math.log(2))
    assert margin.standard_error is None, "one item has no spread"


def test_chance_is_the_mean_over_items_of_right_over_all() -> None:
    task, results = loaded(
        [((-1.0,) * 5, (0, 1), (1,) * 5, 1.0), ((-1.0,) * 4, (0,), (1,) * 4, 1.0)]
    )
    assert scores(task, ["acc"], results)[0].chance == pytest.approx((2 / 5 + 1 / 4) / 2)


def test_a_group_is_the_plain_mean_of_its_members() -> None:
    item = lambda acc: ((-1.0, -2.0), (0,), (1, 1), acc)  # noqa: E731
    task, results = loaded([item(1.0), item(0.0)], [item(1.0), item(1.0), item(1.0), item(0.0)])
    (acc,) = scores(task, ["acc"], results)
    assert acc.value == pytest.approx((0.5 + 0.75) / 2)
    assert acc.standard_error == pytest.approx(math.hypot(0.5, 0.25) / 2)
    assert acc.n == 6


def test_items_of_one_cluster_are_taken_together() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    alone = np.std(values, ddof=1) / math.sqrt(len(values))
    assert standard_error(values, [f"{n}" for n in range(8)]) == pytest.approx(alone)
    # twins of which one is right whenever the other is wrong: only the pairs that are both right
    # vary
    pairs = np.reshape(values, (4, 2)).mean(1)
    assert standard_error(values, [f"{n // 2}" for n in range(8)]) == pytest.approx(
        np.std(pairs, ddof=1) / math.sqrt(4)
    )
    assert standard_error(values * 3, [f"{n % 8}" for n in range(24)]) == pytest.approx(alone), (
        "copies of an item add nothing"
    )
    assert standard_error(values, ["one"] * 8) is None


def test_twins_are_clusters_by_their_keys() -> None:
    item = ((-1.0, -2.0), (0,), (1, 1), 1.0)
    task, results = loaded([item, item, (*item[:3], 0.0), (*item[:3], 0.0)])
    for number, answers in list(task.answers.items()):
        task.answers[number] = replace(answers, key="ab"[number[1] % 2] * 16 + str(number[1]))
    results["results"]["m0"]["acc,none"] = 0.5
    (acc,) = scores(task, ["acc"], results)
    assert acc.standard_error == pytest.approx(0.0)


def test_a_disagreement_with_the_harness_is_an_error() -> None:
    task, results = loaded([((-1.0, -2.0), (0,), (1, 1), 1.0)])
    results["results"]["m0"]["acc,none"] = 0.9
    with pytest.raises(
        EvaluationError, match=r"has a fault: acc is 1\.0 here and 0\.9 in the harness"
    ):
        scores(task, ["acc"], results)
