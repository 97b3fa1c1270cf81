"""Two processes (gloo) against one with twice the accumulation: every method, over refreshes and
merges, DDP and FSDP2.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from lowrank import methods, models
from lowrank.errors import ConfigError
from lowrank.optim.adamw8bit import refuse_shards
from lowrank.optim.sharding import check_layout, full_tensor

UPDATES = 10
PROJECTED = ("fira", "galore")
SETTINGS = {"dropout": 0.0, "reset": "shared_mask", "keep": 0.3}
Start = Callable[..., Any]


def rows_of(update: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + update)
    return 3 + (torch.randint(3, 64, (8, 1), generator=generator) + torch.arange(16)) % 61


def train(
    run: Any, model: torch.nn.Module, parts: list[int], first: int = 1, last: int = UPDATES
) -> list[float]:
    """Losses of the updates ``first`` … ``last`` over the halves ``parts`` of each batch,
    accumulated.
    """
    draw, losses = models.named_draws(0), []
    for update in range(first, last + 1):
        for group in run.optimizer.param_groups:
            group["lr"] = 1e-2 * run.method.lr_factor(update, run.config.training)
        total = 0.0
        for part in parts:
            rows = rows_of(update)[part * 4 : part * 4 + 4]
            loss = model(input_ids=rows, labels=rows).loss / len(parts)
            loss.backward()
            total += loss.item()
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.method.after_update(update, model, run.optimizer, draw)
        losses.append(total)
    return losses


def shard(model: Any) -> Any:
    """The model under FSDP2, a unit per block."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def work(rank: int, store: str, folder: Path, start: Start) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name in methods.names():
        run = start(name, **SETTINGS)
        found[name, "ddp"] = result(run, DistributedDataParallel(run.model), rank)
        run = sharded(name, start)
        found[name, "fsdp"] = {**result(run, run.model, rank), "dense": run.method.dense(run.model)}
    for name in PROJECTED:
        found[name, "resumed"] = resumed(name, start, rank)
    torch.save({"/".join(key): value for key, value in found.items()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def sharded(name: str, start: Start, seed: int = 0) -> Any:
    run = start(name, seed=seed, **SETTINGS)
    run.model = shard(run.model)
    run.optimizer = run.method.optimizer(run.model, run.config.training)
    return run


def resumed(name: str, start: Start, rank: int) -> dict[str, Any]:
    """A sharded run, its state after five updates, and the weights after ten: run on, and resumed
    from the state.
    """
    run = sharded(name, start)
    train(run, run.model, [rank], last=5)
    again = sharded(name, start, seed=4)
    again.model.load_state_dict(
        {key: value.clone() for key, value in run.model.state_dict().items()}
    )
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)
    again.optimizer.load_state_dict(torch.load(file, weights_only=True))
    found = {"optimizer": run.optimizer.full_state_dict(), "model": gathered(run.model)}
    whole_run, resumed_run = (train(r, r.model, [rank], first=6) for r in (run, again))
    assert whole_run == resumed_run
    bits = gathered(run.model), gathered(again.model)
    assert all(torch.equal(bits[0][key], bits[1][key]) for key in bits[0])
    local_rows = run.optimizer.state[run.model.model.layers[0].mlp.up_proj.weight][
        "exp_avg"
    ].to_local()
    assert local_rows.shape == ((44, 43)[rank], 8), "the moments are not sharded"
    from_whole = sharded(name, start, seed=4)
    from_whole.optimizer.load_state_dict(found["optimizer"])
    layouts = [
        {k: v.placements for k, v in s.items() if hasattr(v, "placements")}
        for s in from_whole.optimizer.state.values()
    ]
    assert layouts == [
        {k: v.placements for k, v in s.items() if hasattr(v, "placements")}
        for s in run.optimizer.state.values()
    ]
    return {**found, "after": gathered(run.model)}


def gathered(model: Any) -> dict[str, Tensor]:
    return {name: full_tensor(value.detach()).clone() for name, value in model.state_dict().items()}


def result(run: Any, model: Any, rank: int) -> dict[str, Any]:
    mean = torch.tensor(train(run, model, [rank]))
    dist.all_reduce(mean)
    return {"losses": mean / 2, "weights": gathered(run.model)}


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    begin = request.getfixturevalue("begin_run")
    torch.multiprocessing.start_processes(
        work, (str(folder / "store"), folder, begin), nprocs=2, start_method="fork"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one_that_accumulates(
    name: str,
    kind: str,
    two_processes: list[dict[str, Any]],
    start: Start,
) -> None:
    run = start(name, **SETTINGS)
    alone = train(run, run.model, [0, 1])
    first, second = (found[f"{name}/{kind}"] for found in two_processes)
    together = first["losses"].tolist()
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(alone, together, strict=True)), (
        alone,
        together,
    )
    different = [
        key
        for key, value in first["weights"].items()
        if not torch.equal(value, second["weights"][key])
    ]
    assert not different, "the processes drifted apart"


@pytest.mark.parametrize("name", methods.names())
def test_dense_weights_of_a_sharded_model_are_whole(
    name: str, two_processes: list[dict[str, Any]], start: Start
) -> None:
    alone = start(name, seed=4, **SETTINGS)
    alone.model.load_state_dict(two_processes[0][f"{name}/fsdp"]["weights"])
    expected = alone.method.dense(alone.model)
    for found in (process[f"{name}/fsdp"]["dense"] for process in two_processes):
        if expected is None:
            assert found is None
        else:
            assert found.keys() == expected.keys()
            for path, W in expected.items():
                torch.testing.assert_close(found[path], W, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", PROJECTED)
def test_a_sharded_run_resumes_on_one_process(
    name: str, two_processes: list[dict[str, Any]], start: Start
) -> None:
    found = two_processes[0][f"{name}/resumed"]
    run = start(name, seed=4, **SETTINGS)
    run.model.load_state_dict(found["model"])
    run.optimizer.load_state_dict(found["optimizer"])
    train(run, run.model, [0, 1], first=6)
    for key, value in run.model.state_dict().items():
        torch.testing.assert_close(value, found["after"][key], rtol=1e-3, atol=1e-3)


def test_a_matrix_cut_by_columns_is_refused() -> None:
    with pytest.raises(ConfigError, match="only matrices cut by rows"):
        check_layout("w", FakeSharded())


def test_states_in_eight_bits_are_refused_for_cut_matrices() -> None:
    with pytest.raises(ConfigError, match="8 bits are not distributed over processes"):
        refuse_shards([FakeSharded()])


class FakeSharded(DTensor):
    """Stands for a matrix under tensor parallelism; a real one needs processes."""

    def __new__(cls) -> Any:
        return torch.Tensor._make_subclass(cls, torch.zeros(2, 2))

    def __init__(self) -> None:
        self._spec = type("Spec", (), {"placements": (Shard(1),)})()
