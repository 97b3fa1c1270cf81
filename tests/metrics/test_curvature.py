"""Trace and top eigenvalue against an exact Hessian, and the landscape's sharpness against both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowrank.geometry.estimate import EvaluationBatch
from lowrank.geometry.hessian import hessian_products, hutchinson, top_eigenvalue
from lowrank.geometry.offsets import Walk, rule_for
from lowrank.loss import scored_tokens, summed_nats
from lowrank.metrics.base import Comparison, Expected
from lowrank.metrics.curvature import Curvature, CurvatureSettings
from lowrank.metrics.landscape import Grid, LandscapeSettings, random_table

STEP = 1e-5


class Small:
    """A LLaMA of 180 parameters in float64, its tokens, and its Hessian by central differences of
    the gradient.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=6,
            hidden_size=4,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=16,
            tie_word_embeddings=False,
        )
        self.network = LlamaForCausalLM(config)
        for path in [path for path, _ in self.network.named_modules()]:
            if path.endswith(
                "norm"
            ):  # the Hugging Face norm computes in float32 whatever the weights are
                self.network.set_submodule(path, torch.nn.RMSNorm(4, eps=config.rms_norm_eps))
        self.network.double().eval()
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        ids = torch.randint(0, 6, (4, 8))
        labels = ids.clone()
        labels[3, 5:] = -100
        self.batches = [EvaluationBatch(ids[:3], labels[:3]), EvaluationBatch(ids[3:], labels[3:])]
        self.hessian = self._hessian()

    def _gradient(self, flat: torch.Tensor) -> torch.Tensor:
        torch.nn.utils.vector_to_parameters(flat, self.network.parameters())
        total = sum(
            summed_nats(self.network(input_ids=b.input_ids).logits, b.labels) for b in self.batches
        )
        loss = total / sum(scored_tokens(b.labels) for b in self.batches)
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(self.network.parameters()))]
        )

    def _hessian(self) -> np.ndarray:
        at = torch.nn.utils.parameters_to_vector(self.network.parameters()).detach().clone()
        columns = []
        for i in range(len(at)):
            shift = torch.zeros_like(at)
            shift[i] = STEP
            columns.append((self._gradient(at + shift) - self._gradient(at - shift)) / (2 * STEP))
        torch.nn.utils.vector_to_parameters(at, self.network.parameters())
        H = torch.stack(columns).numpy()
        return 0.5 * (H + H.T)


@pytest.fixture(scope="module")
def small() -> Small:
    """Built once."""
    return Small()


def test_products_are_those_of_the_hessian(small: Small) -> None:
    generator = torch.Generator().manual_seed(1)
    with hessian_products(small.network, small.batches) as (product, like):
        v = {
            name: torch.randn(W.shape, generator=generator, dtype=torch.float64)
            for name, W in like.items()
        }
        found = torch.cat([t.flatten() for t in product(v).values()]).numpy()
    flat = torch.cat([t.flatten() for t in v.values()]).numpy()
    np.testing.assert_allclose(found, small.hessian @ flat, rtol=1e-5, atol=1e-7)


def test_trace_top_eigenvalue_and_sharpness_agree_with_the_exact_hessian(small: Small) -> None:
    trace, top = float(np.trace(small.hessian)), float(np.linalg.eigvalsh(small.hessian)[-1])
    with hessian_products(small.network, small.batches) as (product, like):
        estimate = hutchinson(product, like, probes=100, seed=0)
        value, bound, used = top_eigenvalue(product, like, most=60, tolerance=1e-6, seed=0)
    assert estimate.value == pytest.approx(trace, abs=4 * estimate.standard_error)
    assert estimate.standard_error < 0.2 * abs(trace)
    assert value == pytest.approx(top, rel=1e-5)
    assert bound <= 1e-6 * value
    assert used < 60
    settings = LandscapeSettings(
        directions=200, grid=Grid(start=-0.003, step=0.00025, count=25), nodes=1
    )
    rule = rule_for(settings.grid.offsets(), settings.nodes)
    with Walk(small.network, small.batches) as walk:
        sharp = rule.sharpness(random_table(walk, rule, settings))
    scale = 2.0 / np.square(settings.grid.offsets()[13:]).mean()
    assert scale * sharp.value == pytest.approx(trace, abs=4 * scale * sharp.standard_error)


def test_top_eigenvalue_of_a_diagonal() -> None:
    values = torch.tensor([5.0, 4.9, 1.0, -20.0, 0.0], dtype=torch.float64)
    found, bound, _ = top_eigenvalue(
        lambda v: {"x": values * v["x"]}, {"x": values}, most=50, tolerance=1e-9, seed=0
    )
    assert found == pytest.approx(5.0, rel=1e-9)
    zero, bound, used = top_eigenvalue(
        lambda v: {"x": 0 * v["x"]}, {"x": values}, most=50, tolerance=1e-9, seed=0
    )
    assert (zero, bound, used) == (0.0, 0.0, 1)


def run(unit: Comparison, context: Any, **options: Any) -> dict[str, Any]:
    lens, chosen = Curvature(), CurvatureSettings(**{"probes": 3, "iterations": 4, **options})
    results = list(lens.compute(unit, context, chosen))
    assert Expected.of(results) == lens.expected(unit, chosen)
    return {r.metric: r for r in results}


def test_frozen_weights_are_included_and_flags_come_back(arena: Callable[..., Any]) -> None:
    place = arena(("relora", 0))
    point = place.point("relora", 20)
    model = place.context.models[point.checkpoint_id].model
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    assert not all(flags.values())
    found = run(Comparison(point), place.context, space="trained", iterations=1)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert "not converged after 1 products" in found["hessian_top_eigenvalue"].note
    assert found["hessian_trace"].n == 3


def test_a_method_without_dense_weights_says_so(arena: Callable[..., Any]) -> None:
    place = arena(("cola", 0))
    absent = run(Comparison(place.point("cola", 20)), place.context)
    assert {r.value for r in absent.values()} == {None}
    assert all("no dense equivalent" in r.note for r in absent.values())
    assert (
        run(Comparison(place.point("cola", 20)), place.context, space="trained")[
            "hessian_trace"
        ].value
        is not None
    )
