"""What every registered method guarantees (``lowrank/methods/base.py``).

Methods are discovered: a new file, or an entry point of another package, is held to this at once.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lowrank.models
from lowrank import methods
from lowrank.errors import ConfigError, LowrankError
from lowrank.layers import targets
from lowrank.methods.base import build_optimizer, create

NAMES = methods.names()
Start = Callable[..., Any]
every_method = pytest.mark.parametrize("name", NAMES)


def through_a_file(state: Any) -> Any:
    """``state`` saved and loaded as a file from elsewhere would be."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [key for key in one if not torch.equal(one[key], other[key])]
    assert not different, f"{different} differ"


def logits(model: nn.Module, rows: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=rows).logits
    return found


@pytest.fixture
def rows() -> Tensor:
    return torch.randint(3, 64, (3, 16), generator=torch.Generator().manual_seed(5))


@every_method
def test_says_what_it_is(name: str) -> None:
    cls = methods.get(name)
    assert cls.family in ("baseline", "optimizer", "architecture", "adapter")
    assert cls.title
    assert cls.summary
    assert cls.source
    assert cls.__doc__


@every_method
def test_one_seed_gives_one_model_whatever_was_drawn_before(name: str, start: Start) -> None:
    torch.manual_seed(1)
    first = start(name).model.state_dict()
    torch.manual_seed(2)
    torch.rand(5)
    state_before = torch.get_rng_state()
    assert_same(first, start(name).model.state_dict())
    assert torch.equal(torch.get_rng_state(), state_before), (
        "building a model moved the global generator"
    )
    other = start(name, seed=1).model.state_dict()
    assert all(
        not torch.equal(first[key], other[key])
        for key in first
        if "embed_tokens" in key or key == "lm_head.weight"
    )


@every_method
def test_shares_its_initialisation_with_full_rank(name: str, start: Start) -> None:
    own, plain = start(name).model.state_dict(), start("full_rank").model.state_dict()
    common = [key for key in own.keys() & plain.keys() if own[key].shape == plain[key].shape]
    assert {key for key in plain if "_proj" not in key} <= set(common)
    assert_same({key: own[key] for key in common}, {key: plain[key] for key in common})


@every_method
def test_learns(name: str, start: Start) -> None:
    losses = start(name).train(1, 12)
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.3


@every_method
def test_an_update_at_rate_zero_changes_nothing(name: str, start: Start) -> None:
    run = start(name)
    before = copy.deepcopy(run.model.state_dict())
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    rows = torch.full((2, 8), 5)
    run.model(input_ids=rows, labels=rows).loss.backward()
    run.optimizer.step()
    assert_same(before, run.model.state_dict())


@every_method
def test_what_is_not_a_target_may_have_a_learning_rate_of_its_own(name: str, start: Start) -> None:
    run = start(name)
    training = run.config.training.model_copy(update={"untargeted_learning_rate": 0.5})
    try:
        optimizer = build_optimizer(run.method, run.model, training)
    except ConfigError:
        if type(run.method).__module__.startswith("lowrank."):
            raise
        return  # a method from outside may have one rate, if it says so
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trained = {key: rates.pop(id(p)) for key, p in run.model.named_parameters() if p.requires_grad}
    assert not rates
    assert trained == {key: training.learning_rate if "_proj." in key else 0.5 for key in trained}
    assert set(trained.values()) == {training.learning_rate, 0.5}


@every_method
@pytest.mark.parametrize("cut", [4, 5, 6])
def test_stopped_and_resumed_is_bit_identical(name: str, cut: int, start: Start) -> None:
    """Over refreshes (every 3 updates) and merges (every 4), with everything through a file."""
    whole, stopped = start(name), start(name)
    losses = whole.train(1, 10)
    stopped.train(1, cut)
    resumed = start(name, seed=9)
    resumed.config = whole.config
    resumed.model.load_state_dict(through_a_file(stopped.model.state_dict()))
    resumed.optimizer.load_state_dict(through_a_file(stopped.optimizer.state_dict()))
    resumed.method.load_state_dict(through_a_file(stopped.method.state_dict()))
    assert resumed.train(cut + 1, 10) == losses[cut:]
    assert_same(whole.model.state_dict(), resumed.model.state_dict())


@every_method
def test_state_is_counted_by_its_tensors(name: str, start: Start) -> None:
    run = start(name)
    run.train(1, 1)
    moments = [
        v
        for s in run.optimizer.state.values()
        for k, v in s.items()
        if k in ("exp_avg", "exp_avg_sq")
    ]
    trained = sum(p.numel() for p in run.model.parameters() if p.requires_grad)
    assert 0 < sum(m.numel() for m in moments) <= 2 * trained


