"""Barriers of given curves, and permutation alignment that does not change a network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowrank.geometry.alignment import Permutations, align, fold_gains, permute
from lowrank.geometry.probe import row_losses
from lowrank.metrics.base import Comparison, Expected, MetricError, Value
from lowrank.metrics.interpolation import (
    Interpolation,
    InterpolationSettings,
    barrier,
    barrier_excess,
)

ALPHAS = [i / 20 for i in range(21)]
HEADS = 4


@pytest.mark.parametrize(
    ("curve", "published", "excess"),
    [
        (lambda a: 2.0, 0.0, 0.0),
        (
            lambda a: 3.0 - 0.8 * a,
            0.36,
            0.0,
        ),  # a falling line has a barrier by the published definition
        (lambda a: 3.0 + 0.8 * a, 0.36, 0.0),
        (lambda a: 1.0 + 4 * a * (1 - a), 1.0, 1.0),
        (lambda a: 1.0 - 4 * a * (1 - a), -0.19, 0.0),  # a dip has a negative one
        (lambda a: 3.0 - 0.8 * a + 4 * a * (1 - a), 1.04, 1.0),
    ],
)
def test_barriers_of_given_curves(
    curve: Callable[[float], float], published: float, excess: float
) -> None:
    losses = [curve(a) for a in ALPHAS]
    assert barrier(ALPHAS, losses) == pytest.approx(published, abs=1e-12)
    assert barrier_excess(ALPHAS, losses) == pytest.approx(excess, abs=1e-12)


@pytest.mark.parametrize(
    ("alphas", "losses", "words"),
    [
        ([0.0, 1.0], [1.0, 2.0], "at least one point"),
        ([0.0, 0.5], [1.0, 2.0], "at least one point"),
        ([0.1, 0.5, 1.0], [1.0, 2.0, 1.0], "ascend from 0 to 1"),
        ([0.0, 0.6, 0.5, 1.0], [1.0] * 4, "ascend from 0 to 1"),
        ([0.0, 0.5, 1.0], [1.0, 2.0], "one length"),
    ],
)
def test_bad_lines_raise(alphas: list[float], losses: list[float], words: str) -> None:
    for function in (barrier, barrier_excess):
        with pytest.raises(ValueError, match=words):
            function(alphas, losses)


def run(unit: Comparison, context: Any, **options: Any) -> dict[str, Any]:
    lens, chosen = Interpolation(), InterpolationSettings(points=5, **options)
    results = list(lens.compute(unit, context, chosen))
    assert Expected.of(results) == lens.expected(unit, chosen)
    return {(r.metric if isinstance(r, Value) else f"curve {r.curve}"): r for r in results}


def test_consecutive_checkpoints_are_walked_in_a_straight_line(arena: Callable[..., Any]) -> None:
    place = arena(("relora", 0))
    now, before = place.point("relora", 20), place.point("relora", 10)
    found = run(Comparison(now, before, frozenset({"consecutive"})), place.context)
    A, B = (place.context.network(p, "dense") for p in (before, now))
    middle = copy.deepcopy(B)
    with torch.no_grad():
        for p, a, b in zip(middle.parameters(), A.parameters(), B.parameters(), strict=True):
            p.copy_(0.5 * a + 0.5 * b)
    losses = [row_losses(network, place.context.rows).mean() for network in (A, middle, B)]
    curve = found["curve ccbh"]
    assert [curve.means[0], curve.means[2], curve.means[4]] == pytest.approx(losses, rel=1e-6)
    assert found["ccbh"].value == pytest.approx(barrier(curve.offsets, curve.means))
    assert found["ccbh_excess"].value == pytest.approx(barrier_excess(curve.offsets, curve.means))
    assert found["ccbh"].standard_error > 0


def test_cola_is_walked_in_its_own_parameters_and_kept_out_of_pairs(
    arena: Callable[..., Any],
) -> None:
    place = arena(("full_rank", 0), ("cola", 0))
    unit = Comparison(place.point("cola", 20), place.point("cola", 10), frozenset({"consecutive"}))
    own = run(unit, place.context)
    assert "own parameters" in own["ccbh"].note
    every = Interpolation().units(place.checkpoints, InterpolationSettings())
    units = [u for u in every if "methods" in u.roles]
    named = [(u.reference.method, u.checkpoint.method, u.checkpoint.step) for u in units]
    assert named == [("full_rank", "cola", 10), ("full_rank", "cola", 20)]
    pair = run(units[1], place.context)
    names = ("imbh", "imbh_excess", "imbh_folded", "imbh_aligned")
    assert {name: r.value for name, r in pair.items()} == dict.fromkeys(names)
    assert all("cola has no dense equivalent" in r.note for r in pair.values())


def test_pairs_of_a_cell(arena: Callable[..., Any]) -> None:
    place = arena(("sltrain", 0), ("galore", 0), ("full_rank", 0), ("galore", 1))
    units = Interpolation().units(
        place.checkpoints, InterpolationSettings(kinds=["methods", "seeds"])
    )
    last = [u for u in units if u.checkpoint.step == 20]
    at_20 = {
        (u.reference.method, u.reference.seed, u.checkpoint.method, u.checkpoint.seed) for u in last
    }
    methods = {
        ("full_rank", 0, "galore", 0),
        ("full_rank", 0, "sltrain", 0),
        ("galore", 0, "sltrain", 0),
    }
    null = {("galore", 0, "galore", 1)}
    assert at_20 == methods | null, "the baseline is the reference, else the first of the alphabet"
    assert {u.checkpoint.step for u in units} == {10, 20}


def test_a_pair_says_whether_it_shares_its_start(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0), ("galore", 0), ("galore", 1))
    same = run(
        Comparison(place.point("galore", 20), place.point("full_rank", 20), frozenset({"methods"})),
        place.context,
    )
    other = run(
        Comparison(
            place.point("galore", 20, seed=1), place.point("galore", 20), frozenset({"seeds"})
        ),
        place.context,
    )
    assert "share their initialisation" in same["imbh"].note
    assert "different initialisations" in other["imbh"].note


def test_a_checkpoint_against_itself_has_no_barrier(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0))
    point = place.point("full_rank", 20)
    for roles in ({"consecutive"}, {"methods"}):
        found = run(Comparison(point, point, frozenset(roles)), place.context)
        values = [r.value for r in found.values() if isinstance(r, Value)]
        assert values == pytest.approx([0.0] * len(values), abs=1e-6)


def test_networks_of_different_shape_are_refused(arena: Callable[..., Any]) -> None:
    place = arena(("full_rank", 0), ("cola", 0))
    with pytest.raises(MetricError, match="different shapes"):
        run(
            Comparison(
                place.point("cola", 20), place.point("full_rank", 20), frozenset({"consecutive"})
            ),
            place.context,
        )


def llama(seed: int, dtype: torch.dtype = torch.float64) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=32,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    for path in [path for path, _ in model.named_modules()]:
        if path.endswith(
            "norm"
        ):  # the Hugging Face norm computes in float32 whatever the weights are
            model.set_submodule(path, torch.nn.RMSNorm(24, eps=config.rms_norm_eps))
    model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(
                0.2 * torch.randn_like(parameter)
            )  # gains away from 1, attention away from uniform
    return model


def logits(model: LlamaForCausalLM, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = torch.arange(60).view(3, 20) % 50
    with torch.no_grad():
        return torch.func.functional_call(
            model, weights, (), {"input_ids": ids, "use_cache": False}
        ).logits


def weights_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_folded_permuted_and_aligned_networks_have_the_same_logits(
    dtype: torch.dtype, tolerance: float
) -> None:
    model, other = llama(0, dtype), llama(1, dtype)
    expected = logits(model, weights_of(model))
    folded = fold_gains(weights_of(model))
    generator = torch.Generator().manual_seed(3)
    shuffled = Permutations(
        torch.randperm(24, generator=generator),
        [torch.randperm(HEADS, generator=generator) for _ in range(3)],
        [torch.randperm(40, generator=generator) for _ in range(3)],
    )
    aligned = align(fold_gains(weights_of(other)), folded, HEADS)
    assert any(not torch.equal(aligned[name], folded[name]) for name in folded)
    for weights in (folded, permute(folded, shuffled, HEADS), aligned):
        torch.testing.assert_close(logits(model, weights), expected, rtol=0, atol=tolerance)


def test_alignment_undoes_a_permutation() -> None:
    folded = fold_gains(weights_of(llama(0)))
    generator = torch.Generator().manual_seed(5)
    shuffled = permute(
        folded,
        Permutations(
            torch.randperm(24, generator=generator),
            [torch.randperm(HEADS, generator=generator) for _ in range(3)],
            [torch.randperm(40, generator=generator) for _ in range(3)],
        ),
        HEADS,
    )
    recovered = align(folded, shuffled, HEADS)
    assert max(float((recovered[name] - folded[name]).abs().max()) for name in folded) == 0.0


def test_alignment_never_moves_two_networks_apart() -> None:
    for seed in range(3):
        a, b = (fold_gains(weights_of(llama(s))) for s in (seed, seed + 10))
        aligned = align(a, b, HEADS)
        before, after = (
            np.sqrt(sum(float((a[n] - w[n]).square().sum()) for n in a)) for w in (b, aligned)
        )
        assert after < before
