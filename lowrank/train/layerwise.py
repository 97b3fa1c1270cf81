"""Updates within the backward pass: each parameter is updated once its gradient is complete, and
the gradient is freed.

All gradients together then take the memory of the largest one (arXiv:2306.09782; GaLore, section
4.3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowrank.config import Training
from lowrank.errors import ConfigError


class LayerwiseUpdates:
    """Calls ``optimizer.step()`` for each of ``parameters`` alone, in a hook on its complete
    gradient.

    That is the ordinary step, bit for bit, for every optimizer that treats parameters one by one
    and skips those without a gradient. Without an optimizer (None) gradients are only freed. With
    ``stop``, no parameter is updated from the first gradient on that is not finite; this reads a
    number from the accelerator for each parameter.
    """

    def __init__(
        self, parameters: Sequence[Tensor], optimizer: Optimizer | None, *, stop: bool
    ) -> None:
        self.parameters, self.optimizer, self.stop, self.stopped = (
            list(parameters),
            optimizer,
            stop,
            False,
        )
        self.found: dict[Tensor, Tensor] = {}
        for p in self.parameters:
            p.register_post_accumulate_grad_hook(self._move)  # type: ignore[attr-defined]

    def take_norms(self) -> dict[Tensor, Tensor]:
        """Return the norm of the gradient of each parameter since the last call.

        Norms are tensors without dimensions, in the order of the parameters.
        """
        found, self.found = self.found, {}
        return {p: found[p] for p in self.parameters if p in found}

    def _move(self, p: Tensor) -> None:
        assert p.grad is not None
        (self.found[p],) = torch._foreach_norm([p.grad])
        self.stopped = self.stopped or (self.stop and not bool(torch.isfinite(self.found[p])))
        if self.optimizer is not None and not self.stopped:
            self.optimizer.step()  # no other parameter has a gradient
        p.grad = None


def check(training: Training, accumulation: int, processes: int) -> None:
    """Raise :class:`ConfigError` if the run asks for per-layer updates and they are impossible.

    ``accumulation`` is the number of micro-batches of an update, ``processes`` that of the launch.
    """
    excluded = [
        (
            accumulation > 1,
            "accumulation needs the gradients until the end (drop training.micro_batch_size)",
        ),
        (
            training.max_grad_norm is not None,
            "clipping needs the norm of all gradients first (set training.max_grad_norm to null)",
        ),
        (
            processes > 1,
            f"{processes} processes exchange their gradients after the backward pass (use one)",
        ),
        (
            training.compile,
            "a compiled backward pass returns all gradients at once (drop training.compile)",
        ),
    ]
    reasons = [reason for applies, reason in excluded if applies]
    if training.per_layer_updates and reasons:
        raise ConfigError(f"training.per_layer_updates is not possible here: {'; '.join(reasons)}")
