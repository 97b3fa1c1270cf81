"""The training loop: update k = 1, 2, … as a function of weights, optimizer state and (seed, k).

Batches and dropout depend on the seed and the update alone. Stopping after any update and going on
from its resume point therefore gives the same weights, bit for bit, on the same machine with the
same threads and processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel

from lowrank.config import RunConfig, Training
from lowrank.data import Dataset
from lowrank.errors import ConfigError, DivergedError
from lowrank.loss import summed_nats
from lowrank.methods.base import Method, build_optimizer
from lowrank.models import named_draws, prepare
from lowrank.train import layerwise
from lowrank.train.layerwise import LayerwiseUpdates


@dataclass(frozen=True)
class LogPoint:
    """The numbers of one update, a point of the training log.

    ``loss`` is in nats per token over the whole batch, ``gradient_norm`` that of the whole gradient
    before clipping, ``tokens`` the number of the batch's tokens without padding.
    """

    update: int
    loss: float
    gradient_norm: float
    learning_rate: float
    tokens: int


@dataclass(frozen=True)
class _Pending:
    """A :class:`LogPoint` whose numbers may still be on the accelerator."""

    update: int
    loss: Tensor
    norms: dict[Tensor, Tensor]  # of the gradient of each trained parameter
    learning_rate: float
    tokens: int


class Loop:
    """Model, optimizer and data of one run under one ``Accelerator``."""

    def __init__(
        self,
        config: RunConfig,
        model: PreTrainedModel,
        method: Method,
        data: Dataset,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.method, self.data, self.accelerator = config, method, data, accelerator
        training = config.training
        self.accumulation, self.micro = split_batch(training, accelerator.num_processes)
        layerwise.check(training, self.accumulation, accelerator.num_processes)
        prepare(model, training)
        self.model = model
        if training.compile:
            compile_in_place(model, accelerator.device)
        optimizer = build_optimizer(method, model, training)
        self.wrapped, self.prepared = accelerator.prepare(model, optimizer)
        self.optimizer: torch.optim.Optimizer = optimizer
        self.base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.trained: dict[Tensor, str] = {
            p: name for name, p in model.named_parameters() if p.requires_grad
        }
        self.draw = named_draws(config.init_seed)
        self.pending: list[_Pending] = []
        # Reading a number waits for a GPU; on a CPU it is free and a failure is seen at once.
        self.drain_after = 16 if accelerator.device.type != "cpu" else 1
        self.last_finite_loss: float | None = None
        self.layerwise: LayerwiseUpdates | None = None
        if training.per_layer_updates:
            self.layerwise = LayerwiseUpdates(
                list(self.trained), optimizer, stop=self.drain_after == 1
            )

    def update(self, update: int) -> Iterator[LogPoint]:
        """Make update number ``update``; yield the points whose numbers have arrived.

        Raises :class:`DivergedError` for a loss or gradient norm that is not finite.
        """
        training = self.config.training
        factor = self.method.lr_factor(update, training)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        scored = self.data.scored_tokens((update - 1) * training.batch_size, training.batch_size)
        loss = self._gradients(update, scored)
        norms = (
            gradient_norms(self.trained) if self.layerwise is None else self.layerwise.take_norms()
        )
        self.pending.append(
            _Pending(
                update, loss, norms, training.learning_rate * factor, scored + training.batch_size
            )
        )
        if len(self.pending) >= self.drain_after:
            yield from self.drain()
        if self.layerwise is not None:
            return  # the backward pass has made the update
        if training.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(
                list(self.trained), training.max_grad_norm, total_norm(norms)
            )
        self.prepared.step()
        self.prepared.zero_grad(set_to_none=True)

    def after_update(self, update: int) -> None:
        """Do what the method does between updates, such as merges; checkpoints come before it."""
        self.method.after_update(update, self.model, self.optimizer, self.draw)

    def drain(self) -> Iterator[LogPoint]:
        """Yield the points that were still on the accelerator.

        Raises :class:`DivergedError` at the first that is not finite.
        """
        pending, self.pending = self.pending, []
        for p in pending:
            norm = float(total_norm(p.norms))
            point = LogPoint(
                p.update,
                float(self.accelerator.reduce(p.loss, "sum")),
                norm,
                p.learning_rate,
                p.tokens,
            )
            self._require_finite(point, p.norms)
            self.last_finite_loss = point.loss
            yield point

    def _gradients(self, update: int, total: int) -> Tensor:
        """Accumulate the gradient of the update's batch; return this process's share of the loss.

        ``total`` is the number of scored tokens of the batch over all processes.
        """
        training, accelerator = self.config.training, self.accelerator
        first = (update - 1) * training.batch_size
        share = torch.zeros((), device=accelerator.device)
        for index in range(self.accumulation):
            torch.manual_seed(
                step_seed(self.config.init_seed, update, index, accelerator.process_index)
            )
            begin = (
                first + (index * accelerator.num_processes + accelerator.process_index) * self.micro
            )
            batch = self.data.rows(begin, self.micro)
            input_ids, labels = (
                batch.input_ids.to(accelerator.device),
                batch.labels.to(accelerator.device),
            )
            last = index == self.accumulation - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                nats = summed_nats(self.wrapped(input_ids=input_ids).logits, labels)
                if training.loss_average == "tokens":
                    part = nats / total
                else:
                    part = nats / (batch.scored * self.accumulation * accelerator.num_processes)
                # Processes average their gradients, so each one's share counts num_processes times.
                accelerator.backward(part * accelerator.num_processes)
            share += part.detach()
        return share

    def _require_finite(self, point: LogPoint, norms: dict[Tensor, Tensor]) -> None:
        for what, value, parts in (
            ("loss", point.loss, {}),
            ("gradient norm", point.gradient_norm, norms),
        ):
            if not math.isfinite(value):
                where = f"at update {point.update}{self._broken(parts)}"
                raise DivergedError(
                    f"the {what} is {value} {where}; last finite loss {self.last_finite_loss}",
                    step=point.update,
                    last_finite_loss=self.last_finite_loss,
                )

    def _broken(self, norms: dict[Tensor, Tensor]) -> str:
        """Return the names of parameters whose gradients are not finite, for a message.

        The backward pass begins at the end of the model, so that the last of them was the first.
        """
        names = [self.trained[p] for p, norm in norms.items() if not torch.isfinite(norm)]
        others = f" and {len(names) - 1} others" if len(names) > 1 else ""
        return f" (in {names[-1]}{others})" if names else ""

    def state(self) -> dict[str, Any]:
        """Return the state of weights, optimizer and method: tensors and plain values."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a state that :meth:`state` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])


