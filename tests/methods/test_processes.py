"""Two processes (gloo) against one with twice the accumulation: every method, over refreshes and merges."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lowrank import methods, models

UPDATES = 10
Start = Callable[..., Any]


def rows_of(update: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + update)
    return 3 + (torch.randint(3, 64, (8, 1), generator=generator) + torch.arange(16)) % 61


def train(run: Any, model: torch.nn.Module, parts: list[int]) -> list[float]:
    """Losses of ``UPDATES`` updates over the quarters ``parts`` of each batch, accumulated."""
    draw, losses = models.named_draws(0), []
    for update in range(1, UPDATES + 1):
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


def work(rank: int, store: str, folder: Path, start: Start) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found = {}
    for name in methods.names():
        run = start(name, dropout=0.0, reset="shared_mask", keep=0.3)
        model = DistributedDataParallel(run.model)
        mean = torch.tensor(train(run, model, [rank]))
        dist.all_reduce(mean)
        found[name] = {"losses": mean / 2, "weights": run.model.state_dict()}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    begin = request.getfixturevalue("begin_run")
    torch.multiprocessing.start_processes(work, (str(folder / "store"), folder, begin), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("name", methods.names())
def test_two_processes_train_as_one_that_accumulates(name: str, two_processes: list[dict[str, Any]], start: Start) -> None:
    run = start(name, dropout=0.0, reset="shared_mask", keep=0.3)
    alone = train(run, run.model, [0, 1])
    together = two_processes[0][name]["losses"].tolist()
    assert all(math.isclose(a, b, abs_tol=1e-4) for a, b in zip(alone, together, strict=True)), (alone, together)
    first, second = (found[name]["weights"] for found in two_processes)
    assert all(torch.equal(first[key], second[key]) for key in first), "the processes drifted apart"
