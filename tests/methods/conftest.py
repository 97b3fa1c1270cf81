"""A tiny run of any method, and the loop that the suites share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank import methods, models
from lowrank.config.resolve import RunConfig
from lowrank.config.schema import Data, ModelShape
from lowrank.methods.base import Method
from lowrank.settings import Training

# An odd width, so that processes get uneven shards.
SHAPE = ModelShape(
    hidden_size=32, intermediate_size=87, num_hidden_layers=2, num_attention_heads=4, rank=8
)
VOCABULARY = 64
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# So that a handful of updates meets refreshes and merges; a method takes those that it knows.
QUICK = {
    "rank": 8,
    "update_proj_gap": 3,
    "merge_every": 4,
    "restart_warmup": 1,
    "alpha": 4.0,
    "dropout": 0.1,
}
TRAINING = Training(
    learning_rate=1e-2, steps=12, warmup_steps=2, batch_size=8, eps=1e-6, weight_decay=0.01
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-identity holds at one number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_config(
    method: str, seed: int = 0, training: dict[str, Any] | None = None, **settings: Any
) -> RunConfig:
    known = methods.get(method).Settings.model_fields
    chosen = {key: value for key, value in {**QUICK, **settings}.items() if key in known}
    resolved = methods.get(method).Settings.model_validate(chosen).model_dump(mode="json")
    return RunConfig(
        method=method,
        scale="tiny",
        seed=seed,
        init_seed=seed,
        data_seed=seed,
        shape=SHAPE,
        settings=resolved,
        data=Data(max_length=16),
        training=TRAINING.model_copy(update=training or {}),
    )


@dataclass
class Run:
    """A model in training."""

    model: nn.Module
    method: Method
    optimizer: torch.optim.Optimizer
    config: RunConfig

    @staticmethod
    def batch(update: int) -> Tensor:
        """Rows of an update."""
        return batch(update)

    def train(self, first: int, last: int, autocast: bool = False) -> list[float]:
        """Updates ``first`` … ``last``, as the training loop makes them; their losses."""
        draw, losses = models.named_draws(self.config.init_seed), []
        self.model.train()
        for update in range(first, last + 1):
            for group in self.optimizer.param_groups:
                group["lr"] = TRAINING.learning_rate * self.method.lr_factor(update, TRAINING)
            torch.manual_seed(update)
            rows = batch(update)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = self.model(input_ids=rows, labels=rows).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.method.after_update(update, self.model, self.optimizer, draw)
            losses.append(loss.item())
        return losses


def batch(update: int) -> Tensor:
    """Rows that count upwards: learned in a few updates."""
    generator = torch.Generator().manual_seed(1000 + update)
    start = torch.randint(3, VOCABULARY, (8, 1), generator=generator)
    return 3 + (start + torch.arange(16)) % (VOCABULARY - 3)


def begin(
    method: str, seed: int = 0, training: dict[str, Any] | None = None, **settings: Any
) -> Run:
    config = run_config(method, seed, training, **settings)
    model, built = models.build(config, VOCABULARY, SPECIAL)
    return Run(model, built, built.optimizer(model, config.training), config)


@pytest.fixture(scope="session")
def begin_run() -> Callable[..., Run]:
    """As ``start``, for fixtures that outlive a test."""
    return begin


@pytest.fixture
def start() -> Callable[..., Run]:
    """``start(method, seed=0, **settings)``: a run at its first update; settings that the method
    does not know are left out.
    """
    return begin
