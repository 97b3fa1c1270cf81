"""CoLA, SLTrain and ReLoRA layers against independent formulations, closed forms and finite
differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank import methods, models
from lowrank.config import resolve
from lowrank.config.schema import ModelShape
from lowrank.errors import ConfigError, LowrankError
from lowrank.methods.base import create
from lowrank.methods.cola import CoLALinear
from lowrank.methods.relora import ReLoRALinear
from lowrank.methods.sltrain import SLTrainLinear
from lowrank.models import LowRankLlamaConfig, LowRankLlamaForCausalLM, named_draws
from lowrank.presets import load

OUT, IN, RANK = 12, 9, 4
COUNTS = {  # all, trained; vocabulary 32000, untied head
    "60m": {
        "full_rank": 58_073_600,
        "cola": 42_770_944,
        "sltrain": 43_529_832,
        "relora": (68_067_840, 42_770_944),
    },
    "130m": {
        "full_rank": 134_105_856,
        "cola": 93_997_824,
        "sltrain": 96_545_796,
        "relora": (178_932_480, 93_997_824),
    },
    "350m": {
        "full_rank": 367_969_280,
        "cola": 185_222_144,
        "sltrain": 194_293_544,
        "relora": (487_605_248, 185_222_144),
    },
}
for scale in COUNTS.values():
    scale["galore"] = scale["fira"] = scale["full_rank"]


def layers(dtype: torch.dtype = torch.float32, bias: bool = True) -> dict[str, nn.Module]:
    torch.manual_seed(3)
    made: dict[str, nn.Module] = {
        "cola": CoLALinear(IN, OUT, RANK, bias=bias),
        "sltrain": SLTrainLinear(IN, OUT, RANK, sparsity=0.1, alpha=6.0, bias=bias),
        "relora": ReLoRALinear(nn.Linear(IN, OUT, bias=bias), RANK, alpha=6.0, dropout=0.1).eval(),
    }
    for layer in made.values():
        nn.init.normal_(layer.B)  # zero at the start of two of them: nothing would be seen of A
        layer.to(dtype)
    return made


def by_hand(layer: Any, x: Tensor) -> Tensor:
    """The published equation with plain matrix products."""
    if isinstance(layer, CoLALinear):
        inner = x @ layer.A.T
        return (inner / (1 + torch.exp(-inner))) @ layer.B.T + layer.bias
    W = 6.0 / RANK * layer.B @ layer.A
    if isinstance(layer, SLTrainLinear):
        for position, value in zip(layer.indices.tolist(), layer.values, strict=True):
            W = W + torch.zeros_like(W).index_put(
                (torch.tensor(position // IN), torch.tensor(position % IN)), value
            )
    else:
        W = W + layer.weight
    return x @ W.T + layer.bias


@pytest.mark.parametrize("name", ["cola", "sltrain", "relora"])
def test_forward_and_gradients_follow_the_equation(name: str) -> None:
    layer, x = (
        layers(torch.float64)[name],
        torch.randn(2, 5, IN, dtype=torch.float64, requires_grad=True),
    )
    trained = [x, *(p for p in layer.parameters() if p.requires_grad)]
    ours, theirs = layer(x), by_hand(layer, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(ours)
    for g, h in zip(
        torch.autograd.grad(ours, trained, upstream),
        torch.autograd.grad(theirs, trained, upstream),
        strict=True,
    ):
        torch.testing.assert_close(g, h, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["cola", "sltrain", "relora"])
def test_derivatives_of_first_and_second_order_match_finite_differences(name: str) -> None:
    layer = layers(torch.float64)[name]
    trained = {
        n: p.detach().requires_grad_() for n, p in layer.named_parameters() if p.requires_grad
    }
    x = torch.randn(3, IN, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(trained, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *trained.values()))
    assert torch.autograd.gradgradcheck(run, (x, *trained.values()))


@pytest.mark.parametrize("name", ["sltrain", "relora"])
def test_dense_is_the_effective_weight(name: str) -> None:
    layer, x = layers(torch.float64)[name], torch.randn(7, IN, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ layer.dense().T + layer.bias, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["cola", "sltrain", "relora"])
def test_bfloat16_autocast_gives_float32_gradients(name: str) -> None:
    layer, x = layers()[name], torch.randn(7, IN)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    assert all(
        p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0
        for p in layer.parameters()
        if p.requires_grad
    )
    torch.testing.assert_close(found.float(), by_hand(layer, x).detach(), rtol=0.05, atol=0.2)


def test_cola_starts_with_the_published_variance() -> None:
    layer = CoLALinear(300, 200, 64)
    layer.reset_parameters(named_draws(0))
    for factor in (layer.A, layer.B):
        assert factor.var().item() == pytest.approx(1 / math.sqrt(64 * 500), rel=0.05)
        assert abs(factor.mean().item()) < 0.01


def test_sltrain_starts_as_published() -> None:
    layer = SLTrainLinear(300, 200, 64, sparsity=0.03, alpha=32.0)
    layer.reset_parameters(named_draws(0))
    bound = 1 / math.sqrt(300)
    assert layer.B.abs().max() == 0
    for uniform in (layer.A, layer.values):
        assert bound * 0.98 < uniform.abs().max() <= bound
        assert uniform.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    indices = layer.indices
    assert indices.dtype == torch.int64
    assert len(indices) == int(0.03 * 300 * 200)
    assert (indices.diff() > 0).all()
    assert indices.max() < 300 * 200
    assert torch.histc(indices.float(), 4, 0, 60000).min() > 380  # spread over the whole matrix
    again = SLTrainLinear(300, 200, 64, sparsity=0.03, alpha=32.0)
    assert not torch.equal(again.indices, indices)
    again.reset_parameters(named_draws(0))
    assert torch.equal(again.indices, indices)


def test_sltrain_reads_its_support_at_call_time() -> None:
    layer = layers()["sltrain"]
    layer.indices.copy_(torch.arange(len(layer.indices)))
    x = torch.randn(3, IN)
    torch.testing.assert_close(layer(x), by_hand(layer, x))


@pytest.mark.parametrize("sparsity", [0.0, 1.1, 1e-5])
def test_impossible_sparsity_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError, match="sparsity"):
        SLTrainLinear(IN, OUT, RANK, sparsity=sparsity, alpha=1.0)


@pytest.mark.parametrize(("init", "dead"), [("lora", False), ("published", True)])
def test_relora_starts_alive_unless_asked_to_repeat_the_study(init: Any, dead: bool) -> None:
    layer = ReLoRALinear(nn.Linear(IN, OUT), RANK, 6.0, 0.0, init=init)
    layer.reset_parameters(named_draws(0))
    layer(torch.randn(5, IN)).square().sum().backward()
    assert layer.weight.grad is None
    assert (layer.B.grad.abs().sum() == 0) == dead
    assert torch.equal(layer.dense(), layer.weight)
    layer.merge_(named_draws(1))
    assert layer.A.abs().max() > 0  # a merge wakes it up


def test_relora_merge_keeps_the_function_and_restarts_the_adapter() -> None:
    layer, x = layers()["relora"], torch.randn(7, IN)
    before, old_A = layer(x), layer.A.detach().clone()
    layer.merge_(named_draws(0))
    torch.testing.assert_close(layer(x), before, rtol=1e-5, atol=1e-5)
    assert layer.B.abs().max() == 0
    assert not torch.equal(layer.A, old_A)
    assert layer.A.abs().max() <= 1 / math.sqrt(IN)


@pytest.mark.parametrize(
    ("reset", "share"), [("full", 0.0), ("shared_mask", 0.2), ("independent_masks", 0.2)]
)
def test_relora_resets_the_moments_of_the_adapter_alone(
    reset: str, share: float, start: Callable[..., Any]
) -> None:
    run = start("relora", reset=reset, keep=0.2, merge_every=4)
    run.train(1, 3)
    factors = [p for name, p in run.model.named_parameters() if name.endswith((".A", ".B"))]
    others = [p for p in run.optimizer.state if not any(p is f for f in factors)]
    merge, run.method.after_update = run.method.after_update, lambda *_: None
    run.train(4, 4)
    kept = [run.optimizer.state[p]["exp_avg"].clone() for p in others]
    merge(4, run.model, run.optimizer, named_draws(0))
    m, v = (
        torch.cat([run.optimizer.state[f][key].flatten() for f in factors])
        for key in ("exp_avg", "exp_avg_sq")
    )
    assert (m != 0).float().mean().item() == pytest.approx(share, abs=0.03)
    both = ((m != 0) & (v != 0)).float().mean().item()
    assert both == pytest.approx(share**2 if reset == "independent_masks" else share, abs=0.03)
    assert {float(run.optimizer.state[f]["step"]) for f in factors} == {
        0.0 if reset == "full" else 4.0
    }
    assert all(
        torch.equal(k, run.optimizer.state[p]["exp_avg"]) for k, p in zip(kept, others, strict=True)
    )


def test_relora_merges_after_the_multiple_or_as_published(start: Callable[..., Any]) -> None:
    assert [u for u in range(1, 14) if start("relora", merge_every=4).method.merges_after(u)] == [
        4,
        8,
        12,
    ]
    assert [
        u
        for u in range(1, 14)
        if start("relora", merge_every=4, merge_lag=1).method.merges_after(u)
    ] == [5, 9, 13]


def test_relora_draws_new_factors_at_every_merge(start: Callable[..., Any]) -> None:
    run, drawn = start("relora", merge_every=2), []
    run.train(1, 1)
    for update in (2, 4):
        run.method.after_update(update, run.model, run.optimizer, named_draws(0))
        layers = [m for m in run.model.modules() if isinstance(m, ReLoRALinear)]
        drawn += [m.A.detach().clone() for m in layers if m.A.shape == (8, 32)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_relora_that_resets_nothing_raises(start: Callable[..., Any]) -> None:
    run = start("relora", merge_every=4)
    with pytest.raises(
        LowrankError, match=r"no moments of model\.layers\.0\..*A to reset at update 4"
    ):
        run.method.after_update(
            4, run.model, torch.optim.SGD(run.model.parameters(), lr=0.1), named_draws(0)
        )
    with pytest.raises(LowrankError, match="no adapter to merge at update 4"):
        run.method.after_update(4, nn.Linear(2, 2), run.optimizer, named_draws(0))


def test_relora_draws_do_not_depend_on_wrappers(start: Callable[..., Any]) -> None:
    bare, wrapped = start("relora", merge_every=2), start("relora", merge_every=2)
    bare.train(1, 2)
    after, wrapped.method.after_update = wrapped.method.after_update, lambda *_: None
    wrapped.train(1, 2)
    after(2, nn.ModuleDict({"module": wrapped.model}), wrapped.optimizer, named_draws(0))
    assert torch.equal(
        bare.model.model.layers[0].mlp.up_proj.A, wrapped.model.model.layers[0].mlp.up_proj.A
    )


def test_cola_drops_the_outer_gate_activation_on_request(start: Callable[..., Any]) -> None:
    rows = torch.full((2, 8), 5)
    kept, dropped = start("cola").model, start("cola", outer_gate_activation=False).model
    assert isinstance(dropped.model.layers[0].mlp.act_fn, nn.Identity)
    assert not torch.allclose(kept(input_ids=rows).logits, dropped(input_ids=rows).logits)
    mlp, x = dropped.model.layers[0].mlp, torch.randn(3, 32)
    torch.testing.assert_close(mlp(x), mlp.down_proj(mlp.gate_proj(x) * mlp.up_proj(x)))


def test_cola_names_unknown_activations() -> None:
    with pytest.raises(ConfigError, match="activation is 'softsign'"):
        CoLALinear(IN, OUT, RANK, activation="softsign")


@pytest.mark.parametrize("scale", COUNTS)
@pytest.mark.parametrize("name", sorted(COUNTS["60m"]))
def test_parameter_counts_of_the_published_shapes(scale: str, name: str) -> None:
    shape = ModelShape.model_validate(load("scales")[scale])
    layers = list(resolve.recipe_layers("exact", name, scale))
    settings = resolve.merge(layer.get("settings", {}) for layer in layers)
    if "rank" in methods.get(name).Settings.model_fields:
        settings["rank"] = shape.rank
    method, arguments = create(name, settings), models.llama_config(shape, 32000, 256, {})
    with torch.device("meta"):
        if method.custom_architecture:
            model: nn.Module = LowRankLlamaForCausalLM(
                LowRankLlamaConfig(method=name, method_settings=settings, **arguments)
            )
        else:
            model = models.LlamaForCausalLM(models.LlamaConfig(**arguments))
    published = COUNTS[scale][name]
    every, trained = published if isinstance(published, tuple) else (published, published)
    assert sum(p.numel() for p in model.parameters()) == every
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trained
    indices = sum(b.numel() for n, b in model.named_buffers() if n.endswith("indices"))
    assert indices == sum(p.numel() for n, p in model.named_parameters() if n.endswith("values"))