@every_method
def test_dense_weights_give_the_same_logits(name: str, start: Start, rows: Tensor) -> None:
    run = start(name)
    run.train(1, 6)
    dense = run.method.dense(run.model)
    assert (dense is not None) == run.method.has_dense
    if dense is None:
        return
    treated = {path for path, _ in targets(run.model)}
    assert dense.keys() == treated
    known = LlamaConfig().to_dict().keys() - {"model_type"}
    plain = LlamaForCausalLM(
        LlamaConfig(
            **{key: value for key, value in run.model.config.to_dict().items() if key in known}
        )
    )
    state = {
        key: value
        for key, value in run.model.state_dict().items()
        if key.rpartition(".")[0] not in treated
    }
    plain.load_state_dict(state | {f"{path}.weight": W for path, W in dense.items()})
    torch.testing.assert_close(logits(plain, rows), logits(run.model, rows), rtol=1e-5, atol=1e-5)


@every_method
def test_checkpoints_load_through_transformers(
    name: str, start: Start, rows: Tensor, tmp_path: Path
) -> None:
    run = start(name)
    run.train(1, 5)
    run.model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is (
        lowrank.models.LowRankLlamaForCausalLM
        if run.method.custom_architecture
        else LlamaForCausalLM
    )
    assert_same(run.model.state_dict(), loaded.state_dict())
    assert torch.equal(logits(run.model, rows), logits(loaded, rows))
    halves = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.isfinite(logits(halves, rows)).all()
    for value in halves.state_dict().values():
        assert value.dtype == (torch.bfloat16 if value.is_floating_point() else torch.int64)


@every_method
def test_keys_missing_from_a_checkpoint_are_drawn_and_not_left_as_memory(
    name: str, start: Start, tmp_path: Path
) -> None:
    run = start(name)
    own = {
        key
        for path, module in targets(run.model)
        for key in (f"{path}.{n}" for n, _ in module.named_parameters())
    }
    state = {key: value for key, value in run.model.state_dict().items() if key not in own}
    run.model.save_pretrained(tmp_path, state_dict=state)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    for key in own:
        assert loaded[key].abs().max() < 2, f"{key} holds uninitialised memory"
    assert all(torch.equal(loaded[key], state[key]) for key in state)


@every_method
def test_generates(name: str, start: Start, rows: Tensor) -> None:
    model = start(name).model.eval()
    found = model.generate(
        rows[:, :4], max_new_tokens=3, do_sample=False, attention_mask=torch.ones_like(rows[:, :4])
    )
    assert found.shape[1] <= 7


@every_method
def test_trains_under_bfloat16_autocast_with_float32_state(name: str, start: Start) -> None:
    run = start(name)
    losses = run.train(1, 10, autocast=True)
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.2
    state = [v for s in run.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    assert {v.dtype for v in [*state, *run.model.parameters()]} == {torch.float32}


@every_method
def test_trains_in_pure_bfloat16(name: str, start: Start) -> None:
    run = start(name)
    run.model.to(torch.bfloat16)
    run.optimizer = run.method.optimizer(run.model, run.config.training)
    losses = run.train(1, 10)
    assert sum(losses[-3:]) < sum(losses[:3])


@every_method
def test_gradient_checkpointing_changes_no_loss(name: str, start: Start) -> None:
    plain, saving = start(name), start(name)
    lowrank.models.prepare(
        saving.model, saving.config.training.model_copy(update={"gradient_checkpointing": True})
    )
    assert any(
        getattr(module, "gradient_checkpointing", False) for module in saving.model.modules()
    )
    assert saving.train(1, 5) == pytest.approx(plain.train(1, 5), rel=1e-5)


@every_method
def test_raises_where_it_has_nothing_to_act_on(name: str, start: Start) -> None:
    run = start(name)
    if run.method.family == "baseline":
        return
    act = (
        run.method.attach
        if run.method.custom_architecture
        else partial(run.method.optimizer, training=run.config.training)
    )
    with pytest.raises(LowrankError, match="no target layer"):
        act(nn.Sequential(nn.Linear(4, 4)))


@every_method
def test_a_rank_beyond_a_layer_is_refused_by_name(name: str, start: Start) -> None:
    if "rank" not in methods.get(name).Settings.model_fields:
        return
    with pytest.raises(LowrankError, match=r"rank 33 .*choose 1 to 32"):
        start(name, rank=33)


@every_method
def test_settings_survive_json(name: str, start: Start) -> None:
    method = start(name).method
    assert create(name, method.settings.model_dump(mode="json")).settings == method.settings
