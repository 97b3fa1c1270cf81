"""AdamW with moments in eight bits, for parameters that are not projected."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer

from lowrank.errors import ConfigError
from lowrank.optim import adam
from lowrank.optim.state import AdamState


class AdamW8bit(adam.KeepsCodecs, Optimizer):
    """AdamW whose moments are quantised in blocks between updates (arXiv:2110.02861).

    Update t of W with gradient G is that of ``torch.optim.AdamW`` (arXiv:1711.05101): W -= lr ·
    weight_decay · W, then m = β₁ m + (1-β₁) G, v = β₂ v + (1-β₂) G², W -= lr/(1-β₁ᵗ) · m /
    (√v/√(1-β₂ᵗ) + eps). It is computed in float32, and the moments are rounded afterwards. Moments
    of fewer than 4096 entries keep the precision of their parameter.

    The state holds ``step`` (int), ``exp_avg``, ``exp_avg_sq`` and, where these are codes,
    ``exp_avg_scale`` and ``exp_avg_sq_scale``; it loads with ``weights_only=True``. Arguments are
    those of ``torch.optim.AdamW``. Raises :class:`ConfigError` for parameters that are distributed
    over processes.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params,
            {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "state_bits": 8},
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group. Raises :class:`ConfigError` for parameters distributed over processes."""
        super().add_param_group(param_group)
        refuse_shards(self.param_groups[-1]["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return the value of ``closure``, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: Tensor, G: Tensor, group: dict[str, Any]) -> None:
        state = AdamState(self.state[p])
        adam.advance(state, G, group)
        (beta1, beta2), t = group["betas"], state.step
        # AdamW adds eps to the corrected √v, the functions of adam to the uncorrected one.
        root = math.sqrt(1.0 - beta2**t)
        stretched = {**group, "eps": group["eps"] * root}
        size = group["lr"] * root / (1.0 - beta1**t)
        p.mul_(1.0 - group["lr"] * group["weight_decay"])
        if state.is_quantised:
            adam.quantised_update(p, G, state, stretched, self.codecs(p.device), size)
        else:
            p.add_(adam.direction(G, state, stretched), alpha=-size)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state. Every tensor moves to its parameter's device and keeps its dtype."""
        super().load_state_dict(state_dict)
        # That casts codes and scales to the parameter's dtype, so the saved ones are put back.
        saved = state_dict["state"]
        for group, stored in zip(self.param_groups, state_dict["param_groups"], strict=True):
            for p, i in zip(group["params"], stored["params"], strict=True):
                tensors = {
                    key: value for key, value in saved.get(i, {}).items() if torch.is_tensor(value)
                }
                self.state[p].update(
                    {key: value.detach().clone().to(p.device) for key, value in tensors.items()}
                )


def refuse_shards(parameters: Iterable[Tensor]) -> None:
    """Raise :class:`ConfigError` for parameters under ``fully_shard``.

    A block of codes would lie on two processes.
    """
    if any(isinstance(p, DTensor) for p in parameters):
        raise ConfigError(
            "moments in 8 bits are not distributed over processes; under fully_shard use state_bits 32"
        )
