"""Learning-rate factors as pure functions of the update."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from lowrank.schedule import cosine, cosine_restarts, cosine_restarts_published
from lowrank.settings import Training

PUBLISHED_60M = {
    "total": 10000,
    "warmup": 1000,
    "restart_every": 1000,
    "restart_warmup": 100,
    "min_ratio": 0.1,
}


def test_cosine_at_its_special_points() -> None:
    assert cosine(0, 100, 10, 0.1) == 0
    assert cosine(5, 100, 10, 0.1) == 0.5
    assert cosine(10, 100, 10, 0.1) == 1
    assert cosine(55, 100, 10, 0.1) == pytest.approx(0.55)
    assert cosine(100, 100, 10, 0.1) == cosine(1000, 100, 10, 0.1) == 0.1
    assert cosine(0, 100, 0, 0.1) == 1
    factors = [cosine(step, 100, 10, 0.1) for step in range(10, 101)]
    assert factors == sorted(factors, reverse=True)


def test_restart_ramps_end_on_the_cosine() -> None:
    arguments = {
        "total": 1000,
        "warmup": 50,
        "restart_every": 100,
        "restart_warmup": 10,
        "min_ratio": 0.1,
    }
    for step in range(1001):
        found, position = cosine_restarts(step, **arguments), step % 100
        if step < 50:
            assert found == step / 50
        elif step >= 100 and position < 10:
            assert found == pytest.approx(
                position / 10 * cosine(step - position + 10, 1000, 50, 0.1)
            )
        else:
            assert found == cosine(step, 1000, 50, 0.1)
    assert cosine_restarts(210, **arguments) == cosine(210, 1000, 50, 0.1)


def test_nothing_restarts_during_the_first_warm_up() -> None:
    arguments = {
        "total": 60000,
        "warmup": 6000,
        "restart_every": 5000,
        "restart_warmup": 200,
        "min_ratio": 0.1,
    }
    assert cosine_restarts(5000, **arguments) == 5000 / 6000
    assert cosine_restarts_published(5000, **arguments) == 5000 / 6000


def test_the_published_restarts_end_below_the_cosine_and_jump() -> None:
    assert cosine_restarts_published(2099, **PUBLISHED_60M) == pytest.approx(0.886, abs=5e-4)
    assert cosine_restarts_published(2100, **PUBLISHED_60M) == pytest.approx(0.967, abs=5e-4)
    assert cosine_restarts(2099, **PUBLISHED_60M) == pytest.approx(
        0.99 * cosine(2100, 10000, 1000, 0.1)
    )


def test_relora_ramps_after_every_merge_and_wastes_no_update(start: Callable[..., Any]) -> None:
    training = Training(learning_rate=1.0, steps=40, warmup_steps=4)
    method = start("relora", merge_every=10, restart_warmup=4).method
    factors = {update: method.lr_factor(update, training) for update in range(1, 41)}
    assert min(factors.values()) > 0
    for merge in (10, 20, 30):
        assert factors[merge] == cosine(merge, 40, 4, 0.1)
        for after in range(1, 4):
            assert factors[merge + after] == pytest.approx(
                after / 4 * cosine(merge + 4, 40, 4, 0.1)
            )
        assert factors[merge + 4] == cosine(merge + 4, 40, 4, 0.1)


def test_the_published_relora_repeats_the_launcher(start: Callable[..., Any]) -> None:
    training = Training(learning_rate=1.0, steps=10000, warmup_steps=1000, schedule_lag=1)
    method = start(
        "relora", merge_every=1000, restart_warmup=100, restarts="published", merge_lag=1
    ).method
    assert method.merges_after(2001)
    assert method.lr_factor(2001, training) == 0
    assert method.lr_factor(2100, training) == pytest.approx(0.886, abs=5e-4)
    assert math.isclose(method.lr_factor(2101, training), cosine(2100, 10000, 1000, 0.1))
