"""Estimates against real models, optimizers, saved tensors and files, and the published counts."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank import checkpoint, methods, models
from lowrank import estimate as module
from lowrank.config import Config, Data, ModelShape, RunConfig, Training
from lowrank.errors import LowrankError, UsageError
from lowrank.estimate import SPECIAL, estimate
from lowrank.loss import summed_nats
from lowrank.methods.base import Method
from lowrank.presets import load
from lowrank.train.memory import model_bytes, state_bytes

SHAPES = {
    "even": ModelShape(
        hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4, rank=8
    ),
    "odd": ModelShape(
        hidden_size=18, intermediate_size=37, num_hidden_layers=3, num_attention_heads=3, rank=5
    ),
}
# Parameters, all and trained, at vocabulary 32000, as the publications' configurations have them.
PUBLISHED = {
    ("full_rank", "60m"): (58_073_600, 58_073_600),
    ("full_rank", "130m"): (134_105_856, 134_105_856),
    ("full_rank", "350m"): (367_969_280, 367_969_280),
    ("galore", "60m"): (58_073_600, 58_073_600),
    ("galore", "130m"): (134_105_856, 134_105_856),
    ("galore", "350m"): (367_969_280, 367_969_280),
    ("fira", "60m"): (58_073_600, 58_073_600),
    ("fira", "130m"): (134_105_856, 134_105_856),
    ("fira", "350m"): (367_969_280, 367_969_280),
    ("cola", "60m"): (42_770_944, 42_770_944),
    ("cola", "130m"): (93_997_824, 93_997_824),
    ("cola", "350m"): (185_222_144, 185_222_144),
    ("sltrain", "60m"): (43_529_832, 43_529_832),
    ("sltrain", "130m"): (96_545_796, 96_545_796),
    ("sltrain", "350m"): (194_293_544, 194_293_544),
    ("relora", "60m"): (68_067_840, 42_770_944),
    ("relora", "130m"): (178_932_480, 93_997_824),
    ("relora", "350m"): (487_605_248, 185_222_144),
}


def config(
    method: str,
    shape: ModelShape,
    max_length: int = 16,
    settings: dict[str, Any] | None = None,
    **training: Any,
) -> RunConfig:
    """A run of ``method`` with the scale's rank."""
    schema = methods.get(method).Settings
    given = (
        {"rank": shape.rank, **(settings or {})}
        if "rank" in schema.model_fields
        else settings or {}
    )
    return RunConfig(
        method=method,
        scale="tiny",
        seed=0,
        init_seed=0,
        data_seed=0,
        shape=shape,
        settings=schema.model_validate(given).model_dump(mode="json"),
        data=Data(max_length=max_length),
        training=Training(
            **{"learning_rate": 1e-3, "batch_size": 2, "evaluation_batch_size": 1, **training}
        ),
    )


def shape_of(scale: str) -> ModelShape:
    return ModelShape.model_validate(load("scales")[scale])


def updated(
    run: RunConfig, vocabulary: int = 50
) -> tuple[nn.Module, Method, torch.optim.Optimizer]:
    """The real model of ``run`` and its optimizer after one update."""
    model, method = models.build(run, vocabulary, SPECIAL)
    if run.training.precision == "pure_bfloat16":
        model.bfloat16()
    optimizer = method.optimizer(model, run.training)
    ids = torch.arange(2 * run.data.max_length).view(2, -1) % vocabulary
    summed_nats(model.train()(input_ids=ids).logits, ids).backward()
    optimizer.step()
    return model, method, optimizer


