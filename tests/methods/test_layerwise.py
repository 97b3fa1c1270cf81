"""Updates within the backward pass are the ordinary updates, bit for bit, of every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lowrank import methods
from lowrank.train.layerwise import LayerwiseUpdates
from lowrank.train.loop import total_norm

Start = Callable[..., Any]


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", methods.names())
def test_the_same_bits_with_one_gradient_at_a_time(name: str, bits: int, start: Start) -> None:
    ordinary, layerwise = (start(name, training={"state_bits": bits}) for _ in range(2))
    trained = [p for p in layerwise.model.parameters() if p.requires_grad]
    updates = LayerwiseUpdates(trained, layerwise.optimizer, stop=True)
    alive, step = [], layerwise.optimizer.step

    def counted() -> None:
        alive.append(sum(p.grad is not None for p in trained))
        step()

    layerwise.optimizer.step = counted
    for update in range(1, 8):  # over refreshes and a merge
        norm = total_of_ordinary(ordinary, update)
        assert layerwise.train(update, update) == ordinary.train(update, update)
        assert float(total_norm(updates.take_norms())) == pytest.approx(norm, rel=1e-6)
    assert max(alive) == 1
    assert sum(alive) == 7 * len(trained)
    one, other = ordinary.model.state_dict(), layerwise.model.state_dict()
    assert not [key for key in one if not torch.equal(one[key], other[key])]


def total_of_ordinary(run: Any, update: int) -> float:
    """Norm of the gradient of ``update``, by PyTorch's own function; nothing moves."""
    torch.manual_seed(update)
    rows = run.batch(update)
    run.model(input_ids=rows, labels=rows).loss.backward()
    norm = float(
        torch.nn.utils.get_total_norm(
            [p.grad for p in run.model.parameters() if p.grad is not None]
        )
    )
    run.optimizer.zero_grad()
    return norm


@pytest.mark.parametrize("stop", [True, False])
def test_from_a_broken_gradient_on_nothing_moves(stop: bool, start: Start) -> None:
    run = start("full_rank")
    trained = dict(run.model.named_parameters())
    before = {name: p.detach().clone() for name, p in trained.items()}
    updates = LayerwiseUpdates(list(trained.values()), run.optimizer, stop=stop)
    trained["model.layers.1.input_layernorm.weight"].register_hook(
        lambda gradient: gradient * torch.nan
    )
    rows = run.batch(1)
    run.model(input_ids=rows, labels=rows).loss.backward()
    moved = {name for name, p in trained.items() if not torch.equal(p, before[name])}
    assert "lm_head.weight" in moved
    assert (
        "model.layers.1.input_layernorm.weight" in moved,
        "model.layers.0.mlp.up_proj.weight" in moved,
    ) == (not stop, not stop)
    assert all(p.grad is None for p in trained.values())
    broken = [name for name, p in trained.items() if not torch.isfinite(updates.found[p])]
    assert broken == ["model.layers.1.input_layernorm.weight"]
