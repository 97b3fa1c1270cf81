"""A context without files or database: tiny networks in memory and a fixed batch of tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lowrank.config.schema import ModelShape
from lowrank.export import dense_model
from lowrank.geometry.estimate import Alone, EvaluationBatch
from lowrank.measure.lengths import spectrum_lengths
from lowrank.methods.base import create
from lowrank.metrics.base import CheckpointRef, Checkpoints, Comparison
from lowrank.models import build, init_hash

SHAPE = ModelShape(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, rank=4
)
VOCABULARY = 40
SETTINGS: dict[str, dict[str, Any]] = {
    "cola": {"rank": 4},
    "relora": {"rank": 4, "merge_every": 10, "restart_warmup": 2, "alpha": 8.0},
    "sltrain": {"rank": 4, "sparsity": 0.05, "alpha": 8.0},
    "galore": {"rank": 4},
    "fira": {"rank": 4},
}

torch.set_num_threads(1)  # tiny matrices: threads would only wait for one another


@dataclass
class MemoryContext(Alone):
    """Networks by checkpoint id."""

    models: dict[int, Any] = field(default_factory=dict)
    rows: list[EvaluationBatch] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    kept: dict[tuple[int, str], Any] = field(default_factory=dict)

    def loaded(self, point: CheckpointRef) -> Any:
        """The model and its method."""
        return self.models[point.checkpoint_id]

    def network(self, point: CheckpointRef, space: str) -> nn.Module | None:
        """As trained, or the dense equivalent."""
        found = self.loaded(point)
        if space != "dense" or not found.method.custom_architecture:
            return found.model
        return self.memo(point, "dense network", lambda: dense_model(found))

    def memo(self, point: CheckpointRef, key: str, compute: Callable[[], Any]) -> Any:
        """Computed once."""
        if (point.checkpoint_id, key) not in self.kept:
            self.kept[point.checkpoint_id, key] = compute()
        return self.kept[point.checkpoint_id, key]

    def batches(self, unit: Comparison, rows: int) -> list[EvaluationBatch]:
        """The fixed tokens."""
        return self.rows


def tokens(rows: int, length: int, seed: int = 0, padded: int = 0) -> EvaluationBatch:
    """Random tokens; the last ``padded`` of the last row are padding."""
    ids = torch.randint(
        0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed)
    )
    labels = ids.clone()
    if padded:
        labels[-1, -padded:] = -100
    return EvaluationBatch(ids, labels)


def network(method: str, seed: int = 0) -> SimpleNamespace:
    """A model at its initialisation, in evaluation mode."""
    made = create(method, SETTINGS.get(method, {}))
    config = SimpleNamespace(
        method=method,
        settings=made.settings.model_dump(mode="json"),
        shape=SHAPE,
        init_seed=seed,
        data=SimpleNamespace(max_length=16),
    )
    model, made = build(
        config, VOCABULARY, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    )  # type: ignore[arg-type]
    return SimpleNamespace(model=model.eval(), method=made)


@torch.no_grad()
def nudged(found: SimpleNamespace, seed: int, size: float = 0.05) -> SimpleNamespace:
    """A copy whose trained parameters moved by noise."""
    moved = SimpleNamespace(model=copy.deepcopy(found.model), method=found.method)
    generator = torch.Generator().manual_seed(seed)
    for parameter in moved.model.parameters():
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return moved


class Arena:
    """A context and three checkpoints of each of several runs."""

    def __init__(self, *runs: tuple[str, int]) -> None:
        self.context = MemoryContext(rows=[tokens(3, 12), tokens(2, 12, seed=1, padded=4)])
        points = []
        for run_id, (method, seed) in enumerate(runs, start=1):
            current = network(method, seed)
            for step in (0, 10, 20):
                if step:
                    current = nudged(current, seed=run_id * 100 + step)
                checkpoint_id = len(points) + 1
                self.context.models[checkpoint_id] = current
                rank = SHAPE.rank if current.method.custom_architecture else None
                points.append(
                    CheckpointRef(
                        checkpoint_id=checkpoint_id,
                        run_id=run_id,
                        method=method,
                        scale="tiny",
                        seed=seed,
                        step=step,
                        layers=2,
                        last=step == 20,
                        width=16,
                        rank=rank,
                        lengths=spectrum_lengths(method, SETTINGS.get(method), SHAPE.model_dump()),
                        has_dense=current.method.has_dense,
                        baseline=current.method.family == "baseline",
                        init_hash=init_hash(network(method, seed).model, current.method),
                    )
                )
        self.checkpoints = Checkpoints(tuple(points))

    def point(self, method: str, step: int, seed: int = 0) -> CheckpointRef:
        """One checkpoint."""
        return next(
            p for p in self.checkpoints.refs if (p.method, p.step, p.seed) == (method, step, seed)
        )


@pytest.fixture
def arena() -> Callable[..., Arena]:
    """Builds an :class:`Arena` of (method, seed) runs."""
    return Arena


@pytest.fixture
def make_network() -> Callable[..., SimpleNamespace]:
    """Builds a tiny model of a method."""
    return network


@pytest.fixture
def make_tokens() -> Callable[..., EvaluationBatch]:
    """Builds a batch of random tokens."""
    return tokens