@pytest.mark.parametrize("precision", ["float32", "pure_bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", methods.names())
def test_weights_gradients_and_states_match_a_real_update(
    method: str, shape: str, precision: str, tmp_path: Path
) -> None:
    run = config(method, SHAPES[shape], precision=precision)
    model, _, optimizer = updated(run)
    found, held = estimate(run, 50), model_bytes(model)
    assert (found.parameters_total, found.parameters_trainable) == (
        held["parameters_total"],
        held["parameters_trainable"],
    )
    assert (found.weight_bytes, found.gradient_bytes) == (
        held["parameter_bytes"],
        held["gradient_bytes"],
    )
    assert found.gradient_bytes == sum(
        p.grad.numel() * p.grad.element_size() for p in model.parameters() if p.grad is not None
    )
    assert found.optimizer_state_bytes == state_bytes(optimizer) > 0
    checkpoint.write_weights(tmp_path / "weights", model.state_dict())
    assert found.checkpoint_bytes == (tmp_path / "weights").stat().st_size


@pytest.mark.parametrize(
    "method",
    [name for name in methods.names() if "proj_type" in methods.get(name).Settings.model_fields],
)
@pytest.mark.parametrize("proj_type", ["reverse_std", "right", "left", "full"])
def test_states_of_every_projection(method: str, proj_type: str) -> None:
    known = methods.get(method).Settings.model_json_schema()["properties"]["proj_type"]["enum"]
    if proj_type not in known:
        return  # refused by the method's settings
    run = config(method, SHAPES["odd"], settings={"proj_type": proj_type})
    assert estimate(run, 50).optimizer_state_bytes == state_bytes(updated(run)[2])


@pytest.mark.parametrize(("method", "scale"), PUBLISHED)
def test_parameter_counts_match_the_published_ones(method: str, scale: str) -> None:
    model, _ = module.meta_model(config(method, shape_of(scale)), 32_000)
    counts = model_bytes(model)
    assert (counts["parameters_total"], counts["parameters_trainable"]) == PUBLISHED[method, scale]


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("method", methods.names())
def test_activations_match_the_tensors_that_autograd_saves(method: str, autocast: bool) -> None:
    """The oracle: unique storages that a real forward pass saves, without weights and buffers; and
    the loss itself.
    """
    run = config(
        method, SHAPES["even"], 24, precision="bfloat16_autocast" if autocast else "float32"
    )
    model, _ = models.build(run, 50, SPECIAL)
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.zeros(2, 24, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model.train()(input_ids=ids).logits
        nats = summed_nats(logits, ids)
    held = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert estimate(run, 50).activation_bytes == held + nats.nbytes


def test_checkpointing_keeps_one_input_per_block_and_recomputes() -> None:
    shape = SHAPES["even"]
    plain, saving = (
        estimate(config("full_rank", shape, 24, gradient_checkpointing=on), 50)
        for on in (False, True)
    )
    tokens, blocks, hidden = 2 * 24, shape.num_hidden_layers, shape.hidden_size
    # Beside the inputs of the blocks: the final norm, the log-probabilities, rotary angles, ids.
    assert (
        tokens * hidden * 4 * blocks
        < saving.activation_bytes
        < tokens * (hidden * 4 * (blocks + 3) + 50 * 4 + 100)
    )
    assert saving.activation_bytes < plain.activation_bytes / 3
    assert saving.peak_bytes < plain.peak_bytes
    assert plain.flops_per_token < saving.flops_per_token < plain.flops_per_token * 4 / 3


def linear(shape: ModelShape) -> list[tuple[int, int]]:
    """(in, out) of the seven matrices of a block."""
    h, i = shape.hidden_size, shape.intermediate_size
    return [(h, h)] * 4 + [(h, i)] * 2 + [(i, h)]


FLOPS: dict[
    str, Callable[[int, int, int, float], float]
] = {  # of one layer, for one token: in, out, rank, layers a token
    "full_rank": lambda m, n, r, share: 6 * m * n,
    "galore": lambda m, n, r, share: 6 * m * n,
    "fira": lambda m, n, r, share: 6 * m * n,
    "cola": lambda m, n, r, share: 6 * r * (m + n),
    # The dense weight is made once a pass (B A), its gradient goes back to both factors; the token
    # sees a dense layer.
    "sltrain": lambda m, n, r, share: 6 * m * n + 6 * m * n * r * share,
    # The frozen weight has no gradient of its own.
    "relora": lambda m, n, r, share: 4 * m * n + 6 * r * (m + n),
}


@pytest.mark.parametrize("method", FLOPS)
def test_flops_count_the_products_that_are_executed(method: str) -> None:
    shape, length, vocabulary = SHAPES["even"], 24, 50
    layers = sum(FLOPS[method](m, n, shape.rank, 1 / (2 * length)) for m, n in linear(shape))
    # Attention: two products forward (scores, mix), five backward (the scores once more), two
    # operations each.
    attention = 14 * length * shape.hidden_size
    expected = shape.num_hidden_layers * (layers + attention) + 6 * vocabulary * shape.hidden_size
    assert estimate(config(method, shape, length), vocabulary).flops_per_token == pytest.approx(
        expected, abs=1
    )


@pytest.mark.parametrize(
    ("method", "precision"),
    [*((name, "float32") for name in methods.names()), ("galore", "pure_bfloat16")],
)
def test_states_in_eight_bits_and_one_gradient_at_a_time(method: str, precision: str) -> None:
    """Moments large enough to be quantised, and some that are not."""
    shape = ModelShape(
        hidden_size=72, intermediate_size=90, num_hidden_layers=1, num_attention_heads=4, rank=60
    )
    run = config(method, shape, precision=precision, state_bits=8, per_layer_updates=True)
    model, _, optimizer = updated(run)
    found = estimate(run, 50)
    assert found.optimizer_state_bytes == state_bytes(optimizer)
    assert found.gradient_bytes == max(
        p.grad.nbytes for p in model.parameters() if p.grad is not None
    )
    assert found.gradient_bytes == model_bytes(model, per_layer_updates=True)["gradient_bytes"]
    moments = [
        state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")
    ]
    assert {m.dtype == torch.uint8 for m in moments} == {True, False}
    assert all((m.dtype == torch.uint8) == (m.numel() >= 4096) for m in moments)


def test_updates_within_the_backward_pass_and_states_in_eight_bits_lower_the_peak() -> None:
    """With activations kept small: by nearly all gradients."""
    shape = ModelShape(
        hidden_size=128, intermediate_size=344, num_hidden_layers=8, num_attention_heads=4, rank=32
    )
    plain, saving = (
        estimate(
            config(
                "full_rank",
                shape,
                8,
                batch_size=1,
                gradient_checkpointing=True,
                per_layer_updates=on,
            ),
            50,
            "cuda",
        )
        for on in (False, True)
    )
    eight = estimate(
        config("full_rank", shape, 8, batch_size=1, gradient_checkpointing=True, state_bits=8),
        50,
        "cuda",
    )
    less = plain.optimizer_state_bytes - eight.optimizer_state_bytes
    assert plain.peak_bytes - eight.peak_bytes > 0.6 * less  # chunks are opened
    assert saving.gradient_bytes == 128 * 344 * 4
    assert plain.peak_bytes - saving.peak_bytes > 0.8 * plain.gradient_bytes
    assert (
        saving.peak_bytes
        > saving.weight_bytes + saving.optimizer_state_bytes + saving.gradient_bytes
    )


def test_accumulation_keeps_gradients_while_activations_are_computed() -> None:
    shape = SHAPES["even"]
    whole, parts = (
        estimate(config("full_rank", shape, 64, batch_size=8, micro_batch_size=m), 50, "cuda")
        for m in (8, 2)
    )
    one = estimate(config("full_rank", shape, 64, batch_size=2), 50, "cuda")
    assert parts.activation_bytes == one.activation_bytes < whole.activation_bytes / 3
    assert one.peak_bytes < parts.peak_bytes <= one.peak_bytes + one.gradient_bytes
    assert parts.flops_per_token == pytest.approx(whole.flops_per_token, rel=1e-6)


def test_the_peak_includes_evaluation() -> None:
    shape = SHAPES["even"]
    small = estimate(config("full_rank", shape), 50, "cuda")
    large = estimate(config("full_rank", shape, evaluation_batch_size=4096), 50, "cuda")
    logits = 4096 * 16 * 50 * 4
    assert large.peak_bytes > 2 * logits > small.peak_bytes
    limited = config("full_rank", shape, evaluation_batch_size=4096)
    limited = limited.model_copy(
        update={"data": limited.data.model_copy(update={"validation_tokens": 32})}
    )
    assert estimate(limited, 50, "cuda").peak_bytes == pytest.approx(small.peak_bytes, rel=0.2)


def test_a_model_of_a_billion_parameters_is_estimated_in_seconds() -> None:
    start = time.process_time()
    found = estimate(config("galore", shape_of("1b"), 256, batch_size=1), 32_000)
    assert found.parameters_total > 1.2e9
    assert (
        found.peak_bytes > found.weight_bytes + found.gradient_bytes + found.optimizer_state_bytes
    )
    assert time.process_time() - start < 30  # a few seconds when the machine is idle


class ToySettings(Config):
    """Settings without fields."""


class Peeking(Method):
    """A method whose optimizer reads tensor values and does not declare its state."""

    family, title, summary, source, Settings = "optimizer", "toy", "toy", "here", ToySettings

    def optimizer(self, model: nn.Module, training: Training) -> torch.optim.Optimizer:
        class Peek(torch.optim.SGD):
            def step(self, closure: Any = None) -> Any:
                if self.param_groups[0]["params"][0].grad.sum() > 0:
                    super().step()

        return Peek(model.parameters(), lr=0.1)


class Momentum(Peeking):
    """Any optimizer of PyTorch is estimated by tracing its step."""

    def optimizer(self, model: nn.Module, training: Training) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("toy", [Peeking, Momentum])
def test_methods_from_outside(toy: type[Method], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "create", lambda *_: toy(ToySettings()))
    run = config("full_rank", SHAPES["even"])
    if toy is Momentum:
        assert (
            estimate(run, 50).optimizer_state_bytes
            == state_bytes(updated(run)[2])
            == estimate(run, 50).weight_bytes
        )
    else:
        with pytest.raises(LowrankError, match="optimizer_state_bytes"):
            estimate(run, 50)


def test_the_vocabulary_comes_from_the_study_or_an_option() -> None:
    run = config("full_rank", SHAPES["even"])
    assert module.expected_vocabulary(run) == 4096
    for data, size in (
        (Data(source="c4"), 32_000),
        (Data(vocabulary_size=300), 300),
        (Data(source="c4", vocabulary_size=7), 7),
    ):
        assert module.expected_vocabulary(run.model_copy(update={"data": data})) == size
    with pytest.raises(UsageError, match=r"my-tokenizer.*--vocabulary-size"):
        module.expected_vocabulary(run.model_copy(update={"data": Data(tokenizer="my-tokenizer")}))
