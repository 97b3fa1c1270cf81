"""Distances between activations: closed forms, invariances, and estimators written out over all
pairs of positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lowrank.metrics.activations import (
    Accumulator,
    Activations,
    ActivationSettings,
    compare,
    hidden_states,
)
from lowrank.metrics.base import AGGREGATE_LAYER, Comparison, Expected, MetricError


def noise(n: int, h: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, h, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_identical_activations() -> None:
    x = noise(50, 8)
    assert compare(x, x) == pytest.approx(
        {"l2": 0.0, "cosine": 1.0, "cka": 1.0, "cka_debiased": 1.0}, abs=1e-12
    )


def test_l2_and_cosine_by_hand() -> None:
    x, y = (
        torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[0.0, 0.0], [0.0, 2.0], [1.0, 1.0]]),
    )
    found = compare(x, y)
    assert found["l2"] == pytest.approx((5 + 2 + 1) / 3)
    assert found["cosine"] == pytest.approx((0 + 0 + math.sqrt(0.5)) / 3), "a zero row has cosine 0"
    assert math.isnan(found["cka_debiased"]), "three positions are too few"


@pytest.mark.parametrize("constant", [torch.zeros(10, 4), torch.full((10, 4), 2.5)])
def test_a_matrix_that_does_not_vary_has_cka_0(constant: torch.Tensor) -> None:
    found = compare(constant, noise(10, 4))
    assert (found["cka"], found["cka_debiased"]) == (0.0, 0.0)


def test_invariances() -> None:
    x, y = noise(60, 6), noise(60, 9, seed=1) + noise(60, 6) @ noise(6, 9, seed=2)
    base = compare(x, y)
    rotation = torch.linalg.qr(noise(6, 6, seed=3)).Q
    moved = compare(4.0 * x @ rotation + noise(1, 6, seed=4), y)
    for name in ("cka", "cka_debiased"):
        assert moved[name] == pytest.approx(base[name], rel=1e-10)
        assert compare(y, x)[name] == pytest.approx(base[name], rel=1e-12), "symmetric"
    stretched = compare(x * torch.tensor([100.0, 1, 1, 1, 1, 1]), y)
    assert abs(stretched["cka"] - base["cka"]) > 0.01, "not invariant to invertible maps"
    assert math.isnan(base["l2"]), "widths differ"


def over_pairs(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Both estimators from the (N, N) kernels, as their papers write them."""
    n = len(x)
    centre = np.eye(n) - 1.0 / n
    K, L = x @ x.T, y @ y.T

    def biased(K: np.ndarray, L: np.ndarray) -> float:
        return float(np.trace(K @ centre @ L @ centre))

    def unbiased(K: np.ndarray, L: np.ndarray) -> float:
        K, L = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
        one = np.ones(n)
        total = (
            np.trace(K @ L)
            + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ K @ L @ one)
        )
        return float(total / (n * (n - 3)))

    return {
        name: f(K, L) / math.sqrt(f(K, K) * f(L, L))
        for name, f in (("cka", biased), ("cka_debiased", unbiased))
    }


@pytest.mark.parametrize(("n", "h"), [(5, 3), (40, 7), (12, 30)])
def test_both_estimators_equal_their_definitions(n: int, h: int) -> None:
    x, y = noise(n, h) + 3.0, noise(n, h + 2, seed=1)
    y[:, :h] += 0.5 * x
    found, expected = compare(x, y), over_pairs(x.numpy(), y.numpy())
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9)


def test_independent_data_are_far_apart_only_without_bias() -> None:
    pairs = [compare(noise(300, 32, seed=2 * i), noise(300, 32, seed=2 * i + 1)) for i in range(8)]
    assert np.mean([p["cka"] for p in pairs]) == pytest.approx(0.095, abs=0.01)
    assert abs(np.mean([p["cka_debiased"] for p in pairs])) < 0.01


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [3, 40, 57], [99, 1]])
def test_the_parts_do_not_matter(sizes: list[int]) -> None:
    x, y = noise(100, 6) + 50.0, noise(100, 6, seed=1)
    whole, streamed = compare(x, y), Accumulator()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        streamed.update(a, b)
    assert streamed.result() == pytest.approx(whole, rel=1e-9)