def gradient_norms(parameters: Iterable[Tensor]) -> dict[Tensor, Tensor]:
    """Return the norm of the gradient of each of ``parameters`` that has one."""
    gradients = {p: p.grad for p in parameters if p.grad is not None}
    return dict(zip(gradients, torch._foreach_norm(list(gradients.values())), strict=True))


def total_norm(norms: dict[Tensor, Tensor]) -> Tensor:
    """Return the norm of the whole gradient from the norms of its parts."""
    total: Tensor = torch.linalg.vector_norm(torch.stack(list(norms.values())))
    return total


def compile_in_place(model: nn.Module, device: torch.device) -> None:
    """Compile the model with ``torch.compile`` in place, so that parameter names stay.

    Raises :class:`ConfigError` on a CPU without a C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise ConfigError(
            f"training.compile needs a C++ compiler and '{compiler}' is not installed; install it or drop training.compile"
        )
    model.compile()


def split_batch(training: Training, processes: int) -> tuple[int, int]:
    """Return (accumulation steps, rows of a micro-batch) of one process.

    Raises :class:`ConfigError` where the batch cannot be divided so.
    """
    if training.batch_size % processes:
        raise ConfigError(
            f"training.batch_size {training.batch_size} cannot be shared by {processes} processes; "
            f"make it a multiple of {processes}"
        )
    share = training.batch_size // processes
    micro = min(training.micro_batch_size or share, share)
    if share % micro:
        raise ConfigError(
            f"training.batch_size {training.batch_size} over {processes} processes is {share} rows, "
            f"not a multiple of micro_batch_size {micro}"
        )
    return share // micro, micro


def step_seed(seed: int, update: int, index: int, process: int) -> int:
    """Return the seed of the global generator for one forward pass, which dropout draws from.

    It mixes the run's seed, the update, the number of the micro-batch and the process.
    """
    mixed = (seed + 1) * 0x9E3779B97F4A7C15 + update * 0xBF58476D1CE4E5B9
    mixed += index * 0x94D049BB133111EB + process * 0xD6E8FEB86659FD93
    return mixed & 0x7FFF_FFFF_FFFF_FFFF


class Stopwatch:
    """Measures the time of training alone, without validation, saving and writing to the store."""

    def __init__(self) -> None:
        self.elapsed, self.lap_start, self.since = 0.0, 0.0, time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        self.elapsed, self.since = self.elapsed + now - self.since, now

    def lap(self, tokens: int) -> float:
        """Return the tokens per second since the last lap, for a lap of ``tokens``."""
        self._tick()
        seconds, self.lap_start = self.elapsed - self.lap_start, self.elapsed
        return tokens / seconds if seconds > 0 else 0.0

    def total(self) -> float:
        """Return the seconds of training since the last call."""
        self._tick()
        total, self.elapsed, self.lap_start = self.elapsed, 0.0, self.lap_start - self.elapsed
        return total

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock in the block."""
        self._tick()
        yield
        self.since = time.perf_counter()
