"""Spectra against closed forms and NumPy's float64 SVD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lowrank.geometry.spectrum import (
    product_singular_values,
    singular_value_metrics,
    singular_values,
)
from lowrank.metrics.base import AGGREGATE_LAYER, Comparison, Expected, MetricError
from lowrank.metrics.spectra import (
    FACTORS,
    LINEARISED,
    Spectra,
    SpectraSettings,
    all_singular_values,
    differences,
    matrices,
)


def test_closed_forms() -> None:
    flat = singular_value_metrics(torch.full((7,), 3.0))
    assert flat == pytest.approx(
        {"effective_rank": 7, "stable_rank": 7, "spectral_gap": 0, "threshold_rank": 7}
    )
    assert set(singular_value_metrics(torch.tensor([2.0])).values()) == {1.0}
    assert set(singular_value_metrics(torch.zeros(4)).values()) == {0.0}
    s = torch.tensor([0.1, 4.0, 1.0, 0.05], dtype=torch.float64)
    found = singular_value_metrics(s)
    p = np.array([4, 1, 0.1, 0.05]) / 5.15
    assert found["effective_rank"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-14)
    assert found["stable_rank"] == pytest.approx((16 + 1 + 0.01 + 0.0025) / 16, rel=1e-14)
    assert found["spectral_gap"] == pytest.approx(0.75, rel=1e-14)
    assert found["threshold_rank"] == 2, "strictly above 0.1"
    assert singular_value_metrics(s, threshold=0.04)["threshold_rank"] == 4


@pytest.mark.parametrize("bad", [[math.nan, 1.0], [math.inf], [-1.0, 2.0], []])
def test_bad_singular_values_raise(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="finite, non-negative"):
        singular_value_metrics(torch.tensor(bad))


@given(
    hnp.arrays(np.float64, st.integers(1, 20), elements=st.just(0.0) | st.floats(1e-150, 1e150)),
    st.floats(1e-3, 1e3),
)
@settings(max_examples=100, deadline=None)
def test_ranges_and_scale_invariance(s: np.ndarray, factor: float) -> None:
    found, scaled = (singular_value_metrics(torch.from_numpy(v.copy())) for v in (s, s * factor))
    for name in ("effective_rank", "stable_rank", "spectral_gap"):
        assert found[name] == pytest.approx(scaled[name], rel=1e-9, abs=1e-12)
    if s.max() > 0:
        assert 1 - 1e-9 <= found["effective_rank"] <= len(s) + 1e-9
        assert 1 - 1e-9 <= found["stable_rank"] <= len(s) + 1e-9
        assert 0 <= found["spectral_gap"] <= 1


@pytest.mark.parametrize("shape", [(30, 30), (64, 20), (20, 64), (1, 5), (5, 1)])
def test_singular_values_equal_the_svd(shape: tuple[int, int]) -> None:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = np.linalg.svd(W.double().numpy(), compute_uv=False)
    found = singular_values(W)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-8 * expected[0])
    exact, ours = (
        singular_value_metrics(torch.from_numpy(expected.copy())),
        singular_value_metrics(found),
    )
    assert ours == pytest.approx(exact, rel=1e-9)


def test_extreme_sizes_neither_overflow_nor_vanish() -> None:
    W = torch.randn(12, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = singular_value_metrics(singular_values(W), threshold=1e-9)
    for size in (1e-160, 1e160):
        scaled = singular_value_metrics(singular_values(W * size), threshold=1e-9 * size)
        assert scaled == pytest.approx(one, rel=1e-9)
    assert (singular_values(torch.zeros(3, 5)) == 0).all()


def test_product_is_never_formed_but_has_its_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    B, A = torch.randn(40, 6, generator=generator), torch.randn(6, 25, generator=generator)
    expected = np.linalg.svd((B.double() @ A.double()).numpy(), compute_uv=False)
    np.testing.assert_allclose(
        product_singular_values(B, A).numpy(), expected, atol=1e-12 * expected[0]
    )
    wide = product_singular_values(torch.ones(3, 9), torch.ones(9, 4))
    np.testing.assert_allclose(wide.numpy(), [9 * math.sqrt(12), 0, 0], atol=1e-6)


def rows(unit: Comparison, context: Any, **options: Any) -> dict[tuple[str, int, str], Any]:
    lens, chosen = Spectra(), SpectraSettings(**options)
    results = list(lens.compute(unit, context, chosen))
    assert Expected.of(results) == lens.expected(unit, chosen)
    return {(r.metric, r.layer, r.module): r for r in results if hasattr(r, "metric")}


def test_aggregates_are_means_over_matrices(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0))
    now, before = place.point("full_rank", 20), place.point("full_rank", 10)
    found = rows(Comparison(now, before, frozenset({"dw"})), place.context)
    W, V = (place.context.models[p.checkpoint_id].model.state_dict() for p in (now, before))
    names = [n for n in W if n.endswith("_proj.weight")]
    assert len(names) == 14
    deltas = {n: W[n].double() - V[n].double() for n in names}
    each = [
        singular_value_metrics(torch.from_numpy(np.linalg.svd(d.numpy(), compute_uv=False)))
        for d in deltas.values()
    ]
    for name in ("effective_rank", "stable_rank", "spectral_gap", "threshold_rank"):
        value = found[f"{name}_dw", AGGREGATE_LAYER, ""]
        assert value.value == pytest.approx(np.mean([e[name] for e in each]), rel=1e-9)
        assert value.n == 14
    moved = math.sqrt(sum(float(d.square().sum()) for d in deltas.values()))
    size = math.sqrt(sum(float(W[n].double().square().sum()) for n in names))
    assert found["delta_norm", AGGREGATE_LAYER, ""].value == pytest.approx(moved)
    assert found["delta_norm_relative", AGGREGATE_LAYER, ""].value == pytest.approx(moved / size)
    one = singular_value_metrics(
        torch.linalg.svdvals(deltas["model.layers.1.mlp.down_proj.weight"])
    )
    assert found["stable_rank_dw", 1, "down"].value == pytest.approx(one["stable_rank"])


def test_relora_is_measured_as_its_effective_weight_or_as_three_factors(
    arena: Callable[..., Any],
) -> None:
    place = arena(("relora", 0))
    point = place.point("relora", 20)
    layer = place.context.models[point.checkpoint_id].model.model.layers[0].self_attn.q_proj
    dense = rows(Comparison(point, None, frozenset({"w"})), place.context)
    effective = layer.weight.double() + layer.scale * layer.B.double() @ layer.A.double()
    expected = singular_value_metrics(torch.linalg.svdvals(effective))
    assert dense["effective_rank_w", 0, "q"].value == pytest.approx(
        expected["effective_rank"], rel=1e-5
    )
    factors = rows(Comparison(point, None, frozenset({"w"})), place.context, space="factor")
    assert factors["effective_rank_w", 0, "q"].n == 3
    three = [
        singular_value_metrics(torch.linalg.svdvals(f.double()))["effective_rank"]
        for f in (layer.weight, layer.A, layer.B)
    ]
    assert factors["effective_rank_w", 0, "q"].value == pytest.approx(np.mean(three))


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "merged"), [("relora", False), ("relora", True), ("sltrain", False)]
)
def test_a_small_update_of_a_sum_of_parts_keeps_its_digits(
    method: str, merged: bool, arena: Callable[..., Any]
) -> None:
    place = arena((method, 0))
    now, before = place.point(method, 20), place.point(method, 10)
    models = [place.context.models[p.checkpoint_id].model for p in (now, before)]
    for new, old in zip(
        *([m for m in model.modules() if hasattr(m, "dense")] for model in models), strict=True
    ):
        if method == "relora":
            new.weight.copy_(old.weight)
        else:
            new.values.copy_(old.values * 1.0001)
        new.B.copy_(
            old.B + 1e-4 * new.B
        )  # moves by little: two dense float32 sums would lose most of it in rounding
        new.A.copy_(old.A)
        if merged:
            new.merge_()
    unit = Comparison(now, before, frozenset({"dw"}))
    deltas = differences(
        *(matrices(p, place.context, "dense", linearise=False) for p in (now, before)), unit
    )
    product = method == "relora" and not merged
    assert {isinstance(entry, tuple) for entry in deltas.values()} == {product}, (
        "a merge rounds W0, which leaves no product"
    )
    assert all(
        (values[8:] == 0).all() == product for values in all_singular_values(deltas).values()
    ), "of rank 2r at most"
    found = rows(unit, place.context)
    W, V = (effective(model.model.layers[0].self_attn.q_proj) for model in models)
    exact = singular_value_metrics(torch.from_numpy(np.linalg.svd(W - V, compute_uv=False)))
    for name in ("effective_rank", "stable_rank", "spectral_gap"):
        assert found[f"{name}_dw", 0, "q"].value == pytest.approx(exact[name], rel=1e-7)
    assert found["delta_norm", 0, "q"].value == pytest.approx(np.linalg.norm(W - V), rel=1e-9)
    assert {
        r.value for r in rows(Comparison(now, now, frozenset({"dw"})), place.context).values()
    } == {0.0}


def effective(layer: Any) -> np.ndarray:
    """The weight of a layer of parts in float64."""
    made = (layer.alpha / layer.rank) * layer.B.double() @ layer.A.double()
    if hasattr(layer, "weight"):
        return (made + layer.weight.double()).numpy()
    made.view(-1)[layer.indices] += layer.values.double()
    return made.numpy()


def test_a_method_without_dense_weights_says_what_is_measured(arena: Callable[..., Any]) -> None:
    place = arena(("cola", 0))
    point, before = place.point("cola", 20), place.point("cola", 10)
    product = rows(Comparison(point, None, frozenset({"w"})), place.context)
    layer = place.context.models[point.checkpoint_id].model.model.layers[0].mlp.down_proj
    expected = singular_value_metrics(torch.linalg.svdvals(layer.B.double() @ layer.A.double()))
    assert product["effective_rank_w", 0, "down"].value == pytest.approx(
        expected["effective_rank"], rel=1e-6
    )
    assert {r.note for r in product.values()} == {LINEARISED}
    assert {
        r.note for r in rows(Comparison(point, before, frozenset({"dw"})), place.context).values()
    } == {FACTORS}


def test_a_checkpoint_against_itself_does_not_move(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0))
    point = place.point("full_rank", 20)
    assert {
        r.value for r in rows(Comparison(point, point, frozenset({"dw"})), place.context).values()
    } == {0.0}


def test_different_shapes_are_refused(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0), ("cola", 0))
    with pytest.raises(MetricError, match="different shapes"):
        rows(
            Comparison(place.point("cola", 20), place.point("full_rank", 20), frozenset({"dw"})),
            place.context,
        )