def test_large_means_do_not_cancel() -> None:
    x, y = noise(200, 5), noise(200, 5, seed=1) + 0.3 * noise(200, 5)
    near, far = compare(x, y), compare(x + 1e6, y - 1e6)
    for name in ("cka", "cka_debiased"):
        assert far[name] == pytest.approx(near[name], rel=1e-7)


def test_bad_activations_raise() -> None:
    with pytest.raises(ValueError, match="same N"):
        compare(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="no position"):
        compare(torch.zeros(0, 2), torch.zeros(0, 2))


def run(unit: Comparison, context: Any, **options: Any) -> dict[tuple[str, int], Any]:
    lens, chosen = Activations(), ActivationSettings(**options)
    results = list(lens.compute(unit, context, chosen))
    assert Expected.of(results) == lens.expected(unit, chosen)
    return {(r.metric, r.layer): r for r in results}


def test_layers_are_the_hidden_states_without_padding(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0), ("galore", 0))
    galore = place.point("galore", 20)
    unit = next(
        u
        for u in Activations().units(place.checkpoints, ActivationSettings())
        if u.checkpoint is galore
    )
    found = run(unit, place.context)
    states = []
    for point in (unit.checkpoint, unit.reference):
        model = place.context.models[point.checkpoint_id].model
        parts = [
            model.model(input_ids=b.input_ids, output_hidden_states=True, use_cache=False)
            for b in place.context.rows
        ]
        assert all(torch.equal(p.hidden_states[-1], p.last_hidden_state) for p in parts), (
            "the last state is after the norm"
        )
        kept = [b.labels != -100 for b in place.context.rows]
        states.append(
            [
                torch.cat([p.hidden_states[i][k] for p, k in zip(parts, kept, strict=True)])
                for i in range(3)
            ]
        )
    for layer, x, y in zip((-1, 0, 1), *states, strict=True):
        for name, value in compare(x, y).items():
            assert found[f"activation_{name}", layer].value == pytest.approx(value, rel=1e-9)
        assert found["activation_l2", layer].n == 5 * 12 - 4
    mean = np.mean([found["activation_cka", layer].value for layer in (-1, 0, 1)])
    assert found["activation_cka", AGGREGATE_LAYER].value == pytest.approx(mean)
    assert found["activation_l2", AGGREGATE_LAYER].standard_error > 0
    counted = run(unit, place.context, padding="counted")
    assert counted["activation_l2", 0].n == 5 * 12
    assert counted["activation_l2", 0].value != found["activation_l2", 0].value


def test_the_baseline_is_its_own_reference(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0))
    unit = next(
        u
        for u in Activations().units(place.checkpoints, ActivationSettings())
        if u.checkpoint.step == 20
    )
    stated = run(unit, place.context)
    point = unit.checkpoint
    computed = [
        compare(s[0], s[0])
        for s in hidden_states(
            place.context.models[point.checkpoint_id].model, place.context.rows[0]
        )
    ]
    for name, value in computed[1].items():
        assert stated[f"activation_{name}", 0].value == pytest.approx(value, abs=1e-9)


def test_a_missing_reference_run_is_said(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0), ("cola", 1))
    blocked = [u for u in Activations().units(place.checkpoints, ActivationSettings()) if u.blocked]
    assert {u.checkpoint.method for u in blocked} == {"cola"}
    assert "no full_rank checkpoint of scale tiny, seed 1" in blocked[0].blocked


def test_networks_of_different_shape_are_refused(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0), ("galore", 0))
    point, reference = place.point("galore", 20), place.point("full_rank", 20)
    layers = place.context.models[reference.checkpoint_id].model.model.layers
    place.context.models[reference.checkpoint_id].model.model.layers = layers[:1]
    with pytest.raises(MetricError, match="different shapes"):
        run(Comparison(point, reference), place.context)


def test_memory_does_not_grow_with_positions() -> None:
    def held(parts: int) -> int:
        streamed = Accumulator()
        for i in range(parts):
            streamed.update(noise(64, 16, seed=i), noise(64, 16, seed=i + 1))
        everything = [
            *streamed._shift,
            *(v for moments in streamed._sums for v in vars(moments).values()),
        ]
        return sum(v.numel() for v in everything if isinstance(v, torch.Tensor))

    assert held(2) == held(40) < 4 * (16 * 16 + 4 * 16)
